"""The CUDA kernel of matrix products: one for each way in which the operands may lie, with or without a bias."""

from __future__ import annotations

from functools import cache

from tapeprop.ops.matmul.geometry import BATCH_AXES
from tapeprop.targets.cuda.gemm import product_kernel
from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.product import Operand, Product, divide, i32, inline

#: lda, ldb: from a row of a matrix to the next. c_m, c_n: steps in the result. The rest as `geometry.batch_axes` has it.
NAMES = (
    "k",
    "lda",
    "ldb",
    "c_m",
    "c_n",
    *(f"{name}{axis}" for name in ("size", "a", "b") for axis in range(BATCH_AXES)),
)


def product(dtype: str, tile: tuple[int, ...], along_a: bool, along_b: bool) -> CudaKernel:
    """c = a b + bias over a batch of matrices.

    along_a: a is (m, k), not (k, m); along_b: b is (n, k), not (k, n): neighbours in memory are neighbours in k.
    """
    left, right = _operand(0, along_a), _operand(1, along_b)
    return product_kernel(dtype, tile, NAMES, Product(5, _place, _depth, left, right, _row, _column))


@inline
def _place(sizes, batch):
    """(start of a, lda, start of b, ldb, start of c) of a matrix of the batch."""
    a, b = 0, 0
    if batch > 0:
        rest3 = divide(batch, sizes.size3)
        rest2 = divide(rest3, sizes.size2)
        i0 = divide(rest2, sizes.size1)
        i1, i2, i3 = rest2 - i0 * sizes.size1, rest3 - rest2 * sizes.size2, batch - rest3 * sizes.size3
        a = i0 * sizes.a0 + i1 * sizes.a1 + i2 * sizes.a2 + i3 * sizes.a3
        b = i0 * sizes.b0 + i1 * sizes.b1 + i2 * sizes.b2 + i3 * sizes.b3
    return a, sizes.lda, b, sizes.ldb, batch * sizes.m * sizes.n


@inline
def _depth(sizes, place):
    return sizes.k


@inline
def _row(sizes, place, m):
    return m * sizes.c_m


@inline
def _column(sizes, place, n):
    return place[4] + n * sizes.c_n


@cache
def _operand(which: int, along_k: bool) -> Operand:
    """A matrix whose rows are its x (`along_k`) or its k."""
    start, step = 2 * which, 2 * which + 1

    @inline
    def outer(sizes, place, x):
        return place[start] + (x * place[step] if along_k else x), 0, 0

    @inline
    def inner(sizes, place, entry):
        # Of two int32 the product is an int64, by one instruction.
        return entry[0] if along_k else i32(entry[0]) * i32(place[step]), entry[1], entry[2]

    @inline
    def limits(sizes):
        return 1, 1

    return Operand(along_k, outer, inner, limits)
