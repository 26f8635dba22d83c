"""Tapes with rows of Python among them: native code runs up to such a row, Python computes it, native code goes on behind it."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tapeprop.runtime.executor import cycle_counter, times

if TYPE_CHECKING:
    from tapeprop.runtime.executable import Executable


def run_in_stretches(
    executable: Executable,
    python_rows: Sequence[int],
    start: int,
    count: int,
    steps: int = 1,
    timing: np.ndarray | None = None,
) -> None:
    """Runs rows start to start + count of a prepared executable `steps` times; see `Executable.run`.

    python_rows: the numbers of those that Python computes, sorted. An exception raised there ends the run and reaches the caller.
    """
    for step in range(steps):
        for first, rows in executable.parts(start, count):
            end = first + rows
            stops = python_rows[bisect.bisect_left(python_rows, first) : bisect.bisect_left(python_rows, end)]
            for stop in [*stops, end]:
                if first < stop:
                    _native(executable, first, stop - first, step, start, timing)
                if stop < end:
                    _python(executable, stop, step, start, timing)
                first = stop + 1


def _native(executable: Executable, first: int, count: int, step: int, start: int, timing: np.ndarray | None) -> None:
    if timing is None:
        executable.run_native(first, count)
        return
    own = times(1, timing.shape[1], count)
    executable.run_native(first, count, 1, own)
    timing[step, :, first - start : first - start + count] = own[0]


def _python(executable: Executable, number: int, step: int, start: int, timing: np.ndarray | None) -> None:
    clock = cycle_counter() if timing is not None else None
    begin = clock() if clock else 0
    _call(executable, number)
    if timing is not None and clock:
        timing[step, 0, number - start] = begin, clock()


def _call(executable: Executable, number: int) -> None:
    """The op's reference on views of its operands; what it returns is copied to its places."""
    row = executable.tape.rows[number]
    call = row.step.call
    operands = []
    for extent, kind in zip(row.reads, call.operands, strict=True):
        operands.append(executable.array_at(extent.place, kind))
        operands[-1].setflags(write=False)
    results = row.step.instruction.op.reference(call, *operands)
    for extent, kind, result in zip(row.writes, call.results, results, strict=True):
        executable.array_at(extent.place, kind)[...] = result
