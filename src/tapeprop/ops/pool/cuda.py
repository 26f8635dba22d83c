"""CUDA kernels of pooling on planes (N C, rows, columns), flat: a thread makes one element of the result.

A gradient is gathered: each element of the image looks at the windows that cover it, in row-major order, so nothing is
added up by several threads.

Integers `by_wide` and so on are what `language.divider` divides by those sizes with: a GPU takes some 40 instructions for a
division, and a window of four elements would be less work than finding it. narrow: whether indices are below 2^31.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import FLOAT, cuda, divider, larger

GEOMETRY = ("planes", "height", "width", "high", "wide", "top", "left", "size_h", "size_w", "stride_h", "stride_w")
DILATED = (*GEOMETRY[:-2], "dilation_h", "dilation_w", *GEOMETRY[-2:])
OF_WINDOWS = ("by_wide", "by_high")
OF_IMAGE = ("by_width", "by_height", "by_stride_h", "by_stride_w")


@cuda.jit(device=True)
def _clipped(window, stride, before, size, extent):
    """(first, one past the last) element of a window along an axis, without what lies in the padding."""
    start = window * stride - before
    return max(start, 0), min(start + size, extent)


@cuda.jit(device=True)
def _spread(window, stride, before, size, dilation, extent):
    """As `_clipped`, of a window whose elements lie `dilation` apart."""
    start = window * stride - before
    end = min(start + (size - 1) * dilation + 1, extent)
    while start < 0:
        start += dilation
    return start, end


@cuda.jit(device=True)
def _peak(x, start, width, top, bottom, left, right, dilation_h, dilation_w):
    """The place in the image of a window's first NaN or first maximum."""
    place = top * width + left
    best = x[start + place]
    row = top
    while row < bottom:  # a range would divide by its step
        column = left
        while column < right:
            value = x[start + row * width + column]
            if not (best >= value or best != best):
                best, place = value, row * width + column
            column += dilation_w
        row += dilation_h
    return place


def _covering(narrow: bool) -> Any:
    """(place, stride, its inverse, before, size, windows) -> (first, one past the last) of the windows that cover an element."""
    quotient = divider(not narrow)

    @cuda.jit(device=True)
    def covering(place, stride, by_stride, before, size, windows):
        reach = place + before - size
        first = 0
        if reach >= 0:
            first = quotient(reach, stride, by_stride) + 1
        return first, min(quotient(place + before, stride, by_stride) + 1, windows)

    return covering


def max_pool2d(dtype: str, narrow: bool) -> CudaKernel:
    """y = the maximum of each window of x."""
    quotient, lowest = divider(not narrow), FLOAT[dtype](-np.inf)

    def body(
        x, y, planes, height, width, high, wide, top, left, size_h, size_w, dilation_h, dilation_w,
        stride_h, stride_w, by_wide, by_high,
    ):  # fmt: skip
        i = cuda.grid(1)
        while i < planes * high * wide:
            row = quotient(i, wide, by_wide)
            plane, ox = quotient(row, high, by_high), i - row * wide
            start = plane * height * width
            y0, y1 = _spread(row - plane * high, stride_h, top, size_h, dilation_h, height)
            x0, x1 = _spread(ox, stride_w, left, size_w, dilation_w, width)
            best = lowest
            line = y0
            while line < y1:  # a range would divide by its step
                column = x0
                while column < x1:
                    best = larger(best, x[start + line * width + column])
                    column += dilation_w
                line += dilation_h
            y[i] = best
            i += cuda.gridsize(1)

    return CudaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], (*DILATED, *OF_WINDOWS))


def max_pool2d_pick(dtype: str, narrow: bool) -> CudaKernel:
    """y = z at the place of the maximum of each window of x."""
    quotient = divider(not narrow)

    def body(
        x, z, y, planes, height, width, high, wide, top, left, size_h, size_w, dilation_h, dilation_w,
        stride_h, stride_w, by_wide, by_high,
    ):  # fmt: skip
        i = cuda.grid(1)
        while i < planes * high * wide:
            row = quotient(i, wide, by_wide)
            plane, ox = quotient(row, high, by_high), i - row * wide
            start = plane * height * width
            y0, y1 = _spread(row - plane * high, stride_h, top, size_h, dilation_h, height)
            x0, x1 = _spread(ox, stride_w, left, size_w, dilation_w, width)
            y[i] = z[start + _peak(x, start, width, y0, y1, x0, x1, dilation_h, dilation_w)]
            i += cuda.gridsize(1)

    return CudaKernel(body, [("x", dtype, 1), ("z", dtype, 1), ("y", dtype, 1)], (*DILATED, *OF_WINDOWS))


