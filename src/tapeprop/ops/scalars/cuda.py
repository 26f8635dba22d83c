"""The CUDA kernel of long sums over scattered elements; everything else in a block is an elementwise loop."""

from __future__ import annotations

import numpy as np

from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import cuda


def ordered_sums(dtype: str) -> CudaKernel:
    """y (n,) = x[positions[0]] + x[positions[1]] + ... from left to right, positions (terms, n) int32, flat, x (size,)."""

    def body(y, x, positions, terms):
        n = y.size
        i = cuda.grid(1)
        while i < n:
            total = x[np.int64(positions[i])]
            for k in range(1, terms):
                total += x[np.int64(positions[k * n + i])]
            y[i] = total
            i += cuda.gridsize(1)

    return CudaKernel(body, [("y", dtype, 1), ("x", dtype, 1), ("positions", "int32", 1)], ["terms"])
