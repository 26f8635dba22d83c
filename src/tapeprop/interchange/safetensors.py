"""Weight files in the safetensors format, in NumPy alone.

A file is: the length of the header in 8 bytes, little-endian; the header, a JSON object {name: {"dtype", "shape",
"data_offsets": [begin, end]}} with an optional "__metadata__" of strings, padded with spaces; then the tensors' bytes,
row-major and little-endian, without holes or overlaps (format: https://github.com/huggingface/safetensors, README).

A file is not trusted. All that the header says is checked against the file's size before any array is made, so a bad
file costs no more memory than its own header, and nothing is ever half read.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np

from tapeprop.errors import DTypeError, GraphError, WeightFileError
from tapeprop.runtime.writing import whole_file

__all__ = ["read", "write"]

Path = str | os.PathLike[str]
Arrays = dict[str, np.ndarray]

#: The longest header that the reference implementation takes, in bytes.
LONGEST_HEADER = 100_000_000
METADATA = "__metadata__"
#: NumPy's limits: what an array may count and address, and how many axes it may have.
LARGEST = 2**63 - 1
MOST_AXES = 64

#: The formats' names and how they lie in the file. NumPy has no bfloat16: its bits are read as uint16 and widened.
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
NAMES = {np.dtype(stored).newbyteorder("="): name for name, stored in DTYPES.items() if name != "BF16"}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor; begin and end count bytes from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Layout:
    """A checked header: the tensors in the order in which they lie, where the data starts, and the metadata."""

    file: str
    tensors: dict[str, TensorInfo]
    start: int
    metadata: dict[str, str]


# ---- reading


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """({name: array}, metadata) of a file; the arrays are fresh and writable, bfloat16 widened to float32 (exactly).

    WeightFileError names the file, the tensor, what was expected and what was found; OSError where it cannot be opened.
    """
    with open(path, "rb") as file:
        layout = read_layout(file, path)
        return read_arrays(file, layout), layout.metadata


def read_layout(file: BinaryIO, path: Path) -> Layout:
    """The header of an open file, checked against its size. Makes no arrays. WeightFileError."""
    name = os.fspath(path)
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        _fail(name, None, "at least 8 bytes", f"{size}", "the file is truncated; copy it again")
    file.seek(0)
    length = int.from_bytes(_exactly(file, 8, name, "the header's length"), "little")
    if length > min(LONGEST_HEADER, size - 8):
        limit = f"a header of at most {min(LONGEST_HEADER, size - 8):,} bytes in a file of {size:,}"
        _fail(name, None, limit, f"{length:,}", "it is truncated, or no safetensors file")
    text = _exactly(file, length, name, "the header")
    if not text.startswith(b"{"):
        _fail(name, None, "a header that begins with '{'", shown(text[:20]), "it is no safetensors file")
    header = parse_json(text, f"{name}: header")
    metadata = _checked_metadata(header.pop(METADATA, {}), name)
    tensors = {key: _checked_info(key, entry, name) for key, entry in header.items()}
    in_place = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_cover(in_place, size - 8 - length, name)
    return Layout(name, in_place, 8 + length, metadata)


def read_arrays(file: BinaryIO, layout: Layout) -> Arrays:
    """The arrays of an open file whose layout was read from it. WeightFileError where it has shrunk since."""
    file.seek(layout.start)
    return {key: _read_array(file, key, info, layout.file) for key, info in layout.tensors.items()}


def _read_array(file: BinaryIO, key: str, info: TensorInfo, name: str) -> np.ndarray:
    array = np.empty(math.prod(info.shape), DTYPES[info.dtype])
    wanted = array.nbytes
    if wanted:  # a memoryview of nothing cannot be cast
        got = file.readinto(array.data.cast("B"))  # type: ignore[attr-defined]
        if got != wanted:
            _fail(name, key, f"{wanted:,} bytes", f"{got:,}", "the file shrank while it was read")
    if info.dtype == "BOOL" and wanted and (worst := int(array.view(np.uint8).max())) > 1:
        _fail(name, key, "bytes 0 and 1 for BOOL", f"{worst}", "the file is corrupt")
    if info.dtype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32's bits
    return array.astype(array.dtype.newbyteorder("="), copy=False).reshape(info.shape)


def _checked_metadata(found: Any, name: str) -> dict[str, str]:
    if not isinstance(found, dict):
        _fail(name, None, f"{METADATA} to be an object of strings", shown(found))
    for key, value in found.items():
        if not isinstance(value, str) or not _is_text(key) or not _is_text(value):
            _fail(name, None, f"{METADATA} to hold strings", f"{shown(key)}: {shown(value)}")
    return found


def _checked_info(key: str, entry: Any, name: str) -> TensorInfo:
    if not _is_text(key):
        _fail(name, key, "a name in UTF-8", shown(key))
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        got = ", ".join(map(shown, entry)) if isinstance(entry, dict) else shown(entry)
        _fail(name, key, "an object of dtype, shape and data_offsets", got or "nothing")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _fail(name, key, f"a dtype out of {', '.join(DTYPES)}", shown(dtype), "convert the tensor before it is saved")
    if not isinstance(shape, list) or not all(_is_count(n) for n in shape) or len(shape) > MOST_AXES:
        _fail(name, key, f"a shape of at most {MOST_AXES} ints from 0 to 2**63 - 1", shown(shape))
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        _fail(name, key, "data_offsets [begin, end], ints from 0 to 2**63 - 1", shown(offsets))
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    # NumPy refuses (0, 2**62, 2**62) as well: sizes of 0 do not make the others small
    if math.prod(n for n in shape if n) > LARGEST // max(itemsize, 4):
        _fail(name, key, "a shape that can be addressed", shown(shape))
    begin, end = offsets
    if end - begin != math.prod(shape) * itemsize:
        expected = f"{math.prod(shape) * itemsize:,} bytes for {dtype} {shown(tuple(shape))}"
        _fail(name, key, expected, f"{end - begin:,}, data_offsets {offsets}")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _check_cover(tensors: dict[str, TensorInfo], size: int, name: str) -> None:
    """The tensors, sorted by place, lie side by side and fill the data."""
    place = 0
    for key, info in tensors.items():
        if info.begin != place:
            what = "overlaps the one before" if info.begin < place else "leaves a hole"
            _fail(name, key, f"data to begin at {place:,}", f"{info.begin:,}, which {what}")
        place = info.end
    if place != size:
        last = next(reversed(tensors), None)
        remedy = "the file is truncated; copy it again" if place > size else "bytes are left over"
        _fail(name, last, f"{place:,} bytes of data", f"{size:,}", remedy)


def _exactly(file: BinaryIO, count: int, name: str, what: str) -> bytes:
    found = file.read(count)
    if len(found) != count:
        _fail(name, None, f"{count:,} bytes of {what}", f"{len(found):,}", "the file shrank while it was read")
    return found


# ---- writing


def write(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays and strings to a file, whole or not at all.

    tensors: bools, ints or floats of 16 to 64 bits, of any shape, strides and byte order. The bytes of the file depend
    on names, values and metadata alone, not on the order of either dict: the widest dtypes come first, so that every
    tensor is aligned, then by name, as the reference implementation does it.

    DTypeError for another dtype, GraphError for a name or metadata that cannot be written; OSError.
    """
    arrays = {key: _checked_array(key, value) for key, value in tensors.items()}
    order = sorted(arrays, key=lambda key: (-arrays[key].dtype.itemsize, NAMES[arrays[key].dtype], key))
    header: dict[str, Any] = {}
    if metadata:
        header[METADATA] = dict(sorted(_writable_metadata(metadata).items()))
    place = 0
    for key in order:
        array = arrays[key]
        offsets = [place, place + array.nbytes]
        header[key] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        place += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST_HEADER:
        raise GraphError(f"{os.fspath(path)}: expected a header of at most {LONGEST_HEADER:,} bytes, got {len(text):,}")
    with whole_file(path, binary=True, durable=True) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for key in order:
            if arrays[key].size:
                file.write(stored(arrays[key]))


