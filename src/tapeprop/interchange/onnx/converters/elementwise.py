"""Operators that work element by element."""

from __future__ import annotations

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter

_SAME = {
    "Abs": ops.abs,
    "Add": ops.add,
    "Cos": ops.cos,
    "Div": ops.divide,
    "Erf": ops.erf,
    "Exp": ops.exp,
    "HardSwish": ops.hard_swish,
    "Log": ops.log,
    "Mish": ops.mish,
    "Mul": ops.multiply,
    "Neg": ops.negate,
    "Pow": ops.power,
    "Reciprocal": ops.reciprocal,
    "Relu": ops.relu,
    "Sigmoid": ops.sigmoid,
    "Sin": ops.sin,
    "Softplus": ops.softplus,
    "Sqrt": ops.sqrt,
    "Sub": ops.subtract,
    "Tan": ops.tan,
    "Tanh": ops.tanh,
}
for _name, _op in _SAME.items():
    converter(_name)(lambda node, *operands, op=_op: op(*operands))


@converter("LeakyRelu")
def leaky_relu(node, x):
    return ops.leaky_relu(x, alpha=node.get("alpha", 0.01))


@converter("Identity")
def identity(node, x):
    return x
