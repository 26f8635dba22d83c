"""The CPU kernel of long sums over scattered elements; everything else in a block is an elementwise loop."""

from __future__ import annotations

from tapeprop.targets.cpu.kernel import NumbaKernel


def ordered_sums(dtype: str) -> NumbaKernel:
    """y (n,) = x[positions[0]] + x[positions[1]] + ... from left to right, positions (terms, n) int32, x (size,)."""

    def body(y, x, positions, worker, workers):
        terms, n = positions.shape
        first, last = n * worker // workers, n * (worker + 1) // workers
        for i in range(first, last):
            y[i] = x[positions[0, i]]
        for k in range(1, terms):  # neighbours side by side, so that their additions do not wait for one another
            row = positions[k]
            for i in range(first, last):
                y[i] += x[row[i]]

    return NumbaKernel(body, arrays=((dtype, 1), (dtype, 1), ("int32", 2)))
