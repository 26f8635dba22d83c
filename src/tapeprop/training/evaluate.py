"""Prediction and evaluation over whole data sets, batch by batch, by the forward-only tape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.graph.ports import Ports
from tapeprop.losses import Loss
from tapeprop.runtime.plans import is_input
from tapeprop.training.data import labels_for, raw_labels, real_array, same_length
from tapeprop.training.metrics import Metric, listed, resolve
from tapeprop.training.model import Model

BATCH = 256


@dataclass(frozen=True)
class Objective:
    """What training minimises: one loss per output (None: no loss there), and the factor of each in the total."""

    losses: tuple[Loss | None, ...]
    weights: tuple[float, ...]

    @property
    def single(self) -> Loss | None:
        """The loss of a network with one output."""
        return self.losses[0] if len(self.losses) == 1 else None


@dataclass(frozen=True)
class Samples:
    """A data set fit to run on.

    arrays: one per input, of the graph's dtype. given: the labels of each output as they came. labels: those of the
    outputs with a loss, as the losses take them; `given` and `labels` hold None where an output has no loss.
    """

    arrays: list[np.ndarray]
    given: list[np.ndarray | None]
    labels: list[np.ndarray | None]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def part(self, rows: slice) -> Samples:
        """Views of some of the rows."""
        return Samples(
            [a[rows] for a in self.arrays],
            [None if a is None else a[rows] for a in self.given],
            [None if a is None else a[rows] for a in self.labels],
        )


def objective_of(ports: Ports, loss: Any, loss_weights: Any = None) -> Objective:
    """The objective that a caller's `loss` and `loss_weights` mean.

    loss: a `Loss` or its class for every output, or one per output: a list in order, with None for no loss, or a dict by
    node name, which leaves out the outputs without one. loss_weights: likewise numbers, 1 by default. GraphError,
    TypeError, ValueError.
    """
    one = isinstance(loss, Loss) or (isinstance(loss, type) and issubclass(loss, Loss))
    entries = [loss] * len(ports.names) if one else ports.split(loss, "loss", partial=True)
    losses: list[Loss | None] = []
    for entry in entries:
        made = entry() if isinstance(entry, type) and issubclass(entry, Loss) else entry
        if made is not None and not isinstance(made, Loss):
            raise TypeError(f"loss: expected a tapeprop.losses.Loss such as CrossEntropy(), received {entry!r}")
        losses.append(made)
    if all(entry is None for entry in losses):
        raise ValueError("loss: expected a loss for at least one output, received None")
    if loss_weights is None:
        weights = [1.0] * len(losses)
    elif len(losses) == 1 and not isinstance(loss_weights, list | tuple | dict):
        weights = [float(loss_weights)]
    else:
        parts = Ports(ports.names, True).split(loss_weights, "loss_weights", partial=True)
        weights = [1.0 if part is None else float(part) for part in parts]
    if not np.isfinite(weights).all():
        raise ValueError(f"loss_weights: expected finite numbers, received {weights}")
    return Objective(tuple(losses), tuple(weights))


def samples_of(model: Model, X: Any, y: Any, objective: Objective, what: tuple[str, str] = ("X", "y")) -> Samples:
    """X and y checked and converted; nothing is copied that fits. ShapeError, DTypeError, LabelError, GraphError."""
    arrays = inputs_of(model, X, what[0])
    count = len(arrays[0])
    ports, parts = model.outputs, model.outputs.split(y, what[1], partial=True)
    wanted = [i for i, loss in enumerate(objective.losses) if loss is not None]
    given: list[np.ndarray | None] = [None] * len(parts)
    labels: list[np.ndarray | None] = [None] * len(parts)
    shapes = model.output_shapes([a.shape for a in arrays])
    for i in wanted:
        name, loss, shape = ports.names[i], objective.losses[i], shapes[i]
        assert loss is not None
        if not shape or shape[0] != count:
            raise ShapeError(
                f"node {name!r}: its output has shape {shape} for {count} samples; training and evaluation need "
                f"one row per sample"
            )
        where = f"{what[1]} of node {name!r}"
        there = None if parts[i] is None else model.on_device(parts[i], (model.dtype, "int64"), where)
        given[i] = raw_labels(parts[i] if there is None else there, name, count, what[1])
        labels[i] = labels_for(model, loss, given[i], shape, where)
    return Samples(arrays, given, labels)


def inputs_of(model: Model, X: Any, what: str = "X") -> list[np.ndarray]:
    """X as one array per input, of the graph's dtype and of one length."""
    parts = model.inputs.split(X, what)
    pairs = zip(parts, model.inputs.names, strict=True)
    arrays = [_input_of(model, part, f"{what} of node {name!r}") for part, name in pairs]
    same_length(arrays, what)
    return arrays


