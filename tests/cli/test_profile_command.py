"""`tapeprop profile`: what it measures, prints and writes, and what it says of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli.profile_runs import NETWORK, reported, run, write
from cli.profile_runs import process as process  # a fixture of every test here
from patience import HANG_SECONDS
from profiler.profiles import with_even_times

import tapeprop as tp
from tapeprop.cli import profile
from tapeprop.cli.source import Source, load
from tapeprop.layers import Dense
from tapeprop.profiler.profile import Profile


@pytest.fixture
def net() -> str:
    return write(NETWORK)


# ---- what is measured and printed


def test_a_file(capsys, net) -> None:
    code, out, err = run(capsys, net, "--repeats", "3")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("train_step(float32 (32,4), int64 (32)): 3 steps of ")
    assert lines[1].split()[:5] == ["row", "phase", "op", "layer", "time"]
    for part in (
        "first",
        "head",
        "update",
        "apart from that: compiling kernels",
        "peak: ",
        "held by",
        "a step of train_step takes",
    ):
        assert part in out
    assert [line for line in err.splitlines() if not line.startswith("tapeprop: compil")] == [
        "graph: net.py:network",
        "input: 32,4, as the first layers expect it; the batch is assumed, --input-shape says otherwise",
        "labels: random, for CrossEntropy",
        "optimizer: SGD, where the graph has none",
    ]


def test_json_is_one_object(capsys, net) -> None:
    found = reported(capsys, net, "--repeats", "2", "--top", "2", "--sort", "row")
    assert found["what"] == "train_step"
    assert found["counters"]["steps"] == 2
    assert [figure["key"].split()[0] for figure in found["figures"]] == ["0", "1"]
    assert found["figures"][0]["seconds"] > 0
    tape = found["tapes"][0]
    assert tape["instructions"] == found["counters"]["instructions"]
    assert 0 < tape["memory"]["peak"] <= tape["memory"]["arena"]
    assert tape["memory"]["holders"]
    assert {"compile_seconds", "lowering_seconds", "findings", "machine"} <= set(found)


@pytest.mark.parametrize("by", profile.BY)
def test_by(capsys, net, by) -> None:
    found = reported(capsys, net, "--repeats", "1", "--by", by, "--top", "0")
    assert found["by"] == by
    assert sum(figure["share"] for figure in found["figures"]) == pytest.approx(1)
    assert run(capsys, net, "--repeats", "1", "--by", by)[0] == 0


def test_choices_are_those_of_the_tables() -> None:
    from tapeprop.profiler import tables

    assert (profile.BY, profile.SORTS) == (tables.BY, tables.SORTS)


def test_options_of_the_measurement(capsys, net) -> None:
    found = reported(
        capsys, net, "--batch-size", "7", "--workers", "1", "--dtype", "float64", "--loss", "mse", "--optimizer", "adam"
    )
    tape = found["tapes"][0]
    assert tape["sizes"] == ["float64 (7,4)", "float64 (7,3)"]
    assert (tape["workers"], found["counters"]["steps"]) == (1, profile.REPEATS)
    assert any("adam" in figure["op"] for figure in found["figures"])
    found = reported(capsys, net, "--input-shape", "5,4", "--loss", "none", "--repeats", "2")
    assert (found["what"], found["tapes"][0]["sizes"]) == ("predict", ["float32 (5,4)"])


def test_counters_repeat(capsys, net) -> None:
    code, out, _ = run(capsys, net, "--counters", "--repeats", "2")
    assert code == 0
    counters = dict(line.split() for line in out.splitlines())
    assert counters.keys() >= {"instructions", "flops", "bytes", "barriers", "arena_bytes", "lowerings", "plan_hits"}
    again = json.loads(run(capsys, net, "--counters", "--repeats", "2", "--json")[1])
    assert {name: int(value) for name, value in counters.items()} == again


def test_the_graph_is_not_trained(capsys) -> None:
    write(NETWORK + "graph = network().build((None, 4), workers=1)\nbefore = graph.state_dict()\n")
    source = load("net.py")
    profiled = {}

    def loaded(text: str) -> Source:
        profiled["source"] = source
        return source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "load", loaded)
        assert run(capsys, "net.py", "--repeats", "3")[0] == 0
    after = profiled["source"].graph.state_dict()
    for name, value in source.module.before.items():
        np.testing.assert_array_equal(after[name], value)


def test_digits_and_saved_graphs(capsys) -> None:
    assert reported(capsys, "digits", "--repeats", "1")["tapes"][0]["sizes"] == ["float32 (32,1,8,8)", "int64 (32)"]
    node = tp.LayerNode(Dense(4, 2))
    graph = tp.LayerGraph({node: []}, root=node, term=node, seed=0).build((6, 4), dtype="float64")
    graph.set_optimizer(tp.optimizers.Adam())
    graph.save("saved.safetensors")
    code, out, err = run(capsys, "saved.safetensors", "--repeats", "1")
    assert code == 0
    assert "float64 (6,4)" in out
    assert "adam" in out
    assert "input: 6,4, as the graph was built" in err
    assert "optimizer" not in err
    assert "float32 (6,4)" in run(capsys, "saved.safetensors", "--repeats", "1", "--dtype", "float32")[1]


def test_weights_without_an_optimizer_get_one(capsys) -> None:
    text = NETWORK.replace('name="head")', 'name="head")\n    head.set_optimizer(tp.optimizers.Adam())')
    code, out, err = run(capsys, write(text), "--repeats", "1")
    assert code == 0
    assert "adam" in out
    assert "sgd" in out
    assert "optimizer: SGD, where the graph has none" in err


def test_one_of_several_optimizers_replaces_all(capsys) -> None:
    text = NETWORK.replace('name="head")', 'name="head")\n    head.set_optimizer(tp.optimizers.Adam())')
    assert "adam" not in run(capsys, write(text), "--repeats", "1", "--optimizer", "sgd")[1]


def test_saved_profiles(capsys, net) -> None:
    assert run(capsys, net, "--repeats", "2", "--save", "p.json")[2].endswith("wrote p.json\n")
    assert Profile.load("p.json").tapes[0].steps == 2
    code, out, err = run(capsys, "p.json", "--by", "node", "--save", "q.json")
    assert (code, err) == (0, "wrote q.json\n")
    assert out.splitlines()[1].startswith("node")
    assert Path("q.json").read_text(encoding="utf-8") == Path("p.json").read_text(encoding="utf-8")


def test_profiles_of_several_tapes(capsys, net) -> None:
    graph = load(net).graph.build((None, 4), workers=1)
    graph.set_optimizer(tp.optimizers.SGD())
    X = np.ones((6, 4))
    with tp.profiling() as found:
        for _ in range(8):
            graph.train_step(X, np.zeros(6, int), tp.losses.CrossEntropy())
            graph.predict(X)
    found.to_json("p.json")
    code, out, _ = run(capsys, "p.json", "--top", "3")
    assert code == 0
    assert out.count("peak of train_step: ") == out.count("peak") == 1
    code, out, _ = run(capsys, "--compare", "p.json", "p.json")
    assert code == 0
    assert ", equal" in out.splitlines()[0]
    assert out.splitlines()[1].split()[0] == "tape"


@pytest.mark.parametrize("name", profile.WRITERS)
def test_files(capsys, net, saved, name) -> None:
    if name == "roofline":
        pytest.importorskip("matplotlib")
    path = "found.svg" if name in ("roofline", "flame_graph") else "found.html" if name == "html" else "found.json"
    for argv in ((net, "--repeats", "2"), saved[:1]):
        code, out, err = run(capsys, *argv, f"--{name.replace('_', '-')}", path)
        assert code == 0
        assert out.startswith("train_step(")
        assert f"wrote {path}\n" in err
        text = Path(path).read_text(encoding="utf-8")
        assert "train_step" in text
        if path.endswith(".json"):
            json.loads(text)
    assert "head" in text  # of made times: what is measured may be too short beside the rest to be drawn


# ---- bad input


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "expected a graph"),
        (["net.py", "--input-shape", "a"], "expected whole numbers with commas between"),
        (["net.py", "--input-shape", "0,4"], "expected sizes of at least 1"),
        (["net.py", "--repeats", "0"], "expected at least 1"),
        (["net.py", "--repeats", "1e3"], "--repeats: expected a whole number, received '1e3'"),
        (["net.py", "--top", "-1"], "expected at least 0"),
        (["net.py", "--by", "colour"], "invalid choice: 'colour'"),
        (["net.py", "--loss", "none", "--optimizer", "lion"], "invalid choice: 'lion'"),
        (["net.py", "--fail-above", "5%"], "--fail-above needs --compare"),
        (["--compare", "a.json"], "expected 2 arguments"),
        (["net.py", "--compare", "a.json", "b.json"], "takes two saved profiles and no graph, received 'net.py'"),
        (["--compare", "a.json", "b.json", "--repeats", "3"], "--compare measures nothing"),
        (["--compare", "a.json", "b.json", "--html", "x.html"], "--compare measures nothing"),
        (["--compare", "a.json", "b.json", "--fail-above", "much"], "expected per cent, as 5%"),
        (["--compare", "a.json", "b.json", "--fail-above", "nan"], "expected at least 0%"),
        (["p.json", "--workers", "2", "--repeats", "3"], "--repeats, --workers would change nothing"),
    ],
)
def test_wrong_usage_is_2(capsys, net, argv, expected) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert expected in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["none.py"], "there is no file 'none.py'"),
        (["none.json"], "cannot read 'none.json': No such file or directory"),
        (["other.json"], "other.json: expected a profile written by to_json(), got other JSON"),
        (["--compare", "other.json", "none.json"], "other.json: expected a profile"),
        (["net.py:nothing"], "net.py has no 'nothing'; it has network"),
        (["net.py", "--input-shape", "5,7"], "'first'"),
        (["net.py", "--input-shape", "5,4", "--batch-size", "6"], "--input-shape 5,4 and --batch-size 6 differ"),
        (["loop.py"], "cycle"),
        (["own.py"], "own.py:graph (own.py, line 4) raised ZeroDivisionError: division by zero"),
        (["empty.py"], "empty.py:graph"),
        (["loose.py"], "loose.py:graph: the first layers do not tell the shape of the input; give --input-shape"),
        (["net.py", "--loss", "cross-entropy", "--input-shape", "5"], "first"),
    ],
)
def test_what_cannot_be_measured(capsys, net, argv, expected) -> None:
    write("{}", "other.json")
    layer = """
        import tapeprop as tp
        from tapeprop.layers import Dense, Lambda
        def divide(x):
            return x + 1 / 0
        node = tp.SequentialNode(Dense(2, 2), Lambda(divide))
        graph = tp.LayerGraph({node: []}, root=node, term=node)
    """
    write(layer.strip("\n"), "own.py")
    write("import tapeprop as tp\ngraph = tp.LayerGraph()", "empty.py")
    lines = [
        "import tapeprop as tp",
        "from tapeprop.layers import Identity",
        "a, b = tp.LayerNode(Identity()), tp.LayerNode(Identity())",
    ]
    write("\n".join([*lines, "graph = tp.LayerGraph({a: [b], b: [a]}, root=a, term=b)"]), "loop.py")
    write("\n".join([*lines, "graph = tp.LayerGraph({a: [b], b: []}, root=a, term=b)"]), "loose.py")
    code, out, err = run(capsys, *argv)
    assert (code, out) == (1, "")
    last = err.splitlines()[-1]
    assert last.startswith("tapeprop profile: error: ")
    assert expected in last


@pytest.fixture
def never_loaded(monkeypatch) -> None:
    def fail(text: str) -> Source:
        raise AssertionError("the graph was loaded before its outputs were looked at")

    monkeypatch.setattr(profile, "load", fail)


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--html", "none/found.html"], "cannot write 'none/found.html': No such file or directory"),
        (["--save", "."], "cannot write '.': Is a directory"),
        (["--save", os.devnull], "Is no regular file"),  # renaming a file to it would take its place
        (["--save", "net.py/found.json"], "cannot write 'net.py/found.json': Not a directory"),
        (["--save", "x" * 300], "File name too long"),
        (["--save", ""], "cannot write '': No name of a file"),
        (["--save", "none/"], "cannot write 'none/': No name of a file"),
        (["--html", "found", "--save", "./found"], "two files have the same path"),
        (["--roofline", "found.gif"], "--roofline: expected a path that ends in .png or .svg or .pdf"),
        (["--flame-graph", "found.png"], "--flame-graph: expected a path that ends in .svg, received 'found.png'"),
    ],
)
def test_files_that_cannot_be_written_are_told_before_anything_is_measured(capsys, net, argv, expected) -> None:
    code, out, err = run(capsys, net, *argv)
    assert (code, out) == (1, "")
    assert expected in err
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("never_loaded")
def test_a_roofline_without_matplotlib(capsys, monkeypatch, net) -> None:
    monkeypatch.setattr(profile.importlib.util, "find_spec", lambda name: None)
    assert "--roofline needs matplotlib; pip install 'tapeprop[viz]'" in run(capsys, net, "--roofline", "found.png")[2]


def test_looking_leaves_files_as_they_are(net) -> None:
    before = Path(net).read_bytes(), sorted(os.listdir())
    profile.check_writable(net)
    profile.check_writable("new.html")
    assert (Path(net).read_bytes(), sorted(os.listdir())) == before


def test_in_a_process_of_its_own(net) -> None:
    """One clear line, no traceback, whatever the file does."""
    write("import sys\nprint('hello')\nsys.exit('stopped')", "bad.py")
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-m", "tapeprop", "profile", "bad.py", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "hello\ntapeprop profile: error: bad.py, line 3 raised SystemExit: stopped\n"


# ---- comparing


@pytest.fixture
def saved(capsys, net) -> tuple[str, str]:
    """Two profiles; in the second all takes twice as long. Their times are made, so that no other work on the machine is in them."""
    assert run(capsys, net, "--workers", "1", "--save", "a.json")[0] == 0
    made = Profile.load("a.json")
    for name, seconds in (("a.json", 1e-5), ("b.json", 2e-5)):
        with_even_times(made, seconds).to_json(name)
    return "a.json", "b.json"


def test_compare(capsys, saved) -> None:
    code, out, err = run(capsys, "--compare", *saved, "--top", "3")
    assert (code, err) == (0, "")
    assert out.startswith("a step: ")
    assert "100.0% slower" in out
    assert "counters: equal" in out
    found = json.loads(run(capsys, "--compare", *saved, "--json", "--by", "phase")[1])
    assert found["by"] == "phase"
    assert found["whole"]["ratio"] == pytest.approx(2, rel=0.01)
    assert {row["key"][1] for row in found["rows"]} == {"forward", "loss", "backward", "update"}


@pytest.mark.parametrize(
    ("order", "limit", "code"),
    [((0, 1), "5%", 1), ((0, 1), "5", 1), ((0, 1), "300%", 0), ((1, 0), "5%", 0), ((0, 0), "0%", 0)],
)
def test_fail_above(capsys, saved, order, limit, code) -> None:
    found, out, err = run(capsys, "--compare", *(saved[i] for i in order), "--fail-above", limit)
    assert found == code
    assert out.startswith("a step: ")
    assert ("slower by more than 5 %" in err) is bool(code)


def test_too_few_steps_to_fail_or_pass(capsys, net) -> None:
    run(capsys, net, "--repeats", "1", "--save", "a.json")
    assert run(capsys, "--compare", "a.json", "a.json")[0] == 0
    code, _, err = run(capsys, "--compare", "a.json", "a.json", "--fail-above", "5%")
    assert code == 1
    assert "too few steps" in err
