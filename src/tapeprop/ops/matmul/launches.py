"""The launches of a matrix product on a GPU."""

from __future__ import annotations

from tapeprop.errors import ShapeError
from tapeprop.ops.matmul.geometry import BATCH_AXES, batch_axes
from tapeprop.ops.op import Call, Device, Launch
from tapeprop.ops.tiling import LARGEST, Bias, cut, launches

TURN = 0.9  # c^T = b^T a^T is computed where it takes less than so much of the time: c is then written across its rows


def product_launches(
    call: Call, device: Device, transpose_a: bool, transpose_b: bool, bias: int | None = None
) -> list[Launch]:
    """op(a) op(b), plus operand `bias`, of shape (columns,), where one is named."""
    a, b, c = call.operands[0], call.operands[1], call.results[0]
    (m, n), k = c.shape[-2:], a.shape[-2 if transpose_a else -1]
    axes = batch_axes(c.shape[:-2], a.shape, b.shape)
    if len(axes) == 1 and axes[0][2] == 0 and axes[0][1] == a.shape[-1] * a.shape[-2] and not transpose_a:
        m, axes = m * axes[0][0], []  # one matrix b for all of a's: their rows form one matrix
    batch = 1
    for size, _, _ in axes:
        batch *= size
    axes = [(1, 0, 0)] * (BATCH_AXES - len(axes)) + axes
    sides = [(0, a.shape[-1], not transpose_a, n, 0), (1, b.shape[-1], transpose_b, 1, 1)]
    plain, turned = cut(m, n, k, batch, c.dtype, device), cut(n, m, k, batch, c.dtype, device)
    found = plain
    if turned.cycles < TURN * plain.cycles:
        found, sides, axes = turned, sides[::-1], [(size, b_step, a_step) for size, a_step, b_step in axes]
    (left, lda, along_a, c_m, bias_m), (right, ldb, along_b, c_n, bias_n) = sides
    if max(lda, ldb) > LARGEST:
        raise ShapeError(
            f"matmul: expected matrices of at most {LARGEST} columns on a GPU, got {max(lda, ldb)}; cut them"
        )
    integers = [k, lda, ldb, c_m, c_n, *(axis[part] for part in range(3) for axis in axes)]
    added = None if bias is None else Bias(bias, row=bias_m, column=bias_n)
    builder = "tapeprop.ops.matmul.cuda:product"
    return launches(call, device, found, builder, left, right, added, integers, along_a=along_a, along_b=along_b)
