"""CUDA kernels of pooling on planes (N C, rows, columns), flat: a thread makes one element of the result.

A gradient is gathered: each element of the image looks at the windows that cover it, in row-major order, so nothing is
added up by several threads.
"""

from __future__ import annotations

import numpy as np

from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import FLOAT, cuda, larger

GEOMETRY = ("planes", "height", "width", "high", "wide", "top", "left", "size_h", "size_w", "stride_h", "stride_w")


@cuda.jit(device=True)
def _clipped(window, stride, before, size, extent):
    """(first, one past the last) element of a window along an axis, without what lies in the padding."""
    start = window * stride - before
    return max(start, 0), min(start + size, extent)


@cuda.jit(device=True)
def _covering(place, stride, before, size, windows):
    """(first, one past the last) of the windows along an axis that cover an element."""
    reach = place + before - size
    first = 0
    if reach >= 0:
        first = reach // stride + 1
    return first, min((place + before) // stride + 1, windows)


@cuda.jit(device=True)
def _peak(x, start, width, top, bottom, left, right):
    """The place in the image of a window's first NaN or first maximum."""
    place = top * width + left
    best = x[start + place]
    for row in range(top, bottom):
        for column in range(left, right):
            value = x[start + row * width + column]
            if not (best >= value or best != best):
                best, place = value, row * width + column
    return place


def max_pool2d(dtype: str) -> CudaKernel:
    """y = the maximum of each window of x."""
    lowest = FLOAT[dtype](-np.inf)

    def body(x, y, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, stride_w):
        i = cuda.grid(1)
        while i < planes * high * wide:
            row, ox = i // wide, i % wide
            start = row // high * height * width
            y0, y1 = _clipped(row % high, stride_h, top, size_h, height)
            x0, x1 = _clipped(ox, stride_w, left, size_w, width)
            best = lowest
            for line in range(y0, y1):
                for column in range(x0, x1):
                    best = larger(best, x[start + line * width + column])
            y[i] = best
            i += cuda.gridsize(1)

    return CudaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], GEOMETRY)


def max_pool2d_pick(dtype: str) -> CudaKernel:
    """y = z at the place of the maximum of each window of x."""

    def body(x, z, y, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, stride_w):
        i = cuda.grid(1)
        while i < planes * high * wide:
            row, ox = i // wide, i % wide
            start = row // high * height * width
            y0, y1 = _clipped(row % high, stride_h, top, size_h, height)
            x0, x1 = _clipped(ox, stride_w, left, size_w, width)
            y[i] = z[start + _peak(x, start, width, y0, y1, x0, x1)]
            i += cuda.gridsize(1)

    return CudaKernel(body, [("x", dtype, 1), ("z", dtype, 1), ("y", dtype, 1)], GEOMETRY)


def max_pool2d_grad(dtype: str) -> CudaKernel:
    """dx = dy added up at the places of the maxima of x."""
    number = FLOAT[dtype]

    def body(x, dy, dx, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, stride_w):
        i = cuda.grid(1)
        while i < planes * height * width:
            row, column = i // width, i % width
            plane, line = row // height, row % height
            start, here = plane * height * width, line * width + column
            first_y, last_y = _covering(line, stride_h, top, size_h, high)
            first_x, last_x = _covering(column, stride_w, left, size_w, wide)
            total = number(0)
            for oy in range(first_y, last_y):
                y0, y1 = _clipped(oy, stride_h, top, size_h, height)
                for ox in range(first_x, last_x):
                    x0, x1 = _clipped(ox, stride_w, left, size_w, width)
                    if _peak(x, start, width, y0, y1, x0, x1) == here:
                        total += dy[(plane * high + oy) * wide + ox]
            dx[i] = total
            i += cuda.gridsize(1)

    return CudaKernel(body, [("x", dtype, 1), ("dy", dtype, 1), ("dx", dtype, 1)], GEOMETRY)


def avg_pool2d(dtype: str, count_include_pad: bool) -> CudaKernel:
    """y = the mean of each window of x."""
    number = FLOAT[dtype]

    def body(x, y, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, stride_w):
        i = cuda.grid(1)
        while i < planes * high * wide:
            row, ox = i // wide, i % wide
            start = row // high * height * width
            y0, y1 = _clipped(row % high, stride_h, top, size_h, height)
            x0, x1 = _clipped(ox, stride_w, left, size_w, width)
            total = number(0)
            for line in range(y0, y1):
                for column in range(x0, x1):
                    total += x[start + line * width + column]
            count = size_h * size_w if count_include_pad else (y1 - y0) * (x1 - x0)
            y[i] = total / number(count)
            i += cuda.gridsize(1)

    return CudaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], GEOMETRY)


def avg_pool2d_grad(dtype: str, count_include_pad: bool) -> CudaKernel:
    """dx = dy / (what its window was divided by), added up over the windows."""
    number = FLOAT[dtype]

    def body(dy, dx, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, stride_w):
        i = cuda.grid(1)
        while i < planes * height * width:
            row, column = i // width, i % width
            plane, line = row // height, row % height
            first_y, last_y = _covering(line, stride_h, top, size_h, high)
            first_x, last_x = _covering(column, stride_w, left, size_w, wide)
            total = number(0)
            for oy in range(first_y, last_y):
                y0, y1 = _clipped(oy, stride_h, top, size_h, height)
                for ox in range(first_x, last_x):
                    x0, x1 = _clipped(ox, stride_w, left, size_w, width)
                    count = size_h * size_w if count_include_pad else (y1 - y0) * (x1 - x0)
                    total += dy[(plane * high + oy) * wide + ox] / number(count)
            dx[i] = total
            i += cuda.gridsize(1)

    return CudaKernel(body, [("dy", dtype, 1), ("dx", dtype, 1)], GEOMETRY)
