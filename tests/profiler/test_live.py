"""`Live`: what it shows on a terminal and elsewhere, that it always stops recording, and that it changes nothing."""

from __future__ import annotations

import io
import re
import sys
import threading
from typing import Any

import numpy as np
import pytest
from rules.networks import assert_same_bits
from training.fakes import PlainCrossEntropy, PlainGraph, blobs

import tapeprop as tp
from tapeprop import LayerGraph, LayerNode
from tapeprop.callbacks import Callback, Live, Progress, Run
from tapeprop.layers import Activation, Dense, PythonLayer, Sequential
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD
from tapeprop.profiler import live
from tapeprop.profiler.hot import Sampler
from tapeprop.runtime.recorder import listeners
from tapeprop.training.fit import fit

pytest.importorskip("rich")

X = np.random.default_rng(0).standard_normal((50, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 50)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(autouse=True)
def nobody_listens_afterwards():
    assert listeners() == ()
    yield
    assert listeners() == ()


def network(name: str = "body", **build: Any) -> LayerGraph:
    body, head = LayerNode(Sequential(Dense(4, 8), Activation.Tanh()), name=name), LayerNode(Dense(8, 3), name="head")
    graph = LayerGraph({body: [head], head: []}, root=body, term=head, seed=0).build((None, 4), **build)
    graph.set_optimizer(SGD(0.1))
    return graph


def trained(*callbacks: Callback, graph: LayerGraph | None = None, **options: Any) -> LayerGraph:
    graph = network() if graph is None else graph
    given = {"loss": CrossEntropy(), "epochs": 2, "batch_size": 8, "verbose": 0, "seed": 0} | options
    graph.fit(X, Y, callbacks=list(callbacks), **given)
    return graph


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def frames(self) -> list[str]:
        """The displays that were drawn, one after another, without colours."""
        return [ESCAPES.sub("", part) for part in self.getvalue().split("╭")[1:]]


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "40")
    return Terminal()


# ---- elsewhere than on a terminal


def test_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    trained(Live(top=4, stream=stream))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("epoch 1/2  loss ")
    assert "samples/s" in lines[0]
    assert lines[1].startswith("  hottest: ")
    assert re.search(r"\((forward|backward|update|loss|gather)\) \d+\.\d%", lines[1])
    assert re.search(r"; values [\d.]+ (B|KiB), parameters [\d.]+ (B|KiB), process [\d.]+ (MiB|GiB)", lines[1])
    assert lines[2].startswith("epoch 2/2")
    assert len(lines) == 4 + 4
    shares = [float(line.split()[2].rstrip("%")) for line in lines[4:]]
    assert shares == sorted(shares, reverse=True)
    assert "\x1b" not in stream.getvalue()


def test_it_says_why_training_stopped() -> None:
    stream = io.StringIO()

    class Enough(Callback):
        def on_epoch_end(self, epoch, logs):
            self.run.stop("enough")

    trained(Live(stream=stream), Enough())
    assert stream.getvalue().splitlines()[-1] == "stopped: enough"


def test_it_takes_the_place_of_progress(capsys) -> None:
    stream = io.StringIO()
    trained(Live(stream=stream), verbose=1)
    assert capsys.readouterr().err == ""
    assert isinstance(Live(), Progress)


def test_a_graph_that_is_not_compiled() -> None:
    """Nothing is recorded, and nothing is said of instructions."""
    stream = io.StringIO()
    x, y = blobs()
    fit(PlainGraph(), x, y, loss=PlainCrossEntropy(), epochs=2, verbose=0, callbacks=[Live(stream=stream)])
    assert [line[:9] for line in stream.getvalue().splitlines()] == ["epoch 1/2", "epoch 2/2"]


# ---- on a terminal


def test_a_display_on_a_terminal(terminal) -> None:
    trained(Live(top=20, refresh=1e-9, stream=terminal), validation_data=(X, Y))  # all rows, whichever are hottest
    frames = terminal.frames()
    assert len(frames) >= 6  # of each epoch at least the first native call, the rest, and the validation
    last = frames[-1]
    for text in ("epoch 2/2", "7/7 batches", "samples/s", "loss ", "accuracy ", "val_loss ", "hottest instructions"):
        assert text in last, text
    assert re.search(r"values [\d.]+ (B|KiB), parameters 268 B, process [\d.]+ (MiB|GiB)", last)
    assert re.search(r"seen in [\d,]+ of \d+ native calls", last)
    assert re.search(r"head +forward +\S+ (ns|us|ms|s) +\d+\.\d%", last)
    assert re.search(r"body\.\d +backward +\S+ (ns|us|ms|s) +\d+\.\d%", last)
    assert any(bar in last for bar in live.BARS)
    assert any("validating" in frame for frame in frames)
    assert "validating" not in last


