"""State that forward advances and backward reads: forward keeps a copy of what it was, and backward reads the copy.

A leaf that a span stores to holds the new value from the end of that span on, but a gradient is that of the value that was read. So what
a later span reads of such a leaf, or of a view of it, is copied at the end of forward, before the state effects take place. Where
no gradient reads such a leaf (batch norm, dropout) nothing is copied.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tapeprop.compiler.passes import substitute
from tapeprop.compiler.recompute import with_views
from tapeprop.ir import Instruction, Tensor
from tapeprop.ops.op import record


class Snapshots:
    """The copies that one forward span makes. advanced: the leaves that it, and what runs between it and the readers, store to.

    copies: {what was read: its copy}, in the order in which it was asked for.
    """

    def __init__(self, advanced: Collection[Tensor]):
        self.advanced = frozenset(advanced)
        self.copies: dict[Tensor, Tensor] = {}

    def read_by(self, calls: Sequence[Instruction]) -> list[Instruction]:
        """The instructions of a later span, reading copies in the place of what has changed meanwhile."""
        if not self.advanced:
            return list(calls)
        made = {result for call in calls for result in call.results}
        for call in calls:
            for tensor in call.operands:
                if tensor not in made and tensor not in self.copies and with_views(tensor)[-1] in self.advanced:
                    (self.copies[tensor],) = record("copy", [tensor])
                    self.instruction(tensor).node = call.node
        return [substitute(call, self.copies) for call in calls]

    def instruction(self, tensor: Tensor) -> Instruction:
        """What copies `tensor`."""
        found = self.copies[tensor].producer
        assert found is not None
        return found

    @property
    def instructions(self) -> list[Instruction]:
        """What forward has to end with."""
        return [self.instruction(tensor) for tensor in self.copies]
