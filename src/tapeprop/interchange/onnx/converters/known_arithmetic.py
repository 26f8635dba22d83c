"""Arithmetic of known numbers, open sizes among them: see `known`.

Where an open size meets a fraction, or a question has another answer for another size, `UndecidedError` says so: the importer
makes an error of it that names the node. Whole numbers that leave int64 are refused, which NumPy would wrap around.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tapeprop.interchange.onnx.converters.known import as_array, dtype_of
from tapeprop.interchange.onnx.converters.reductions import reduction_axes
from tapeprop.interchange.onnx.converters.registry import on_known
from tapeprop.interchange.onnx.converters.support import check_size
from tapeprop.ir import Dim, UndecidedError
from tapeprop.ir.dims import at_least

#: Whole numbers of known arrays lie below it, so that sums and products can be checked in float64.
_BOUND = 2.0**62


def _exactly(value):
    """A number that may meet an open size: whole, or the result would not be one for every size."""
    if isinstance(value, Dim):
        return value
    if not math.isfinite(value) or value != int(value):
        raise UndecidedError(f"an open size is met by {value}")
    return int(value)


def _on_sizes(plain, on_dims):
    """A function of two arrays of objects: `plain` of numbers, `on_dims` where one is an open size."""

    def function(a, b):
        if isinstance(a, Dim) or isinstance(b, Dim):
            return on_dims(_exactly(a), _exactly(b))
        return plain(a, b)

    return np.frompyfunc(function, 2, 1)


def _sign(difference):
    """-1, 0 or 1. UndecidedError where that depends on an open size, which is at least 1."""
    if not isinstance(difference, Dim):
        return (difference > 0) - (difference < 0)
    for sign in (1, -1):
        try:
            if at_least(difference * sign, 1):
                return sign
        except UndecidedError:
            continue
    raise UndecidedError(f"{difference} >= 0")


def _compared(*accepted):
    return lambda a, b: _sign(a - b) in accepted


def _remainder(a, b):
    """ONNX' Mod of whole numbers has the divisor's sign, as Python's."""
    return a - a // b * b


def _truncated(a, b):
    """Whole numbers divide towards zero, floats as they do."""
    if a.dtype.kind == "f" or b.dtype.kind == "f":
        return a / b
    return np.abs(a) // np.abs(b) * (np.sign(a) * np.sign(b))


def _quotient(a, b):
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _quotient_of_sizes(a, b):
    """Python rounds down: the same, as long as nothing is negative."""
    for size in (a, b):
        if not at_least(size, 0):
            raise UndecidedError(f"{size} >= 0")
    return a // b


#: {operator: (of NumPy arrays, of numbers in an array of objects, of open sizes and whole numbers)}
_BINARY: dict[str, tuple[Any, Any, Any]] = {
    "Add": (np.add, lambda a, b: a + b, lambda a, b: a + b),
    "Sub": (np.subtract, lambda a, b: a - b, lambda a, b: a - b),
    "Mul": (np.multiply, lambda a, b: a * b, lambda a, b: a * b),
    "Div": (_truncated, _quotient, _quotient_of_sizes),
    "Mod": (np.mod, lambda a, b: a % b, _remainder),
    "Max": (np.maximum, max, lambda a, b: a if _sign(a - b) >= 0 else b),
    "Min": (np.minimum, min, lambda a, b: a if _sign(a - b) <= 0 else b),
    "Equal": (np.equal, lambda a, b: a == b, _compared(0)),
    "Greater": (np.greater, lambda a, b: a > b, _compared(1)),
    "GreaterOrEqual": (np.greater_equal, lambda a, b: a >= b, _compared(0, 1)),
    "Less": (np.less, lambda a, b: a < b, _compared(-1)),
    "LessOrEqual": (np.less_equal, lambda a, b: a <= b, _compared(-1, 0)),
    "And": (np.logical_and, None, None),
    "Or": (np.logical_or, None, None),
    "Xor": (np.logical_xor, None, None),
}


def _checked(node, a, b):
    """The shape of a result. GraphError for operands that do not go together."""
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise node.fail("shapes that broadcast", f"{a.shape} and {b.shape}") from None
    check_size(node, shape)
    return shape


def _worked_out(node, name, a, b):
    function, plain, on_dims = _BINARY[name]
    shape = _checked(node, a, b)
    if name in ("Div", "Mod") and a.dtype.kind != "f" and b.dtype.kind != "f" and np.any(np.equal(b, 0)):
        raise node.fail("a divisor other than 0", "0")
    if a.dtype != object and b.dtype != object:
        if name in ("Add", "Sub", "Mul") and a.dtype.kind in "iu":
            with np.errstate(over="ignore"):
                largest = np.abs(function(a.astype(np.float64), b.astype(np.float64)))
            if largest.size and largest.max() >= _BOUND:
                raise node.fail("numbers below 2^62", f"{largest.max():.3g}")
        with np.errstate(all="ignore"):
            return np.asarray(function(a, b))
    if plain is None:
        raise node.fail("known truth values", "open sizes")
    if name == "Div" and (a.dtype.kind == "f" or b.dtype.kind == "f"):
        on_dims = _exact_quotient
    found = np.empty(shape, object)
    found[...] = _on_sizes(plain, on_dims)(a, b)
    compares = name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    return found.astype(bool) if compares else as_array(found)


