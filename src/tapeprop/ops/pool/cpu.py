"""CPU kernels of pooling: planes (N C, rows, columns), flat, one row of windows at a time (`targets.cpu.window_math`).

Forward kernels hand out rows of windows, the transposed ones whole planes, whose overlapping windows add up in
row-major order. `left`, `size_h` and so on are fields of the row; only the horizontal stride is compiled in.
"""

from __future__ import annotations

from typing import Any

from tapeprop.targets.cpu.kernel import NumbaKernel

GEOMETRY = ("planes", "height", "width", "high", "wide", "top", "left", "size_h", "size_w", "stride_h")
PLACES = {"float32": "int32", "float64": "int64"}


def max_pool2d(dtype: str, stride: int) -> NumbaKernel:
    """y = the maximum of each window of x."""
    from tapeprop.targets.cpu import window_math

    window_max: Any = window_math.window_max

    def body(x, y, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, worker, workers):
        grains = planes * high
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            plane, oy = grain // high, grain % high
            first = max(oy * stride_h - top, 0)
            rows = min(oy * stride_h - top + size_h, height) - first
            start = (plane * height + first) * width
            window_max(stride, x, start, rows, width, left, size_w, wide, y, grain * wide)

    return NumbaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], GEOMETRY)


def max_pool2d_pick(dtype: str, stride: int) -> NumbaKernel:
    """y = z at the place of the maximum of each window of x."""
    from tapeprop.targets.cpu import window_math

    window_places: Any = window_math.window_places

    def body(x, z, y, scratch, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, worker, workers):
        places = scratch[worker]
        grains = planes * high
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            plane, oy = grain // high, grain % high
            first = max(oy * stride_h - top, 0)
            rows = min(oy * stride_h - top + size_h, height) - first
            start = (plane * height + first) * width
            window_places(stride, x, start, rows, width, left, size_w, wide, places)
            made = y[grain * wide : (grain + 1) * wide]
            for ox in range(wide):
                made[ox] = z[start + places[ox]]

    return NumbaKernel(body, [("x", dtype, 1), ("z", dtype, 1), ("y", dtype, 1)], GEOMETRY, scratch=PLACES[dtype])


def max_pool2d_grad(dtype: str, stride: int) -> NumbaKernel:
    """dx = dy added up at the places of the maxima of x."""
    from tapeprop.targets.cpu import window_math

    window_places: Any = window_math.window_places

    def body(
        x, dy, dx, scratch, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, worker, workers
    ):
        places = scratch[worker]
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            part = dx[plane * height * width : (plane + 1) * height * width]
            for i in range(part.size):
                part[i] = 0.0
            for oy in range(high):
                first = max(oy * stride_h - top, 0)
                rows = min(oy * stride_h - top + size_h, height) - first
                start = (plane * height + first) * width
                window_places(stride, x, start, rows, width, left, size_w, wide, places)
                flowing = dy[(plane * high + oy) * wide : (plane * high + oy + 1) * wide]
                for ox in range(wide):
                    dx[start + places[ox]] += flowing[ox]

    return NumbaKernel(body, [("x", dtype, 1), ("dy", dtype, 1), ("dx", dtype, 1)], GEOMETRY, scratch=PLACES[dtype])


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
                    stride, dx, start, rows, width, left, size_w, wide, dy, (plane * high + oy) * wide, divisor
                )

    return NumbaKernel(body, [("dy", dtype, 1), ("dx", dtype, 1)], GEOMETRY)
