"""Reductions over axes, what is normalised by one, and running sums."""

from __future__ import annotations

import numpy as np

from tapeprop import ops
from tapeprop.errors import ShapeError
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.interchange.onnx.converters.support import axes_of, axis_of, number
from tapeprop.ir.dims import product

__all__ = ["reduction_axes"]

_LARGEST = {"float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}


def reduction_axes(node, rank, axes):
    """The axes that a Reduce node takes: all where it gives none, unless it says that this means none (from opset 18 on)."""
    given = node.get("axes") if axes is None else axes
    if given is None or np.size(given) == 0:
        return [] if node.get("noop_with_empty_axes", 0) else list(range(rank))
    node.get("noop_with_empty_axes")
    return axes_of(node, given, rank)


def _reduced(function):
    """A reduction: none over no axes; what is done before and after it is done all the same."""
    return lambda x, axes, keep: function(x, axes, keepdims=keep) if axes else x


_sum, _mean, _max, _min = map(_reduced, (ops.sum, ops.mean, ops.max, ops.min))


def _product(x, axes, keep):
    """Halves are multiplied until one is left: exact where it can be, and differentiable at 0."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    shape = tuple((1 if axis in axes else size) for axis, size in enumerate(x.shape) if keep or axis not in axes)
    count = product(x.shape[axis] for axis in axes)
    if not isinstance(count, int):
        raise ShapeError(f"expected axes of known sizes to multiply over, got {count} elements; give shapes={{...}}")
    x = ops.reshape(ops.transpose(x, [*kept, *axes]), (*(x.shape[axis] for axis in kept), count))
    while count > 1:
        half = count // 2
        found = ops.multiply(x[..., :half], x[..., half : 2 * half])
        x = ops.concat([found, x[..., 2 * half :]], axis=-1) if count % 2 else found
        count = half + count % 2
    return ops.reshape(x, shape)


def _log_sum_exp(x, axes, keep):
    """The largest element, held to what is finite, is taken out first."""
    top = ops.stop_gradient(ops.clip(_max(x, axes, True), -_LARGEST[x.dtype], _LARGEST[x.dtype]))
    total = ops.add(ops.log(_sum(ops.exp(ops.subtract(x, top)), axes, True)), top)
    return total if keep or not axes else _sum(total, axes, False)


_REDUCTIONS = {
    "ReduceL1": lambda x, axes, keep: _sum(ops.abs(x), axes, keep),
    "ReduceL2": lambda x, axes, keep: ops.l2norm(x, axes, keepdims=keep) if axes else ops.abs(x),
    "ReduceLogSum": lambda x, axes, keep: ops.log(_sum(x, axes, keep)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _max,
    "ReduceMean": _mean,
    "ReduceMin": _min,
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(ops.square(x), axes, keep),
}


def _reduce(name, function):
    @converter(name, known=[1])
    def reduce(node, x, axes=None):
        return function(x, reduction_axes(node, x.ndim, axes), bool(node.get("keepdims", 1)))


for _name, _function in _REDUCTIONS.items():
    _reduce(_name, _function)


@converter("LpNormalization")
def lp_normalization(node, x):
    """x over its norm along an axis; zeros where that is 0."""
    axis, p = axis_of(node, node.get("axis", -1), x.ndim), node.get("p", 2)
    if p not in (1, 2):
        raise node.fail("p to be 1 or 2", p)
    norm = ops.sum(ops.abs(x), axis, keepdims=True) if p == 1 else ops.l2norm(x, axis, keepdims=True)
    return ops.divide(x, ops.add(norm, ops.equal(norm, 0.0)))


@converter("MeanVarianceNormalization")
def mean_variance_normalization(node, x):
    axes = axes_of(node, node.get("axes", [0, 2, 3]), x.ndim)
    rest = ops.subtract(x, ops.mean(x, axes, keepdims=True))
    deviation = ops.sqrt(ops.mean(ops.square(rest), axes, keepdims=True))
    return ops.divide(rest, ops.add(deviation, 1e-9))  # the number that the operator's definition adds


@converter("CumSum", known=[1])
def cumulative_sum(node, x, axis):
    return _cumulative(node, x, axis, ops.add, 0.0)


@converter("CumProd", known=[1])
def cumulative_product(node, x, axis):
    return _cumulative(node, x, axis, ops.multiply, 1.0)


def _cumulative(node, x, axis, combine, neutral):
    """By sums over 1, 2, 4, ... elements (Hillis and Steele 1986): what follows an infinity does not meet what precedes it."""
    exclusive, reverse = node.get("exclusive", 0), node.get("reverse", 0)
    axis = axis_of(node, number(node, "the axis", axis), x.ndim)
    length = x.shape[axis]
    if not isinstance(length, int):
        raise node.fail("an axis of known size", f"size {length}", "give shapes={...}")
    if reverse:
        x = _turned(x, axis)
    if exclusive and length == 1:
        return ops.expand(ops.as_tensor(np.full((), neutral, x.dtype)), x.shape)
    if exclusive:
        x = _shifted(x, axis, 1, neutral)
    reach = 1
    while reach < length:
        x = combine(x, _shifted(x, axis, reach, neutral))
        reach *= 2
    return _turned(x, axis) if reverse else x


def _turned(x, axis):
    return x[(slice(None),) * axis + (slice(None, None, -1),)]


def _shifted(x, axis, by, neutral):
    """x moved on along an axis, by less than its size; what comes before it is neutral."""
    rest = x[(slice(None),) * axis + (slice(None, x.shape[axis] - by),)]
    return ops.pad(rest, [(by if a == axis else 0, 0) for a in range(x.ndim)], neutral)
