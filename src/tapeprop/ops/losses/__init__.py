"""Losses: scalar tensors (), of the predictions' dtype, from predictions and truth.

Softmax cross-entropy and NLL are ops, summed in float64, row by row in the order of the samples; the others are
compositions, of which the compiler makes fused kernels. Labels of a class are int64 (N,), or floating weights of the
classes (N, C): one-hot rows or probabilities. A label outside 0 .. C - 1 is reported (LABEL_OUT_OF_RANGE), never read
with.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.errors import LabelError, ShapeError
from tapeprop.ir import Tensor
from tapeprop.ops import elementwise
from tapeprop.ops.losses import spec as spec  # registers the ops
from tapeprop.ops.losses import weighted as weighted  # likewise
from tapeprop.ops.losses.compositions import binary_cross_entropy, hinge, huber, kl_divergence, mae, mse
from tapeprop.ops.losses.labels import expect_labels, known
from tapeprop.ops.op import as_tensor, constant_tensor, record

__all__ = [
    "binary_cross_entropy",
    "hinge",
    "huber",
    "kl_divergence",
    "mae",
    "mse",
    "nll",
    "softmax_cross_entropy",
]


def softmax_cross_entropy(
    logits: Any,
    labels: Any,
    class_weights: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> Tensor:
    """The mean over samples of the sum over classes of -label log_softmax(logits): (), of the logits' dtype.

    logits: (N, C), floating. labels: int64 (N,), or (N, C) of the logits' dtype. LabelError where they do not fit.

    As torch.nn.functional.cross_entropy has it: label_smoothing takes this part of each label and spreads it over all
    classes, class_weights (C,) multiply the classes, ignore_index is the class number of samples that do not count. The
    mean of class numbers is then weighted: divided by the sum of the weights of the labels that count, NaN where that
    is 0. Constants, by which nothing is differentiated.
    """
    logits, labels = as_tensor(logits), as_tensor(labels)
    expect_labels("softmax_cross_entropy", logits, labels)
    if class_weights is None and not label_smoothing and ignore_index is None:
        rows, _ = record("softmax_cross_entropy", [logits, labels])
        return record("mean_loss", [rows])[0]
    weights = _class_weights("softmax_cross_entropy", logits, class_weights)
    if labels.dtype != "int64":
        _refuse_ignored("softmax_cross_entropy", ignore_index)
        rows, _ = record("softmax_cross_entropy", [logits, _spread(labels, weights, label_smoothing)])
    else:
        (weights,) = record("scaled_class_weights", [labels, weights], {"ignore": ignore_index})
        spread = {"smoothing": float(label_smoothing), "ignore": ignore_index}
        rows, _ = record("weighted_cross_entropy", [logits, labels, weights], spread)
    return record("mean_loss", [rows])[0]


def nll(log_probabilities: Any, labels: Any, class_weights: Any = None, ignore_index: int | None = None) -> Tensor:
    """The mean over samples of the sum over classes of -label log-probability: (), of the log-probabilities' dtype.

    log_probabilities: (N, C), floating. labels: int64 (N,), or (N, C) of the same dtype. LabelError where they do not
    fit. class_weights and ignore_index: as for `softmax_cross_entropy`.
    """
    log_probabilities, labels = as_tensor(log_probabilities), as_tensor(labels)
    expect_labels("nll", log_probabilities, labels)
    if class_weights is None and ignore_index is None:
        (rows,) = record("nll", [log_probabilities, labels])
        return record("mean_loss", [rows])[0]
    weights = _class_weights("nll", log_probabilities, class_weights)
    if labels.dtype != "int64":
        _refuse_ignored("nll", ignore_index)
        (rows,) = record("nll", [log_probabilities, _spread(labels, weights, 0.0)])
    else:
        (weights,) = record("scaled_class_weights", [labels, weights], {"ignore": ignore_index})
        spread = {"smoothing": 0.0, "ignore": ignore_index}
        (rows,) = record("weighted_nll", [log_probabilities, labels, weights], spread)
    return record("mean_loss", [rows])[0]


def _class_weights(name: str, predictions: Tensor, class_weights: Any) -> Tensor:
    """(C,) for predictions (N, C); ones where None. ShapeError where there are more or fewer."""
    classes = known(predictions.shape[1])
    weights = np.ones(classes) if class_weights is None else np.asarray(class_weights, np.float64)
    if weights.shape != (classes,):
        raise ShapeError(
            f"{name}: expected class_weights of shape {(classes,)}, one for each class, got shape {weights.shape}"
        )
    return constant_tensor(weights, predictions.dtype)


def _spread(labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Labels (N, C) smoothed and weighted by class."""
    part, share = float(smoothing), float(smoothing) / known(labels.shape[1])
    return elementwise.compute(lambda y, w: (y * (1 - part) + share) * w, labels, weights, label="spread_labels")[0]


def _refuse_ignored(name: str, ignore_index: int | None) -> None:
    if ignore_index is not None:
        raise LabelError(
            f"{name}: ignore_index={ignore_index} is a class number, got labels with a weight for each class; "
            "give class numbers, or rows of zeros to leave samples out"
        )
