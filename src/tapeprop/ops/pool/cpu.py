"""CPU kernels of pooling: planes (N C, rows, columns), flat, one row of windows at a time (`targets.cpu.window_math`).

Forward kernels hand out rows of windows, the transposed ones whole planes, whose overlapping windows add up in
row-major order. `left`, `size_h` and so on are fields of the row; only the horizontal stride is compiled in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.targets.cpu.kernel import NumbaKernel

GEOMETRY = ("planes", "height", "width", "high", "wide", "top", "left", "size_h", "size_w", "stride_h")
DILATED = (*GEOMETRY[:-1], "dilation_h", "dilation_w", "stride_h")
ROWS = (*DILATED[:-1], "room", "span", "stride_h")
PLACES = {"float32": "int32", "float64": "int64"}


def _rows_within() -> Any:
    """(window, stride, padding before, size, dilation, extent) -> (its first row in the image, how many of its rows are)."""
    from numba import njit

    def rows_within(window, stride, before, size, dilation, extent):
        start = window * stride - before
        outside = (dilation - 1 - start) // dilation if start < 0 else 0
        first = start + outside * dilation
        return first, min(size - outside, (extent - 1 - first) // dilation + 1)

    return njit(rows_within)


def _larger() -> Any:
    """The larger of two numbers; NaN where one is."""
    from numba import njit

    return njit(lambda best, value: value if (value > best) | (value != value) else best)


def max_pool2d(dtype: str, stride: int) -> NumbaKernel:
    """y = the maximum of each window of x: of its columns first, then along the row that these make.

    That row stands in the scratch, between the padding. Three rows or columns are taken at a time, as windows rarely have more.
    """
    rows_within, larger = _rows_within(), _larger()
    lowest = np.dtype(dtype).type(-np.inf)

    def body(
        x, y, scratch, planes, height, width, high, wide, top, left, size_h, size_w, dilation_h, dilation_w, stride_h,
        worker, workers,
    ):  # fmt: skip
        columns = scratch[worker]
        for j in range(left):
            columns[j] = lowest
        for j in range(left + width, (wide - 1) * stride + (size_w - 1) * dilation_w + 1):
            columns[np.uint64(j)] = lowest
        inner, pitch = columns[left : left + width], dilation_h * width
        grains = planes * high
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            plane, oy = grain // high, grain % high
            first, rows = rows_within(oy, stride_h, top, size_h, dilation_h, height)
            start = (plane * height + first) * width
            a = x[start : start + width]
            if rows == 1:
                for j in range(width):
                    inner[j] = a[j]
            elif rows == 2:
                b = x[start + pitch : start + pitch + width]
                for j in range(width):
                    inner[j] = larger(a[j], b[j])
            else:
                b = x[start + pitch : start + pitch + width]
                c = x[start + 2 * pitch : start + 2 * pitch + width]
                for j in range(width):
                    inner[j] = larger(larger(a[j], b[j]), c[j])
                for r in range(3, rows):
                    d = x[start + r * pitch : start + r * pitch + width]
                    for j in range(width):
                        inner[j] = larger(inner[j], d[j])
            made = y[grain * wide : (grain + 1) * wide]
            if size_w == 1:
                for o in range(wide):
                    made[o] = columns[np.uint64(stride * o)]
            elif size_w == 2:
                b = columns[dilation_w:]
                for o in range(wide):
                    made[o] = larger(columns[np.uint64(stride * o)], b[np.uint64(stride * o)])
            else:
                b, c = columns[dilation_w:], columns[2 * dilation_w :]
                for o in range(wide):
                    both = larger(columns[np.uint64(stride * o)], b[np.uint64(stride * o)])
                    made[o] = larger(both, c[np.uint64(stride * o)])
                for t in range(3, size_w):
                    d = columns[t * dilation_w :]
                    for o in range(wide):
                        made[o] = larger(made[o], d[np.uint64(stride * o)])

    return NumbaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], DILATED, scratch=dtype)


def _prepare(dtype: str) -> Any:
    """Fills a worker's scratch: the first element in the image of each window of a row, and rows of -inf."""
    from numba import njit

    bits = np.array(-np.inf, dtype).view(PLACES[dtype])[()]

    def prepare(work, stride, left, wide, dilation, room):
        for o in range(room):
            column = o * stride - left
            if column < 0:
                column += (dilation - 1 - column) // dilation * dilation
            work[np.uint64(o)] = column if o < wide else 0
        for i in range(2 * room, work.size):
            work[np.uint64(i)] = bits

    return njit(prepare)


