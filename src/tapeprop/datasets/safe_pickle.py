"""Read arrays out of a pickle without running anything that it names.

A pickle is a program: it may name any importable function and call it. Here

* the instructions are gone through first, and only those that build plain data pass;
* the three names that a NumPy array needs stand for a recorder that notes its arguments and calls nothing; any other
  name is refused;
* arrays are made from what was noted, after type, shape and number of bytes have been found to agree.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

ARRAY_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
# Plain data, the memo, names (find_class decides on them), and the two calls that an array is made of.
ALLOWED_OPCODES = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG1 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)


class _Recorder:
    """Stands for a NumPy name, and for what calling it would give. Notes arguments and state."""

    __slots__ = ("arguments", "state", "symbol")

    def __init__(self, symbol: str, arguments: tuple[Any, ...] = ()) -> None:
        self.symbol = symbol
        self.arguments = arguments
        self.state: Any = None

    def __call__(self, *arguments: Any) -> "_Recorder":
        return _Recorder(self.symbol, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAY_NAMES:
            raise ValueError(f"the name {module}.{name}")
        return _Recorder(name)


def load_arrays(path: Path) -> dict[str, Any]:
    """The dictionary pickled in a file, by Python 2 or 3: keys as str, uint8 arrays as arrays, the rest as it is.

    Raises ValueError, naming the file, where the pickle is damaged, holds no dictionary, or asks for anything but
    plain data and uint8 arrays.
    """
    content = path.read_bytes()
    try:
        _check_opcodes(content)
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle fails with nearly any type
        raise ValueError(f"{path}: expected a pickle of plain data and arrays; received {error}") from error
    if not isinstance(batch, dict) or any(not isinstance(key, str | bytes) for key in batch):
        raise ValueError(f"{path}: expected a pickled dictionary with names for keys; received {type(batch).__name__}")
    return {_text(key): _array(path, value) if isinstance(value, _Recorder) else value for key, value in batch.items()}


def _check_opcodes(content: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in ALLOWED_OPCODES:
            raise ValueError(f"the instruction {opcode.name}")
        # The unpickler's memo is an array as long as the largest index, whatever the file's size.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= len(content):
            raise ValueError(f"memo index {argument} in {len(content)} bytes")


def _array(path: Path, recorder: _Recorder) -> np.ndarray:
    """The uint8 array that a recorder stands for; its state is (version, shape, dtype, Fortran order, bytes)."""
    match recorder:
        case _Recorder(
            symbol="_reconstruct",
            state=(int(), tuple(shape), _Recorder(symbol="dtype", arguments=(kind, *_)), order, bytes(values)),
        ) if _text(kind) in ("u1", "|u1") and all(type(size) is int and size >= 0 for size in shape):
            if len(values) == math.prod(shape) and len(shape) <= 32:
                return np.frombuffer(values, np.uint8).reshape(shape, order="F" if order else "C")
            raise ValueError(f"{path}: expected {math.prod(shape)} bytes for shape {shape}; received {len(values)}")
    raise ValueError(f"{path}: expected a uint8 array; received something else under the name {recorder.symbol}")


def _text(name: str | bytes) -> str:
    """A name as str: Python 2 pickled its str, which unpickles as bytes."""
    return name.decode("latin-1") if isinstance(name, bytes) else name
