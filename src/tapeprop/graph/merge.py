"""How the results that reach a node become its one input: eight merges, each for any number of operands."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from tapeprop import ops
from tapeprop.errors import GraphError, MergeError
from tapeprop.graph.remedy import adapting
from tapeprop.ir import Size, Tensor
from tapeprop.ir.dims import broadcast, same, text


class MergeMode(enum.Enum):
    """What a node with several incoming edges does with their tensors, taken in declaration order.

    A single operand passes as it is. All but CHCAT and DOT broadcast as NumPy does.
    """

    SUM = "sum"  #: the sum
    CHCAT = "chcat"  #: one behind the other along axis 1
    HADAMARD = "hadamard"  #: the product, element by element
    AVG = "avg"  #: the mean
    MAX = "max"  #: the largest; operands that tie share the gradient
    MIN = "min"  #: the smallest; operands that tie share the gradient
    DOT = "dot"  #: matrix products from left to right, batched over leading axes
    SUB = "sub"  #: the first minus all others

    @classmethod
    def of(cls, mode: Any) -> MergeMode:
        """The mode itself, or the one of a value ("chcat") or name ("CHCAT"). GraphError for any other."""
        if isinstance(mode, cls):
            return mode
        try:
            return cls(mode.lower())
        except (AttributeError, ValueError):
            names = ", ".join(member.value for member in cls)
            raise GraphError(f"expected a MergeMode or one of {names}, got {mode!r}") from None


def merge(mode: MergeMode, operands: Sequence[Tensor], names: Sequence[str], node: str) -> Tensor:
    """The merged tensor, recorded in the current trace.

    operands: at least one, in declaration order. names: the nodes they come from; node: the one they go to, both for
    errors. MergeError where shapes do not go together; UndecidedError where that depends on open sizes.
    """
    if len(operands) == 1:
        return operands[0]
    problem = _CHECKS.get(mode, _broadcast_misfit)(operands)
    if problem is not None:
        where, remedy = problem
        if mode not in _CHECKS:
            remedy = adapting(operands, names) or remedy
        listed = ", ".join(f"{name!r} {text(operand.shape)}" for name, operand in zip(names, operands))
        raise MergeError(f"node {node!r}: {mode.name} expects {where}, got {listed}: {remedy}")
    if mode is MergeMode.CHCAT:
        return ops.concat(operands, axis=1)
    if mode is MergeMode.DOT:
        result = operands[0]
        for operand in operands[1:]:
            result = ops.matmul(result, operand)
        return result
    elementwise = {
        MergeMode.SUM: ops.sum_of,
        MergeMode.AVG: ops.mean_of,
        MergeMode.HADAMARD: ops.product_of,
        MergeMode.SUB: ops.difference,
        MergeMode.MAX: ops.maximum,
        MergeMode.MIN: ops.minimum,
    }
    return elementwise[mode](*operands)


Problem = tuple[str, str] | None  # (what is expected, what to do)


def _broadcast_misfit(operands: Sequence[Tensor]) -> Problem:
    try:
        broadcast(*(operand.shape for operand in operands))
    except ValueError:
        return (
            "operands whose shapes broadcast",
            "give the branches one shape, for instance by a Conv2D of filter size 1, or merge by CHCAT",
        )
    return None


def _concat_misfit(operands: Sequence[Tensor]) -> Problem:
    first = operands[0].shape
    for operand in operands:
        if operand.ndim < 2 or operand.ndim != len(first):
            return "operands of one rank >= 2", "reshape the branches before they meet"
        if any(axis != 1 and not same(a, b) for axis, (a, b) in enumerate(zip(first, operand.shape))):
            return "operands that agree on every axis but 1", "pad, pool or resize the branches to one extent"
    return None


def _dot_misfit(operands: Sequence[Tensor]) -> Problem:
    if any(operand.ndim < 2 for operand in operands):
        return "matrices, of rank >= 2", "reshape the vectors to (n, 1) or (1, n)"
    columns: Size = operands[0].shape[-1]
    for operand in operands[1:]:
        if not same(columns, operand.shape[-2]):
            return (
                "as many columns in each operand as rows in the next",
                "transpose one, or declare the operands in another order",
            )
        columns = operand.shape[-1]
    try:
        broadcast(*(operand.shape[:-2] for operand in operands))
    except ValueError:
        return "leading axes that broadcast", "give the branches one batch shape"
    return None


_CHECKS = {MergeMode.CHCAT: _concat_misfit, MergeMode.DOT: _dot_misfit}
