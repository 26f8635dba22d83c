"""Cross-entropy and NLL of class numbers with weights of the classes, smoothed labels and a label to leave out.

A label y stands for the weights q of all classes, q_c = w_c ((1 - smoothing) [c = y] + smoothing / C), and `ignore` for
none: its row adds nothing and gets no gradient. w are the class weights, which `scaled_class_weights` has multiplied so
that the plain mean over samples is torch's weighted mean, its divisor the sum of w over the labels that count.
"""

from __future__ import annotations

import numpy as np

from tapeprop.errors import GraphError, ShapeError
from tapeprop.ir import Size, Tensor
from tapeprop.ir.dims import same, text
from tapeprop.ops.losses.labels import (
    CLASSES_OF_A_THREAD,
    CUDA,
    HERE,
    LABEL_OUT_OF_RANGE,
    dense_labels,
    expect_classes,
    expect_labels,
    flat,
    known,
    row_gradient,
    weighted_sum,
)
from tapeprop.ops.op import (
    NARROW,
    Attributes,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    as_tensor,
    check_rank,
    cuda_launch,
    float_bits,
    inverse,
    launch,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.reduce import sum as reduce_sum
from tapeprop.ops.softmax import softmax

LABELS_OF_A_THREAD = 16  # whose weights are added up


def _expect_weights(name: str, predictions: Tensor, labels: Tensor, weights: Tensor) -> None:
    """LabelError or ShapeError unless labels are int64 (N,) and weights (C,), for predictions (N, C)."""
    expect_labels(name, predictions, labels)
    check_rank(name, labels, 1, "(N,), int64")
    _expect_one_each(name, predictions.shape[1], weights)


def _expect_one_each(name: str, classes: Size, weights: Tensor) -> None:
    check_rank(name, weights, 1, "(C,)")
    if not same(weights.shape[0], classes):
        raise ShapeError(f"{name}: expected class weights {text((classes,))}, got {text(weights.shape)}")


def _ignored(attributes: Attributes) -> tuple[int, int]:
    """(whether a label is left out, which)."""
    ignore = attributes["ignore"]
    return (0, 0) if ignore is None else (1, ignore)


def _integers(call: Call, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, LABEL_OUT_OF_RANGE, float_bits(call["smoothing"]), *_ignored(call.attributes))


def _kept(labels: np.ndarray, ignore: int | None) -> np.ndarray:
    return np.ones(labels.shape, bool) if ignore is None else labels != ignore


def _spread_labels(call: Call, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N, C): what each class weighs in each row; 0 where its part is 0, whatever its weight. LabelError, out of range."""
    kept = _kept(labels, call["ignore"])
    one_hot = dense_labels(np.where(kept, labels, 0), weights.size, weights.dtype)
    parts = (1 - call["smoothing"]) * one_hot + call["smoothing"] / weights.size
    with np.errstate(invalid="ignore"):
        return np.where(kept[:, None] & (parts != 0), parts * weights, 0).astype(weights.dtype)


def _row_losses(call: Call, labels: np.ndarray, weights: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """(N,): 0 where the label is left out, but NaN where it is in all rows: then nothing was there to be averaged."""
    rows = weighted_sum(_spread_labels(call, labels, weights), costs)
    with np.errstate(invalid="ignore"):
        return np.where(_kept(labels, call["ignore"]), rows, 0 * weights[0])


def _samples(operands: str) -> list[Sample]:
    """operands: letters of what a sample has: predictions, labels, gradients of rows, weights."""
    found = []
    for n, c, smoothing, ignore in [(5, 10, 0.0, -100), (1, 1, 0.25, None), (3, 37, 0.1, 7), (70, 2, 1.0, None)]:

        def drawn(r: np.random.Generator, n: int = n, c: int = c, ignore: int | None = ignore) -> list[np.ndarray]:
            labels = r.integers(0, c, n)
            if ignore is not None:
                labels[n // 2] = ignore
            weights = r.uniform(0.25, 2, c)
            weights[1:2] = 0  # a class that does not count
            kinds = {"p": -r.uniform(0.1, 4, (n, c)), "l": labels, "g": r.standard_normal(n), "w": weights}
            return [kinds[letter] for letter in operands]

        attributes = {"smoothing": smoothing, "ignore": ignore}
        found.append(Sample(drawn, attributes, depth=c, gradient=(operands.index("p" if "p" in operands else "g"),)))
    return found


def _no_gradient_of_weights(name: str, wanted: bool) -> None:
    if wanted:
        raise GraphError(f"{name} has no gradient by the class weights; write the formula in other ops")


@register
class ScaledClassWeights(Op):
    """(labels int64 (N,), class weights (C,)) -> (C,): the weights N / (sum of the labels' weights) times as large.

    So the labels that count weigh 1 on average over all N. Where none of them weighs anything the result is inf or NaN.
    """

    name = "scaled_class_weights"

    def infer(self, operands, attributes):
        labels, weights = operands
        check_rank(self.name, labels, 1, "(N,)")
        check_rank(self.name, weights, 1, "(C,)")
        return [(weights.shape, same_dtype(self.name, [weights]))]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        labels, weights = arrays
        counted = expect_classes(labels[_kept(labels, call["ignore"])], weights.size)
        with np.errstate(divide="ignore", invalid="ignore"):
            return [weights * (labels.size / weights[counted].sum(dtype=np.float64))]

    def cpu(self, call: Call) -> Launch:
        integers = (LABEL_OUT_OF_RANGE, *_ignored(call.attributes))
        return launch(f"{HERE}:scaled_class_weights", call, flat(call), integers, dtype=call.results[0].dtype)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        labels, weights = call.operands
        blocks = min(device.blocks, -(-labels.size // (LABELS_OF_A_THREAD * device.block)))
        block, sums, scratch = (device.block, 1, 1), (Ref("scratch"), (blocks,)), (blocks, "float64")
        given, made = [(Ref("operand", i), (a.size,)) for i, a in enumerate(call.operands)], Ref("result", 0)
        return [
            cuda_launch(
                f"{CUDA}:sums_of_weights",
                [*given, sums],
                (LABEL_OUT_OF_RANGE, *_ignored(call.attributes)),
                grid=(blocks, 1, 1),
                block=block,
                scratch=scratch,
                label="weights of labels",
                dtype=weights.dtype,
            ),
            cuda_launch(
                f"{CUDA}:scaled_class_weights",
                [given[1], sums, (made, (weights.size,))],
                [labels.size],
                grid=(1, 1, 1),
                block=block,
                scratch=scratch,
                flops=blocks + weights.size,
                traffic=8 * blocks + 2 * weights.nbytes,
                dtype=weights.dtype,
            ),
        ]

    def flops(self, call: Call) -> int:
        return call.operands[0].size + call.operands[1].size

    def parts(self, call: Call) -> int:
        return 1

    def samples(self) -> list[Sample]:
        found = []
        for n, c, ignore in [(5, 7, None), (1, 1, None), (700, 3, 1), (40, 9, -100)]:

            def drawn(r: np.random.Generator, n: int = n, c: int = c, ignore: int | None = ignore) -> list[np.ndarray]:
                labels = r.integers(0, c, n)
                if ignore is not None:
                    labels[n // 2] = ignore
                return [labels, r.uniform(0.25, 2, c)]

            found.append(Sample(drawn, {"ignore": ignore}, depth=n, gradient=()))
        return found


@register
class WeightedCrossEntropy(Op):
    """(logits (N, C), labels (N,), weights (C,)) -> (row losses (N,), dlogits (N, C)), of the logits' dtype.

    A row's loss is the sum over classes of -q log_softmax(logits). dlogits is the gradient of the MEAN of the row
    losses: (softmax(logits) (sum of q) - q) / N.
    """

    name = "weighted_cross_entropy"
    inplace = ((1, 0),)
    onnx = ("SoftmaxCrossEntropyLoss",)

    def infer(self, operands, attributes):
        logits, labels, weights = operands
        _expect_weights(self.name, logits, labels, weights)
        dtype = same_dtype(self.name, [logits, weights])
        return [(logits.shape[:1], dtype), (logits.shape, dtype)]

    def vjp(self, call, gradients, wanted):
        (logits, labels, weights), (_, dlogits) = call.operands, call.results
        _no_gradient_of_weights(self.name, wanted[2])
        to_rows, to_dlogits = gradients
        to_logits = None if to_rows is None else row_gradient(dlogits, to_rows)
        if to_dlogits is not None:
            n = known(logits.shape[0])
            through = record("softmax_grad", [softmax(logits), to_dlogits / float(n)], {"axis": 1})[0]
            spread = {"smoothing": call.attributes["smoothing"], "ignore": call.attributes["ignore"]}
            (negated,) = record("weighted_nll_grad", [labels, as_tensor(np.ones(n)), weights], spread)
            through = -through * reduce_sum(negated, 1, keepdims=True)
            to_logits = through if to_logits is None else to_logits + through
        return [to_logits, None, None]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        logits, labels, weights = arrays
        top = logits.max(1, keepdims=True)
        with np.errstate(invalid="ignore"):
            distance = np.where((top == np.inf) & (logits == np.inf), logits.dtype.type(0), logits - top)
        powers = np.exp(distance)
        total = powers.sum(1, keepdims=True)
        spread = _spread_labels(call, labels, weights)
        slopes = (powers / total * spread.sum(1, keepdims=True) - spread) / logits.dtype.type(len(logits))
        return [
            _row_losses(call, labels, weights, np.log(total) - distance),
            np.where(_kept(labels, call["ignore"])[:, None], slopes, 0),
        ]

    def cpu(self, call: Call) -> Launch:
        integers = _integers(call, call.operands[0].shape)
        return launch(f"{HERE}:{self.name}", call, flat(call), integers, dtype=call.results[0].dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_rows(self.name, call, device)

    def flops(self, call: Call) -> int:
        return 8 * call.operands[0].size

    def samples(self) -> list[Sample]:
        return _samples("plw")


@register
class WeightedNLL(Op):
    """(log-probabilities (N, C), labels (N,), weights (C,)) -> row losses (N,): the sum of -q log-probability."""

    name = "weighted_nll"
    onnx = ("NegativeLogLikelihoodLoss",)

    def infer(self, operands, attributes):
        logs, labels, weights = operands
        _expect_weights(self.name, logs, labels, weights)
        return [(logs.shape[:1], same_dtype(self.name, [logs, weights]))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        _, labels, weights = call.operands
        _no_gradient_of_weights(self.name, wanted[2])
        to_logs = None if g is None else record("weighted_nll_grad", [labels, g, weights], call.attributes)[0]
        return [to_logs, None, None]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        logs, labels, weights = arrays
        return [_row_losses(call, labels, weights, -logs)]

    def cpu(self, call: Call) -> Launch:
        integers = _integers(call, call.operands[0].shape)
        return launch(f"{HERE}:{self.name}", call, flat(call), integers, dtype=call.results[0].dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_rows(self.name, call, device)

    def samples(self) -> list[Sample]:
        return _samples("plw")


@register
class WeightedNLLGrad(Op):
    """(labels (N,), g (N,), weights (C,)) -> (N, C), of g's dtype: -q g."""

    name = "weighted_nll_grad"

    def infer(self, operands, attributes):
        labels, g, weights = operands
        check_rank(self.name, labels, 1, "(N,)")
        check_rank(self.name, g, 1, "(N,)")
        check_rank(self.name, weights, 1, "(C,)")
        return [((g.shape[0], weights.shape[0]), same_dtype(self.name, [g, weights]))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        labels, _, weights = call.operands
        _no_gradient_of_weights(self.name, wanted[2])
        return [None, None if g is None else record("weighted_nll", [g, labels, weights], call.attributes)[0], None]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        labels, g, weights = arrays
        spread = _spread_labels(call, labels, weights)
        with np.errstate(invalid="ignore"):
            return [np.where(spread == 0, 0, -spread * g[:, None])]

    def cpu(self, call: Call) -> Launch:
        integers = _integers(call, call.results[0].shape)
        return launch(f"{HERE}:{self.name}", call, flat(call), integers, dtype=call.results[0].dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        made = call.results[0]
        grid, block = device.spread(made.size)
        integers = (*_integers(call, made.shape), inverse(made.shape[1]))
        name, wide = f"{CUDA}:{self.name}", made.size >= NARROW
        return cuda_launch(name, flat(call), integers, grid=grid, block=block, dtype=made.dtype, wide=wide)

    def samples(self) -> list[Sample]:
        return _samples("lgw")


def _cuda_rows(builder: str, call: Call, device: Device) -> Launch:
    """A thread takes a row, or a block, where rows are long."""
    n, c = call.operands[0].shape
    team = c > CLASSES_OF_A_THREAD
    grid, block = device.rows(n, c) if team else device.spread(n)
    integers, dtype = _integers(call, (n, c)), call.results[0].dtype
    return cuda_launch(f"{CUDA}:{builder}", flat(call), integers, grid=grid, block=block, dtype=dtype, team=team)