def max_pool2d_pick(dtype: str, stride: int) -> NumbaKernel:
    """y = z at the place of the maximum of each window of x."""
    from tapeprop.targets.cpu import window_math

    window_places: Any = window_math.window_places
    padded_row: Any = window_math.padded_row
    rows_within, prepare = _rows_within(), _prepare(dtype)

    def body(
        x, z, y, scratch, planes, height, width, high, wide, top, left, size_h, size_w, dilation_h, dilation_w,
        room, span, stride_h, worker, workers,
    ):  # fmt: skip
        work, pitch = scratch[worker][: 2 * room + size_h * span], dilation_h * width
        prepare(work, stride, left, wide, dilation_w, room)
        places = work[room : room + wide]
        grains = planes * high
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            plane, oy = grain // high, grain % high
            first, rows = rows_within(oy, stride_h, top, size_h, dilation_h, height)
            start = (plane * height + first) * width
            for r in range(rows):
                padded_row(x, start + r * pitch, width, work, 2 * room + r * span + left)
            window_places(stride, work, 2 * room, span, rows, pitch, left, size_w, dilation_w, wide, room)
            made = y[grain * wide : (grain + 1) * wide]
            for ox in range(wide):
                made[ox] = z[np.uint64(start + places[ox])]

    return NumbaKernel(body, [("x", dtype, 1), ("z", dtype, 1), ("y", dtype, 1)], ROWS, scratch=PLACES[dtype])


def max_pool2d_grad(dtype: str, stride: int) -> NumbaKernel:
    """dx = dy added up at the places of the maxima of x."""
    from tapeprop.targets.cpu import window_math

    window_places: Any = window_math.window_places
    padded_row: Any = window_math.padded_row
    rows_within, prepare = _rows_within(), _prepare(dtype)

    def body(
        x, dy, dx, scratch, planes, height, width, high, wide, top, left, size_h, size_w, dilation_h, dilation_w,
        room, span, stride_h, worker, workers,
    ):  # fmt: skip
        work, pitch = scratch[worker][: 2 * room + size_h * span], dilation_h * width
        prepare(work, stride, left, wide, dilation_w, room)
        places = work[room : room + wide]
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            part = dx[plane * height * width : (plane + 1) * height * width]
            for i in range(part.size):
                part[i] = 0.0
            for oy in range(high):
                first, rows = rows_within(oy, stride_h, top, size_h, dilation_h, height)
                start = (plane * height + first) * width
                for r in range(rows):
                    padded_row(x, start + r * pitch, width, work, 2 * room + r * span + left)
                window_places(stride, work, 2 * room, span, rows, pitch, left, size_w, dilation_w, wide, room)
                flowing = dy[(plane * high + oy) * wide : (plane * high + oy + 1) * wide]
                for ox in range(wide):
                    dx[np.uint64(start + places[ox])] += flowing[ox]

    return NumbaKernel(body, [("x", dtype, 1), ("dy", dtype, 1), ("dx", dtype, 1)], ROWS, scratch=PLACES[dtype])


def avg_pool2d(dtype: str, stride: int, count_include_pad: bool) -> NumbaKernel:
    """y = the mean of each window of x."""
    from tapeprop.targets.cpu import window_math

    window_mean: Any = window_math.window_mean
    whole = 1 if count_include_pad else 0

    def body(x, y, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, worker, workers):
        divisor = size_h * size_w * whole
        grains = planes * high
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            plane, oy = grain // high, grain % high
            first = max(oy * stride_h - top, 0)
            rows = min(oy * stride_h - top + size_h, height) - first
            start = (plane * height + first) * width
            window_mean(stride, x, start, rows, width, left, size_w, wide, y, grain * wide, divisor)

    return NumbaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], GEOMETRY)


def avg_pool2d_grad(dtype: str, stride: int, count_include_pad: bool) -> NumbaKernel:
    """dx = dy / (what its window was divided by), added up over the windows."""
    from tapeprop.targets.cpu import window_math

    window_spread: Any = window_math.window_spread
    whole = 1 if count_include_pad else 0

    def body(dy, dx, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, worker, workers):
        divisor = size_h * size_w * whole
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            part = dx[plane * height * width : (plane + 1) * height * width]
            for i in range(part.size):
                part[i] = 0.0
            for oy in range(high):
                first = max(oy * stride_h - top, 0)
                rows = min(oy * stride_h - top + size_h, height) - first
                start = (plane * height + first) * width
                window_spread(
                    stride,
                    dx,
                    start,
                    rows,
                    width,
                    left,
                    size_w,
                    wide,
                    dy,
                    (plane * high + oy) * wide,
                    divisor,
                )

    return NumbaKernel(body, [("dy", dtype, 1), ("dx", dtype, 1)], GEOMETRY)
