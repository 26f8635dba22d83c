"""The named elementwise formulas: activations, arithmetic, merges. Each is one expression; its gradient follows.

Conventions. At a kink relu'(0) = abs'(0) = relu6'(6) = 0, leaky_relu'(0) = alpha, elu'(0) = alpha; clip passes the
gradient at its bounds; maximum and minimum share a tie equally. NaN goes through every formula; where the gradient at
NaN is a choice between branches it may be dy itself. At infinities the limit is taken where x * gate(x) would give
inf * 0 (`gated`), in values and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from tapeprop.ops.expression import (
    Scalar,
    absolute,
    constant,
    cos,
    derivative,
    equal,
    erf,
    exp,
    expm1,
    fma,
    input_scalar,
    inputs,
    inputs_of,
    log,
    log1p,
    maximum,
    minimum,
    power,
    sigmoid,
    sin,
    sqrt,
    substitute,
    tan,
    tanh,
    where,
)
from tapeprop.ops.scalar.node import COMPARISONS

__all__ = ["FORMULAS", "Formula"]

Kinks = Callable[..., np.ndarray]
Span = tuple[float, float]


@dataclass(frozen=True)
class Formula:
    """A named elementwise function.

    name: of the op. doc: one line with its source. function: (*scalars, **attributes) -> Scalar. arity: number of
    operands, None for any number from one up.
    attributes: names and defaults. domain: (lowest, highest) test sample, for all operands or one for each.
    kinks: (*arrays, distance, **attributes) -> bool array, where a sample is nearer than that to a point without a
    derivative; None: the formula is smooth. onnx: the operator it is, if there is one.
    partials: (*scalars, dy, **attributes) -> dy times each partial derivative, where that is better than forward mode.
    output_gradient: (dy, y, **attributes) -> dy times the derivative in terms of the output, None where the attributes
    do not allow it; found automatically where the output stands in the derivative (`from_output`).
    """

    name: str
    doc: str
    function: Callable[..., Scalar]
    arity: int | None = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: Span | Sequence[Span] = (-6.0, 6.0)
    kinks: Kinks | None = None
    onnx: str | None = None
    partials: Callable[..., Sequence[Scalar | float]] | None = None
    output_gradient: Callable[..., Scalar | None] | None = None

    def complete(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes with defaults filled in. TypeError for one the formula does not have."""
        unknown = sorted(set(attributes) - set(self.attributes))
        if unknown:
            known = ", ".join(self.attributes) or "none"
            raise TypeError(f"{self.name} has no attribute {', '.join(unknown)}; it has {known}")
        return {**self.attributes, **attributes}

    def operands(self, count: int | None = None) -> int:
        """The number of operands, given that of a call. TypeError where they do not fit."""
        if count is None:
            count = self.arity if self.arity is not None else 2
        if count != self.arity if self.arity is not None else count < 1:
            wanted = self.arity if self.arity is not None else "at least one"
            raise TypeError(f"{self.name} takes {wanted} operand(s), got {count}")
        return count

    def expression(self, count: int | None = None, **attributes: Any) -> Scalar:
        """The value in terms of inputs 0 to count - 1."""
        return self.function(*inputs(self.operands(count)), **self.complete(attributes))

    def vjp(self, index: int, count: int | None = None, **attributes: Any) -> Scalar:
        """dy times the derivative by operand `index`; the operands are inputs 0 to count - 1, dy is input `count`.

        The constant 0 where the operand has no influence.
        """
        count, attributes = self.operands(count), self.complete(attributes)
        *xs, dy = inputs(count + 1)
        if self.partials is not None:
            result = self.partials(*xs, dy, **attributes)[index]
            return result if isinstance(result, Scalar) else constant(result)
        return derivative(self.function(*xs, **attributes), index, dy)

    def from_output(self, **attributes: Any) -> Scalar | None:
        """dy times the derivative in terms of dy, input 0, and the output y, input 1: x need not be kept for backward.

        None where that is not possible.
        """
        if self.arity != 1:
            return None
        attributes = self.complete(attributes)
        if self.output_gradient is not None:
            return self.output_gradient(*inputs(2), **attributes)
        # Inputs of the gradient: x 0, dy 1. The output becomes 2 and must leave no x behind.
        gradient = substitute(self.vjp(0, **attributes), {self.expression(**attributes): input_scalar(2)})
        if 0 in inputs_of([gradient]):
            return None
        return substitute(gradient, {1: input_scalar(0), 2: input_scalar(1)})


# ---- helpers


def near(*points: float) -> Kinks:
    """Kinks of a function of one operand at fixed points."""

    def mask(x: np.ndarray, *, distance: float, **attributes: Any) -> np.ndarray:
        return np.any([np.zeros(x.shape, bool), *(np.abs(x - point) < distance for point in points)], axis=0)

    return mask


def near_tie(*arrays: np.ndarray, distance: float, **attributes: Any) -> np.ndarray:
    """Kinks where two operands are equal."""
    result = np.zeros(np.broadcast_shapes(*(a.shape for a in arrays)), bool)
    for i, a in enumerate(arrays):
        for b in arrays[:i]:
            result |= np.abs(a - b) < distance
    return result


