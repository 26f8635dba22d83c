"""Kernel bodies as plain Python: the same source, with every compiled helper replaced by what it was written as.

A body that misbehaves can so be stepped through, and a test can tell a wrong algorithm from a wrong compilation. It is
a switch of ours, as NUMBA_DISABLE_JIT disables cfuncs and intrinsics too.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

__all__ = ["plain", "twin"]

_twins: dict[
    int, tuple[object, Callable]
] = {}  # keyed by id: an intrinsic need not be hashable. The object keeps the id


def twin(compiled: object) -> Callable[[Callable], Callable]:
    """Decorator: registers a Python function as what `compiled` (an intrinsic) does in plain mode."""

    def register(function: Callable) -> Callable:
        _twins[id(compiled)] = (compiled, function)
        return function

    return register


def plain(body: Any) -> Any:
    """`body` as plain Python: njit helpers become their Python functions, intrinsics their twins, recursively.

    Globals, closure cells and attributes of modules are followed. TypeError for an intrinsic without a twin.
    """
    return _Conversion().of(body)


class _Conversion:
    """One conversion; remembers what it has seen, so that functions may call each other in a circle."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        if id(value) in _twins:
            return _twins[id(value)][1]
        if id(value) in self.seen:
            return self.seen[id(value)]
        if _is_intrinsic(value):
            raise TypeError(f"intrinsic {value!r} has no plain Python twin; register one with @twin")
        python = getattr(value, "py_func", None)
        if python is not None and hasattr(value, "overloads"):  # what njit makes
            result = self.of(python)
            self.seen[id(value)] = result
            return result
        if isinstance(value, types.FunctionType):
            return self._function(value)
        return value

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        names: set[str] = set()
        _names_used(function.__code__, names)
        scope = dict(function.__globals__)
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        result = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, cells)
        result.__kwdefaults__ = function.__kwdefaults__
        self.seen[id(function)] = result
        for name in names & scope.keys():
            scope[name] = self._global(scope[name], names)
        for new, old in zip(cells, function.__closure__ or ()):
            new.cell_contents = self._global(old.cell_contents, names)
        return result

    def _global(self, value: Any, names: set[str]) -> Any:
        if isinstance(value, types.FunctionType) and not _compiled_names(value, set()):
            return value
        if isinstance(value, types.ModuleType):
            found = {name: getattr(value, name) for name in names if hasattr(value, name)}
            if any(_is_compiled(item) for item in found.values()):
                return types.SimpleNamespace(**vars(value) | {name: self.of(item) for name, item in found.items()})
            return value
        return self.of(value)


def _names_used(code: types.CodeType, names: set[str]) -> None:
    """Adds the global and attribute names in a code object and in the functions written inside it."""
    names.update(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            _names_used(constant, names)


def _is_intrinsic(value: Any) -> bool:
    # numba's class of what @intrinsic makes, told by name: this module does not import numba
    return type(value).__name__ == "_Intrinsic" and type(value).__module__.startswith("numba.")


def _is_compiled(value: Any) -> bool:
    return _is_intrinsic(value) or (hasattr(value, "py_func") and hasattr(value, "overloads"))


def _compiled_names(function: types.FunctionType, seen: set[int]) -> bool:
    """Whether a plain function reaches compiled code, so that it has to be converted as well."""
    if id(function) in seen:
        return False
    seen.add(id(function))
    names: set[str] = set()
    _names_used(function.__code__, names)
    reached = [function.__globals__[name] for name in names if name in function.__globals__]
    reached += [cell.cell_contents for cell in function.__closure__ or ()]
    return any(
        _is_compiled(value) or (isinstance(value, types.FunctionType) and _compiled_names(value, seen))
        for value in reached
    )