def stored(array: np.ndarray) -> memoryview:
    """The bytes of an array as they lie in the file; copied only where it is not contiguous or big-endian."""
    return np.ascontiguousarray(array, DTYPES[NAMES[array.dtype]]).data.cast("B")


def _checked_array(key: Any, value: Any) -> np.ndarray:
    if not isinstance(key, str) or key == METADATA or not _is_text(key):
        raise GraphError(f"expected tensor names that are strings in UTF-8 and not {METADATA!r}, got {shown(key)}")
    array = np.asarray(value)
    native = array.dtype.newbyteorder("=")
    if native not in NAMES:
        names = ", ".join(map(str, NAMES))
        raise DTypeError(f"tensor {shown(key)}: expected dtype {names}, got {array.dtype}; convert it first")
    return array.astype(native, copy=False)


def _writable_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str) and _is_text(key) and _is_text(value)):
            raise GraphError(f"metadata: expected strings in UTF-8, got {shown(key)}: {shown(value)}; give str(value)")
    return dict(metadata)


# ---- strict JSON, and words


def parse_json(text: bytes | str, where: str) -> Any:
    """What a JSON text holds: standard JSON in UTF-8, no key twice in an object.

    WeightFileError, beginning with `where`.
    """
    try:
        return json.loads(
            text if isinstance(text, str) else text.decode(),
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_int=_whole,
        )
    except RecursionError:
        problem = "values nested too deep"
    except ValueError as error:  # faults of UTF-8, of JSON, numbers of thousands of digits, and those raised below
        problem = str(error)
    raise WeightFileError(f"{where}: expected JSON without faults, got {problem}: the file is corrupt")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} twice")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which JSON does not have")


def _whole(text: str) -> int:
    if text == "-0":  # Python takes it for 0, the reference for a float
        raise ValueError("the int -0")
    return int(text)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST  # a bool is an int too


def _is_text(value: Any) -> bool:
    """Whether a string can be written in UTF-8: JSON may hold half a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60
_short.maxlist = _short.maxtuple = _short.maxdict = 8


def shown(value: Any) -> str:
    """repr() for messages, cut short: what a file holds may be of any length and depth."""
    return _short.repr(value)


def _fail(file: str, tensor: str | None, expected: str, received: str, remedy: str = "the file is corrupt") -> NoReturn:
    place = f"{file}: tensor {shown(tensor)}" if tensor is not None else file
    raise WeightFileError(f"{place}: expected {expected}, got {received}: {remedy}")
