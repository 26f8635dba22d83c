"""The pools: windows of the mean, the maximum and the p-norm, and those over whole images.

`tapeprop.ops` has them with padding of at most half a window, and means without dilation. What ONNX has beside is written as a
sparse sum along one axis after the other: a box of elements is a product of runs.
"""

from __future__ import annotations

import numpy as np

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.interchange.onnx.converters.support import check_table
from tapeprop.interchange.onnx.converters.windows import Windows, known_size, single, windows
from tapeprop.interchange.onnx.model import Node
from tapeprop.ir import Tensor
from tapeprop.ops.expression import absolute, power, sqrt, where
from tapeprop.ops.resample import resample
from tapeprop.ops.resample.tables import Table

_MEANS = {1: ops.avg_pool1d, 2: ops.avg_pool2d, 3: ops.avg_pool3d}
_MAXIMA = {1: ops.max_pool1d, 2: ops.max_pool2d, 3: ops.max_pool3d}


@converter("AveragePool")
def average_pool(node, x):
    at = _windows(node, x)
    counted = bool(node.get("count_include_pad", 0))
    if not _is_plain(at):
        return _summed(node, x, at, "all" if counted else "inside")
    return _MEANS[at.rank](x, at.kernel, at.strides, at.pads, counted, at.ceil_mode)


@converter("MaxPool")
def max_pool(node, x):
    node.get("storage_order")  # of the places of maxima alone
    single(node, "tapeprop has no op that gives the places of maxima")
    at = _windows(node, x)
    pads = at.pads
    if _deep(at):
        if at.ceil_mode:
            raise node.fail("pads of at most half the window with ceil_mode", at.pads, "pad before the pool")
        x, pads = ops.pad(x, [(0, 0), (0, 0), *pads], -np.inf), ((0, 0),) * at.rank
    return _MAXIMA[at.rank](x, at.kernel, at.strides, pads, at.dilations, at.ceil_mode)


@converter("LpPool")
def lp_pool(node, x):
    at = _windows(node, x)
    p = node.get("p", 2)
    powers = _raised(node, x, p)
    if not _is_plain(at) or at.ceil_mode:
        return _rooted(_summed(node, powers, at, None), p)
    elements = float(np.prod(at.kernel))
    return _rooted(_MEANS[at.rank](powers, at.kernel, at.strides, at.pads, True) * elements, p)


@converter("GlobalAveragePool")
def global_average_pool(node, x):
    return ops.mean(x, _spatial(node, x), keepdims=True)


@converter("GlobalMaxPool")
def global_max_pool(node, x):
    return ops.max(x, _spatial(node, x), keepdims=True)


@converter("GlobalLpPool")
def global_lp_pool(node, x):
    p = node.get("p", 2)
    return _rooted(ops.sum(_raised(node, x, p), _spatial(node, x), keepdims=True), p)


def _windows(node, x):
    if "kernel_shape" not in node.attributes:
        raise node.fail("the attribute kernel_shape", "none")
    return windows(node, x, node.get("kernel_shape"))


def _spatial(node, x):
    """The axes behind (N, C). GraphError where there is none."""
    if x.ndim < 3:
        raise node.fail("a tensor (N, C, ...)", f"one of rank {x.ndim}")
    return tuple(range(2, x.ndim))


def _deep(at: Windows) -> bool:
    """Whether padding is more than the pools of tapeprop take."""
    return any(2 * max(side) > extent for side, extent in zip(at.pads, at.extents))


def _is_plain(at: Windows) -> bool:
    """Whether it is a window without gaps, with padding of at most half of it."""
    return set(at.dilations) == {1} and not _deep(at)


# ---- p-norms


def _raised(node: Node, x: Tensor, p: int) -> Tensor:
    """|x|^p. GraphError for p < 1."""
    if p < 1:
        raise node.fail("p >= 1", p)
    if p == 1:
        return ops.abs(x)
    return x * x if p == 2 else ops.compute(lambda a: power(absolute(a), float(p)), x)[0]


def _rooted(total: Tensor, p: int) -> Tensor:
    """total^(1/p), with the slope 0 where the total is 0."""
    if p == 1:
        return total
    return ops.compute(lambda a: where(a <= 0, 0.0, sqrt(a) if p == 2 else power(a, 1 / p)), total)[0]


# ---- sums along one axis after the other


def _summed(node: Node, x: Tensor, at: Windows, divided: str | None) -> Tensor:
    """The sum of each window, or its mean over "all" elements that lie in x or its padding, or over those "inside" x alone."""
    for axis in range(2, x.ndim):
        x = resample(x, _table(node, known_size(node, x, axis), at, axis - 2, divided), axis)
    return x


def _table(node: Node, size: int, at: Windows, place: int, divided: str | None) -> Table:
    (before, after), stride, extent = at.pads[place], at.strides[place], at.extents[place]
    room = size + before + after - extent
    if room < 0:
        raise node.fail(f"at least {extent} elements along axis {place + 2}, padding included", size + before + after)
    last = room // stride
    if at.ceil_mode and room % stride and (last + 1) * stride < size + before:
        last += 1  # a window that starts in the padding behind does not count
    check_table(node, last + 1, at.kernel[place])
    starts = np.arange(last + 1) * stride - before
    places = starts[:, None] + np.arange(at.kernel[place]) * at.dilations[place]
    inside = (places >= 0) & (places < size)
    counts = inside.sum(1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    divisors = np.ones(len(counts))
    if divided is not None:
        divisors = (counts if divided == "inside" else (places < size + after).sum(1)).astype(np.float64)
        if not divisors.all():
            raise node.fail("windows that hold elements of the image", "one of padding alone", "pad less")
    return Table(size, offsets, places[inside].astype(np.int64), np.repeat(1 / divisors, counts))
