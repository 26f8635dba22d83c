"""Figures of merit on NumPy arrays: what `evaluate` and `fit` can be asked for, by name or as functions.

A metric is a function (y_true, y_pred) -> float; a callable is called with the labels as the user gave them. Named
ones: `accuracy`, whose meaning follows the loss, `top5_accuracy`, `mae`, `mse`, `rmse`, `r2`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop.errors import ShapeError

if TYPE_CHECKING:
    from tapeprop.losses import Loss

Metric = Callable[[np.ndarray, np.ndarray], float]

__all__ = ["Metric", "accuracy", "mae", "mse", "named", "r2", "resolve", "rmse", "sign_accuracy", "top5_accuracy"]


def class_ids(y: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Labels as class ids (N, ...): as they are, or the argmax over axis 1 of one-hot ones (N, C, ...)."""
    y = np.asarray(y)
    if y.shape == y_pred.shape and y.ndim > 1:
        return y.argmax(axis=1)
    ids_shape = (y_pred.shape[0], *y_pred.shape[2:])
    if y.size != np.prod(ids_shape, dtype=np.int64):
        raise ShapeError(f"expected labels of shape {ids_shape} or {y_pred.shape}, received shape {y.shape}")
    return y.reshape(ids_shape)


def accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """The part of samples whose largest prediction along axis 1 is the label; of equal predictions the first counts.

    y_pred: (N, C, ...). y_true: class ids (N, ...) or one-hot labels of y_pred's shape.
    """
    y_pred = np.asarray(y_pred)
    if y_pred.ndim < 2:
        raise ShapeError(f"accuracy: expected predictions of shape (N, C), received shape {y_pred.shape}")
    return float(np.mean(y_pred.argmax(axis=1) == class_ids(y_true, y_pred)))


def sign_accuracy(y_true: np.ndarray, y_pred: np.ndarray, threshold: float = 0.5) -> float:
    """The part of elements whose prediction is above 0 just where the label is above `threshold`.

    y_pred: logits or margins. y_true: labels of the same number of elements.
    """
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    if y_true.size != y_pred.size:
        raise ShapeError(f"accuracy: expected labels of shape {y_pred.shape}, received shape {y_true.shape}")
    return float(np.mean((y_pred > 0) == (y_true.reshape(y_pred.shape) > threshold)))


def top5_accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """The part of samples with fewer than five classes predicted above the label. Shapes as `accuracy`."""
    y_pred = np.asarray(y_pred)
    if y_pred.ndim < 2:
        raise ShapeError(f"top5_accuracy: expected predictions of shape (N, C), received shape {y_pred.shape}")
    own = np.take_along_axis(y_pred, np.expand_dims(class_ids(y_true, y_pred), 1).astype(np.int64), axis=1)
    return float(np.mean((y_pred > own).sum(axis=1) < 5))


def _errors(name: str, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    if y_true.shape != y_pred.shape and (*y_true.shape, 1) != y_pred.shape:
        raise ShapeError(f"{name}: expected labels of shape {y_pred.shape}, received shape {y_true.shape}")
    return y_pred.astype(np.float64) - y_true.reshape(y_pred.shape)


def mae(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """The mean absolute error over all elements."""
    return float(np.abs(_errors("mae", y_true, y_pred)).mean())


def mse(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """The mean squared error over all elements."""
    return float(np.square(_errors("mse", y_true, y_pred)).mean())


def rmse(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """The root of the mean squared error."""
    return mse(y_true, y_pred) ** 0.5


def r2(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """1 - (sum of squared errors) / (sum of squared deviations from the mean label), all columns together.

    With labels that are all equal: 1 where every prediction is right, else 0, as scikit-learn has it.
    """
    errors = np.square(_errors("r2", y_true, y_pred)).sum()
    labels = np.asarray(y_true, dtype=np.float64)
    spread = np.square(labels - labels.mean(axis=0)).sum()
    if spread == 0:
        return 1.0 if errors == 0 else 0.0
    return float(1 - errors / spread)


named: dict[str, Metric] = {
    "accuracy": accuracy,
    "top5_accuracy": top5_accuracy,
    "mae": mae,
    "mse": mse,
    "rmse": rmse,
    "r2": r2,
}


def listed(metrics: Iterable[str | Metric]) -> list[str | Metric]:
    """The metrics as a list. ValueError for an unknown or repeated one, TypeError for what is no metric."""
    if isinstance(metrics, str) or callable(metrics):
        raise TypeError(f"metrics: expected a list of names or functions, received {metrics!r}; write metrics=[...]")
    found = list(metrics)
    names_of(found)
    return found


def names_of(metrics: Sequence[str | Metric]) -> list[str]:
    """The name of each metric, in order; errors as `listed`."""
    found: list[str] = []
    for metric in metrics:
        if isinstance(metric, str):
            name = metric
            if name not in named:
                raise ValueError(f"metrics: there is no {name!r}; there are {', '.join(named)}, or pass a function")
        elif callable(metric):
            name = getattr(metric, "__name__", type(metric).__name__)
        else:
            raise TypeError(f"metrics: expected a name or a function (y_true, y_pred) -> float, received {metric!r}")
        if name in found or name == "loss":
            raise ValueError(f"metrics: the name {name!r} occurs twice; give the function another __name__")
        found.append(name)
    return found


def resolve(metrics: Sequence[str | Metric], loss: Loss) -> dict[str, Metric]:
    """{name: function} for one output. "accuracy" means what the loss says, and is left out where it means nothing.

    Samples of the loss's `ignore_index` count for no named metric of classes.
    """
    found: dict[str, Metric] = {}
    for name, metric in zip(names_of(metrics), metrics, strict=True):
        if metric in ("accuracy", "top5_accuracy") and loss.ignore_index is not None:
            found[name] = _of_counted(named[name], loss.ignore_index)
        elif metric != "accuracy":
            found[name] = named[metric] if isinstance(metric, str) else metric
        elif loss.accuracy == "sign":
            found[name] = _sign_accuracy_of(loss.threshold)
        elif loss.accuracy == "argmax":
            found[name] = accuracy
    return found


def _sign_accuracy_of(threshold: float) -> Metric:
    def sign_accuracy_at(y_true: Any, y_pred: Any) -> float:
        return sign_accuracy(y_true, y_pred, threshold)

    return sign_accuracy_at


def _of_counted(metric: Metric, ignore_index: int) -> Metric:
    """The metric over the samples whose class id is another; NaN where there is none."""

    def of_counted(y_true: Any, y_pred: Any) -> float:
        predictions = np.asarray(y_pred)
        ids = class_ids(y_true, predictions)
        counted = ids != ignore_index
        rows = np.moveaxis(predictions, 1, -1)[counted]
        return metric(ids[counted], rows) if len(rows) else float("nan")

    return of_counted
