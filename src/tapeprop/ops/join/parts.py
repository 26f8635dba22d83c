"""Arrays one behind the other along an axis: `concat` joins them, `split` cuts them apart again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Size, Tensor
from tapeprop.ir.dims import same, text
from tapeprop.ops.join.regions import region
from tapeprop.ops.op import (
    NARROW,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    alike,
    as_tensor,
    cuda_launch,
    inverse,
    launch,
    record,
    register,
    registry,
)
from tapeprop.ops.shape.rules import drawn, normalise_axes, refuse_empty

JOINED_AT_ONCE = 32  # operands of one concat: a kernel is compiled for each number of them
JOINED_BY_A_LAUNCH = 4  # operands that one launch on a GPU copies


@register
class Concat(Op):
    """k >= 1 operands one behind the other along an axis."""

    name = "concat"
    onnx = ("Concat",)

    def infer(self, operands, attributes):
        first, axis = operands[0], attributes["axis"]
        refuse_empty("concat", *(x.shape for x in operands))
        total: Size = 0
        for i, x in enumerate(operands):
            if x.dtype != first.dtype:
                raise DTypeError(f"concat: expected operands of one dtype, got {first.dtype} and {x.dtype}; cast one")
            agree = x.ndim == first.ndim and all(
                same(a, b) for j, (a, b) in enumerate(zip(x.shape, first.shape)) if j != axis
            )
            if not agree:
                raise ShapeError(
                    f"concat along axis {axis}: expected operand {i} to agree with operand 0, {text(first.shape)}, "
                    f"on the other axes, got {text(x.shape)}"
                )
            total = total + x.shape[axis]
        return [((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), axis = gradients, call.attributes["axis"]
        if g is None:
            return [None] * len(call.operands)
        sizes = [x.shape[axis] for x in call.operands]
        return [part if want else None for part, want in zip(split(g, sizes, axis), wanted)]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        return [np.concatenate(arrays, axis=call["axis"])]

    def cpu(self, call: Call) -> Launch:
        axis, y = call["axis"], call.results[0]
        rows = int(np.prod(y.shape[:axis], dtype=np.int64))
        parts = [(Ref("operand", i), (rows, x.size // rows)) for i, x in enumerate(call.operands)]
        return launch(
            "tapeprop.ops.join.cpu:concat",
            call,
            [(Ref("result"), (rows, y.size // rows)), *parts],
            count=len(parts),
            dtype=y.dtype,
        )

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        y = call.results[0]
        rows = int(np.prod(y.shape[: call["axis"]], dtype=np.int64))
        columns, left, launches = y.size // rows, 0, []
        for first in range(0, len(call.operands), JOINED_BY_A_LAUNCH):
            group = call.operands[first : first + JOINED_BY_A_LAUNCH]
            widths = [x.size // rows for x in group]
            width, unused = sum(widths), JOINED_BY_A_LAUNCH - len(group)
            read = [(Ref("operand", first + i), (x.size,)) for i, x in enumerate(group)]
            grid, block = device.spread(rows * width)
            launches.append(
                cuda_launch(
                    "tapeprop.ops.join.cuda:concat",
                    [(Ref("result"), (y.size,)), *read, *[read[-1]] * unused],
                    [rows, columns, left, width, inverse(width), *widths, *[0] * unused],
                    grid=grid,
                    block=block,
                    traffic=2 * sum(x.nbytes for x in group),
                    dtype=y.dtype,
                    wide=rows * width >= NARROW,
                )
            )
            left += width
        return launches

    def flops(self, call: Call) -> int:
        return 0

    def samples(self):
        cases: list[tuple[list[tuple[int, ...]], int]] = [
            ([(2, 3, 4), (2, 1, 4), (2, 5, 4)], 1),
            ([(3, 7), (9, 7)], 0),
            ([(2, 3)], 1),
            ([(4, 3, 1), (4, 3, 6)], 2),
            ([(1,), (70,), (5,), (1,), (2,)], 0),
        ]
        return [
            Sample(
                drawn(*shapes),
                {"axis": axis},
                gradient=tuple(range(len(shapes))),
            )
            for shapes, axis in cases
        ]


def concat(tensors: Sequence[Any], axis: int = 1) -> Tensor:
    """The tensors, at least one, one behind the other along `axis`; their other sizes and their dtype agree.

    ShapeError, DTypeError. The gradient of each is its slice.
    """
    operands = alike([as_tensor(x) for x in tensors])
    if not operands:
        raise ShapeError("concat: expected at least one tensor, got none")
    (axis,) = normalise_axes("concat", axis, operands[0].ndim)
    if len(operands) > JOINED_AT_ONCE:  # an error is to count the operands as the caller does
        registry["concat"].infer(operands, {"axis": axis})
    while len(operands) > 1:
        groups = [operands[i : i + JOINED_AT_ONCE] for i in range(0, len(operands), JOINED_AT_ONCE)]
        operands = [group[0] if len(group) == 1 else record("concat", group, {"axis": axis})[0] for group in groups]
    return operands[0]


def split(x: Any, sections: int | Sequence[Size], axis: int = 1) -> tuple[Tensor, ...]:
    """x cut along `axis` into `sections` equal parts, or into parts of the sizes that `sections` lists, which add up.

    ShapeError where they do not.
    """
    x = as_tensor(x)
    (axis,) = normalise_axes("split", axis, x.ndim)
    length = x.shape[axis]
    if isinstance(sections, int | np.integer):
        if sections < 1 or not same((length // int(sections)) * int(sections), length):
            raise ShapeError(
                f"split: expected a number of parts that divides axis {axis} of {text(x.shape)}, got {sections}"
            )
        sizes: list[Size] = [length // int(sections)] * int(sections)
    else:
        sizes = list(sections)
    total: Size = 0
    parts: list[tuple[Size, Size]] = []
    for size in sizes:
        parts.append((total, size))
        total = total + size
    if not same(total, length):
        raise ShapeError(
            f"split: expected sizes that add up to {length}, axis {axis} of {text(x.shape)}, got {tuple(sizes)}"
        )
    return tuple(_part(x, axis, start, size) for start, size in parts)


def _part(x: Tensor, axis: int, start: Size, size: Size) -> Tensor:
    starts: list[Size] = [0] * x.ndim
    sizes = list(x.shape)
    starts[axis], sizes[axis] = start, size
    return region(x, starts, sizes, [1] * x.ndim)
