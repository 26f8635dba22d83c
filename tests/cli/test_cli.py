"""The command line: what it prints where, and its exit codes."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys

import pytest
from patience import HANG_SECONDS

import tapeprop
from tapeprop import cli
from tapeprop.cli import doctor, output, train
from tapeprop.profiler.tables import Figures

COMMANDS = ["train", "summary", "plot", "profile", "bench", "warmup", "doctor", "cache"]


def run(capsys, *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    code = cli.main(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "argv", [[], *([name] for name in COMMANDS), ["cache", "info"], ["cache", "clear"]], ids=" ".join
)
def test_help(capsys, argv) -> None:
    code, out, err = run(capsys, *argv, "--help")
    assert code == 0
    assert out.startswith("usage: tapeprop")
    assert err == ""


def test_help_lists_just_the_commands_that_there_are(capsys) -> None:
    _, out, _ = run(capsys, "--help")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("    ")]
    assert listed == COMMANDS


def test_version(capsys) -> None:
    assert run(capsys, "--version")[1] == f"tapeprop {tapeprop.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "required: command"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "required: data"),
        (["train", "cats"], "invalid choice: 'cats'"),
        (["train", "digits", "--epochs", "0"], "expected at least 1, received 0"),
        (["train", "digits", "--batch-size", "x"], "--batch-size: expected a whole number, received 'x'"),
        (["train", "digits", "--lr", "fast"], "--lr: expected a number, received 'fast'"),
        (["train", "digits", "--fast"], "unrecognized arguments: --fast"),
        (["train", "digits", "--lr", "nan"], "expected a finite number above 0"),
        (["train", "digits", "--seed", "-1"], "expected at least 0"),
        (["train", "digits", "--at-least", "98"], "expected a number from 0 to 1"),
        (["cache"], "required: action"),
        (["summary", "digits", "--input-shape", "a"], "expected whole numbers with commas between"),
        (["summary", "digits", "--input-shape", "0,1,8,8"], "expected sizes of at least 1"),
        (["plot"], "required: graph"),
        (["plot", "digits", "--what", "cake"], "invalid choice: 'cake'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_2(capsys, argv, text) -> None:
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert text in err
    assert len(err.splitlines()) == 1, "the synopsis of all options hides what is wrong"
    assert err.endswith(" --help\n")
    assert out == ""


def raising(error: BaseException):
    def fail(args: argparse.Namespace) -> int:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("too bad"), 1, "tapeprop doctor: error: too bad"),
        (OSError(28, "No space left"), 1, "No space left"),
        (RuntimeError("broken"), 1, "tapeprop doctor: error: broken"),
        (MemoryError(), 1, "tapeprop doctor: error: out of memory\n"),
        (MemoryError("233. TiB"), 1, "tapeprop doctor: error: out of memory: 233. TiB"),
    ],
)
def test_errors_become_codes(capsys, monkeypatch, error, code, text) -> None:
    monkeypatch.setattr(doctor, "run", raising(error))
    found, out, err = run(capsys, "doctor")
    assert found == code
    assert text in err
    assert out == ""


def test_what_nobody_foresaw_keeps_its_traceback(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "run", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def process(*argv: str, **options) -> subprocess.CompletedProcess:
    """`python -m tapeprop ...` in a process of its own."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, "-m", "tapeprop", *argv],
        capture_output=options.pop("capture", True),
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=HANG_SECONDS,
        check=False,
        **options,
    )


