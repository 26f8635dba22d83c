"""What the ops of labels share: checks, launches, samples, and the gradient of losses that go into a mean."""

from __future__ import annotations

import numpy as np

from tapeprop.errors import LabelError
from tapeprop.ir import Constant, Size, Tensor, UndecidedError
from tapeprop.ir.dims import same, text
from tapeprop.ops.op import Call, Device, Launch, Ref, Sample, check_rank, cuda_launch, failure, launch, same_dtype
from tapeprop.ops.shape import reshape

HERE = "tapeprop.ops.losses.cpu"
CUDA = "tapeprop.ops.losses.cuda"
CLASSES_OF_A_THREAD = 8  # rows that are longer are a block's on a GPU
LABEL_OUT_OF_RANGE = failure(
    1, "label", "a label is outside 0 .. classes - 1; check the labels, or give the last layer more outputs"
)


def is_one(tensor: Tensor) -> bool:
    """Whether every element is known to be 1."""
    return isinstance(tensor.source, Constant) and bool(np.all(tensor.source.array == 1))


def expect_labels(name: str, predictions: Tensor, labels: Tensor) -> None:
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


def dense_labels(labels: np.ndarray, classes: int, dtype: np.dtype) -> np.ndarray:
    """(N, C): labels as weights of the classes. LabelError where one is out of range."""
    if labels.dtype.kind == "f":
        return labels
    return np.eye(classes, dtype=dtype)[expect_classes(labels, classes)]


def expect_classes(labels: np.ndarray, classes: int) -> np.ndarray:
    """The labels, if they are numbers of classes; else LabelError."""
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise LabelError(f"expected labels in 0 .. {classes - 1}, got {labels.min()} .. {labels.max()}")
    return labels


def weighted_sum(weights: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """(N,): the sum over classes of weights * costs; a class of weight 0 adds 0, whatever its cost."""
    with np.errstate(invalid="ignore"):
        return np.where(weights == 0, 0, weights * costs).sum(1).astype(weights.dtype)


def label_launch(builder: str, call: Call, labels: int, shape: tuple[int, ...]) -> Launch:
    """Every array flat, then N and C. labels: which operand they are."""
    dense = call.operands[labels].dtype != "int64"
    integers = (*shape, LABEL_OUT_OF_RANGE)
    return launch(f"{HERE}:{builder}", call, flat(call), integers, dtype=call.results[0].dtype, dense=dense)


def flat(call: Call) -> list[tuple[Ref, tuple[int, ...]]]:
    arrays: list[tuple[Ref, tuple[int, ...]]] = [(Ref("operand", i), (a.size,)) for i, a in enumerate(call.operands)]
    return arrays + [(Ref("result", i), (a.size,)) for i, a in enumerate(call.results)]


def cuda_label_rows(builder: str, call: Call, device: Device, may_team: bool = True) -> Launch:
    """As `label_launch` of labels in operand 1; a thread takes a row, or a block, where rows are long and `may_team`."""
    n, c = call.operands[0].shape
    team = may_team and c > CLASSES_OF_A_THREAD
    grid, block = device.rows(n, c) if team else device.spread(n)
    return cuda_launch(
        f"{CUDA}:{builder}",
        flat(call),
        (n, c, LABEL_OUT_OF_RANGE),
        grid=grid,
        block=block,
        dtype=call.results[0].dtype,
        dense=call.operands[1].dtype != "int64",
        team=team,
    )


def label_samples(negative: bool) -> list[Sample]:
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


def column(rows: Tensor) -> Tensor:
    """(N,) as (N, 1)."""
    return reshape(rows, (rows.shape[0], 1))


def known(size: Size) -> int:
    """A size as a number; UndecidedError where it is open: the program is then traced again with that of the call."""
    if not isinstance(size, int):
        raise UndecidedError(f"the value of {size}")
    return size


def row_gradient(dlogits: Tensor, to_rows: Tensor) -> Tensor:
    """The gradient of logits where that of the row losses is `to_rows` (N,): dlogits times N to_rows.

    Where the rows went into a mean only, as they do in training, that is dlogits times the gradient of the mean, and
    dlogits itself where that is 1.
    """
    producer = to_rows.producer
    if producer is not None and producer.op.name == "mean_loss_grad":
        g = producer.operands[0]
        return dlogits if is_one(g) else dlogits * g
    return dlogits * column(to_rows * float(known(dlogits.shape[0])))
