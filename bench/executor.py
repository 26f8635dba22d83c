"""What the executor costs: nanoseconds per instruction, per barrier, per call from Python.

    python bench/executor.py

Each figure is the least of many repeats; with other work on the machine barriers cost more than they need to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

from tapeprop.runtime.executor import BoundTape, aligned_words, control_block
from tapeprop.runtime.linker import load_text
from tapeprop.runtime.team import default_workers, run_bound, run_team

ROWS = 1000

# Row words 4, 5, 6: addresses of x, y and z, 16 float32 each.
KERNELS = """
define void @empty(i64 %row, i64 %worker, i64 %workers) {
  ret void
}
define void @add16(i64 %row, i64 %worker, i64 %workers) {
  %words = inttoptr i64 %row to ptr
  %x.place = getelementptr i64, ptr %words, i64 4
  %y.place = getelementptr i64, ptr %words, i64 5
  %z.place = getelementptr i64, ptr %words, i64 6
  %x = load ptr, ptr %x.place
  %y = load ptr, ptr %y.place
  %z = load ptr, ptr %z.place
  %a = load <16 x float>, ptr %x, align 64
  %b = load <16 x float>, ptr %y, align 64
  %c = fadd <16 x float> %a, %b
  store <16 x float> %c, ptr %z, align 64
  ret void
}
"""


def least(call: Callable[[], object], seconds: float = 0.5) -> float:
    """The least seconds that a call takes, of as many as fit into the time."""
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def mean(call: Callable[[], object], count: int = 20_000) -> float:
    """The mean seconds per call of a burst, the best of five."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter() - start) / count)
    return best


def make_tape(kernel: int, barriers: bool, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tape, control block) of `ROWS` rows that call one kernel on the same three vectors of 64 bytes."""
    control = control_block()
    tape = aligned_words(ROWS * 8).reshape(ROWS, 8)
    tape[:, 0], tape[:, 1], tape[:, 2], tape[:, 3] = kernel, barriers, control.ctypes.data, np.arange(ROWS)
    tape[:, 4:7] = vectors.ctypes.data + 64 * np.arange(3)
    return tape, control


def main() -> None:
    """Prints the table."""
    kernels = load_text(KERNELS, ("empty", "add16"), "the benchmark")
    vectors = aligned_words(3 * 8)
    for name, kernel in kernels.items():
        bound = BoundTape(*make_tape(kernel, False, vectors))
        print(f"instruction, {name:5s}                   {1e9 * least(bound.run) / ROWS:8.1f} ns")
    timing = np.zeros((1, 1, ROWS, 2), np.int64)
    bound = BoundTape(*make_tape(kernels["empty"], False, vectors))
    print(f"instruction, empty, timed            {1e9 * least(lambda: bound.run(timing=timing)) / ROWS:8.1f} ns")
    bound.run(0, 1)
    print(f"call of one row, BoundTape           {1e9 * mean(lambda: bound.run(0, 1)):8.0f} ns")
    tape, control = make_tape(kernels["empty"], False, vectors)
    alone = 1e9 * mean(lambda: run_team(tape, control, first=0, count=1, workers=1))
    print(f"call of one row, run_team, 1 worker  {alone:8.0f} ns")
    for workers in sorted({2, default_workers(), 2 * default_workers()} - {1}):
        bound = BoundTape(*make_tape(kernels["empty"], True, vectors))
        run_bound(bound, workers=workers)
        crowd = "" if workers <= default_workers() else f"  (more workers than the {default_workers()} cores)"
        barrier = 1e9 * least(lambda bound=bound, w=workers: run_bound(bound, workers=w)) / ROWS
        call = 1e9 * mean(lambda bound=bound, w=workers: run_bound(bound, 0, 1, workers=w), 1000)
        print(f"instruction and barrier, {workers:2d} workers  {barrier:8.0f} ns{crowd}")
        print(f"call of one row, {workers:2d} workers          {call:8.0f} ns")
    asleep = []
    for _ in range(20):
        time.sleep(0.02)
        start = time.perf_counter()
        run_bound(bound, 0, 1, workers=2)
        asleep.append(time.perf_counter() - start)
    print(f"call of one row,  2 workers, asleep  {1e9 * float(np.median(asleep)):8.0f} ns")


if __name__ == "__main__":
    os.environ.setdefault("TAPEPROP_QUIET", "1")
    main()
