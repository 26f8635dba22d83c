"""Walking expressions, rebuilding them with other inputs, and encoding them as plain tuples."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from tapeprop.ops.scalar.node import Number, Scalar, constant, constant_value, input_scalar, interned, make

Encoded = tuple[tuple[tuple[Any, ...], ...], tuple[int, ...]]


def ordered(roots: Iterable[Scalar], known: Container[Scalar] = ()) -> list[Scalar]:
    """Every node under `roots` once, arguments first; the order depends on the expressions alone.

    Nodes in `known`, and what only they need, are left out.
    """
    done: dict[Scalar, None] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, ready = stack.pop()
        if ready:
            done[node] = None
        elif node not in done and node not in known:
            stack.append((node, True))
            stack.extend((a, False) for a in reversed(node.args))
    return list(done)


def inputs_of(roots: Iterable[Scalar]) -> tuple[int, ...]:
    """The numbers of the inputs that occur, ascending."""
    return tuple(sorted(int(node.value or 0) for node in ordered(roots) if node.op == "input"))


def substitute(root: Scalar, replacements: Mapping[int | Scalar, Scalar | Number]) -> Scalar:
    """`root` with inputs (by number) or whole subexpressions (by node) replaced, all at once, and simplified anew."""
    values: dict[Scalar, Scalar] = {}
    for key, new in replacements.items():
        old = key if isinstance(key, Scalar) else input_scalar(key)
        values[old] = new if isinstance(new, Scalar) else constant(new)
    for node in ordered([root], values):
        args = tuple(values[a] for a in node.args)
        same = all(new is old for new, old in zip(args, node.args, strict=True))
        values[node] = node if same else make(node.op, *args)
    return values[root]


def encode(roots: Sequence[Scalar]) -> Encoded:
    """(nodes, places of the roots) as nested tuples of literals: hashable, picklable, equal for equal expressions.

    A node is ("input", number), ("const", hexadecimal float) or (primitive, place of each argument among the nodes).
    """
    place: dict[Scalar, int] = {}
    nodes: list[tuple[Any, ...]] = []
    for node in ordered(roots):
        place[node] = len(nodes)
        if node.op == "input":
            nodes.append(("input", node.value))
        elif node.op == "const":
            nodes.append(("const", constant_value(node).hex()))
        else:
            nodes.append((node.op, *(place[a] for a in node.args)))
    return tuple(nodes), tuple(place[root] for root in roots)


def decode(encoded: Encoded) -> list[Scalar]:
    """The roots that `encode` was given, node for node."""
    nodes: list[Scalar] = []
    for op, *rest in encoded[0]:
        if op == "input":
            nodes.append(input_scalar(rest[0]))
        elif op == "const":
            nodes.append(constant(float.fromhex(rest[0])))
        else:
            nodes.append(interned(op, tuple(nodes[place] for place in rest)))
    return [nodes[place] for place in encoded[1]]


def decode_one(encoded: Encoded) -> Scalar:
    """The root that `encode` was given alone."""
    return decode(encoded)[0]
