"""DLPack capsules by ctypes: the structures of dlpack.h 1.0, read from others and made for them.

A capsule named "dltensor" holds a DLManagedTensor, one named "dltensor_versioned" the newer kind, which also has a version
and flags. Whoever takes the tensor renames the capsule "used_..." and calls the tensor's deleter when done with it.
https://dmlc.github.io/dlpack/latest/python_spec.html
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tapeprop.errors import DeviceError, DTypeError

__all__ = ["CPU", "CUDA", "CUDA_HOST", "CUDA_MANAGED", "FLAG_COPIED", "Taken", "device_text", "make", "take"]

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
#: Flag of a versioned tensor: it is a copy made for the asker.
FLAG_COPIED = 2

_VERSION = (1, 0)
_DEVICES = {CPU: "cpu", CUDA: "cuda", CUDA_HOST: "cuda host", 7: "vulkan", 8: "metal", 10: "rocm", CUDA_MANAGED: "cuda"}
_KINDS = {0: "int", 1: "uint", 2: "float", 5: "complex", 6: "bool"}
# Kept for ever: a capsule holds the name's pointer, not a copy.
_NAMES = {False: b"dltensor", True: b"dltensor_versioned"}
_USED = {False: b"used_dltensor", True: b"used_dltensor_versioned"}

_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


def _struct(versioned: bool) -> Any:
    return _Versioned if versioned else _Managed


def device_text(device: tuple[int, int]) -> str:
    """(device type, number) for people, as "cuda:1"."""
    kind, number = device
    name = _DEVICES.get(kind, f"DLPack device {kind}")
    return name if kind == CPU else f"{name}:{number}"


# ---- Python's functions on capsules

_python = ctypes.pythonapi
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", _python))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _python))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", _python))


# ---- reading


class Taken(NamedTuple):
    """What a capsule held. strides: in bytes; None: C-contiguous. owner: calls the deleter when it is dropped."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...] | None
    device: tuple[int, int]
    owner: Any


class _Owner:
    """Holds a tensor of someone else's."""

    def __init__(self, address: int, versioned: bool):
        weakref.finalize(self, _delete, address, versioned).atexit = False


def _delete(address: int, versioned: bool) -> None:
    deleter = _struct(versioned).from_address(address).deleter
    if deleter:
        deleter(address)


def take(capsule: Any) -> Taken:
    """Takes a capsule's tensor over. DeviceError for what is none or was taken before, DTypeError where NumPy has no such dtype."""
    versioned = bool(_is_valid(capsule, _NAMES[True]))
    name = _NAMES[versioned]
    if not _is_valid(capsule, name):
        raise DeviceError(f"expected a DLPack capsule that nobody has taken, got {capsule!r:.80}")
    address = _pointer(capsule, name)
    _rename(capsule, _USED[versioned])
    owner = _Owner(address, versioned)
    managed = _struct(versioned).from_address(address)
    if versioned and managed.major != _VERSION[0]:
        raise DeviceError(f"expected a DLPack tensor of version {_VERSION[0]}, got {managed.major}.{managed.minor}")
    tensor = managed.tensor
    dtype = _dtype_name(tensor.dtype)
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    item = np.dtype(dtype).itemsize
    strides = tuple(tensor.strides[axis] * item for axis in range(tensor.ndim)) if tensor.strides else None
    return Taken(
        (tensor.data or 0) + tensor.byte_offset,
        shape,
        dtype,
        strides,
        (tensor.device.kind, tensor.device.number),
        owner,
    )


def _dtype_name(kind: _DataType) -> str:
    name = _KINDS.get(kind.code)
    if name is not None and kind.lanes == 1:
        text = "bool" if name == "bool" else f"{name}{kind.bits}"
        try:
            return np.dtype(text).name
        except TypeError:
            pass
    what = (
        "bfloat16" if (kind.code, kind.bits, kind.lanes) == (4, 16, 1) else f"DLPack code {kind.code}, {kind.bits} bits"
    )
    raise DTypeError(f"expected an array of a dtype that NumPy has, got {what}; cast it to float32 first")


# ---- making


class _Elements:
    """What NumPy makes an array of, whose memory it never looks at: it may lie on a device."""

    def __init__(self, address: int, shape: Sequence[int], dtype: str, owner: Any):
        self.owner = owner
        self.__array_interface__ = {
            "shape": tuple(shape),
            "typestr": np.dtype(dtype).str,
            "data": (address, False),
            "version": 3,
        }


def make(
    address: int,
    shape: Sequence[int],
    dtype: str,
    device: tuple[int, int],
    owner: Any,
    *,
    versioned: bool = False,
    flags: int = 0,
) -> Any:
    """A capsule over C-contiguous memory, which holds `owner` until its taker is done. flags: of a versioned one.

    NumPy makes it, and its place and device are set here: the end of a capsule or of a tensor may come while an exception is on its
    way, which a function in Python in that place would lose. Versioned from NumPy 2.1 on.
    """
    array = np.asarray(_Elements(address, shape, dtype, owner))
    try:
        capsule = array.__dlpack__(max_version=_VERSION if versioned else None)
    except TypeError:  # NumPy 2.0
        capsule = array.__dlpack__()
    versioned = bool(_is_valid(capsule, _NAMES[True]))
    managed = _struct(versioned).from_address(_pointer(capsule, _NAMES[versioned]))
    managed.tensor.data, managed.tensor.byte_offset = address, 0
    managed.tensor.device = _Device(*device)
    if versioned:
        managed.flags |= flags
    return capsule
