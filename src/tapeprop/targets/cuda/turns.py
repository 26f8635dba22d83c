"""Numba's simulator with the threads of a block as greenlets, which take turns at its barriers.

numba-cuda 0.30 gives each thread of a block a thread of Python and polls them for the barrier: 256 threads of a product's tile
spend most of their time waking each other. A greenlet changes places in 0.6 microseconds instead of 16 (measured beside
each other, CPython 3.11), and the order is the same each time. It is turned around at each barrier, and from block to block: where
a kernel forgets one, a thread reads what another has yet to write in one of the two orders.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tapeprop.errors import DeviceError

__all__ = ["taking_turns"]


class _Thread:
    """What the simulator asks of the thread that runs: its place, and the barriers."""

    def __init__(self, block: _Block, block_at: Any, thread_at: Any, at: tuple[int, ...]):
        self.blockIdx, self.threadIdx = block_at, thread_at
        wide, high, _ = block.size
        self.thread_id = at[0] + wide * (at[1] + high * at[2])
        self._block, self._at = block, at

    def syncthreads(self) -> None:
        self._block.hub.switch()

    def syncthreads_count(self, value: Any) -> int:
        return int(np.count_nonzero(self._votes(value)))

    def syncthreads_and(self, value: Any) -> int:
        return int(np.all(self._votes(value)))

    def syncthreads_or(self, value: Any) -> int:
        return int(np.any(self._votes(value)))

    def _votes(self, value: Any) -> np.ndarray:
        self._block.votes[self._at] = value
        self.syncthreads()
        votes = self._block.votes.copy()
        self.syncthreads()
        return votes


class _Block:
    """Takes the place of the simulator's BlockManager, whose call and constructor it has."""

    running: _Thread | None = None

    def __init__(self, f: Callable[..., None], grid_dim: Any, block_dim: Any, debug: bool):
        self._f, self.size = f, tuple(block_dim)
        self.votes = np.zeros(self.size, dtype=np.bool_)

    def run(self, grid_point: Any, *args: Any) -> None:
        """Every thread of one block, from barrier to barrier. Passes on what a thread raises; the others are given up."""
        from greenlet import getcurrent, greenlet
        from numba.cuda.simulator.kernelapi import Dim3

        self.hub = getcurrent()
        block_at = Dim3(*grid_point)
        waiting = [
            (_Thread(self, block_at, Dim3(*at), at), greenlet(self._f, self.hub)) for at in np.ndindex(*self.size)
        ]
        if sum(grid_point) % 2:
            waiting.reverse()
        try:
            first = True
            while waiting:
                for thread, turn in waiting:
                    _Block.running = thread
                    if first:
                        turn.switch(*args)
                    else:
                        turn.switch()
                waiting = [(thread, turn) for thread, turn in reversed(waiting) if not turn.dead]
                first = False
        finally:
            _Block.running = None


class _Running:
    """Takes the place of `threading` in the simulator's module, for the one function that it calls while a kernel runs."""

    @staticmethod
    def current_thread() -> _Thread | None:
        return _Block.running


def _shared_array(self: Any, shape: Any, dtype: Any) -> np.ndarray:
    """cuda.shared.array: one for each line of source. numba-cuda's own walks the whole stack to know the line."""
    caller = sys._getframe(1)
    line = caller.f_code.co_filename, caller.f_lineno
    if line not in self._allocations:
        self._allocations[line] = np.empty(shape, dtype)
    return self._allocations[line]


@contextmanager
def taking_turns() -> Iterator[None]:
    """Within it, kernels run this way; one at a time in the process. DeviceError where greenlet is not installed."""
    try:
        import greenlet  # noqa: F401
    except ImportError as error:
        raise DeviceError("the simulator needs the package greenlet; install it with: pip install greenlet") from error
    from numba.cuda.simulator import kernel, kernelapi

    shared = kernelapi.FakeCUDAShared
    before = kernel.BlockManager, kernelapi.threading, shared.array
    kernel.BlockManager, kernelapi.threading, shared.array = _Block, _Running, _shared_array
    try:
        yield
    finally:
        kernel.BlockManager, kernelapi.threading, shared.array = before
