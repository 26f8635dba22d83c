"""The launches of a matrix product on a GPU."""

from __future__ import annotations

from tapeprop.ops.matmul.geometry import BATCH_AXES, batch_axes
from tapeprop.ops.op import Call, Device, Launch, Ref, cuda_launch
from tapeprop.ops.tiling import Cut, cut

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
        m, n = n, m
    (left, lda, along_a, c_m, bias_m), (right, ldb, along_b, c_n, bias_n) = sides
    whole = found.splits == 1
    biased = bias is not None
    added = bias if bias is not None else 0
    arrays = [
        (Ref("operand", left), (call.operands[left].size,)),
        (Ref("operand", right), (call.operands[right].size,)),
        (Ref("operand", added), (call.operands[added].size,)),
        (Ref("result"), (c.size,)) if whole else (Ref("scratch"), (found.splits * c.size,)),
    ]
    integers = [
        *(m, n, found.tiles_m, found.tiles_n, found.splits, c.size, int(biased and whole), bias_m, bias_n, 0),
        *(k, lda, ldb, c_m, c_n),
        *(axis[part] for part in range(3) for axis in axes),
    ]
    first = cuda_launch(
        "tapeprop.ops.matmul.cuda:product",
        arrays,
        integers,
        grid=found.grid,
        block=found.block,
        scratch=None if whole else (found.splits * c.size, c.dtype),
        dtype=c.dtype,
        tile=found.literal,
        along_a=along_a,
        along_b=along_b,
    )
    return [first] if whole else [first, merge_launch(call, device, found, bias, 1)]


def merge_launch(call: Call, device: Device, found: Cut, bias: int | None, inner: int) -> Launch:
    """The launch that adds the parts in scratch up to result 0, and operand `bias`, element i // inner % its size."""
    c = call.results[0]
    added = bias if bias is not None else 0
    grid, block = device.spread(c.size)
    return cuda_launch(
        "tapeprop.targets.cuda.gemm:merge",
        [
            (Ref("scratch"), (found.splits * c.size,)),
            (Ref("operand", added), (call.operands[added].size,)),
            (Ref("result"), (c.size,)),
        ],
        [found.splits, inner, call.operands[added].size, int(bias is not None)],
        grid=grid,
        block=block,
        scratch=(found.splits * c.size, c.dtype),
        label="merge",
        flops=found.splits * c.size,
        traffic=(found.splits + 1) * c.nbytes,
        dtype=c.dtype,
    )
