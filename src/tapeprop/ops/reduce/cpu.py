"""CPU kernels of the reductions.

The operand is read as (k0, r0, k1, r1, k2, r2) or (k0, r0, k1, r1, k2, r2, inner): sizes of kept and of reduced axes in
turn. "runs" reduce its innermost elements, which are cut into lanes; "columns" keep them, and let each be a lane. Sums
run in float64 whatever the dtype: a float32 sum is then rounded once, at its end. Each kept element is one worker's, so
the bits do not depend on the number of workers.

Rows are read through slices, whose indices LLVM knows to be >= 0 (see ops/shape/cpu.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.ops.reduce import BLOCK
from tapeprop.targets.cpu.kernel import NumbaKernel

GROUPS = ("k0", "r0", "k1", "r1", "k2", "r2")


def total_runs(dtype: str) -> NumbaKernel:
    """y (k0 * k1 * k2,) = sums of x over r0, r1 and r2, divided by `divisor`."""
    from tapeprop.targets.cpu import block_math

    sum_rows: Any = block_math.sum_rows

    def body(y, x, k0, r0, k1, r1, k2, r2, divisor, worker, workers):
        count = np.float64(divisor)
        kept = k0 * k1 * k2
        step1 = k2 * r2
        step0 = k1 * r1 * step1
        for index in range(kept * worker // workers, kept * (worker + 1) // workers):
            c2, rest = index % k2, index // k2
            start = (rest // k1 * r0 * k1 + rest % k1) * r1 * step1 + c2 * r2
            total = 0.0
            for _ in range(r0):
                total += sum_rows(x, start, r1, step1, r2)
                start += step0
            y[index] = total / count

    return NumbaKernel(body, arrays=((dtype, 1), (dtype, 1)), integers=(*GROUPS, "divisor"))


def total_columns(dtype: str) -> NumbaKernel:
    """y (k0 * k1 * k2 * inner,) = sums of x over r0, r1 and r2, divided by `divisor`."""
    block = BLOCK

    def body(y, x, scratch, k0, r0, k1, r1, k2, r2, inner, divisor, worker, workers):
        count = np.float64(divisor)
        sums = scratch[worker]
        blocks = (inner + block - 1) // block
        grains = k0 * k1 * k2 * blocks
        step2 = r2 * inner
        step1 = k2 * step2
        step0 = k1 * r1 * step1
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            index = grain // blocks
            column = (grain - index * blocks) * block
            width = min(block, inner - column)
            c2, rest = index % k2, index // k2
            base = (rest // k1 * r0 * k1 + rest % k1) * r1 * step1 + c2 * step2 + column
            part = sums[:width]
            for j in range(width):
                part[j] = 0.0
            for i0 in range(r0):
                for i1 in range(r1):
                    start = base + i0 * step0 + i1 * step1
                    whole = r2 // 4 * 4
                    for _ in range(0, whole, 4):
                        a, b = x[start : start + width], x[start + inner : start + inner + width]
                        start += 2 * inner
                        c, d = x[start : start + width], x[start + inner : start + inner + width]
                        start += 2 * inner
                        for j in range(width):
                            part[j] += (np.float64(a[j]) + np.float64(b[j])) + (np.float64(c[j]) + np.float64(d[j]))
                    for _ in range(whole, r2):
                        a = x[start : start + width]
                        start += inner
                        for j in range(width):
                            part[j] += np.float64(a[j])
            target = y[index * inner + column : index * inner + column + width]
            for j in range(width):
                target[j] = part[j] / count

    return NumbaKernel(body, arrays=((dtype, 1), (dtype, 1)), integers=(*GROUPS, "inner", "divisor"), scratch="float64")


def _choose(largest: bool) -> Any:
    """choose(before, value): the larger (smaller) of two numbers, NaN where either is: a NaN once there stays."""
    from numba import njit

    if largest:
        return njit(lambda before, value: value if (value > before) | (value != value) else before)
    return njit(lambda before, value: value if (value < before) | (value != value) else before)


def extreme_runs(dtype: str, largest: bool) -> NumbaKernel:
    """y (k0 * k1 * k2,) = the largest (smallest) elements of x over r0, r1 and r2; NaN where there is one."""
    limit = -np.inf if largest else np.inf
    choose = _choose(largest)
    lanes = 16

    def body(y, x, scratch, k0, r0, k1, r1, k2, r2, worker, workers):
        kept = k0 * k1 * k2
        step1 = k2 * r2
        step0 = k1 * r1 * step1
        best = scratch[worker, :lanes]
        whole = r2 // (4 * lanes) * (4 * lanes)
        for index in range(kept * worker // workers, kept * (worker + 1) // workers):
            c2, rest = index % k2, index // k2
            base = (rest // k1 * r0 * k1 + rest % k1) * r1 * step1 + c2 * r2
            for j in range(lanes):
                best[j] = limit
            for i0 in range(r0):
                for i1 in range(r1):
                    start = base + i0 * step0 + i1 * step1
                    for i in range(start, start + whole, 4 * lanes):
                        a, b = x[i : i + lanes], x[i + lanes : i + 2 * lanes]
                        c, d = x[i + 2 * lanes : i + 3 * lanes], x[i + 3 * lanes : i + 4 * lanes]
                        for j in range(lanes):
                            best[j] = choose(choose(best[j], choose(a[j], b[j])), choose(c[j], d[j]))
                    for i in range(start + whole, start + r2, lanes):
                        a = x[i : min(i + lanes, start + r2)]
                        for j in range(a.size):
                            best[j] = choose(best[j], a[j])
            found = best[0]
            for j in range(1, lanes):
                found = choose(found, best[j])
            y[index] = found

    return NumbaKernel(body, arrays=((dtype, 1), (dtype, 1)), integers=GROUPS, scratch=dtype)


def extreme_columns(dtype: str, largest: bool) -> NumbaKernel:
    """y (k0 * k1 * k2 * inner,) = the largest (smallest) elements of x over r0, r1 and r2; NaN where there is one."""
    limit = -np.inf if largest else np.inf
    choose = _choose(largest)
    block = BLOCK

    def body(y, x, scratch, k0, r0, k1, r1, k2, r2, inner, worker, workers):
        bests = scratch[worker]
        blocks = (inner + block - 1) // block
        grains = k0 * k1 * k2 * blocks
        step2 = r2 * inner
        step1 = k2 * step2
        step0 = k1 * r1 * step1
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            index = grain // blocks
            column = (grain - index * blocks) * block
            width = min(block, inner - column)
            c2, rest = index % k2, index // k2
            base = (rest // k1 * r0 * k1 + rest % k1) * r1 * step1 + c2 * step2 + column
            best = bests[:width]
            for j in range(width):
                best[j] = limit
            for i0 in range(r0):
                for i1 in range(r1):
                    start = base + i0 * step0 + i1 * step1
                    whole = r2 // 4 * 4
                    for _ in range(0, whole, 4):
                        a, b = x[start : start + width], x[start + inner : start + inner + width]
                        start += 2 * inner
                        c, d = x[start : start + width], x[start + inner : start + inner + width]
                        start += 2 * inner
                        for j in range(width):
                            best[j] = choose(choose(best[j], choose(a[j], b[j])), choose(c[j], d[j]))
                    for _ in range(whole, r2):
                        a = x[start : start + width]
                        start += inner
                        for j in range(width):
                            best[j] = choose(best[j], a[j])
            target = y[index * inner + column : index * inner + column + width]
            for j in range(width):
                target[j] = best[j]

    return NumbaKernel(body, arrays=((dtype, 1), (dtype, 1)), integers=(*GROUPS, "inner"), scratch=dtype)


def square_sums(dtype: str) -> NumbaKernel:
    """y (chunks,) float64 = the sum of squares of each `chunk` elements of x (size,)."""
    from tapeprop.targets.cpu import block_math

    dot_rows: Any = block_math.dot_rows

    def body(y, x, chunk, worker, workers):
        chunks = y.size
        for index in range(chunks * worker // workers, chunks * (worker + 1) // workers):
            start = index * chunk
            y[index] = dot_rows(x, x, 0.0, start, 1, 0, min(chunk, x.size - start))

    return NumbaKernel(body, arrays=(("float64", 1), (dtype, 1)), integers=("chunk",))
