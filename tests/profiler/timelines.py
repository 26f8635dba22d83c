"""Profiles with odd time lines, for tests of the exports that show spans."""

import numpy as np
from profiler.profiles import NASTY, profile, row, small, tape

from tapeprop.profiler.profile import RunSamples


def two_workers_apart():
    """Rows without a barrier between them: the second worker is behind, and sits out the row that one worker does alone."""
    rows = [row(0), row(1, op="relu", node="b"), row(2, "backward", node="a", barrier=True)]
    made, run = tape(rows, [1e-3, 1e-3, 1e-3], workers=2)
    begin = np.array([[[0.0, 1.0, 2.5], [0.2, 1.7, 2.5]], [[4.0, 5.0, 6.0], [4.0, np.nan, 6.0]]]) * 1e-3
    end = np.array([[[1.0, 2.0, 3.5], [1.5, 2.4, 3.0]], [[5.0, 6.0, 7.0], [4.5, np.nan, 7.5]]]) * 1e-3
    return profile((made, RunSamples(0, run.rows, begin, end, 0.0, 8e-3)))


def absent_worker():
    """A plan of two workers whose run found the team busy."""
    made = small(workers=2)
    made.runs[0].begin[:, 1] = made.runs[0].end[:, 1] = np.nan
    return made


def micro_batches():
    """A step that runs its first two rows three times: forward, backward, forward, ..., update."""
    rows = [row(0), row(1, "backward"), row(2, "update", "sgd", node="")]
    made, _ = tape(rows, [1e-3, 1e-3, 1e-3], steps=2)
    _, run = tape([row(i) for i in range(7)], [1e-3] * 7, steps=2)
    run.rows = np.array([0, 1, 0, 1, 0, 1, 2])
    made.calls[:] = 6, 6, 2
    made.busy[:] = made.calls[:, None] * 1e-3
    return profile((made, run))


def python_row_that_calls_a_graph():
    """The second row of the outer tape is Python, on the first worker alone; inside of it another tape runs with both workers."""
    rows = [row(0), row(1, op="python"), row(2, op="relu")]
    outer, run = tape(rows, [1e-3, 10e-3, 1e-3], steps=1, workers=2)
    run.begin[:, 1, 1] = run.end[:, 1, 1] = np.nan
    inner = tape(
        [row(0, op="inner"), row(1, op="inner2")], [1e-3, 2e-3], steps=2, workers=2, name="predict", first=2e-3
    )
    return profile((outer, run), inner, what="profiling")


def threads(same_name):
    """Two threads that run at the same time, neither inside the other."""
    one = tape([row(0), row(1)], [1e-3, 1e-3], steps=3)
    two = tape([row(0, op="other"), row(1, op="other")], [1.5e-3, 1e-3], steps=3, name="predict", first=0.7e-3)
    one[1].thread, two[1].thread = "trainer", "trainer" if same_name else "server"
    return profile(one, two, what="profiling")


def no_time_at_all():
    """Rows that begin and end at one tick, one behind the other."""
    made = small()
    made.runs[0].begin[:] = made.runs[0].end[:] = 5e-4
    return made


def between_nanoseconds():
    """Rows of a third of a nanosecond's multiple: each rounds by itself."""
    return profile(
        tape([row(i, op=f"op{i}") for i in range(5)], [1e-9 / 3, 2.5e-9, 1e-9 / 3, 7.1e-9, 0.49e-9], wait=0.3e-9)
    )


def disordered():
    """Spans that overlap and a run that ends before its rows: a damaged file, or clocks of cores that do not agree."""
    made = small(workers=2)
    run = made.runs[0]
    run.end[0, 0, 0] += 3e-3
    run.begin[0, 1, 1] -= 2e-3
    run.stop = run.start
    return made


def scattered(seed):
    """Several workers with gaps, absences and zero lengths at random."""
    random = np.random.default_rng(seed)
    steps, workers, count = (int(n) for n in random.integers(1, 5, 3))
    rows = [
        row(i, str(random.choice(["forward", "backward", "update"])), node=str(random.choice(["", "a", NASTY])))
        for i in range(count)
    ]
    made, run = tape(rows, [1e-6] * count, steps=steps, workers=workers)
    length = random.choice([0.0, 1.2e-9, 3.7e-7, 1e-5], (steps, workers, count, 2))
    edges = np.cumsum(length.transpose(1, 0, 2, 3).reshape(workers, -1), axis=1)
    edges = edges.reshape(workers, steps, count, 2).transpose(1, 0, 2, 3)
    run.begin, run.end = edges[..., 0].copy(), edges[..., 1].copy()
    absent = random.random((steps, workers, count)) < 0.2
    run.begin[absent] = run.end[absent] = np.nan
    run.stop = float(edges.max())
    return profile((made, run))


TIMELINES = {
    "small": small,
    "two workers": lambda: small(workers=2),
    "apart": two_workers_apart,
    "absent worker": absent_worker,
    "micro-batches": micro_batches,
    "nested run": python_row_that_calls_a_graph,
    "two threads": lambda: threads(False),
    "two threads of one name": lambda: threads(True),
    "no time at all": no_time_at_all,
    "between nanoseconds": between_nanoseconds,
    "disordered": disordered,
    "nothing ran": profile,
    "no steps": lambda: profile(tape([row(0)], [1e-3], steps=0)),
    "no rows": lambda: profile(tape([], [], steps=2)),
    "dropped": lambda: small(dropped=12345),
    **{f"scattered {seed}": lambda seed=seed: scattered(seed) for seed in range(12)},
}
