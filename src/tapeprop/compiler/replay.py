"""Recording a formula again: in another trace, with other leaves in the place of placeholders, for other sizes.

Formulas are recorded once, outside any trace, with open sizes as symbols. Every program of a `tapeprop.function` is made by a replay:
shapes are inferred anew, so that what depended on a symbol is decided by the size that stands there now. Scalar operations come out as
`scalar_block`s where there are many of them (see `compiler.scalars`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tapeprop.compiler.scalars import FEWEST, Found, gather_block, is_scalar, phases
from tapeprop.errors import GraphError
from tapeprop.ir import Constant, Instruction, Parameter, Size, Tensor, at_node, current, reachable
from tapeprop.ir.dims import Dim, evaluate
from tapeprop.ops.join import concat, index
from tapeprop.ops.join import slice as cut
from tapeprop.ops.op import LATER, record
from tapeprop.ops.shape import alias, reshape


@dataclass(frozen=True)
class Element:
    """A scalar that is an element of a vector."""

    vector: Tensor
    index: int


class Replay:
    """One replay, into the current trace.

    roots: what is wanted. leaves: {placeholder: what stands for it}. sizes: {symbol of an open size: its size now}. watched: tensors
    that get a place of their own, so that their value and gradient can be read.
    """

    def __init__(
        self,
        roots: Sequence[Tensor],
        leaves: Mapping[Tensor, Tensor | Element],
        sizes: Mapping[str, Size],
        watched: Collection[Tensor] = (),
    ):
        self.sizes = sizes
        self.watched = frozenset(watched)
        self.values: dict[Tensor, Tensor | Element] = dict(leaves)
        self.made: dict[Element, Tensor] = {}
        self._run(list(dict.fromkeys([*roots, *watched])))

    # ---- results

    def tensor(self, old: Tensor) -> Tensor:
        """What a recorded tensor has become."""
        found = self.value(old)
        if isinstance(found, Tensor):
            return found
        if found not in self.made:
            self.made[found] = index(found.vector, found.index)
        return self.made[found]

    def vector(self, scalars: Sequence[Tensor]) -> Tensor:
        """Scalars as one vector, without a copy where they stand side by side."""
        found = [self.value(scalar) for scalar in scalars]
        first = found[0]
        if isinstance(first, Element):
            run = [Element(first.vector, first.index + k) for k in range(len(found))]
            if found == run:
                return cut(first.vector, [first.index], [first.index + len(found)])
        return concat([reshape(self.tensor(scalar), (1,)) for scalar in scalars], axis=0)

    def value(self, old: Tensor) -> Tensor | Element:
        """What a recorded tensor has become; a leaf is looked up in the trace."""
        found = self.values.get(old)
        if found is None:
            found = self.values[old] = self._leaf(old)
        return found

    def _leaf(self, old: Tensor) -> Tensor:
        trace = current()
        assert trace is not None
        if isinstance(old.source, Parameter):
            return trace.parameter(old.source)
        if isinstance(old.source, Constant):
            return trace.constant(old.source.array)
        raise GraphError(f"function: expected every placeholder among its inputs, got a formula that reads {old!r}")

    # ---- the walk

    def _run(self, roots: list[Tensor]) -> None:
        for old in self.watched:
            if old.producer is None:
                self.values[old] = alias(self.tensor(old))
        calls = reachable(roots)
        phase = phases(calls, self.watched)
        gathered: dict[int, list[Instruction]] = {}
        for call in calls:
            if is_scalar(call):
                gathered.setdefault(phase[call], []).append(call)
        gathered = {number: members for number, members in gathered.items() if len(members) >= FEWEST}
        wanted = _read_outside(calls, phase, gathered, roots) if gathered else {}
        inside = {call for members in gathered.values() for call in members}
        alone: dict[int, list[Instruction]] = {}
        for call in calls:
            if call not in inside:
                alone.setdefault(phase[call], []).append(call)
        for number in range(max(phase.values(), default=-1) + 1):
            for call in alone.get(number, ()):
                self._again(call)
            if number in gathered:
                self._block(gathered[number], wanted[number])

    def _again(self, call: Instruction) -> None:
        operands = [self.tensor(operand) for operand in call.operands]
        attributes = {name: _sized(value, self.sizes) for name, value in call.attributes.items()}
        with at_node(call.node):
            if call.op is LATER:
                results: Sequence[Tensor] = [attributes["function"](*operands)]
            else:
                results = record(call.op, operands, attributes)
            for old, new in zip(call.results, results, strict=True):
                self.values[old] = alias(new) if old in self.watched else new

    def _block(self, calls: Sequence[Instruction], wanted: Sequence[Tensor]) -> None:
        def place(old: Tensor) -> Found:
            if isinstance(old.source, Constant):
                return float(old.source.array)
            found = self.value(old)
            return (found.vector, found.index) if isinstance(found, Element) else found

        vector = gather_block(calls, wanted, place)
        for k, old in enumerate(wanted):
            self.values[old] = Element(vector, k)
            if old in self.watched:
                self.values[old] = alias(self.tensor(old))


def _sized(value: Any, sizes: Mapping[str, Size]) -> Any:
    """An attribute under new sizes."""
    if isinstance(value, Dim):
        return evaluate(value, sizes)
    return tuple([_sized(item, sizes) for item in value]) if type(value) is tuple else value


def _read_outside(
    calls: Iterable[Instruction],
    phase: Mapping[Instruction, int],
    gathered: Mapping[int, list[Instruction]],
    roots: Iterable[Tensor],
) -> dict[int, list[Tensor]]:
    """{phase: the results of its block that others read}, the roots first and in their order."""
    home = {result: number for number, members in gathered.items() for call in members for result in call.results}
    found: dict[int, dict[Tensor, None]] = {number: {} for number in gathered}
    for root in roots:
        if root in home:
            found[home[root]][root] = None
    for call in calls:
        inside = phase[call] if is_scalar(call) and phase[call] in gathered else None
        for operand in call.operands:
            if operand in home and home[operand] != inside:
                found[home[operand]][operand] = None
    return {number: list(tensors) for number, tensors in found.items()}