def near_bound(x: np.ndarray, *, distance: float, low: float | None, high: float | None) -> np.ndarray:
    """Kinks of clip."""
    return near(*(bound for bound in (low, high) if bound is not None))(x, distance=distance)


def gated(x: Scalar, gate: Callable[[Scalar], Scalar], low: float, high: float) -> Scalar:
    """x * gate(x) for a gate that is 0 below `low` and 1 above `high`, in float64 too.

    Held within those bounds, neither the value at -inf nor the derivative at +inf is inf * 0.
    """
    held = where(x <= low, low, x)
    return where(x > high, x, held * gate(held))


# ---- activations

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848, 1.0507009873554804934  # Klambauer et al. 2017, appendix A.2


def relu(x: Scalar) -> Scalar:
    return where(x <= 0, 0.0, x)


def relu6(x: Scalar) -> Scalar:
    return where(x <= 0, 0.0, where(x >= 6, 6.0, x))


def leaky_relu(x: Scalar, alpha: float) -> Scalar:
    return where(x <= 0, x * alpha, x)


def elu(x: Scalar, alpha: float) -> Scalar:
    return where(x <= 0, expm1(x) * alpha, x)


def selu(x: Scalar) -> Scalar:
    return where(x <= 0, expm1(x) * (SELU_ALPHA * SELU_SCALE), x * SELU_SCALE)


def softplus(x: Scalar) -> Scalar:
    return maximum(x, 0.0) + log1p(exp(-absolute(x)))


def swish(x: Scalar) -> Scalar:
    return gated(x, sigmoid, -1000, 1000)


def hard_swish(x: Scalar) -> Scalar:
    return gated(x, lambda t: (t + 3) * (1 / 6), -3, 3)


def gelu(x: Scalar, approximate: bool) -> Scalar:
    if approximate:
        root = math.sqrt(2 / math.pi)
        return gated(x, lambda t: 0.5 * (tanh(t * fma(t * t, 0.044715 * root, root)) + 1), -40, 40)
    return gated(x, lambda t: 0.5 * (erf(t * math.sqrt(0.5)) + 1), -40, 40)


def mish_gate(x: Scalar) -> Scalar:
    """tanh(log(1 + e^x)) = n / (n + 2) with n = e (e + 2), e = e^x: one exponential instead of three functions."""
    e = exp(x)
    n = e * (e + 2)
    return n / (n + 2)


def mish(x: Scalar) -> Scalar:
    return gated(x, mish_gate, -1000, 20)


def sign(x: Scalar) -> Scalar:
    return where(x > 0, 1.0, where(x < 0, -1.0, x))


# ---- arithmetic


def clip(x: Scalar, low: float | None, high: float | None) -> Scalar:
    if low is not None:
        x = where(x < low, low, x)
    return x if high is None else where(x > high, high, x)


def select(condition: Scalar, a: Scalar, b: Scalar) -> Scalar:
    if isinstance(condition, Scalar) and condition.op in COMPARISONS:  # x < y of scalars; that of tensors is 1 or 0
        return where(condition, a, b)
    return where(equal(condition, 0.0), b, a)


# ---- merges of any number of operands


def sum_of(*xs: Scalar) -> Scalar:
    return reduce(lambda a, b: a + b, xs)


def mean_of(*xs: Scalar) -> Scalar:
    return sum_of(*xs) / len(xs)


def product_of(*xs: Scalar) -> Scalar:
    return reduce(lambda a, b: a * b, xs)


def difference(first: Scalar, *rest: Scalar) -> Scalar:
    return reduce(lambda a, b: a - b, rest, first)


def largest(*xs: Scalar) -> Scalar:
    return reduce(maximum, xs)


def smallest(*xs: Scalar) -> Scalar:
    return reduce(minimum, xs)


def shared(extremum: Callable[..., Scalar]) -> Callable[..., list[Scalar]]:
    """dy [x_i == y] / (number of operands equal to y); 0 / 0 = NaN for all where y is NaN."""

    def partials(*operands: Scalar) -> list[Scalar]:
        *xs, dy = operands
        if len(xs) == 1:
            return [dy]
        y = extremum(*xs)
        chosen = [equal(x, y) for x in xs]
        ties = sum_of(*(where(c, 1.0, 0.0) for c in chosen))
        return [where(c, dy, 0.0) / ties for c in chosen]

    return partials


FORMULAS: dict[str, Formula] = {}


def define(name: str, doc: str, function: Callable[..., Scalar], **rest: Any) -> None:
    """Enters a formula into the table."""
    if name in FORMULAS:
        raise ValueError(f"formula {name!r} is defined twice")
    FORMULAS[name] = Formula(name, doc, function, **rest)


POSITIVE = (0.1, 4.0)
NONZERO = (0.3, 3.0)

