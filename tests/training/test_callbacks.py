"""The callbacks, each on a fit of the plain graph."""

from __future__ import annotations

import csv
import io
import sys
import types

import numpy as np
import pytest
from training.fakes import PlainCrossEntropy, PlainGraph, blobs

from tapeprop.callbacks import Callback, Checkpoint, CSVLogger, EarlyStopping, Progress
from tapeprop.training.fit import fit

X, Y = blobs()


class Say(Callback):
    """Puts figures of the test's own into the logs."""

    def __init__(self, **figures):
        self.figures = figures

    def on_epoch_end(self, epoch, logs):
        logs.update({name: values[epoch] for name, values in self.figures.items()})


def run(*callbacks, graph=None, **options):
    graph = graph or PlainGraph()
    options = {"loss": PlainCrossEntropy(), "epochs": 8, "verbose": 0, "seed": 0} | options
    return graph, fit(graph, X, Y, callbacks=list(callbacks), **options)


class Weights(Callback):
    """Keeps the weights of every epoch."""

    def __init__(self):
        self.kept = []

    def on_epoch_end(self, epoch, logs):
        self.kept.append(self.run.graph.weights[0].copy())


def test_early_stopping_waits_stops_and_restores() -> None:
    weights = Weights()
    figures = Say(val_loss=[3.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.1, 0.1])
    graph, history = run(figures, weights, EarlyStopping(patience=3))
    assert history.epochs == [0, 1, 2, 3, 4]  # equal to the best is no better
    assert history.stopped == "val_loss has not become better since epoch 1"
    np.testing.assert_array_equal(graph.weights[0], weights.kept[1])
    assert (weights.kept[1] != weights.kept[4]).any()


def test_early_stopping_can_leave_the_last_weights() -> None:
    weights = Weights()
    graph, _ = run(Say(val_loss=[1.0] * 8), weights, EarlyStopping(patience=2, restore_best=False))
    np.testing.assert_array_equal(graph.weights[0], weights.kept[-1])
    assert len(weights.kept) == 3


def test_early_stopping_by_a_figure_that_should_rise() -> None:
    _, history = run(Say(f1=[0.1, 0.5, 0.4, 0.4, 0.9, 0.1, 0.1, 0.1]), EarlyStopping("f1", patience=2))
    assert history.epochs == [0, 1, 2, 3]


def test_early_stopping_needs_more_than_min_delta() -> None:
    _, history = run(
        Say(val_loss=[1.0, 0.99, 0.98, 0.97, 0.5, 0.5, 0.5, 0.5]), EarlyStopping(patience=3, min_delta=0.1)
    )
    assert history.epochs == [0, 1, 2, 3]


def test_early_stopping_takes_nan_for_worse() -> None:
    _, history = run(Say(val_loss=[np.nan, 1.0, np.nan, np.nan, 0.0, 0.0, 0.0, 0.0]), EarlyStopping(patience=2))
    assert history.epochs == [0, 1, 2, 3]


def test_early_stopping_can_be_used_again() -> None:
    stopping = EarlyStopping(patience=1)
    _, first = run(Say(val_loss=[0.1, 1, 1, 1, 1, 1, 1, 1]), stopping)
    _, second = run(Say(val_loss=[5.0, 4, 3, 3, 3, 3, 3, 3]), stopping)
    assert (len(first), len(second)) == (2, 4)


def test_an_unknown_figure_is_named() -> None:
    with pytest.raises(
        ValueError, match="EarlyStopping: there is no figure 'val_f1' to monitor; there are loss, accuracy"
    ):
        run(EarlyStopping("val_f1"))


def test_checkpoint_saves_every_so_many_epochs(tmp_path) -> None:
    run(Checkpoint(tmp_path / "deep" / "net-{epoch:02d}.npz", every=3))
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["net-02.npz", "net-05.npz"]


def test_checkpoint_saves_the_best(tmp_path) -> None:
    weights = Weights()
    best = Checkpoint(tmp_path / "best.npz", "val_loss", save_best_only=True)
    run(Say(val_loss=[3.0, 1.0, 2.0, 1.5, 1.0, 1.5, 1.1, 1.1]), weights, best)
    with np.load(tmp_path / "best.npz") as file:
        np.testing.assert_array_equal(file["w0"], weights.kept[1])


