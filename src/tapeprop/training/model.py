"""What training asks of a graph, in one place.

`fit`, `predict` and `evaluate` take a graph as the user has it and speak to it through a `Model` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Model:
    """A built graph as training sees it. NotBuiltError for one that is not built.

    inputs, outputs: its roots and terms. dtype: "float32" or "float64".
    """

    def __init__(self, graph: Any):
        if not graph.built_:
            raise NotBuiltError(f"{graph}: training and prediction need a built graph; call build() first")
        self.graph = graph
        labels = graph.labels
        self.inputs = Ports(tuple(labels[node] for node in graph.roots), isinstance(graph.root, list))
        self.outputs = Ports(tuple(labels[node] for node in graph.terms), isinstance(graph.term, list))
        self.dtype: str = graph.dtype

    def output_shapes(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The shape of each output for inputs of these shapes, batch included. ShapeError."""
        return self.graph.output_shapes(shapes)

    def infer(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Fresh arrays of the outputs in evaluation mode; a forward that waits for its backward is not disturbed."""
        return self.graph.infer(arrays)

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

    def set_optimizer(self, optimizer: Any) -> None:
        """Gives the graph its optimizer."""
        self.graph.set_optimizer(optimizer)

    @property
    def lr(self) -> float:
        """The learning rate in force: that of the graph's own optimizer."""
        return self.graph.lr

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of every optimizer in the graph."""
        self.graph.update_lr(lr)
