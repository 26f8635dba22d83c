"""What a device does for everything above: memory, copies, launches, captured graphs. One interface, `Driver`.

`NvidiaDriver` (module `nvidia`) does it on a GPU, `SimulatedDriver` in Numba's simulator on the host, and `DryDriver`
(module `dry`) only writes down what it is asked. Importing this module loads neither numba nor the CUDA packages.

A driver has one stream: what is launched, copied and uploaded is done in that order. It may be used from several
threads; one at a time is inside.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tapeprop.errors import DeviceError
from tapeprop.ir.device import Device
from tapeprop.ir.kernels import Kernel
from tapeprop.targets.cuda import library

if TYPE_CHECKING:
    from tapeprop.targets.cuda.device_array import DeviceArray

__all__ = [
    "ALIGNMENT",
    "Allocation",
    "Capture",
    "Driver",
    "ExternalArray",
    "Graph",
    "byte_view",
    "open_driver",
    "use_driver",
]

#: Every allocation begins on such a boundary, in bytes.
ALIGNMENT = 256

Dim3 = tuple[int, int, int]


class Allocation:
    """Memory on a device: `nbytes` bytes from `address` on, zeroed. Freed by free(), or when nothing refers to it.

    release(address): frees it at once. collected(address): the same, called by the garbage collector, which comes at
    any time and on any thread: it must take no lock.
    """

    __slots__ = ("__weakref__", "_finalizer", "_release", "address", "nbytes")

    def __init__(
        self, address: int, nbytes: int, release: Callable[[int], None], collected: Callable[[int], None] | None = None
    ):
        self.address = address
        self.nbytes = nbytes
        self._release = release
        self._finalizer = weakref.finalize(self, collected or release, address)
        self._finalizer.atexit = False  # the process gives everything back

    def free(self) -> None:
        """Gives the memory back, once work that uses it is done. A second time does nothing."""
        if self._finalizer.detach() is not None:
            self._release(self.address)

    def __repr__(self) -> str:
        freed = "" if self._finalizer.alive else ", freed"
        return f"Allocation({self.address:#x}, {self.nbytes} bytes{freed})"


class ExternalArray(NamedTuple):
    """Someone else's array on a driver's device.

    dtype: a NumPy name. strides: in bytes; None where it is C-contiguous. owner: keeps the memory alive; hold it until
    the work that reads the array is done.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...] | None
    owner: Any


class Graph(ABC):
    """Captured work. nodes: how many launches and copies it has."""

    nodes: int

    @abstractmethod
    def launch(self) -> None:
        """Does all of it again, asynchronously."""


class Capture:
    """What `with driver.capture() as captured` gives; `captured.graph` is there after the block."""

    def __init__(self, driver: Driver):
        self._driver = driver
        self.graph: Any = None

    def __enter__(self) -> Capture:
        self._driver._begin_capture()
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.graph = self._driver._end_capture(kind is None)


