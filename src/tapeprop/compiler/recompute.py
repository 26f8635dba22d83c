"""Recomputation: the inner results of checkpointed nodes are computed again in backward instead of being kept from forward on.

The policy, stated once:

* What backward reads of a checkpointed node is its *inner* results, which are cloned into the backward span, each right before its
  first reader there, starting from what reaches the node. So one node's inner results stand at a time. Of checkpointed nodes inside
  one another the outermost counts.
* A node's own result is kept where backward or the clones of a later node read it, and so is what it is a view of.
* What Python computes is kept: nobody can promise that it gives the same twice.
* Vectors and scalars are kept: statistics and counters take no room worth a second pass over the tensors they are made of.
* A clone never reads state that forward has advanced (a leaf that a store writes to, or a view of one): what is made of it is kept.
  An op says which of its results depend on which operand (`Op.operands_for`). State effects are not repeated: clones have no stores.

A clone is the same op on the same operands, so it has the same bits; nothing here depends on sizes. What is read decides alone, so
a backward from some of the outputs reads no more of forward than one from all.
Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost", 2016.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Sequence

from tapeprop.compiler.passes import substitute, with_results
from tapeprop.ir import Checkpoint, Instruction, Tensor

KEPT_RANK = 1  # tensors of at most this rank are kept


def recompute(
    calls: Sequence[Instruction], checkpoints: Sequence[Checkpoint], advanced: Collection[Tensor] = ()
) -> list[Instruction]:
    """The instructions of a backward span, reading clones in the place of inner results; the clones stand among them.

    calls: as recorded, in order, before any pass. checkpoints: those of the trace of the forward span. advanced: the leaves that the
    spans before this one store to.
    """
    if not checkpoints:
        return list(calls)
    return _Recomputation(checkpoints, advanced).run(calls)


class _Recomputation:
    """One walk over a backward span. `again` maps the inner results cloned so far to their clones."""

    def __init__(self, checkpoints: Sequence[Checkpoint], advanced: Collection[Tensor]):
        self.advanced = frozenset(advanced)
        self.first: list[int] = []
        self.end: list[int] = []
        self.kept: set[Tensor] = set()
        for checkpoint in sorted(checkpoints, key=lambda c: (c.first, -c.end)):
            if self.end and checkpoint.end <= self.end[-1]:
                continue  # inside another
            self.first.append(checkpoint.first)
            self.end.append(checkpoint.end)
            self.kept.update(with_views(checkpoint.result))
        self.read: dict[Instruction, set[int]] = {}  # inner instruction -> the results of it that are read in backward
        self.again: dict[Tensor, Tensor] = {}

    def run(self, calls: Sequence[Instruction]) -> list[Instruction]:
        self._find_read(calls)
        found: list[Instruction] = []
        for call in calls:
            found += self._clones(call.operands)
            found.append(substitute(call, self.again))
        return found

    def _inner(self, tensor: Tensor) -> bool:
        """Whether the tensor is to be computed again."""
        call = tensor.producer
        if call is None or call.op.in_python or tensor.ndim <= KEPT_RANK or tensor in self.kept:
            return False
        k = bisect.bisect(self.first, call.serial) - 1
        if k < 0 or call.serial >= self.end[k]:
            return False
        return not any(with_views(operand)[-1] in self.advanced for operand in self._operands(call, {tensor.index}))

    @staticmethod
    def _operands(call: Instruction, results: Collection[int]) -> Sequence[Tensor]:
        """What these results of an instruction are computed from."""
        return call.op.operands_for(call, [i in results for i in range(len(call.results))])

    def _find_read(self, calls: Iterable[Instruction]) -> None:
        stack = [operand for call in calls for operand in call.operands]
        while stack:
            tensor = stack.pop()
            call = tensor.producer
            if call is None or not self._inner(tensor):
                continue
            results = self.read.setdefault(call, set())
            if tensor.index not in results:
                results.add(tensor.index)
                stack.extend(self._operands(call, {tensor.index}))

    def _clones(self, operands: Iterable[Tensor]) -> list[Instruction]:
        """What has to run before an instruction with these operands, in the order of forward."""
        needed: set[Instruction] = set()
        stack = list(operands)
        while stack:
            tensor = stack.pop()
            call = tensor.producer
            if call is not None and call not in needed and tensor not in self.again and self._inner(tensor):
                needed.add(call)
                stack.extend(self._operands(call, self.read[call]))
        return [self._clone(call) for call in sorted(needed, key=lambda call: call.serial)]

    def _clone(self, call: Instruction) -> Instruction:
        operands = [self.again.get(tensor, tensor) for tensor in self._operands(call, self.read[call])]
        clone = Instruction(call.op, operands, call.attributes, call.node)
        results = [Tensor(t.shape, t.dtype, producer=clone, index=t.index, name=t.name) for t in call.results]
        self.again.update((call.results[i], results[i]) for i in self.read[call])
        return with_results(clone, results)


def with_views(tensor: Tensor) -> list[Tensor]:
    """The tensor and what it is a view of, nearest first: they share their memory."""
    found = [tensor]
    while (call := found[-1].producer) is not None and call.op.alias:
        found.append(call.operands[0])
    return found
