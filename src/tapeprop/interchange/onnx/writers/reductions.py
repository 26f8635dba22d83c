"""Ops that make one number of many: sums and means, pools, softmax, losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tapeprop.interchange.onnx.writers.builder import Builder, unwritable
from tapeprop.interchange.onnx.writers.products import ends
from tapeprop.interchange.onnx.writers.registry import writer
from tapeprop.interchange.onnx.writers.steps import Step
from tapeprop.ops.reduce import CHUNK

_REDUCTIONS = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin"}
_OVER_SPACE = {"mean": "GlobalAveragePool", "max": "GlobalMaxPool"}


@writer("reduce")
def reduce(b: Builder, step: Step, x: str) -> str:
    rank, axes, mode = step.operands[0].ndim, list(step["axes"]), step["mode"]
    if step["keepdims"] and rank == 4 and axes == [2, 3] and mode in _OVER_SPACE:  # ONNX' evaluator knows no other rank
        return b.node(_OVER_SPACE[mode], [x])
    return reduced(b, _REDUCTIONS[mode], x, axes, step["keepdims"])


def reduced(b: Builder, op: str, x: str, axes: Sequence[int], keepdims: bool) -> str:
    """Opset 18 made the axes of all reductions an input; that of the sum was one before."""
    if op == "ReduceSum" or b.opset >= 18:
        return b.node(op, [x, b.ints(axes)], keepdims=int(keepdims))
    return b.node(op, [x], axes=list(axes), keepdims=int(keepdims))


@writer("square_sums")
def square_sums(b: Builder, step: Step, x: str) -> str:
    """Chunks of the squares, in float64, the last one filled with zeros."""
    size = b.count(step.operands[0].shape)
    if not isinstance(size, int):
        raise unwritable(step, "a known number of elements", size, "give input_shape all sizes")
    chunks = -(-size // CHUNK)
    wide = b.cast(x, "float64") if step.operands[0].dtype != "float64" else x
    flat = b.reshape(b.node("Mul", [wide, wide]), step.operands[0].shape, (size,))
    full = b.node("Pad", [flat, b.ints([0, chunks * CHUNK - size]), b.number(0.0, "float64")], mode="constant")
    return reduced(b, "ReduceSum", b.reshape(full, (chunks * CHUNK,), (chunks, CHUNK)), [1], False)


# ---- pools


@writer("max_pool2d")
def max_pool(b: Builder, step: Step, x: str) -> str:
    size, padding = step["size"], step["padding"]
    pads = ends(padding)
    if any(n >= taps for side, taps in zip(padding, size) for n in side):
        # a window with gaps may reach further than it has elements; runtimes refuse such padding
        least = b.number(-np.inf, step.results[0].dtype)
        x = b.node("Pad", [x, b.ints([0, 0, *pads[: len(size)], 0, 0, *pads[len(size) :]]), least], mode="constant")
        pads = [0] * len(pads)
    gaps = step.attributes.get("dilation", (1,) * len(size))
    return b.node(
        "MaxPool", [x], kernel_shape=list(size), strides=list(step["stride"]), pads=pads, dilations=list(gaps)
    )


@writer("avg_pool2d")
def avg_pool(b: Builder, step: Step, x: str) -> str:
    return b.node(
        "AveragePool",
        [x],
        kernel_shape=list(step["size"]),
        strides=list(step["stride"]),
        pads=ends(step["padding"]),
        count_include_pad=int(step["count_include_pad"]),
    )


# ---- softmax


@writer("softmax")
def softmax(b: Builder, step: Step, x: str) -> str:
    return b.node("Softmax", [x], axis=step["axis"])


@writer("log_softmax")
def log_softmax(b: Builder, step: Step, x: str) -> str:
    return b.node("LogSoftmax", [x], axis=step["axis"])


# ---- losses; what they give beside the losses of rows is for the gradient


@writer("softmax_cross_entropy")
def softmax_cross_entropy(b: Builder, step: Step, logits: str, labels: str) -> tuple[str]:
    if step.operands[1].dtype == "int64":
        return (b.node("SoftmaxCrossEntropyLoss", [logits, labels], reduction="none"),)
    return (_weighted_sum(b, labels, b.node("LogSoftmax", [logits], axis=1)),)


@writer("nll")
def nll(b: Builder, step: Step, logs: str, labels: str) -> str:
    if step.operands[1].dtype == "int64":
        return b.node("NegativeLogLikelihoodLoss", [logs, labels], reduction="none")
    return _weighted_sum(b, labels, logs)


def _weighted_sum(b: Builder, labels: str, logs: str) -> str:
    return b.node("Neg", [reduced(b, "ReduceSum", b.node("Mul", [labels, logs]), [1], False)])


@writer("mean_loss")
def mean_loss(b: Builder, step: Step, rows: str) -> str:
    return reduced(b, "ReduceMean", rows, [0], False)


@writer("scaled_class_weights")
def scaled_class_weights(b: Builder, step: Step, labels: str, weights: str) -> str:
    """weights N / (sum of the weights of the labels that count)."""
    ignore = step["ignore"]
    if ignore is None:
        counted = b.node("Gather", [weights, labels], axis=0)
    else:
        left_out = b.node("Equal", [labels, b.constant(ignore, "int64")])
        safe = b.node("Where", [left_out, b.constant(0, "int64"), labels])
        counted = b.node("Gather", [weights, safe], axis=0)
        counted = b.node("Where", [left_out, b.number(0.0, step.results[0].dtype), counted])
    total = reduced(b, "ReduceSum", counted, [0], False)
    samples = b.number_of(step.operands[0].shape[0], step.results[0].dtype)
    return b.node("Mul", [weights, b.node("Div", [samples, total])])


@writer("weighted_cross_entropy")
def weighted_cross_entropy(b: Builder, step: Step, logits: str, labels: str, weights: str) -> tuple[str]:
    return (_weighted_rows(b, step, b.node("LogSoftmax", [logits], axis=1), labels, weights),)


@writer("weighted_nll")
def weighted_nll(b: Builder, step: Step, logs: str, labels: str, weights: str) -> str:
    return _weighted_rows(b, step, logs, labels, weights)


def _weighted_rows(b: Builder, step: Step, logs: str, labels: str, weights: str) -> str:
    """(1 - s) times the loss of the label, s / C times those of all classes; 0 where the label is left out."""
    dtype, smoothing, ignore = step.results[0].dtype, step["smoothing"], step["ignore"]
    left_out = None
    if ignore is not None:
        left_out = b.node("Equal", [labels, b.constant(ignore, "int64")])
        labels = b.node("Where", [left_out, b.constant(0, "int64"), labels])
    rows = b.node("NegativeLogLikelihoodLoss", [logs, labels, weights], reduction="none")
    if smoothing:
        classes = step.operands[0].shape[1]
        every = _weighted_sum(b, weights, logs)
        part = b.node("Mul", [every, b.node("Div", [b.number(smoothing, dtype), b.number_of(classes, dtype)])])
        rows = b.node("Add", [b.node("Mul", [rows, b.number(1 - smoothing, dtype)]), part])
    if left_out is None:
        return rows
    nothing = b.node(
        "Mul", [b.node("Gather", [weights, b.ints([0])], axis=0), b.number(0.0, dtype)]
    )  # NaN where none counts
    return b.node("Where", [left_out, nothing, rows])


@writer("count_correct")
def count_correct(b: Builder, step: Step, logits: str, labels: str) -> str:
    expected = labels if step.operands[1].dtype == "int64" else _first_largest(b, labels)
    right = b.node("Equal", [_first_largest(b, logits), expected])
    return reduced(b, "ReduceSum", b.cast(right, "float64"), [0], False)


def _first_largest(b: Builder, x: str) -> str:
    return b.node("ArgMax", [x], axis=1, keepdims=0)
