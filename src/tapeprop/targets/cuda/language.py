"""What bodies of CUDA kernels are written in: numba.cuda, and the few functions that it lacks.

Every function is there twice: as a device function for the GPU, and as plain Python for the simulator, where scalars are
NumPy's and warp shuffles do not exist. A `cuda.py` of an op imports this at its top and writes

    cuda.grid(1), cuda.gridsize(1), cuda.threadIdx.x, cuda.blockIdx.x, cuda.blockDim.x, cuda.gridDim.x
    cuda.shared.array(n, dtype), cuda.local.array(n, dtype), cuda.syncthreads()
    exp expm1 log log1p tanh sigmoid erf sin cos sqrt floor power fma isnan    of one float32 or float64, in its precision
    larger smaller                                              of two, NaN where one is NaN, of equal ones the first
    block_sum(value, shared), block_max(value, shared)          over a block; every thread gets the result
    block_before(value, shared)                                 (the sum of the threads before, of all), of int64
    divider(wide)                                               a function (n, size, inverse) -> n // size, for indices
    from_bits(word)                                             the float64 that a row holds as an int64
    opaque(i)                                                   the uint32 itself, of which the compiler knows nothing
    report(control, number, code)                               a failure, told by the tape's status word

`cuda` must be a global of the module: the simulator replaces it there while a kernel runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.targets.cuda.library import SIMULATED, numba_cuda

__all__ = [
    "BLOCK_SLOTS", "FLOAT", "PRODUCT", "block_before", "block_max", "block_sum", "cos", "cuda", "device", "divider", "erf",
    "exp", "expm1", "floor", "fma", "from_bits", "inlined", "isnan", "larger", "log", "log1p", "opaque", "power", "report", "sigmoid",
    "sin", "smaller", "sqrt", "tanh",
]  # fmt: skip

cuda: Any = numba_cuda()
device: Any = cuda.jit(device=True)
#: A device function of which each call is a copy.
inlined: Any = device if SIMULATED else cuda.jit(device=True, forceinline=True)

#: {dtype: what makes a number of it in a body}. A literal such as 0.5 is a float64: write number(0.5) in float32 code.
FLOAT: dict[str, Any] = {"float32": np.float32, "float64": np.float64}
#: Elements of the shared array that `block_sum` and its likes take: cuda.shared.array(BLOCK_SLOTS, dtype).
BLOCK_SLOTS = 32

if SIMULATED:
    from tapeprop.targets.cuda.language_simulated import (
        PRODUCT,
        block_before,
        block_max,
        block_sum,
        cos,
        erf,
        exp,
        expm1,
        floor,
        fma,
        from_bits,
        isnan,
        log,
        log1p,
        opaque,
        power,
        sigmoid,
        sin,
        sqrt,
        tanh,
    )  # fmt: skip
else:
    from tapeprop.targets.cuda.language_device import (
        PRODUCT,
        block_before,
        block_max,
        block_sum,
        cos,
        erf,
        exp,
        expm1,
        floor,
        fma,
        from_bits,
        isnan,
        log,
        log1p,
        opaque,
        power,
        sigmoid,
        sin,
        sqrt,
        tanh,
    )  # fmt: skip


@device
def larger(a, b):
    """The larger one; NaN where one is NaN; of equal ones the first."""
    if a >= b or a != a:
        return a
    return b


@device
def smaller(a, b):
    """The smaller one; NaN where one is NaN; of equal ones the first."""
    if a <= b or a != a:
        return a
    return b


@device
def report(control, number, code):
    """Reports failure `code` (1 to 65535) of row `number` in the status word; the first report of a run stands.

    control, number: as a body with reports=True receives them. The rows that follow do nothing.
    """
    cuda.atomic.compare_and_swap(control, 0, ((number + 1) << 16) | code)


@device
def _by_division(n, size, inverse):
    return n // size


@device
def _by_inverse(n, size, inverse):
    return (n * (inverse >> 6)) >> (inverse & 63)


def divider(wide: bool) -> Any:
    """The device function (n, size, inverse) -> n // size, for 0 <= n and the `inverse` that `ops.op.inverse(size)` gives.

    wide: n may be 2^31 or more; then it divides, which takes a GPU some 40 instructions. Otherwise it multiplies and shifts.
    """
    return _by_division if wide else _by_inverse
