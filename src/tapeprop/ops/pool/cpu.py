"""CPU kernels of pooling: planes (N C, rows, columns), one row of windows at a time (`targets.cpu.window_math`).

Forward kernels hand out rows of windows, the transposed ones whole planes, whose overlapping windows add up in
row-major order. `left`, `size_h` and so on are fields of the row; only the horizontal stride is compiled in.
"""

from __future__ import annotations

from typing import Any

from tapeprop.targets.cpu.kernel import NumbaKernel

GEOMETRY = ("top", "left", "size_h", "size_w", "stride_h")
PLACES = {"float32": "int32", "float64": "int64"}


def max_pool2d(dtype: str, stride: int) -> NumbaKernel:
    """y = the maximum of each window of x."""
    from tapeprop.targets.cpu import window_math

    window_max: Any = window_math.window_max

    def body(x, y, top, left, size_h, size_w, stride_h, worker, workers):
        planes, high, wide = y.shape
        height, width = x.shape[1], x.shape[2]
        grains = planes * high
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            plane, oy = grain // high, grain % high
            first = max(oy * stride_h - top, 0)
            rows = min(oy * stride_h - top + size_h, height) - first
            start = (plane * height + first) * width
            window_max(stride, x, start, rows, width, left, size_w, wide, y, grain * wide)

    return NumbaKernel(body, [("x", dtype, 3), ("y", dtype, 3)], GEOMETRY)


def max_pool2d_pick(dtype: str, stride: int) -> NumbaKernel:
    """y = z at the place of the maximum of each window of x."""
    from tapeprop.targets.cpu import window_math

    window_places: Any = window_math.window_places

    def body(x, z, y, scratch, top, left, size_h, size_w, stride_h, worker, workers):
        planes, high, wide = y.shape
        height, width = x.shape[1], x.shape[2]
        places = scratch[worker]
        flat = z.reshape(-1)
        grains = planes * high
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            plane, oy = grain // high, grain % high
            first = max(oy * stride_h - top, 0)
            rows = min(oy * stride_h - top + size_h, height) - first
            start = (plane * height + first) * width
            window_places(stride, x, start, rows, width, left, size_w, wide, places)
            for ox in range(wide):
                y[plane, oy, ox] = flat[start + places[ox]]

    return NumbaKernel(body, [("x", dtype, 3), ("z", dtype, 3), ("y", dtype, 3)], GEOMETRY, scratch=PLACES[dtype])


def max_pool2d_grad(dtype: str, stride: int) -> NumbaKernel:
    """dx = dy added up at the places of the maxima of x."""
    from tapeprop.targets.cpu import window_math

    window_places: Any = window_math.window_places

    def body(x, dy, dx, scratch, top, left, size_h, size_w, stride_h, worker, workers):
        planes, high, wide = dy.shape
        height, width = x.shape[1], x.shape[2]
        places = scratch[worker]
        flat = dx.reshape(-1)
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            part = flat[plane * height * width : (plane + 1) * height * width]
            for i in range(part.size):
                part[i] = 0.0
            for oy in range(high):
                first = max(oy * stride_h - top, 0)
                rows = min(oy * stride_h - top + size_h, height) - first
                start = (plane * height + first) * width
                window_places(stride, x, start, rows, width, left, size_w, wide, places)
                for ox in range(wide):
                    flat[start + places[ox]] += dy[plane, oy, ox]

    return NumbaKernel(body, [("x", dtype, 3), ("dy", dtype, 3), ("dx", dtype, 3)], GEOMETRY, scratch=PLACES[dtype])


def avg_pool2d(dtype: str, stride: int, count_include_pad: bool) -> NumbaKernel:
    """y = the mean of each window of x."""
    from tapeprop.targets.cpu import window_math

    window_mean: Any = window_math.window_mean
    whole = 1 if count_include_pad else 0

    def body(x, y, top, left, size_h, size_w, stride_h, worker, workers):
        planes, high, wide = y.shape
        height, width = x.shape[1], x.shape[2]
        divisor = size_h * size_w * whole
        grains = planes * high
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            plane, oy = grain // high, grain % high
            first = max(oy * stride_h - top, 0)
            rows = min(oy * stride_h - top + size_h, height) - first
            start = (plane * height + first) * width
            window_mean(stride, x, start, rows, width, left, size_w, wide, y, grain * wide, divisor)

    return NumbaKernel(body, [("x", dtype, 3), ("y", dtype, 3)], GEOMETRY)


def avg_pool2d_grad(dtype: str, stride: int, count_include_pad: bool) -> NumbaKernel:
    """dx = dy / (what its window was divided by), added up over the windows."""
    from tapeprop.targets.cpu import window_math

    window_spread: Any = window_math.window_spread
    whole = 1 if count_include_pad else 0

    def body(dy, dx, top, left, size_h, size_w, stride_h, worker, workers):
        planes, high, wide = dy.shape
        height, width = dx.shape[1], dx.shape[2]
        divisor = size_h * size_w * whole
        flat = dx.reshape(-1)
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            part = flat[plane * height * width : (plane + 1) * height * width]
            for i in range(part.size):
                part[i] = 0.0
            for oy in range(high):
                first = max(oy * stride_h - top, 0)
                rows = min(oy * stride_h - top + size_h, height) - first
                start = (plane * height + first) * width
                window_spread(
                    stride, dx, start, rows, width, left, size_w, wide, dy, (plane * high + oy) * wide, divisor
                )

    return NumbaKernel(body, [("dy", dtype, 3), ("dx", dtype, 3)], GEOMETRY)
