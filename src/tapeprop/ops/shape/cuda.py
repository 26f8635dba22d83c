"""CUDA kernels of the ops that move elements: threads stride over the elements of the result, or blocks over its tiles.

Neighbours in a warp write side by side. Where the elements they would read lie apart, but those below each other in the
result lie side by side, a block reads a tile by columns into shared memory and writes it by rows.
"""

from __future__ import annotations

import numpy as np

from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import FLOAT, cuda, divider


def copy(dtype: str, to: str) -> CudaKernel:
    """y = x in the dtype `to`, both flat."""

    def body(y, x):
        i = cuda.grid(1)
        while i < y.size:
            y[i] = x[i]
            i += cuda.gridsize(1)

    return CudaKernel(body, [("y", to, 1), ("x", dtype, 1)])


def strided(dtype: str, axes: int, mean: bool, wide: bool) -> CudaKernel:
    """y, contiguous, from elements of x that lie at given strides, both flat; with mean, each divided by `divisor`.

    plan: the stride in x along each of the `axes` axes, from the innermost on; the sizes of all but the outermost, and
    the inverses of these.
    """
    number, quotient = FLOAT.get(dtype), divider(wide)
    last, sizes, inverses = axes - 1, axes, 2 * axes - 1
    names = [f"{what}{axis}" for what in ("step", "size", "inverse") for axis in range(axes)]

    def body(y, x, offset, divisor, *plan):
        i = cuda.grid(1)
        while i < y.size:
            rest, place = i, offset
            for axis in range(last):
                above = quotient(rest, plan[sizes + axis], plan[inverses + axis])
                place += (rest - above * plan[sizes + axis]) * plan[axis]
                rest = above
            value = x[place + rest * plan[last]]
            y[i] = value / number(divisor) if mean else value
            i += cuda.gridsize(1)

    kept = [name for name in names if name not in (f"size{last}", f"inverse{last}")]
    return CudaKernel(body, [("y", dtype, 1), ("x", dtype, 1)], ["offset", "divisor", *kept])


def turned(dtype: str, axes: int, tile: int, rows: int) -> CudaKernel:
    """y, contiguous, from elements of x at given strides, turned in tiles (tile, tile); a block has `rows` rows of threads.

    The axes of a tile are y's last one, of n elements, and one of m; the other `axes` stand in plan: the sizes from the
    innermost on, then their steps in y, then those in x, and last the number of all tiles.
    """
    kind = np.dtype(dtype)
    wider = tile + 1  # so that a column does not lie in one bank
    names = [f"{what}{axis}" for what in ("size", "y_step", "x_step") for axis in range(axes)]

    def body(y, x, offset, m, y_row, x_row, n, x_column, *plan):
        shared = cuda.shared.array((tile, wider), kind)
        column, first = cuda.threadIdx.x % tile, cuda.threadIdx.x // tile
        tiles_m, tiles_n = (m + tile - 1) // tile, (n + tile - 1) // tile
        number = np.int64(cuda.blockIdx.x)
        while number < plan[3 * axes]:
            rest = number // tiles_n
            j = (number - rest * tiles_n) * tile
            above = rest // tiles_m
            i = (rest - above * tiles_m) * tile
            rest, to, start = above, np.int64(0), offset
            for axis in range(axes):
                above = rest // plan[axis]
                at = rest - above * plan[axis]
                to += at * plan[axes + axis]
                start += at * plan[2 * axes + axis]
                rest = above
            for part in range(0, tile, rows):
                row = first + part
                if i + column < m and j + row < n:
                    shared[row, column] = x[start + (i + column) * x_row + (j + row) * x_column]
            cuda.syncthreads()
            for part in range(0, tile, rows):
                row = first + part
                if i + row < m and j + column < n:
                    y[to + (i + row) * y_row + j + column] = shared[column, row]
            cuda.syncthreads()
            number += cuda.gridDim.x

    integers = ["offset", "m", "y_row", "x_row", "n", "x_column", *names, "tiles"]
    return CudaKernel(body, [("y", dtype, 1), ("x", dtype, 1)], integers)
