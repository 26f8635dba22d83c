"""Elementwise formulas: those of the table as their operators, any other primitive by primitive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapeprop.interchange.onnx.writers.builder import Builder
from tapeprop.interchange.onnx.writers.registry import writer
from tapeprop.interchange.onnx.writers.steps import Step
from tapeprop.ir import Tensor
from tapeprop.ir.dims import broadcast
from tapeprop.ops.expression import Scalar, inputs_of, ordered

__all__ = ["NAMED", "PRIMITIVES"]

#: A formula's operands by name, with its attributes; None where these have no operator.
Named = Callable[..., str | None]


@writer("elementwise")
def elementwise(b: Builder, step: Step, *names: str) -> tuple[str, ...]:
    """The results of a formula, each of the shape to which the operands broadcast."""
    operands = tuple(_of_dtype(b, step, i, name) for i, name in enumerate(names))
    named = _by_name(b, step, operands)
    if named is not None:
        return (named,)
    roots = step["expressions"]
    values = _by_primitives(b, roots, operands, step["dtype"])
    shape = step.results[0].shape
    return tuple(
        b.expand(value, _shape_of(step.operands, root), shape) for value, root in zip(values, roots, strict=True)
    )


def _of_dtype(b: Builder, step: Step, index: int, name: str) -> str:
    """An operand in the dtype of the arithmetic: a hyper-parameter may be float64 beside float32."""
    return name if step.operands[index].dtype == step["dtype"] else b.cast(name, step["dtype"])


def _shape_of(operands: Sequence[Tensor], root: Scalar) -> tuple[Any, ...]:
    shapes = [operands[i].shape for i in inputs_of([root])]
    return broadcast(*shapes) if shapes else ()


def _by_name(b: Builder, step: Step, operands: Sequence[str]) -> str | None:
    formula = step["formula"]
    if formula is None or formula[0] not in NAMED:
        return None
    name, settings, slots = formula
    shapes = [step.operands[slot].shape for slot in slots if isinstance(slot, int)]
    if broadcast(*shapes) != step.results[0].shape:
        return None
    given = [operands[slot] if isinstance(slot, int) else b.number(slot, step["dtype"]) for slot in slots]
    return NAMED[name](b, *given, **dict(settings))


# ---- formulas of the table


def _plain(op: str) -> Callable[..., str]:
    return lambda b, *operands: b.node(op, operands)


def _chain(op: str) -> Named:
    """One after another, from left to right."""

    def written(b: Builder, first: str, *rest: str) -> str:
        for operand in rest:
            first = b.node(op, [first, operand])
        return first

    return written


def _leaky_relu(b: Builder, x: str, alpha: float) -> str | None:
    return b.node("LeakyRelu", [x], alpha=alpha) if b.exact(alpha) else None


def _elu(b: Builder, x: str, alpha: float) -> str | None:
    return b.node("Elu", [x], alpha=alpha) if b.exact(alpha) else None


def _selu(b: Builder, x: str) -> str | None:
    from tapeprop.ops.formulas import SELU_ALPHA, SELU_SCALE

    if not b.exact(SELU_ALPHA):
        return None
    return b.node("Selu", [x], alpha=SELU_ALPHA, gamma=SELU_SCALE)


def _gelu(b: Builder, x: str, approximate: bool) -> str | None:
    if b.opset < 20 or b.dtype == "float64":  # its body has the root of 2 as a float32
        return None
    return b.node("Gelu", [x], approximate="tanh" if approximate else "none")


def _hard_swish(b: Builder, x: str) -> str | None:
    return b.node("HardSwish", [x]) if b.exact(1 / 6) else None  # its body has 1 / 6 as a float32


def _mish(b: Builder, x: str) -> str | None:
    return b.node("Mish", [x]) if b.opset >= 18 else None


def _swish(b: Builder, x: str) -> str:
    return b.node("Mul", [x, b.node("Sigmoid", [x])])


def _clip(b: Builder, x: str, low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return x
    return b.node("Clip", [x, *("" if bound is None else b.number(bound) for bound in (low, high))])


def _select(b: Builder, condition: str, x: str, y: str) -> str:
    return b.node("Where", [b.node("Equal", [condition, b.number(0.0)]), y, x])


def _merged(two: str, many: str) -> Named:
    """The operator of two operands where there are two: it is the one that other programs know best."""
    return lambda b, *operands: b.node(two if len(operands) == 2 else many, operands)


def _mean_of(b: Builder, *operands: str) -> str | None:
    """Not as Mean, which ONNX' own evaluator does not broadcast."""
    return b.node("Div", [b.node("Sum", operands), b.number(float(len(operands)))])


