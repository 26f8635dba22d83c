"""The CUDA kernel of sparse maps along an axis: a thread makes an element of the result."""

from __future__ import annotations

from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import FLOAT, cuda, divider


def resample(dtype: str, wide: bool) -> CudaKernel:
    """y (outer, outputs, inner) = the map of `places` (offsets, then sources) and `weights` of x (outer, length, inner)."""
    quotient, number = divider(wide), FLOAT[dtype]

    def body(y, x, places, weights, length, outputs, inner, by_outputs, by_inner):
        i = cuda.grid(1)
        while i < y.size:
            row = quotient(i, inner, by_inner)
            plane = quotient(row, outputs, by_outputs)
            output = row - plane * outputs
            start = plane * length * inner + i - row * inner
            total = number(0)
            for t in range(places[output], places[output + 1]):
                total += weights[t] * x[start + places[outputs + 1 + t] * inner]
            y[i] = total
            i += cuda.gridsize(1)

    arrays = [("y", dtype, 1), ("x", dtype, 1), ("places", "int64", 1), ("weights", dtype, 1)]
    return CudaKernel(body, arrays, ("length", "outputs", "inner", "by_outputs", "by_inner"))
