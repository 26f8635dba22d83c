"""Losses: scalar tensors (), of the predictions' dtype, from predictions and truth.

Softmax cross-entropy and NLL are ops, summed in float64, row by row in the order of the samples; the others are
compositions, of which the compiler makes fused kernels. Labels of a class are int64 (N,), or floating weights of the
classes (N, C): one-hot rows or probabilities. A label outside 0 .. C - 1 is reported (LABEL_OUT_OF_RANGE), never read
with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import LabelError, ShapeError
from tapeprop.ir import Constant, Size, Tensor, UndecidedError
from tapeprop.ir.dims import same, text
from tapeprop.ops import elementwise
from tapeprop.ops.op import (
    Call,
    Launch,
    Op,
    Ref,
    Sample,
    as_tensor,
    check_rank,
    failure,
    launch,
    operand,
    record,
    register,
    result,
    same_dtype,
)
from tapeprop.ops.reduce import mean
from tapeprop.ops.reduce import sum as reduce_sum
from tapeprop.ops.shape import reshape
from tapeprop.ops.softmax import log_softmax, softmax

__all__ = [
    "LABEL_OUT_OF_RANGE",
    "binary_cross_entropy",
    "hinge",
    "huber",
    "kl_divergence",
    "mae",
    "mse",
    "nll",
    "softmax_cross_entropy",
]

HERE = "tapeprop.ops.losses.cpu"
LABEL_OUT_OF_RANGE = failure(
    1, "label", "a label is outside 0 .. classes - 1; check the labels, or give the last layer more outputs"
)


# ---- labels


def is_one(tensor: Tensor) -> bool:
    """Whether every element is known to be 1."""
    return isinstance(tensor.source, Constant) and bool(np.all(tensor.source.array == 1))


def _expect_labels(name: str, predictions: Tensor, labels: Tensor) -> None:
    """LabelError unless labels are int64 (N,), or (N, C) of the dtype of predictions (N, C)."""
    check_rank(name, predictions, 2, "(N, C)")
    dtype = same_dtype(name, [predictions])
    integral = labels.dtype == "int64"
    expected = predictions.shape[:1] if integral else predictions.shape
    fits = labels.ndim == len(expected) and all(same(a, b) for a, b in zip(labels.shape, expected))
    if not fits or (not integral and labels.dtype != dtype):
        raise LabelError(
            f"{name}: expected labels int64 {text(predictions.shape[:1])} or {dtype} {text(predictions.shape)}, "
            f"got {labels.dtype} {text(labels.shape)}"
        )


def _weights(labels: np.ndarray, classes: int, dtype: np.dtype) -> np.ndarray:
    """(N, C): labels as weights of the classes. LabelError where one is out of range."""
    if labels.dtype.kind == "f":
        return labels
    if labels.size and not (0 <= labels.min() and labels.max() < classes):
        raise LabelError(f"expected labels in 0 .. {classes - 1}, got {labels.min()} .. {labels.max()}")
    return np.eye(classes, dtype=dtype)[labels]


def _weighted(weights: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """(N,): the sum over classes of weights * costs; a class of weight 0 adds 0, whatever its cost."""
    with np.errstate(invalid="ignore"):
        return np.where(weights == 0, 0, weights * costs).sum(1).astype(weights.dtype)


def _label_launch(builder: str, call: Call, arrays: Sequence[Any], integers: Sequence[int], labels: int) -> Launch:
    dense = call.operands[labels].dtype != "int64"
    return launch(f"{HERE}:{builder}", call, arrays, integers, dtype=call.results[0].dtype, dense=dense)


def _label_samples(gradient: tuple[int, ...], signed: float, with_rows: bool = False) -> list[Sample]:
    """Predictions (N, C), of negative sign where `signed` is, and labels of both kinds."""
    found = []
    for n, c in [(5, 10), (1, 1), (3, 37), (70, 2)]:

        def predictions(r: np.random.Generator, n: int = n, c: int = c) -> np.ndarray:
            return r.standard_normal((n, c)) if signed > 0 else -r.uniform(0.1, 4, (n, c))

        def whole(r: np.random.Generator, n: int = n, c: int = c) -> np.ndarray:
            return r.integers(0, c, n)

        def dense(r: np.random.Generator, n: int = n, c: int = c) -> np.ndarray:
            return r.uniform(0, 1, (n, c))

        for labels, wanted in ((whole, (0,)), (dense, (0, 1))):
            gradient_of = tuple(i for i in wanted if i in gradient)
            found.append(Sample(lambda r, p=predictions, y=labels: [p(r), y(r)], depth=c, gradient=gradient_of))
    return found


# ---- softmax cross-entropy


@register
class SoftmaxCrossEntropy(Op):
    """(logits (N, C), labels) -> (row losses (N,), dlogits (N, C)), of the logits' dtype.

    A row's loss is the sum over classes of -label log_softmax(logits). dlogits is the gradient of the MEAN of the row
    losses: (softmax(logits) (sum of labels) - labels) / N.
    """

    name = "softmax_cross_entropy"
    inplace = ((1, 0),)
    onnx = ("SoftmaxCrossEntropyLoss",)

    def infer(self, operands, attributes):
        logits, labels = operands
        _expect_labels(self.name, logits, labels)
        return [(logits.shape[:1], logits.dtype), (logits.shape, logits.dtype)]

    def vjp(self, call, gradients, wanted):
        (logits, labels), (_, dlogits) = call.operands, call.results
        to_rows, to_dlogits = gradients
        dense = labels.dtype != "int64"
        to_logits: Tensor | None = None
        to_labels: Tensor | None = None
        if to_rows is not None:
            to_logits = _row_gradient(dlogits, to_rows)
            if dense and wanted[1]:
                to_labels = -(log_softmax(logits) * _column(to_rows))
        if to_dlogits is not None:
            share = to_dlogits / float(_known(logits.shape[0]))
            weights = softmax(logits)
            through = record("softmax_grad", [weights, share], {"axis": 1})[0]
            if dense:
                through = through * reduce_sum(labels, 1, keepdims=True)
                if wanted[1]:
                    more = reduce_sum(weights * share, 1, keepdims=True) - share
                    to_labels = more if to_labels is None else to_labels + more
            to_logits = through if to_logits is None else to_logits + through
        return [to_logits, to_labels]

    def reference(self, call: Call, *arrays: np.ndarray):
        logits, labels = arrays
        n, c = logits.shape
        weights = _weights(labels, c, logits.dtype)
        top = logits.max(1, keepdims=True)
        with np.errstate(invalid="ignore"):
            distance = np.where((top == np.inf) & (logits == np.inf), logits.dtype.type(0), logits - top)
        shares = np.exp(distance)
        total = shares.sum(1, keepdims=True)
        rows = _weighted(weights, np.log(total) - distance)
        return [rows, (shares / total * weights.sum(1, keepdims=True) - weights) / logits.dtype.type(n)]

    def cpu(self, call: Call) -> Launch:
        arrays = [operand(0, call), operand(1, call), result(0, call), result(1, call)]
        return _label_launch(self.name, call, arrays, (LABEL_OUT_OF_RANGE,), 1)

    def flops(self, call: Call) -> int:
        return 6 * call.operands[0].size

    def samples(self):
        return _label_samples((0, 1), 1.0)


def _row_gradient(dlogits: Tensor, to_rows: Tensor) -> Tensor:
    """The gradient of logits where that of the row losses is `to_rows` (N,): dlogits times N to_rows.

    Where the rows went into a mean only, as they do in training, that is dlogits times the gradient of the mean, and
    dlogits itself where that is 1.
    """
    producer = to_rows.producer
    if producer is not None and producer.op.name == "mean_loss_grad":
        g = producer.operands[0]
        return dlogits if is_one(g) else dlogits * g
    return dlogits * _column(to_rows * float(_known(dlogits.shape[0])))


def _column(rows: Tensor) -> Tensor:
    """(N,) as (N, 1)."""
    return reshape(rows, (rows.shape[0], 1))


def _known(size: Size) -> int:
    """A size as a number; UndecidedError where it is open, upon which the program is traced again with the size of
    the call.
    """
    if not isinstance(size, int):
        raise UndecidedError(f"the value of {size}")
    return size


def softmax_cross_entropy(logits: Any, labels: Any) -> Tensor:
    """The mean over samples of the sum over classes of -label log_softmax(logits): (), of the logits' dtype.

    logits: (N, C), floating. labels: int64 (N,), or (N, C) of the logits' dtype. LabelError where they do not fit.
    """
    logits, labels = as_tensor(logits), as_tensor(labels)
    rows, _ = record("softmax_cross_entropy", [logits, labels])
    return record("mean_loss", [rows])[0]


# ---- the mean of row losses


@register
class MeanLoss(Op):
    """Row losses (N,) -> their mean (), summed in float64 in the order of the samples."""

    name = "mean_loss"

    def infer(self, operands, attributes):
        (rows,) = operands
        check_rank(self.name, rows, 1, "(N,)")
        return [((), same_dtype(self.name, operands))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        return [None if g is None else record("mean_loss_grad", [g], {"count": call.operands[0].shape[0]})[0]]

    def reference(self, call: Call, *arrays: np.ndarray):
        return [np.array(arrays[0].mean(dtype=np.float64), arrays[0].dtype)]

    def cpu(self, call: Call) -> Launch:
        arrays = [operand(0, call), (Ref("result", 0), (1,))]
        return launch(f"{HERE}:mean_loss", call, arrays, dtype=call.results[0].dtype)

    def flops(self, call: Call) -> int:
        return call.operands[0].size

    def samples(self):
        return [Sample(lambda r, n=n: [r.uniform(0, 3, n)], depth=n) for n in (1, 5, 77)]


@register
class MeanLossGrad(Op):
    """g () -> (count,), each g / count."""

    name = "mean_loss_grad"

    def infer(self, operands, attributes):
        (g,) = operands
        check_rank(self.name, g, 0, "()")
        return [((attributes["count"],), same_dtype(self.name, operands))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        return [None if g is None else record("mean_loss", [g])[0]]

    def reference(self, call: Call, *arrays: np.ndarray):
        return [np.full(call["count"], arrays[0] / call["count"])]

    def cpu(self, call: Call) -> Launch:
        arrays = [(Ref("operand", 0), (1,)), result(0, call)]
        return launch(f"{HERE}:mean_loss_grad", call, arrays, dtype=call.results[0].dtype)

    def samples(self):
        return [Sample(lambda r: [np.array(r.standard_normal())], {"count": count}) for count in (1, 5, 77)]


# ---- negative log-likelihood


@register
class NLL(Op):
    """(log-probabilities (N, C), labels) -> row losses (N,): the sum over classes of -label log-probability."""

    name = "nll"
    onnx = ("NegativeLogLikelihoodLoss",)

    def infer(self, operands, attributes):
        logs, labels = operands
        _expect_labels(self.name, logs, labels)
        return [(logs.shape[:1], logs.dtype)]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        if g is None:
            return [None, None]
        logs, labels = call.operands
        to_logs = record("nll_grad", [labels, g], {"classes": logs.shape[1]})[0]
        dense = wanted[1] and labels.dtype != "int64"
        return [to_logs, -(logs * _column(g)) if dense else None]

    def reference(self, call: Call, *arrays: np.ndarray):
        logs, labels = arrays
        return [_weighted(_weights(labels, logs.shape[1], logs.dtype), -logs)]

    def cpu(self, call: Call) -> Launch:
        arrays = [operand(0, call), operand(1, call), result(0, call)]
        return _label_launch(self.name, call, arrays, (LABEL_OUT_OF_RANGE,), 1)

    def samples(self):
        return _label_samples((0, 1), -1.0)


@register
class NLLGrad(Op):
    """(labels, g (N,)) -> (N, classes), of g's dtype: -label g."""

    name = "nll_grad"

    def infer(self, operands, attributes):
        labels, g = operands
        check_rank(self.name, g, 1, "(N,)")
        return [((g.shape[0], attributes["classes"]), same_dtype(self.name, [g]))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        if g is None:
            return [None, None]
        labels, rows = call.operands
        dense = wanted[0] and labels.dtype != "int64"
        return [-(g * _column(rows)) if dense else None, record("nll", [g, labels])[0]]

    def reference(self, call: Call, *arrays: np.ndarray):
        labels, g = arrays
        return [-_weights(labels, call["classes"], g.dtype) * g[:, None]]

    def cpu(self, call: Call) -> Launch:
        arrays = [operand(0, call), operand(1, call), result(0, call)]
        return _label_launch(self.name, call, arrays, (LABEL_OUT_OF_RANGE,), 0)

    def samples(self):
        return [
            Sample(lambda r: [r.integers(0, 7, 5), r.standard_normal(5)], {"classes": 7}, gradient=(1,)),
            Sample(
                lambda r: [r.uniform(0, 1, (3, 37)), r.standard_normal(3)],
                {"classes": 37},
                depth=37,
                gradient=(0, 1),
            ),
        ]


def nll(log_probabilities: Any, labels: Any) -> Tensor:
    """The mean over samples of the sum over classes of -label log-probability: (), of the log-probabilities' dtype.

    log_probabilities: (N, C), floating. labels: int64 (N,), or (N, C) of the same dtype. LabelError where they do not
    fit.
    """
    log_probabilities, labels = as_tensor(log_probabilities), as_tensor(labels)
    (rows,) = record("nll", [log_probabilities, labels])
    return record("mean_loss", [rows])[0]
