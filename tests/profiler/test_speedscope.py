import json
from collections import defaultdict

import numpy as np
import pytest
from profiler.profiles import NASTY, profile, row, small, tape
from profiler.timelines import TIMELINES, python_row_that_calls_a_graph, threads, two_workers_apart

import tapeprop as tp
from tapeprop.profiler.speedscope import SCHEMA, write


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def file_of(made, folder):
    return json.loads(write(made, folder / "profile.json").read_bytes().decode("ascii"), parse_constant=refuse)


def checked(file):
    """What speedscope's schema asks of a file with evented profiles, and what its documentation says beside that."""
    assert file["$schema"] == SCHEMA
    assert isinstance(file["name"], str)
    assert isinstance(file["exporter"], str)
    frames = file["shared"]["frames"]
    for frame in frames:
        assert set(frame) <= {"name", "file", "line", "col"}
        assert isinstance(frame["name"], str)
    assert len({(frame["name"], frame["file"]) for frame in frames}) == len(frames)
    for found in file["profiles"]:
        assert set(found) == {"type", "name", "unit", "startValue", "endValue", "events"}
        assert found["type"] == "evented"
        assert found["unit"] == "nanoseconds"
        assert isinstance(found["name"], str)
        times = [found["startValue"], *(event["at"] for event in found["events"]), found["endValue"]]
        assert times == sorted(times)
        assert all(type(at) is int for at in times)
        open_ = []
        for event in found["events"]:
            assert set(event) == {"type", "at", "frame"}
            assert 0 <= event["frame"] < len(frames)
            if event["type"] == "O":
                open_.append(event["frame"])
            else:
                assert event["type"] == "C"
                assert open_.pop() == event["frame"]
        assert open_ == []
    assert 0 <= file["activeProfileIndex"] < max(len(file["profiles"]), 1)
    return file


def totals(file, found):
    """{(kind and name of each open frame): nanoseconds in the innermost of them alone}."""
    frames = file["shared"]["frames"]
    spent, open_, now = defaultdict(int), [], 0
    for event in found["events"]:
        if open_ and event["at"] > now:
            spent[tuple(open_)] += event["at"] - now
        now = event["at"]
        if event["type"] == "O":
            open_.append((frames[event["frame"]]["file"], frames[event["frame"]]["name"]))
        else:
            open_.pop()
    return dict(spent)


@pytest.mark.parametrize("name", TIMELINES)
def test_what_holds_for_every_file(name, tmp_path):
    file = checked(file_of(TIMELINES[name](), tmp_path))
    for found in file["profiles"]:
        for stack in totals(file, found):
            kinds = [kind for kind, _ in stack]
            # a layer in Python may run another graph
            assert kinds in (
                ["phase", "node", "op"],
                ["phase", "node", "wait"],
                ["phase", "node", "op", "phase", "node", "op"],
                ["phase", "node", "op", "phase", "node", "wait"],
                ["phase", "node", "wait", "phase", "node", "op"],
                ["phase", "node", "wait", "phase", "node", "wait"],
            )


def test_times_are_those_of_the_spans(tmp_path):
    file = checked(file_of(small(), tmp_path))
    (found,) = file["profiles"]
    assert found["name"] == "MainThread: worker 0"
    ops = {stack: time for stack, time in totals(file, found).items() if stack[-1][0] == "op"}
    assert ops == {
        (("phase", "forward"), ("node", "a"), ("op", "matmul")): 2_200_000,
        (("phase", "forward"), ("node", NASTY), ("op", "relu")): 4_000_000,
        (("phase", "backward"), ("node", "a"), ("op", "matmul_grad")): 1_800_000,
    }


def test_a_profile_for_each_worker(tmp_path):
    file = checked(file_of(two_workers_apart(), tmp_path))
    assert [found["name"] for found in file["profiles"]] == ["MainThread: worker 0", "MainThread: worker 1"]
    waits = [
        sum(time for stack, time in totals(file, found).items() if stack[-1] == ("wait", "wait"))
        for found in file["profiles"]
    ]
    assert waits == [1_500_000, 200_000 + 100_000 + 1_000_000 + 1_500_000]
    assert {(found["startValue"], found["endValue"]) for found in file["profiles"]} == {(0, 8_000_000)}


@pytest.mark.parametrize(("same", "names"), [(False, ["trainer", "server"]), (True, ["trainer", "trainer (2)"])])
def test_threads(same, names, tmp_path):
    file = checked(file_of(threads(same), tmp_path))
    assert [found["name"] for found in file["profiles"]] == [f"{name}: worker 0" for name in names]


def test_a_run_inside_a_row_stands_on_it(tmp_path):
    file = checked(file_of(python_row_that_calls_a_graph(), tmp_path))
    first, second = file["profiles"]
    inner = [stack for stack in totals(file, first) if stack[-1] == ("op", "inner")]
    assert [[name for _, name in stack[:3]] for stack in inner] == [["forward", "a", "python"]]
    assert any(stack[2][0] == "wait" and stack[-1] == ("op", "inner") for stack in totals(file, second))


def test_frames_of_one_name_and_two_kinds(tmp_path):
    file = checked(file_of(profile(tape([row(0, "x", "x", node="x")], [1e-3], steps=1)), tmp_path))
    assert file["shared"]["frames"] == [{"name": "x", "file": kind} for kind in ("phase", "node", "op")]


def test_dropped_spans_are_told(tmp_path):
    assert "12345 earlier spans dropped" in file_of(small(dropped=12345), tmp_path)["name"]


@pytest.mark.parametrize("name", [NASTY, "漢字", "\ud800", "\x00\n", '"'])
def test_any_name(name, tmp_path):
    made = profile(tape([row(0, op=name, node=name)], [1e-3]), what=name)
    made.runs[0].thread = name
    file = checked(file_of(made, tmp_path))
    assert {frame["name"] for frame in file["shared"]["frames"]} == {"forward", name, "wait"}


def test_a_real_profile(tmp_path):
    X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    node = tp.LayerNode(tp.layers.Dense(4, 3), name="only")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 4))
    with tp.profiling() as found:
        graph.predict(X)
        graph.predict(X)
    path = found.to_speedscope(tmp_path / "profile.json")
    file = checked(json.loads(path.read_text()))
    assert "only" in {frame["name"] for frame in file["shared"]["frames"] if frame["file"] == "node"}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.profile\.json"):
        write(small(), tmp_path / "absent" / "profile.json")