def _input_of(model: Model, part: Any, where: str) -> Any:
    if is_input(part, model.dtype) and part.ndim:
        return part
    given = model.on_device(part, (model.dtype,), where)
    if given is not None and not given.ndim:
        raise ShapeError(f"{where}: expected at least one sample along axis 0, received shape ()")
    return real_array(part, model.dtype, where) if given is None else given


def predict_arrays(model: Model, arrays: Sequence[np.ndarray], batch_size: int = BATCH) -> list[np.ndarray]:
    """The outputs for all rows, each in one array; a single batch is handed on as it is."""
    count = len(arrays[0])
    found: list[np.ndarray] = []
    for start in range(0, count, batch_size):
        batch = model.infer([a[start : start + batch_size] for a in arrays])
        size = min(batch_size, count - start)
        expect_rows(model.graph, batch, size)
        if size == count:
            return batch
        if not found:
            found = [np.empty((count, *output.shape[1:]), output.dtype) for output in batch]
        for whole, output in zip(found, batch, strict=True):
            whole[start : start + size] = output
    return found


def expect_rows(graph: Any, outputs: Sequence[np.ndarray], count: int) -> None:
    """ShapeError unless each output has a row for each of `count` samples."""
    for i, output in enumerate(outputs):
        if output.ndim == 0 or len(output) != count:
            raise ShapeError(
                f"node {graph.labels[graph.terms[i]]!r}: its output has shape {output.shape} for {count} samples; predict() needs one row "
                f"per sample, use forward() for this network"
            )


def predict(graph: Any, X: Any, batch_size: int = BATCH) -> Any:
    """The outputs in evaluation mode for all of X, an array (or a list of them where the graph has a list of terms).

    X: (N, ...), or a list or dict of such arrays. batch_size: rows per run. Nothing of a forward that waits for its
    backward is disturbed.
    """
    model = Model(graph)
    return model.outputs.join(predict_arrays(model, inputs_of(model, X), whole_number("batch_size", batch_size)))


def evaluate(
    graph: Any,
    X: Any,
    y: Any,
    *,
    loss: Any,
    metrics: Iterable[str | Metric] = ("accuracy",),
    loss_weights: Any = None,
    batch_size: int = BATCH,
) -> dict[str, float]:
    """{"loss": ..., and each metric}, in evaluation mode, over all samples.

    With several outputs "loss" is the weighted total and every output's figures bear its node's name: "head_accuracy".
    metrics: names or functions (y_true, y_pred) -> float; "accuracy" is left out where the loss knows no right answer.
    """
    model = Model(graph)
    objective = objective_of(model.outputs, loss, loss_weights)
    batch_size = whole_number("batch_size", batch_size)
    return figures(model, samples_of(model, X, y, objective), objective, listed(metrics), batch_size)


def figures(
    model: Model, samples: Samples, objective: Objective, metrics: Sequence[str | Metric], batch_size: int = BATCH
) -> dict[str, float]:
    """Loss and metrics of data that is checked already."""
    outputs = predict_arrays(model, samples.arrays, batch_size)
    found = {"loss": 0.0}
    for i, (name, loss) in enumerate(zip(model.outputs.names, objective.losses, strict=True)):
        if loss is None:
            continue
        prefix = f"{name}_" if len(outputs) > 1 else ""
        value = loss(np.asarray(samples.labels[i]), outputs[i])
        found["loss"] += objective.weights[i] * value
        if prefix:
            found[f"{prefix}loss"] = value
        for metric, function in resolve(metrics, loss).items():
            found[prefix + metric] = _figure(metric, function, np.asarray(samples.given[i]), outputs[i])
    return found


def _figure(name: str, function: Callable[..., float], y_true: Any, y_pred: np.ndarray) -> float:
    value = np.asarray(function(y_true, y_pred))
    if value.size != 1 or value.dtype.kind not in "fiub":
        raise TypeError(f"metric {name!r}: expected one real number, received {value.dtype} of shape {value.shape}")
    return float(value.reshape(()))


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int. TypeError where it is no whole number, ValueError below `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer, received {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, received {value}")
    return int(value)
