"""Tapes with rows of Python among them: native code runs up to such a row, Python computes it, native code goes on behind it."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tapeprop.runtime.executor import clock, times

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
        slot = 0
        for first, rows in executable.parts(start, count):
            end = first + rows
            stops = python_rows[bisect.bisect_left(python_rows, first) : bisect.bisect_left(python_rows, end)]
            for stop in [*stops, end]:
                own = None if timing is None else timing[step, :, slot : slot + stop - first + (stop < end)]
                _native(executable, first, stop - first, own)
                if stop < end:
                    _python(executable, stop, own)
                slot += stop + 1 - first
                first = stop + 1
            slot -= 1  # there is no row behind the last


def _native(executable: Executable, first: int, count: int, timing: np.ndarray | None) -> None:
    """timing: a view (workers, at least `count`, 2) to be filled."""
    if count == 0:
        return
    if timing is None:
        executable.run_native(first, count)
        return
    own = times(1, timing.shape[0], count)
    try:
        executable.run_native(first, count, 1, own)
    finally:
        timing[:, :count] = own[0]


def _python(executable: Executable, number: int, timing: np.ndarray | None) -> None:
    """timing: a view (workers, slots, 2), whose last slot is the row's."""
    if timing is None:
        _call(executable, number)
        return
    now = clock()
    begin = now()
    _call(executable, number)
    timing[0, -1] = begin, now()


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
        executable.set_at(extent.place, kind, result)
