"""The op catalogue: functions on symbolic tensors, which layers call and in which any formula can be written.

Every module of this package that registers ops is found by itself: adding an op is adding a file. Its public functions (`__all__`)
are functions of this package. Arithmetic operators of `Tensor` are installed here.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import types
from collections.abc import Callable
from typing import Any

from tapeprop.errors import ShapeError
from tapeprop.ir import Tensor, UndecidedError, current
from tapeprop.ops.op import Op, Sample, as_tensor, record, register, registry

#: Modules of the package that hold no ops of their own.
_SUPPORT = {"op", "scalar", "expression", "primitives", "formulas", "tiling"}


def _import_all() -> list[str]:
    names: list[str] = []
    for found in pkgutil.iter_modules(__path__):
        if found.name in _SUPPORT:
            continue
        module = importlib.import_module(f"{__name__}.{found.name}")
        for name in getattr(module, "__all__", ()):
            given = getattr(module, name, None)
            globals()[name] = _deciding(given) if isinstance(given, types.FunctionType) else given
            names.append(name)
    return names


def _deciding(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which tells what to do where an answer depends on an open size and no compiler is there to ask again."""

    @functools.wraps(function)
    def decided(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UndecidedError as question:
            if current() is not None:
                raise
            raise ShapeError(
                f"{function.__name__}: expected sizes that decide whether {question}, got an open one; give the placeholder "
                "that size instead of None, or make what meets it open too"
            ) from None

    return decided


_found = _import_all()
globals()["where"] = globals()["select"]  # NumPy's name


def __getattr__(name: str) -> Any:
    raise AttributeError(f"tapeprop.ops has no op {name!r}; dir(tapeprop.ops) lists them")


def _iterate(tensor: Tensor) -> Any:
    """The parts along axis 0. TypeError for a scalar, or where the axis is open."""
    if not tensor.shape or not isinstance(tensor.shape[0], int):
        raise TypeError(f"cannot iterate over {tensor!r}: its first axis has no known size; use split() or slices")
    return (tensor[i] for i in range(tensor.shape[0]))


def _install_operators() -> None:
    """x + y, 2 * x, x @ y, x[1:3] and so on record ops."""
    ops: dict[str, Any] = globals()

    def binary(name: str, op: str) -> None:
        function = ops[op]
        setattr(Tensor, f"__{name}__", lambda self, other: function(self, other))
        setattr(Tensor, f"__r{name}__", lambda self, other: function(other, self))

    pairs = {
        "add": "add",
        "sub": "subtract",
        "mul": "multiply",
        "truediv": "divide",
        "pow": "power",
        "matmul": "matmul",
    }
    for name, op in pairs.items():
        binary(name, op)
    for name, op in {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}.items():
        setattr(Tensor, f"__{name}__", lambda self, other, function=ops[op]: function(self, other))
    unary = {"neg": ops["negate"], "abs": ops["abs"], "iter": _iterate}
    for name, function in unary.items():
        setattr(Tensor, f"__{name}__", lambda self, function=function: function(self))
    setattr(Tensor, "__getitem__", lambda self, key: ops["index"](self, key))  # noqa: B010


_install_operators()

__all__ = ["Op", "Sample", "Tensor", "as_tensor", "record", "register", "registry", "where", *_found]
