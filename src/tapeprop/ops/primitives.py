"""What each primitive of a scalar expression means: NumPy value, numba.cuda text, derivative, cost. One row each.

The LLVM meaning is the method of the same name of `tapeprop.targets.cpu.vector_math.VectorMath`.

Derivatives are taken in forward mode. The tangent of select(c, a, b) is select(c, a', b'), so the branch not taken
cannot poison the result; reverse mode would multiply its zero adjoint by, say, exp(100) = inf and make ELU's gradient
NaN. For the same reason a structural zero is never multiplied: `through` pushes a factor into the branch that has a
tangent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeprop.ops.scalar import Scalar, cos, equal, exp, fma, log, power, sin, where
from tapeprop.ops.scalar.node import ZERO

__all__ = ["PRIMITIVES", "Primitive", "through"]

Tangent = Scalar | None  # None: structurally zero
Rule = Callable[[Scalar, tuple[Scalar, ...], list[Tangent]], Tangent]


@dataclass(frozen=True)
class Primitive:
    """The meanings of one primitive.

    numpy: arrays -> array, keeping their dtype. cuda: a format string of the arguments' names, in functions of
    `tapeprop.targets.cuda.language`. tangent: (node, its args, their tangents, not all None) -> the node's. flops: estimated.
    """

    numpy: Callable[..., Any]
    cuda: str
    tangent: Rule
    flops: int


# ---- NumPy values


def numpy_fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c computed in the next wider type and rounded; float64 has one where long double is wider."""
    kind = np.result_type(a, b, c)
    wide = np.float64 if kind == np.float32 else np.longdouble
    return (np.multiply(a, b, dtype=wide) + c).astype(kind)


def numpy_maximum(a: Any, b: Any) -> Any:
    """np.maximum does not say which of -0 and 0 it gives: here the first."""
    return np.where((a < b) | np.isnan(b), b, a)


def numpy_minimum(a: Any, b: Any) -> Any:
    return np.where((a > b) | np.isnan(b), b, a)


def numpy_sigmoid(a: Any) -> Any:
    e = np.exp(-np.abs(a))
    one = np.ones_like(e)
    return np.where(a < 0, e, one) / (one + e)


_erf = np.frompyfunc(math.erf, 1, 1)  # NumPy has none


def numpy_erf(a: Any) -> Any:
    return np.asarray(_erf(a)).astype(np.asarray(a).dtype)


# ---- derivatives


def through(tangent: Scalar, linear: Callable[[Scalar], Scalar]) -> Scalar:
    """linear(tangent), where a zero branch of a select stays zero even if the factor is infinite or NaN.

    d sqrt(relu(x)) at x = -1 is select(x <= 0, 0, 1) / (2 sqrt(0)): multiplied out, 0 / 0; pushed inside, 0.
    """
    path: list[tuple[Scalar, bool]] = []
    while tangent.op == "select" and len(path) < 8:  # deeper nests would make the rewrite quadratic
        condition, a, b = tangent.args
        if ZERO is not a and ZERO is not b:
            break
        path.append((condition, a is ZERO))
        tangent = b if a is ZERO else a
    result = linear(tangent)
    for condition, zero_first in reversed(path):
        result = where(condition, 0.0, result) if zero_first else where(condition, result, 0.0)
    return result


def total(parts: Sequence[Tangent]) -> Tangent:
    """The sum of the tangents that are there."""
    known = [part for part in parts if part is not None]
    result = known[0] if known else None
    for part in known[1:]:
        assert result is not None
        result = result + part
    return result


