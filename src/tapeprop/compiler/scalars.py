"""Finding scalar operations that belong together, and making one `scalar_block` of them.

A formula may be written out scalar by scalar: tens of thousands of operations on one number each. They are cut into *phases*: a phase
ends where a scalar is read by an operation on arrays whose result is read by scalars again, so that all scalar operations of a phase
can run at once. A phase of many becomes a block, which runs equal operations side by side as vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from tapeprop.ir import Constant, Instruction, Tensor
from tapeprop.ops.join import concat
from tapeprop.ops.op import same_dtype
from tapeprop.ops.scalars import Block, Kind, scalar_block
from tapeprop.ops.shape import reshape

#: Operations from which on a block is worth more than fused chains.
FEWEST = 64

#: Where an operand of a block lies: an element of a vector, a scalar of its own, or a number known now.
Found = tuple[Tensor, int] | Tensor | float


def is_scalar(call: Instruction) -> bool:
    """Whether an instruction computes scalars from scalars, element by element."""
    if call.op.name != "elementwise" or call.results[0].shape != ():
        return False
    dtype = call.results[0].dtype
    return all(x.shape == () and x.dtype == dtype for x in call.operands)


def phases(calls: Sequence[Instruction], apart: Collection[Tensor]) -> dict[Instruction, int]:
    """The phase of each instruction. calls: operands first. apart: tensors that end a phase, as operations on arrays do."""
    found: dict[Instruction, int] = {}
    scalar: dict[Instruction, bool] = {}
    for call in calls:
        scalar[call] = is_scalar(call)
        number = 0
        for operand in call.operands:
            producer = operand.producer
            if producer is None:
                continue
            ends = scalar[producer] and (operand in apart or not scalar[call])
            number = max(number, found[producer] + ends)
        found[call] = number
    return found


def gather_block(
    calls: Sequence[Instruction],
    wanted: Sequence[Tensor],
    place: Callable[[Tensor], Found],
) -> Tensor:
    """Records the block of `calls`, operands first, and gives the vector of the `wanted` results.

    place: where an operand that no call makes lies.
    """
    return _Gathering(calls, place).record(wanted)


class _Gathering:
    def __init__(self, calls: Sequence[Instruction], place: Callable[[Tensor], Found]):
        self.calls = calls
        made = {result for call in calls for result in call.results}
        outside = dict.fromkeys(x for call in calls for x in call.operands if x not in made)
        self.found = {old: place(old) for old in outside}
        self.dtype = same_dtype("scalar formula", [call.results[0] for call in calls])

    def record(self, wanted: Sequence[Tensor]) -> Tensor:
        value, vectors = self._operands()
        kinds: dict[Kind, int] = {}
        nodes: list[tuple[int, tuple[int, ...]]] = []
        first = sum([int(v.shape[0]) for v in vectors])  # type: ignore[arg-type]  # their lengths are known
        known: dict[tuple, tuple[int, ...]] = {}
        for call in self.calls:
            expressions, formula = call.attributes["expressions"], call.attributes["formula"]
            count = len(call.operands)
            numbers = known.get((expressions, formula, count))
            if numbers is None:
                made = [Kind(root, count, formula if len(expressions) == 1 else None) for root in expressions]
                numbers = known[expressions, formula, count] = tuple(
                    [kinds.setdefault(kind, len(kinds)) for kind in made]
                )
            args = tuple([value[x] for x in call.operands])
            for number, result in zip(numbers, call.results, strict=True):
                value[result] = first + len(nodes)
                nodes.append((number, args))
        sizes = [int(v.shape[0]) for v in vectors]  # type: ignore[arg-type]
        return scalar_block(Block(sizes, list(kinds), nodes, [value[x] for x in wanted]), vectors)

    def _operands(self) -> tuple[dict[Tensor, int], list[Tensor]]:
        """({operand: its number}, the vectors). Scalars of their own are joined, numbers become a constant vector."""
        elements: dict[Tensor, list[tuple[Tensor, int]]] = {}
        single: list[tuple[Tensor, Tensor]] = []
        numbers: dict[str, float] = {}
        for old, found in self.found.items():
            if isinstance(found, float):
                numbers.setdefault(found.hex(), found)
            elif isinstance(found, tuple):
                elements.setdefault(found[0], []).append((old, found[1]))
            else:
                single.append((old, found))
        value: dict[Tensor, int] = {}
        vectors: list[Tensor] = []
        start = 0
        for vector, members in elements.items():
            value.update((old, start + k) for old, k in members)
            vectors.append(vector)
            start += int(vector.shape[0])  # type: ignore[arg-type]
        if single:
            vectors.append(concat([reshape(x, (1,)) for _, x in single], axis=0))
            value.update((old, start + k) for k, (old, _) in enumerate(single))
            start += len(single)
        if numbers:
            array = np.array(list(numbers.values()), self.dtype)
            vectors.append(Tensor(array.shape, self.dtype, source=Constant(array), name="constant"))
            places = {text: start + k for k, text in enumerate(numbers)}
            value.update((old, places[f.hex()]) for old, f in self.found.items() if isinstance(f, float))
        return value, vectors