define("add", "a + b", lambda a, b: a + b, arity=2, onnx="Add")
define("subtract", "a - b", lambda a, b: a - b, arity=2, onnx="Sub")
define("multiply", "a b", lambda a, b: a * b, arity=2, onnx="Mul")
define("divide", "a / b", lambda a, b: a / b, arity=2, onnx="Div", domain=((-6.0, 6.0), NONZERO))
define("power", "a^b with C's special values", power, arity=2, onnx="Pow", domain=(POSITIVE, (-3.0, 3.0)))
define("negate", "-x", lambda x: -x, onnx="Neg")
define("reciprocal", "1 / x", lambda x: 1 / x, onnx="Reciprocal", domain=NONZERO,
       output_gradient=lambda dy, y: -(dy * y * y))  # fmt: skip
define("square", "x^2", lambda x: x * x)
define("sqrt", "the square root", sqrt, onnx="Sqrt", domain=POSITIVE)
define("exp", "e^x", exp, onnx="Exp")
define("log", "the natural logarithm", log, onnx="Log", domain=POSITIVE)
define("sin", "the sine", sin, onnx="Sin")
define("cos", "the cosine", cos, onnx="Cos")
define("tan", "the tangent", tan, onnx="Tan", domain=(-1.4, 1.4),
       partials=lambda x, dy: [dy * fma(tan(x), tan(x), 1.0)])  # fmt: skip
define("erf", "the error function", erf, onnx="Erf")
define("abs", "|x|, with the derivative 0 at 0", absolute, onnx="Abs", kinks=near(0.0))
define("sign", "-1, 0 or 1", sign, onnx="Sign", kinks=near(0.0), partials=lambda x, dy: [0.0])
define("clip", "x held within [low, high]; None: no bound", clip, attributes={"low": None, "high": None}, onnx="Clip",
       kinks=near_bound)  # fmt: skip
define("select", "a where condition != 0 (NaN is not 0), else b", select, arity=3, onnx="Where",
       kinks=lambda c, a, b, *, distance: np.abs(c) < distance)  # fmt: skip

define("maximum", "the largest operand", largest, arity=None, onnx="Max", kinks=near_tie, partials=shared(largest))
define("minimum", "the smallest operand", smallest, arity=None, onnx="Min", kinks=near_tie, partials=shared(smallest))
define("sum_of", "the operands added from left to right", sum_of, arity=None, onnx="Sum")
define("mean_of", "their sum divided by their number", mean_of, arity=None, onnx="Mean")
define("product_of", "the operands multiplied from left to right", product_of, arity=None)
define("difference", "the first operand minus each of the rest", difference, arity=None)

define("relu", "max(x, 0) (Nair and Hinton 2010)", relu, onnx="Relu", kinks=near(0.0),
       output_gradient=lambda dy, y: where(y <= 0, 0.0, dy))  # fmt: skip
define("relu6", "min(max(x, 0), 6) (Krizhevsky 2010)", relu6, kinks=near(0.0, 6.0), domain=(-4.0, 8.0),
       output_gradient=lambda dy, y: where(y <= 0, 0.0, where(y >= 6, 0.0, dy)))  # fmt: skip
define("leaky_relu", "x, or alpha x below 0 (Maas et al. 2013)", leaky_relu, attributes={"alpha": 0.01},
       onnx="LeakyRelu", kinks=near(0.0),
       output_gradient=lambda dy, y, alpha: where(y <= 0, dy * alpha, dy) if alpha >= 0 else None)  # fmt: skip
define("elu", "x, or alpha (e^x - 1) below 0 (Clevert et al. 2016)", elu, attributes={"alpha": 1.0}, onnx="Elu",
       kinks=near(0.0),
       output_gradient=lambda dy, y, alpha: where(y <= 0, dy * (y + alpha), dy) if alpha >= 0 else None)  # fmt: skip
define("selu", "the self-normalising scaled ELU (Klambauer et al. 2017)", selu, onnx="Selu", kinks=near(0.0),
       output_gradient=lambda dy, y: where(y <= 0, dy * (y + SELU_ALPHA * SELU_SCALE), dy * SELU_SCALE))  # fmt: skip
define("sigmoid", "1 / (1 + e^-x)", sigmoid, onnx="Sigmoid")
define("tanh", "the hyperbolic tangent", tanh, onnx="Tanh")
define("softplus", "log(1 + e^x) (Dugas et al. 2001)", softplus, onnx="Softplus",
       partials=lambda x, dy: [dy * sigmoid(x)])  # fmt: skip
define("swish", "x sigmoid(x), also called SiLU (Elfwing et al. 2018; Ramachandran et al. 2017)", swish)
define("hard_swish", "x relu6(x + 3) / 6 (Howard et al. 2019)", hard_swish, onnx="HardSwish", kinks=near(-3.0, 3.0))
define("gelu", "x Phi(x), or its tanh approximation (Hendrycks and Gimpel 2016)", gelu,
       attributes={"approximate": False}, onnx="Gelu")  # fmt: skip
define("mish", "x tanh(softplus(x)) (Misra 2019)", mish, onnx="Mish")
