"""The verifier: proves of a tape, without running it, that every row stays inside its buffers and destroys nothing that is still needed."""

from __future__ import annotations

import bisect
from collections.abc import Mapping

from tapeprop.compiler.encode import Tape
from tapeprop.errors import CompileError
from tapeprop.ir import Tensor


def verify(tape: Tape, buffer_bytes: Mapping[str, int]) -> None:
    """CompileError naming the row where an extent leaves its buffer, or a row writes over a value that a later row reads.

    buffer_bytes: {buffer: its size}.
    """
    _check_ranges(tape, buffer_bytes)
    _check_values(tape)


def _check_ranges(tape: Tape, buffer_bytes: Mapping[str, int]) -> None:
    for number, row in enumerate(tape.rows):
        for extent in (*row.reads, *row.writes):
            size = buffer_bytes.get(extent.place.buffer)
            if size is None or extent.place.offset < 0 or extent.place.offset + extent.nbytes > size:
                raise CompileError(
                    f"row {number} ({row.step.instruction.op.name}, node {row.step.instruction.node!r}): "
                    f"{extent.place.buffer}[{extent.place.offset} : {extent.place.offset + extent.nbytes}] leaves a buffer of "
                    f"{size} bytes; this is a bug of the planner"
                )


def _check_values(tape: Tape) -> None:
    """Follows which tensor owns each stretch of the arena: a read must find its own tensor, whole."""
    owners = _Owners()
    roots: dict[Tensor, Tensor] = {}
    for step in tape.plan.steps:
        if step.instruction.op.alias:
            operand = step.instruction.operands[0]
            roots[step.instruction.results[0]] = roots.get(operand, operand)
    for number, row in enumerate(tape.rows):
        instruction = row.step.instruction
        first = number == 0 or tape.rows[number - 1].step is not row.step
        last = number + 1 == len(tape.rows) or tape.rows[number + 1].step is not row.step
        # An instruction of several rows reads from its first to its last one: that it may write over an operand is the op's word.
        for operand, extent in zip(instruction.operands, row.reads, strict=True) if first else ():
            root = roots.get(operand, operand)
            if root.producer is None or extent.place.buffer != tape.arena:
                continue  # leaves and stores live in storage that outlasts the tape
            if root not in owners.of(extent.place.offset, extent.nbytes):
                raise CompileError(
                    f"row {number} ({instruction.op.name}, node {instruction.node!r}): an operand was overwritten before this "
                    "row reads it; this is a bug of the planner"
                )
        for result, extent in zip(instruction.results, row.writes, strict=True) if last else ():
            if extent.place.buffer == tape.arena:
                owners.take(extent.place.offset, extent.nbytes, result)


class _Owners:
    """Stretches of one buffer that do not meet, by offset, and the tensor that owns each."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.tensors: list[Tensor] = []

    def _met(self, start: int, nbytes: int) -> slice:
        """The stretches that share a byte with start : start + nbytes. As none meets another, their ends are sorted too."""
        return slice(bisect.bisect_right(self.ends, start), bisect.bisect_left(self.starts, start + nbytes))

    def of(self, start: int, nbytes: int) -> list[Tensor]:
        """The tensors that own a byte of start : start + nbytes."""
        return self.tensors[self._met(start, nbytes)]

    def take(self, start: int, nbytes: int, tensor: Tensor) -> None:
        """start : start + nbytes goes to `tensor`; who owned a byte of it owns nothing any more."""
        met = self._met(start, nbytes)
        self.starts[met], self.ends[met], self.tensors[met] = [start], [start + nbytes], [tensor]