def max_pool2d_grad(dtype: str, narrow: bool) -> CudaKernel:
    """dx = dy added up at the places of the maxima of x."""
    quotient, covering, number = divider(not narrow), _covering(narrow), FLOAT[dtype]

    def body(
        x, dy, dx, planes, height, width, high, wide, top, left, size_h, size_w, dilation_h, dilation_w,
        stride_h, stride_w, by_width, by_height, by_stride_h, by_stride_w,
    ):  # fmt: skip
        i = cuda.grid(1)
        while i < planes * height * width:
            row = quotient(i, width, by_width)
            plane = quotient(row, height, by_height)
            line, column = row - plane * height, i - row * width
            start, here = plane * height * width, line * width + column
            first_y, last_y = covering(line, stride_h, by_stride_h, top, (size_h - 1) * dilation_h + 1, high)
            first_x, last_x = covering(column, stride_w, by_stride_w, left, (size_w - 1) * dilation_w + 1, wide)
            total = number(0)
            for oy in range(first_y, last_y):
                y0, y1 = _spread(oy, stride_h, top, size_h, dilation_h, height)
                for ox in range(first_x, last_x):
                    x0, x1 = _spread(ox, stride_w, left, size_w, dilation_w, width)
                    if _peak(x, start, width, y0, y1, x0, x1, dilation_h, dilation_w) == here:
                        total += dy[(plane * high + oy) * wide + ox]
            dx[i] = total
            i += cuda.gridsize(1)

    return CudaKernel(body, [("x", dtype, 1), ("dy", dtype, 1), ("dx", dtype, 1)], (*DILATED, *OF_IMAGE))


def avg_pool2d(dtype: str, count_include_pad: bool, narrow: bool) -> CudaKernel:
    """y = the mean of each window of x."""
    quotient, number = divider(not narrow), FLOAT[dtype]

    def body(
        x, y, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, stride_w,
        by_wide, by_high,
    ):  # fmt: skip
        i = cuda.grid(1)
        while i < planes * high * wide:
            row = quotient(i, wide, by_wide)
            plane, ox = quotient(row, high, by_high), i - row * wide
            start = plane * height * width
            y0, y1 = _clipped(row - plane * high, stride_h, top, size_h, height)
            x0, x1 = _clipped(ox, stride_w, left, size_w, width)
            total = number(0)
            for line in range(y0, y1):
                for column in range(x0, x1):
                    total += x[start + line * width + column]
            count = size_h * size_w if count_include_pad else (y1 - y0) * (x1 - x0)
            y[i] = total / number(count)
            i += cuda.gridsize(1)

    return CudaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], (*GEOMETRY, *OF_WINDOWS))


def avg_pool2d_grad(dtype: str, count_include_pad: bool, narrow: bool) -> CudaKernel:
    """dx = dy / (what its window was divided by), added up over the windows."""
    quotient, covering, number = divider(not narrow), _covering(narrow), FLOAT[dtype]

    def body(
        dy, dx, planes, height, width, high, wide, top, left, size_h, size_w, stride_h, stride_w,
        by_width, by_height, by_stride_h, by_stride_w,
    ):  # fmt: skip
        i = cuda.grid(1)
        while i < planes * height * width:
            row = quotient(i, width, by_width)
            plane = quotient(row, height, by_height)
            line, column = row - plane * height, i - row * width
            first_y, last_y = covering(line, stride_h, by_stride_h, top, size_h, high)
            first_x, last_x = covering(column, stride_w, by_stride_w, left, size_w, wide)
            total = number(0)
            for oy in range(first_y, last_y):
                y0, y1 = _clipped(oy, stride_h, top, size_h, height)
                for ox in range(first_x, last_x):
                    x0, x1 = _clipped(ox, stride_w, left, size_w, width)
                    count = size_h * size_w if count_include_pad else (y1 - y0) * (x1 - x0)
                    total += dy[(plane * high + oy) * wide + ox] / number(count)
            dx[i] = total
            i += cuda.gridsize(1)

    return CudaKernel(body, [("dy", dtype, 1), ("dx", dtype, 1)], (*GEOMETRY, *OF_IMAGE))
