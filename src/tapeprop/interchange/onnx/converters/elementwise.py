"""Arithmetic and functions of one number, element by element. Activations: see `activations`; truth values: see `logic`."""

from __future__ import annotations

import math

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.interchange.onnx.converters.support import FLOATS, number
from tapeprop.ir import Constant, Tensor
from tapeprop.ops import scalar

_SAME = {
    1: {
        "Abs": ops.abs,
        "Cos": ops.cos,
        "Erf": ops.erf,
        "Exp": ops.exp,
        "Log": ops.log,
        "Neg": ops.negate,
        "Reciprocal": ops.reciprocal,
        "Sign": ops.sign,
        "Sin": ops.sin,
        "Sqrt": ops.sqrt,
        "Tan": ops.tan,
        "Tanh": ops.tanh,
    },
    2: {"Add": ops.add, "Div": ops.divide, "Mul": ops.multiply, "Sub": ops.subtract},
}
for _name, _op in _SAME[1].items():
    converter(_name)(lambda node, x, *, op=_op: op(x))
for _name, _op in _SAME[2].items():
    converter(_name)(lambda node, x, y, *, op=_op: op(x, y))

_MERGES = {"Max": ops.maximum, "Mean": ops.mean_of, "Min": ops.minimum, "Sum": ops.sum_of}
for _name, _op in _MERGES.items():
    converter(_name)(lambda node, x, *others, op=_op: op(x, *others))


@converter("Pow")
def power(node, x, y):
    if x.dtype not in FLOATS:  # the result is of the base's type: 2 ** 0.5 would be 1
        raise node.fail("a floating base", x.dtype, "cast it")
    if isinstance(y.source, Constant) and y.source.array.size == 1 and y.ndim <= x.ndim:
        return ops.power(x, float(y.source.array.item()))  # small powers become products
    return ops.power(x, y if y.dtype in FLOATS else ops.cast(y, x.dtype))


@converter("Clip", either=[1, 2])
def clip(node, x, low=None, high=None):
    """Where the bounds cross, the upper one wins."""
    for bound in (low, high):
        if bound is not None and math.prod(bound.shape) != 1:
            raise node.fail("bounds of one number", f"shape {bound.shape}")
    if not any(isinstance(bound, Tensor) for bound in (low, high)):
        least, most = (None if bound is None else float(number(node, "a bound", bound)) for bound in (low, high))
        if least is None or most is None or least <= most:
            return ops.clip(x, least, most)
    if low is not None:
        x = ops.maximum(x, ops.reshape(low, ()))
    return x if high is None else ops.minimum(x, ops.reshape(high, ()))


# ---- rounding


def _round(x):
    """To the nearest whole number, halves to the even one. x - floor(x) is exact wherever it is not 0."""
    below = scalar.floor(x)
    rest = x - below
    is_even = scalar.equal(below, scalar.floor(below * 0.5) * 2)
    half = scalar.where(is_even, below, below + 1)
    return scalar.where(scalar.less(rest, 0.5), below, scalar.where(scalar.less(0.5, rest), below + 1, half))


@converter("Floor")
def floor(node, x):
    return ops.compute(scalar.floor, x, label="floor")[0]


@converter("Ceil")
def ceil(node, x):
    return ops.compute(lambda x: -scalar.floor(-x), x, label="ceil")[0]


@converter("Round")
def rounded(node, x):
    return ops.compute(_round, x, label="round")[0]


# ---- hyperbolic functions

#: From here on e^-x is less than half a unit in the last place of e^x, in float64 as well.
_NEGLIGIBLE = 19.0


def _sinh(x):
    """By expm1 near 0, where e^x - e^-x cancels; by the square of e^(x/2) far off, where e^x overflows before its half does."""
    size = scalar.absolute(x)
    u = scalar.expm1(scalar.minimum(size, _NEGLIGIBLE))
    near = (u + u / (u + 1)) * 0.5
    root = scalar.exp(size * 0.5)
    found = scalar.where(scalar.less(size, _NEGLIGIBLE), near, root * 0.5 * root)
    return scalar.where(scalar.less(x, 0.0), -found, found)


def _cosh(x):
    root = scalar.exp(scalar.absolute(x) * 0.5)
    return root * 0.5 * root + 0.5 / (root * root)


@converter("Sinh")
def sinh(node, x):
    return ops.compute(_sinh, x, label="sinh")[0]


@converter("Cosh")
def cosh(node, x):
    return ops.compute(_cosh, x, label="cosh")[0]
