"""The vocabulary of formulas: each primitive as a function of Scalars and numbers."""

from __future__ import annotations

from tapeprop.ops.scalar.node import Number, Scalar, make

Operand = Scalar | Number


def fma(a: Operand, b: Operand, c: Operand) -> Scalar:
    """a * b + c, rounded once."""
    return make("fma", a, b, c)


def absolute(x: Operand) -> Scalar:
    """|x|."""
    return make("abs", x)


def maximum(a: Operand, b: Operand) -> Scalar:
    """The larger one; NaN where one is NaN; of equal ones the first."""
    return make("maximum", a, b)


def minimum(a: Operand, b: Operand) -> Scalar:
    """The smaller one; NaN where one is NaN; of equal ones the first."""
    return make("minimum", a, b)


def less(a: Operand, b: Operand) -> Scalar:
    """The condition a < b; false where one is NaN."""
    return make("less", a, b)


def less_equal(a: Operand, b: Operand) -> Scalar:
    """The condition a <= b; false where one is NaN."""
    return make("less_equal", a, b)


def equal(a: Operand, b: Operand) -> Scalar:
    """The condition a == b; false where one is NaN. (The operator == compares objects.)"""
    return make("equal", a, b)


def where(condition: Scalar, a: Operand, b: Operand) -> Scalar:
    """a where the condition holds, else b. Both are computed."""
    return make("select", condition, a, b)


def floor(x: Operand) -> Scalar:
    """The largest integer <= x; its derivative is 0."""
    return make("floor", x)


def sqrt(x: Operand) -> Scalar:
    """The square root; NaN below -0."""
    return make("sqrt", x)


def exp(x: Operand) -> Scalar:
    """e^x."""
    return make("exp", x)


def expm1(x: Operand) -> Scalar:
    """e^x - 1, accurate near 0."""
    return make("expm1", x)


def log(x: Operand) -> Scalar:
    """The natural logarithm."""
    return make("log", x)


def log1p(x: Operand) -> Scalar:
    """log(1 + x), accurate near 0."""
    return make("log1p", x)


def tanh(x: Operand) -> Scalar:
    """The hyperbolic tangent."""
    return make("tanh", x)


def sigmoid(x: Operand) -> Scalar:
    """1 / (1 + e^-x), its negative tail kept down to denormals."""
    return make("sigmoid", x)


def erf(x: Operand) -> Scalar:
    """The error function."""
    return make("erf", x)


def sin(x: Operand) -> Scalar:
    """The sine of any finite x."""
    return make("sin", x)


def cos(x: Operand) -> Scalar:
    """The cosine of any finite x."""
    return make("cos", x)


def tan(x: Operand) -> Scalar:
    """sin(x) / cos(x), which share one argument reduction."""
    return sin(x) / cos(x)


def power(x: Operand, y: Operand) -> Scalar:
    """x^y with C's special values; small constant exponents become products."""
    return make("pow", x, y)
