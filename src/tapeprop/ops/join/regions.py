"""Regular regions of an array: `slice` takes one out and `place` puts one in, the transposes of each other; padding.

A region is starts[i] + k * steps[i] for 0 <= k < sizes[i] in axis i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Size, Tensor
from tapeprop.ir.dims import at_least, text
from tapeprop.ops.op import (
    NARROW,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    as_tensor,
    cuda_launch,
    float_bits,
    inverse,
    launch,
    record,
    register,
)
from tapeprop.ops.shape.rules import drawn
from tapeprop.ops.shape.strides import contiguous, copy_launch, cuda_copy_launch, padded

PLACE_AXES = 5  # of the kernel, beside its inner one
PAD_MODES = ("constant", "reflect", "replicate", "circular")
GRAIN = 4096  # elements of a row that one worker places at a time; a row with a step is not cut


def _check_region(
    name: str, starts: Sequence[Size], sizes: Sequence[Size], steps: Sequence[int], shape: Sequence[Size]
) -> None:
    """ShapeError unless the region, starts[i] + k * steps[i] for 0 <= k < sizes[i] in axis i, lies within `shape`."""
    if not len(starts) == len(sizes) == len(steps) == len(shape):
        raise ShapeError(
            f"{name}: expected one start, size and step for each axis of {text(tuple(shape))}, got {text(tuple(sizes))}"
        )
    for axis, (start, size, step, length) in enumerate(zip(starts, sizes, steps, shape)):
        what = f"axis {axis} of {text(tuple(shape))}: {size} elements from {start} in steps of {step}"
        if step == 0 or not at_least(size, 1):
            raise ShapeError(f"{name}: expected at least one element and a step other than 0, got {what}")
        last = start + (size - 1) * step
        low, high = (start, last) if step > 0 else (last, start)
        if not (at_least(low, 0) and at_least(length - high, 1)):
            raise ShapeError(f"{name}: expected elements 0 to {length - 1}, got {what}")


@register
class Slice(Op):
    """y[i, ...] = x[start + i * step, ...] in every axis, `sizes` elements of each; steps may be negative."""

    name = "slice"
    onnx = ("Slice", "Split")

    def infer(self, operands, attributes):
        (x,), sizes = operands, attributes["sizes"]
        _check_region("slice", attributes["starts"], sizes, attributes["steps"], x.shape)
        return [(tuple(sizes), x.dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x,), a = gradients, call.operands, call.attributes
        return [None if g is None else place(g, x.shape, a["starts"], a["steps"])]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        picked = [s + np.arange(n) * d for s, n, d in zip(call["starts"], call["sizes"], call["steps"])]
        return [arrays[0][np.ix_(*picked)] if picked else arrays[0].copy()]

    def cpu(self, call: Call) -> Launch:
        return copy_launch(call, *self._plan(call))

    def cuda(self, call: Call, device: Device) -> Launch:
        return cuda_copy_launch(call, device, *self._plan(call))

    def _plan(self, call: Call) -> tuple[list[int], int]:
        """(strides, offset) in the operand, in elements."""
        strides = contiguous(call.operands[0].shape)
        offset = int(np.dot(call["starts"], strides))
        return [stride * step for stride, step in zip(strides, call["steps"])], offset

    def flops(self, call: Call) -> int:
        return 0

    def samples(self):
        return [
            Sample(drawn(shape), {"starts": starts, "sizes": sizes, "steps": steps})
            for shape, starts, sizes, steps in _REGIONS
        ]


_REGIONS: list[tuple[tuple[int, ...], ...]] = [  # shape, starts, sizes, steps
    ((10,), (2,), (5,), (1,)),
    ((10,), (9,), (5,), (-2,)),
    ((4, 7), (1, 0), (2, 7), (1, 1)),
    ((4, 7), (0, 1), (4, 3), (1, 2)),
    ((4, 7), (3, 6), (4, 7), (-1, -1)),
    ((2, 5, 6, 7), (0, 1, 0, 2), (2, 3, 3, 4), (1, 1, 2, 1)),
    ((2, 3, 2, 3, 2, 3), (0, 1, 1, 0, 0, 1), (1, 2, 1, 2, 2, 2), (1, 1, 1, 2, 1, 1)),
    ((1, 5000), (0, 1), (1, 4998), (1, 1)),
    ((), (), (), ()),
]


def region(x: Tensor, starts: Sequence[Size], sizes: Sequence[Size], steps: Sequence[int]) -> Tensor:
    """The region as a tensor; x itself where it is all of x."""
    if tuple(sizes) == x.shape and all(step == 1 for step in steps):
        return x
    return record("slice", [x], {"starts": tuple(starts), "sizes": tuple(sizes), "steps": tuple(steps)})[0]


@register
class Place(Op):
    """y = `value` everywhere, but x at y[start + i * step, ...] in every axis: padding, and the gradient of a slice."""

    name = "place"
    onnx = ("Pad",)

    def infer(self, operands, attributes):
        (x,), shape = operands, attributes["shape"]
        if x.dtype not in ("float32", "float64"):
            raise DTypeError(f"place: expected a floating tensor, got {x.dtype}; cast it")
        _check_region("place", attributes["starts"], x.shape, attributes["steps"], shape)
        return [(tuple(shape), x.dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x,), a = gradients, call.operands, call.attributes
        return [None if g is None else region(g, a["starts"], x.shape, a["steps"])]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        (x,) = arrays
        y = np.full(call.results[0].shape, call["value"], x.dtype)
        places = [s + np.arange(n) * d for s, n, d in zip(call["starts"], x.shape, call["steps"])]
        y[np.ix_(*places) if places else ()] = x
        return [y]

    def cpu(self, call: Call) -> Launch:
        x, y, axes = call.operands[0], call.results[0], self._axes(call)
        columns = [
            padded([axis[part] for axis in axes], PLACE_AXES + 1, fill) for part, fill in enumerate((1, 0, 1, 1))
        ]
        return launch(
            "tapeprop.ops.join.cpu:place",
            call,
            [(Ref("result"), (y.size,)), (Ref("operand"), (x.size,))],
            [*(n for column in columns for n in column), GRAIN if columns[3][-1] == 1 else columns[0][-1]],
            dtype=x.dtype,
            value=float(call["value"]),
        )

    def cuda(self, call: Call, device: Device) -> Launch:
        x, y = call.operands[0], call.results[0]
        axes = self._axes(call)[::-1] or [(1, 0, 1, 1)]
        lengths, starts, sizes, steps = zip(*axes)
        grid, block = device.spread(y.size)
        return cuda_launch(
            "tapeprop.ops.join.cuda:place",
            [(Ref("result"), (y.size,)), (Ref("operand"), (x.size,))],
            [float_bits(call["value"]), *lengths, *map(inverse, lengths), *starts, *sizes, *steps],
            grid=grid,
            block=block,
            dtype=x.dtype,
            axes=len(axes),
            stepped=any(step != 1 for step in steps),
            wide=y.size >= NARROW,
        )

    def _axes(self, call: Call) -> list[tuple[int, int, int, int]]:
        """(length, start, size, step) of each axis that is left when neighbours are merged. ShapeError."""
        axes = _merge_region(call.results[0].shape, call["starts"], call.operands[0].shape, call["steps"])
        if len(axes) > PLACE_AXES + 1:
            raise ShapeError(f"place: expected at most {PLACE_AXES + 1} axes that cannot be merged, got {len(axes)}")
        return axes

    def flops(self, call: Call) -> int:
        return 0

    def samples(self):
        placed = [
            Sample(
                drawn(sizes),
                {"shape": shape, "starts": starts, "steps": steps, "value": 0.0},
            )
            for shape, starts, sizes, steps in _REGIONS
        ]
        padding = {"shape": (2, 8, 9), "starts": (0, 2, 1), "steps": (1, 1, 1), "value": -1.5}
        return [*placed, Sample(drawn((2, 5, 7)), padding)]


def _merge_region(
    shape: Sequence[int], starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    """(length, start, size, step) of the fewest axes: one that the region fills joins the axis before it."""
    merged: list[tuple[int, int, int, int]] = []
    for length, start, size, step in zip(shape, starts, sizes, steps):
        whole = size == length and (step == 1 or length == 1)
        if merged and whole and (merged[-1][3] == 1 or merged[-1][2] == 1):
            before = merged[-1]
            merged[-1] = (before[0] * length, before[1] * length, before[2] * length, 1)
        elif length > 1:
            merged.append((length, start, size, step))
    return merged


def place(x: Any, shape: Sequence[Size], starts: Sequence[Size], steps: Sequence[int], value: float = 0.0) -> Tensor:
    """An array of `shape` filled with `value`, but for x, which stands from `starts` on in `steps`. ShapeError."""
    attributes = {"shape": tuple(shape), "starts": tuple(starts), "steps": tuple(steps), "value": float(value)}
    return record("place", [x], attributes)[0]


def pad(
    x: Any, widths: int | Sequence[int] | Sequence[tuple[int, int]], value: float = 0.0, mode: str = "constant"
) -> Tensor:
    """x with a border: of `value`, or of elements of its own.

    widths: (before, after) for each axis; or one pair or one int for every axis. They are >= 0: slice to make an array
    smaller. mode: "constant"; or, as in torch.nn.functional.pad, "reflect" (what lies behind the ends, without them, so
    less than the axis has), "replicate" (the ends) or "circular" (the other end, at most the whole axis). ShapeError otherwise;
    UndecidedError where an axis that gets such a border is open.
    """
    x = as_tensor(x)
    try:
        given = np.asarray(widths)
        pairs = [(int(a), int(b)) for a, b in np.broadcast_to(given, (x.ndim, 2))]
    except ValueError:
        raise ShapeError(f"pad: expected (before, after) for each axis of {text(x.shape)}, got {widths}") from None
    if given.dtype.kind not in "iu" or given.min() < 0:
        raise ShapeError(f"pad: expected widths that are whole numbers >= 0, got {widths}; use slice to cut")
    if mode not in PAD_MODES:
        raise ShapeError(f"pad: expected mode to be one of {', '.join(PAD_MODES)}, got {mode!r}")
    if not given.any():
        return x
    if mode != "constant":
        return _bordered(x, pairs, mode)
    shape = [before + size + after for (before, after), size in zip(pairs, x.shape)]
    return place(x, shape, [before for before, _ in pairs], [1] * x.ndim, value)


def _bordered(x: Tensor, pairs: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """x with a border of its own elements."""
    from tapeprop.ops.resample import known, resample, tables

    table = {"reflect": tables.reflecting, "replicate": tables.replicating, "circular": tables.circular}[mode]
    for axis, (before, after) in enumerate(pairs):
        if before == after == 0:
            continue
        length = known("pad", x, axis)
        most = {"reflect": length - 1, "circular": length}.get(mode)
        if most is not None and max(before, after) > most:
            raise ShapeError(
                f'pad: expected widths of at most {most} for mode "{mode}" along axis {axis} of {text(x.shape)}, '
                f"got {(before, after)}"
            )
        x = resample(x, table(length, before, after), axis)
    return x