def times(*slopes: Callable[..., Any]) -> Rule:
    """The rule of a function whose partial derivatives are slopes[k](y, *args)."""

    def part(slope: Callable[..., Any], tangent: Tangent, y: Scalar, args: tuple[Scalar, ...]) -> Tangent:
        return None if tangent is None else through(tangent, lambda t: t * slope(y, *args))

    def rule(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
        return total([part(slope, t, y, args) for slope, t in zip(slopes, tangents, strict=True)])

    return rule


def of_add(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
    return total(tangents)


def of_sub(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
    a, b = tangents
    if b is None:
        return a
    return through(b, lambda t: -t) if a is None else a - b


def of_fma(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
    product = times(lambda y, a, b: b, lambda y, a, b: a)(y, args[:2], tangents[:2])
    return total([product, tangents[2]])


def of_neg(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
    assert tangents[0] is not None
    return through(tangents[0], lambda t: -t)


def of_div(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
    """a'/b - y b'/b, dividing the tangent: 1/b may overflow where a'/b does not."""
    (_, b), (ta, tb) = args, tangents
    first = None if ta is None else through(ta, lambda t: t / b)
    second = None if tb is None else through(tb, lambda t: t * (y / b))
    return of_sub(y, args, [first, second])


def of_abs(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
    """abs'(0) = 0; NaN stays NaN, since the last branch, taken by 0 and NaN, is x * 0."""
    (x,) = args
    sign = where(x > 0, 1.0, where(x < 0, -1.0, x * 0.0))
    assert tangents[0] is not None
    return through(tangents[0], lambda t: t * sign)


def of_select(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
    return where(args[0], *(ZERO if t is None else t for t in tangents[1:]))


def extremum(first: Callable[[Scalar, Scalar], Scalar]) -> Rule:
    """The tangent of the operand that `first` says is chosen; half the sum of both at a tie, or where one is NaN."""

    def rule(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
        a, b = args
        ta, tb = (ZERO if t is None else t for t in tangents)
        shared = total(tangents)
        assert shared is not None
        shared = through(shared, lambda t: t * 0.5)
        return where(first(a, b), ta, where(first(b, a), tb, shared))

    return rule


def of_pow(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
    """b a^(b-1) a' + a^b log(a) b', zero where a factor is: 0 * inf at a = 0, b = 0 and at a^b = 0."""
    (a, b), (ta, tb) = args, tangents
    first = second = None
    if ta is not None:
        first = through(ta, lambda t: t * (b * power(a, b - 1)))
        if b.op != "const":
            first = where(equal(b, 0.0), 0.0, first)
    if tb is not None:
        slope = through(tb, lambda t: t * (y * log(a)))
        # As in torch: the jump of 0^b at b = 0 has the derivative 0.
        second = where(equal(y, 0.0), 0.0, where(equal(a, 0.0), where(b < 0, slope, 0.0), slope))
    return total([first, second])


def divided_by(divisor: Callable[[Scalar, Scalar], Scalar]) -> Rule:
    """The rule of a function of one argument whose derivative is 1 / divisor(y, x)."""

    def rule(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
        assert tangents[0] is not None
        return through(tangents[0], lambda t: t / divisor(y, args[0]))

    return rule


def no_tangent(y: Scalar, args: tuple[Scalar, ...], tangents: list[Tangent]) -> Tangent:
    return None


TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)


PRIMITIVES: dict[str, Primitive] = {
    "add": Primitive(np.add, "{0} + {1}", of_add, 1),
    "sub": Primitive(np.subtract, "{0} - {1}", of_sub, 1),
    "mul": Primitive(np.multiply, "product({0}, {1})", times(lambda y, a, b: b, lambda y, a, b: a), 1),
    "div": Primitive(np.divide, "{0} / {1}", of_div, 1),
    "fma": Primitive(numpy_fma, "fma({0}, {1}, {2})", of_fma, 2),
    "neg": Primitive(np.negative, "-{0}", of_neg, 1),
    "abs": Primitive(np.abs, "abs({0})", of_abs, 1),
    "maximum": Primitive(numpy_maximum, "larger({0}, {1})", extremum(lambda a, b: b < a), 1),
    "minimum": Primitive(numpy_minimum, "smaller({0}, {1})", extremum(lambda a, b: a < b), 1),
    "floor": Primitive(np.floor, "floor({0})", no_tangent, 1),
    "less": Primitive(np.less, "{0} < {1}", no_tangent, 1),
    "less_equal": Primitive(np.less_equal, "{0} <= {1}", no_tangent, 1),
    "equal": Primitive(np.equal, "{0} == {1}", no_tangent, 1),
    "select": Primitive(np.where, "cuda.selp({0}, {1}, {2})", of_select, 1),
    "sqrt": Primitive(np.sqrt, "sqrt({0})", divided_by(lambda y, a: y + y), 1),
    "exp": Primitive(np.exp, "exp({0})", times(lambda y, a: y), 18),
    "expm1": Primitive(np.expm1, "expm1({0})", times(lambda y, a: exp(a)), 20),
    "log": Primitive(np.log, "log({0})", divided_by(lambda y, a: a), 20),
    "log1p": Primitive(np.log1p, "log1p({0})", divided_by(lambda y, a: a + 1), 28),
    "pow": Primitive(np.power, "power({0}, {1})", of_pow, 60),
    "tanh": Primitive(np.tanh, "tanh({0})", times(lambda y, a: fma(-y, y, 1.0)), 32),
    "sigmoid": Primitive(numpy_sigmoid, "sigmoid({0})", times(lambda y, a: y * (1 - y)), 32),
    "erf": Primitive(numpy_erf, "erf({0})", times(lambda y, a: TWO_OVER_ROOT_PI * exp(-(a * a))), 45),
    "sin": Primitive(np.sin, "sin({0})", times(lambda y, a: cos(a)), 22),
    "cos": Primitive(np.cos, "cos({0})", times(lambda y, a: -sin(a)), 22),
}
