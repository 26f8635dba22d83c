"""Running a bound tape: rows of int64 words walked by native code, without Python between instructions.

A tape is an int64 array (rows, width), C-contiguous and 64-byte aligned. Words of a row: 0 the kernel's address, 1
whether a barrier follows, 2 the address of the control block, 3 the row's number, from 4 on the kernel's own. The
loops stand in `native_loop`; what runs them with several workers stands in `team`.

Control block (int64, at least 64 words, 64-byte aligned): word 0 the status, 32 (`STEP`) the step of the current run,
counted from 0, which kernels may read; 8 to 31 belong to the barrier, 33 to 39 are reserved, 40 to 63 free.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import weakref
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from tapeprop.runtime.native_layout import CONTROL, RECORD, RECORD_WORDS
from tapeprop.runtime.native_loop import ENTRIES, loop_text
from tapeprop.runtime.native_machine import clock_text

__all__ = [
    "CONTROL_WORDS",
    "STEP",
    "BoundTape",
    "Failure",
    "Rounds",
    "aligned_words",
    "bound_tape",
    "clock",
    "control_block",
    "run",
    "times",
]

CONTROL_WORDS = 64
#: The word of a control block that holds the step of the current run, from 0; after a run, how many steps were done
#: whole.
STEP = CONTROL["step"]
_LINE = 64


class Failure(NamedTuple):
    """What a run reports: the number of the first row that failed, and the code its kernel gave."""

    row: int
    code: int


class NativeLoops(NamedTuple):
    """The entry points of `native_loop`; calls release the GIL."""

    run_alone: Callable[[int], int]
    run_together: Callable[[int, int, int], int]
    serve: Callable[[int, int, int], None]
    dismiss: Callable[[int, int], None]


@cache
def native_loops() -> NativeLoops:
    """The loops, linked on first use."""
    from tapeprop.runtime.linker import load_text

    found = load_text(loop_text(), ENTRIES, "the executor")
    word = ctypes.c_int64
    kinds = ((word, word), (word, word, word, word), (None, word, word, word), (None, word, word))
    return NativeLoops(*(ctypes.CFUNCTYPE(*kind)(found[name]) for name, kind in zip(ENTRIES, kinds)))  # type: ignore[arg-type]


@cache
def clock() -> Callable[[], int]:
    """What gives the ticks that timed runs note, for what runs between them."""
    from tapeprop.runtime.linker import load_text

    text = (
        clock_text(sys.platform, platform.machine())
        + """
