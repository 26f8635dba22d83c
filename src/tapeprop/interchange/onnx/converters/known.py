"""Operators on known numbers, which are worked out while the model is read: the arithmetic of sizes.

Exporters write x.view(x.shape[0], -1) as Shape, Gather, Unsqueeze, Concat and Reshape. A size that is open until data comes is an
entry of an array of objects, and calculates as `Dim` does: with whole numbers, and only where the answer is one for every size.
"""

from __future__ import annotations

import math

import numpy as np

from tapeprop import ops
from tapeprop.interchange.onnx.converters.indexing import bounds_of, concat_axis, split_sizes
from tapeprop.interchange.onnx.converters.registry import converter, on_known
from tapeprop.interchange.onnx.converters.shapes import expanded, reshaped, squeezed, unsqueezed
from tapeprop.interchange.onnx.converters.support import MOST, axis_of, check_size, number, whole
from tapeprop.interchange.onnx.package import onnx_package
from tapeprop.ir import Dim
from tapeprop.ir.dims import product

__all__ = ["as_array", "dtype_of", "sizes"]


def as_array(found):
    """Numbers as an array: of objects where a size is open, else of numbers."""
    if isinstance(found, Dim):
        array = np.empty((), object)
        array[()] = found
        return array
    array = np.asarray(found)
    if array.dtype != object or any(isinstance(value, Dim) for value in array.flat):
        return array
    return array.astype(np.float32 if any(isinstance(value, float) for value in array.flat) else np.int64)


def sizes(found):
    """An array of sizes: int64, or of objects where one is open."""
    array = np.empty(len(found), object)
    array[:] = list(found)
    return as_array(array) if len(found) else np.zeros(0, np.int64)


def dtype_of(node, code):
    """NumPy's dtype of a number of ONNX's table of types. GraphError for one that NumPy lacks."""
    onnx = onnx_package("load")
    try:
        found = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, TypeError):
        raise node.fail("a type of numbers", code) from None
    if found.kind not in "fiub":
        raise node.fail("a type that NumPy has", found)
    return found


# ---- where numbers come from


@converter("Shape")
@on_known("Shape")
def shape(node, x):
    return sizes(x.shape[node.get("start", 0) : node.get("end")])


@converter("Size")
@on_known("Size")
def size(node, x):
    return as_array(product(x.shape))


