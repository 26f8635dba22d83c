"""Symbolic scalars: an immutable, hash-consed expression graph over a few primitives.

A formula is a Python function of `Scalar`s. Equal nodes are one object, so a subexpression that occurs twice is
computed once, and `is` compares expressions. Only rewrites that keep every bit for every IEEE operand, NaN, infinities
and -0 included, are made (`node` lists them): x + 0 stays, since -0 + 0 is 0; x * 0 stays, since inf * 0 is NaN.
The exceptions: constants are folded in float64, and small constant powers become products.

What the primitives mean in each target stands in `ops.primitives`; derivative and printers in `ops.expression`.
"""

from tapeprop.ops.scalar.functions import (
    absolute,
    cos,
    equal,
    erf,
    exp,
    expm1,
    floor,
    fma,
    less,
    less_equal,
    log,
    log1p,
    maximum,
    minimum,
    power,
    sigmoid,
    sin,
    sqrt,
    tan,
    tanh,
    where,
)
from tapeprop.ops.scalar.node import Scalar, constant, input_scalar, inputs, make
from tapeprop.ops.scalar.walk import decode, encode, inputs_of, ordered, substitute

__all__ = [
    "Scalar",
    "absolute",
    "constant",
    "cos",
    "decode",
    "encode",
    "equal",
    "erf",
    "exp",
    "expm1",
    "floor",
    "fma",
    "input_scalar",
    "inputs",
    "inputs_of",
    "less",
    "less_equal",
    "log",
    "log1p",
    "make",
    "maximum",
    "minimum",
    "ordered",
    "power",
    "sigmoid",
    "sin",
    "sqrt",
    "substitute",
    "tan",
    "tanh",
    "where",
]
