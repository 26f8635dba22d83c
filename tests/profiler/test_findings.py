"""What a profile says in words: each finding where there is something to find, silence where there is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from profiler.profiles import with_even_times

from tapeprop import LayerGraph, LayerNode
from tapeprop.layers import Activation, Conv2D, Dense, Flatten, PythonLayer, Sequential
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD
from tapeprop.profiler.findings import MEMORY, WIDTH, Finding, findings
from tapeprop.profiler.profile import Block, Memory, Profile, Roofs, RowInfo, RunSamples, TapeInfo

STEPS = 10
ROOFS = Roofs(
    {("float32", 1): 1e10, ("float32", 2): 2e10},
    {1: ((1 << 15, 1e11), (1 << 30, 1e10)), 2: ((1 << 15, 2e11), (1 << 30, 2e10))},
)


def row(number: int, op: str = "dense", phase: str = "forward", **more: Any) -> RowInfo:
    """A row of a node of its own, with a kernel and without work."""
    given = {"node": f"n{number}", "layer": f"n{number}.0", "kernel": "somewhere:something"} | more
    given.setdefault("results", ("float32 (4,4)",))
    return RowInfo(number, phase, op, given.pop("node"), given.pop("layer"), **given)


def tape(rows: list[RowInfo], busy: Any, waits: Any = 0.0, **more: Any) -> TapeInfo:
    """STEPS steps. busy: seconds of a call of each row, or of each worker in it; waits likewise."""
    spent = np.array(busy, dtype=float).reshape(len(rows), -1 if rows else 1) * STEPS
    waited = np.broadcast_to(np.array(waits, dtype=float) * STEPS, spent.shape)
    given = {"name": "train_step", "steps": STEPS, "workers": spent.shape[1], "memory": Memory((), 0, 0)} | more
    wall = given.pop("wall", None)
    return TapeInfo(
        given.pop("name"),
        ("float32 (4,4)",),
        given.pop("workers"),
        rows,
        given.pop("memory"),
        given.pop("steps"),
        spent,
        np.full(len(rows), STEPS),
        float((spent + waited).mean(axis=1).sum()) if wall is None else wall * STEPS,
        waited.copy(),
        **given,
    )


def profile(*tapes: TapeInfo, **more: Any) -> Profile:
    """A profile of these tapes; its runs were all dropped, so that rows have their means."""
    given = {"what": "train_step", "seconds": sum(t.wall for t in tapes), "runs": []} | more
    return Profile(given.pop("what"), "2026-01-01", {}, list(tapes), given.pop("runs"), given.pop("seconds"), **given)


def only(found: Profile) -> Finding:
    (finding,) = findings(found)
    return finding


def kinds(found: Profile) -> list[str]:
    return [finding.kind for finding in findings(found)]


# ---- where there is nothing to say


@pytest.mark.parametrize(
    "empty",
    [
        profile(),
        profile(tape([], np.zeros((0, 1)))),
        replace(profile(tape([row(0)], [1e-3])), tapes=[tape([row(0)], [0.0], steps=0)]),
    ],
    ids=["no tape", "no rows", "no step"],
)
def test_nothing_ran(empty: Profile) -> None:
    assert findings(empty) == []
    report = empty.diagnose()
    assert len(report) == 0
    assert len(str(report).splitlines()) == 1


def test_nothing_stands_out() -> None:
    found = profile(tape([row(0), row(1)], [[1e-3, 1e-3], [2e-3, 2e-3]], 1e-5), roofs=ROOFS)
    assert findings(found) == []
    assert str(found.diagnose()) == "a step of train_step takes 3.02 ms; nothing stands out"


def test_rows_of_no_time() -> None:
    assert findings(profile(tape([row(0), row(1)], [0.0, 0.0]), roofs=ROOFS)) == []


# ---- rows of a kind


def test_python_rows() -> None:
    rows = [row(0), row(1, "python", kernel=""), row(2, "python_grad", "backward", kernel="")]
    finding = only(profile(tape(rows, [1e-3, 2e-3, 5e-3])))
    assert finding.kind == "python"
    assert finding.rows == ((0, 2), (0, 1))
    assert finding.seconds == pytest.approx(7e-3)
    assert "row 2 python_grad of 'n2.0' (backward), row 1 python of 'n1.0' (forward): 87.5% of the time" in finding.text
    assert "@tapeprop.ops.kernel" in finding.remedy
    assert kinds(profile(tape(rows, [1.0, 2e-3, 5e-3]))) == []


def test_conversions() -> None:
    rows = [row(0, "to_lanes"), row(1, "conv2d_lanes"), row(2, "from_lanes")]
    finding = only(profile(tape(rows, [1e-3, 8e-3, 1e-3])))
    assert (finding.kind, finding.rows) == ("layout", ((0, 0), (0, 2)))
    assert finding.seconds == pytest.approx(2e-3)
    assert "20.0% of the time" in finding.text
    assert kinds(profile(tape(rows, [1e-3, 98e-3, 1e-3]))) == []


def test_rows_far_under_the_roof() -> None:
    """1e7 operations take this machine 1 ms on one worker; 1e8 bytes 10 ms."""
    rows = [row(0, flops=10**7), row(1, "relu", traffic=10**8), row(2, flops=10**7)]
    found = profile(tape(rows, [20e-3, 12e-3, 2e-3]), roofs=ROOFS)
    finding = only(found)
    assert (finding.kind, finding.rows) == ("roof", ((0, 0),))
    assert finding.seconds == pytest.approx(19e-3)
    assert (
        "row 0 dense of 'n0.0' (forward): 20 ms where this machine's arithmetic would need 1 ms, 5% of its roof"
        in finding.text
    )
    assert "larger batch" in finding.remedy
    assert findings(replace(found, roofs=None)) == []


def test_memory_bound_rows_and_convolutions_of_images() -> None:
    rows = [row(0, "relu", traffic=10**8), row(1, "conv2d", flops=10**7)]
    memory, image = findings(profile(tape(rows, [100e-3, 50e-3]), roofs=ROOFS))
    assert "memory would need 10 ms, 10% of its roof" in memory.text
    assert "cache" in memory.remedy
    assert "a multiple of 16 in float32" in image.remedy


def test_rows_of_one_op_count_together() -> None:
    """Each is less than is worth telling."""
    rows = [row(i, flops=10**6) for i in range(40)] + [row(40, "other")]
    finding = only(profile(tape(rows, [1e-3] * 40 + [60e-3]), roofs=ROOFS))
    assert len(finding.rows) == 40
    assert "and 36 more" in finding.text
    assert finding.seconds == pytest.approx(40 * 0.9e-3)


def test_a_row_of_one_worker_has_that_workers_roof() -> None:
    """2 ms for what takes one worker 1 ms and two 0.5 ms: of two it would be far under the roof."""
    assert kinds(profile(tape([row(0, flops=10**7)], [[2e-3, 0.0]]), roofs=ROOFS)) == ["alone"]
    rows = [row(0, flops=10**7), row(1)]
    assert kinds(profile(tape(rows, [[2e-3, 0.0], [1e-2, 1e-2]]), roofs=ROOFS)) == ["serial"]


# ---- workers


def test_a_row_that_one_worker_does() -> None:
    found = profile(tape([row(0), row(1, "count")], [[4e-3, 4e-3], [4e-3, 1e-5]], [[0.0, 0.0], [0.0, 4e-3]]))
    finding = only(found)
    assert (finding.kind, finding.rows) == ("serial", ((0, 1),))
    assert finding.seconds == pytest.approx(2e-3, rel=0.01)
    assert "one worker alone does row 1 count of 'n1.0' (forward) and the others wait" in finding.text


def test_unequal_parts() -> None:
    finding = only(profile(tape([row(0), row(1)], [[4e-3, 4e-3], [4e-3, 2e-3]], [[0.0, 0.0], [0.0, 2e-3]])))
    assert (finding.kind, finding.rows) == ("balance", ((0, 1),))
    assert finding.seconds == pytest.approx(1e-3)


def test_workers_that_never_came() -> None:
    finding = only(profile(tape([row(0), row(1)], [[4e-3, 0.0, 0.0], [4e-3, 0.0, 0.0]])))
    assert finding.kind == "alone"
    assert "planned for 3 workers and ran on one" in finding.text


def test_one_worker_has_no_partner_to_wait_for() -> None:
    assert findings(profile(tape([row(0), row(1)], [4e-3, 4e-3]))) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_many_tiny_instructions(workers: int) -> None:
    rows = [row(i) for i in range(100)]
    found = profile(tape(rows, np.full((100, workers), 2e-7), 3e-7))
    finding = only(found)
    assert finding.kind == "dispatch"
    assert "100 instructions, half of them shorter than 200 ns" in finding.text
    assert "60.0% of its time" in finding.text
    assert finding.seconds == pytest.approx(100 * 3e-7)
    assert ("barriers" in finding.text, "workers=1" in finding.remedy) == (workers > 1,) * 2
    assert findings(profile(tape(rows, np.full((100, workers), 2e-7), 2e-8))) == []
    assert findings(profile(tape(rows, np.full((100, workers), 2e-5), 3e-7))) == []


def test_tiny_instructions_beside_python() -> None:
    busy, waits = np.full((101, 2), 2e-7), np.zeros((101, 2))
    busy[50], waits[49, 1] = (1e-3, 0), 1e-3  # the second worker waits for Python, behind the row before
    rows = [row(i) if i != 50 else row(i, "python", kernel="") for i in range(101)]
    assert kinds(profile(tape(rows, busy, waits))) == ["python"]


def test_workers_that_something_else_interrupts() -> None:
    rows, even = [row(0), row(1)], np.full((2, 2), 1e-3)
    finding = only(profile(tape(rows, even, 5e-4)))
    assert finding.kind == "interrupted"
    assert "train_step wait 33.3% of its time" in finding.text
    assert finding.seconds == pytest.approx(1e-3)
    assert findings(profile(tape(rows, even, 1e-4))) == []
    assert findings(profile(tape(rows, np.full((2, 1), 1e-3), 5e-4))) == []  # one worker waits for nobody
    assert findings(profile(tape(rows, even / 100, 2e-5))) == []  # waking a worker may take as long
    assert kinds(profile(tape([row(i) for i in range(100)], np.full((100, 2), 2e-7), 4e-5))) == ["interrupted"]
    python = [row(0), row(1, "python", kernel="")]  # the other worker waits for it, behind the row before
    assert kinds(profile(tape(python, [[1e-3, 1e-3], [1e-3, 0]], [[0, 1e-3], [0, 0]]))) == ["python"]


# ---- around the tapes


def test_python_between_the_calls() -> None:
    own = tape([row(0)], [1e-3])
    finding = only(profile(own, what="profiling", seconds=1.0))
    assert finding.kind == "outside"
    assert "99.0% of the time" in finding.text
    assert "99 ms for each of 10 steps" in finding.text
    assert findings(profile(own, what="profiling", seconds=0.0105)) == []
    assert findings(profile(own, what="train_step", seconds=1.0)) == []  # what graph.profile() does around it


def test_the_profilers_own_time_is_no_fault_of_the_program() -> None:
    own = tape([row(0)], [1e-4])
    runs: Any = [RunSamples(0, np.zeros(1, int), *[np.zeros((1, 1, 1))] * 2, 0.0, 1e-4) for _ in range(10)]
    assert findings(profile(own, what="profiling", seconds=2e-3, runs=runs)) == []


def test_compiling_and_planning() -> None:
    own = tape([row(0)], [1e-1])
    found = profile(
        own, what="profiling", seconds=10.0, compile_seconds=5.0, lowering_seconds=4.0, counters={"plans": 40}
    )
    compiling, planning = findings(found)
    assert (compiling.kind, planning.kind) == ("compile", "planning")
    assert (compiling.seconds, planning.seconds) == (5, 4), "of all that ran, as no step holds them"
    assert str(found.diagnose()).startswith("all that ran took 10 s; at stake in it")
    assert "compiling kernels took 5 s, 50.0% of the time" in compiling.text
    assert "40 plans" in planning.text
    assert findings(replace(found, what="train_step")) == []


def test_memory() -> None:
    blocks = [Block("gone", 0, 1 << 32, 0, 0), *(Block(f"value {i}", 0, (9 - i) << 26, 0, 1) for i in range(6))]
    memory = Memory((5, MEMORY + 5), MEMORY, 2 * MEMORY, tuple(blocks))
    finding = only(profile(tape([row(0), row(1, "grad", "backward")], [1e-3, 1e-3], memory=memory)))
    assert (finding.kind, finding.rows, finding.seconds) == ("memory", ((0, 1),), 0.0)
    assert "256.0 MiB at its peak, row 1 grad of 'n1.0' (backward): value 0 576.0 MiB, value 1" in finding.text
    assert "and 2 more" in finding.text
    assert "checkpoint=True" in finding.remedy
    small = replace(memory, arena=MEMORY - 1)
    assert findings(profile(tape([row(0), row(1)], [1e-3, 1e-3], memory=small))) == []


# ---- several, and how they are shown


def test_seconds_of_a_step() -> None:
    report = str(profile(tape([row(0), row(1, "python", kernel="")], [2e-3, 4e-3])).diagnose())
    assert report.startswith(
        "a step of train_step takes 6 ms; at stake in it, as far as each could be mended:\n* [4 ms] "
    )


def test_most_seconds_first_and_names_of_tapes() -> None:
    rows = [row(0), row(1, "python", kernel=""), row(2, "to_lanes")]
    first, second = tape(rows, [10e-3, 2e-3, 4e-3]), tape([row(0)], [1e-3], name="predict")
    found = profile(first, second)
    layout, python = findings(found)
    assert (layout.kind, python.kind) == ("layout", "python")
    assert layout.seconds == pytest.approx(40e-3)  # of all that ran
    assert "train_step row 2 to_lanes" in layout.text
    text = str(found.diagnose())
    assert text.startswith("all that ran took 170 ms; at stake in it, as far as each could be mended:\n* [40 ms] ")
    assert [finding["kind"] for finding in found.diagnose()] == ["layout", "python"]
    assert max(map(len, text.splitlines())) <= WIDTH


def test_names_are_shown_as_they_are() -> None:
    odd = row(0, "python", kernel="", node="<script>ñ", layer="<script>ñ.0")
    assert "'<script>ñ.0'" in only(profile(tape([odd], [1e-3]))).text
    assert (
        "row 0 sgd (update)"
        in only(profile(tape([row(0, "sgd", "update", node="", layer="", kernel="")], [1e-3]))).text
    )


# ---- real ones


class Plain(PythonLayer):
    """The identity."""

    def forward(self, x):
        return x

    def backward(self, d_out):
        return d_out


def test_a_real_profile_and_its_file(tmp_path) -> None:
    nodes = [
        LayerNode(Conv2D(1, 4, 3), name="conv"),
        LayerNode(Plain(), name="plain"),
        LayerNode(Sequential(Activation.ReLU(), Flatten(), Dense(64, 3)), name="head"),
    ]
    edges = {node: nodes[i + 1 : i + 2] for i, node in enumerate(nodes)}
    graph = LayerGraph(edges, root=nodes[0], term=nodes[-1], seed=0).build((8, 1, 4, 4))
    graph.set_optimizer(SGD(0.1))
    X = np.random.default_rng(0).standard_normal((8, 1, 4, 4))
    found = with_even_times(graph.profile(X, np.zeros(8, np.int64), CrossEntropy(), repeats=3), 1e-4)
    (finding,) = [one for one in findings(found) if one.kind == "python"]
    assert "of 'plain' (forward)" in finding.text
    assert "of 'plain' (backward)" in finding.text
    assert finding.seconds == pytest.approx(2 * 0.9e-4)
    assert str(Profile.load(found.to_json(tmp_path / "p.json")).diagnose()) == str(found.diagnose())