#: {formula of `ops.formulas`: how it is written}; every one of the table stands here.
NAMED: dict[str, Named] = {
    "add": _plain("Add"),
    "subtract": _plain("Sub"),
    "multiply": _plain("Mul"),
    "divide": _plain("Div"),
    "power": _plain("Pow"),
    "negate": _plain("Neg"),
    "reciprocal": _plain("Reciprocal"),
    "square": lambda b, x: b.node("Mul", [x, x]),
    "sqrt": _plain("Sqrt"),
    "exp": _plain("Exp"),
    "log": _plain("Log"),
    "sin": _plain("Sin"),
    "cos": _plain("Cos"),
    "tan": _plain("Tan"),
    "erf": _plain("Erf"),
    "abs": _plain("Abs"),
    "sign": _plain("Sign"),
    "clip": _clip,
    "select": _select,
    "maximum": _plain("Max"),
    "minimum": _plain("Min"),
    "sum_of": _merged("Add", "Sum"),
    "mean_of": _mean_of,
    "product_of": _chain("Mul"),
    "difference": _chain("Sub"),
    "relu": _plain("Relu"),
    "relu6": lambda b, x: _clip(b, x, 0.0, 6.0),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "selu": _selu,
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "softplus": _plain("Softplus"),
    "swish": _swish,
    "hard_swish": _hard_swish,
    "gelu": _gelu,
    "mish": _mish,
}


# ---- primitives


def _fma(b: Builder, x: str, y: str, z: str) -> str:
    return b.node("Add", [b.node("Mul", [x, y]), z])


def _expm1(b: Builder, x: str) -> str:
    """tanh(x / 2) (e^x + 1): accurate near 0, -1 and inf at the ends."""
    half = b.node("Tanh", [b.node("Mul", [x, b.number(0.5)])])
    return b.node("Mul", [half, b.node("Add", [b.node("Exp", [x]), b.number(1.0)])])


def _log1p(b: Builder, x: str) -> str:
    """log(u) x / (u - 1) with u = 1 + x as it rounds (Goldberg 1991, theorem 4): accurate near 0; log(u) where u - 1 is x."""
    u = b.node("Add", [x, b.number(1.0)])
    back, log = b.node("Sub", [u, b.number(1.0)]), b.node("Log", [u])
    corrected = b.node("Mul", [log, b.node("Div", [x, back])])
    exact = b.node("Where", [b.node("Equal", [back, x]), log, corrected])
    return b.node("Where", [b.node("Equal", [u, b.number(1.0)]), x, exact])


#: {primitive of `ops.primitives`: how it is written}.
PRIMITIVES: dict[str, Callable[..., str]] = {
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "mul": _plain("Mul"),
    "div": _plain("Div"),
    "fma": _fma,
    "neg": _plain("Neg"),
    "abs": _plain("Abs"),
    "maximum": _plain("Max"),
    "minimum": _plain("Min"),
    "floor": _plain("Floor"),
    "less": _plain("Less"),
    "less_equal": _plain("LessOrEqual"),
    "equal": _plain("Equal"),
    "select": _plain("Where"),
    "sqrt": _plain("Sqrt"),
    "exp": _plain("Exp"),
    "expm1": _expm1,
    "log": _plain("Log"),
    "log1p": _log1p,
    "pow": _plain("Pow"),
    "tanh": _plain("Tanh"),
    "sigmoid": _plain("Sigmoid"),
    "erf": _plain("Erf"),
    "sin": _plain("Sin"),
    "cos": _plain("Cos"),
}


def _by_primitives(b: Builder, roots: Sequence[Scalar], operands: Sequence[str], dtype: str) -> list[str]:
    values: dict[Scalar, str] = {}
    for node in ordered(roots):
        if node.op == "input":
            values[node] = operands[int(node.value or 0)]
        elif node.op == "const":
            values[node] = b.constant(np.asarray(node.value, dtype))
        elif _is_truth(node):
            values[node] = b.cast(values[node.args[0]], dtype)
        else:
            values[node] = PRIMITIVES[node.op](b, *(values[a] for a in node.args))
    return [values[root] for root in roots]


def _is_truth(node: Scalar) -> bool:
    """Whether a node is 1 where a condition holds, else 0."""
    return node.op == "select" and [(a.op, a.value) for a in node.args[1:]] == [("const", 1.0), ("const", 0.0)]
