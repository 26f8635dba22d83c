"""The oracle: runs a program with the NumPy references of its ops. It can run after every pass and names the pass that broke."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.ir import Constant, Instruction, Program, Tensor
from tapeprop.ir.dims import Dim, evaluate
from tapeprop.ops.op import ArrayType, Call


def concrete(value: Any, sizes: Mapping[str, int]) -> Any:
    """An attribute with every open size in it evaluated; tuples are walked."""
    if isinstance(value, Dim):
        return evaluate(value, sizes)
    if type(value) is tuple:
        return tuple(concrete(item, sizes) for item in value)
    return value


def array_type(tensor: Tensor, sizes: Mapping[str, int]) -> ArrayType:
    """The concrete type of a tensor."""
    return ArrayType(tuple(n if type(n) is int else evaluate(n, sizes) for n in tensor.shape), tensor.dtype)


class Types(dict[Tensor, ArrayType]):
    """{tensor: its concrete type} under `sizes` ({symbol: int}), worked out once for each that is asked for."""

    def __init__(self, sizes: Mapping[str, int]):
        super().__init__()
        self.sizes = sizes

    def of(self, tensor: Tensor) -> ArrayType:
        """The concrete type of a tensor."""
        found = self.get(tensor)
        if found is None:
            found = self[tensor] = array_type(tensor, self.sizes)
        return found

    def call(self, instruction: Instruction) -> Call:
        """The instruction with every size known."""
        return Call(
            tuple([self.of(t) for t in instruction.operands]),
            tuple([self.of(t) for t in instruction.results]),
            {name: concrete(value, self.sizes) for name, value in instruction.attributes.items()},
        )


def call_of(instruction: Instruction, sizes: Mapping[str, int]) -> Call:
    """The instruction with every size known."""
    return Types(sizes).call(instruction)


def interpret(
    program: Program,
    feeds: Mapping[Tensor, np.ndarray],
    sizes: Mapping[str, int] | None = None,
) -> tuple[list[np.ndarray], dict[Tensor, np.ndarray]]:
    """(the outputs, {store target: new value}) of a program.

    feeds: {leaf: array} for every leaf that is no constant. sizes: {symbol: int} for open sizes.
    """
    sizes, values = sizes or {}, dict(feeds)

    def value(tensor: Tensor) -> np.ndarray:
        if tensor not in values and isinstance(tensor.source, Constant):
            values[tensor] = tensor.source.array
        return values[tensor]

    stored: dict[Tensor, np.ndarray] = {}
    for span in program.spans:
        for instruction in span.instructions:
            call = call_of(instruction, sizes)
            with np.errstate(all="ignore"):
                results: Sequence[np.ndarray] = instruction.op.reference(call, *map(value, instruction.operands))
            for tensor, kind, result in zip(instruction.results, call.results, results, strict=True):
                values[tensor] = np.asarray(result, dtype=kind.dtype).reshape(kind.shape)
        effects = [(store.target, value(store.value)) for store in span.stores]
        for target, new in effects:
            stored[target] = values[target] = np.array(new)
    return [value(tensor) for tensor in program.outputs], stored
