"""Memory that tapes point into: aligned buffers with a name, and arenas that several plans share."""

from __future__ import annotations

import itertools
import math
import weakref
from ctypes import addressof, c_char, c_ubyte
from typing import ClassVar, Protocol

import numpy as np

ALIGNMENT = 64
_number = itertools.count()


def aligned(count: int, dtype: str | np.dtype = "uint8") -> np.ndarray:
    """A zeroed 1-D array of `count` elements that starts on a 64-byte boundary, with a line of slack behind it."""
    kind = np.dtype(dtype)
    raw = np.zeros(count * kind.itemsize + 2 * ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + count * kind.itemsize].view(kind)


def address_of(array: np.ndarray) -> int:
    """The address of an array's first element."""
    try:
        # every step asks: this takes a quarter of the time of what is below
        return addressof(c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # read-only, or empty
        return array.__array_interface__["data"][0]


def memory_at(address: int, nbytes: int) -> np.ndarray:
    """A view, uint8 (nbytes,), of memory that someone else keeps alive."""
    return np.frombuffer(memoryview((c_ubyte * nbytes).from_address(address)), np.uint8)


class Lent:
    """What a view that was handed out has as its base: it lives as long as the view, and every view of it, does."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.__array_interface__ = array.__array_interface__


class Mirror(Protocol):
    """A buffer's copy on a device, as the buffer sees it; see `runtime.mirror`.

    stale: the host has been written since the device's copy was made. fetch() brings the host up to date; close() ends the copy and
    says why the host lacks something newer, if it does.
    """

    stale: bool

    def fetch(self) -> None: ...
    def store(self, start: int, values: np.ndarray) -> None: ...
    def close(self) -> str | None: ...


class Buffer:
    """A named, aligned, zeroed 1-D array that never moves or grows: a place for parameters, gradients or counters.

    role: "parameters", "gradients", "optimizer" or "other", for whoever asks where memory goes.
    writes: counts up when it may have been written, so that what is derived from it need not be made again as long as `version` stays.
    mirror: its copy on a device, once a tape there has used it; then the host's is brought up to date when it is asked for.
    lent: the views that anyone may write to and still holds; where there is one, every run on a device takes the host's elements over
    before and brings them back after.
    """

    #: The buffers of the process that have a mirror: as long as there is none nobody need look.
    mirrored: ClassVar[weakref.WeakSet[Buffer]] = weakref.WeakSet()

    def __init__(self, label: str, count: int, dtype: str | np.dtype, role: str = "other"):
        self.name = f"{label}{next(_number)}"
        self.role = role
        self.dtype = np.dtype(dtype)
        self.mirror: Mirror | None = None
        self.writes = 0
        self._host = aligned(count, dtype)
        self.lent: weakref.WeakSet[Lent] = weakref.WeakSet()

    @property
    def array(self) -> np.ndarray:
        """The elements on the host, to be read and written at once: a device takes them over before its next run."""
        self.take_over()
        return self._host

    def take_over(self) -> None:
        """Brings the host up to date, which may be written from now on; a device's copy is out of date."""
        if self.mirror is not None:
            self.mirror.fetch()
            self.mirror.stale = True

    def read(self) -> np.ndarray:
        """The elements on the host as they are now, only to be read."""
        if self.mirror is not None:
            self.mirror.fetch()
        return self._host

    def put(self, start: int, values: np.ndarray) -> None:
        """Sets the elements from `start` on; where a device has a copy only these travel. values: 1-D."""
        self._host[start : start + values.size] = values
        if self.mirror is not None and not self.mirror.stale:
            self.mirror.store(start, self._host[start : start + values.size])

    def clear(self, start: int, size: int) -> None:
        """Sets `size` elements from `start` on to zero, as `put` does."""
        self._host[start : start + size] = 0
        if self.mirror is not None and not self.mirror.stale:
            self.mirror.store(start, self._host[start : start + size])

    def lend(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        """A live view of the elements from `start` on, for anyone to write to as long as they please."""
        lent = Lent(self._host[start : start + math.prod(shape)])
        self.lent.add(lent)  # before the host is up to date: a run that ends in between brings its results back
        self.take_over()
        self.writes += 1
        return np.asarray(lent).reshape(shape)

    def come_home(self) -> str | None:
        """Ends the copy on a device. Why the host has only what it last saw, where the device had something newer and is lost."""
        if self.mirror is None:
            return None
        missed = self.mirror.close()
        self.mirror = None
        Buffer.mirrored.discard(self)
        return missed

    @property
    def version(self) -> int | None:
        """A number that is another once the contents have been written; None while somebody holds a view to write to."""
        return None if len(self.lent) else self.writes

    def __repr__(self) -> str:
        return f"Buffer({self.name}, {self.size}, {self.dtype})"

    @property
    def address(self) -> int:
        """Where it starts on the host."""
        return address_of(self._host)

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._host.size

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self._host.nbytes


class Arena:
    """Memory for values that live during a run. It grows to the largest plan that uses it; `generation` tells plans to bind again."""

    def __init__(self) -> None:
        self.array = aligned(0)
        self.generation = 0

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.array.nbytes

    def ensure(self, nbytes: int) -> None:
        """Makes the arena at least `nbytes` large. What it held is lost when it grows."""
        if nbytes > self.array.nbytes:
            self.array = aligned(nbytes)
            self.generation += 1

    @property
    def address(self) -> int:
        """Where it starts now."""
        return address_of(self.array)
