"""CUDA kernels of concat and place; slice is the strided copy of ops/shape/cuda.py."""

from __future__ import annotations

import numpy as np

from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import FLOAT, cuda, divider


def concat(dtype: str, wide: bool) -> CudaKernel:
    """Columns left ... left + width of y (rows, columns) = four arrays side by side; those of width 0 are not read."""
    quotient = divider(wide)

    def body(y, a, b, c, d, rows, columns, left, width, inverse, width_a, width_b, width_c, width_d):
        i = cuda.grid(1)
        while i < rows * width:
            row = quotient(i, width, inverse)
            column = i - row * width
            place = row * columns + left + column
            if column < width_a:
                y[place] = a[row * width_a + column]
            elif column < width_a + width_b:
                y[place] = b[row * width_b + column - width_a]
            elif column < width_a + width_b + width_c:
                y[place] = c[row * width_c + column - width_a - width_b]
            else:
                y[place] = d[row * width_d + column - width_a - width_b - width_c]
            i += cuda.gridsize(1)

    integers = ["rows", "columns", "left", "width", "inverse", *(f"width_{part}" for part in "abcd")]
    return CudaKernel(body, [(name, dtype, 1) for name in "yabcd"], integers)


def place(dtype: str, axes: int, stepped: bool, wide: bool) -> CudaKernel:
    """y = the float64 of `value_bits` but for the elements of x, at start + i * step in each of the `axes`; both flat.

    plan: the axes' lengths in y from the innermost on, the inverses of these, starts, sizes in x, and steps, of which
    some are not 1 where `stepped`.
    """
    kind, quotient = FLOAT[dtype], divider(wide)

    def body(y, x, value_bits, *plan):
        value = kind(np.int64(value_bits).view(np.float64))
        i = cuda.grid(1)
        while i < y.size:
            rest, inside, source, span = i, True, np.int64(0), np.int64(1)
            for axis in range(axes):
                above = quotient(rest, plan[axis], plan[axes + axis])
                at = rest - above * plan[axis] - plan[2 * axes + axis]
                rest = above
                if stepped:
                    step = plan[4 * axes + axis]
                    distance, at = at, at // step
                    inside = inside and at * step == distance
                inside = inside and at >= 0 and at < plan[3 * axes + axis]
                source += at * span
                span *= plan[3 * axes + axis]
            y[i] = x[source] if inside else value
            i += cuda.gridsize(1)

    names = [f"{what}{axis}" for what in ("length", "inverse", "start", "size", "step") for axis in range(axes)]
    return CudaKernel(body, [("y", dtype, 1), ("x", dtype, 1)], ["value_bits", *names])
