"""Ops that rename, move, repeat, cut and join elements."""

from __future__ import annotations

from tapeprop.interchange.onnx.writers.builder import BEFORE_THE_START, END, Builder
from tapeprop.interchange.onnx.writers.registry import writer
from tapeprop.interchange.onnx.writers.steps import Step
from tapeprop.ir import Size
from tapeprop.ir.dims import Dim


@writer("reshape")
def reshape(b: Builder, step: Step, x: str) -> str:
    return b.reshape(x, step.operands[0].shape, step.results[0].shape)


@writer("stop_gradient")
def stop_gradient(b: Builder, step: Step, x: str) -> str:
    return x


@writer("copy")
def copy(b: Builder, step: Step, x: str) -> str:
    return b.node("Identity", [x])


@writer("cast")
def cast(b: Builder, step: Step, x: str) -> str:
    return b.cast(x, step["dtype"])


@writer("whole_numbers")
def whole_numbers(b: Builder, step: Step, x: str) -> str:
    """Floats that are whole, as int64; what is no whole number loses its fraction instead of stopping the run."""
    return b.cast(x, "int64")


@writer("transpose")
def transpose(b: Builder, step: Step, x: str) -> str:
    return b.node("Transpose", [x], perm=list(step["axes"]))


@writer("expand")
def expand(b: Builder, step: Step, x: str) -> str:
    (given,), (made,) = step.operands, step.results
    if step["mean"]:
        before, after = b.count(given.shape), b.count(made.shape)
        x = b.node("Div", [x, b.number_of(after, made.dtype)])
        if before != 1:
            x = b.node("Mul", [x, b.number_of(before, made.dtype)])
    return b.expand(x, given.shape, made.shape)


@writer("concat")
def concat(b: Builder, step: Step, *operands: str) -> str:
    return b.node("Concat", operands, axis=step["axis"])


@writer("slice")
def cut(b: Builder, step: Step, x: str) -> str:
    """Axes that stay whole are not named."""
    rows: list[tuple[Size, Size, int, int]] = []
    parts = zip(step["starts"], step["sizes"], step["steps"], step.operands[0].shape)
    for axis, (start, size, stride, length) in enumerate(parts):
        if stride == 1 and size == length:
            continue
        rows.append((*_bounds(start, size, stride, length), axis, stride))
    if not rows:
        return x
    starts, ends, axes, strides = zip(*rows)
    return b.node("Slice", [x, b.sizes(starts), b.sizes(ends), b.ints(axes), b.ints(strides)])


def _bounds(start: Size, size: Size, stride: int, length: Size) -> tuple[Size, Size]:
    """(start, end) as ONNX reads them: negative ones count from the end, and what lies beyond is held within the axis."""
    back = start - length
    first = back if isinstance(start, Dim) and isinstance(back, int) else start
    last = start + (size - 1) * stride
    if stride > 0:
        left = length - 1 - last
        if isinstance(left, int) and left < stride:
            return first, END if left == 0 else -left
        return first, last + 1
    if isinstance(last, int):
        return first, last - 1 if last else BEFORE_THE_START
    return first, last - 1 - length  # negative for every last >= 0


@writer("place")
def place(b: Builder, step: Step, x: str) -> str:
    """Padding. What lies between elements (a step) is put there by a padded axis of 1 behind each; falling steps turn x first."""
    (given,), (made,) = step.operands, step.results
    shape, before = list(given.shape), list(step["starts"])
    value = b.number(step["value"], made.dtype)
    for axis, stride in enumerate(step["steps"]):
        if stride < 0:
            before[axis] = before[axis] + (shape[axis] - 1) * stride
            x = b.node("Slice", [x, b.ints([-1]), b.ints([BEFORE_THE_START]), b.ints([axis]), b.ints([-1])])
        if abs(stride) != 1 and shape[axis] != 1:
            x, shape[axis] = _spread(b, x, shape, axis, abs(stride), value)
    after = [total - first - size for total, first, size in zip(made.shape, before, shape)]
    if not any(isinstance(n, Dim) or n for n in (*before, *after)):
        return x
    return b.node("Pad", [x, b.sizes([*before, *after]), value], mode="constant")


def _spread(b: Builder, x: str, shape: list[Size], axis: int, stride: int, value: str) -> tuple[str, Size]:
    """(x with `stride` - 1 elements of a value between neighbours along an axis, its size there)."""
    apart = [*shape[: axis + 1], 1, *shape[axis + 1 :]]
    x = b.reshape(x, tuple(shape), tuple(apart))
    widths = [0] * (2 * len(apart))
    widths[len(apart) + axis + 1] = stride - 1
    x = b.node("Pad", [x, b.ints(widths), value], mode="constant")
    apart[axis + 1] = stride
    spread = [*shape[:axis], shape[axis] * stride, *shape[axis + 1 :]]
    x = b.reshape(x, tuple(apart), tuple(spread))
    x = b.node("Slice", [x, b.ints([0]), b.ints([1 - stride]), b.ints([axis])])  # behind the last element is nothing
    return x, spread[axis] - (stride - 1)


@writer("take")
def take(b: Builder, step: Step, table: str, indices: str) -> str:
    return b.node("Gather", [table, indices], axis=0)
