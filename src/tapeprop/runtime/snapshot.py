"""A copy of everything that training changes, to be put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tapeprop.ir import Parameter
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.state import cell
from tapeprop.runtime.update import OptimizerState

__all__ = ["restored"]


@contextmanager
def restored(parameters: Iterable[Parameter], optimizers: OptimizerState) -> Iterator[None]:
    """Whatever happens inside, values, gradients, their pending flags and the optimizers' state are as before afterwards.

    parameters: those that runs inside write to.
    """
    buffers: dict[str, Buffer] = {}
    for parameter in parameters:
        segment = cell(parameter).segment
        for buffer in (segment.values, segment.gradients, segment.pending):
            buffers[buffer.name] = buffer
    for buffer in optimizers.buffers():
        buffers[buffer.name] = buffer
    copies = [(buffer, buffer.read().copy()) for buffer in buffers.values()]
    try:
        yield
    finally:
        for buffer, copy in copies:
            buffer.array[:] = copy
            buffer.writes += 1
