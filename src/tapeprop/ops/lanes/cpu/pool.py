"""CPU kernels of pooling over batch lanes: planes (G C) of pixels of L images, one row of windows at a time.

Forward kernels hand out rows of windows, the transposed ones whole planes, whose overlapping windows add up in row-major order.
Only the windows' width and horizontal stride are compiled in.
"""

from __future__ import annotations

from typing import Any

from tapeprop.ops.lanes.cpu.layout import vector_lanes
from tapeprop.ops.op import ArrayType, Call, Launch, Ref, launch
from tapeprop.targets.cpu.kernel import NumbaKernel

_GEOMETRY = ("planes", "height", "width", "high", "wide", "top", "left", "size_h", "stride_h")


def pool_launch(builder: str, call: Call, x: ArrayType, y: ArrayType, *integers: int, grad: bool = False) -> Launch:
    """A row: every array flat, the geometry, `integers`, and for a gradient whether it has to clear dx first.

    x: (G, C, H, W, L), which windows slide over; y: (G, C, H', W', L).
    """
    (size_h, size_w), (stride_h, stride_w), ((top, _), (left, _)) = call["size"], call["stride"], call["padding"]
    groups, channels, height, width, images = x.shape
    high, wide = y.shape[2:4]
    arrays = [(Ref("operand", i), (kind.size,)) for i, kind in enumerate(call.operands)]
    arrays.append((Ref("result"), (call.results[0].size,)))
    parameters: dict[str, Any] = {"size": size_w, "stride": stride_w}
    fields = [groups * channels, height, width, high, wide, top, left, size_h, stride_h, *integers]
    if grad:
        alone = stride_h >= size_h and stride_w >= size_w
        tiled = (stride_h, stride_w) == (size_h, size_w) and (top, left) == (0, 0)
        covered = alone and tiled and (high * size_h, wide * size_w) == (height, width)
        parameters["alone"] = int(alone)
        fields.append(int(not covered))
    lanes = vector_lanes(x.dtype, images)
    name = f"{__name__}:{builder}"
    return launch(name, call, arrays, fields, dtype=x.dtype, lanes=lanes, images=images, **parameters)


def _kernel(body: Any, dtype: str, arrays: str, *integers: str) -> NumbaKernel:
    return NumbaKernel(body, [(name, dtype, 1) for name in arrays.split()], (*_GEOMETRY, *integers))


def max_pool(dtype: str, lanes: int, images: int, size: int, stride: int) -> NumbaKernel:
    """y = the maximum of each window of x, and of 0 where `floor` is not 0."""
    from tapeprop.targets.cpu.lane_windows import lane_max

    def body(x, y, planes, height, width, high, wide, top, left, size_h, stride_h, floor, worker, workers):
        grains = planes * high
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            plane, h = grain // high, grain % high
            low = max(h * stride_h - top, 0)
            rows = min(h * stride_h - top + size_h, height) - low
            place = (plane * height + low) * width
            lane_max(lanes, images, size, stride, x, place, width, width, -left, rows, y, grain * wide, wide, floor)

    return _kernel(body, dtype, "x y", "floor")


def max_pool_grad(dtype: str, lanes: int, images: int, size: int, stride: int, alone: int) -> NumbaKernel:
    """dx = dy added up at the first maximum y of each window of x."""
    from tapeprop.targets.cpu.lane_windows import lane_max_grad

    def body(
        x, y, dy, dx, planes, height, width, high, wide, top, left, size_h, stride_h, clear, worker, workers
    ):  # fmt: skip
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            if clear:
                part = dx[plane * height * width * images : (plane + 1) * height * width * images]
                for i in range(part.size):
                    part[i] = 0.0
            for h in range(high):
                low = max(h * stride_h - top, 0)
                rows = min(h * stride_h - top + size_h, height) - low
                lane_max_grad(
                    lanes, images, size, stride, alone, x, (plane * height + low) * width, width, width, -left, rows,
                    y, dy, dx, (plane * high + h) * wide, wide,
                )  # fmt: skip

    return _kernel(body, dtype, "x y dy dx", "clear")


def avg_pool(dtype: str, lanes: int, images: int, size: int, stride: int) -> NumbaKernel:
    """y = the sum of each window of x / divisor; divisor 0: the number of its pixels."""
    from tapeprop.targets.cpu.lane_windows import lane_mean

    def body(x, y, planes, height, width, high, wide, top, left, size_h, stride_h, divisor, worker, workers):
        grains = planes * high
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            plane, h = grain // high, grain % high
            low = max(h * stride_h - top, 0)
            rows = min(h * stride_h - top + size_h, height) - low
            place = (plane * height + low) * width
            lane_mean(lanes, images, size, stride, x, place, width, width, -left, rows, y, grain * wide, wide, divisor)

    return _kernel(body, dtype, "x y", "divisor")


def avg_pool_grad(dtype: str, lanes: int, images: int, size: int, stride: int, alone: int) -> NumbaKernel:
    """dx = dy / divisor added up over the windows; divisor 0: the number of a window's pixels."""
    from tapeprop.targets.cpu.lane_windows import lane_mean_grad

    def body(
        dy, dx, planes, height, width, high, wide, top, left, size_h, stride_h, divisor, clear, worker, workers
    ):  # fmt: skip
        for plane in range(planes * worker // workers, planes * (worker + 1) // workers):
            if clear:
                part = dx[plane * height * width * images : (plane + 1) * height * width * images]
                for i in range(part.size):
                    part[i] = 0.0
            for h in range(high):
                low = max(h * stride_h - top, 0)
                rows = min(h * stride_h - top + size_h, height) - low
                lane_mean_grad(
                    lanes, images, size, stride, alone, dx, (plane * height + low) * width, width, width, -left, rows,
                    dy, (plane * high + h) * wide, wide, divisor,
                )  # fmt: skip

    return _kernel(body, dtype, "dy dx", "divisor", "clear")