define i64 @ticks() {
  %now = call i64 @clock()
  ret i64 %now
}
"""
    )
    return ctypes.CFUNCTYPE(ctypes.c_int64)(load_text(text, ["ticks"], "the clock")["ticks"])


def aligned_words(count: int) -> np.ndarray:
    """A zeroed int64 array (count,) on a 64-byte boundary."""
    raw = np.zeros(count + _LINE // 8, np.int64)
    start = -raw.ctypes.data % _LINE // 8
    return raw[start : start + count]


def control_block() -> np.ndarray:
    """A fresh control block."""
    return aligned_words(CONTROL_WORDS)


def times(steps: int, workers: int, slots: int) -> np.ndarray:
    """A buffer for a timed run: int64 (steps, workers, slots, 2), the clock's ticks before and after each kernel.

    slots: of a step, one for each row each time that it runs.
    """
    return np.zeros((steps, workers, slots, 2), np.int64)


class Rounds(NamedTuple):
    """A step that runs its first `rows` rows `repeats` times, both at least 1, before it goes on to the rest."""

    rows: int
    repeats: int


class BoundTape:
    """A tape with its control block, ready to be run again and again; keeps both alive. One run at a time.

    tape: int64 (rows, width), width >= 4; control: int64, 1-D, at least 64 words; both C-contiguous and 64-byte
    aligned. Addresses in the rows may be changed between runs. TypeError or ValueError where an array is otherwise.
    """

    __slots__ = (
        "_address",
        "_alive",
        "_argument",
        "_key",
        "_record",
        "_row_bytes",
        "_run_alone",
        "record_address",
        "rows",
    )

    def __init__(self, tape: np.ndarray, control: np.ndarray):
        _check("tape", tape, 2)
        _check("control", control, 1)
        if tape.shape[1] < 4 or control.size < CONTROL_WORDS:
            raise ValueError(
                f"expected rows of at least 4 words and a control block of at least {CONTROL_WORDS}, "
                f"got shapes {tape.shape} and {control.shape}"
            )
        self._alive: tuple[np.ndarray, ...] = (tape, control)
        self.rows = len(tape)
        self._address, self._row_bytes = tape.ctypes.data, tape.shape[1] * 8
        self._record = aligned_words(RECORD_WORDS)
        self._record[RECORD["width"]] = self._row_bytes
        self._record[RECORD["control"]] = control.ctypes.data
        self.record_address = self._record.ctypes.data
        self._argument = ctypes.c_int64(self.record_address)
        self._run_alone = native_loops().run_alone
        self._key: tuple | None = None

    def prepare(
        self,
        first: int,
        count: int | None,
        steps: int,
        spins: int,
        timing: np.ndarray | None,
        workers: int,
        rounds: Rounds | None = None,
    ) -> None:
        """Writes what to run into the record. ValueError for rows that the tape does not have, or an unfit buffer."""
        key = (first, count, steps, spins, rounds)
        if key == self._key and timing is None:
            return
        rows = self.rows - first if count is None else count
        if not 0 <= first <= first + rows <= self.rows or steps < 0:
            raise ValueError(
                f"expected rows within 0..{self.rows} and steps >= 0, got first={first}, count={count}, steps={steps}"
            )
        front, times_each = rounds or (rows, 1)
        if rounds is not None and not (1 <= front <= rows and times_each >= 1):
            raise ValueError(f"rounds: expected 1 to {rows} rows, at least once, got {front} rows {times_each} times")
        where, slots = 0, front * times_each + rows - front
        if timing is not None:
            wanted = (steps, workers, slots, 2)
            if timing.dtype != np.int64 or timing.shape != wanted or not timing.flags.c_contiguous:
                raise ValueError(
                    f"timing: expected int64 of shape {wanted}, got {timing.dtype} of shape {timing.shape}"
                )
            where = timing.ctypes.data
        record = self._record
        record[RECORD["tape"]] = self._address + first * self._row_bytes
        record[RECORD["rows"]] = rows
        record[RECORD["steps"]] = steps
        record[RECORD["spins"]] = spins
        record[RECORD["times"]] = where
        record[RECORD["front"]] = front
        record[RECORD["rounds"]] = times_each
        record[RECORD["slots"]] = slots
        self._key = key if timing is None else None

    def run(
        self,
        first: int = 0,
        count: int | None = None,
        steps: int = 1,
        timing: np.ndarray | None = None,
        rounds: Rounds | None = None,
    ) -> Failure | None:
        """Runs rows first to first + count (None: to the end) `steps` times with one worker, on this thread.

        Stops after the first row that reports a failure and gives it, else None. control[STEP] is then the number of
        whole steps. timing: a buffer from `times(steps, 1, slots)`, where slots is `count`, or what the rounds
        make of it. rounds: None is one of all rows.
        """
        if timing is not None or (first, count, steps, 0, rounds) != self._key:
            self.prepare(first, count, steps, 0, timing, 1, rounds)
        return decode(self._run_alone(self._argument))  # type: ignore[arg-type]


def decode(status: int) -> Failure | None:
    """The failure in a status word."""
    return Failure((status >> 16) - 1, status & 0xFFFF) if status else None


def _check(name: str, array: np.ndarray, ndim: int) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.int64:
        raise TypeError(f"{name}: expected an int64 array, got {getattr(array, 'dtype', type(array).__name__)}")
    if array.ndim != ndim or not array.flags.c_contiguous or array.ctypes.data % _LINE:
        raise ValueError(
            f"{name}: expected a C-contiguous array of rank {ndim} on a {_LINE}-byte boundary, "
            f"got shape {array.shape}, strides {array.strides}, address {array.ctypes.data:#x}"
        )


# What `run` and `run_team` have bound, so that a call with plain arrays costs no more than one with a BoundTape.
_bound: dict[int, tuple[weakref.ref, weakref.ref, BoundTape]] = {}


def bound_tape(tape: np.ndarray, control: np.ndarray) -> BoundTape:
    """The BoundTape of two arrays; made once for as long as the tape lives."""
    found = _bound.get(id(tape))
    if found is not None and found[0]() is tape and found[1]() is control:
        return found[2]
    made = BoundTape(tape, control)
    made._alive = ()  # else the tape would never be dropped here; whoever calls holds it during the run
    number = id(tape)
    _bound[number] = (weakref.ref(tape, lambda _: _bound.pop(number, None)), weakref.ref(control), made)
    return made


def run(
    tape: np.ndarray,
    control: np.ndarray,
    *,
    first: int = 0,
    count: int | None = None,
    steps: int = 1,
    workers: int = 1,
    timing: np.ndarray | None = None,
    rounds: Rounds | None = None,
) -> Failure | None:
    """Runs rows first to first + count of a tape `steps` times with `workers` workers; the first failure, or None.

    Arrays as for `BoundTape`. With several workers this is `team.run_bound`. timing: a buffer from `times`.
    """
    bound = bound_tape(tape, control)
    if workers > 1:
        from tapeprop.runtime.team import run_bound

        return run_bound(bound, first, count, steps, workers, timing, rounds)
    return bound.run(first, count, steps, timing, rounds)
