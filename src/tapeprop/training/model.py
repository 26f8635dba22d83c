"""What training asks of a graph, in one place.

`fit`, `predict` and `evaluate` take a graph as the user has it and speak to it through a `Model` only.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tapeprop.errors import NotBuiltError
from tapeprop.graph.ports import Ports

if TYPE_CHECKING:
    from tapeprop.training.evaluate import Objective


class Session(Protocol):
    """Many training steps over arrays that stay where they are."""

    def start_epoch(self, order: np.ndarray) -> None:
        """Begins an epoch over the rows in this order: int64 (samples,), a permutation."""

    def run(self, steps: int) -> int:
        """Runs at most `steps` steps, in one native call; how many were run. The last, smaller batch counts as one."""
        ...

    def totals(self) -> Mapping[str, float]:
        """{"loss": mean over this epoch's samples so far, "samples": their number, "accuracy": where it is counted}."""
        ...

    def close(self) -> None:
        """Ends the session, which holds on to the arrays no longer."""


#: {graph: (its version, the names of inputs and outputs then)}: predict() asks for them at every call.
_known_ports: weakref.WeakKeyDictionary[Any, tuple[int, tuple[Ports, Ports]]] = weakref.WeakKeyDictionary()


def _ports(graph: Any) -> tuple[Ports, Ports]:
    version = getattr(graph, "version", None)
    known = _known_ports.get(graph) if version is not None else None
    if known is not None and known[0] == version:
        return known[1]
    labels = graph.labels
    inputs = Ports(tuple(labels[node] for node in graph.roots), isinstance(graph.root, list))
    outputs = Ports(tuple(labels[node] for node in graph.terms), isinstance(graph.term, list))
    if version is not None:
        _known_ports[graph] = version, (inputs, outputs)
    return inputs, outputs


class Model:
    """A built graph as training sees it. NotBuiltError for one that is not built.

    inputs, outputs: its roots and terms. dtype: "float32" or "float64".
    """

    def __init__(self, graph: Any):
        if not graph.built_:
            raise NotBuiltError(f"{graph}: training and prediction need a built graph; call build() first")
        self.graph = graph
        self.inputs, self.outputs = _ports(graph)
        self.dtype: str = graph.dtype

    def output_shapes(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The shape of each output for inputs of these shapes, batch included. ShapeError."""
        return self.graph.output_shapes(shapes)

    def on_device(self, array: Any, dtypes: Sequence[str], what: str) -> Any | None:
        """An array that lies on the graph's device, checked; None for one of the host. DeviceError, DTypeError, ShapeError."""
        return self.graph.on_device(array, dtypes, what)

    def infer(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Fresh arrays of the outputs on the host, in evaluation mode; a forward that waits for its backward is not disturbed."""
        return [np.asarray(output) for output in self.graph.infer(arrays)]

    def session(
        self,
        arrays: Sequence[np.ndarray],
        labels: Sequence[np.ndarray | None],
        objective: Objective,
        batch_size: int,
        accuracy: bool,
        accumulate: int,
    ) -> Session:
        """A session on whole arrays. labels: one entry per output, None where the objective has no loss."""
        given = [array for array in labels if array is not None]
        return self.graph.fit_session(
            arrays, given, objective.losses, objective.weights, batch_size, accuracy=accuracy, accumulate=accumulate
        )

    @contextmanager
    def advanced_by(self, optimizer: Any) -> Iterator[None]:
        """Gives the graph its optimizer (None: leaves it the one that it has); takes it back where the body fails."""
        before = self.graph.optimizer
        if optimizer is not None:
            self.graph.set_optimizer(optimizer)
        try:
            yield
        except BaseException:
            if optimizer is not None:
                self.graph.set_optimizer(before)
            raise

    @property
    def optimizers(self) -> dict[str, Any]:
        """The optimizers at work by name, the graph's own first."""
        return self.graph.optimizers

    def optimizer_of(self, of: Any) -> Any:
        """The optimizer that an optimizer, a node or a node's name means. GraphError."""
        return self.graph.optimizer_of(of, "schedule")

    @property
    def lr(self) -> float:
        """The learning rate in force: that of the graph's own optimizer."""
        return self.graph.lr

    def learning_rate(self, optimizer: Any) -> float:
        """The learning rate in force of one optimizer."""
        return self.graph.learning_rate(optimizer)

    def set_lr(self, lr: float, optimizer: Any) -> None:
        """Sets the learning rate of one optimizer."""
        self.graph.update_lr(lr, optimizer)