def _exact_quotient(a, b):
    """Sizes as floats divide without a rest, or not before they are known."""
    found = a // b
    if found * b != a:
        raise UndecidedError(f"{a} / {b} is whole")
    return found


def _binary(name):
    @on_known(name)
    def function(node, a, b):
        return _worked_out(node, name, a, b)


for _name in _BINARY:
    if _name not in ("Max", "Min", "Mod"):
        _binary(_name)


@on_known("Max", "Min")
def extreme(node, first, *others):
    for other in others:
        first = _worked_out(node, node.op, first, other)
    return first


@on_known("Mod")
def modulo(node, a, b):
    if node.get("fmod", 0):
        raise node.fail("fmod = 0 for known numbers", 1)
    return _worked_out(node, "Mod", a, b)


@on_known("Pow")
def power(node, a, b):
    _checked(node, a, b)
    if object in (a.dtype, b.dtype):
        raise UndecidedError("an open size is raised to a power")
    with np.errstate(all="ignore"):
        found = np.power(a.astype(np.float64), b.astype(np.float64))
    if a.dtype.kind in "iu" and found.size and not np.abs(found).max() < 2.0**53:
        raise node.fail("powers below 2^53", found.max())
    return found.astype(a.dtype)


# ---- of one array

_UNARY = {
    "Abs": (np.abs, abs),
    "Ceil": (np.ceil, math.ceil),
    "Floor": (np.floor, math.floor),
    "Neg": (np.negative, lambda a: -a),
    "Not": (np.logical_not, None),
    "Reciprocal": (np.reciprocal, None),
    "Round": (np.round, round),
    "Sqrt": (np.sqrt, None),
}


def _of_size(name, plain):
    """Rounding leaves a whole size as it is, and so does abs, as it is at least 1."""

    def function(a):
        if not isinstance(a, Dim):
            return plain(a)
        return -a if name == "Neg" else a

    return np.frompyfunc(function, 1, 1)


def _unary(name, function, plain):
    @on_known(name)
    def worked_out(node, x):
        if x.dtype != object:
            with np.errstate(all="ignore"):
                return np.asarray(function(x))
        if plain is None:
            raise UndecidedError(f"{name} of an open size")
        found = np.empty(x.shape, object)
        found[...] = _of_size(name, plain)(x)
        return as_array(found)


for _name, _given in _UNARY.items():
    _unary(_name, *_given)


def _cast(node, x, dtype):
    if x.dtype != object:
        with np.errstate(all="ignore"):
            return x.astype(dtype)
    if dtype.kind not in "iuf":
        raise UndecidedError("an open size is not 0")
    convert = float if dtype.kind == "f" else int
    found = np.empty(x.shape, object)
    found[...] = np.frompyfunc(lambda a: a if isinstance(a, Dim) else convert(a), 1, 1)(x)
    return found


@on_known("Cast")
def cast(node, x):
    for name in ("saturate", "round_mode"):
        node.get(name)  # of 8-bit floats, which are refused
    return _cast(node, x, dtype_of(node, node.get("to")))


@on_known("CastLike")
def cast_like(node, x, like):
    for name in ("saturate", "round_mode"):
        node.get(name)
    if like.dtype == object:
        return x
    return _cast(node, x, like.dtype)


@on_known("Where")
def where(node, condition, x, y):
    shape = _checked(node, np.empty(_checked(node, condition, x), bool), y)
    if object not in (x.dtype, y.dtype):
        return np.where(condition, x, y)
    found = np.empty(shape, object)
    found[...] = np.where(condition, x.astype(object), y.astype(object))
    return as_array(found)


# ---- reductions


def _reduction(name, binary):
    @on_known(name)
    def reduced(node, x, axes=None):
        found_axes, keep = tuple(reduction_axes(node, x.ndim, axes)), bool(node.get("keepdims", 1))
        if x.dtype != object:
            if x.dtype.kind in "iu" and name in ("ReduceSum", "ReduceProd"):
                with np.errstate(over="ignore"):
                    size = np.max(
                        getattr(np, name[6:].lower())(np.abs(x.astype(np.float64)), axis=found_axes), initial=0
                    )
                if size >= _BOUND:
                    raise node.fail("numbers below 2^62", f"{size:.3g}")
            if not x.size and name in ("ReduceMax", "ReduceMin"):
                raise node.fail("at least one element", f"shape {x.shape}")
            return np.asarray(getattr(np, name[6:].lower())(x, axis=found_axes, keepdims=keep)).astype(x.dtype)
        rest = [axis for axis in range(x.ndim) if axis not in found_axes]
        flat = x.transpose([*found_axes, *rest]).reshape(-1, *(x.shape[axis] for axis in rest))
        total = flat[0]
        for row in flat[1:]:
            total = _worked_out(node, binary, np.asarray(total, object), np.asarray(row, object))
        shape = [
            1 if axis in found_axes else size for axis, size in enumerate(x.shape) if keep or axis not in found_axes
        ]
        return as_array(np.asarray(as_array(total), object).reshape(shape))


for _name, _of_two in {"ReduceMax": "Max", "ReduceMin": "Min", "ReduceProd": "Mul", "ReduceSum": "Add"}.items():
    _reduction(_name, _of_two)
