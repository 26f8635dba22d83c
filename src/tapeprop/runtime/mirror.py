"""What a device holds of the host's memory: copies of buffers, the arena, and arrays that are fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop.errors import DeviceError
from tapeprop.runtime.memory import Arena, Buffer, address_of

if TYPE_CHECKING:
    from tapeprop.targets.cuda.driver import Driver


class DeviceMirror:
    """A buffer's copy on a device. It starts stale: the host has everything.

    Views of the host's elements that somebody holds stay live: as long as there is one, every run takes the host's elements over before
    and brings them back after.
    """

    def __init__(self, buffer: Buffer, driver: Driver):
        self.driver = driver
        self.stale = True
        self._runs = self._fetched = 0  # runs that have written the copy, and those of them that the host has seen
        self._lent = buffer.lent  # not the buffer: it holds this, and ends without waiting for the garbage collector
        self._host = buffer.read()
        self._allocation = driver.allocate(max(buffer.nbytes, 1))

    @property
    def address(self) -> int:
        """Where the copy starts on the device."""
        return self._allocation.address

    @property
    def ahead(self) -> bool:
        """Whether the device has written its copy since the host's was."""
        return self._runs != self._fetched

    def bring(self) -> None:
        """Takes over what the host has written since; before a run."""
        if not (self.stale or len(self._lent)):
            return
        self.fetch()  # nothing, but where a thread asked for the host's elements while a run was ending
        self.stale = False  # before: what is written meanwhile is taken over by the next run
        try:
            if self._host.size:
                self.driver.upload(self.address, self._host)
        except BaseException:
            self.stale = True
            raise

    def written(self) -> None:
        """Notes that a run has written the copy: what the host has is older, whoever asked for it meanwhile."""
        self._runs += 1
        self.stale = False

    def follow(self) -> None:
        """Brings the host up to date where somebody holds a view of it; after a run."""
        if len(self._lent):
            self.fetch()

    def fetch(self) -> None:
        """Brings the host up to date. DeviceError where the device is lost: what it had computed since is gone."""
        runs = self._runs  # one that ends meanwhile is fetched the next time
        if runs != self._fetched:
            self.driver.download(self._host, self.address)
            self._fetched = runs

    def store(self, start: int, values: np.ndarray) -> None:
        """Sets a stretch of the copy. values: 1-D, of the buffer's dtype."""
        if values.size:
            self.driver.upload(self.address + start * values.itemsize, values)

    def close(self) -> str | None:
        """Ends the copy. Why the host could not be brought up to date, where the device is lost: it keeps what it last saw."""
        try:
            self.fetch()
        except DeviceError as error:
            return str(error)
        finally:
            self._allocation.free()
        return None


def mirror_of(buffer: Buffer, driver: Driver) -> DeviceMirror:
    """The buffer's copy on the driver's device, made where there is none."""
    if buffer.mirror is not None and getattr(buffer.mirror, "driver", None) is not driver:
        buffer.come_home()
    if buffer.mirror is None:
        buffer.mirror = DeviceMirror(buffer, driver)
        Buffer.mirrored.add(buffer)
    return buffer.mirror  # type: ignore[return-value]


class DeviceArena(Arena):
    """Memory of a device for values that live during a run; taken when a tape is bound to it."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver
        self._allocation: Any = None
        self._wanted = 0

    @property
    def nbytes(self) -> int:
        """Its size in bytes, once it is taken."""
        return self._wanted

    def ensure(self, nbytes: int) -> None:
        """Makes the arena at least `nbytes` large. What it held is lost when it grows."""
        if nbytes > self._wanted:
            self._wanted = nbytes
            self.generation += 1
            if self._allocation is not None:
                self._allocation.free()  # now: there may not be room for both
                self._allocation = None

    def forget(self) -> None:
        """Gives all memory back, and no longer asks for as much: for a plan that the device had no room for."""
        if self._allocation is not None:
            self._allocation.free()
        self._allocation, self._wanted = None, 0
        self.generation += 1

    @property
    def address(self) -> int:
        """Where it starts now. DeviceMemoryError where the device has no room for it."""
        if self._allocation is None:
            if not self._wanted:
                return 0
            self._allocation = self.driver.allocate(self._wanted)
        return self._allocation.address


class DeviceInput:
    """An array that a device reads: memory there of one shape and dtype, written by whoever feeds it."""

    def __init__(self, driver: Driver, shape: Sequence[int], dtype: str | np.dtype):
        self.driver = driver
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self._allocation: Any = driver.allocate(max(self.nbytes, 1))

    @property
    def address(self) -> int:
        """Where it lies on the device."""
        return self._allocation.address

    def write(self, given: Any) -> None:
        """Takes over an array of its shape and dtype, from the host or from the device."""
        if not self.nbytes:
            return
        if isinstance(given, np.ndarray):
            self.driver.upload(self.address, given)
        else:
            self.driver.copy(self.address, given.address, self.nbytes)
            self.driver.synchronize()  # its owner may write to it from now on, on a stream that does not wait for this one

    def read(self) -> np.ndarray:
        """A copy on the host."""
        found = np.empty(self.shape, self.dtype)
        if self.nbytes:
            self.driver.download(found, self.address)
        return found


class DeviceView:
    """An array of a caller's that lies on the device, C-contiguous, read where it lies.

    owner: keeps it alive. Rows may be cut out of it; as a NumPy array it is a copy on the host.
    """

    def __init__(self, driver: Driver, address: int, shape: Sequence[int], dtype: str | np.dtype, owner: Any):
        self.driver, self.address, self.owner = driver, address, owner
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> DeviceView:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise IndexError(f"expected rows side by side, got a step of {step}")
        row = self.nbytes // max(len(self), 1)
        shape = (max(stop - start, 0), *self.shape[1:])
        return DeviceView(self.driver, self.address + start * row, shape, self.dtype, self.owner)

    def reshape(self, shape: Sequence[int]) -> DeviceView:
        """The same elements under another shape of as many."""
        return DeviceView(self.driver, self.address, shape, self.dtype, self.owner)

    def read(self) -> np.ndarray:
        """A copy on the host."""
        found = np.empty(self.shape, self.dtype)
        if found.size:
            self.driver.download(found, self.address)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.read().astype(dtype or self.dtype, copy=False)


class PinnedInput:
    """An array in page-locked memory of the host, which a device reads over the bus: for data sets that it has no room for."""

    def __init__(self, driver: Driver, array: np.ndarray):
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes
        self._memory = driver.pinned(max(array.nbytes, 1))
        self._array = self._memory[: array.nbytes].view(array.dtype).reshape(array.shape)
        np.copyto(self._array, array)

    @property
    def address(self) -> int:
        """Where it lies, for the host and for the device."""
        return address_of(self._array)

    def read(self) -> np.ndarray:
        """A copy of it."""
        return self._array.copy()


class HostInput:
    """An array that a tape on the host reads: memory of its own, which the caller's array is copied to."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

    def write(self, given: np.ndarray) -> None:
        """Copies an array of its shape."""
        np.copyto(self.array, given)

    def read(self) -> np.ndarray:
        """A copy of it."""
        return self.array.copy()