def test_checkpoint_refuses_unknown_names_in_its_path(tmp_path) -> None:
    with pytest.raises(ValueError, match="names 'f1', but there are epoch, loss, accuracy"):
        run(Checkpoint(tmp_path / "{f1}.npz"))


def test_csv(tmp_path) -> None:
    path = tmp_path / "log.csv"
    _, history = run(CSVLogger(path), epochs=2, validation_split=0.2)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert [float(row["loss"]) for row in rows] == history.loss  # every digit
    assert [row["epoch"] for row in rows] == ["0", "1"]


def test_csv_appends_where_asked(tmp_path) -> None:
    path = tmp_path / "log.csv"
    run(CSVLogger(path), epochs=2)
    run(CSVLogger(path, append=True), epochs=1)
    assert len(path.read_text().splitlines()) == 4
    run(CSVLogger(path), epochs=1)
    assert len(path.read_text().splitlines()) == 2
    with pytest.raises(
        ValueError, match="has the columns epoch, loss, accuracy, this fit gives epoch, loss, accuracy, val_"
    ):
        run(CSVLogger(path, append=True), validation_split=0.2)


def test_csv_is_complete_after_every_epoch(tmp_path) -> None:
    path, seen = tmp_path / "log.csv", []

    class Look(Callback):
        def on_epoch_end(self, epoch, logs):
            seen.append(len(path.read_text().splitlines()))

    run(CSVLogger(path), Look(), epochs=3)
    assert seen == [2, 3, 4]


def test_progress_writes_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    run(Progress(stream=stream), EarlyStopping(patience=1), epochs=2)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  loss ")
    assert "samples/s" in lines[0]
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_progress_says_why_training_stopped() -> None:
    stream = io.StringIO()
    run(Say(val_loss=[1.0] * 8), EarlyStopping(patience=1), Progress(stream=stream))
    assert stream.getvalue().splitlines()[-1] == "stopped: val_loss has not become better since epoch 0"


def test_progress_goes_to_stderr_by_default(capsys) -> None:
    run(epochs=1, verbose=1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("epoch 1/1  loss ")


def test_a_progress_of_the_callers_own_is_the_only_one(capsys) -> None:
    stream = io.StringIO()
    run(Progress(stream=stream), epochs=1, verbose=1)
    assert capsys.readouterr().err == ""
    assert stream.getvalue()


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_bar_on_a_terminal(monkeypatch) -> None:
    made = []

    class Bar:
        def __init__(self, **options):
            self.n, self.options, self.closed, self.text = 0, options, False, ""
            made.append(self)

        def update(self, count):
            self.n += count

        def set_postfix_str(self, text, refresh):
            self.text = text

        def close(self):
            self.closed = True

    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=Bar))
    terminal = Terminal()
    run(Progress(stream=terminal), epochs=2, batch_size=10)
    assert [bar.n for bar in made] == [9, 9]
    assert not any(bar.options["leave"] for bar in made)
    assert [line[:9] for line in terminal.getvalue().splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert all(bar.closed for bar in made)
    assert made[1].options["desc"] == "epoch 2/2"
    assert made[1].options["total"] == 9
    assert "loss" in made[1].text


def test_a_terminal_without_tqdm_gets_lines(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    stream = Terminal()
    run(Progress(stream=stream), epochs=2)
    assert len(stream.getvalue().splitlines()) == 2


def test_the_real_tqdm_draws(monkeypatch) -> None:
    pytest.importorskip("tqdm")
    stream = Terminal()
    run(Progress(stream=stream), epochs=1, batch_size=10)
    drawn, line = stream.getvalue().rsplit("\r", 1)
    assert "0/9" in drawn
    assert line.startswith("epoch 1/1  loss ")


class Broken(io.StringIO):
    """A pipe whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError


def test_a_broken_stream_does_not_end_training() -> None:
    _, history = run(Progress(stream=Broken()), epochs=2)
    assert len(history) == 2
    closed = io.StringIO()
    closed.close()
    _, history = run(Progress(stream=closed), epochs=2)
    assert len(history) == 2


def test_no_stderr_at_all(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    _, history = run(epochs=2, verbose=1)
    assert len(history) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(patience=-1),
        lambda: EarlyStopping(min_delta=-1),
        lambda: EarlyStopping(mode="up"),
        lambda: Checkpoint("x", every=0),
        lambda: Checkpoint("x", mode="up"),
    ],
)
def test_arguments_are_checked(make) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()
