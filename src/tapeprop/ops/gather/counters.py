"""The counters and totals that a training tape keeps: a cursor, the number of correct rows, a weighted sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Size, Tensor
from tapeprop.ir.dims import product, same, text
from tapeprop.ops.gather.rules import CUDA, HERE, check_integers, flat
from tapeprop.ops.op import (
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    as_tensor,
    check_rank,
    cuda_launch,
    launch,
    operand,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.shape.rules import refuse_empty

CLASSES_OF_A_THREAD = 32  # rows of logits that are longer are a block's on a GPU


@register
class Advance(Op):
    """cursor + step, for a cursor (1,) int64."""

    name = "advance"
    inplace = ((0, 0),)

    def infer(self, operands, attributes):
        (cursor,) = operands
        check_integers("advance", "a cursor", cursor)
        return [(cursor.shape, "int64")]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        return [arrays[0] + call["step"]]

    def cpu(self, call: Call) -> Launch:
        n = call.results[0].size
        arrays = [(Ref("result"), (n,)), (Ref("operand"), (n,))]
        return launch(f"{HERE}:advance", call, arrays, [call["step"]])

    def cuda(self, call: Call, device: Device) -> Launch:
        grid, block = device.spread(call.results[0].size)
        return cuda_launch(f"{CUDA}:advance", flat(call), [call["step"]], grid=grid, block=block)

    def samples(self):
        return [
            Sample(lambda r: [r.integers(0, 99, (1,))], {"step": 32}, gradient=()),
            Sample(lambda r: [r.integers(0, 99, (3,))], {"step": -1}, gradient=()),
        ]


def advance(cursor: Any, step: Size = 1) -> Tensor:
    """cursor + step: cursor an int64 tensor, step an int or an open size."""
    return record("advance", [cursor], {"step": step})[0]


@register
class CountCorrect(Op):
    """() float64: in how many rows the first largest logit stands at the label. A NaN counts as the largest.

    Operands: logits (N, C), labels (N,) int64 or one-hot (N, C) floating (the first largest entry is the label).
    """

    name = "count_correct"

    def infer(self, operands, attributes):
        logits, labels = operands
        refuse_empty("count_correct", logits.shape)
        check_rank("count_correct", logits, 2, "(N, C)")
        same_dtype("count_correct", [logits])
        if labels.dtype == "int64":
            check_rank("count_correct", labels, 1, "(N,)")
        else:
            same_dtype("count_correct", operands)
            check_rank("count_correct", labels, 2, "(N, C)")
        if not all(map(same, labels.shape, logits.shape)):
            raise ShapeError(
                f"count_correct: expected labels for logits {text(logits.shape)}, got labels {text(labels.shape)}"
            )
        return [((), "float64")]

    def vjp(self, call, gradients, wanted):
        return [None, None]  # constant but for jumps

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        logits, labels = arrays
        expected = labels.argmax(axis=1) if labels.ndim == 2 else labels
        return [np.asarray(np.count_nonzero(logits.argmax(axis=1) == expected), np.float64)]

    def cpu(self, call: Call) -> Launch:
        arrays = [(Ref("result"), (1,)), operand(0, call), operand(1, call)]
        one_hot = len(call.operands[1].shape) == 2
        return launch(f"{HERE}:count_correct", call, arrays, dtype=call.operands[0].dtype, one_hot=one_hot)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        logits, labels = call.operands
        n, c = logits.shape
        team = c > CLASSES_OF_A_THREAD
        grid, block = device.rows(n, c) if team else device.spread(n)
        parameters: dict[str, Any] = {"dtype": logits.dtype, "one_hot": len(labels.shape) == 2, "team": team}
        read = [(Ref("operand", 0), (logits.size,)), (Ref("operand", 1), (labels.size,))]
        total, counts = (Ref("result"), (1,)), (Ref("scratch"), grid[:1])
        if grid[0] == 1:
            arrays = [total, *read]
            return [cuda_launch(f"{CUDA}:count_correct", arrays, [n, c], grid=grid, block=block, **parameters)]
        scratch = (grid[0], "float64")
        return [
            cuda_launch(
                f"{CUDA}:count_correct",
                [counts, *read],
                [n, c],
                grid=grid,
                block=block,
                scratch=scratch,
                label="counts of correct rows",
                **parameters,
            ),
            cuda_launch(
                f"{CUDA}:count_total",
                [counts, total],
                grid=(1, 1, 1),
                block=(device.block, 1, 1),
                scratch=scratch,
                flops=grid[0],
                traffic=8 * grid[0],
            ),
        ]

    def parts(self, call):
        return 1

    def flops(self, call: Call) -> int:
        return call.operands[0].size

    def samples(self):
        return [
            Sample(lambda r: [r.standard_normal((33, 4)), r.integers(0, 4, (33,))], gradient=()),
            Sample(lambda r: [r.standard_normal((33, 4)), np.eye(4)[r.integers(0, 4, 33)]], gradient=()),
            Sample(lambda r: [r.standard_normal((1, 1)), np.zeros(1, np.int64)], gradient=()),
            Sample(lambda r: [r.standard_normal((3, 40)), r.integers(0, 40, (3,))], gradient=()),
            Sample(lambda r: [r.standard_normal((3, 40)), np.eye(40)[r.integers(0, 40, 3)]], gradient=()),
        ]


def count_correct(logits: Any, labels: Any) -> Tensor:
    """() float64: the number of rows of logits (N, C) whose first largest entry is the label.

    labels: (N,) int64 or one-hot (N, C). ShapeError, DTypeError.
    """
    return record("count_correct", [logits, labels])[0]


@register
class Accumulate(Op):
    """total + weight * value in float64. total: (1,) float64; value: () or (1,); weight: an int, or operand 2."""

    name = "accumulate"
    fixed_float64 = (0,)
    inplace = ((0, 0),)

    def infer(self, operands, attributes):
        total = operands[0]
        if total.dtype != "float64":
            raise DTypeError(f"accumulate: expected a total of dtype float64, got {total.dtype}")
        for x in operands:
            same_dtype("accumulate", [x])
            if not same(product(x.shape), 1) or (x is total and x.ndim != 1):
                shapes = ", ".join(text(x.shape) for x in operands)
                raise ShapeError(f"accumulate: expected a total (1,) and single numbers, got {shapes}")
        return [((1,), "float64")]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        total, value, *rest = (array.astype(np.float64).reshape(1) for array in arrays)
        return [total + (rest[0] if rest else call["weight"]) * value]

    def cpu(self, call: Call) -> Launch:
        arrays = [(Ref("result"), (1,)), *((Ref("operand", i), (1,)) for i in range(len(call.operands)))]
        _, value, *weights = (x.dtype for x in call.operands)
        integers = [] if weights else [call["weight"]]
        return launch(f"{HERE}:accumulate", call, arrays, integers, dtype=value, weight=weights[0] if weights else None)

    def cuda(self, call: Call, device: Device) -> Launch:
        _, value, *weights = (x.dtype for x in call.operands)
        return cuda_launch(
            f"{CUDA}:accumulate",
            flat(call),
            [] if weights else [call["weight"]],
            grid=(1, 1, 1),
            block=(1, 1, 1),
            dtype=value,
            weight=weights[0] if weights else None,
        )

    def flops(self, call: Call) -> int:
        return 2

    def samples(self):
        def make(*shapes):
            return lambda r: [r.standard_normal(shape) for shape in shapes]

        return [
            Sample(make((1,), ()), {"weight": 32}, gradient=()),
            Sample(make((1,), (1,)), {"weight": 1}, gradient=()),
            Sample(make((1,), (), ()), {"weight": None}, gradient=()),
        ]


def accumulate(total: Any, value: Any, weight: Any = 1) -> Tensor:
    """(1,) float64: total + weight * value, for total (1,) float64, value () or (1,), and a weight.

    weight: a whole number, an open size, or a floating scalar tensor. Not differentiated.
    """
    if isinstance(weight, float) and weight.is_integer():
        weight = int(weight)
    if isinstance(weight, Tensor | float):
        return record("accumulate", [total, value, as_tensor(weight)], {"weight": None})[0]
    return record("accumulate", [total, value], {"weight": weight})[0]
