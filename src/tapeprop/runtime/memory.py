"""Memory that tapes point into: aligned buffers with a name, and arenas that several plans share."""

from __future__ import annotations

import itertools
import weakref
from ctypes import addressof, c_char, c_ubyte

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


class Buffer:
    """A named, aligned, zeroed 1-D array that never moves or grows: a place for parameters, gradients or counters.

    role: "parameters", "gradients", "optimizer" or "other", for whoever asks where memory goes.
    writes: counts up when it may have been written, so that what is derived from it need not be made again as long as `version` stays.
    """

    def __init__(self, label: str, count: int, dtype: str | np.dtype, role: str = "other"):
        self.name = f"{label}{next(_number)}"
        self.role = role
        self.array = aligned(count, dtype)
        self.writes = 0
        self._lent: weakref.WeakSet[Lent] = weakref.WeakSet()

    def lend(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        """A live view of the elements from `start` on, for anyone to write to as long as they please."""
        size = int(np.prod(shape, dtype=np.int64))
        lent = Lent(self.array[start : start + size])
        self._lent.add(lent)
        self.writes += 1
        return np.asarray(lent).reshape(shape)

    @property
    def version(self) -> int | None:
        """A number that is another once the contents have been written; None while somebody holds a view to write to."""
        return None if len(self._lent) else self.writes

    def __repr__(self) -> str:
        return f"Buffer({self.name}, {self.array.size}, {self.array.dtype})"

    @property
    def address(self) -> int:
        """Where it starts."""
        return address_of(self.array)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.array.nbytes


class Arena:
    """Memory for values that live during a run. It grows to the largest plan that uses it; `generation` tells plans to bind again."""

    def __init__(self) -> None:
        self.array = aligned(0)
        self.generation = 0

    def ensure(self, nbytes: int) -> None:
        """Makes the arena at least `nbytes` large. What it held is lost when it grows."""
        if nbytes > self.array.nbytes:
            self.array = aligned(nbytes)
            self.generation += 1

    @property
    def address(self) -> int:
        """Where it starts now."""
        return address_of(self.array)
