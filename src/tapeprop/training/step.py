"""What a single training step is given: labels of every output that has a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import LabelError
from tapeprop.training.data import labels_for
from tapeprop.training.evaluate import Objective
from tapeprop.training.model import Model


def step_labels(model: Model, objective: Objective, y: Any, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The labels of the outputs with a loss, checked and as their losses take them.

    y: for each output; None, or left out of a dict, where it has no loss. shapes: of the outputs. LabelError, GraphError.
    """
    found = []
    parts = model.outputs.split(y, "y", partial=True)
    for name, loss, value, shape in zip(model.outputs.names, objective.losses, parts, shapes, strict=True):
        if loss is None:
            continue
        if value is None:
            raise LabelError(
                f"y of node {name!r}: expected labels for its loss, received None; give them with the step"
            )
        found.append(labels_for(model, loss, value, shape, f"y of node {name!r}"))
    return found
