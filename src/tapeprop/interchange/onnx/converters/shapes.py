"""Operators that move elements, or look at the same ones in another shape."""

from __future__ import annotations

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter


@converter("Transpose")
def transpose(node, x):
    return ops.transpose(x, node.get("perm"))


@converter("Flatten")
def flatten(node, x):
    axis = node.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    if not 0 <= axis <= x.ndim:
        raise node.fail(f"an axis from {-x.ndim} to {x.ndim}", node.get("axis"))
    before = 1
    for size in x.shape[:axis]:
        before = before * size
    after = 1
    for size in x.shape[axis:]:
        after = after * size
    return ops.reshape(x, (before, after))
