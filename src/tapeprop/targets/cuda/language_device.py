"""The functions of `language` on a GPU: libdevice, and reductions by warp shuffles."""

from __future__ import annotations

import math
from typing import Any

from tapeprop.targets.cuda.library import numba_cuda

cuda: Any = numba_cuda()
device: Any = cuda.jit(device=True)

#: {dtype: a * b of that dtype, rounded by itself. NVVM may join a product that is written * with a sum that takes it.}
PRODUCT: dict[str, Any] = {"float32": cuda.libdevice.fmul_rn, "float64": cuda.libdevice.dmul_rn}
ALL = 0xFFFFFFFF  # every lane of a warp takes part


@device
def exp(x):
    """e^x."""
    return math.exp(x)


@device
def expm1(x):
    """e^x - 1, accurate near 0."""
    return math.expm1(x)


@device
def log(x):
    """The natural logarithm."""
    return math.log(x)


@device
def log1p(x):
    """log(1 + x), accurate near 0."""
    return math.log1p(x)


@device
def tanh(x):
    """The hyperbolic tangent."""
    return math.tanh(x)


@device
def erf(x):
    """The error function."""
    return math.erf(x)


@device
def sin(x):
    """The sine."""
    return math.sin(x)


@device
def cos(x):
    """The cosine."""
    return math.cos(x)


@device
def sqrt(x):
    """The square root; NaN below -0."""
    return math.sqrt(x)


@device
def floor(x):
    """The largest integer <= x, as a float."""
    return type(x)(math.floor(x))


@device
def power(x, y):
    """x^y with C's special values."""
    return math.pow(x, y)


@device
def from_bits(word):
    """The float64 whose bits an int64 has: how a row holds a number that is no integer."""
    return cuda.libdevice.longlong_as_double(word)


@device
def isnan(x):
    """Whether x is NaN."""
    return x != x


@device
def fma(a, b, c):
    """a * b + c, rounded once."""
    return cuda.fma(a, b, c)


@device
def sigmoid(x):
    """1 / (1 + e^-x), its negative tail kept down to denormals."""
    one = type(x)(1)
    small = math.exp(-abs(x))
    if x >= 0:
        return one / (one + small)
    return small / (one + small)


@device
def block_sum(value, shared):
    """The sum over a block of whole warps, which every thread gets: a tree in each warp, then the warps in order."""
    offset = 16
    while offset > 0:
        value += cuda.shfl_xor_sync(ALL, value, offset)
        offset >>= 1
    if cuda.laneid == 0:
        shared[cuda.threadIdx.x >> 5] = value
    cuda.syncthreads()
    total = shared[0]
    for warp in range(1, cuda.blockDim.x >> 5):
        total += shared[warp]
    cuda.syncthreads()  # the next call may write
    return total


@device
def block_max(value, shared):
    """The largest of a block of whole warps, NaN where one is NaN; every thread gets it."""
    offset = 16
    while offset > 0:
        other = cuda.shfl_xor_sync(ALL, value, offset)
        if not (value >= other or value != value):
            value = other
        offset >>= 1
    if cuda.laneid == 0:
        shared[cuda.threadIdx.x >> 5] = value
    cuda.syncthreads()
    top = shared[0]
    for warp in range(1, cuda.blockDim.x >> 5):
        if not (top >= shared[warp] or top != top):
            top = shared[warp]
    cuda.syncthreads()
    return top


@device
def block_before(value, shared):
    """(The sum of the threads before this one, that of the block) of int64, in a block of whole warps."""
    through = value  # this lane's and those before it in the warp
    offset = 1
    while offset < 32:
        below = cuda.shfl_up_sync(ALL, through, offset)
        if cuda.laneid >= offset:
            through += below
        offset <<= 1
    if cuda.laneid == 31:
        shared[cuda.threadIdx.x >> 5] = through
    cuda.syncthreads()
    before, total = through - value, value - value
    for warp in range(cuda.blockDim.x >> 5):
        if warp < cuda.threadIdx.x >> 5:
            before += shared[warp]
        total += shared[warp]
    cuda.syncthreads()
    return before, total


def _opaque() -> Any:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    @intrinsic
    def opaque(typing_context, x):
        def generate(context, builder, signature, arguments):
            word = ir.IntType(32)
            move = ir.InlineAsm(ir.FunctionType(word, [word]), "mov.b32 $0, $1;", "=r,r", side_effect=True)
            return builder.call(move, arguments)

        return types.uint32(types.uint32), generate

    return opaque


#: A uint32 as it is, which the compiler takes for an unknown one: what follows from it in a loop takes no registers around it.
opaque = _opaque()
