"""Comparisons, truth values and choices. Truth values are numbers, 0 and 1, of the floating dtype of what was compared."""

from __future__ import annotations

import math
from typing import Any

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.interchange.onnx.converters.support import FLOATS, as_mask
from tapeprop.ops import scalar

_COMPARISONS = {
    "Equal": ops.equal,
    "Greater": ops.greater,
    "GreaterOrEqual": ops.greater_equal,
    "Less": ops.less,
    "LessOrEqual": ops.less_equal,
}
for _name, _op in _COMPARISONS.items():
    converter(_name)(lambda node, x, y, *, op=_op: op(x, y))


def _decided(if_false, if_true):
    """A connective from what it gives for a false and a true left side: each "false", "true", "right" or "not right"."""

    def formula(a, b):
        right = scalar.where(scalar.equal(b, 0.0), 0.0, 1.0)
        given: dict[str, Any] = {"false": 0.0, "true": 1.0, "right": right, "not right": 1 - right}
        return scalar.where(scalar.equal(a, 0.0), given[if_false], given[if_true])

    return formula


_CONNECTIVES = {
    "And": _decided("false", "right"),
    "Or": _decided("right", "true"),
    "Xor": _decided("right", "not right"),
}


def _one_dtype(a, b):
    """Two truth values of one floating dtype: bytes that were fed take that of the other."""
    dtype = next((x.dtype for x in (a, b) if x.dtype in FLOATS), "float32")
    return as_mask(a, dtype), as_mask(b, dtype)


def _connective(name, formula):
    converter(name)(lambda node, a, b: ops.compute(formula, *_one_dtype(a, b), label=name.lower())[0])


for _name, _formula in _CONNECTIVES.items():
    _connective(_name, _formula)


@converter("Not")
def negation(node, x):
    return ops.equal(as_mask(x), 0.0)


@converter("Where")
def where(node, condition, x, y):
    dtype = next((branch.dtype for branch in (x, y) if branch.dtype in FLOATS), None)
    if dtype is None:
        raise node.fail("floating branches", f"{x.dtype} and {y.dtype}", "cast them")
    if condition.dtype in FLOATS and condition.dtype != dtype:
        condition = ops.cast(condition, dtype)
    return ops.select(as_mask(condition, dtype), x, y)


@converter("IsNaN")
def is_nan(node, x):
    return ops.compute(lambda x: scalar.where(scalar.equal(x, x), 0.0, 1.0), x, label="is_nan")[0]


@converter("IsInf")
def is_inf(node, x):
    low, high = node.get("detect_negative", 1), node.get("detect_positive", 1)

    def formula(x):
        found = scalar.where(scalar.equal(x, math.inf), float(bool(high)), 0.0)
        return scalar.where(scalar.equal(x, -math.inf), float(bool(low)), found)

    return ops.compute(formula, x, label="is_inf")[0]
