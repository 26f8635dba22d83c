"""The functions of `language` in Numba's simulator: NumPy on single numbers, and reductions by shared memory alone."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from tapeprop.targets.cuda.library import numba_cuda

cuda: Any = numba_cuda()
device: Any = cuda.jit(device=True)

PRODUCT: dict[str, Any] = {"float32": operator.mul, "float64": operator.mul}
exp, expm1, log, log1p, tanh, sin, cos = np.exp, np.expm1, np.log, np.log1p, np.tanh, np.sin, np.cos
sqrt, floor, power, isnan = np.sqrt, np.floor, np.power, np.isnan


def erf(x):
    """The error function."""
    return type(x)(math.erf(x))


def fma(a, b, c):
    """a * b + c; of float32 rounded twice, but for the first time in float64."""
    return type(a)(np.float64(a) * np.float64(b) + np.float64(c))


def from_bits(word):
    """The float64 whose bits an int64 has."""
    return np.int64(word).view(np.float64)


def opaque(x):
    """A uint32 as it is."""
    return x


def sigmoid(x):
    """1 / (1 + e^-x)."""
    one = type(x)(1)
    if x >= 0:
        return one / (one + np.exp(-x))
    small = np.exp(x)
    return small / (one + small) if x > -50 else small


@device
def block_sum(value, shared):
    """The sum over a block, which every thread gets; by a tree whose shape only the block's size decides."""
    thread = cuda.threadIdx.x
    shared[thread] = value
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if thread < half:
            shared[thread] += shared[thread + half]
        cuda.syncthreads()
        half //= 2
    total = shared[0]
    cuda.syncthreads()
    return total


@device
def block_max(value, shared):
    """The largest of a block, NaN where one is NaN; every thread gets it."""
    thread = cuda.threadIdx.x
    shared[thread] = value
    cuda.syncthreads()
    top = shared[0]
    for k in range(1, cuda.blockDim.x):
        if not (top >= shared[k] or top != top):
            top = shared[k]
    cuda.syncthreads()
    return top


@device
def block_before(value, shared):
    """(The sum of the threads before this one, that of the block) of int64."""
    shared[cuda.threadIdx.x] = value
    cuda.syncthreads()
    before, total = value - value, value - value
    for k in range(cuda.blockDim.x):
        if k < cuda.threadIdx.x:
            before += shared[k]
        total += shared[k]
    cuda.syncthreads()
    return before, total
