"""Operators that look at the same elements in another shape, or repeat them. Those that pick or join elements: see `indexing`."""

from __future__ import annotations

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.interchange.onnx.converters.support import axes_of, whole
from tapeprop.ir import Dim
from tapeprop.ir.dims import broadcast, product

__all__ = ["expanded", "reshaped", "squeezed", "unsqueezed"]


@converter("Identity")
def identity(node, x):
    return x


@converter("Transpose")
def transpose(node, x):
    return ops.transpose(x, node.get("perm"))


@converter("Flatten")
def flatten(node, x):
    axis = node.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    if not 0 <= axis <= x.ndim:
        raise node.fail(f"an axis from {-x.ndim} to {x.ndim}", node.get("axis"))
    return ops.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@converter("Reshape", known=[1])
def reshape(node, x, shape):
    return ops.reshape(x, reshaped(node, x.shape, whole(node, shape)))


def reshaped(node, source, wanted):
    """The shape wanted, a 0 of it replaced by the size at that place unless `allowzero` says otherwise. It may hold a -1."""
    if node.get("allowzero", 0):
        return wanted
    if any(size == 0 for size in wanted[len(source) :]):
        raise node.fail(f"a 0 only for an axis of {source}", wanted)
    return [source[axis] if size == 0 else size for axis, size in enumerate(wanted)]


@converter("Squeeze", known=[1])
def squeeze(node, x, axes=None):
    return ops.reshape(x, squeezed(node, x.shape, axes))


def squeezed(node, shape, axes):
    """A shape without axes of size 1: those given, or all."""
    if axes is None:
        if any(isinstance(size, Dim) for size in shape):
            raise node.fail("axes, as a size that is open may be 1", shape, "give them, or shapes={...}")
        return tuple(size for size in shape if size != 1)
    gone = axes_of(node, axes, len(shape))
    if any(shape[axis] != 1 for axis in gone):
        raise node.fail("axes of size 1", f"axes {gone} of {shape}")
    return tuple(size for axis, size in enumerate(shape) if axis not in gone)


@converter("Unsqueeze", known=[1])
def unsqueeze(node, x, axes):
    return ops.reshape(x, unsqueezed(node, x.shape, axes))


def unsqueezed(node, shape, axes):
    """A shape with axes of size 1, which stand at the places given in the result."""
    new = axes_of(node, axes, len(shape) + axes.size)
    rest = iter(shape)
    return tuple(1 if axis in new else next(rest) for axis in range(len(shape) + len(new)))


@converter("Expand", known=[1])
def expand(node, x, shape):
    return ops.expand(x, expanded(node, x.shape, whole(node, shape)))


def expanded(node, source, wanted):
    """What both shapes broadcast to: a 1 of the shape wanted leaves an axis as it is."""
    try:
        return broadcast(source, tuple(wanted))
    except ValueError:
        raise node.fail(f"a shape that {source} broadcasts with", wanted) from None


@converter("Tile", known=[1])
def tile(node, x, repeats):
    counts = whole(node, repeats)
    if len(counts) != x.ndim:
        raise node.fail(f"{x.ndim} numbers of repeats", counts)
    for axis, count in enumerate(counts):
        if count != 1:
            before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
            repeated = ops.expand(ops.reshape(x, (*before, 1, size, *after)), (*before, count, size, *after))
            x = ops.reshape(repeated, (*before, count * size, *after))
    return x


# ---- blocks of an image as channels


def _blocks(node, x):
    """(block size, batch, channels, height, width)."""
    block = node.get("blocksize")
    if x.ndim != 4 or not block or block < 1:
        raise node.fail("images (N, C, H, W) and a block of at least 1", f"shape {x.shape} and {block}")
    return block, *x.shape


def _is_column_first(node):
    mode = node.get("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise node.fail('mode to be "DCR" or "CRD"', repr(mode))
    return mode == "CRD"


@converter("DepthToSpace")
def depth_to_space(node, x):
    b, n, c, h, w = _blocks(node, x)
    if _is_column_first(node):
        parts, order = (n, c // (b * b), b, b, h, w), (0, 1, 4, 2, 5, 3)
    else:
        parts, order = (n, b, b, c // (b * b), h, w), (0, 3, 4, 1, 5, 2)
    return ops.reshape(ops.transpose(ops.reshape(x, parts), order), (n, c // (b * b), h * b, w * b))


@converter("SpaceToDepth")
def space_to_depth(node, x):
    b, n, c, h, w = _blocks(node, x)
    order = (0, 1, 3, 5, 2, 4) if _is_column_first(node) else (0, 3, 5, 1, 2, 4)
    parts = ops.transpose(ops.reshape(x, (n, c, h // b, b, w // b, b)), order)
    return ops.reshape(parts, (n, c * b * b, h // b, w // b))
