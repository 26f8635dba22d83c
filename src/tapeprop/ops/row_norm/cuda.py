"""CUDA kernels of normalisation by rows, on x (samples, period, segments, inner), flat.

A block takes a row, whose elements its threads stride over; gamma and beta are found at row % period and element // inner. The sums
behind the gradients of gamma and beta are a launch of their own over (chunk, period, segment): a thread for each where `inner` is 1
and neighbours are segments, else a block, whose threads stride over the elements of the chunk's samples. Sums run in float64.
"""

from __future__ import annotations

import numpy as np

from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import BLOCK_SLOTS, FLOAT, block_sum, cuda, divider, from_bits, sqrt

SIZES = ("rows", "period", "size", "segments", "inner", "inner_inverse")
SAMPLES = ("samples", "period", "segments", "inner", "chunks", "turn", "inner_inverse", "turn_inverse")
STATISTICS = [("mean", "float64", 1), ("inverse_std", "float64", 1)]


def row_norm(dtype: str, wide: bool) -> CudaKernel:
    """y, mean and 1 / std of each row. A thread reads x where it writes y."""
    quotient, number = divider(wide), FLOAT[dtype]
    one, zero = np.float64(1), np.float64(0)

    def body(
        x, gamma, beta, y, means, inverses, rows, period, size, segments, inner, inner_inverse, epsilon_bits, center
    ):
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        epsilon, count = from_bits(epsilon_bits), np.float64(size)
        row = cuda.blockIdx.x
        while row < rows:
            start = row * size
            mean = zero
            if center:
                total = zero
                i = cuda.threadIdx.x
                while i < size:
                    total += np.float64(x[start + i])
                    i += cuda.blockDim.x
                mean = block_sum(total, shared) / count
            squares = zero
            i = cuda.threadIdx.x
            while i < size:
                apart = np.float64(x[start + i]) - mean
                squares += apart * apart
                i += cuda.blockDim.x
            inverse = one / sqrt(block_sum(squares, shared) / count + epsilon)
            place = row % period * segments
            i = cuda.threadIdx.x
            while i < size:
                k = place + quotient(i, inner, inner_inverse)
                normal = (np.float64(x[start + i]) - mean) * inverse
                y[start + i] = number(normal * np.float64(gamma[k]) + np.float64(beta[k]))
                i += cuda.blockDim.x
            if cuda.threadIdx.x == 0:
                means[row] = mean
                inverses[row] = inverse
            row += cuda.gridDim.x

    arrays = [*((name, dtype, 1) for name in ("x", "gamma", "beta", "y")), *STATISTICS]
    return CudaKernel(body, arrays, (*SIZES, "epsilon_bits", "center"))


def row_norm_grad(dtype: str, wide: bool) -> CudaKernel:
    """dx of each row. A thread reads dy and x where it writes dx, after both sums of the row are done."""
    quotient, number, zero = divider(wide), FLOAT[dtype], np.float64(0)

    def body(dy, x, gamma, means, inverses, dx, rows, period, size, segments, inner, inner_inverse, center):
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        count = np.float64(size)
        row = cuda.blockIdx.x
        while row < rows:
            start, place = row * size, row % period * segments
            mean, inverse = means[row], inverses[row]
            total, along = zero, zero
            i = cuda.threadIdx.x
            while i < size:
                k = place + quotient(i, inner, inner_inverse)
                flow = np.float64(dy[start + i]) * np.float64(gamma[k])
                total += flow
                along += flow * (np.float64(x[start + i]) - mean)
                i += cuda.blockDim.x
            total = block_sum(total, shared) / count
            slope = block_sum(along, shared) * inverse * inverse / count
            if not center:
                total = zero
            i = cuda.threadIdx.x
            while i < size:
                k = place + quotient(i, inner, inner_inverse)
                flow = np.float64(dy[start + i]) * np.float64(gamma[k])
                apart = np.float64(x[start + i]) - mean
                dx[start + i] = number(inverse * ((flow - total) - apart * slope))
                i += cuda.blockDim.x
            row += cuda.gridDim.x

    arrays = [*((name, dtype, 1) for name in ("dy", "x", "gamma")), *STATISTICS, ("dx", dtype, 1)]
    return CudaKernel(body, arrays, (*SIZES, "center"))


def _sums(dtype: str) -> list[tuple[str, str, int]]:
    parts = [("to_gamma", "float64", 1), ("to_beta", "float64", 1)]
    return [("dy", dtype, 1), ("x", dtype, 1), *STATISTICS, *parts]


def parameter_sums_elements(dtype: str) -> CudaKernel:
    """to_gamma and to_beta where inner is 1. Neighbours read side by side."""
    zero = np.float64(0)

    def body(
        dy, x, means, inverses, to_gamma, to_beta,
        samples, period, segments, inner, chunks, turn, inner_inverse, turn_inverse,
    ):  # fmt: skip
        vector = period * segments
        item = cuda.grid(1)
        while item < chunks * vector:
            chunk, place = item // vector, item % vector
            which = place // segments
            total, along = zero, zero
            first = chunk * turn
            while first < samples:
                for sample in range(first, min(first + turn, samples)):
                    row = sample * period + which
                    flow = np.float64(dy[sample * vector + place])
                    total += flow
                    along += flow * (np.float64(x[sample * vector + place]) - means[row]) * inverses[row]
                first += chunks * turn
            to_gamma[item] = along
            to_beta[item] = total
            item += cuda.gridsize(1)

    return CudaKernel(body, _sums(dtype), SAMPLES)


def parameter_sums_segments(dtype: str, wide: bool) -> CudaKernel:
    """As `parameter_sums_elements` for any inner: a block takes the elements of all samples of a chunk."""
    quotient, zero = divider(wide), np.float64(0)

    def body(
        dy, x, means, inverses, to_gamma, to_beta,
        samples, period, segments, inner, chunks, turn, inner_inverse, turn_inverse,
    ):  # fmt: skip
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        vector, around = period * segments, chunks * turn
        item = cuda.blockIdx.x
        while item < chunks * vector:
            chunk, place = item // vector, item % vector
            which = place // segments
            # whole turns, and what the last round has for this chunk
            here = samples // around * turn + min(turn, max(0, samples % around - chunk * turn))
            total, along = zero, zero
            i = cuda.threadIdx.x
            while i < here * inner:
                number = quotient(i, inner, inner_inverse)
                lap = quotient(number, turn, turn_inverse)
                sample = number + (lap * (chunks - 1) + chunk) * turn
                row, element = sample * period + which, (sample * vector + place - number) * inner + i
                flow = np.float64(dy[element])
                total += flow
                along += flow * (np.float64(x[element]) - means[row]) * inverses[row]
                i += cuda.blockDim.x
            total = block_sum(total, shared)
            along = block_sum(along, shared)
            if cuda.threadIdx.x == 0:
                to_gamma[item] = along
                to_beta[item] = total
            item += cuda.gridDim.x

    return CudaKernel(body, _sums(dtype), SAMPLES)
