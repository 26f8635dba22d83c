"""The worker team: threads of this process that walk a tape side by side with the thread that runs it.

One team per process. Its threads are made when first wanted and then wait inside native code, without the GIL, asleep
unless a run has just ended. Every worker walks the whole tape and does its share of each row; the barriers are those of
`native_loop`. A run that finds the team busy goes ahead alone, on its own thread: the same bits.
"""

from __future__ import annotations

import atexit
import os
import threading

import numpy as np

from tapeprop.runtime.executor import BoundTape, Failure, Rounds, aligned_words, bound_tape, decode, native_loops
from tapeprop.runtime.native_layout import MAILBOX

__all__ = ["MAX_WORKERS", "default_workers", "run_bound", "run_team", "team_size", "thread_ids"]

MAX_WORKERS = 1024
# About 50 us: longer than the work of most rows, shorter than what waking a sleeper costs its waker.
_SPINS = 2000
_EXIT_SECONDS = 2.0


class _Team:
    """The threads and what they share with their caller: a 64-byte line per worker, line 0 the caller's."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.block = aligned_words(8 * MAX_WORKERS)
        self.address = self.block.ctypes.data
        self.cpus = default_workers()
        self.ended = False

    def ensure(self, workers: int) -> int:
        """Starts threads up to `workers`, the caller included; gives how many workers there are."""
        while len(self.threads) + 1 < workers:
            index = len(self.threads) + 1
            generation = int(self.block[8 * index + MAILBOX["generation"]])
            thread = threading.Thread(
                target=native_loops().serve,
                args=(self.address, index, generation),
                name=f"tapeprop-worker-{index}",
                daemon=True,  # a thread that waits must not keep the interpreter from ending
            )
            try:
                thread.start()
            except RuntimeError:  # the system gives no more threads, or the interpreter is ending
                break
            self.threads.append(thread)
        return min(workers, len(self.threads) + 1)

    def end(self) -> None:
        """Lets the threads return, so that none of them meets an interpreter that is gone."""
        if not self.threads or not self.busy.acquire(timeout=_EXIT_SECONDS):
            return
        self.ended = True
        native_loops().dismiss(self.address, len(self.threads) + 1)
        for thread in self.threads:
            thread.join(_EXIT_SECONDS)
        self.threads.clear()


_team: _Team | None = None
_making = threading.Lock()


def _get_team() -> _Team:
    global _team
    if _team is None:
        with _making:
            if _team is None:
                _team = _Team()
    return _team


def _after_fork() -> None:
    # The child has none of the parent's threads, and may have copied a held lock.
    global _team, _making
    _team, _making = None, threading.Lock()


def _at_exit() -> None:
    if _team is not None:
        _team.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def default_workers() -> int:
    """The number of workers where none is asked for: the cores this process may use."""
    from tapeprop.targets.cpu.machine import usable_cpus

    return usable_cpus()


def team_size() -> int:
    """How many workers the team has now, the caller included."""
    return 1 + (len(_team.threads) if _team else 0)


def thread_ids() -> list[int]:
    """The system's numbers of the team's threads: of workers 1, 2, ..."""
    return [thread.native_id for thread in _team.threads if thread.native_id is not None] if _team else []


def run_team(
    tape: np.ndarray,
    control: np.ndarray,
    first: int = 0,
    count: int | None = None,
    steps: int = 1,
    workers: int | None = None,
    timing: np.ndarray | None = None,
) -> Failure | None:
    """Runs rows first to first + count of a tape `steps` times with `workers` workers (None: `default_workers()`).

    tape, control: as for `BoundTape`. Gives the first failure, or None; all workers have left the tape by then, and
    control[STEP] holds the number of whole steps. Workers may outnumber the cores. timing: a buffer from `times(steps,
    workers, count)`; lines of workers that did not take part, as the team was busy, stay as they are.
    ValueError for fewer than 1 or more than `MAX_WORKERS` workers, or rows that the tape does not have.
    """
    return run_bound(bound_tape(tape, control), first, count, steps, workers, timing)


def run_bound(
    bound: BoundTape,
    first: int = 0,
    count: int | None = None,
    steps: int = 1,
    workers: int | None = None,
    timing: np.ndarray | None = None,
    rounds: Rounds | None = None,
) -> Failure | None:
    """`run_team` for a tape that is bound already. rounds: as for `BoundTape.run`."""
    if workers == 1:
        return bound.run(first, count, steps, timing, rounds)
    team = _get_team()
    workers = team.cpus if workers is None else workers
    if not 1 <= workers <= MAX_WORKERS:
        raise ValueError(f"workers: expected 1 to {MAX_WORKERS}, got {workers}")
    if workers == 1 or not team.busy.acquire(blocking=False):
        return _run_with(None, bound, 1, first, count, steps, timing, rounds)
    try:
        there = 1 if team.ended else team.ensure(workers)
        return _run_with(team, bound, there, first, count, steps, timing, rounds)
    finally:
        team.busy.release()


def _run_with(
    team: _Team | None,
    bound: BoundTape,
    workers: int,
    first: int,
    count: int | None,
    steps: int,
    timing: np.ndarray | None,
    rounds: Rounds | None,
) -> Failure | None:
    """A run by the workers that there are; `timing` may have room for more."""
    own = timing
    if timing is not None and timing.ndim == 4 and timing.shape[1] > workers:
        own = np.ascontiguousarray(timing[:, :workers])
    if team is None or workers == 1:
        failure = bound.run(first, count, steps, own, rounds)
    else:
        bound.prepare(first, count, steps, _SPINS if workers <= team.cpus else 0, own, workers, rounds)
        failure = decode(native_loops().run_together(bound.record_address, team.address, workers))
    if own is not timing:
        timing[:, :workers] = own  # type: ignore[index]
    return failure