_VALUES = {
    "value": None,
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


@converter("Constant")
def constant(node):
    for name, dtype in _VALUES.items():
        found = node.get(name)
        if found is not None:
            return np.asarray(found, dtype)
    raise node.fail("a tensor or numbers", ", ".join(node.attributes) or "nothing")


@converter("ConstantOfShape", known="all")
def constant_of_shape(node, wanted):
    found = whole(node, wanted)
    value = np.ravel(node.get("value", np.zeros(1, np.float32)))
    if value.size != 1:
        raise node.fail("a value of one number", f"shape {value.shape}")
    if any(isinstance(size, Dim) for size in found):
        return ops.expand(value, found)
    if any(size < 0 for size in found):
        raise node.fail("sizes of at least 0", found)
    if math.prod(found) > MOST:  # too many to be known: made in the run, as weights are that an exporter left out
        return ops.expand(value, found)
    return np.full(found, value[0])


@converter("EyeLike")
@on_known("EyeLike")
def eye_like(node, x):
    code, shift = node.get("dtype"), node.get("k", 0)
    if len(x.shape) != 2 or any(isinstance(size, Dim) for size in x.shape):
        raise node.fail("a matrix of known size", x.shape, "give shapes={...}")
    check_size(node, x.shape)
    rows, columns = x.shape
    return np.eye(rows, columns, shift, dtype=np.dtype(x.dtype) if code is None else dtype_of(node, code))


@converter("Range", known="all")
def numbers_from(node, start, limit, delta):
    first, end, step = (number(node, "a bound", bound) for bound in (start, limit, delta))
    if any(isinstance(value, Dim) for value in (first, end, step)):
        raise node.fail("known bounds", f"{first}, {end}, {step}", "give shapes={...}")
    if step == 0 or not all(map(math.isfinite, (first, end, step))):
        raise node.fail("finite bounds and a step other than 0", (first, end, step))
    count = max(math.ceil((end - first) / step), 0)
    check_size(node, [count])
    return (first + np.arange(count) * step).astype(start.dtype)


# ---- other shapes, other places


@on_known("Identity")
def identity(node, x):
    return x


@on_known("Reshape")
def reshape(node, x, wanted):
    found = reshaped(node, x.shape, whole(node, wanted))
    try:
        return x.reshape(found)
    except (TypeError, ValueError):
        raise node.fail(f"a shape of {x.size} elements", found) from None


@on_known("Flatten")
def flatten(node, x):
    axis = node.get("axis", 1)
    if not -x.ndim <= axis <= x.ndim:
        raise node.fail(f"an axis from {-x.ndim} to {x.ndim}", axis)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@on_known("Squeeze")
def squeeze(node, x, axes=None):
    return x.reshape(squeezed(node, x.shape, axes))


@on_known("Unsqueeze")
def unsqueeze(node, x, axes):
    return x.reshape(unsqueezed(node, x.shape, axes))


@on_known("Transpose")
def transpose(node, x):
    order = node.get("perm", range(x.ndim)[::-1])
    if sorted(order) != list(range(x.ndim)):
        raise node.fail(f"an order of the axes 0 to {x.ndim - 1}", order)
    return x.transpose(order)


@on_known("Expand")
def expand(node, x, wanted):
    found = expanded(node, x.shape, whole(node, wanted))
    if any(isinstance(size, Dim) for size in found):
        return ops.expand(x, found)
    check_size(node, found)
    return np.broadcast_to(x, found)


@on_known("Tile")
def tile(node, x, repeats):
    counts = whole(node, repeats)
    if len(counts) != x.ndim or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise node.fail(f"{x.ndim} known numbers of repeats", counts)
    check_size(node, [length * count for length, count in zip(x.shape, counts, strict=True)])
    return np.tile(x, counts)


@on_known("Gather")
def gather(node, x, indices):
    axis = axis_of(node, node.get("axis", 0), x.ndim)
    length = x.shape[axis]
    if indices.dtype.kind not in "iu" or (indices.size and not (-length <= indices.min() <= indices.max() < length)):
        raise node.fail(f"whole numbers from {-length} to {length - 1}", indices.dtype)
    check_size(node, [indices.size, x.size // max(length, 1)])
    return as_array(np.take(x, indices, axis))


@on_known("Slice")
def cut(node, x, starts, ends, axes=None, steps=None):
    key = bounds_of(node, x.ndim, starts, ends, axes, steps)
    if any(isinstance(bound, Dim) for part in key for bound in (part.start, part.stop, part.step)):
        raise node.fail("known bounds", key, "give shapes={...}")
    return as_array(x[key])


@on_known("Concat")
def concat(node, *arrays):
    axis = concat_axis(node, arrays[0].ndim)
    check_size(node, [sum(array.size for array in arrays)])
    try:
        return as_array(np.concatenate(arrays, axis))
    except ValueError as error:
        raise node.fail("arrays that agree on the other axes", error) from None


@on_known("Split")
def split(node, x, parts=None):
    axis = axis_of(node, node.get("axis", 0), x.ndim)
    found = split_sizes(node, x.shape[axis], parts)
    if sum(found) != x.shape[axis] or any(part < 0 for part in found):
        raise node.fail(f"sizes that add up to {x.shape[axis]}", found)
    return tuple(as_array(part) for part in np.split(x, np.cumsum(found)[:-1], axis))


@on_known("Trilu")
def triangle(node, x, k=None):
    shift, upper = 0 if k is None else number(node, "k", k), node.get("upper", 1)
    if x.ndim < 2:
        raise node.fail("matrices", f"shape {x.shape}")
    return np.triu(x, shift) if upper else np.tril(x, shift)


@on_known("NonZero")
def places_of_others(node, x):
    if x.dtype == object:
        raise node.fail("known numbers", list(x.flat), "give shapes={...}")
    return np.stack(np.nonzero(np.atleast_1d(x))).astype(np.int64)
