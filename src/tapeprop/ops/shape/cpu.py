"""CPU kernels of the ops that move elements.

Elements are indexed by unsigned numbers or through slices: a signed index that LLVM cannot prove to be >= 0 is tested
for NumPy's wrap-around each time, which keeps the loop from being vectorised (measured on numba 0.68.1: 0.9 instead of
0.1 ns per element).
"""

from __future__ import annotations

import numpy as np

from tapeprop.targets.cpu.kernel import NumbaKernel

GRAIN = 1024  # elements of a flat array that one worker does at a time

PLAN = (
    *(f"{what}{axis}" for what in ("size", "y_step", "x_step") for axis in range(6)),
    *("m", "y_row", "x_row", "n", "x_column", "tile_m", "tile_n", "offset", "divisor"),
)


def copy(dtype: str) -> NumbaKernel:
    """y = x, both flat."""
    grain = GRAIN

    def body(y, x, worker, workers):
        n = y.size
        grains = (n + grain - 1) // grain
        first = grains * worker // workers * grain
        last = min(n, grains * (worker + 1) // workers * grain)
        target, source = y[first:last], x[first:last]
        for i in range(target.size):
            target[i] = source[i]

    return NumbaKernel(body, arrays=((dtype, 1), (dtype, 1)))


def cast(dtype: str, to: str) -> NumbaKernel:
    """y = x in the dtype of y, both flat."""
    grain = GRAIN

    def body(y, x, worker, workers):
        n = y.size
        grains = (n + grain - 1) // grain
        first = grains * worker // workers * grain
        last = min(n, grains * (worker + 1) // workers * grain)
        target, source = y[first:last], x[first:last]
        for i in range(target.size):
            target[i] = source[i]

    return NumbaKernel(body, arrays=((to, 1), (dtype, 1)))


def strided(dtype: str, mean: bool) -> NumbaKernel:
    """y, contiguous, from elements of x that lie at given strides, both flat; with mean, each divided by `divisor`.

    The integers are the plan that `shape.strides` makes.
    """
    from numba import njit

    real = np.float64 if dtype == "float64" else np.float32
    finish = njit(lambda value, divisor: value / real(divisor)) if mean else njit(lambda value, divisor: value)

    def body(y, x, *plan):
        sizes, y_steps, x_steps = plan[0:6], plan[6:12], plan[12:18]
        m, y_row, x_row, n, x_column, tile_m, tile_n, offset, divisor, worker, workers = plan[18:29]
        tiles_m, tiles_n = (m + tile_m - 1) // tile_m, (n + tile_n - 1) // tile_n
        grains = tiles_m * tiles_n
        for axis in range(6):
            grains *= sizes[axis]
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            rest = grain // tiles_n
            j = (grain - rest * tiles_n) * tile_n
            i = rest % tiles_m * tile_m
            rest //= tiles_m
            to, start = j, offset + j * x_column
            for k in range(6):
                axis = 5 - k
                if sizes[axis] > 1:
                    above = rest // sizes[axis]
                    at = rest - above * sizes[axis]
                    rest = above
                    to += at * y_steps[axis]
                    start += at * x_steps[axis]
            width = min(tile_n, n - j)
            for row in range(i, min(i + tile_m, m)):
                target = y[to + row * y_row : to + row * y_row + width]
                first = start + row * x_row
                if x_column == 1:
                    source = x[first : first + width]
                    for column in range(width):
                        target[column] = finish(source[column], divisor)
                elif x_column == 0:
                    value = finish(x[first], divisor)
                    for column in range(width):
                        target[column] = value
                else:
                    for column in range(width):
                        target[column] = finish(x[np.uint64(first + column * x_column)], divisor)

    return NumbaKernel(body, arrays=((dtype, 1), (dtype, 1)), integers=PLAN)
