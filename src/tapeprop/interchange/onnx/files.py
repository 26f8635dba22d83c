"""ONNX files as protocol buffers and arrays. A file is not trusted.

Whatever a file claims of sizes is compared with the bytes that are there before any array is made, so a bad file costs no more
memory than its own bytes. External data has to lie in the model's folder, in a regular file, and its tensors may not take more
bytes out of that file than it has: else a small model could name one large region many times.

Float16 is widened to float32, exactly, and calculated with as float32: tapeprop has no kernels for half precision. Other narrow
formats (bfloat16, float8, int4, ...), complex numbers and strings are refused.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

import numpy as np

from tapeprop.errors import WeightFileError
from tapeprop.interchange.onnx.package import onnx_package
from tapeprop.interchange.safetensors import LARGEST, MOST_AXES, shown

__all__ = ["DTYPES", "Files", "dtype_name", "read_proto", "text"]

#: What a protocol buffer can hold at most; larger models keep their weights in other files.
LARGEST_FILE = 2**31 - 1
#: Formats of tensors: {TensorProto's name: (NumPy's dtype in raw_data, the field that holds it otherwise)}.
DTYPES = {
    "FLOAT": ("<f4", "float_data"),
    "DOUBLE": ("<f8", "double_data"),
    "FLOAT16": ("<f2", "int32_data"),
    "INT8": ("<i1", "int32_data"),
    "INT16": ("<i2", "int32_data"),
    "INT32": ("<i4", "int32_data"),
    "INT64": ("<i8", "int64_data"),
    "UINT8": ("<u1", "int32_data"),
    "UINT16": ("<u2", "int32_data"),
    "UINT32": ("<u4", "uint64_data"),
    "UINT64": ("<u8", "uint64_data"),
    "BOOL": ("|b1", "int32_data"),
}
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_CORRUPT = "the file is truncated or corrupt; copy it or export it again"


def read_proto(source: Any) -> tuple[Any, Files]:
    """(onnx.ModelProto, where its tensors are read from) of a path, the bytes of a file, or a ModelProto.

    WeightFileError for what is no ONNX file, or above 2 GiB; OSError where a file cannot be opened.
    """
    onnx = onnx_package("load")
    if isinstance(source, onnx.ModelProto):
        return source, Files("the model", None)
    if isinstance(source, bytes | bytearray | memoryview):
        name, folder, data = "the model", None, bytes(source)
        _check_length(name, len(data))
    else:
        path = Path(os.fspath(source))
        name, folder = str(path), path.parent
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_length(name, size)
            data = file.read(size)
    return _parsed(data, name), Files(name, folder)


def _check_length(name: str, length: int) -> None:
    if length > LARGEST_FILE:
        raise WeightFileError(
            f"{name}: expected an ONNX file below 2 GiB, got {length:,} bytes: keep the weights in a file beside it, with "
            "onnx.save(model, path, save_as_external_data=True)"
        )
    if length == 0:
        raise WeightFileError(f"{name}: expected an ONNX file, got 0 bytes: {_CORRUPT}")


def _parsed(data: bytes, name: str) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # brought by onnx

    try:
        return onnx_package("load").ModelProto.FromString(data)
    except (DecodeError, RuntimeError, UnicodeDecodeError, ValueError) as error:
        raise WeightFileError(
            f"{name}: expected an ONNX model, got {len(data):,} bytes that are none: {_CORRUPT}"
        ) from error


def text(value: Any) -> str:
    """A text of a protocol buffer, which gives bytes where they are no UTF-8. UnicodeDecodeError."""
    return value if isinstance(value, str) else value.decode()


def dtype_name(number: int) -> str:
    """NumPy's name of a TensorProto data type that is read, "unknown" for 0, else ONNX' name in lower case."""
    if number == 0:
        return "unknown"
    try:
        name = onnx_package("load").TensorProto.DataType.Name(number)
    except ValueError:
        return f"data type {number}"
    return np.dtype(DTYPES[name][0]).newbyteorder("=").name if name in DTYPES else name.lower()


class Files:
    """Reads the tensors of one model. name: of the model's file, for errors; folder: where its other files lie, or None."""

    def __init__(self, name: str, folder: Path | None):
        self.name = name
        self.folder = folder
        self._regions: dict[tuple[Any, ...], np.ndarray] = {}
        self._taken: dict[str, int] = {}

    def fail(self, where: str, expected: str, received: str, remedy: str = _CORRUPT) -> NoReturn:
        """Raises the WeightFileError that names the file and a place in it."""
        raise WeightFileError(f"{self.name}: {where}: expected {expected}, got {received}: {remedy}")

    def array(self, tensor: Any, where: str) -> np.ndarray:
        """The numbers of a TensorProto, read-only; float16 as float32. where: names the tensor in errors.

        WeightFileError for a format that is not read, and where shape and bytes do not go together.
        """
        kind = dtype_name(tensor.data_type)
        name = (
            onnx_package("load").TensorProto.DataType.Name(tensor.data_type)
            if kind != "unknown" and " " not in kind
            else ""
        )
        if name not in DTYPES:
            remedy = "convert the model's weights to float32 before the export"
            self.fail(where, f"a tensor of {', '.join(DTYPES)}", kind, remedy)
        stored = np.dtype(DTYPES[name][0])
        shape = self._shape(tensor, stored.itemsize, where)
        if tensor.HasField("segment"):
            self.fail(where, "a tensor in one piece", "a segment of one", "export it again")
        external = tensor.data_location == onnx_package("load").TensorProto.EXTERNAL
        found = self._external(tensor, stored, shape, where) if external else self._inside(tensor, name, shape, where)
        if name == "FLOAT16":
            found = found.astype(np.float32)
        found = found.astype(found.dtype.newbyteorder("="), copy=False).reshape(shape)
        found.setflags(write=False)
        return found

    def _shape(self, tensor: Any, itemsize: int, where: str) -> tuple[int, ...]:
        shape = tuple(tensor.dims) if len(tensor.dims) <= MOST_AXES else ()
        if len(tensor.dims) > MOST_AXES or any(size < 0 for size in shape):
            self.fail(where, f"a shape of at most {MOST_AXES} sizes >= 0", shown(tuple(tensor.dims[:100])))
        if math.prod(size for size in shape if size) > LARGEST // max(itemsize, 4):
            self.fail(where, "a shape that can be addressed", shown(shape))
        return shape

    def _inside(self, tensor: Any, name: str, shape: tuple[int, ...], where: str) -> np.ndarray:
        """The numbers that stand in the model's own file."""
        count, (layout, field) = math.prod(shape), DTYPES[name]
        stored = np.dtype(layout)
        filled = [other for other in _FIELDS if len(getattr(tensor, other))]
        raw = tensor.raw_data if tensor.HasField("raw_data") else b""
        if raw or not filled:
            if filled or len(raw) != count * stored.itemsize:
                got = f"{len(raw):,} bytes" + f" and {', '.join(filled)}" * bool(filled)
                self.fail(where, f"{count * stored.itemsize:,} bytes for {stored.name} {shown(shape)}", got)
            return self._booleans(np.frombuffer(raw, stored), where)
        values = getattr(tensor, field)
        if filled != [field] or len(values) != count:
            got = ", ".join(f"{len(getattr(tensor, other)):,} in {other}" for other in filled)
            self.fail(where, f"{count:,} numbers in {field} for {stored.name} {shown(shape)}", got)
        wide = np.array(values, {"float_data": "f4", "double_data": "f8", "uint64_data": "u8"}.get(field, "i8"))
        bits = np.dtype("u2") if name == "FLOAT16" else np.dtype("u1") if name == "BOOL" else stored
        if bits.kind in "iu" and wide.size:
            least, most = (0, 1) if name == "BOOL" else (np.iinfo(bits).min, np.iinfo(bits).max)
            if int(wide.min()) < least or int(wide.max()) > most:
                self.fail(where, f"numbers from {least} to {most} for {name}", f"{wide.min()} to {wide.max()}")
        return wide.astype(bits).view(stored)

    def _booleans(self, found: np.ndarray, where: str) -> np.ndarray:
        if found.dtype.kind == "b" and found.size and (most := int(found.view(np.uint8).max())) > 1:
            self.fail(where, "bytes 0 and 1 for BOOL", str(most))
        return found

    # ---- external data

    def _external(self, tensor: Any, stored: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
        """The numbers that stand in another file of the model's folder."""
        entries = {text(entry.key): text(entry.value) for entry in tensor.external_data}
        path = self._path(entries.get("location", ""), where)
        wanted = math.prod(shape) * stored.itemsize
        offset = self._number(entries, "offset", 0, where)
        descriptor = self._open(path, entries["location"], where)
        with open(descriptor, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = self._number(entries, "length", size - offset, where)
            if length != wanted or offset + length > size:
                expected = (
                    f"{wanted:,} bytes for {stored.name} {shown(shape)} within the {size:,} of {entries['location']!r}"
                )
                self.fail(where, expected, f"{length:,} bytes from byte {offset:,} on")
            key = (path, offset, stored.str, shape)
            if key not in self._regions:
                self._taken[path] = self._taken.get(path, 0) + wanted
                if self._taken[path] > size:
                    expected = f"tensors that take each of the {size:,} bytes of {entries['location']!r} once"
                    self.fail(where, expected, "regions that overlap", "export the model again")
                file.seek(offset)
                array = np.empty(math.prod(shape), stored)
                if wanted and file.readinto(array.data.cast("B")) != wanted:
                    self.fail(where, f"{wanted:,} bytes", "fewer", f"{entries['location']!r} shrank while it was read")
                self._regions[key] = self._booleans(array, where)
        return self._regions[key]

    def _number(self, entries: dict[str, str], key: str, default: int, where: str) -> int:
        digits = entries.get(key)
        if digits is None:
            return default
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
            self.fail(where, f"external data with {key} as a number of bytes", shown(digits))
        return int(digits)

    def _path(self, location: str, where: str) -> str:
        """Where a location leads, links followed. WeightFileError where that is not in the model's folder."""
        remedy = "put the data beside the model and export with a plain file name"
        if self.folder is None:
            self.fail(
                where,
                "its numbers in the model",
                f"external data in {shown(location)}",
                "give load the path of the file",
            )
        windows, posix = PureWindowsPath(location), PurePosixPath(location)
        leaves = windows.drive or windows.root or posix.is_absolute() or ".." in windows.parts or ".." in posix.parts
        if leaves or not location.strip(". ") or any(ord(letter) < 32 for letter in location):
            self.fail(where, "external data in the model's folder", shown(location), remedy)
        folder = os.path.realpath(self.folder)
        path = os.path.realpath(os.path.join(folder, location))
        if os.path.commonpath([folder, path]) != folder or path == folder:
            self.fail(
                where, "external data in the model's folder", f"{shown(location)}, a link that leads out of it", remedy
            )
        return path

    def _open(self, path: str, location: str, where: str) -> int:
        """A descriptor of a regular file. A pipe would never end, so nothing is waited for."""
        remedy = "put the file that the model was exported with beside it"
        try:
            flags = (
                os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            )
            descriptor = os.open(path, flags)
        except OSError as error:
            self.fail(where, f"its numbers in {shown(location)}", error.strerror or "no such file", remedy)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            self.fail(where, f"its numbers in {shown(location)}", "no regular file", remedy)
        return descriptor
