"""Builders of kernels for tests of the driver and of what compiles for it."""

import numpy as np

from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import cuda, exp, report


def grow() -> CudaKernel:
    """y[i] = e^(1000 y[i]) where that is above 0, which may be inf, else 0; every thread its own elements."""

    def body(y):
        i = cuda.grid(1)
        while i < y.size:
            y[i] = exp(y[i] * np.float32(1000)) if y[i] > 0 else np.float32(0)
            i += cuda.gridsize(1)

    return CudaKernel(body, [("y", "float32", 1)])


def count() -> CudaKernel:
    """Adds 1 to x[0], by one thread; reports code 5 where it becomes 3."""

    def body(x, control, number):
        if cuda.grid(1) == 0:
            x[0] += 1
            if x[0] == 3:
                report(control, number, 5)

    return CudaKernel(body, [("x", "int64", 1)], reports=True)


def scaled(factor: float) -> CudaKernel:
    """y[i] = factor * y[i]."""

    def body(y):
        i = cuda.grid(1)
        while i < y.size:
            y[i] *= np.float32(factor)
            i += cuda.gridsize(1)

    return CudaKernel(body, [("y", "float32", 1)])


def failing() -> CudaKernel:
    """Cannot be built."""
    raise RuntimeError("no such tile")


def passed_on(step: int, barrier: bool) -> CudaKernel:
    """Twice x[i] += x[i + step], step 1 or -1, of the values before; right with a barrier between reading and writing."""

    def body(x, control, number):
        i = cuda.threadIdx.x
        other = i + step
        for _ in range(2):
            found = x[other] if 0 <= other < x.size else 0
            if barrier:
                cuda.syncthreads()
            x[i] += found
            cuda.syncthreads()

    return CudaKernel(body, [("x", "int64", 1)], reports=True)


def out_of_bounds() -> CudaKernel:
    """Thread 2 writes past a table, the others wait."""

    def body(x, control, number):
        table = cuda.shared.array(4, np.int64)
        table[cuda.threadIdx.x] = x[0]
        cuda.syncthreads()
        if cuda.threadIdx.x == 2:
            table[x[0] + 5] = 0
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            x[0] = table[3] + 7

    return CudaKernel(body, [("x", "int64", 1)], reports=True)
