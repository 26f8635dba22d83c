"""Activations, and softmax."""

from __future__ import annotations

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.interchange.onnx.converters.support import axis_of
from tapeprop.ops import scalar

_SAME = {
    "HardSwish": ops.hard_swish,
    "Mish": ops.mish,
    "Relu": ops.relu,
    "Sigmoid": ops.sigmoid,
    "Softplus": ops.softplus,
}
for _name, _op in _SAME.items():
    converter(_name)(lambda node, x, *, op=_op: op(x))

_SELU = (1.67326319217681884765625, 1.05070102214813232421875)  # alpha, gamma: the defaults, in float32


@converter("LeakyRelu")
def leaky_relu(node, x):
    return ops.leaky_relu(x, alpha=node.get("alpha", 0.01))


@converter("PRelu")
def prelu(node, x, slope):
    """The slope broadcasts to x; one for each channel (C,), as before version 7, where it would not, stands along axis 1."""
    channels = x.ndim > 2 and slope.ndim == 1 and slope.shape == x.shape[1:2]
    if channels and slope.shape != x.shape[-1:]:
        slope = ops.reshape(slope, (*slope.shape, *[1] * (x.ndim - 2)))
    return ops.compute(lambda x, s: scalar.where(scalar.less(x, 0.0), s * x, x), x, slope, label="prelu")[0]


@converter("ThresholdedRelu")
def thresholded_relu(node, x):
    bound = float(node.get("alpha", 1.0))
    return ops.compute(lambda x: scalar.where(x > bound, x, 0.0), x, label="thresholded_relu")[0]


@converter("Shrink")
def shrink(node, x):
    bias, bound = float(node.get("bias", 0.0)), float(node.get("lambd", 0.5))

    def formula(x):
        return scalar.where(x < -bound, x + bias, scalar.where(x > bound, x - bias, 0.0))

    return ops.compute(formula, x, label="shrink")[0]


@converter("Elu")
def elu(node, x):
    return ops.elu(x, alpha=node.get("alpha", 1.0))


@converter("Celu")
def celu(node, x):
    alpha = float(node.get("alpha", 1.0))
    if alpha == 0:
        raise node.fail("an alpha other than 0", alpha)
    return ops.compute(lambda x: scalar.where(x > 0, x, alpha * scalar.expm1(x / alpha)), x, label="celu")[0]


@converter("Selu")
def selu(node, x):
    alpha, gamma = float(node.get("alpha", _SELU[0])), float(node.get("gamma", _SELU[1]))
    if (alpha, gamma) == _SELU:
        return ops.selu(x)
    return ops.compute(lambda x: gamma * scalar.where(x > 0, x, alpha * scalar.expm1(x)), x, label="selu")[0]


@converter("HardSigmoid")
def hard_sigmoid(node, x):
    alpha, beta = float(node.get("alpha", 0.2)), float(node.get("beta", 0.5))
    return ops.clip(ops.compute(lambda x: x * alpha + beta, x, label="hard_sigmoid")[0], 0.0, 1.0)


@converter("Softsign")
def softsign(node, x):
    return ops.compute(lambda x: x / (scalar.absolute(x) + 1), x, label="softsign")[0]


@converter("Swish")
def swish(node, x):
    alpha = float(node.get("alpha", 1.0))
    return ops.swish(x) if alpha == 1 else ops.multiply(x, ops.sigmoid(ops.multiply(x, alpha)))


@converter("SwiGLU")
def swiglu(node, gate, value):
    if gate.shape != value.shape:
        raise node.fail(f"a value of the gate's shape {gate.shape}", value.shape)
    return ops.multiply(swish(node, gate), value)


@converter("Gelu")
def gelu(node, x):
    kind = node.get("approximate", "none")
    if kind not in ("none", "tanh"):
        raise node.fail('approximate to be "none" or "tanh"', repr(kind))
    return ops.gelu(x, approximate=kind == "tanh")


@converter("Softmax")
def softmax(node, x):
    return ops.softmax(x, axis_of(node, node.get("axis", -1), x.ndim))  # type: ignore[operator]  # the function hides the module


@converter("LogSoftmax")
def log_softmax(node, x):
    return ops.log_softmax(x, axis_of(node, node.get("axis", -1), x.ndim))
