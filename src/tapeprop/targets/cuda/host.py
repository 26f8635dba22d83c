"""What the drivers without a GPU share: the device's memory is the host's, and copies are done at once."""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DeviceError, DeviceMemoryError
from tapeprop.targets.cuda import library
from tapeprop.targets.cuda.driver import ALIGNMENT, Allocation, Dim3, Driver, Graph, byte_view

__all__ = ["HostDriver", "HostGraph", "memory_at"]

_FALLBACK_BYTES = 16 << 30  # where the system does not tell


def memory_at(address: int, nbytes: int) -> np.ndarray:
    """A view, uint8 (nbytes,), of memory that someone else keeps alive."""
    return np.frombuffer(memoryview((ctypes.c_uint8 * nbytes).from_address(address)), np.uint8)


def _zeroed(nbytes: int) -> np.ndarray:
    raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + nbytes]


class HostGraph(Graph):
    """Launches and copies as they were asked for: ("launch", handle, grid, block, row, control) or ("copy", to, from, bytes)."""

    def __init__(self, driver: HostDriver, work: list[tuple]):
        self._driver = driver
        self.work = work
        self.nodes = len(work)

    def launch(self) -> None:
        """Does all of it again."""
        self._driver._launch_graph(self)


class HostDriver(Driver):
    """Memory of the host in place of a device's.

    capacity: how many bytes there are; None: as many as the machine has. Subclasses say what a launch does.
    """

    dlpack_device = (1, 0)

    def __init__(self, capacity: int | None = None):
        self._capacity = capacity
        self._lock: Any = threading.RLock()
        self._arrays: dict[int, np.ndarray] = {}
        self._recording: list[tuple] | None = None
        _drivers.add(self)

    def describe(self) -> dict[str, Any]:
        """For reports."""
        return {
            "device": self.name,
            "capability": list(self.capability),
            "memory_bytes": self.memory()[1],
            "driver": None,
            "runtime": None,
            "libraries": library.versions(),
        }

    # ---- memory

    @property
    def used(self) -> int:
        """Bytes allocated now."""
        return sum(array.nbytes for array in self._arrays.copy().values())

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        total = _machine_bytes() if self._capacity is None else self._capacity
        return max(total - self.used, 0), total

    def allocate(self, nbytes: int) -> Allocation:
        """Zeroed memory. DeviceMemoryError beyond the capacity."""
        self._refuse_in_capture("allocate")
        free = self.memory()[0]
        try:
            if nbytes > free:
                raise MemoryError
            array = _zeroed(max(nbytes, 1))
        except MemoryError:
            raise DeviceMemoryError(f"{self.name}: needed {nbytes:,} bytes, {free:,} are free") from None
        address = array.__array_interface__["data"][0]
        self._arrays[address] = array
        return Allocation(address, nbytes, self._release)

    def _release(self, address: int) -> None:
        self._arrays.pop(address, None)

    def allocation_of(self, address: int) -> tuple[int, int] | None:
        """(address, bytes) of the live allocation that holds an address, or None."""
        for begin, array in self._arrays.copy().items():  # a list() may collect garbage, which frees memory here
            if begin <= address < begin + array.nbytes:
                return begin, array.nbytes
        return None

    def _memory(self, what: str, address: int, nbytes: int) -> np.ndarray:
        """Memory to write to. DeviceError where that is not all inside one allocation."""
        found = self.allocation_of(address)
        if nbytes and (found is None or address + nbytes > sum(found)):
            raise DeviceError(f"{what}: {nbytes} bytes at {address:#x} are not inside one allocation")
        return memory_at(address, nbytes)

    def pinned(self, nbytes: int) -> np.ndarray:
        """Zeroed host memory, uint8 (nbytes,)."""
        self._refuse_in_capture("pinned")
        return _zeroed(nbytes)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copies at once."""
        self._refuse_in_capture("upload")
        content = byte_view(array)
        with self._lock:
            self._memory("upload", address, content.nbytes)[:] = content

    def download(self, array: np.ndarray, address: int) -> None:
        """Copies at once."""
        self._refuse_in_capture("download")
        content = byte_view(array, write=True)
        with self._lock:
            content[:] = memory_at(address, content.nbytes)

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """Copies at once, or records it."""
        self._do(("copy", destination, source, nbytes))

    # ---- launches

    def launch(self, handle: Any, grid: Dim3, block: Dim3, row_address: int, control_address: int) -> None:
        """Runs the kernel at once, or records it."""
        self._do(("launch", handle, tuple(grid), tuple(block), int(row_address), int(control_address)))

    def _do(self, work: tuple) -> None:
        with self._lock:
            if self._recording is not None:
                self._recording.append(work)
            elif work[0] == "copy":
                _, destination, source, nbytes = work
                self._memory("copy", destination, nbytes)[:] = memory_at(source, nbytes)
            else:
                self._run(*work[1:])

    def _run(self, handle: Any, grid: Dim3, block: Dim3, row_address: int, control_address: int) -> None:
        """Runs a kernel; the lock is held."""
        raise NotImplementedError

    def _begin_capture(self) -> None:
        self._lock.acquire()
        if self._recording is not None:
            self._lock.release()
            raise DeviceError("capture: a graph is being captured already; end its block first")
        self._recording = []

    def _end_capture(self, keep: bool) -> Graph | None:
        work, self._recording = self._recording, None
        self._lock.release()
        return HostGraph(self, work or []) if keep else None

    def _launch_graph(self, graph: HostGraph) -> None:
        self._refuse_in_capture("launch of a graph")
        with self._lock:
            for work in graph.work:
                self._do(work)

    def _refuse_in_capture(self, what: str) -> None:
        if self._recording is not None:
            with self._lock:  # another thread's capture: wait for its end
                if self._recording is not None:
                    raise DeviceError(f"{what}: not while a graph is captured; do it before or after that block")

    def synchronize(self) -> None:
        """Nothing is on its way here."""
        self._refuse_in_capture("synchronize")

    def timed(self, functions: Sequence[Callable[[], Any]]) -> list[float]:
        """Seconds that each function took."""
        self._refuse_in_capture("timed")
        seconds = []
        for function in functions:
            begin = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - begin)
        return seconds

    def handed_to(self, stream: int | None) -> None:
        """Nothing is on its way here."""


_drivers: weakref.WeakSet[HostDriver] = weakref.WeakSet()


def _after_fork() -> None:
    for driver in _drivers:
        driver._lock = threading.RLock()  # another thread of the parent may have held it
        driver._recording = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _machine_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _FALLBACK_BYTES
