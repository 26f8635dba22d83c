import json
from collections import defaultdict

import numpy as np
import pytest
from profiler.profiles import NASTY, profile, row, small, tape
from profiler.timelines import TIMELINES, micro_batches, python_row_that_calls_a_graph, threads, two_workers_apart

import tapeprop as tp
from tapeprop.profiler.chrome_trace import CATEGORIES, write
from tapeprop.profiler.profile import Profile


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def trace_of(made, folder):
    path = write(made, folder / "trace.json")
    text = path.read_bytes().decode("ascii")
    return json.loads(text, parse_constant=refuse)


def nanoseconds(microseconds):
    """As viewers take them; digits behind the third would be lost."""
    found = round(microseconds * 1000)
    assert abs(found - microseconds * 1000) < 1e-3
    return found


def tracks_of(trace):
    """{(name of the process, name of the track): [(begin, end, event), ...]} in whole nanoseconds."""
    names, processes, found = {}, {}, defaultdict(list)
    for event in trace["traceEvents"]:
        if event["name"] == "thread_name":
            names[event["pid"], event["tid"]] = event["args"]["name"]
        if event["name"] == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        if event["ph"] == "X":
            begin = nanoseconds(event["ts"])
            track = processes[event["pid"]], names[event["pid"], event["tid"]]
            found[track].append((begin, begin + nanoseconds(event["dur"]), event))
    return dict(found)


def complete(trace, category):
    return [event for event in trace["traceEvents"] if event.get("cat") == category]


@pytest.mark.parametrize("name", TIMELINES)
def test_what_holds_for_every_trace(name, tmp_path):
    made = TIMELINES[name]()
    trace = trace_of(made, tmp_path)
    assert set(trace) == {"displayTimeUnit", "otherData", "traceEvents"}
    events = [event for event in trace["traceEvents"] if event["ph"] != "M"]
    times = [event["ts"] for event in events]
    assert times == sorted(times)
    for event in events:
        assert event["ph"] in "XC"
        if event["ph"] == "X":
            assert event["cat"] in CATEGORIES
            assert event["dur"] >= 0
            assert {"name", "ts", "pid", "tid", "args"} <= set(event)
    for spans in tracks_of(trace).values():
        open_ = []
        for begin, end, _ in spans:  # in the order of the file
            while open_ and open_[-1] <= begin:
                open_.pop()
            assert not open_ or end <= open_[-1], "neither inside the one before nor behind it"
            open_.append(end)
    spans = sum(int(np.isfinite(run.begin).sum()) for run in made.runs)
    assert len(complete(trace, "instruction")) == spans


@pytest.mark.parametrize("name", [name for name in TIMELINES if name != "disordered"])  # what overlaps has no sum
def test_instructions_and_waits_fill_a_workers_time(name, tmp_path):
    made = TIMELINES[name]()
    tracks = tracks_of(trace_of(made, tmp_path))
    wanted = found = 0.0
    for run in made.runs:
        for worker in range(run.begin.shape[1]):
            if np.isfinite(run.begin[:, worker]).any():
                wanted += np.nanmax(run.end) - np.nanmin(run.begin[:, worker])
    for spans in tracks.values():
        found += sum(end - begin for begin, end, event in spans if event["cat"] in ("instruction", "wait"))
    assert found == pytest.approx(wanted * 1e9, abs=2 * len(tracks) * (1 + len(made.runs)))  # an end rounds by half


def test_an_instruction(tmp_path):
    trace = trace_of(small(), tmp_path)
    first, second, third, *_ = complete(trace, "instruction")
    assert first["name"] == "matmul"
    assert first["ts"] == 0
    assert first["dur"] == pytest.approx(1100)
    assert first["args"] == {
        "row": 0,
        "op": "matmul",
        "node": "a",
        "layer": "a",
        "phase": "forward",
        "operands": ["float32 (4,5)", "float32 (5,3)"],
        "results": ["float32 (4,3)"],
        "flops": 2000,
        "traffic": 400,
        "GFLOP/s": pytest.approx(2000 / 1.1e-3 / 1e9, rel=1e-5),
    }
    assert second["args"]["node"] == NASTY
    assert third["name"] == "matmul_grad"


def test_rates_are_of_all_workers_over_the_slowest(tmp_path):
    trace = trace_of(two_workers_apart(), tmp_path)
    rates = [e["args"]["GFLOP/s"] for e in complete(trace, "instruction") if e["args"]["row"] == 0]
    assert rates == pytest.approx([2000 / 1.3e-3 / 1e9] * 2 + [2000 / 1e-3 / 1e9] * 2, rel=1e-5)


def test_no_rate_where_there_is_nothing_to_tell(tmp_path):
    made = profile(tape([row(0, flops=0), row(1)], [1e-3, 0.0]))
    assert not any("GFLOP/s" in event["args"] for event in complete(trace_of(made, tmp_path), "instruction"))


def test_waits_are_told_with_the_row_before(tmp_path):
    waits = complete(trace_of(two_workers_apart(), tmp_path), "wait")
    of_first_step = [(w["args"]["after row"], w["ts"], w["dur"]) for w in waits if w["ts"] < 4000]
    assert sorted(of_first_step) == [
        (0, 1500, 200),
        (1, 2000, 500),
        (1, 2400, 100),
        (2, 3000, 1000),  # until the next step begins
        (2, 3500, 500),
    ]
    # the row that the second worker has no part in is part of its wait; none behind the run's last end
    assert sorted((w["args"]["after row"], w["ts"], w["dur"]) for w in waits if w["ts"] >= 4000) == [
        (0, 4500, 1500),
        (2, 7000, 500),
    ]