def test_as_a_module() -> None:
    done = process("--version")
    assert (done.returncode, done.stdout) == (0, f"tapeprop {tapeprop.__version__}\n")


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = process("summary", "digits", capture=False, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


def test_a_closed_stdout_is_no_traceback(monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)  # as Python starts with `>&-`
        assert cli.main(["summary", "digits"]) == 0


# ---- cache


def test_cache_info_and_clear(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TAPEPROP_CACHE_DIR", str(tmp_path))
    code, out, _ = run(capsys, "cache", "info", "--json")
    assert code == 0
    assert json.loads(out) == {"folder": str(tmp_path / "kernels"), "kernels": 0, "bytes": 0}
    (tmp_path / "kernels" / f"{'0' * 64}.kernel").write_bytes(b"x" * 2048)
    assert run(capsys, "cache", "info")[1] == f"{tmp_path / 'kernels'}: 1 kernels, 2.0 KiB\n"
    assert json.loads(run(capsys, "cache", "clear", "--json")[1]) == {"deleted": 1}
    assert run(capsys, "cache", "clear")[1] == "deleted 0 kernels\n"


# ---- doctor


def test_doctor(capsys) -> None:
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert report["trial"] == "passed"
    assert code == 0
    assert report["ok"] is True
    assert report["cuda"]["available"] or "cuda" in report["cuda"]["reason"]
    assert report["usable_cpus"] >= 1
    assert all(report["packages"][name] for name in ("numpy", "numba", "llvmlite"))
    _, out, _ = run(capsys, "doctor")
    assert [line.split()[0] for line in out.splitlines()] == [
        "tapeprop", "packages", "extras", "cpu", "cache", "kernels", "cuda", "trial",
    ]  # fmt: skip


def test_doctor_exits_with_1_where_something_is_wrong(capsys, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "trial", lambda: "expected 1, received 2")
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "expected 1, received 2" in out
    monkeypatch.setattr(doctor, "trial", lambda: None)
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "numba" else "1.0")
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "numba MISSING" in out


def test_the_doctors_trial_tells_what_is_wrong(monkeypatch) -> None:
    monkeypatch.setattr(tapeprop.LayerGraph, "train_step", lambda *_: 3.0)
    assert doctor.trial() == "expected loss, weight and bias (2.5, -1.5, -0.5), received (3.0, 2.0, 1.0)"
    monkeypatch.delattr(tapeprop.LayerGraph, "train_step")
    assert doctor.trial() == "AttributeError: 'LayerGraph' object has no attribute 'train_step'"


# ---- summary


def test_summary(capsys) -> None:
    code, out, _ = run(capsys, "summary", "digits")
    assert code == 0
    for name in ("stem", "refine", "shortcut", "narrow", "wide", "pooled", "head", "(32, 10)"):
        assert name in out
    report = json.loads(run(capsys, "summary", "digits", "--json", "--input-shape", "7,1,8,8")[1])
    assert report["output_shape"] == [7, 10]
    assert report["nodes"][0] == "stem"


def test_summary_with_the_tape(capsys) -> None:
    report = json.loads(run(capsys, "summary", "digits", "--json", "--tape")[1])
    assert len(report["tape"]) > 10
    assert "tape" not in json.loads(run(capsys, "summary", "digits", "--json")[1])
    plain, tape = run(capsys, "summary", "digits")[1], run(capsys, "summary", "digits", "--tape")[1]
    assert tape.startswith(plain)
    assert len(tape) > 2 * len(plain)


def test_summary_of_what_is_not_there(capsys, tmp_path) -> None:
    code, out, err = run(capsys, "summary", str(tmp_path / "none"))
    assert code == 1
    assert 'is neither "digits" nor a file' in err
    assert out == ""


# ---- plot


def test_plot(capsys, tmp_path) -> None:
    code, out, err = run(capsys, "plot", "digits")
    assert (code, err) == (0, "")
    assert out.startswith("flowchart TD\n")
    assert "(32, 16, 8, 8)" in out
    assert "(7, 16, 8, 8)" in run(capsys, "plot", "digits", "--input-shape", "7,1,8,8")[1]
    path = tmp_path / "digits.svg"
    code, out, err = run(capsys, "plot", "digits", "-o", str(path))
    assert (code, out, err) == (0, "", f"wrote {path}\n")
    assert path.read_text(encoding="utf-8").startswith("<svg ")


def test_plot_the_tape(capsys, tmp_path) -> None:
    code, out, _ = run(capsys, "plot", "digits", "--what", "tape", "--input-shape", "7,1,8,8")
    assert code == 0
    assert "subgraph" in out
    assert "(7, 16, 8, 8)" in out
    path = tmp_path / "tape.dot"
    assert run(capsys, "plot", "digits", "--what", "tape", "-o", str(path))[0] == 0
    assert path.read_text(encoding="utf-8").startswith("digraph {")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["none"], 'neither "digits" nor a file'),
        (["digits", "-o", "net.png"], "ends in .svg, .mmd, .md, .dot or .gv, got 'net.png'"),
        (["digits", "-o", "no/such/folder/net.svg"], "no/such/folder/net.svg"),
        (["digits", "--input-shape", "7,2,8,8"], "stem"),
        (["digits", "--what", "tape", "--input-shape", "7,2,8,8"], "stem"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_plot_of_what_does_not_go(capsys, monkeypatch, tmp_path, argv, text) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "plot", *argv)
    assert (code, out) == (1, "")
    assert text in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# ---- train


REPORT = {
    "data": "digits",
    "train_samples": 1438,
    "test_samples": 359,
    "parameters": 21882,
    "epochs": 15,
    "batch_size": 32,
    "accuracy": 0.9861,
    "loss": 0.05,
    "train_loss": 0.01,
    "prepare_seconds": 1.5,
    "compile_seconds": 0.0,
    "train_seconds": 5.0,
    "images_per_second": 4314.0,
    "slowest": [{"row": 7, "phase": "forward", "op": "conv", "layer": "wide", "seconds": 4.2e-5, "share": 0.25}],
}


