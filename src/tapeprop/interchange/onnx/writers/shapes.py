"""Ops that rename, move, repeat, cut and join elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.interchange.onnx.writers.builder import BEFORE_THE_START, END, Builder
from tapeprop.interchange.onnx.writers.registry import writer
from tapeprop.interchange.onnx.writers.steps import Step, exact, producer
from tapeprop.ir import Constant, Size, Tensor
from tapeprop.ir.dims import Dim
from tapeprop.ops.resample import tables


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


# ---- a table of weights along an axis


@writer("resample")
def resample(b: Builder, step: Step, x: str, *_: str) -> str:
    """Resize where the table is that of one, with those along other axes before; else elements are gathered, or a matrix is multiplied."""
    axis, rank, dtype = step["axis"], step.operands[0].ndim, step.results[0].dtype
    resized = _as_resize(step.operands, step.attributes, dtype)
    if resized is not None:
        return _resize(b, step, resized)
    offsets, sources, weights = _table(step.operands, step.attributes)
    if len(sources) == step["outputs"] and (weights == 1).all():
        return b.node("Gather", [x, b.ints(sources.tolist())], axis=axis)
    matrix = np.zeros((step["outputs"], step["length"]), dtype)
    np.add.at(matrix, (np.repeat(np.arange(step["outputs"]), np.diff(offsets)), sources), weights)
    if axis == rank - 1:
        return b.node("MatMul", [x, b.constant(matrix.T)])
    if axis == rank - 2:
        return b.node("MatMul", [b.constant(matrix), x])
    order = [*(i for i in range(rank) if i != axis), axis]
    turned = b.node("MatMul", [b.node("Transpose", [x], perm=order), b.constant(matrix.T)])
    return b.node("Transpose", [turned], perm=[order.index(i) for i in range(rank)])


def _resize(b: Builder, step: Step, resized: Mapping[str, Any]) -> str:
    """One Resize of all axes that are resized this way one after another."""
    x, at = step.operands[0], step.attributes
    scales = [1.0] * x.ndim
    scales[at["axis"]] = at["outputs"] / at["length"]
    while (before := producer(x, "resample")) is not None:
        at = before.attributes
        if scales[at["axis"]] != 1.0 or _as_resize(before.operands, at, x.dtype) != resized:
            break
        scales[at["axis"]] = at["outputs"] / at["length"]
        x = before.operands[0]
    return b.node("Resize", [b.value(x), "", b.constant(scales, "float32")], **resized)


def _table(operands: Sequence[Tensor], attributes: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(offsets, sources, weights) of the map."""
    places, weights = (t.source for t in operands[1:3])
    assert isinstance(places, Constant)
    assert isinstance(weights, Constant)
    count = attributes["outputs"] + 1
    return places.array[:count], places.array[count:], weights.array


def _as_resize(operands: Sequence[Tensor], attributes: Mapping[str, Any], dtype: str) -> dict[str, Any] | None:
    """The attributes of the Resize that has this table; None where there is none, or where its scale, a float32, would change it."""
    length, outputs = attributes["length"], attributes["outputs"]
    scale = np.float32(outputs / length)
    if not exact(outputs / length, dtype) or np.floor(scale * np.float32(length)) != outputs:
        return None
    table = _table(operands, attributes)
    for way in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
        places = tables.coordinates(length, outputs, None, way)
        for mode, made in (
            ("linear", tables.linear(length, places)),
            ("cubic", tables.cubic(length, places, tables.CUBIC_COEFF_A)),
        ):
            if _equal(made, *table):
                return {"mode": mode, "coordinate_transformation_mode": way}
        for rounding in tables.NEAREST_MODES if way in ("half_pixel", "asymmetric") else ():
            rounded = tables.nearest(length, tables.coordinates(length, outputs, float(scale), way), rounding)
            if _equal(tables.nearest(length, places, rounding), *table) and _equal(rounded, *table):
                return {"mode": "nearest", "coordinate_transformation_mode": way, "nearest_mode": rounding}
    return None


def _equal(made: tables.Table, offsets: np.ndarray, sources: np.ndarray, weights: np.ndarray) -> bool:
    return (
        np.array_equal(made.offsets, offsets)
        and np.array_equal(made.sources, sources)
        and np.array_equal(made.weights.astype(weights.dtype), weights)
    )