class Driver(ABC):
    """A device. Failures are DeviceError; no memory is DeviceMemoryError, which names the bytes needed and free."""

    #: For people, as "NVIDIA H100 80GB HBM3".
    name: str
    #: Compute capability, as (9, 0).
    capability: tuple
    #: Whether kernels run in Numba's simulator or not at all.
    simulated: bool
    #: Whether a captured graph is faster than its launches.
    captures: bool
    #: What launches are cut to.
    limits: Device
    #: (device type, number) as DLPack says it: (2, 0) is the first CUDA device, (1, 0) the host.
    dlpack_device: tuple[int, int]
    #: Why a capture failed, once one has: nobody tries again, and `diagnose()` says so.
    capture_failure: str | None = None

    # ---- what there is

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """For reports: "device", "capability", "memory_bytes", "driver", "runtime", and "libraries" with their versions."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""

    def check(self) -> None:  # noqa: B027  (most are never lost)
        """DeviceError where it can no longer be used: the device was lost, or opened before a fork."""

    # ---- memory

    @abstractmethod
    def allocate(self, nbytes: int) -> Allocation:
        """Zeroed memory on the device, on a 256-byte boundary. DeviceMemoryError where there is no room."""

    @abstractmethod
    def pinned(self, nbytes: int) -> np.ndarray:
        """Page-locked host memory, uint8 (nbytes,), whose address the device can read too.

        Freed when neither the array nor a view of it is left. DeviceMemoryError where the host gives no more.
        """

    @abstractmethod
    def upload(self, address: int, array: np.ndarray) -> None:
        """Copies a C-contiguous host array to the device, asynchronously. The caller may change the array at once."""

    @abstractmethod
    def download(self, array: np.ndarray, address: int) -> None:
        """Fills a C-contiguous host array from the device, after all work before; returns when it is done."""

    @abstractmethod
    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """Copies on the device, asynchronously; the two do not overlap."""

    # ---- kernels

    @abstractmethod
    def load(self, kernels: Iterable[Kernel]) -> dict[Kernel, Any]:
        """What `launch` takes, for each kernel; compiled where that has not been done, and then kept.

        CompileError, naming the kernel, where a builder or a compilation fails.
        """

    @abstractmethod
    def launch(self, handle: Any, grid: Dim3, block: Dim3, row_address: int, control_address: int) -> None:
        """Runs a kernel, asynchronously. What it does wrong is raised by a later call."""

    def capture(self) -> Capture:
        """A context manager in whose block launches and copies are recorded instead of done.

        Other threads wait meanwhile. Nothing else may be asked of the driver in the block: DeviceError.
        """
        return Capture(self)

    @abstractmethod
    def _begin_capture(self) -> None: ...

    @abstractmethod
    def _end_capture(self, keep: bool) -> Graph | None:
        """Ends what _begin_capture has begun; the graph, or None where it is not to be kept."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits until all work is done, and raises what went wrong in it."""

    @abstractmethod
    def timed(self, functions: Sequence[Callable[[], Any]]) -> list[float]:
        """Calls the functions one after another; the seconds that the device was at what each has launched."""

    # ---- arrays of others

    def external(self, array: Any) -> ExternalArray | None:
        """An array on this device that another library made; None where it is no such thing, or lies on the host.

        By `__dlpack__`, else by `__cuda_array_interface__`. Work of this driver from now on comes after what its owner
        has on its way. DeviceError where it lies on another device, DTypeError for a dtype that NumPy lacks.
        """
        from tapeprop.targets.cuda.external import read

        return read(array, self)

    def export(self, allocation: Allocation, shape: Sequence[int], dtype: str) -> DeviceArray:
        """An array for others over the first bytes of an allocation, which it keeps alive."""
        from tapeprop.targets.cuda.device_array import DeviceArray

        return DeviceArray(self, allocation, shape, dtype)

    def stream_number(self) -> int | None:
        """The driver's stream as DLPack and the array interface name it; None on the host, where there is none."""
        return None

    def wait_for(self, stream: int | None) -> None:  # noqa: B027  (the host has no streams)
        """Lets work from now on come after what a stream of this device has on its way; None: of all streams."""

    def handed_to(self, stream: int | None) -> None:
        """Lets a stream's work from now on come after this driver's; None: waits here until that is done."""
        self.synchronize()

    def ordinal_of(self, address: int) -> int | None:
        """The number of the CUDA device where an address lies; None where it is none of a CUDA device."""
        return None


def byte_view(array: np.ndarray, *, write: bool = False) -> np.ndarray:
    """The bytes, uint8 (nbytes,), of a C-contiguous array. ValueError where it is not, or not writable for `write`."""
    if not array.flags.c_contiguous or (write and not array.flags.writeable):
        raise ValueError(
            f"expected a C-contiguous{' writable' if write else ''} array, "
            f"got shape {array.shape}, strides {array.strides}; pass np.ascontiguousarray(array)"
        )
    return array.reshape(-1).view(np.uint8)


# ---- the process's own

_lock = threading.RLock()
_current: Driver | None = None


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def open_driver(what: str, cubins: Callable | None = None) -> Driver:
    """The process's driver, made when it is first asked for. what: who asks, for errors, as "build".

    In Numba's simulator where NUMBA_ENABLE_CUDASIM is set, else on the first GPU that CUDA shows. cubins: where machine
    code comes from, see `nvidia.NvidiaDriver`. DeviceError, saying what is missing and how to get it, where packages, a
    driver or a GPU are missing, and where the driver that was made can no longer be used.
    """
    global _current
    with _lock:
        if _current is None:
            library.require(what)
            if library.SIMULATED:
                from tapeprop.targets.cuda.simulated import SimulatedDriver

                _current = SimulatedDriver()
            else:
                from tapeprop.targets.cuda.nvidia import NvidiaDriver

                with _told_by(what):
                    _current = NvidiaDriver(cubins=cubins)
        found = _current
    with _told_by(what):
        found.check()
    return found


@contextlib.contextmanager
def _told_by(what: str) -> Iterator[None]:
    try:
        yield
    except DeviceError as error:
        raise type(error)(f"{what}: {error}") from None


@contextlib.contextmanager
def use_driver(driver: Driver | None) -> Iterator[Driver | None]:
    """Makes `driver` the process's own inside the block; None: as if none had been opened."""
    global _current
    with _lock:
        saved, _current = _current, driver
    try:
        yield driver
    finally:
        with _lock:
            _current = saved
