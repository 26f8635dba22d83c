"""Arrays that other libraries have put on the device: what `Driver.external` reads.

By DLPack where the array offers it, since that hands the stream over in both directions of need; else by
`__cuda_array_interface__`, whose older versions say nothing of streams: then all streams are waited for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.errors import DeviceError, DTypeError
from tapeprop.targets.cuda import dlpack
from tapeprop.targets.cuda.device_array import DeviceArray
from tapeprop.targets.cuda.driver import Driver, ExternalArray

__all__ = ["read"]


def read(array: Any, driver: Driver) -> ExternalArray | None:
    """See `Driver.external`."""
    if isinstance(array, DeviceArray) and array.driver is driver:
        return ExternalArray(array.address, array.shape, array.dtype.name, None, array)
    if isinstance(array, (np.ndarray, np.generic)):
        return None
    ask = getattr(array, "__dlpack_device__", None)
    if callable(ask):
        try:
            kind, number = ask()
        except (BufferError, RuntimeError, ValueError) as error:  # torch: the tensor is on "meta", ...
            raise DeviceError(f"{_kind(array)}: cannot be shared: {error}") from error
        device = (int(kind), int(number))
        if device[0] == dlpack.CPU and hasattr(array, "__array__") and not isinstance(array, DeviceArray):
            return None  # NumPy reads it: of the host, also where that plays the device
        if _is_ours(device, driver):
            return _by_dlpack(array, driver)
        if device[0] in (dlpack.CPU, dlpack.CUDA_HOST):
            return None
        raise _elsewhere(array, dlpack.device_text(device), driver)
    try:
        interface = getattr(array, "__cuda_array_interface__", None)
    except RuntimeError as error:  # torch: the tensor requires a gradient
        raise DeviceError(f"{_kind(array)}: cannot be shared: {error}") from error
    return None if interface is None else _by_interface(array, interface, driver)


def _is_ours(device: tuple[int, int], driver: Driver) -> bool:
    kind, number = device
    if driver.dlpack_device[0] == dlpack.CUDA and kind == dlpack.CUDA_MANAGED:
        kind = dlpack.CUDA
    return (kind, number) == driver.dlpack_device


def _kind(array: Any) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"


def _elsewhere(array: Any, where: str, driver: Driver) -> DeviceError:
    ours = dlpack.device_text(driver.dlpack_device)
    return DeviceError(
        f"{_kind(array)}: lies on {where}, and the graph on {ours} ({driver.name}); move it there, or copy it to the host"
    )


def _by_dlpack(array: Any, driver: Driver) -> ExternalArray:
    stream = driver.stream_number()
    given = {} if stream is None else {"stream": stream}
    try:
        try:
            capsule = array.__dlpack__(**given, max_version=(1, 0))
        except TypeError:  # made before version 1
            capsule = array.__dlpack__(**given)
    except (BufferError, RuntimeError, ValueError) as error:  # torch: the tensor requires a gradient, is sparse, ...
        raise DeviceError(f"{_kind(array)}: cannot be shared: {error}") from error
    try:
        taken = dlpack.take(capsule)
    except (DeviceError, DTypeError) as error:
        raise type(error)(f"{_kind(array)}: {error}") from None
    if not _is_ours(taken.device, driver):
        raise _elsewhere(array, dlpack.device_text(taken.device), driver)
    item = np.dtype(taken.dtype).itemsize
    strides = _strides(taken.shape, taken.strides, item)
    return ExternalArray(taken.address, taken.shape, taken.dtype, strides, taken.owner)


def _by_interface(array: Any, interface: dict[str, Any], driver: Driver) -> ExternalArray:
    if driver.dlpack_device[0] != dlpack.CUDA:
        raise _elsewhere(array, "a CUDA device", driver)
    if interface.get("mask") is not None:
        raise DeviceError(f"{_kind(array)}: expected an array without a mask, got one; fill it first")
    try:
        kind = np.dtype(interface["typestr"])
    except TypeError:
        kind = np.dtype("V1")
    if kind.kind not in "biufc" or not kind.isnative:
        raise DTypeError(f"{_kind(array)}: expected numbers in native byte order, got {interface['typestr']!r}")
    shape = tuple(int(size) for size in interface["shape"])
    address = int(interface["data"][0] or 0)
    if 0 not in shape:
        number = driver.ordinal_of(address)
        if number != driver.dlpack_device[1]:
            where = "no CUDA device" if number is None else dlpack.device_text((dlpack.CUDA, number))
            raise _elsewhere(array, where, driver)
        if interface.get("version", 0) >= 3 and "stream" in interface:
            stream = interface["stream"]
            if stream is not None:  # None: there is nothing to wait for
                driver.wait_for(_stream(array, stream))
        else:
            driver.wait_for(None)
    strides = interface.get("strides")
    given = None if strides is None else tuple(int(step) for step in strides)
    return ExternalArray(address, shape, kind.name, _strides(shape, given, kind.itemsize), array)


def _stream(array: Any, stream: Any) -> int:
    if int(stream) == 0:
        raise DeviceError(
            f"{_kind(array)}: gives stream 0, which the array interface forbids since it may mean two things"
        )
    return int(stream)


def _strides(shape: tuple[int, ...], strides: tuple[int, ...] | None, item: int) -> tuple[int, ...] | None:
    """None where the strides, in bytes, are those of a C-contiguous array; axes of size 1 have any."""
    if strides is None or 0 in shape:
        return None
    step = item
    for size, given in zip(reversed(shape), reversed(strides)):
        if size != 1 and given != step:
            return strides
        step *= size
    return None
