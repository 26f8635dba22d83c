"""Ops that cut and join arrays: concat, split, slice, pad, and the reading of `x[1:3, ..., None]`."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Dim, Size, Tensor
from tapeprop.ir.dims import at_least, same, text
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
    float_bits,
    inverse,
    launch,
    record,
    register,
    registry,
)
from tapeprop.ops.shape import drawn, normalise_axes, refuse_empty, reshape
from tapeprop.ops.shape.strides import contiguous, copy_launch, cuda_copy_launch, padded

__all__ = ["concat", "index", "pad", "place", "slice", "split"]

PLACE_AXES = 5  # of the kernel, beside its inner one
JOINED_AT_ONCE = 32  # operands of one concat: a kernel is compiled for each number of them
JOINED_BY_A_LAUNCH = 4  # operands that one launch on a GPU copies
PAD_MODES = ("constant", "reflect", "replicate", "circular")
GRAIN = 4096  # elements of a row that one worker places at a time; a row with a step is not cut


# ---- concat


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
    return _cut(x, starts, sizes, [1] * x.ndim)


# ---- slice and place, the transposes of each other


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
        return [None if g is None else _cut(g, a["starts"], x.shape, a["steps"])]

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


def _cut(x: Tensor, starts: Sequence[Size], sizes: Sequence[Size], steps: Sequence[int]) -> Tensor:
    """The region as a tensor; x itself where it is all of x."""
    if tuple(sizes) == x.shape and all(step == 1 for step in steps):
        return x
    return record("slice", [x], {"starts": tuple(starts), "sizes": tuple(sizes), "steps": tuple(steps)})[0]


def slice(x: Any, starts: Sequence[int], stops: Sequence[Size | None], steps: Sequence[int] | None = None) -> Tensor:
    """x[starts[0]:stops[0]:steps[0], starts[1]:..., ...], each read as Python reads it; axes not listed stay whole.

    A stop of None is the end. ShapeError where nothing is left.
    """
    x = as_tensor(x)
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(stops) == len(steps) <= x.ndim:
        raise ShapeError(
            f"slice: expected as many starts, stops and steps, at most {x.ndim} for {text(x.shape)}, "
            f"got {len(starts)}, {len(stops)} and {len(steps)}"
        )
    return index(x, tuple(builtins.slice(*bounds) for bounds in zip(starts, stops, steps)))


# ---- x[key]


def _bound(value: Size | None, length: Size, step: int, is_start: bool) -> Size:
    """A slice's bound as Python clamps it. UndecidedError where that depends on an open length."""
    low: Size = 0 if step > 0 else -1
    high: Size = length if step > 0 else length - 1
    if value is None:
        return low if is_start == (step > 0) else high
    if isinstance(value, int) and value < 0:
        value = length + value
        return value if at_least(value - low, 0) else low
    return value if at_least(high - value, 0) else high


def _whole(value: Any, name: str) -> Any:
    """An int for what stands for one; None and open sizes as they are."""
    if value is None or isinstance(value, Dim):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise DTypeError(f"{name}: expected whole numbers in a slice, got {value!r}") from None


def _range(key: builtins.slice, length: Size, name: str) -> tuple[Size, Size, int]:
    """(start, size, step) of a Python slice along an axis."""
    first, last, step = (_whole(value, name) for value in (key.start, key.stop, key.step))
    step = 1 if step is None else step
    if step == 0:
        raise ShapeError(f"{name}: expected a step other than 0")
    start, stop = _bound(first, length, step, True), _bound(last, length, step, False)
    span = stop - start if step > 0 else start - stop
    size = (span + (abs(step) - 1)) // abs(step)
    if not at_least(size, 1):
        raise ShapeError(f"{name}: expected at least one element, got none of the {length} from {start} to {stop}")
    return start, size, step


def index(x: Any, key: Any) -> Tensor:
    """x[key] for a key of ints, slices, Ellipsis and None, with NumPy's meaning.

    ShapeError for an index out of range, an empty slice or too many; DTypeError for a key of another type.
    """
    x = as_tensor(x)
    keys = list(key) if isinstance(key, tuple) else [key]
    for entry in keys:
        if not (entry is None or entry is Ellipsis or isinstance(entry, int | np.integer | Dim | builtins.slice)):
            raise DTypeError(
                f"index: expected ints, slices, Ellipsis or None, got {entry!r}; use take() for an array of indices"
            )
        if isinstance(entry, bool):
            raise DTypeError(f"index: expected ints, slices, Ellipsis or None, got {entry}; use where() for a mask")
    used = [entry for entry in keys if entry is not None and entry is not Ellipsis]
    dots = [i for i, entry in enumerate(keys) if entry is Ellipsis]
    if len(dots) > 1 or len(used) > x.ndim:
        raise ShapeError(f"index: expected at most {x.ndim} indices and one ... for {text(x.shape)}, got {key}")
    whole = [builtins.slice(None)] * (x.ndim - len(used))
    keys = [*keys[: dots[0]], *whole, *keys[dots[0] + 1 :]] if dots else [*keys, *whole]
    starts: list[Size] = []
    sizes: list[Size] = []
    steps: list[int] = []
    shape: list[Size] = []
    for entry in keys:
        if entry is None:
            shape.append(1)
            continue
        axis = len(starts)
        name, length = f"index along axis {axis} of {text(x.shape)}", x.shape[axis]
        if isinstance(entry, builtins.slice):
            start, size, step = _range(entry, length, name)
            shape.append(size)
        else:
            position: Size = entry if isinstance(entry, Dim) else int(entry)
            start, size, step = (position + length if isinstance(position, int) and position < 0 else position), 1, 1
            if not (at_least(start, 0) and at_least(length - start, 1)):
                raise ShapeError(f"{name}: expected an index from {-length} to {length - 1}, got {entry}")
        starts.append(start)
        sizes.append(size)
        steps.append(step)
    return reshape(_cut(x, starts, sizes, steps), shape)
