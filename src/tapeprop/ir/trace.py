"""The recording of a program: which node is at work, whether it trains, the leaves and the state effects so far."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeprop.errors import StateError
from tapeprop.ir.dims import Shape
from tapeprop.ir.parameter import Parameter
from tapeprop.ir.tensor import Constant, Input, Source, Store, Tensor

_current: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("tapeprop_trace", default=None)


@dataclass(frozen=True)
class Checkpoint:
    """What was recorded for a node whose inner results backward computes again.

    first, end: marks before and after its instructions (see `mark`). result: the node's own.
    """

    first: int
    end: int
    result: Tensor


class Trace:
    """What layers and ops record while a program is made.

    dtype: the graph's ("float32" or "float64"). training: which behaviour batch norm and dropout are to show.
    random: the RNG state, an int64 parameter of shape (2,) holding (seed, calls so far), or None where nothing is drawn.
    """

    def __init__(self, dtype: str, training: bool, random: Parameter | None = None):
        self.dtype = dtype
        self.training = training
        self.node = ""
        self.stores: list[Store] = []
        self.checkpoints: list[Checkpoint] = []
        self.watched: frozenset[Hashable] = frozenset()  # nodes whose results need a gradient of their own
        self.behind: Mapping[int, Any] = {}  # {id of a layer: the layer that is to be traced on its result}
        self.random = random
        self.random_sites = 0
        self._random_state: Tensor | None = None
        self._leaves: dict[Source, Tensor] = {}

    def leaf(self, source: Source, shape: Shape, dtype: str, name: str | None = None) -> Tensor:
        """The one leaf tensor of `source` in this trace."""
        found = self._leaves.get(source)
        if found is None:
            found = self._leaves[source] = Tensor(shape, dtype, source=source, name=name)
        return found

    def parameter(self, parameter: Parameter) -> Tensor:
        """The leaf of a parameter, of its own dtype or the graph's."""
        return self.leaf(parameter, parameter.shape, parameter.dtype or self.dtype, parameter.name)

    def input(self, index: int, shape: Shape, dtype: str | None = None, name: str = "input") -> Tensor:
        """The leaf of the `index`-th input."""
        return self.leaf(Input(index, name), shape, dtype or self.dtype, name)

    def constant(self, array: np.ndarray) -> Tensor:
        """A leaf that holds a copy of `array`, cast to the graph's dtype where it is floating."""
        copy = array.astype(self.dtype if array.dtype.kind == "f" else "int64")
        copy.setflags(write=False)
        return Tensor(copy.shape, str(copy.dtype), source=Constant(copy), name="constant")

    def store(self, parameter: Parameter, value: Tensor) -> None:
        """Records the state effect parameter <- value, which takes place when the span has run."""
        self.stores.append(Store(value, self.parameter(parameter)))

    def latest(self, parameter: Parameter) -> Tensor:
        """The value that a state has at this point: that of the last store recorded, or its leaf."""
        for store in reversed(self.stores):
            if store.target.source is parameter:
                return store.value
        return self.parameter(parameter)

    def next_random_site(self, advance: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
        """(the RNG state of this call, the number of one more place that draws from it). StateError where `random` is None.

        advance: records the state that follows; used once, by the first place that draws, and stored as a state effect. All
        places draw from the advanced state, so the backward pass of the same call draws the same numbers.
        """
        if self.random is None:
            raise StateError(
                f"{self.node or 'the program'}: draws random numbers, but the graph keeps no random state; expected a graph with a seed"
            )
        if self._random_state is None:
            self._random_state = advance(self.latest(self.random))
            self.store(self.random, self._random_state)
        self.random_sites += 1
        return self._random_state, self.random_sites - 1

    @property
    def leaves(self) -> dict[Source, Tensor]:
        """Every leaf made so far, by source."""
        return dict(self._leaves)


def current() -> Trace | None:
    """The trace being recorded in this thread, or None."""
    return _current.get()


@contextlib.contextmanager
def recording(trace: Trace) -> Iterator[Trace]:
    """Makes `trace` the current one."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


@contextlib.contextmanager
def at_node(name: str) -> Iterator[None]:
    """Instructions recorded inside bear the node's name."""
    trace = current()
    if trace is None:
        yield
        return
    before, trace.node = trace.node, name
    try:
        yield
    finally:
        trace.node = before
