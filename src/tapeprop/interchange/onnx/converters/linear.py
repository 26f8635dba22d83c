"""Products of matrices."""

from __future__ import annotations

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter


@converter("MatMul")
def matmul(node, a, b):
    """As numpy.matmul: a vector is a row on the left, a column on the right, and that axis goes again."""
    if not a.ndim or not b.ndim:
        raise node.fail("two tensors of at least one axis", f"shapes {a.shape} and {b.shape}")
    rows, columns = a.ndim > 1, b.ndim > 1
    found = ops.matmul(a if rows else a[None], b if columns else b[:, None])
    shape = found.shape
    if not columns:
        shape = shape[:-1]
    if not rows:
        shape = (*shape[:-2], *shape[-1:]) if columns else shape[:-1]
    return ops.reshape(found, shape)


@converter("Gemm")
def gemm(node, a, b, c=None):
    """alpha op(a) op(b) + beta c."""
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    transpose_a, transpose_b = bool(node.get("transA", 0)), bool(node.get("transB", 0))
    if a.ndim != 2 or b.ndim != 2:
        raise node.fail("two matrices", f"shapes {a.shape} and {b.shape}")
    if alpha == 1 and beta == 1 and transpose_b and not transpose_a and (c is None or c.shape == b.shape[:1]):
        return ops.dense(a, b, c)
    found = ops.matmul(a, b, transpose_a, transpose_b)
    if alpha != 1:
        found = ops.multiply(found, alpha)
    if c is None or beta == 0:
        return found
    return ops.add(found, c if beta == 1 else ops.multiply(c, beta))
