"""The CUDA kernel that makes indices of floats."""

from __future__ import annotations

import numpy as np

from tapeprop.ops.embedding import LIMIT, NOT_WHOLE
from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import FLOAT, cuda, report


def whole_numbers(dtype: str) -> CudaKernel:
    """y (n,) int64 = x (n,); reports a number that is not whole."""
    limit, not_whole = FLOAT[dtype](LIMIT), NOT_WHOLE

    def body(y, x, control, number):
        i = cuda.grid(1)
        while i < y.size:
            value = x[i]
            inside = value > -limit and value < limit
            whole = np.int64(-1)  # for what has no int64
            if inside:
                whole = np.int64(value)
            if value != value or (inside and whole != value):
                report(control, number, not_whole)
            y[i] = whole
            i += cuda.gridsize(1)

    return CudaKernel(body, [("y", "int64", 1), ("x", dtype, 1)], reports=True)
