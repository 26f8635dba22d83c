"""Losses of class numbers (N, ...) for predictions (N, C, ...)."""

from __future__ import annotations

import numpy as np

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.ir.dims import product


def _rows(node, predictions, labels):
    """(predictions (M, C), labels (M,)): a row for each label."""
    if predictions.ndim < 2 or labels.ndim != predictions.ndim - 1:
        raise node.fail("predictions (N, C, ...) and labels (N, ...)", f"{predictions.shape} and {labels.shape}")
    count = product(labels.shape)
    order = [0, *range(2, predictions.ndim), 1]
    return ops.reshape(ops.transpose(predictions, order), (count, predictions.shape[1])), ops.reshape(labels, (count,))


def _loss(node, logs, labels, weights, mean):
    """The loss from log-probabilities. mean: what gives the mean from (logs, labels, weights, ignored)."""
    reduction, ignored = node.get("reduction", "mean"), node.get("ignore_index")
    if reduction not in ("mean", "sum", "none"):
        raise node.fail('reduction to be "mean", "sum" or "none"', repr(reduction))
    rows, flat = _rows(node, logs, labels)
    if reduction == "mean":
        return mean(rows, flat, weights, ignored)
    classes = rows.shape[1]
    if not isinstance(classes, int):
        raise node.fail("a known number of classes", classes, "give shapes={...}")
    if weights is None:
        weights = np.ones(classes, logs.dtype)
    spread = {"smoothing": 0.0, "ignore": ignored}
    (losses,) = ops.record("weighted_nll", [rows, flat, weights.astype(logs.dtype)], spread)
    return ops.sum(losses) if reduction == "sum" else ops.reshape(losses, labels.shape)


@converter("NegativeLogLikelihoodLoss", known=[2])
def nll(node, logs, labels, weights=None):
    return _loss(node, logs, labels, weights, ops.nll)


@converter("SoftmaxCrossEntropyLoss", known=[2])
def softmax_cross_entropy(node, scores, labels, weights=None):
    """(loss, log-probabilities); the latter are recorded where they are read."""

    def mean(rows, flat, weights, ignored):
        return ops.softmax_cross_entropy(rows, flat, weights, 0.0, ignored)

    is_mean = node.get("reduction", "mean") == "mean"
    wants_logs = len(node.outputs) > 1 and node.outputs[1]
    logs = ops.log_softmax(scores, axis=1) if wants_logs or not is_mean else None
    loss = _loss(node, scores if is_mean else logs, labels, weights, mean)
    return (loss, logs) if wants_logs else loss
