"""An array on the device for callers and other libraries: what a graph returns where it was given arrays of the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.targets.cuda import dlpack
from tapeprop.targets.cuda.driver import Allocation, Driver

__all__ = ["DeviceArray"]


class DeviceArray:
    """A C-contiguous array in a device's memory; keeps that alive.

    torch.from_dlpack(array), cupy.from_dlpack(array) and whatever reads __cuda_array_interface__ share its memory;
    numpy(), np.asarray(array) and float(array) copy it to the host. ShapeError where the allocation is too small.
    """

    def __init__(self, driver: Driver, allocation: Allocation, shape: Sequence[int], dtype: str):
        self.driver = driver
        self.shape = tuple(int(size) for size in shape)
        self.dtype = np.dtype(dtype)
        if self.nbytes > allocation.nbytes:
            raise ShapeError(f"shape {self.shape} of {self.dtype} takes {self.nbytes} bytes, got {allocation.nbytes}")
        self._allocation = allocation

    @property
    def address(self) -> int:
        """Where it lies on the device."""
        return self._allocation.address

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.size * self.dtype.itemsize

    def numpy(self) -> np.ndarray:
        """A copy on the host, once the device has computed it."""
        found = np.empty(self.shape, self.dtype)
        self.driver.download(found, self.address)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the array lies on a device: NumPy can only have a copy of it; leave copy=False away")
        found = self.numpy()
        return found if dtype is None else found.astype(dtype, copy=False)

    def __float__(self) -> float:
        if self.size != 1:
            raise TypeError(f"float() takes an array of one element, got shape {self.shape}; index numpy()")
        return float(self.numpy().reshape(())[()])

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype.name}, on {self.driver.name})"

    # ---- for other libraries

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.driver.dlpack_device[0] != dlpack.CUDA:
            raise AttributeError(f"{self!r} lies on no CUDA device")
        # Not every library heeds the entry "stream" (torch does not): so there is nothing left to wait for.
        self.driver.handed_to(None)
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if self.size else 0, False),
            "strides": None,
            "version": 3,
            "stream": None,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.driver.dlpack_device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule; see the array API standard. BufferError for what cannot be had without a copy."""
        ours = self.driver.dlpack_device
        wanted = ours if dl_device is None else (int(dl_device[0]), int(dl_device[1]))
        versioned = max_version is not None and max_version[0] >= 1
        if wanted != ours and wanted[0] != dlpack.CPU:
            raise BufferError(f"{self!r}: cannot be had on {dlpack.device_text(wanted)}, only there or on the host")
        if wanted != ours:
            if copy is False:
                raise BufferError(f"{self!r}: cannot be had on the host without a copy")
            host = self.numpy()
            address = host.__array_interface__["data"][0]
            return dlpack.make(
                address, self.shape, self.dtype.name, wanted, host, versioned=versioned, flags=dlpack.FLAG_COPIED
            )
        given, flags = self, 0
        if copy:
            fresh = self.driver.allocate(self.nbytes)
            self.driver.copy(fresh.address, self.address, self.nbytes)
            given, flags = DeviceArray(self.driver, fresh, self.shape, self.dtype.name), dlpack.FLAG_COPIED
        if ours[0] == dlpack.CUDA:
            self._hand_over(stream)
        return dlpack.make(
            given.address, self.shape, self.dtype.name, ours, given, versioned=versioned, flags=flags
        )  # fmt: skip

    def _hand_over(self, stream: int | None) -> None:
        """stream: None is the legacy default stream, -1 asks for no order at all."""
        if stream == 0:
            raise ValueError(
                "__dlpack__(stream=0) may mean two streams; pass 1 for the legacy default stream, 2 for the thread's"
            )
        if stream != -1:
            self.driver.handed_to(1 if stream is None else stream)
