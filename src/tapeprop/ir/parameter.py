"""Parameters: named arrays that outlive a run, with the storage that the runtime gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from tapeprop.errors import DTypeError, NotBuiltError, ShapeError


class Storage(Protocol):
    """Where a parameter's numbers live; the runtime's segments give one to each parameter."""

    dtype: np.dtype

    def view(self) -> np.ndarray: ...
    def gradient(self) -> np.ndarray: ...
    def write(self, array: np.ndarray) -> None: ...


class Parameter:
    """A weight, a bias or a running statistic.

    shape: its shape as users see it (PyTorch's layout). initial: an array of that shape, or a function
    `initial() -> array` that is called once, when the value is first needed. trainable: whether it gets a gradient.
    dtype: None to take the graph's, or a fixed one ("int64" counters, "float64" step counts).

    Before the first build `value` is an array of the parameter's own (float64 where drawn); from then on a live view
    of the graph's storage.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        initial: np.ndarray | Callable[[], np.ndarray],
        *,
        trainable: bool = True,
        dtype: str | None = None,
        name: str = "parameter",
    ):
        self.shape = tuple(int(n) for n in shape)
        self.trainable = trainable
        self.dtype = dtype
        self.name = name
        self.storage: Storage | None = None
        self._initial = initial
        self._own: np.ndarray | None = None

    def __getstate__(self) -> dict:
        """A copy is a parameter of its own, with the value of now and no storage yet."""
        return {**vars(self), "storage": None, "_own": self.value.copy(), "_initial": None}

    def __repr__(self) -> str:
        return f"Parameter({self.name}, {self.shape})"

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def value(self) -> np.ndarray:
        """The current value: a live, writable NumPy view. While one is held on a device, each run copies it there and back."""
        if self.storage is not None:
            return self.storage.view()
        if self._own is None:
            drawn = self._initial() if callable(self._initial) else self._initial
            self._own = np.array(drawn, dtype=self.dtype or np.float64).reshape(self.shape)
        return self._own

    @property
    def grad(self) -> np.ndarray:
        """The gradient: a live, writable NumPy view, of the parameter's shape and dtype; see `value`.

        NotBuiltError before the first build; DTypeError for a parameter that is not trained.
        """
        if self.storage is None:
            raise NotBuiltError(f"{self.name}: no gradient before build(); build the graph first")
        return self.storage.gradient()

    def assign(self, array: np.ndarray) -> None:
        """Copies `array` (of the parameter's shape; real) into the value. ShapeError, DTypeError."""
        given = np.asarray(array)
        if given.dtype.kind not in "fiub":
            raise DTypeError(f"{self.name}: expected real numbers, got dtype {given.dtype}; convert the array first")
        if given.shape != self.shape:
            raise ShapeError(f"{self.name}: expected shape {self.shape}, got {given.shape}")
        if self.storage is not None:
            self.storage.write(given)
        elif self._own is None:  # nothing is drawn that would be overwritten at once
            self._own = np.array(given, dtype=self.dtype or np.float64, order="C")
        else:
            self._own[...] = given
