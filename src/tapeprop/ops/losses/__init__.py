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
from tapeprop.ir import Constant, Size, Tensor, UndecidedError
from tapeprop.ir.dims import same, text
from tapeprop.ops import elementwise, scalar
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
    cuda_launch,
    failure,
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
from tapeprop.ops.shape import reshape
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

HERE = "tapeprop.ops.losses.cpu"
CUDA = "tapeprop.ops.losses.cuda"
CLASSES_OF_A_THREAD = 8  # rows that are longer are a block's on a GPU
LOSSES_OF_A_THREAD = 16  # of a mean; where there are more, blocks add up parts of it
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
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise LabelError(f"expected labels in 0 .. {classes - 1}, got {labels.min()} .. {labels.max()}")
    return np.eye(classes, dtype=dtype)[labels]


def _weighted(weights: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """(N,): the sum over classes of weights * costs; a class of weight 0 adds 0, whatever its cost."""
    with np.errstate(invalid="ignore"):
        return np.where(weights == 0, 0, weights * costs).sum(1).astype(weights.dtype)


def _label_launch(builder: str, call: Call, labels: int, shape: tuple[int, ...]) -> Launch:
    """Every array flat, then N and C. labels: which operand they are."""
    dense = call.operands[labels].dtype != "int64"
    integers = (*shape, LABEL_OUT_OF_RANGE)
    return launch(f"{HERE}:{builder}", call, _flat(call), integers, dtype=call.results[0].dtype, dense=dense)


def _flat(call: Call) -> list[tuple[Ref, tuple[int, ...]]]:
    arrays: list[tuple[Ref, tuple[int, ...]]] = [(Ref("operand", i), (a.size,)) for i, a in enumerate(call.operands)]
    return arrays + [(Ref("result", i), (a.size,)) for i, a in enumerate(call.results)]


def _cuda_label_rows(builder: str, call: Call, device: Device, may_team: bool = True) -> Launch:
    """As `_label_launch` of labels in operand 1; a thread takes a row, or a block, where rows are long and `may_team`."""
    n, c = call.operands[0].shape
    team = may_team and c > CLASSES_OF_A_THREAD
    grid, block = device.rows(n, c) if team else device.spread(n)
    return cuda_launch(
        f"{CUDA}:{builder}",
        _flat(call),
        (n, c, LABEL_OUT_OF_RANGE),
        grid=grid,
        block=block,
        dtype=call.results[0].dtype,
        dense=call.operands[1].dtype != "int64",
        team=team,
    )


def _label_samples(negative: bool) -> list[Sample]:
    """Predictions (N, C), all of them negative or of either sign, and labels of both kinds."""
    found = []
    for n, c in [(5, 10), (1, 1), (3, 37), (70, 2)]:

        def predictions(r: np.random.Generator, n: int = n, c: int = c) -> np.ndarray:
            return -r.uniform(0.1, 4, (n, c)) if negative else r.standard_normal((n, c))

        def whole(r: np.random.Generator, n: int = n, c: int = c) -> np.ndarray:
            return r.integers(0, c, n)

        def dense(r: np.random.Generator, n: int = n, c: int = c) -> np.ndarray:
            return r.uniform(0, 1, (n, c))

        found += [
            Sample(lambda r, p=predictions, y=whole: [p(r), y(r)], depth=c),
            Sample(lambda r, p=predictions, y=dense: [p(r), y(r)], depth=c, gradient=(0, 1)),
        ]
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

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
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
        return _label_launch(self.name, call, 1, call.operands[0].shape)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_label_rows(self.name, call, device)

    def flops(self, call: Call) -> int:
        return 6 * call.operands[0].size

    def samples(self) -> list[Sample]:
        return _label_samples(negative=False)


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
    """A size as a number; UndecidedError where it is open: the program is then traced again with that of the call."""
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

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        logs, labels = arrays
        return [_weighted(_weights(labels, logs.shape[1], logs.dtype), -logs)]

    def cpu(self, call: Call) -> Launch:
        return _label_launch(self.name, call, 1, call.operands[0].shape)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_label_rows(self.name, call, device, may_team=call.operands[1].dtype != "int64")

    def samples(self) -> list[Sample]:
        return _label_samples(negative=True)


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
        return [-(g * _column(rows)) if dense else None, record("nll", [g, labels])[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        labels, g = arrays
        return [-_weights(labels, call["classes"], g.dtype) * g[:, None]]

    def cpu(self, call: Call) -> Launch:
        return _label_launch(self.name, call, 0, call.results[0].shape)

    def cuda(self, call: Call, device: Device) -> Launch:
        made = call.results[0]
        grid, block = device.spread(made.size)
        return cuda_launch(
            f"{CUDA}:nll_grad",
            _flat(call),
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


def nll(log_probabilities: Any, labels: Any) -> Tensor:
    """The mean over samples of the sum over classes of -label log-probability: (), of the log-probabilities' dtype.

    log_probabilities: (N, C), floating. labels: int64 (N,), or (N, C) of the same dtype. LabelError where they do not
    fit.
    """
    log_probabilities, labels = as_tensor(log_probabilities), as_tensor(labels)
    (rows,) = record("nll", [log_probabilities, labels])
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


def binary_cross_entropy(logits: Any, y_true: Any) -> Tensor:
    """The mean over all elements of -t log s - (1 - t) log(1 - s), s = sigmoid(logit) and t in [0, 1] the truth.

    Computed as max(x, 0) - x t + log(1 + e^-|x|), which neither overflows nor rounds a small loss away.
    """

    def term(x: Scalar, t: Scalar) -> Scalar:
        return (scalar.maximum(x, 0.0) - x * t) + scalar.log1p(scalar.exp(-scalar.absolute(x)))

    return _mean_of("binary_cross_entropy", term, logits, y_true)


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
