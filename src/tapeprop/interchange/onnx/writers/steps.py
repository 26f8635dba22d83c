"""The program as steps, each of which one writer turns into nodes: instructions, or several that are one operator of ONNX.

Batch norm in inference is six instructions, a convolution of one axis is that of two between reshapes: `patterns` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeprop.ir import Constant, Instruction, Tensor

__all__ = ["Pattern", "Settings", "Step", "exact", "formula_of", "producer", "renamed", "steps"]


@dataclass(frozen=True, eq=False)
class Step:
    """op: the name of an op or of a pattern. place: of its last instruction in the program."""

    op: str
    operands: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    attributes: Mapping[str, Any]
    node: str
    place: int

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name]


#: Gives (name, operands, attributes) for the last instruction of what it finds, else None. The result is that instruction's first.
Pattern = Callable[[Instruction, "Settings"], tuple[str, Sequence[Tensor], Mapping[str, Any]] | None]


@dataclass(frozen=True)
class Settings:
    """What a pattern may depend on. opset: the version of the operators; dtype: of the program."""

    opset: int
    dtype: str


def exact(value: float, dtype: str) -> bool:
    """Whether an attribute, which is a float32, holds a number as well as this dtype does; where not, simpler operators are written."""
    return dtype == "float32" or float(np.float32(value)) == value


def steps(outputs: Sequence[Tensor], patterns: Mapping[str, Sequence[Pattern]], settings: Settings) -> list[Step]:
    """What the outputs need, in an order that can be run. patterns: by the name of the last op."""
    found: dict[Instruction, Step] = {}
    stack = list(outputs)
    while stack:
        call = stack.pop().producer
        if call is None or call in found:
            continue
        step = found[call] = _step(call, patterns, settings)
        stack.extend(step.operands)
    return sorted(found.values(), key=lambda step: step.place)


def _step(call: Instruction, patterns: Mapping[str, Sequence[Pattern]], settings: Settings) -> Step:
    for pattern in patterns.get(call.op.name, ()):
        match = pattern(call, settings)
        if match is not None:
            name, operands, attributes = match
            return Step(name, tuple(operands), call.results[:1], attributes, call.node, call.serial)
    return Step(call.op.name, call.operands, call.results, call.attributes, call.node, call.serial)


# ---- looking at what made a tensor


def producer(tensor: Tensor, op: str) -> Instruction | None:
    """The instruction that made a tensor as its first result, if it is of this op."""
    call = tensor.producer
    return call if call is not None and call.op.name == op and tensor.index == 0 else None


def renamed(tensor: Tensor) -> Tensor:
    """What a reshape has given another shape; the tensor itself where none has."""
    call = producer(tensor, "reshape")
    return tensor if call is None else call.operands[0]


def formula_of(tensor: Any, name: str) -> list[Tensor | float] | None:
    """The operands, tensors and numbers, of the elementwise formula `name` that made a tensor; None where nothing of that made it."""
    call = producer(tensor, "elementwise") if isinstance(tensor, Tensor) else None
    if call is None or call.attributes["formula"] is None or call.attributes["formula"][0] != name:
        return None
    slots = call.attributes["formula"][-1]
    found: list[Tensor | float] = [call.operands[slot] if isinstance(slot, int) else slot for slot in slots]
    return [_number(operand) for operand in found]


def _number(operand: Tensor | float) -> Tensor | float:
    """A constant of shape () as the number that it is."""
    if isinstance(operand, Tensor) and isinstance(operand.source, Constant) and operand.shape == ():
        return float(operand.source.array)
    return operand
