"""Embedding of tokens: rows of a table, where the tokens come as the numbers that a graph computes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Tensor
from tapeprop.ir.dims import text
from tapeprop.ops.gather import take
from tapeprop.ops.op import (
    FLOATS,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    as_tensor,
    cuda_launch,
    failure,
    launch,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.shape.rules import refuse_empty

__all__ = ["embedding"]

NOT_WHOLE = failure(20, "index", "an index is no whole number; expected 0, 1, 2 and so on, as floats or integers")
#: Floats from here on have no int64; `take` refuses what stands for them.
LIMIT = 2.0**62


@register
class WholeNumbers(Op):
    """Floating whole numbers as int64, for use as indices; any other number stops the run."""

    name = "whole_numbers"

    def infer(self, operands, attributes):
        refuse_empty("whole_numbers", operands[0].shape)
        same_dtype("whole_numbers", operands)
        return [(operands[0].shape, "int64")]

    def vjp(self, call, gradients, wanted):
        return [None]  # constant but for jumps

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        return [np.where(np.abs(arrays[0]) < LIMIT, arrays[0], -1).astype(np.int64)]

    def cpu(self, call: Call) -> Launch:
        return launch(
            "tapeprop.ops.embedding.cpu:whole_numbers", call, self._arrays(call), dtype=call.operands[0].dtype
        )

    def cuda(self, call: Call, device: Device) -> Launch:
        grid, block = device.spread(call.results[0].size)
        name = "tapeprop.ops.embedding.cuda:whole_numbers"
        return cuda_launch(name, self._arrays(call), grid=grid, block=block, dtype=call.operands[0].dtype)

    def _arrays(self, call: Call) -> list[tuple[Ref, tuple[int, ...]]]:
        n = call.results[0].size
        return [(Ref("result"), (n,)), (Ref("operand"), (n,))]

    def samples(self):
        def drawn(*shape):
            return lambda r: [r.integers(-9, 9, shape).astype(np.float64)]

        return [
            Sample(drawn(3, 5), gradient=()),
            Sample(lambda r: [np.array([0.0, -0.0, 2.0**24, -1.0, np.inf, -(2.0**70)])], gradient=()),
        ]


def embedding(weight: Any, indices: Any, padding_idx: int | None = None) -> Tensor:
    """The rows of weight (R, features) that indices of any shape name: (*indices.shape, features).

    indices: integers, or whole numbers in a floating dtype, from 0 to R - 1; a run with another number stops with an
    error. padding_idx: a row that gets no gradient (torch.nn.functional.embedding). Repeated indices add their gradients
    in order. ShapeError for a weight of another rank or a padding_idx that is no row of it; DTypeError.
    """
    weight, indices = as_tensor(weight), as_tensor(indices)
    if weight.ndim != 2:
        raise ShapeError(f"embedding: expected a weight (R, features), got shape {text(weight.shape)}")
    rows = weight.shape[0]
    if padding_idx is not None and isinstance(rows, int) and not 0 <= padding_idx < rows:
        raise ShapeError(f"embedding: expected padding_idx from 0 to {rows - 1}, got {padding_idx}")
    if indices.dtype in FLOATS:
        if indices.dtype == "float32" and isinstance(rows, int) and rows > 2**24:
            raise DTypeError(
                f"embedding: expected float64 indices for a table of {rows} rows, got float32, in which not every whole "
                "number above 2^24 has a place; build the graph in float64, or give integers"
            )
        (indices,) = record("whole_numbers", [indices])
    return take(weight, indices, padding_idx)
