"""Profiles made by hand, for tests of what shows them."""

import numpy as np

from tapeprop.profiler.profile import Block, Memory, NodeInfo, Outline, Profile, Roofs, RowInfo, RunSamples, TapeInfo

NASTY = """</script><script>alert("1")</script> & 'ü;' \\ """


def row(number, phase="forward", op="matmul", node="a", layer=None, flops=2000, traffic=400, **more):
    """A row of two inputs and a result."""
    kinds = {"operands": ("float32 (4,5)", "float32 (5,3)"), "results": ("float32 (4,3)",)}
    return RowInfo(
        number, phase, op, node, node if layer is None else layer, **kinds, kernel="tapeprop.ops.matmul.cpu:kernel",
        flops=flops, traffic=traffic, **more,
    )  # fmt: skip


def tape(rows, seconds, steps=2, workers=1, wait=1e-6, name="train_step", outline=-1, first=0.0):
    """(tape, samples): each step one row after another, `seconds` each, on all workers alike, `wait` behind each."""
    begin = np.zeros((steps, workers, len(rows)))
    end = np.zeros_like(begin)
    now = first
    for step in range(steps):
        for i, own in enumerate(seconds):
            begin[step, :, i], end[step, :, i] = now, now + own
            now += own + wait
    calls = np.full(len(rows), steps, np.int64)
    busy = np.repeat(np.array(seconds)[:, None] * steps, workers, axis=1)
    waits = np.full((len(rows), workers), wait * steps)
    blocks = tuple(Block(f"{r.layer} {r.op}", 64 * i, 64, i, min(i + 1, len(rows) - 1)) for i, r in enumerate(rows))
    live = tuple(64 * sum(b.first <= i <= b.last for b in blocks) for i in range(len(rows)))
    memory = Memory(live, 128, 64 * len(rows), blocks, parameters=60, gradients=60)
    made = TapeInfo(
        name, ("float32 (4,5)",), workers, list(rows), memory, steps, busy, calls, now - first, waits, outline=outline
    )
    return made, RunSamples(0, np.arange(len(rows)), begin, end, first, now)


def profile(*pairs, what="train_step", **more):
    """A profile of (tape, samples) pairs."""
    tapes, runs = [made for made, _ in pairs], [run for _, run in pairs]
    for i, run in enumerate(runs):
        run.tape = i
    counters = {"steps": sum(t.steps for t in tapes), "instructions": sum(int(t.calls.sum()) for t in tapes)}
    machine = {"cpu": "a processor", "python": "3.13"}
    seconds = max((run.stop for run in runs), default=0.0)
    return Profile(what, "2026-01-02T03:04:05+00:00", machine, tapes, runs, seconds, counters=counters, **more)


def with_even_times(found, seconds):
    """A measured profile, its times made: each slot of a step begins `seconds` after the one before, a tenth of which is the wait."""
    for run in found.runs:
        steps, workers, slots = run.begin.shape
        number = np.broadcast_to(np.arange(steps * slots).reshape(steps, 1, slots), (steps, workers, slots))
        # whole nanoseconds, as files hold them
        run.begin, run.end = (np.rint((number + part) * seconds * 1e9) / 1e9 for part in (0, 0.9))
        run.start, run.stop = 0.0, steps * slots * seconds
    for tape in found.tapes:
        taken = np.broadcast_to(tape.calls[:, None] * seconds, tape.busy.shape)
        tape.busy, tape.waits, tape.wall = 0.9 * taken, 0.1 * taken, float(tape.calls.sum()) * seconds
    return found


def small(workers=1, **more):
    """Three rows of two nodes, the second row twice as long as the others; one name is nasty."""
    rows = [
        row(0),
        row(1, op="relu", node=NASTY, layer=NASTY, flops=12, traffic=96, after=(0,), barrier=True),
        row(2, "backward", "matmul_grad", "a", after=(0, 1), barrier=True),
    ]
    outline = Outline(
        (NodeInfo("a", "Dense(5, 3)"), NodeInfo(NASTY, "ReLU()", "CHCAT")), (("a", NASTY),), ("a",), (NASTY,)
    )
    return profile(tape(rows, [1.1e-3, 2e-3, 0.9e-3], workers=workers, outline=0), outlines=(outline,), **more)


ROOFS = Roofs(
    {("float32", 1): 1e11, ("float64", 1): 5e10, ("float32", 2): 2e11, ("float64", 2): 1e11},
    {1: ((32768, 2e11), (524288, 1e11), (1 << 28, 1e10)), 2: ((32768, 4e11), (524288, 2e11), (1 << 28, 1.5e10))},
)
