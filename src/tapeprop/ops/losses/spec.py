"""The ops of losses of labels: softmax cross-entropy and NLL, row by row, and the mean of the row losses.

`weighted` holds those of weighted classes and smoothed labels.
"""

from __future__ import annotations

import numpy as np

from tapeprop.ir import Tensor
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
from tapeprop.ops.op import (
    NARROW,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    check_rank,
    cuda_launch,
    inverse,
    launch,
    operand,
    record,
    register,
    result,
    same_dtype,
)
from tapeprop.ops.reduce import sum as reduce_sum
from tapeprop.ops.softmax import log_softmax, softmax

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
