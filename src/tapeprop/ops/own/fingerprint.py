"""A hash of what a kernel's code says and reads: its machine code is kept under it, so an edit is never met by stale code.

The bytecode is taken, not the source: it is there in a session as well, and comments do not change it. Constants, helper functions and
what else the code reads of its globals and closure count, as Numba compiles them in.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from tapeprop.errors import GraphError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
#: Modules whose functions change with their version alone, which the kernel cache looks at.
_KNOWN = ("numpy", "math", "cmath", "operator", "numba", "builtins", "tapeprop")


def fingerprint(function: types.FunctionType, where: str) -> str:
    """32 hex digits, the same in every process. GraphError where the function reads what cannot be told apart by value."""
    described = "\n".join(_Description(where).function(function))
    return hashlib.sha256(described.encode()).hexdigest()[:32]


class _Description:
    """One walk. `seen` numbers the functions met, as they may call each other in a circle."""

    def __init__(self, where: str):
        self.where = where
        self.seen: dict[int, int] = {}

    def function(self, function: types.FunctionType) -> Iterator[str]:
        if id(function) in self.seen:
            yield f"function {self.seen[id(function)]}"
            return
        self.seen[id(function)] = len(self.seen)
        yield from self.code(function.__code__)
        for value in (function.__defaults__, tuple((function.__kwdefaults__ or {}).items())):
            yield from self.value("a default", value)
        names = _names(function.__code__)
        for name in sorted(names & function.__globals__.keys()):
            yield f"global {name}"
            yield from self.value(name, function.__globals__[name], names)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            yield f"closure {name}"
            yield from self.value(name, cell.cell_contents, names)

    def code(self, code: types.CodeType) -> Iterator[str]:
        yield f"code {code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_argcount} {code.co_flags}"
        for constant in code.co_consts:
            yield from (
                self.code(constant) if isinstance(constant, types.CodeType) else self.value("a constant", constant)
            )

    def value(self, name: str, value: Any, names: frozenset[str] | set[str] = frozenset()) -> Iterator[str]:
        if isinstance(value, _PLAIN):
            yield f"{type(value).__name__} {value!r}"
        elif isinstance(value, tuple):
            yield f"tuple {len(value)}"
            for item in value:
                yield from self.value(name, item, names)
        elif isinstance(value, np.generic | np.ndarray):
            array = np.ascontiguousarray(value)
            yield f"array {array.dtype} {np.shape(value)} {hashlib.sha256(array.tobytes()).hexdigest()}"
        elif isinstance(value, types.ModuleType):
            yield f"module {value.__name__}"
            if value.__name__.partition(".")[0] not in _KNOWN:
                for inner in sorted(names & vars(value).keys()):
                    yield f"{value.__name__}.{inner}"
                    yield from self.value(f"{name}.{inner}", vars(value)[inner], names)
        elif isinstance(value, types.FunctionType):
            yield from self.function(value)
        elif isinstance(getattr(value, "py_func", None), types.FunctionType):  # what njit makes
            yield f"compiled {sorted(map(repr, getattr(value, 'targetoptions', {}).items()))}"
            yield from self.function(value.py_func)
        elif isinstance(getattr(value, "_defn", None), types.FunctionType):  # an intrinsic
            yield from self.function(value._defn)
        elif isinstance(value, type | types.BuiltinFunctionType | np.ufunc | np.dtype):
            yield f"named {getattr(value, '__module__', '')}.{getattr(value, '__name__', value)}"
        elif type(value).__module__.startswith("numba."):  # its types
            yield f"numba {value!r}"
        else:
            raise GraphError(
                f"{self.where}: expected numbers, strings, tuples, arrays, modules and functions in what it reads from outside, got "
                f"{name}, a {type(value).__name__}; pass it as an operand or an attribute"
            )


def _names(code: types.CodeType) -> set[str]:
    """The global and attribute names in a code object and in the functions written inside it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found