def test_steps_phases_and_nodes(tmp_path):
    tracks = tracks_of(trace_of(micro_batches(), tmp_path))
    process = "tapeprop: MainThread"
    assert [event["name"] for _, _, event in tracks[process, "steps"]] == ["train_step"] * 2
    assert [event["args"]["step"] for _, _, event in tracks[process, "steps"]] == [0, 1]
    phases = ["forward", "backward"] * 3 + ["update"]
    assert [event["name"] for _, _, event in tracks[process, "phases"]] == phases * 2
    assert [event["name"] for _, _, event in tracks[process, "nodes"]] == (["a"] * 6 + ["(update)"]) * 2
    for outer, inner in (("steps", "phases"), ("phases", "nodes")):
        for begin, end, _ in tracks[process, inner]:
            assert any(b <= begin and end <= e for b, e, _ in tracks[process, outer])


def test_tracks(tmp_path):
    made = small(workers=2)
    made.runs[0].thread = "trainer"
    trace = trace_of(made, tmp_path)
    names = ["steps", "phases", "nodes", "worker 0 (trainer)", "worker 1"]
    assert set(tracks_of(trace)) == {("tapeprop: trainer", name) for name in names}
    order = {e["tid"]: e["args"]["sort_index"] for e in trace["traceEvents"] if e["name"] == "thread_sort_index"}
    named = {e["args"]["name"]: e["tid"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert sorted(names, key=lambda name: order[named[name]]) == names
    assert not {e["pid"] for e in trace["traceEvents"]} & set(order)


def test_a_worker_that_took_no_part_has_no_track(tmp_path):
    tracks = tracks_of(trace_of(TIMELINES["absent worker"](), tmp_path))
    assert "worker 1" not in {name for _, name in tracks}


def test_threads_are_processes(tmp_path):
    tracks = tracks_of(trace_of(threads(False), tmp_path))
    assert {process for process, _ in tracks} == {"tapeprop: trainer", "tapeprop: server"}
    tracks = tracks_of(trace_of(threads(True), tmp_path))
    assert {process for process, _ in tracks} == {"tapeprop: trainer", "tapeprop: trainer (2)"}


def test_a_run_inside_a_row_stands_on_the_same_tracks(tmp_path):
    tracks = tracks_of(trace_of(python_row_that_calls_a_graph(), tmp_path))
    assert {process for process, _ in tracks} == {"tapeprop: MainThread"}
    spans = tracks["tapeprop: MainThread", "worker 0 (MainThread)"]
    begin, end = next((b, e) for b, e, event in spans if event["name"] == "python")
    inner = [(b, e) for b, e, event in spans if event["name"].startswith("inner")]
    assert len(inner) == 4
    assert all(begin <= b and e <= end for b, e in inner)


def test_memory(tmp_path):
    trace = trace_of(small(), tmp_path)
    counted = [e for e in trace["traceEvents"] if e["ph"] == "C"]
    assert {e["name"] for e in counted} == {"live memory of train_step"}
    assert [e["args"] for e in counted] == [{"bytes": n} for n in (64, 128, 64, 128, 0)]  # where it changes
    assert "cat" not in counted[0]


def test_memory_of_a_file_that_does_not_tell(tmp_path):
    made = small()
    made.tapes[0].memory = type(made.tapes[0].memory)((), 0, 0)
    assert not [e for e in trace_of(made, tmp_path)["traceEvents"] if e["ph"] == "C"]


def test_where_it_comes_from(tmp_path):
    trace = trace_of(small(dropped=7), tmp_path)
    assert trace["otherData"]["cpu"] == "a processor"
    assert trace["otherData"]["dropped spans"] == "7"
    assert all(isinstance(value, str) for value in trace["otherData"].values())
    labels = [e["args"]["labels"] for e in trace["traceEvents"] if e["name"] == "process_labels"]
    assert labels == ["7 earlier spans dropped"]


@pytest.mark.parametrize("name", [NASTY, "漢字", "\ud800", "\x00\n", "", '"'])
def test_any_name(name, tmp_path):
    made = profile(tape([row(0, op=name, node=name)], [1e-3], name=name), what=name)
    made.runs[0].thread = name
    trace = trace_of(made, tmp_path)
    assert complete(trace, "instruction")[0]["name"] == name
    assert complete(trace, "step")[0]["name"] == name
    assert complete(trace, "node")[0]["name"] == (name or "(forward)")


def test_a_real_profile_and_one_from_a_file(tmp_path):
    X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
    node = tp.LayerNode(tp.layers.Dense(4, 3), name="only")
    graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 4))
    graph.set_optimizer(tp.optimizers.SGD(lr=0.1))
    made = graph.profile(X, np.arange(12) % 3, tp.losses.CrossEntropy(), repeats=3)
    assert made.to_chrome_trace(tmp_path / "a.json") == tmp_path / "a.json"
    trace = json.loads((tmp_path / "a.json").read_text())
    assert len(complete(trace, "step")) == 3
    assert {e["name"] for e in complete(trace, "phase")} >= {"forward", "loss", "backward", "update"}
    assert "only" in {e["name"] for e in complete(trace, "node")}
    Profile.load(made.to_json(tmp_path / "p.json")).to_chrome_trace(str(tmp_path / "b.json"))
    again = json.loads((tmp_path / "b.json").read_text())
    assert [e["name"] for e in again["traceEvents"]] == [e["name"] for e in trace["traceEvents"]]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.trace\.json"):
        write(small(), tmp_path / "absent" / "trace.json")
