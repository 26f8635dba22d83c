"""Recording of what tapes run: begin and end of every row on every worker, while a recorder listens.

Recorders are a stack of the process: every run of any thread goes to each of them. Where none listens a run costs one look at an empty
tuple, and the compiled loop that it takes reads no clock.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapeprop.runtime import ledger
from tapeprop.runtime.executor import clock

if TYPE_CHECKING:
    from tapeprop.runtime.executable import Executable

SPANS_KEPT = 500_000  # of a recorder, 16 bytes each: a minute of ResNet-20, a second of a small network
CHUNK_SPANS = 250_000  # of one native call: what is recorded of a call waits in memory until it returns


@dataclass
class RecordedRun:
    """One native call. rows: int64 (slots,); ticks: int64 (steps, workers, slots, 2), zeros where a worker took no part.

    start, stop: ticks around the call. thread: the name of the thread that called.
    """

    executable: Executable
    rows: np.ndarray
    ticks: np.ndarray
    start: int
    stop: int
    thread: str

    @property
    def spans(self) -> int:
        """How many there are of them, on all workers."""
        return self.ticks.size // 2


class Totals:
    """What all runs of one executable add up to, in ticks; also of those whose spans are no more kept.

    calls: int64 (rows,). busy, waits: int64 (rows, workers): a wait is what lies between the end of a row and the begin of the next
    thing that its worker does; behind the last row, until the last worker is done. wall: of the native calls.
    """

    def __init__(self, executable: Executable):
        count = len(executable.tape.rows)
        self.executable = executable
        self.outline = executable.outline()
        self.calls = np.zeros(count, np.int64)
        self.busy = np.zeros((count, executable.workers), np.int64)
        self.waits = np.zeros((count, executable.workers), np.int64)
        self.wall = 0

    def copied(self) -> Totals:
        """These figures as they are now."""
        found = copy.copy(self)
        found.calls, found.busy, found.waits = self.calls.copy(), self.busy.copy(), self.waits.copy()
        return found

    def add(self, run: RecordedRun) -> None:
        """Adds one run."""
        ticks, rows = run.ticks, run.rows
        steps, workers, slots, _ = ticks.shape
        np.add.at(self.calls, rows, steps)
        self.wall += run.stop - run.start
        last = ticks[..., 1].max(initial=0)
        for worker in range(workers):
            begin, end = ticks[:, worker, :, 0].reshape(-1), ticks[:, worker, :, 1].reshape(-1)
            if end.all():
                busy, waits = end - begin, np.append(begin[1:], last) - end
            else:  # took no part, or none in rows of Python
                there = np.flatnonzero(end)
                busy, waits = np.zeros_like(end), np.zeros_like(end)
                busy[there] = (end - begin)[there]
                waits[there] = np.append(begin[there[1:]], last)[: len(there)] - end[there]
            np.add.at(self.busy[:, worker], rows, busy.reshape(steps, slots).sum(axis=0))
            np.add.at(self.waits[:, worker], rows, waits.reshape(steps, slots).sum(axis=0))


class Recorder:
    """Collects runs: totals of all, and the spans of the last ones, `limit` at most (the oldest runs are dropped whole).

    only: the one executable to listen to, or None for all.
    """

    def __init__(self, limit: int = SPANS_KEPT, only: Executable | None = None):
        self.limit = limit
        self.only = only
        self.totals: dict[Executable, Totals] = {}
        self.runs: deque[RecordedRun] = deque()
        self.spans = 0
        self.dropped = 0
        self.began = _moment()
        self.ended: tuple[int, float] | None = None
        self.ledger = ledger.figures()
        self._lock = threading.Lock()

    def add(self, run: RecordedRun) -> None:
        """Takes in a run."""
        if self.only is not None and run.executable is not self.only:
            return
        with self._lock:
            if self.ended is not None:
                return
            totals = self.totals.get(run.executable)
            if totals is None:
                totals = self.totals[run.executable] = Totals(run.executable)
            totals.add(run)
            self.runs.append(run)
            self.spans += run.spans
            while self.spans > self.limit and len(self.runs) > 1:
                gone = self.runs.popleft().spans
                self.spans -= gone
                self.dropped += gone

    def end(self) -> None:
        """Takes in nothing more; notes the end."""
        with self._lock:
            if self.ended is None:
                self.ledger = self.figures()
                self.ended = _moment()

    def heard(self) -> tuple[dict[Executable, Totals], list[RecordedRun], int]:
        """(what each executable's runs add up to, the runs that are kept, oldest first, the spans that were dropped), as of now."""
        with self._lock:
            return (
                {executable: found.copied() for executable, found in self.totals.items()},
                list(self.runs),
                self.dropped,
            )

    def figures(self) -> dict[str, float]:
        """What `ledger.figures` has counted since the recording began, to its end or until now."""
        if self.ended is not None:
            return dict(self.ledger)
        now = ledger.figures()
        return {name: now[name] - before for name, before in self.ledger.items()}

    @property
    def seconds(self) -> float:
        """From its begin to its end, or until now."""
        until = self.ended or _moment()
        return (until[0] - self.began[0]) * _seconds_per_tick(self.began, until)

    @property
    def seconds_per_tick(self) -> float:
        """From the two ends of the recording, or the time since this process first asked."""
        return _seconds_per_tick(self.began, self.ended or _moment())


_listening: tuple[Recorder, ...] = ()
_changing = threading.Lock()
_first: tuple[int, float] | None = None


@contextmanager
def recording_runs(recorder: Recorder) -> Iterator[Recorder]:
    """Lets `recorder` hear of every run inside, of all threads; it has ended afterwards."""
    try:
        listen(recorder)
        yield recorder
    finally:
        stop_listening(recorder)


def listen(recorder: Recorder) -> None:
    """From now on `recorder` hears of every run."""
    global _listening
    with _changing:
        _listening = (*_listening, recorder)


def stop_listening(recorder: Recorder) -> None:
    """It hears no more, and has ended. Nothing happens where it does not listen."""
    global _listening
    with _changing:
        _listening = tuple(other for other in _listening if other is not recorder)
    recorder.end()


def listeners() -> tuple[Recorder, ...]:
    """The recorders that listen now."""
    return _listening


def run_recorded(executable: Executable, start: int, count: int, steps: int, recorders: tuple[Recorder, ...]) -> None:
    """Runs rows start to start + count of a prepared executable and tells the recorders; a call that fails is not told.

    Many steps are run by several native calls, so that what they note fits into memory.
    """
    rows = np.concatenate([np.arange(first, first + n) for first, n in executable.parts(start, count)])
    most = max(CHUNK_SPANS // (len(rows) * executable.workers), 1)
    now = clock()
    while steps > 0:
        some = min(steps, most)
        ticks = np.zeros((some, executable.workers, len(rows), 2), np.int64)
        begin = now()
        executable.walk(start, count, some, ticks)
        run = RecordedRun(executable, rows, ticks, begin, now(), threading.current_thread().name)
        for recorder in recorders:
            recorder.add(run)
        steps -= some


def _moment() -> tuple[int, float]:
    """(ticks, seconds) now: of a few readings, each between two of the other clock, the closest, as another program may run between two."""
    now = clock()
    pairs = []
    for _ in range(5):
        before, ticks, after = time.perf_counter(), now(), time.perf_counter()
        pairs.append((after - before, ticks, (before + after) / 2))
    return min(pairs)[1:]


def _seconds_per_tick(began: tuple[int, float], ended: tuple[int, float]) -> float:
    global _first
    if _first is None:
        _first = began
    # the longest stretch that is known: a pair of readings is off by some 100 ns
    ticks, seconds = ended[0] - _first[0], ended[1] - _first[1]
    while seconds < 0.01:
        now = _moment()
        ticks, seconds = now[0] - _first[0], now[1] - _first[1]
    return seconds / ticks


def _after_fork() -> None:
    # Nobody would read what the parent's recorders collect in the child; and a lock may have been copied while held.
    global _listening, _changing
    _listening, _changing = (), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
