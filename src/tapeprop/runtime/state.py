"""What a graph keeps between runs: parameters packed in segments, their gradients and optimizer state, the random counter.

A parameter owns its storage through a `Segment`. Segments never move or grow, so a view once handed out stays live; parameters that
lie in one already (shared between graphs, nested graphs, g1 + g2) stay there, new ones get a new segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tapeprop.errors import DTypeError, NumericsError, StateError
from tapeprop.ir import Parameter
from tapeprop.runtime.memory import ALIGNMENT, Buffer


class Segment:
    """Parameters of one dtype side by side: values, gradients, and a flat array per optimizer slot, all with the same offsets.

    Every parameter starts on a 64-byte boundary; the gaps hold zeros and stay so. `pending[i]` is 1 where the gradient of parameter i
    has been written and not yet consumed, else 0 (of the segment's dtype: the tape reads it).
    """

    def __init__(self, parameters: Sequence[Parameter], dtype: str, trained: bool):
        self.parameters = list(parameters)
        self.dtype = np.dtype(dtype)
        step = ALIGNMENT // self.dtype.itemsize
        self.starts: list[int] = []
        total = 0
        for parameter in self.parameters:
            self.starts.append(total)
            total += -(-parameter.size // step) * step
        self.size = total
        kind = "parameters" if trained else "state"
        self.values = Buffer(f"{kind}.", total, dtype, "parameters")
        self.gradients = Buffer("gradients.", total if trained else 0, dtype, "gradients")
        self.pending = Buffer("pending.", len(self.parameters) if trained else 0, dtype)
        self.slots: dict[str, Buffer] = {}
        for i, parameter in enumerate(self.parameters):
            initial = parameter.value
            parameter.storage = Cell(self, i)
            parameter.storage.write(initial)

    def slot(self, name: str, initial: float) -> Buffer:
        """The flat array of an optimizer's per-element state; made on first use, filled with `initial`."""
        if name not in self.slots:
            self.slots[name] = Buffer(f"{name}.", self.size, self.dtype, "optimizer")
            if initial:
                self.slots[name].array.fill(initial)
        return self.slots[name]


class Cell:
    """The storage of one parameter: its stretch of a segment."""

    def __init__(self, segment: Segment, index: int):
        self.segment = segment
        self.index = index
        self.parameter = segment.parameters[index]
        self.start = segment.starts[index]
        self.dtype = segment.dtype

    def view(self) -> np.ndarray:
        """A live view of the value."""
        return self.segment.values.lend(self.start, self.parameter.shape)

    def gradient(self) -> np.ndarray:
        """A live view of the gradient. DTypeError for state that is not trained."""
        if not self.parameter.trainable:
            raise DTypeError(f"{self.parameter.name}: running state has no gradient; only weights and biases have one")
        return self.segment.gradients.lend(self.start, self.parameter.shape)

    def slot(self, name: str, initial: float = 0.0) -> np.ndarray:
        """A live view of an optimizer slot."""
        return self.segment.slot(name, initial).lend(self.start, self.parameter.shape)

    def write(self, array: np.ndarray) -> None:
        """Copies `array` into the value."""
        values = self.segment.values
        values.put(self.start, np.broadcast_to(array, self.parameter.shape).astype(self.dtype).reshape(-1))
        values.writes += 1

    def clear_gradient(self) -> None:
        """Sets the gradient to zero; it waits no longer."""
        self.pending = False
        self.segment.gradients.clear(self.start, self.parameter.size)

    @property
    def pending(self) -> bool:
        """Whether a gradient waits to be consumed."""
        return bool(self.segment.pending.read()[self.index])

    @pending.setter
    def pending(self, value: bool) -> None:
        self.segment.pending.array[self.index] = value


def cell(parameter: Parameter) -> Cell:
    """The storage of a packed parameter. StateError before the first build."""
    if not isinstance(parameter.storage, Cell):
        raise StateError(f"{parameter.name}: not packed yet; build() the graph first")
    return parameter.storage


def pack(parameters: Iterable[Parameter], dtype: str) -> list[Segment]:
    """Gives storage to the parameters that have none: one segment for what is trained, one for state, one per fixed dtype.

    dtype: the graph's. Checks everything first, so that an error leaves all as it was. DTypeError where a parameter is stored in another
    dtype; NumericsError where an initial value does not fit it.
    """
    groups: dict[tuple[str, bool], list[Parameter]] = {}
    for parameter in dict.fromkeys(parameters):
        kind = parameter.dtype or dtype
        if parameter.storage is not None:
            if parameter.storage.dtype != np.dtype(kind):
                raise DTypeError(
                    f"{parameter.name}: stored as {parameter.storage.dtype} by an earlier build, expected {kind}; build every graph "
                    f'that shares it with dtype="{parameter.storage.dtype}"'
                )
            continue
        initial = parameter.value
        with np.errstate(over="ignore"):
            overflows = np.isfinite(initial).all() and not np.isfinite(initial.astype(kind)).all()
        if overflows:
            raise NumericsError(f"{parameter.name}: an initial value overflows {kind}")
        groups.setdefault((kind, parameter.trainable), []).append(parameter)
    return [Segment(members, kind, trained) for (kind, trained), members in groups.items()]


def runs(parameters: Iterable[Parameter]) -> list[tuple[Segment, int, int]]:
    """(segment, start, size) of the longest stretches that hold just these parameters, in storage order."""
    members: dict[Segment, list[int]] = {}
    for parameter in parameters:
        home = cell(parameter)
        members.setdefault(home.segment, []).append(home.index)
    found = []
    for segment, indices in members.items():
        ends = [*segment.starts[1:], segment.size]
        indices.sort()
        first = previous = indices[0]
        for index in [*indices[1:], None]:
            if index is None or index != previous + 1:
                found.append((segment, segment.starts[first], ends[previous] - segment.starts[first]))
                first = index  # type: ignore[assignment]
            previous = index  # type: ignore[assignment]
    return found


def pending_of(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Those whose gradient waits to be consumed."""
    return [p for p in parameters if cell(p).pending]


def zero_gradients(parameters: Sequence[Parameter]) -> None:
    """Drops the gradients: they read as zero and the next backward starts anew."""
    for parameter in parameters:
        cell(parameter).clear_gradient()
