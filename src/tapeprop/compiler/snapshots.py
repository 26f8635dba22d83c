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
from tapeprop.ir.tensor import Source
from tapeprop.ops.op import record


class Snapshots:
    """The copies that one forward span makes. advanced: the leaves that it, and what runs between it and the readers, store to.

    Leaves are told apart by their source: a gradient recorded in another trace has leaves of its own.
    """

    def __init__(self, advanced: Collection[Tensor]):
        self.advanced: dict[Source | None, Tensor] = {leaf.source: leaf for leaf in advanced}
        self.copies: dict[Tensor, Tensor] = {}  # what forward read -> its copy

    def read_by(self, calls: Sequence[Instruction]) -> list[Instruction]:
        """The instructions of a later span, reading copies in the place of what has changed meanwhile."""
        if not self.advanced:
            return list(calls)
        made = {result for call in calls for result in call.results}
        renamed: dict[Tensor, Tensor] = {}
        for call in calls:
            for tensor in call.operands:
                if tensor not in made and with_views(tensor)[-1].source in self.advanced:
                    renamed[tensor] = self._copy(tensor, call.node)
        return [substitute(call, renamed) for call in calls]

    def _copy(self, tensor: Tensor, node: str) -> Tensor:
        """The copy of a leaf, or of a view that forward made."""
        read = self.advanced[tensor.source] if tensor.producer is None else tensor
        if read not in self.copies:
            (self.copies[read],) = record("copy", [read])
            self._instruction(read).node = node
        return self.copies[read]

    def _instruction(self, read: Tensor) -> Instruction:
        found = self.copies[read].producer
        assert found is not None
        return found

    @property
    def instructions(self) -> list[Instruction]:
        """What forward has to end with."""
        return [self._instruction(read) for read in self.copies]