def test_report() -> None:
    lines = train.text(REPORT).splitlines()
    assert lines[0].startswith("held-out accuracy 0.9861 on 359 digits")
    assert "4,314 images/s" in lines[1]
    assert "(all of them were in the cache)" in lines[2]
    assert lines[-1].split() == ["7", "forward", "conv", "wide", "42", "us", "25.0%"]


def test_slowest_rows_come_first() -> None:
    rows = [
        Figures(str(i), ((0, i),), seconds, 0.1, 1, 0, 0, 0.0, 1.0, 1.0, "forward", "op", "node", "node")
        for i, seconds in enumerate([1.0, 3.0, 2.0, 0.5, 0.1, 0.2])
    ]
    assert [row["row"] for row in train.slowest(rows)] == [1, 2, 0, 3, 5]


def test_accuracy_below_what_was_asked_is_1(capsys, monkeypatch) -> None:
    monkeypatch.setattr(train, "train", lambda args: REPORT)
    assert run(capsys, "train", "digits", "--at-least", "0.98")[0] == 0
    code, out, err = run(capsys, "train", "digits", "--at-least", "0.99", "--json")
    assert code == 1
    assert "0.9861 is below 0.99" in err
    assert json.loads(out) == REPORT


@pytest.mark.slow
def test_train_digits(capsys) -> None:
    code, out, err = run(capsys, "train", "digits", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["accuracy"] >= 0.98
    assert report["parameters"] == 21882
    assert len(report["slowest"]) == 5
    assert sum(line.startswith("epoch ") for line in err.splitlines()) == 15


def test_a_short_training_is_repeatable(capsys, tmp_path) -> None:
    argv = ["train", "digits", "--json", "--epochs", "1", "--batch-size", "128", "--quiet"]
    first = json.loads(run(capsys, *argv)[1])
    again = json.loads(run(capsys, *argv, "--workers", "1")[1])
    assert first["loss"] == again["loss"]
    assert first["accuracy"] > 0.5
    assert json.loads(run(capsys, *argv, "--seed", "1")[1])["loss"] != first["loss"]


def test_a_saved_graph_can_be_summed_up(capsys, tmp_path) -> None:
    path = str(tmp_path / "digits.safetensors")
    argv = ["train", "digits", "--epochs", "1", "--batch-size", "128", "--quiet", "--save", path]
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert out.endswith(f"saved to {path}\n")
    _, saved, _ = run(capsys, "summary", path)  # with the shape that it was built with
    assert saved == run(capsys, "summary", "digits", "--input-shape", "128,1,8,8")[1]


# ---- output


def test_numbers_that_json_lacks_become_null(capsys) -> None:
    output.print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (1, "x")}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": [1, "x"]}}


def test_texts() -> None:
    assert [output.size_text(n) for n in (0, 1023, 1536, 3 << 20, 5 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "3.0 MiB", "5120.0 GiB",
    ]  # fmt: skip
    assert [output.seconds_text(s) for s in (12.345, 0.0123, 1.5e-5, 2e-9)] == ["12.3 s", "12.3 ms", "15 us", "2 ns"]
    assert output.table(("a", "bb"), [("1", "x"), ("22", "y")], left=(1,)) == " a  bb\n 1  x\n22  y"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_live_display_on_a_real_terminal() -> None:
    pytest.importorskip("rich")
    argv = [sys.executable, "-m", "tapeprop", "train", "digits", "--live", "--epochs", "3"]
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        environment.pop(name, None)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=theirs, env=environment) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux says that nobody holds the other end any more
                break
            if not part:
                break
            shown += part
        report, _ = child.communicate()
    os.close(ours)
    assert child.returncode == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    for words in (
        "epoch 3/3",
        "45/45 batches",
        "samples/s",
        "val_loss",
        "hottest instructions",
        "parameters 8",
        "process ",
    ):
        assert words in text, words
    phases = "gather|forward|loss|backward|update"
    assert re.search(rf"\w+ +(\S+ +)?({phases}) +\S+ (ns|us|ms|s) +[\d.]+%", text)  # whichever is the hottest
    assert shown.endswith(b"\x1b[?25h")  # the cursor is back
    assert b"held-out accuracy" in report


def test_live_without_rich(capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    code, out, err = run(capsys, "train", "digits", "--live", "--epochs", "1")
    assert code == 1
    assert err.splitlines()[-1].startswith("tapeprop train: error: Live needs rich: pip install")
    assert not out
