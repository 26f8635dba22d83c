"""CUDA kernels of softmax and its gradient on (outer, n, inner), flat, the axis of the sum in the middle.

A block of threads takes a row, whose elements its threads stride over; neighbours of the inner axis lie apart, so where
inner > 1 a thread takes a whole column instead and the threads of a warp read side by side.
"""

from __future__ import annotations

import numpy as np

from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import BLOCK_SLOTS, FLOAT, block_max, block_sum, cuda, exp, larger, log

SIZES = ("outer", "n", "inner")


def softmax_rows(dtype: str, logarithm: bool) -> CudaKernel:
    """y = softmax(x), or its logarithm, along the rows of x; inner is 1."""
    number, infinity = FLOAT[dtype], FLOAT[dtype](np.inf)

    def body(x, y, outer, n, inner):
        shared = cuda.shared.array(BLOCK_SLOTS, number)
        row = cuda.blockIdx.x
        while row < outer:
            start = row * n
            top = -infinity
            i = cuda.threadIdx.x
            while i < n:
                top = larger(top, x[start + i])
                i += cuda.blockDim.x
            top = block_max(top, shared)
            total = number(0)
            i = cuda.threadIdx.x
            while i < n:
                total += exp(below(x[start + i], top))
                i += cuda.blockDim.x
            total = block_sum(total, shared)
            i = cuda.threadIdx.x
            while i < n:
                distance = below(x[start + i], top)
                if logarithm:
                    y[start + i] = distance - log(total)
                else:
                    y[start + i] = exp(distance) / total
                i += cuda.blockDim.x
            row += cuda.gridDim.x

    return CudaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], SIZES)


def softmax_columns(dtype: str, logarithm: bool) -> CudaKernel:
    """y = softmax(x), or its logarithm, along the middle axis of x."""
    number, infinity = FLOAT[dtype], FLOAT[dtype](np.inf)

    def body(x, y, outer, n, inner):
        column = cuda.grid(1)
        while column < outer * inner:
            start = column // inner * n * inner + column % inner
            top = -infinity
            for j in range(n):
                top = larger(top, x[start + j * inner])
            total = number(0)
            for j in range(n):
                total += exp(below(x[start + j * inner], top))
            for j in range(n):
                distance = below(x[start + j * inner], top)
                if logarithm:
                    y[start + j * inner] = distance - log(total)
                else:
                    y[start + j * inner] = exp(distance) / total
            column += cuda.gridsize(1)

    return CudaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], SIZES)


@cuda.jit(device=True)
def below(x, top):
    """x - top; 0 for those at +inf, which share as equal numbers do: inf - inf would be NaN."""
    if x == top and x > 0:
        return type(x)(0)
    return x - top


def softmax_grad_rows(dtype: str, logarithm: bool) -> CudaKernel:
    """dx = y (dy - sum of y dy) along rows; where y is a logarithm, dx = dy - exp(y) (sum of dy)."""
    number = FLOAT[dtype]

    def body(y, dy, dx, outer, n, inner):
        shared = cuda.shared.array(BLOCK_SLOTS, number)
        row = cuda.blockIdx.x
        while row < outer:
            start = row * n
            total = number(0)
            i = cuda.threadIdx.x
            while i < n:
                total += dy[start + i] if logarithm else y[start + i] * dy[start + i]
                i += cuda.blockDim.x
            total = block_sum(total, shared)
            i = cuda.threadIdx.x
            while i < n:
                if logarithm:
                    dx[start + i] = dy[start + i] - exp(y[start + i]) * total
                else:
                    dx[start + i] = y[start + i] * (dy[start + i] - total)
                i += cuda.blockDim.x
            row += cuda.gridDim.x

    return CudaKernel(body, [("y", dtype, 1), ("dy", dtype, 1), ("dx", dtype, 1)], SIZES)


def softmax_grad_columns(dtype: str, logarithm: bool) -> CudaKernel:
    """As `softmax_grad_rows`, along the middle axis."""
    number = FLOAT[dtype]

    def body(y, dy, dx, outer, n, inner):
        column = cuda.grid(1)
        while column < outer * inner:
            start = column // inner * n * inner + column % inner
            total = number(0)
            for j in range(n):
                k = start + j * inner
                total += dy[k] if logarithm else y[k] * dy[k]
            for j in range(n):
                k = start + j * inner
                if logarithm:
                    dx[k] = dy[k] - exp(y[k]) * total
                else:
                    dx[k] = y[k] * (dy[k] - total)
            column += cuda.gridsize(1)

    return CudaKernel(body, [("y", dtype, 1), ("dy", dtype, 1), ("dx", dtype, 1)], SIZES)
