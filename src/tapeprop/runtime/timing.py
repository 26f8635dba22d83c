"""Timed runs: seconds per row, read inside the executor, with the state put back afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tapeprop.ir import Parameter
from tapeprop.runtime.executable import Executable
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.state import cell
from tapeprop.runtime.update import OptimizerState


@dataclass(frozen=True)
class RowTime:
    """The time of one row of the tape: seconds per step, and its share of the whole tape's.

    flops, traffic: the operations of the row, and the bytes that it must at least read and write.
    """

    row: int
    span: str
    op: str
    node: str
    seconds: float
    share: float
    flops: int = 0
    traffic: int = 0


class Snapshot:
    """A copy of everything that training changes; `restore` puts it back."""

    def __init__(self, parameters: Iterable[Parameter], optimizers: OptimizerState):
        self._copies: list[tuple[np.ndarray, np.ndarray]] = []
        buffers: dict[str, Buffer] = {}
        for parameter in parameters:
            segment = cell(parameter).segment
            for buffer in (segment.values, segment.gradients, segment.pending):
                buffers[buffer.name] = buffer
        for buffer in optimizers.buffers():
            buffers[buffer.name] = buffer
        self._copies = [(buffer.array, buffer.array.copy()) for buffer in buffers.values()]

    def restore(self) -> None:
        """Writes the copies back."""
        for array, copy in self._copies:
            array[:] = copy


def time_rows(executable: Executable, steps: int) -> list[RowTime]:
    """The median time of every row over `steps` runs; of several workers the slowest counts. Waits at barriers are left out."""
    executable.run()
    timing = executable.timing(steps)
    start = time.perf_counter()
    executable.run(steps=steps, timing=timing)
    wall = time.perf_counter() - start
    cycles = float(timing.max() - timing[timing > 0].min()) or 1.0
    # The median: other work on the machine interrupts a few rows of a few runs for much longer than they take.
    spent = np.median((timing[..., 1] - timing[..., 0]).max(axis=1), axis=0) * (wall / cycles)
    total = float(spent.sum()) or 1.0
    found = []
    for i, (row, seconds) in enumerate(zip(executable.tape.rows, spent.tolist(), strict=True)):
        node, share = row.step.instruction.node, seconds / total
        found.append(RowTime(i, row.step.span, row.label, node, seconds, share, row.flops, row.traffic))
    return found
