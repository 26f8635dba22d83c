"""Losses: scalar tensors (), of the predictions' dtype, from predictions and truth.

Softmax cross-entropy and NLL are ops, summed in float64, row by row in the order of the samples; the others are
compositions, of which the compiler makes fused kernels. Labels of a class are int64 (N,), or floating weights of the
classes (N, C): one-hot rows or probabilities. A label outside 0 .. C - 1 is reported (LABEL_OUT_OF_RANGE), never read
with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tapeprop.errors import LabelError, ShapeError
from tapeprop.ir import Tensor
from tapeprop.ir.dims import same, text
from tapeprop.ops import elementwise, scalar
from tapeprop.ops.losses.labels import (
    CUDA,
    HERE,
    LABEL_OUT_OF_RANGE,
    column,
    cuda_label_rows,
    dense_labels,
    expect_labels,
    flat,
    known,
    label_launch,
    label_samples,
    row_gradient,
    weighted_sum,
)
from tapeprop.ops.losses.weighted import ScaledClassWeights as ScaledClassWeights
from tapeprop.ops.op import (
    NARROW,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    as_tensor,
    check_rank,
    constant_tensor,
    cuda_launch,
    inverse,
    launch,
    operand,
    record,
    register,
    result,
    same_dtype,
)
from tapeprop.ops.reduce import mean
from tapeprop.ops.reduce import sum as reduce_sum
from tapeprop.ops.scalar import Scalar
from tapeprop.ops.softmax import log_softmax, softmax

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

LOSSES_OF_A_THREAD = 16  # of a mean; where there are more, blocks add up parts of it


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
        expect_labels(self.name, logits, labels)
        return [(logits.shape[:1], logits.dtype), (logits.shape, logits.dtype)]

    def vjp(self, call, gradients, wanted):
        (logits, labels), (_, dlogits) = call.operands, call.results
        to_rows, to_dlogits = gradients
        dense = labels.dtype != "int64"
        to_logits: Tensor | None = None
        to_labels: Tensor | None = None
        if to_rows is not None:
            to_logits = row_gradient(dlogits, to_rows)
            if dense and wanted[1]:
                to_labels = -(log_softmax(logits) * column(to_rows))
        if to_dlogits is not None:
            share = to_dlogits / float(known(logits.shape[0]))
            weights = softmax(logits)
            through = record("softmax_grad", [weights, share], {"axis": 1})[0]
            if dense:
                through = through * reduce_sum(labels, 1, keepdims=True)
                if wanted[1]:
                    more = reduce_sum(weights * share, 1, keepdims=True) - share
                    to_labels = more if to_labels is None else to_labels + more
            to_logits = through if to_logits is None else to_logits + through
        return [to_logits, to_labels]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        logits, labels = arrays
        n, c = logits.shape
        weights = dense_labels(labels, c, logits.dtype)
        top = logits.max(1, keepdims=True)
        with np.errstate(invalid="ignore"):
            distance = np.where((top == np.inf) & (logits == np.inf), logits.dtype.type(0), logits - top)
        shares = np.exp(distance)
        total = shares.sum(1, keepdims=True)
        rows = weighted_sum(weights, np.log(total) - distance)
        return [rows, (shares / total * weights.sum(1, keepdims=True) - weights) / logits.dtype.type(n)]

    def cpu(self, call: Call) -> Launch:
        return label_launch(self.name, call, 1, call.operands[0].shape)

    def cuda(self, call: Call, device: Device) -> Launch:
        return cuda_label_rows(self.name, call, device)

    def flops(self, call: Call) -> int:
        return 6 * call.operands[0].size

    def samples(self) -> list[Sample]:
        return label_samples(negative=False)


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

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        return [np.array(arrays[0].mean(dtype=np.float64), arrays[0].dtype)]

    def cpu(self, call: Call) -> Launch:
        arrays = [operand(0, call), (Ref("result", 0), (1,))]
        return launch(f"{HERE}:mean_loss", call, arrays, dtype=call.results[0].dtype)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        n, dtype = call.operands[0].size, call.results[0].dtype
        blocks = min(device.blocks, -(-n // (LOSSES_OF_A_THREAD * device.block)))
        block = (device.block, 1, 1)
        mean, scratch = (Ref("result", 0), (1,)), (blocks, "float64")
        if blocks == 1:
            arrays = [operand(0, call), mean]
            return [cuda_launch(f"{CUDA}:mean_loss", arrays, [n], grid=(1, 1, 1), block=block, dtype=dtype, to=dtype)]
        sums = (Ref("scratch"), (blocks,))
        return [
            cuda_launch(
                f"{CUDA}:partial_sums",
                [operand(0, call), sums],
                grid=(blocks, 1, 1),
                block=block,
                scratch=scratch,
                label="sums of losses",
                dtype=dtype,
            ),
            cuda_launch(
                f"{CUDA}:mean_loss",
                [sums, mean],
                [n],
                grid=(1, 1, 1),
                block=block,
                scratch=scratch,
                flops=blocks,
                traffic=8 * blocks,
                dtype="float64",
                to=dtype,
            ),
        ]

    def flops(self, call: Call) -> int:
        return call.operands[0].size

    def parts(self, call: Call) -> int:
        return 1

    def samples(self) -> list[Sample]:
        return [Sample(lambda r, n=n: [r.uniform(0, 3, n)], depth=n) for n in (1, 5, 77, 5000)]


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

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        return [np.full(call["count"], arrays[0] / call["count"])]

    def cpu(self, call: Call) -> Launch:
        arrays = [(Ref("operand", 0), (1,)), result(0, call)]
        return launch(f"{HERE}:mean_loss_grad", call, arrays, dtype=call.results[0].dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        grid, block = device.spread(call.results[0].size)
        arrays = [(Ref("operand", 0), (1,)), result(0, call)]
        return cuda_launch(f"{CUDA}:mean_loss_grad", arrays, grid=grid, block=block, dtype=call.results[0].dtype)

    def parts(self, call: Call) -> int:
        return 1

    def samples(self) -> list[Sample]:
        return [Sample(lambda r: [np.array(r.standard_normal())], {"count": count}) for count in (1, 5, 77)]


# ---- negative log-likelihood


@register
class NLL(Op):
    """(log-probabilities (N, C), labels) -> row losses (N,): the sum over classes of -label log-probability."""

    name = "nll"
    onnx = ("NegativeLogLikelihoodLoss",)

    def infer(self, operands, attributes):
        logs, labels = operands
        expect_labels(self.name, logs, labels)
        return [(logs.shape[:1], logs.dtype)]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        if g is None:
            return [None, None]
        logs, labels = call.operands
        to_logs = record("nll_grad", [labels, g], {"classes": logs.shape[1]})[0]
        dense = wanted[1] and labels.dtype != "int64"
        return [to_logs, -(logs * column(g)) if dense else None]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        logs, labels = arrays
        return [weighted_sum(dense_labels(labels, logs.shape[1], logs.dtype), -logs)]

    def cpu(self, call: Call) -> Launch:
        return label_launch(self.name, call, 1, call.operands[0].shape)

    def cuda(self, call: Call, device: Device) -> Launch:
        return cuda_label_rows(self.name, call, device, may_team=call.operands[1].dtype != "int64")

    def samples(self) -> list[Sample]:
        return label_samples(negative=True)


@register
class NLLGrad(Op):
    """(labels, g (N,)) -> (N, classes), of g's dtype: -label g."""

    name = "nll_grad"

    def infer(self, operands, attributes):
        _, g = operands
        check_rank(self.name, g, 1, "(N,)")
        return [((g.shape[0], attributes["classes"]), same_dtype(self.name, [g]))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        if g is None:
            return [None, None]
        labels, rows = call.operands
        dense = wanted[0] and labels.dtype != "int64"
        return [-(g * column(rows)) if dense else None, record("nll", [g, labels])[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        labels, g = arrays
        weights = dense_labels(labels, call["classes"], g.dtype)
        with np.errstate(invalid="ignore"):
            slopes = -weights * g[:, None]
        return [slopes if labels.dtype.kind == "f" else np.where(weights == 0, 0, slopes)]

    def cpu(self, call: Call) -> Launch:
        return label_launch(self.name, call, 0, call.results[0].shape)

    def cuda(self, call: Call, device: Device) -> Launch:
        made = call.results[0]
        grid, block = device.spread(made.size)
        return cuda_launch(
            f"{CUDA}:nll_grad",
            flat(call),
            (*made.shape, LABEL_OUT_OF_RANGE, inverse(made.shape[1])),
            grid=grid,
            block=block,
            dtype=made.dtype,
            dense=call.operands[0].dtype != "int64",
            wide=made.size >= NARROW,
        )

    def samples(self) -> list[Sample]:
        return [
            Sample(lambda r: [r.integers(0, 7, 5), r.standard_normal(5)], {"classes": 7}, gradient=(1,)),
            Sample(
                lambda r: [r.uniform(0, 1, (3, 37)), r.standard_normal(3)],
                {"classes": 37},
                depth=37,
                gradient=(0, 1),
            ),
        ]


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


# ---- compositions


def _expect_same_shape(name: str, y_pred: Tensor, y_true: Tensor) -> None:
    """ShapeError unless the shapes agree: (N,) beside (N, 1) would broadcast to (N, N) and train on nonsense."""
    if y_pred.ndim != y_true.ndim or not all(same(a, b) for a, b in zip(y_pred.shape, y_true.shape)):
        raise ShapeError(
            f"{name}: expected y_true of y_pred's shape {text(y_pred.shape)}, got {text(y_true.shape)}; "
            "reshape one of them"
        )


def _mean_of(name: str, term: Callable[[Scalar, Scalar], Scalar], y_pred: Any, y_true: Any) -> Tensor:
    """The mean over all elements of term(prediction, truth)."""
    y_pred, y_true = as_tensor(y_pred), as_tensor(y_true)
    _expect_same_shape(name, y_pred, y_true)
    return mean(elementwise.compute(term, y_pred, y_true, label=name)[0])


def mse(y_pred: Any, y_true: Any) -> Tensor:
    """The mean over all elements of (y_pred - y_true)^2; both of one shape and floating dtype. ShapeError,
    DTypeError.
    """
    return _mean_of("mse", lambda p, t: (p - t) * (p - t), y_pred, y_true)


def mae(y_pred: Any, y_true: Any) -> Tensor:
    """The mean over all elements of |y_pred - y_true|, whose derivative at 0 is 0; operands as for `mse`."""
    return _mean_of("mae", lambda p, t: scalar.absolute(p - t), y_pred, y_true)


def hinge(y_pred: Any, y_true: Any) -> Tensor:
    """The mean over all elements of max(1 - y_true y_pred, 0), truth being -1 or 1; its derivative at the kink is 0."""

    def term(p: Scalar, t: Scalar) -> Scalar:
        margin = 1 - t * p
        return scalar.where(margin <= 0, 0.0, margin)  # a NaN is not <= 0 and stays

    return _mean_of("hinge", term, y_pred, y_true)


def huber(y_pred: Any, y_true: Any, delta: float = 1.0) -> Tensor:
    """The mean over all elements of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2) (Huber 1964).

    e = y_pred - y_true; operands as for `mse`.
    """

    def term(p: Scalar, t: Scalar) -> Scalar:
        size = scalar.absolute(p - t)
        near = scalar.minimum(size, float(delta))
        return near * (size - 0.5 * near)

    return _mean_of("huber", term, y_pred, y_true)


def binary_cross_entropy(logits: Any, y_true: Any, pos_weight: Any = None) -> Tensor:
    """The mean over all elements of -w t log s - (1 - t) log(1 - s), s = sigmoid(logit) and t in [0, 1] the truth.

    w: pos_weight, one number or one for each place along axis 1; 1 where None. ShapeError where these are not as many.
    Computed as max(x, 0) - x t + log(1 + e^-|x|), which neither overflows nor rounds a small loss away, and with a
    weight as (1 - t) x + (1 + (w - 1) t) (max(-x, 0) + log(1 + e^-|x|)).
    """

    def term(x: Scalar, t: Scalar) -> Scalar:
        return (scalar.maximum(x, 0.0) - x * t) + scalar.log1p(scalar.exp(-scalar.absolute(x)))

    def weighted(x: Scalar, t: Scalar, w: Scalar | float) -> Scalar:
        cost = scalar.maximum(-x, 0.0) + scalar.log1p(scalar.exp(-scalar.absolute(x)))
        return (1 - t) * x + (1 + (w - 1) * t) * cost

    if pos_weight is None:
        return _mean_of("binary_cross_entropy", term, logits, y_true)
    logits = as_tensor(logits)
    weights = np.asarray(pos_weight, np.float64)
    if weights.ndim == 0:
        return _mean_of("binary_cross_entropy", lambda x, t: weighted(x, t, float(weights)), logits, y_true)
    y_true = as_tensor(y_true)
    _expect_same_shape("binary_cross_entropy", logits, y_true)
    if logits.ndim < 2 or weights.shape != (known(logits.shape[1]),):
        raise ShapeError(
            f"binary_cross_entropy: expected pos_weight as one number, or one for each place along axis 1 of "
            f"{text(logits.shape)}, got shape {weights.shape}"
        )
    each = constant_tensor(weights.reshape(-1, *[1] * (logits.ndim - 2)), logits.dtype)
    return mean(elementwise.compute(weighted, logits, y_true, each, label="binary_cross_entropy")[0])


def kl_divergence(y_pred: Any, y_true: Any, log_predictions: bool = False) -> Tensor:
    """The mean over samples of the sum over classes of p log(p / q), p = y_true and q = y_pred, both (N, C).

    A class with p = 0 adds 0. log_predictions: y_pred holds log q instead. ShapeError, DTypeError.
    """
    y_pred, y_true = as_tensor(y_pred), as_tensor(y_true)
    check_rank("kl_divergence", y_pred, 2, "(N, C)")
    _expect_same_shape("kl_divergence", y_pred, y_true)

    def term(q: Scalar, p: Scalar) -> Scalar:
        cost = p * (scalar.log(p) - (q if log_predictions else scalar.log(q)))
        return scalar.where(scalar.equal(p, 0.0), 0.0, cost)

    return mean(reduce_sum(elementwise.compute(term, y_pred, y_true, label="kl_divergence")[0], 1))
