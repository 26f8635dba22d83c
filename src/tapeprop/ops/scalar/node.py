"""The nodes of expressions, and the rewrites that keep every bit (`_simplified` lists them)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import numpy as np

Number = float | int

ARITY = {
    "add": 2, "sub": 2, "mul": 2, "div": 2, "fma": 3, "neg": 1, "abs": 1, "maximum": 2, "minimum": 2, "floor": 1,
    "less": 2, "less_equal": 2, "equal": 2, "select": 3, "sqrt": 1, "exp": 1, "expm1": 1, "log": 1, "log1p": 1,
    "tanh": 1, "sigmoid": 1, "erf": 1, "sin": 1, "cos": 1, "pow": 2,
}  # fmt: skip
COMPARISONS = frozenset({"less", "less_equal", "equal"})


class Scalar:
    """A node of an expression.

    op: "input", "const" or a primitive; args: its Scalars; value: an input's number, a constant's float, else None.
    Comparisons (<, <=, >, >=, `equal`) give conditions, which `where` takes and arithmetic refuses. The operator ==
    compares objects.
    """

    __slots__ = ("__weakref__", "args", "op", "value")
    __array_ufunc__ = None  # a NumPy number on the left leaves the operation to us

    op: str
    args: tuple[Scalar, ...]
    value: float | int | None

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"a Scalar is immutable; cannot set {name!r}")

    def __bool__(self) -> NoReturn:
        raise TypeError("the truth of a symbolic scalar is not known while tracing; choose with where(condition, a, b)")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a Scalar stands for numbers that are not there yet; use tapeprop.ops instead of NumPy")

    def __reduce__(self) -> tuple[Callable[..., Scalar], tuple[Any]]:
        from tapeprop.ops.scalar.walk import decode_one, encode

        return decode_one, (encode([self]),)  # by value, and without recursion

    def __copy__(self) -> Scalar:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Scalar:
        return self

    def __repr__(self) -> str:
        if self.op in ("input", "const"):
            return f"Scalar({self.op}, {self.value!r})"
        return f"Scalar({self.op}, {len(self.args)} args)"  # no deeper: an expression may have thousands of levels

    def __add__(self, other: Scalar | Number) -> Scalar:
        return make("add", self, other)

    def __radd__(self, other: Number) -> Scalar:
        return make("add", other, self)

    def __sub__(self, other: Scalar | Number) -> Scalar:
        return make("sub", self, other)

    def __rsub__(self, other: Number) -> Scalar:
        return make("sub", other, self)

    def __mul__(self, other: Scalar | Number) -> Scalar:
        return make("mul", self, other)

    def __rmul__(self, other: Number) -> Scalar:
        return make("mul", other, self)

    def __truediv__(self, other: Scalar | Number) -> Scalar:
        return make("div", self, other)

    def __rtruediv__(self, other: Number) -> Scalar:
        return make("div", other, self)

    def __pow__(self, other: Scalar | Number) -> Scalar:
        return make("pow", self, other)

    def __rpow__(self, other: Number) -> Scalar:
        return make("pow", other, self)

    def __neg__(self) -> Scalar:
        return make("neg", self)

    def __abs__(self) -> Scalar:
        return make("abs", self)

    def __lt__(self, other: Scalar | Number) -> Scalar:
        return make("less", self, other)

    def __gt__(self, other: Scalar | Number) -> Scalar:
        return make("less", other, self)

    def __le__(self, other: Scalar | Number) -> Scalar:
        return make("less_equal", self, other)

    def __ge__(self, other: Scalar | Number) -> Scalar:
        return make("less_equal", other, self)


# ---- making nodes

# Nodes die with their last use. Keys hold the ids of the arguments, which stay theirs while the node keeps them alive.
_nodes: WeakValueDictionary[tuple[Any, ...], Scalar] = WeakValueDictionary()
_lock = threading.RLock()  # two threads must not make two objects of one node; reentrant, as a finalizer may build one


def interned(op: str, args: tuple[Scalar, ...] = (), value: float | int | None = None) -> Scalar:
    """The one node of this op, arguments and value."""
    # hex tells -0.0 from 0.0 and makes all NaNs one; equality of floats would do neither.
    key = (op, value.hex() if isinstance(value, float) else value, *map(id, args))
    with _lock:
        node = _nodes.get(key)
        if node is None:
            node = object.__new__(Scalar)
            object.__setattr__(node, "op", op)
            object.__setattr__(node, "args", args)
            object.__setattr__(node, "value", value)
            _nodes[key] = node
    return node


def constant(value: Number) -> Scalar:
    """A constant; it is kept in float64 and rounds to the working precision where it is used."""
    return interned("const", value=float(value))


def input_scalar(number: int) -> Scalar:
    """The input of that number, counted from 0."""
    if number < 0:
        raise ValueError(f"inputs are numbered from 0, got {number}")
    return interned("input", value=int(number))


def inputs(count: int) -> list[Scalar]:
    """The inputs 0 to count - 1."""
    return [input_scalar(number) for number in range(count)]


def make(op: str, *args: Scalar | Number) -> Scalar:
    """The node `op` of `args`, simplified where that is safe. TypeError where a condition stands for a number."""
    if ARITY.get(op) != len(args):
        raise ValueError(f"{op!r} with {len(args)} arguments is no primitive; they are {', '.join(ARITY)}")
    scalars = tuple(a if isinstance(a, Scalar) else constant(a) for a in args)
    for place, a in enumerate(scalars):
        condition = op == "select" and place == 0
        if (a.op in COMPARISONS) != condition:
            wanted = "a condition such as a < b" if condition else "a number; where(c, 1, 0) makes a condition one"
            raise TypeError(f"argument {place} of {op} must be {wanted}; got {a!r}")
    simpler = _simplified(op, scalars)
    return simpler if simpler is not None else interned(op, scalars)


def constant_value(node: Scalar) -> float:
    """The float of a constant node."""
    assert isinstance(node.value, float)
    return node.value


ONE, MINUS_ONE, ZERO, MINUS_ZERO = (constant(value) for value in (1.0, -1.0, 0.0, -0.0))

FOLDED: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.abs,
}  # fmt: skip


def _simplified(op: str, args: tuple[Scalar, ...]) -> Scalar | None:
    """An equal, cheaper node, or None.

    Constants fold in float64 and round where they are used; every other rule but those of pow holds bit for bit (of a
    NaN, only that it is one).
    """
    if op in FOLDED and all(a.op == "const" for a in args):
        with np.errstate(all="ignore"):
            return constant(float(FOLDED[op](*(np.float64(constant_value(a)) for a in args))))
    if op == "neg" and args[0].op == "neg":
        return args[0].args[0]
    if op == "abs" and args[0].op in ("neg", "abs"):
        return make("abs", args[0].args[0])
    if op == "select":
        return _simplified_select(*args)
    if op == "fma":
        return _simplified_fma(*args)
    if op == "pow":
        return _simplified_pow(*args)
    if op in ("add", "sub", "mul", "div"):
        return _simplified_binary(op, *args)
    return None


def _simplified_binary(op: str, a: Scalar, b: Scalar) -> Scalar | None:
    if op == "add":
        for zero, other in ((a, b), (b, a)):
            if zero is MINUS_ZERO:  # 0 + -0 = 0 and -0 + -0 = -0; +0 is no neutral element
                return other
        if b.op == "neg":
            return make("sub", a, b.args[0])
        if a.op == "neg":
            return make("sub", b, a.args[0])
    elif op == "sub":
        if b is ZERO:
            return a
        if b.op == "neg":
            return make("add", a, b.args[0])
    elif op == "mul":
        for one, other in ((a, b), (b, a)):
            if one is ONE:
                return other
            if one is MINUS_ONE:
                return make("neg", other)
    elif op == "div" and b.op == "const":
        if b is ONE:
            return a
        mantissa, exponent = math.frexp(constant_value(b))
        if abs(mantissa) == 0.5 and abs(exponent) < 120:  # a power of two whose reciprocal is exact in float32 as well
            return make("mul", a, 1 / constant_value(b))
    return None


def _simplified_select(condition: Scalar, a: Scalar, b: Scalar) -> Scalar | None:
    if a is b:
        return a
    left, right = condition.args
    if left.op == "const" and right.op == "const":
        x, y = constant_value(left), constant_value(right)
        return a if {"less": x < y, "less_equal": x <= y, "equal": x == y}[condition.op] else b
    return None


def _simplified_fma(a: Scalar, b: Scalar, c: Scalar) -> Scalar | None:
    if c is MINUS_ZERO:
        return make("mul", a, b)
    for one, other in ((a, b), (b, a)):
        if one is ONE:
            return make("add", other, c)
        if one is MINUS_ONE:
            return make("sub", c, other)
    return None


def _simplified_pow(x: Scalar, y: Scalar) -> Scalar | None:
    """Constant exponents whose product or root has all the special values of pow and at most 1.5 ulp."""
    if y.op != "const":
        return None
    if y.value == 0:  # 1 for NaN as well
        return constant(1.0)
    if y.value == 0.5:  # pow(-inf, 1/2) = inf and pow(-0, 1/2) = +0, where sqrt has NaN and -0
        return make("select", make("equal", x, -math.inf), math.inf, make("sqrt", x + 0.0))
    if y.value == 1:
        return x
    if y.value == 2:
        return x * x
    if y.value == 3:
        return x * x * x
    if y.value == 4:
        return (x * x) * (x * x)
    if y.value == -1:  # not -2: x * x overflows before 1 / x^2 has left the denormals
        return 1 / x
    return None
