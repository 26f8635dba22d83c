"""Operators that pick, join and border elements."""

from __future__ import annotations

import numpy as np

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.interchange.onnx.converters.support import (
    FLOATS,
    axes_of,
    axis_of,
    check_size,
    check_table,
    number,
    whole,
)
from tapeprop.ir import Dim, Tensor
from tapeprop.ops import scalar

__all__ = ["bounds_of", "concat_axis", "split_sizes"]

#: Bounds of a slice from here on stand for the end: exporters write the largest int32 or int64.
_FAR = 2**31 - 1


@converter("Concat")
def concat(node, *tensors):
    return ops.concat(tensors, concat_axis(node, tensors[0].ndim))


def concat_axis(node, rank):
    axis = node.get("axis")
    if axis is None:
        raise node.fail("an axis", "none")
    return axis_of(node, axis, rank)


@converter("Split", known=[1])
def split(node, x, sizes=None):
    axis = axis_of(node, node.get("axis", 0), x.ndim)
    return ops.split(x, split_sizes(node, x.shape[axis], sizes), axis)


def split_sizes(node, length, sizes):
    """The sizes of the parts: those given, or as many equal ones as there are outputs, the last one smaller if need be."""
    wanted = node.get("num_outputs")
    if sizes is not None:
        return whole(node, sizes)
    count = len(node.outputs)
    if wanted not in (None, count):
        raise node.fail(f"{wanted} outputs", count)
    if not isinstance(length, int):
        return [length // count] * count
    size = -(-length // count)
    last = length - size * (count - 1)
    if last != size and (wanted is None or last < 1):
        raise node.fail(f"a size that makes {count} parts", length)
    return [size] * (count - 1) + [last]


@converter("Slice", known=[1, 2, 3, 4])
def cut(node, x, starts, ends, axes=None, steps=None):
    return x[bounds_of(node, x.ndim, starts, ends, axes, steps)]


def bounds_of(node, rank, starts, ends, axes, steps):
    """A Python slice for each axis."""
    count = starts.size
    places = axes_of(node, range(count) if axes is None else axes, rank)
    strides = [1] * count if steps is None else whole(node, steps)
    if not count == ends.size == len(places) == len(strides):
        raise node.fail(f"{count} ends, axes and steps, as there are starts", (ends.size, len(places), len(strides)))
    key = [slice(None)] * rank
    for axis, start, end, step in zip(places, whole(node, starts), whole(node, ends), strides, strict=True):
        key[axis] = slice(_bound(start, step > 0), _bound(end, step < 0), step)
    return tuple(key)


def _bound(value, from_below):
    """A bound; None for one beyond the end from which, or to which, the slice runs."""
    if isinstance(value, Dim):
        return value
    if from_below:
        return None if value < -_FAR else value
    return None if value >= _FAR else value


@converter("Gather", either=[1])
def gather(node, x, indices):
    axis = axis_of(node, node.get("axis", 0), x.ndim)
    if not isinstance(indices, Tensor):
        length = x.shape[axis]
        if indices.ndim == 0:
            return x[(slice(None),) * axis + (whole(node, indices)[0],)]
        if not isinstance(length, int):
            raise node.fail("an axis of known size", length, "give shapes={...}")
        if not indices.size:
            raise node.fail("at least one index", "none")
        if indices.dtype.kind not in "iu" or not (-length <= indices.min() <= indices.max() < length):
            raise node.fail(f"whole numbers from {-length} to {length - 1}", indices.dtype)
        indices = ops.as_tensor(indices.astype(np.int64) % length)
    elif indices.dtype != "int64":
        raise node.fail("whole numbers as indices", indices.dtype)
    front = [axis, *(a for a in range(x.ndim) if a != axis)]
    rows = ops.take(x if axis == 0 else ops.transpose(x, front), indices)
    k = indices.ndim
    order = [*range(k, k + axis), *range(k), *range(k + axis, rows.ndim)]
    return ops.transpose(rows, order)


_BORDERS = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}


@converter("Pad", known=[1, 2, 3])
def pad(node, x, pads, value=None, axes=None):
    """Negative widths cut."""
    mode = node.get("mode", "constant")
    if mode not in _BORDERS:
        raise node.fail(f"mode to be one of {', '.join(_BORDERS)}", repr(mode))
    places = axes_of(node, range(x.ndim) if axes is None else axes, x.ndim)
    widths = whole(node, pads)
    if len(widths) != 2 * len(places):
        raise node.fail(f"{2 * len(places)} widths, two for each axis", len(widths))
    key, pairs = [slice(None)] * x.ndim, [(0, 0)] * x.ndim
    for axis, before, after in zip(places, widths[: len(places)], widths[len(places) :], strict=True):
        key[axis] = slice(max(-before, 0), min(after, 0) or None)
        pairs[axis] = (max(before, 0), max(after, 0))
    if mode != "constant":
        check_table(node, max([0, *(size for pair in pairs for size in pair)]))
    fill = 0.0 if value is None or value.size == 0 else float(number(node, "the value", value))
    return ops.pad(x[tuple(key)], pairs, fill, _BORDERS[mode])


@converter("Trilu", known=[1])
def triangle(node, x, k=None):
    upper, shift = node.get("upper", 1), 0 if k is None else number(node, "k", k)
    rows, columns = x.shape[-2:] if x.ndim > 1 else (None, None)
    if not (isinstance(rows, int) and isinstance(columns, int) and isinstance(shift, int)):
        raise node.fail("matrices of known size", f"shape {x.shape}", "give shapes={...}")
    check_size(node, [rows, columns])
    distance = np.arange(columns) - np.arange(rows)[:, None]
    return ops.select(ops.as_tensor((distance >= shift if upper else distance <= shift).astype(x.dtype)), x, 0.0)


@converter("OneHot", known=[1, 2])
def one_hot(node, indices, depth, values):
    """Calculated in float64, in which indices below 2^53 are exact; indices with a fraction lose it."""
    count = number(node, "depth", depth)
    axis = axis_of(node, node.get("axis", -1), indices.ndim + 1)
    if values.size != 2 or str(values.dtype) not in FLOATS:
        raise node.fail("two floating values, off and on", f"shape {values.shape} of {values.dtype}", "cast them")
    if isinstance(count, Dim) or count < 1 or int(count) != count:
        raise node.fail("a known depth of at least 1", count)
    count = int(count)
    check_size(node, [count])
    off, on = (float(value) for value in np.ravel(values))

    def formula(index, place):
        index = scalar.where(index < 0, -scalar.floor(-index), scalar.floor(index))
        met = scalar.where(scalar.equal(index, place - count), on, off)  # counted from the end
        return scalar.where(scalar.equal(index, place), on, met)

    shape = indices.shape
    wide = ops.reshape(ops.cast(indices, "float64"), (*shape[:axis], 1, *shape[axis:]))
    places = np.arange(count, dtype=np.float64).reshape((count, *[1] * (len(shape) - axis)))
    return ops.cast(ops.compute(formula, wide, places, label="one_hot")[0], str(values.dtype))
