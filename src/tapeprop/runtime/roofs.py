"""What this machine can do at most, measured with the executor and the team that run tapes: arithmetic, and memory by level.

The kernels stand in `targets/cpu/roof_kernels`; each is the rows of a tape and is timed as rows of profiles are. Machines are
shared, so of several short bursts the fastest counts: what other work disturbs, it makes slower.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from tapeprop.ir.kernels import FIRST_FIELD
from tapeprop.runtime.executor import BoundTape, aligned_words, control_block, times
from tapeprop.runtime.memory import aligned
from tapeprop.runtime.team import MAX_WORKERS, default_workers, run_bound, thread_ids
from tapeprop.targets.cpu.machine import data_caches
from tapeprop.targets.cpu.roof_kernels import ROOF_KERNELS, STREAM_BLOCK, fma_operations, roof_text

__all__ = ["DTYPES", "WELL_INSIDE", "MeasuredRoofs", "measure_roofs", "working_sets"]

DTYPES = ("float32", "float64")

# Each measurement comes in turn, several times: other programs take a core for some milliseconds, which outlasts a turn. Turns go on
# until several workers do as much as their number promises, or time is up.
_TURNS, _SECONDS, _SCALING = 4, 0.35, 0.95
_BURSTS, _BURST_SECONDS = 20, 1e-4  # of a turn; the first warms up and does not count
# What is assumed of a worker to choose how long a burst is; where it is slower, bursts are longer.
_OPERATIONS_PER_SECOND = 60e9
_BYTES_PER_SECOND = (150e9, 80e9, 40e9)  # nearest cache, the next one, beyond
# Through memory, where one pass is longer than a burst.
_MEMORY_TURNS, _PASSES = 2, 4
_MEMORY = -1  # the number of its level
#: A cache is measured with this part of it, so that whatever else lies there does not push it out.
WELL_INSIDE = 4
_MOST_MEMORY = 256 << 20
_LEAST_MEMORY = 32 << 20
# Arrays whose distance is a multiple of the page size fall on the same sets of a cache, and their loads seem to wait for stores.
_STAGGER = 64


@dataclass(frozen=True)
class MeasuredRoofs:
    """The fastest bursts.

    flops: {(dtype, workers): floating-point operations per second}, a fused multiply-add counted as two.
    bandwidth: {workers: ((bytes that each worker goes through, bytes per second of all workers), ...)}, nearest cache first, memory
    last. Counted is what the program reads and writes, as `traffic` of rows does.
    """

    flops: dict[tuple[str, int], float] = field(default_factory=dict)
    bandwidth: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)


def measure_roofs(workers: int | None = None) -> MeasuredRoofs:
    """Measures this machine with one worker and with `workers` (None: as many as tapes have). Takes 0.2 to 0.5 s.

    Arithmetic: independent sums in all vector registers, float32 and float64. Memory: y += x, which reads two values for each that it
    writes. As it writes where it has read, no cache has to fetch a line only to overwrite it (write-allocate): what is counted is what
    is moved. A row that writes elsewhere moves a third more than it is charged for, and so reaches at most three quarters of the roof
    of memory. Several workers count for as much as one at least: where other programs never let them run at once, that is what is
    left. What was not measured is left out: where the team is busy, all with several workers.
    ValueError for fewer than 1 or more than `MAX_WORKERS` workers.
    """
    count = default_workers() if workers is None else workers
    if not 1 <= count <= MAX_WORKERS:
        raise ValueError(f"workers: expected 1 to {MAX_WORKERS}, got {count}")
    bench = _Bench(count)
    tasks = [_Task(n, dtype=dtype) for n in sorted({1, count}) for dtype in DTYPES]
    for n in sorted({1, count}):
        *caches, memory = working_sets(n)
        tasks += [_Task(n, level, size) for level, size in enumerate(caches)] + [_Task(n, _MEMORY, memory)]
    bench.take(_Task(count, dtype="float32"), 0)  # starts the team
    end = time.perf_counter() + _SECONDS
    turn = 0
    with _spread(count):
        while turn < _TURNS or (time.perf_counter() < end and not _scales(tasks)):
            for task in tasks:
                bench.take(task, turn)
            turn += 1
    alone = {(task.dtype, task.level): task.rate for task in tasks if task.workers == 1}
    flops: dict[tuple[str, int], float] = {}
    bandwidth: dict[int, tuple[tuple[int, float], ...]] = {}
    missing = {task.workers for task in tasks if not task.measured}  # levels are told by their place: all or none
    for task in (task for task in tasks if task.workers not in missing):
        rate = max(task.rate, alone.get((task.dtype, task.level), 0.0)) * bench.ticks_per_second
        if task.dtype:
            flops[task.dtype, task.workers] = rate
        else:
            bandwidth[task.workers] = (*bandwidth.get(task.workers, ()), (task.size, rate))
    return MeasuredRoofs(flops, bandwidth)


def working_sets(workers: int, caches: Sequence[tuple[int, int]] | None = None) -> list[int]:
    """Bytes that each of so many workers goes through to measure each level: a quarter of its share of each cache, then memory.

    caches: (bytes, CPUs that share it) of each, nearest first; None for this machine's. A cache is left out where a quarter of a share
    would fit into the one before. Memory, of all workers together: four times the last cache, at least 32 MB, at most 256 MB or an
    eighth of the machine's; for many workers twice what was taken for the last cache.
    """
    found = data_caches() if caches is None else caches
    sizes: list[int] = []
    nearer = STREAM_BLOCK
    for nbytes, sharing in found:
        share = nbytes // min(sharing, workers)
        if share // WELL_INSIDE > nearer:
            sizes.append(share // WELL_INSIDE)
        nearer = max(nearer, share)
    last = found[-1][0] if found else 0
    memory = min(max(4 * last, _LEAST_MEMORY), _most_memory()) // workers
    sizes.append(max(memory, 2 * sizes[-1] if sizes else 0))
    return [size // (2 * STREAM_BLOCK) * 2 * STREAM_BLOCK for size in sizes]


def _most_memory() -> int:
    try:
        return min(_MOST_MEMORY, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)
    except (AttributeError, OSError, ValueError):
        return _MOST_MEMORY


@dataclass
class _Task:
    """What is to be measured: `dtype`, or a level by its number and the bytes of each worker.

    rate: the best yet, per tick. measured: whether all workers took part in any.
    """

    workers: int
    level: int = 0
    size: int = 0
    dtype: str = ""
    rate: float = 0.0
    measured: bool = False


def _scales(tasks: Sequence[_Task]) -> bool:
    """Whether the arithmetic of several workers is theirs times that of one."""
    alone = {task.dtype: task.rate for task in tasks if task.workers == 1}
    return all(task.rate >= _SCALING * task.workers * alone[task.dtype] for task in tasks if task.dtype)


@contextlib.contextmanager
def _spread(workers: int) -> Iterator[None]:
    """Ties this thread and those of the team to a CPU each, where there are enough and the system can.

    Else two of them may share one CPU all the time that another program keeps the next one busy.
    """
    before: dict[int, set[int]] = {}
    try:
        if workers > 1 and hasattr(os, "sched_setaffinity"):
            cpus = sorted(os.sched_getaffinity(0))
            threads = [threading.get_native_id(), *thread_ids()][:workers]
            if len(threads) <= len(cpus):
                for thread, cpu in zip(threads, cpus):
                    with contextlib.suppress(OSError):
                        allowed = os.sched_getaffinity(thread)
                        os.sched_setaffinity(thread, {cpu})
                        before[thread] = allowed
        yield
    finally:
        for thread, allowed in before.items():
            with contextlib.suppress(OSError):  # it may have ended
                os.sched_setaffinity(thread, allowed)


class _Bench:
    """A tape of one row many times, run again and again with other fields; and the rate of the clock that times it."""

    def __init__(self, workers: int):
        from tapeprop.runtime.linker import load_text

        self.addresses = load_text(roof_text(), ROOF_KERNELS, "the kernels that measure roofs")
        self.control = control_block()
        width = -(-(FIRST_FIELD + 5) // 8) * 8
        self.tape = aligned_words(_BURSTS * width).reshape(_BURSTS, width)
        self.bound = BoundTape(self.tape, self.control)
        self.lines = aligned(64 * workers)
        self.memory = np.zeros(0, np.uint8)
        self.ticks_per_second = 0.0

    def take(self, task: _Task, turn: int) -> None:
        """Measures once more."""
        if task.dtype:
            operations = fma_operations(task.dtype)
            rounds = int(_OPERATIONS_PER_SECOND * _BURST_SECONDS / operations)
            self._run(task, f"fma_{task.dtype}", operations * rounds, [rounds, self.lines.ctypes.data])
            return
        each = task.size // 2
        apart = 2 * (each + _STAGGER) + 64 * 64
        speed = _BYTES_PER_SECOND[min(task.level, len(_BYTES_PER_SECOND) - 1)]
        rounds = max(1, int(speed * _BURST_SECONDS / (3 * each)))
        long = 3 * each > 5 * speed * _BURST_SECONDS
        if not long or turn < _MEMORY_TURNS:
            address = self._reserve(apart * task.workers)
            fields = [address, apart, each + _STAGGER, each, rounds]
            self._run(task, "stream", 3 * each * rounds, fields, _PASSES if long else _BURSTS)

    def _reserve(self, nbytes: int) -> int:
        """The address of so many bytes."""
        if nbytes > self.memory.size:
            self.memory = aligned(nbytes)
            # Written, or all pages would be one page of zeros; not zeros, which some caches need not write back.
            self.memory.view(np.float32)[:] = 1e-30
        return self.memory.ctypes.data

    def _run(self, task: _Task, kernel: str, work: int, fields: Sequence[int], bursts: int = _BURSTS) -> None:
        """Some bursts. work: of each worker in a burst."""
        # Without barriers: a worker that waited for one that another program keeps from its core would lose its own as well.
        self.tape[:, :FIRST_FIELD] = self.addresses[kernel], 0, self.control.ctypes.data, 0
        self.tape[:, FIRST_FIELD : FIRST_FIELD + len(fields)] = fields
        spans = times(1, task.workers, bursts)
        start = time.perf_counter()
        run_bound(self.bound, count=bursts, workers=task.workers, timing=spans)
        wall = time.perf_counter() - start
        if not spans.all():
            return  # the team was busy
        # Whatever comes before the first and behind the last burst makes this too small, so the largest is the nearest.
        self.ticks_per_second = max(self.ticks_per_second, float(spans.max() - spans.min()) / wall)
        task.measured = True
        task.rate = max(task.rate, work * _most_at_once(spans[0, :, :, 0], spans[0, :, :, 1]))


def _most_at_once(begin: np.ndarray, end: np.ndarray) -> float:
    """Bursts per tick at the moment when the workers together were fastest; 0 where there was none at which all worked.

    begin, end: int64 (workers, bursts). A burst counts at each moment with its mean speed. The first of each worker does not count.
    """
    begin, end = begin[:, 1:], end[:, 1:]
    moments = ((begin + end) // 2).reshape(-1)
    total = np.zeros(len(moments))
    for first, last in zip(begin, end):
        at = np.clip(np.searchsorted(first, moments, side="right") - 1, 0, len(first) - 1)
        works = (first[at] <= moments) & (moments <= last[at])
        total += np.where(works, 1.0 / np.maximum(last[at] - first[at], 1), -np.inf)
    return max(float(total.max(initial=0.0)), 0.0)
