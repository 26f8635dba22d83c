"""CPU kernels of softmax and its gradient on (outer, n, inner), flat, the axis of the sum in the middle.

"rows": inner is 1, and a worker takes whole rows. "columns": a worker takes a block of neighbours of the inner axis,
each a lane of its own. Each sum is one worker's and runs in float64, so the bits do not depend on how many workers
there are.

Rows are read through slices, whose indices LLVM knows to be >= 0 (see ops/shape/cpu.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.ops.softmax import BLOCK
from tapeprop.targets.cpu.kernel import NumbaKernel

SIZES = ("outer", "n", "inner")


def softmax_rows(dtype: str, logarithm: bool) -> NumbaKernel:
    """y = softmax(x), or its logarithm, along the rows of x."""
    from tapeprop.targets.cpu import block_math

    max_block: Any = block_math.max_block
    exp_block: Any = block_math.exp_block
    exp_sum: Any = block_math.exp_sum
    sum_rows: Any = block_math.sum_rows
    log_of: Any = block_math.log_of
    kind: Any = np.dtype(dtype).type

    def body(x, y, outer, n, inner, worker, workers):
        for row in range(outer * worker // workers, outer * (worker + 1) // workers):
            start = row * n
            top = max_block(x, start, n)
            given, made = x[start : start + n], y[start : start + n]
            for i in range(n):
                # those at +inf share, as equal numbers do: inf - inf would be NaN
                made[i] = kind(0.0) if (top == np.inf) & (given[i] == np.inf) else given[i] - top
            if logarithm:
                shift = kind(log_of(exp_sum(y, start, n)))
                for i in range(n):
                    made[i] = made[i] - shift
            else:
                exp_block(y, start, n)
                total = kind(sum_rows(y, start, 1, n, n))
                for i in range(n):
                    made[i] = made[i] / total

    return NumbaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], SIZES)


def softmax_columns(dtype: str, logarithm: bool) -> NumbaKernel:
    """y = softmax(x), or its logarithm, along the middle axis of x. The scratch holds maxima, sums and exponentials."""
    from tapeprop.targets.cpu import block_math

    exp_block: Any = block_math.exp_block
    log_block: Any = block_math.log_block
    block = BLOCK

    def body(x, y, scratch, outer, n, inner, worker, workers):
        blocks = (inner + block - 1) // block
        grains = outer * blocks
        mine = worker * scratch.shape[1]
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            column = grain % blocks * block
            width = min(block, inner - column)
            base = grain // blocks * n * inner + column
            tops, totals = scratch[worker, :width], scratch[worker, block : block + width]
            powers = scratch[worker, 2 * block : 2 * block + width]
            for j in range(width):
                tops[j] = -np.inf
                totals[j] = 0.0
            for k in range(n):
                given = x[base + k * inner : base + k * inner + width]
                for j in range(width):
                    value, before = np.float64(given[j]), tops[j]
                    tops[j] = value if (value > before) | (value != value) else before
            for k in range(n):
                start = base + k * inner
                given, made = x[start : start + width], y[start : start + width]
                for j in range(width):
                    value = np.float64(given[j])
                    made[j] = 0.0 if (tops[j] == np.inf) & (value == np.inf) else value - tops[j]
                if logarithm:
                    for j in range(width):
                        powers[j] = made[j]
                    exp_block(scratch, mine + 2 * block, width)
                    for j in range(width):
                        totals[j] += powers[j]
                else:
                    exp_block(y, start, width)
                    for j in range(width):
                        totals[j] += np.float64(made[j])
            if logarithm:
                log_block(scratch, mine + block, width)
            for k in range(n):
                made = y[base + k * inner : base + k * inner + width]
                for j in range(width):
                    made[j] = made[j] - totals[j] if logarithm else made[j] / totals[j]

    return NumbaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], SIZES, scratch="float64")


def softmax_grad_rows(dtype: str, logarithm: bool) -> NumbaKernel:
    """dx of softmax, or of its logarithm, from y and dy along their rows."""
    from tapeprop.targets.cpu import block_math

    dot_rows: Any = block_math.dot_rows
    sum_rows: Any = block_math.sum_rows
    exp_block: Any = block_math.exp_block
    kind: Any = np.dtype(dtype).type

    def body(y, dy, dx, outer, n, inner, worker, workers):
        for row in range(outer * worker // workers, outer * (worker + 1) // workers):
            start = row * n
            given, g, made = y[start : start + n], dy[start : start + n], dx[start : start + n]
            if logarithm:
                total = kind(sum_rows(dy, start, 1, n, n))
                for i in range(n):
                    made[i] = given[i]
                exp_block(dx, start, n)
                for i in range(n):
                    made[i] = g[i] - made[i] * total
            else:
                total = kind(dot_rows(y, dy, 0.0, start, 1, n, n))
                for i in range(n):
                    made[i] = given[i] * (g[i] - total)

    return NumbaKernel(body, [("y", dtype, 1), ("dy", dtype, 1), ("dx", dtype, 1)], SIZES)


def softmax_grad_columns(dtype: str, logarithm: bool) -> NumbaKernel:
    """dx of softmax, or of its logarithm, from y and dy along their middle axis. The scratch holds sums."""
    from tapeprop.targets.cpu import block_math

    exp_block: Any = block_math.exp_block
    block = BLOCK

    def body(y, dy, dx, scratch, outer, n, inner, worker, workers):
        blocks = (inner + block - 1) // block
        grains = outer * blocks
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            column = grain % blocks * block
            width = min(block, inner - column)
            base = grain // blocks * n * inner + column
            totals = scratch[worker, :width]
            for j in range(width):
                totals[j] = 0.0
            for k in range(n):
                start = base + k * inner
                given, g = y[start : start + width], dy[start : start + width]
                for j in range(width):
                    totals[j] += np.float64(g[j]) if logarithm else np.float64(given[j]) * np.float64(g[j])
            for k in range(n):
                start = base + k * inner
                given, g, made = (
                    y[start : start + width],
                    dy[start : start + width],
                    dx[start : start + width],
                )
                if logarithm:
                    for j in range(width):
                        made[j] = given[j]
                    exp_block(dx, start, width)
                    for j in range(width):
                        made[j] = g[j] - made[j] * totals[j]
                else:
                    for j in range(width):
                        made[j] = given[j] * (g[j] - totals[j])

    return NumbaKernel(body, [("y", dtype, 1), ("dy", dtype, 1), ("dx", dtype, 1)], SIZES, scratch="float64")
