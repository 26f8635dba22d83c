"""Scalar expressions: build one, differentiate it, print it for NumPy, LLVM, numba.cuda or a reader.

The face of `scalar` (nodes and vocabulary) and `primitives` (their meanings). An elementwise op, a fused chain, an
optimizer rule is one such expression; everything else about it follows from here:

    x, = inputs(1)
    y = where(x <= 0, 0.1 * x, x)
    derivative(y, 0)                # where(x <= 0, 0.1, 1), again an expression
    evaluate([y], [array])          # NumPy, the oracle
    emit([y], vector_math, [value]) # LLVM
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.ops.primitives import PRIMITIVES
from tapeprop.ops.scalar import (
    Scalar,
    absolute,
    constant,
    cos,
    decode,
    encode,
    equal,
    erf,
    exp,
    expm1,
    floor,
    fma,
    input_scalar,
    inputs,
    inputs_of,
    less,
    less_equal,
    log,
    log1p,
    make,
    maximum,
    minimum,
    ordered,
    power,
    sigmoid,
    sin,
    sqrt,
    substitute,
    tan,
    tanh,
    where,
)
from tapeprop.ops.scalar.node import ZERO, constant_value
from tapeprop.ops.scalar.walk import Encoded

__all__ = [
    "Encoded",
    "Scalar",
    "absolute",
    "constant",
    "cos",
    "cost",
    "cuda_source",
    "decode",
    "derivative",
    "emit",
    "encode",
    "equal",
    "erf",
    "evaluate",
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
    "to_text",
    "where",
]


def derivative(root: Scalar, variable: int | Scalar, seed: Scalar | float = 1.0) -> Scalar:
    """seed * d root / d variable, an expression of the same inputs and those of `seed`.

    variable: an input's number, or a node of `root` taken as a variable. Give the incoming gradient as `seed`: branches
    that do not depend on the variable are then 0 whatever the gradient, never 0 * inf.
    """
    start = variable if isinstance(variable, Scalar) else input_scalar(variable)
    tangents: dict[Scalar, Scalar] = {start: seed if isinstance(seed, Scalar) else constant(seed)}
    for node in ordered([root]):
        inner = [tangents.get(a) for a in node.args]
        if node is start or all(t is None for t in inner):
            continue
        tangent = PRIMITIVES[node.op].tangent(node, node.args, inner)
        if tangent is not None and tangent is not ZERO:
            tangents[node] = tangent
    return tangents.get(root, ZERO)


def cost(roots: Iterable[Scalar]) -> int:
    """An estimate of the floating point operations per element; what the expressions share counts once."""
    return sum(PRIMITIVES[node.op].flops for node in ordered(roots) if node.op in PRIMITIVES)


# ---- printers


def evaluate(roots: Sequence[Scalar], arrays: Sequence[Any] | Mapping[int, Any], dtype: Any = None) -> list[Any]:
    """The NumPy value of each root: the reference of every elementwise op and fused chain.

    arrays: by input number; they broadcast. dtype: what operands and constants are computed in, by default the common
    floating type of the arrays (Python numbers do not count), float64 where there is none. Results have that dtype.
    """
    table = dict(arrays) if isinstance(arrays, Mapping) else dict(enumerate(arrays))
    if dtype is None:
        kinds = [a.dtype for a in table.values() if isinstance(a, (np.ndarray, np.generic))]
        dtype = np.result_type(*kinds) if kinds else np.float64
    kind = np.dtype(dtype).type
    values: dict[Scalar, Any] = {}
    with np.errstate(all="ignore"):
        for node in ordered(roots):
            if node.op == "const":
                values[node] = kind(constant_value(node))
            elif node.op == "input":
                values[node] = np.asarray(table[int(node.value or 0)], dtype=kind)
            else:
                values[node] = PRIMITIVES[node.op].numpy(*(values[a] for a in node.args))
    return [values[root] for root in roots]


def emit(roots: Sequence[Scalar], math: Any, values: Sequence[Any] | Mapping[int | Scalar, Any]) -> list[Any]:
    """The LLVM value of each root through a `VectorMath`.

    values: LLVM values by input number; a mapping may also hold those of nodes computed before, outside a loop say.
    """
    known: dict[Scalar, Any] = {}
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        known[key if isinstance(key, Scalar) else input_scalar(key)] = value
    relations = {"less": "<", "less_equal": "<=", "equal": "=="}
    for node in ordered(roots, known):
        if node.op == "const":
            known[node] = constant_value(node)  # VectorMath takes numbers; maximum and fma are cheaper for knowing them
        elif node.op in relations:
            known[node] = math.compare(relations[node.op], *(known[a] for a in node.args))
        elif node.op == "input":
            raise KeyError(f"input {node.value} of the expression has no value")
        else:
            known[node] = getattr(math, node.op)(*(known[a] for a in node.args))
    return [math.value(known[root]) for root in roots]


FUNCTION_NAMES = {"select": "where"}
INFIX = {"less": (1, "<"), "less_equal": (1, "<="), "equal": (1, "=="), "add": (2, "+"), "sub": (2, "-")}
INFIX |= {"mul": (3, "*"), "div": (3, "/"), "pow": (5, "**")}
TIGHT = {"sub", "div"}  # the right operand needs brackets at the same level: a - (b - c)
LONGEST_TEXT = 100


def to_text(root: Scalar, names: Sequence[str] | None = None) -> str:
    """`root` as a reader would write it: "where(x0 <= 0, 0.1 * x0, x0)".

    What is used more than once, and what grows too long, gets a name first: "t0 = exp(x0); t0 / (1 + t0)". The length
    is linear in the number of nodes.
    """
    nodes = ordered([root])
    uses: dict[Scalar, int] = {}
    for node in nodes:
        for a in node.args:
            uses[a] = uses.get(a, 0) + 1
    text: dict[Scalar, tuple[str, int]] = {}  # (text, how tightly it binds)
    bound: list[str] = []

    def argument(node: Scalar, level: int) -> str:
        written, tightness = text[node]
        return written if tightness >= level else f"({written})"

    for node in nodes:
        if node.op == "input":
            number = int(node.value or 0)
            text[node] = (names[number] if names is not None else f"x{number}", 9)
            continue
        if node.op == "const":
            written = f"{constant_value(node):.9g}"
            text[node] = (written, 4 if written.startswith("-") else 9)
            continue
        if node.op in INFIX:
            level, sign = INFIX[node.op]
            left, right = node.args
            # pow binds its left operand more tightly; sub, div and pow do not associate to the right.
            tight_left, tight_right = level + (node.op == "pow"), level + (node.op in TIGHT or level in (1, 5))
            text[node] = (f"{argument(left, tight_left)} {sign} {argument(right, tight_right)}", level)
        elif node.op == "neg":
            text[node] = (f"-{argument(node.args[0], 4)}", 4)
        else:
            inside = ", ".join(text[a][0] for a in node.args)
            text[node] = (f"{FUNCTION_NAMES.get(node.op, node.op)}({inside})", 9)
        if node is not root and (uses[node] > 1 or len(text[node][0]) > LONGEST_TEXT):
            name = f"t{len(bound)}"
            bound.append(f"{name} = {text[node][0]}")
            text[node] = (name, 9)
    return "; ".join([*bound, text[root][0]])


def cuda_source(roots: Sequence[Scalar], names: Sequence[str], results: Sequence[str]) -> list[str]:
    """The lines of a function for numba.cuda that assign each root to its name in `results`.

    names: the text of each input, by number. The globals of the function must hold `cuda` and the functions of
    `tapeprop.targets.cuda.language`, its `product` of two numbers of the dtype, `number`, which makes one of that dtype (a bare
    literal would turn float32 arithmetic into float64), `inf` and `nan`.
    """
    lines: list[str] = []
    text: dict[Scalar, str] = {}
    for node in ordered(roots):
        if node.op == "const":
            text[node] = f"number({constant_value(node)!r})"  # inf and nan as well
        elif node.op == "input":
            text[node] = names[int(node.value or 0)]
        else:
            text[node] = f"t{len(lines)}"
            lines.append(f"{text[node]} = " + PRIMITIVES[node.op].cuda.format(*(text[a] for a in node.args)))
    return lines + [f"{result} = {text[root]}" for result, root in zip(results, roots, strict=True)]
