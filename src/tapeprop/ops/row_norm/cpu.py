"""CPU kernels of normalisation by rows, on x (samples, period, segments, inner), flat.

A row's statistics, and the two sums behind its gradient, are one worker's. Forward, workers share the rows. Backward, a worker takes
a chunk of samples, or some of the period of one where rows are long enough for that, so that it alone writes what the chunk adds to
the gradients of gamma and beta. The floor is memory: forward reads x and writes y, backward reads dy and x and writes dx, and each
further look at a row finds it in a cache.

Where `inner` is 1, gamma differs from element to element and is read along with x; else it is a number for each run of `inner`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.targets.cpu.kernel import NumbaKernel

SIZES = ("samples", "period", "segments", "inner")
CHUNK = 4096  # elements whose mean and deviations are summed one after the other: they stay in the first-level cache
GRAIN = 64  # elements of neighbouring rows that one worker takes at least: cache lines are not shared


def row_norm(dtype: str) -> NumbaKernel:
    """y, mean and 1 / std of each row."""
    from tapeprop.targets.cpu import block_math, row_math

    sum_rows: Any = block_math.sum_rows
    spread_rows: Any = block_math.spread_rows
    normalise_block: Any = block_math.normalise_block
    from_bits: Any = block_math.from_bits
    normalise_elements: Any = row_math.normalise_elements
    kind: Any = np.dtype(dtype).type
    chunk = CHUNK

    def body(
        x, gamma, beta, y, means, inverses, samples, period, segments, inner, epsilon_bits, center, worker, workers
    ):
        epsilon = from_bits(epsilon_bits)
        rows, size = samples * period, segments * inner
        for row in range(rows * worker // workers, rows * (worker + 1) // workers):
            begin = row * size
            count = mean = squares = 0.0
            for first in range(0, size, chunk):
                width = min(chunk, size - first)
                here = np.float64(width)
                if center:
                    mean_here = sum_rows(x, begin + first, 1, 0, width) / here
                    apart, together = mean_here - mean, count + here
                    mean += apart * (here / together)
                    squares += spread_rows(x, mean_here, begin + first, 1, 0, width)
                    squares += apart * apart * (count * here / together)
                    count = together
                else:
                    squares += spread_rows(x, 0.0, begin + first, 1, 0, width)
            inverse = 1.0 / np.sqrt(squares / np.float64(size) + epsilon)
            place = row % period * segments
            if inner == 1:
                normalise_elements(y, x, gamma, beta, begin, place, size, mean, inverse)
            else:
                high = np.float64(kind(mean))
                for k in range(segments):
                    scale, shift = inverse * np.float64(gamma[place + k]), np.float64(beta[place + k])
                    normalise_block(y, x, begin + k * inner, inner, high, mean - high, scale, shift)
            means[row] = mean
            inverses[row] = inverse

    arrays = [*((name, dtype, 1) for name in ("x", "gamma", "beta", "y")), *STATISTICS]
    return NumbaKernel(body, arrays, (*SIZES, "epsilon_bits", "center"))


def row_norm_grad(dtype: str) -> NumbaKernel:
    """dx, and each chunk's shares of dgamma and dbeta; both sums of a row are done before its dx is written, over dy or x."""
    from tapeprop.targets.cpu import row_math

    flow_sums: Any = row_math.flow_sums
    weighted_flow_sums: Any = row_math.weighted_flow_sums
    grad_block: Any = row_math.grad_block
    grad_elements: Any = row_math.grad_elements
    grain_size = GRAIN

    def body(
        dy, x, gamma, means, inverses, dx, to_gamma, to_beta,
        samples, period, segments, inner, chunks, turn, center, worker, workers,
    ):  # fmt: skip
        size = segments * inner
        together = min(period, max(1, grain_size // size))
        pieces = (period + together - 1) // together
        grains = chunks * pieces
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            chunk = grain // pieces
            lowest = grain % pieces * together
            highest = min(period, lowest + together)
            part = chunk * period * segments  # of to_gamma and to_beta
            for k in range(part + lowest * segments, part + highest * segments):
                to_gamma[k] = 0.0
                to_beta[k] = 0.0
            for first in range(chunk * turn, samples, chunks * turn):
                for sample in range(first, min(first + turn, samples)):
                    for which in range(lowest, highest):
                        row, place = sample * period + which, which * segments
                        begin = row * size
                        mean, inverse = means[row], inverses[row]
                        total = along = 0.0
                        if inner == 1:
                            total, along = weighted_flow_sums(dy, x, gamma, begin, place, size, mean)
                        else:
                            for k in range(segments):
                                flow, apart = flow_sums(dy, x, begin + k * inner, inner, mean)
                                to_gamma[part + place + k] += apart * inverse
                                to_beta[part + place + k] += flow
                                weight = np.float64(gamma[place + k])
                                total += flow * weight
                                along += apart * weight
                        shift = total * inverse / np.float64(size) if center else 0.0
                        slope = along * inverse * inverse * inverse / np.float64(size)
                        if inner == 1:
                            grad_elements(
                                dx, dy, x, gamma, to_gamma, to_beta, begin, place, part + place, size, mean, inverse, slope, shift
                            )  # fmt: skip
                        else:
                            for k in range(segments):
                                scale = np.float64(gamma[place + k]) * inverse
                                grad_block(dx, dy, x, begin + k * inner, inner, mean, scale, slope, shift)

    arrays = [
        *((name, dtype, 1) for name in ("dy", "x", "gamma")), *STATISTICS, ("dx", dtype, 1),
        ("to_gamma", "float64", 1), ("to_beta", "float64", 1),
    ]  # fmt: skip
    return NumbaKernel(body, arrays, (*SIZES, "chunks", "turn", "center"))


STATISTICS = [("mean", "float64", 1), ("inverse_std", "float64", 1)]