def test_lines_of_epochs_stay_above_the_display(terminal) -> None:
    trained(Live(stream=terminal))
    text = ESCAPES.sub("", terminal.getvalue()).replace("\r", "\n")
    assert [line[:9] for line in text.splitlines() if line.startswith("epoch ")] == ["epoch 1/2", "epoch 2/2"]
    assert terminal.getvalue().count("\x1b[?25h") == 1  # the cursor is shown again


def test_no_more_instructions_than_fit(terminal, monkeypatch) -> None:
    trained(Live(top=2, refresh=1e-9, stream=terminal))
    assert len(re.findall(r"\d%", terminal.frames()[-1])) == 2
    monkeypatch.setenv("LINES", "15")
    low = Terminal()
    trained(Live(top=8, refresh=1e-9, stream=low))
    assert len(re.findall(r"\d%", low.frames()[-2])) <= 3


def test_names_are_no_markup(terminal) -> None:
    trained(Live(top=20, refresh=1e-9, stream=terminal), graph=network("[red]<script>ñ[/red]"))
    assert "[red]<script>ñ[/red]" in terminal.frames()[-1]


def test_a_narrow_terminal(terminal, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    trained(Live(refresh=1e-9, stream=terminal))
    assert max(len(line) for frame in terminal.frames() for line in frame.splitlines()[:3]) <= 30


def test_a_figure_is_not_parted_from_its_name(terminal, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    trained(Live(refresh=1e-9, stream=terminal), validation_data=(X, Y))
    assert all(
        re.search(rf"{name} \d", terminal.frames()[-1]) for name in ("loss", "accuracy", "val_loss", "val_accuracy")
    )


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_without_a_cursor_gets_lines(terminal, monkeypatch, term) -> None:
    monkeypatch.setenv("TERM", term)
    trained(Live(stream=terminal))
    assert terminal.getvalue().startswith("epoch 1/2")
    assert "\x1b" not in terminal.getvalue()


def test_output_of_the_program_stays_where_it_goes(terminal, capsys) -> None:
    """stdout is no terminal here: what is printed there must arrive there."""
    out, err = sys.stdout, sys.stderr

    class Say(Callback):
        def on_epoch_end(self, epoch, logs):
            print("said", epoch)

    trained(Live(stream=terminal), Say())
    assert capsys.readouterr().out == "said 0\nsaid 1\n"
    assert (sys.stdout, sys.stderr) == (out, err)


def test_output_to_the_same_terminal_stands_above(terminal, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)

    class Say(Callback):
        def on_epoch_end(self, epoch, logs):
            print("said", epoch)

    trained(Live(stream=terminal), Say())
    assert sys.stdout is terminal
    assert "said 0\n" in ESCAPES.sub("", terminal.getvalue())


def test_the_rate_is_that_of_the_epoch_so_far() -> None:
    """A last batch that is drawn right behind the one before says nothing of the speed."""
    shown = Live(refresh=1e-9, stream=io.StringIO())
    shown.run = Run(network(), 1, 10, 1000, False)
    shown.on_train_begin()
    try:
        shown.on_epoch_begin(0)
        shown._start -= 1e6  # seconds ago
        for done, rate in ((9, 0.0009), (10, 0.001)):
            shown.on_batch_end(done, {"loss": 1.0})
            assert shown._rate == pytest.approx(rate, rel=0.01)
    finally:
        shown.on_train_end()


# ---- it always ends, and it changes nothing


class Fails(Callback):
    def __init__(self, error: BaseException):
        self.error = error

    def on_batch_end(self, done, logs):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("first", [True, False])
def test_recording_ends_with_an_error(terminal, error, first) -> None:
    callbacks: list[Callback] = [Live(stream=terminal), Fails(error)]
    out = sys.stdout
    with pytest.raises(type(error)):
        trained(*(callbacks if first else callbacks[::-1]))
    assert listeners() == ()
    assert sys.stdout is out
    assert "\x1b[?25h" in terminal.getvalue()


def test_recording_ends_where_another_callback_cannot_begin() -> None:
    class Refuses(Callback):
        def on_train_begin(self):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        trained(Live(stream=io.StringIO()), Refuses())


class Broken(Terminal):
    """A terminal whose reader goes after so many writes."""

    def __init__(self, writes: int):
        super().__init__()
        self.writes = writes

    def write(self, text: str) -> int:
        self.writes -= 1
        if self.writes < 0:
            raise BrokenPipeError
        return super().write(text)


@pytest.mark.parametrize("writes", [0, 1, 3, 10])
def test_a_broken_terminal_does_not_end_training(terminal, monkeypatch, writes) -> None:
    stream = Broken(writes)
    monkeypatch.setattr(sys, "stdout", Terminal())
    out, err = sys.stdout, sys.stderr
    trained(Live(refresh=1e-9, stream=stream), Progress(stream=io.StringIO()))
    assert (sys.stdout, sys.stderr) == (out, err)


def test_a_closed_stream_does_not_end_training() -> None:
    for kind in (io.StringIO, Terminal):
        stream = kind()
        stream.close()
        trained(Live(stream=stream))


def test_no_stderr_at_all(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    trained(Live())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_same_bits_with_it(accumulate) -> None:
    shown = trained(Live(refresh=1e-9, stream=io.StringIO()), accumulate=accumulate)
    assert_same_bits(shown.state_dict(), trained(accumulate=accumulate).state_dict())


def test_it_can_be_used_again(terminal) -> None:
    shown = Live(refresh=1e-9, stream=terminal)
    trained(shown)
    trained(shown, epochs=1)
    assert "epoch 1/1" in terminal.frames()[-1]
    assert re.search(r"of \d native calls", terminal.frames()[-1])


class Same(PythonLayer):
    """The identity in NumPy."""

    def forward(self, x):
        return x

    def backward(self, d_out):
        return d_out


@pytest.mark.parametrize("debug_nan", [False, True])
def test_rows_of_python_and_runs_row_by_row(debug_nan) -> None:
    node = LayerNode(Sequential(Dense(4, 3), Same()), name="node")
    graph = LayerGraph({node: []}, root=node, term=node, seed=0).build((None, 4), debug_nan=debug_nan)
    graph.set_optimizer(SGD(0.1))
    stream = io.StringIO()
    trained(Live(top=30, stream=stream), graph=graph)
    assert "python_grad of node" in stream.getvalue()


# ---- what is sampled


def test_the_fit_of_this_thread_alone_is_heard() -> None:
    sampler = Sampler()
    sampler.start()
    sampler.start()  # it does so already
    graph = network()
    graph.train_step(X[:8], Y[:8], CrossEntropy())
    graph.predict(X)
    other = threading.Thread(target=trained)
    other.start()
    other.join()
    sampler.stop()
    assert (sampler.calls, sampler.top(5)) == (0, [])
    sampler.start()
    trained()
    sampler.stop()
    sampler.stop()
    assert sampler.calls == 1
    top = sampler.top(1000)
    assert sum(row.share for row in top) == pytest.approx(1)
    assert [row.seconds for row in top] == sorted((row.seconds for row in top), reverse=True)
    assert {row.layer for row in top} >= {"body.0", "head"}
    assert {row.phase for row in top} == {"gather", "forward", "loss", "backward", "update"}
    assert sampler.arena > 0
    assert len(sampler.top(2)) == 2


def test_whole_batches_are_what_is_shown() -> None:
    """The last batch of an epoch is of 2 samples and runs once; its tape has its own instructions and counts for nothing."""
    sampler = Sampler()
    sampler.start()
    trained()
    sampler.stop()
    heard = {executable.program.inputs[0].shape: found.steps for executable, found in sampler._heard.items()}
    assert sorted(found.steps for found in sampler._heard.values()) == [2, 12], heard
    with tp.profiling() as p:
        trained()
    assert sorted(tape.steps for tape in p.profile.tapes if tape.name in ("fit", "fit #2")) == [2, 12]


# ---- what it is made with


@pytest.mark.parametrize(
    "options",
    [{"top": 0}, {"top": 1.5}, {"top": True}, {"refresh": 0}, {"refresh": float("nan")}, {"refresh": "x"}],
)
def test_arguments_are_checked(options) -> None:
    with pytest.raises(ValueError, match=rf"Live: {next(iter(options))} must be"):
        Live(**options)


def test_without_rich_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r"Live needs rich: pip install 'tapeprop\[progress\]'"):
        Live()


def test_the_curve() -> None:
    assert live._curve([]) == ""
    assert live._curve([1.0]) == "▁"
    assert live._curve([1.0, 2.0, 4.0, 128.0]) == "▁▂▃█"  # of logarithms
    assert live._curve([-1.0, float("nan"), 7.0, float("inf")]) == "▁ █ "


def test_memory_where_the_system_tells_less(monkeypatch) -> None:
    assert re.fullmatch(r"process [\d.]+ (MiB|GiB)", live._process_memory())

    def refuse(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    assert re.fullmatch(r"process [\d.]+ (MiB|GiB) at most", live._process_memory())
    monkeypatch.setitem(sys.modules, "resource", None)
    assert live._process_memory() == "process unknown"
