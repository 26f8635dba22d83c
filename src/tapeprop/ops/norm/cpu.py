"""CPU kernels of batch normalisation on (N, C, spatial).

A worker takes whole channels, so every sum is one worker's. "planes": a channel is N runs of `spatial` elements.
"columns": spatial is 1, neighbours are channels, and a block of them is summed side by side, row after row.

A running value moves by rate * (new - old), one product: in old * a + new * b, LLVM would choose which product to
fuse with the sum, and may choose differently for a loop in vectors and one in scalars.

Sums run in float64 about the mean of the chunk, chunks are merged in order (Chan, Golub and LeVeque 1979).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.ops.norm import BLOCK
from tapeprop.targets.cpu.kernel import NumbaKernel

SIZES = ("samples", "channels", "size")
CHUNK = 4096  # elements whose mean and deviations are summed one after the other: they stay in the first-level cache


def batch_norm_planes(dtype: str) -> NumbaKernel:
    """Training: y, the batch's mean and 1 / std, and the running statistics that follow."""
    from tapeprop.targets.cpu import block_math

    sum_rows: Any = block_math.sum_rows
    spread_rows: Any = block_math.spread_rows
    normalise_block: Any = block_math.normalise_block
    from_bits: Any = block_math.from_bits
    chunk = CHUNK
    kind: Any = np.dtype(dtype).type

    def body(
        x, gamma, beta, running_mean, running_var, y, batch_mean, inverse_std, new_mean, new_var,
        samples, channels, size, momentum_bits, epsilon_bits, worker, workers,
    ):  # fmt: skip
        rate, epsilon = 1.0 - from_bits(momentum_bits), from_bits(epsilon_bits)
        wide = min(size, chunk)
        tall = max(1, chunk // size)
        step = channels * size
        for channel in range(channels * worker // workers, channels * (worker + 1) // workers):
            count = mean = squares = 0.0
            for sample in range(0, samples, tall):
                rows = min(tall, samples - sample)
                for first in range(0, size, wide):
                    width = min(wide, size - first)
                    start = (sample * channels + channel) * size + first
                    here = np.float64(rows * width)
                    mean_here = sum_rows(x, start, rows, step, width) / here
                    squares_here = spread_rows(x, mean_here, start, rows, step, width)
                    apart, together = mean_here - mean, count + here
                    mean += apart * (here / together)
                    squares += squares_here + apart * apart * (count * here / together)
                    count = together
            variance = squares / count
            inverse = 1.0 / np.sqrt(variance + epsilon)
            rounded = np.float64(kind(mean))
            scale, shift = inverse * np.float64(gamma[channel]), np.float64(beta[channel])
            for sample in range(samples):
                start = (sample * channels + channel) * size
                normalise_block(y, x, start, size, rounded, mean - rounded, scale, shift)
            batch_mean[channel] = mean
            inverse_std[channel] = inverse
            new_mean[channel] = running_mean[channel] + rate * (mean - running_mean[channel])
            new_var[channel] = running_var[channel] + rate * (variance - running_var[channel])

    return NumbaKernel(body, _forward_arrays(dtype), (*SIZES, "momentum_bits", "epsilon_bits"))


def batch_norm_columns(dtype: str) -> NumbaKernel:
    """As `batch_norm_planes` where spatial is 1. The scratch holds a block's means and sums of squares."""
    from tapeprop.targets.cpu import block_math

    from_bits: Any = block_math.from_bits
    block = BLOCK

    def body(
        x, gamma, beta, running_mean, running_var, y, batch_mean, inverse_std, new_mean, new_var, scratch,
        samples, channels, size, momentum_bits, epsilon_bits, worker, workers,
    ):  # fmt: skip
        rate, epsilon = 1.0 - from_bits(momentum_bits), from_bits(epsilon_bits)
        blocks = (channels + block - 1) // block
        count = np.float64(samples)
        for grain in range(blocks * worker // workers, blocks * (worker + 1) // workers):
            first = grain * block
            width = min(block, channels - first)
            means, squares = scratch[worker, :width], scratch[worker, block : block + width]
            for j in range(width):
                means[j] = 0.0
                squares[j] = 0.0
            for sample in range(samples):
                given = x[sample * channels + first : sample * channels + first + width]
                for j in range(width):
                    means[j] += np.float64(given[j])
            for j in range(width):
                means[j] = means[j] / count
            for sample in range(samples):
                given = x[sample * channels + first : sample * channels + first + width]
                for j in range(width):
                    apart = np.float64(given[j]) - means[j]
                    squares[j] += apart * apart
            last = first + width
            ours, inverses = batch_mean[first:last], inverse_std[first:last]
            before_mean, after_mean = running_mean[first:last], new_mean[first:last]
            before_var, after_var = running_var[first:last], new_var[first:last]
            for j in range(width):
                variance = squares[j] / count
                inverse = 1.0 / np.sqrt(variance + epsilon)
                ours[j] = means[j]
                inverses[j] = inverse
                after_mean[j] = before_mean[j] + rate * (means[j] - before_mean[j])
                after_var[j] = before_var[j] + rate * (variance - before_var[j])
                squares[j] = inverse
            scales, shifts = gamma[first:last], beta[first:last]
            for sample in range(samples):
                given = x[sample * channels + first : sample * channels + first + width]
                made = y[sample * channels + first : sample * channels + first + width]
                for j in range(width):
                    made[j] = (np.float64(given[j]) - means[j]) * squares[j] * np.float64(scales[j]) + np.float64(
                        shifts[j]
                    )

    return NumbaKernel(body, _forward_arrays(dtype), (*SIZES, "momentum_bits", "epsilon_bits"), scratch="float64")


def _forward_arrays(dtype: str) -> list[tuple[str, str, int]]:
    vectors = ("gamma", "beta", "running_mean", "running_var")
    made = ("batch_mean", "inverse_std", "new_mean", "new_var")
    return [
        ("x", dtype, 1),
        *((name, dtype, 1) for name in vectors),
        ("y", dtype, 1),
        *((name, dtype, 1) for name in made),
    ]


def batch_norm_grad_planes(dtype: str) -> NumbaKernel:
    """dx, dgamma and dbeta; both sums of a channel are done before its dx is written, so dx may lie over dy or x."""
    from tapeprop.targets.cpu import block_math

    sum_rows: Any = block_math.sum_rows
    dot_rows: Any = block_math.dot_rows
    normalise_grad_block: Any = block_math.normalise_grad_block

    def body(dy, x, gamma, batch_mean, inverse_std, dx, dgamma, dbeta, samples, channels, size, worker, workers):
        step = channels * size
        count = np.float64(samples * size)
        for channel in range(channels * worker // workers, channels * (worker + 1) // workers):
            mean, inverse = np.float64(batch_mean[channel]), np.float64(inverse_std[channel])
            total = sum_rows(dy, channel * size, samples, step, size)
            along = dot_rows(dy, x, mean, channel * size, samples, step, size) * inverse
            scale = np.float64(gamma[channel]) * inverse
            slope = scale * inverse * along / count
            for sample in range(samples):
                start = (sample * channels + channel) * size
                normalise_grad_block(dx, dy, x, start, size, total / count, scale, mean, slope)
            dgamma[channel] = along
            dbeta[channel] = total

    return NumbaKernel(body, _backward_arrays(dtype), SIZES)


def batch_norm_grad_columns(dtype: str) -> NumbaKernel:
    """As `batch_norm_grad_planes` where spatial is 1. The scratch holds a block's two sums."""
    block = BLOCK

    def body(
        dy, x, gamma, batch_mean, inverse_std, dx, dgamma, dbeta, scratch, samples, channels, size, worker, workers
    ):
        blocks = (channels + block - 1) // block
        count = np.float64(samples)
        for grain in range(blocks * worker // workers, blocks * (worker + 1) // workers):
            first = grain * block
            width = min(block, channels - first)
            last = first + width
            totals, along = scratch[worker, :width], scratch[worker, block : block + width]
            means, inverses, scales = batch_mean[first:last], inverse_std[first:last], gamma[first:last]
            to_gamma, to_beta = dgamma[first:last], dbeta[first:last]
            for j in range(width):
                totals[j] = 0.0
                along[j] = 0.0
            for sample in range(samples):
                begin = sample * channels + first
                g, given = dy[begin : begin + width], x[begin : begin + width]
                for j in range(width):
                    totals[j] += np.float64(g[j])
                    along[j] += np.float64(g[j]) * (np.float64(given[j]) - np.float64(means[j]))
            for j in range(width):
                along[j] = along[j] * np.float64(inverses[j])
                to_gamma[j] = along[j]
                to_beta[j] = totals[j]
                totals[j] = totals[j] / count
                along[j] = along[j] * np.float64(inverses[j]) / count
            for sample in range(samples):
                begin = sample * channels + first
                g, given, made = (
                    dy[begin : begin + width],
                    x[begin : begin + width],
                    dx[begin : begin + width],
                )
                for j in range(width):
                    apart = np.float64(given[j]) - np.float64(means[j])
                    scale = np.float64(scales[j]) * np.float64(inverses[j])
                    made[j] = scale * ((np.float64(g[j]) - totals[j]) - apart * along[j])

    return NumbaKernel(body, _backward_arrays(dtype), SIZES, scratch="float64")


def _backward_arrays(dtype: str) -> list[tuple[str, str, int]]:
    vectors = [(name, dtype, 1) for name in ("gamma", "batch_mean", "inverse_std")]
    return [("dy", dtype, 1), ("x", dtype, 1), *vectors, ("dx", dtype, 1), ("dgamma", dtype, 1), ("dbeta", dtype, 1)]
