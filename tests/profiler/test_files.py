"""A profile survives its file; other files are refused in one line."""

import json

import numpy as np
import pytest
from profiler.profiles import ROOFS, profile, row, small, tape

import tapeprop as tp
from tapeprop.layers import Activation, Dense, Sequential
from tapeprop.losses import MSE
from tapeprop.optimizers import SGD


def real():
    node = tp.LayerNode(Sequential(Dense(200, 200), Activation.ReLU(), Dense(200, 200)), name="a")
    graph = tp.LayerGraph({node: []}, root=node, term=node, seed=0).build((None, 200), workers=2)
    graph.set_optimizer(SGD(0.1))
    x = np.random.default_rng(0).standard_normal((64, 200))
    with tp.profiling() as p:
        graph.fit(x, x, loss=MSE(), batch_size=48, epochs=2, verbose=0)
    return p.profile


@pytest.mark.parametrize(
    "make", [small, lambda: small(2, roofs=ROOFS), profile, real], ids=["small", "roofs", "empty", "real"]
)
def test_there_and_back(make, tmp_path):
    before = make()
    path = before.to_json(tmp_path / "p.json")
    after = tp.Profile.load(path)
    for by in ("instruction", "node", "phase"):
        for a, b in zip(after.figures(by, "row"), before.figures(by, "row"), strict=True):
            assert (a.key, a.rows, a.calls, a.flops, a.traffic, a.wait) == (
                b.key,
                b.rows,
                b.calls,
                b.flops,
                b.traffic,
                b.wait,
            )
            assert a.seconds == pytest.approx(b.seconds, rel=1e-9, abs=1e-12)
    for name in (
        "what",
        "created",
        "machine",
        "seconds",
        "compile_seconds",
        "lowering_seconds",
        "dropped",
        "counters",
        "roofs",
    ):
        assert getattr(after, name) == getattr(before, name), name
    assert tuple(after.outlines) == tuple(before.outlines)
    for a, b in zip(after.tapes, before.tapes, strict=True):
        assert (a.name, a.sizes, a.workers, a.rows, a.memory, a.steps, a.wall) == (
            b.name, b.sizes, b.workers, b.rows, b.memory, b.steps, b.wall,
        )  # fmt: skip
        assert (a.arena, a.outline) == (b.arena, b.outline)
        for name in ("busy", "calls", "waits"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for a, b in zip(after.runs, before.runs, strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_allclose(a.begin, b.begin, atol=0.6e-9, rtol=0)  # whole nanoseconds
        np.testing.assert_allclose(a.end, b.end, atol=1.1e-9, rtol=0)
        assert (a.tape, a.thread, a.steps) == (b.tape, b.thread, b.steps)
    again = after.to_json(tmp_path / "q.json")
    assert again.read_text() == path.read_text()  # nothing is lost twice


def test_a_worker_that_took_no_part_stays_out(tmp_path):
    made, run = tape([row(0)], [1e-3], workers=2)
    run.begin[:, 1] = run.end[:, 1] = np.nan
    (after,) = tp.Profile.load(profile((made, run)).to_json(tmp_path / "p.json")).runs
    assert np.isnan(after.begin[:, 1]).all()
    assert np.isnan(after.end[:, 1]).all()
    np.testing.assert_allclose(after.seconds, 1e-3)


def test_it_is_plain_json(tmp_path):
    path = small().to_json(tmp_path / "p.json")
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (found["format"], found["version"]) == ("tapeprop profile", 1)
    assert found["tapes"][0]["rows"][1]["op"] == "relu"
    assert found["runs"][0]["shape"] == [2, 1, 3]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1, 2]", "other JSON"),
        ('{"format": "something"}', "other JSON"),
        ('{"format": "tapeprop profile", "version": 99}', "expected version 1"),
        ('{"format": "tapeprop profile", "version": 1}', "damaged"),
    ],
)
def test_other_files_are_refused(text, why, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=why) as error:
        tp.Profile.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def change(path, *keys):
    found = json.loads(path.read_text())
    inner = found
    for key in keys[:-2]:
        inner = inner[key]
    inner[keys[-2]] = keys[-1]
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    "keys",
    [
        ("runs", 0, "tape", 7),
        ("runs", 0, "rows", [0, 1, 9]),
        ("runs", 0, "begin", [1, 2]),
        ("runs", 0, "shape", [2, 1]),
        ("tapes", 0, "busy", [1]),
        ("tapes", 0, "calls", None),
        ("tapes", 0, "rows", [{"row": 0}]),
        ("tapes", "x"),
        ("outlines", [1]),
    ],
)
def test_damaged_files_are_refused(keys, tmp_path):
    path = small().to_json(tmp_path / "p.json")
    change(path, *keys)
    with pytest.raises(ValueError, match="damaged"):
        tp.Profile.load(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        tp.Profile.load(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no JSON"):
        tp.Profile.load(tmp_path / "binary")
    with pytest.raises(OSError, match="none"):
        small().to_json(tmp_path / "none" / "p.json")
