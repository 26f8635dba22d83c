"""CUDA kernels of batch normalisation on (N, C, size), in three launches: moments of chunks, their merge, the elements.

A channel is cut into chunks, so that few channels keep a whole GPU at work. "planes": a block takes a chunk, whose elements
its threads stride over. "columns": size is 1, neighbours are channels, and a thread takes a chunk of one of them.

Sums run in float64 about the mean of the chunk, as on the CPU. A block merges the chunks of a channel by the formula of Chan,
Golub and LeVeque (1979) for all of them at once: the mean of the means, then each chunk's squares moved to that. The
scratch holds two float64 for each chunk of each channel, chunk by chunk, and behind them two for each channel.
"""

from __future__ import annotations

import numpy as np

from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import BLOCK_SLOTS, FLOAT, block_sum, cuda, divider, from_bits, sqrt

SIZES = ("samples", "channels", "size", "chunks", "length")


@cuda.jit(device=True)
def _place(k, sample, channel, channels, size):
    """Where value k of a channel lies, which is one of the sample's."""
    return (sample * (channels - 1) + channel) * size + k


def moments_planes(dtype: str, wide: bool) -> CudaKernel:
    """parts: (mean, sum of squares about it) of each chunk."""
    quotient, zero = divider(wide), np.float64(0)

    def body(x, parts, samples, channels, size, chunks, length, size_inverse):
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        item = cuda.blockIdx.x
        while item < channels * chunks:
            chunk, channel = item // channels, item % channels
            first = chunk * length
            last = min(first + length, samples * size)
            total = zero
            k = first + cuda.threadIdx.x
            while k < last:
                total += np.float64(x[_place(k, quotient(k, size, size_inverse), channel, channels, size)])
                k += cuda.blockDim.x
            mean = block_sum(total, shared) / np.float64(last - first)
            squares = zero
            k = first + cuda.threadIdx.x
            while k < last:
                place = _place(k, quotient(k, size, size_inverse), channel, channels, size)
                apart = np.float64(x[place]) - mean
                squares += apart * apart
                k += cuda.blockDim.x
            squares = block_sum(squares, shared)
            if cuda.threadIdx.x == 0:
                parts[2 * item] = mean
                parts[2 * item + 1] = squares
            item += cuda.gridDim.x

    return CudaKernel(body, [("x", dtype, 1), ("parts", "float64", 1)], (*SIZES, "size_inverse"))


def moments_columns(dtype: str) -> CudaKernel:
    """As `moments_planes` where size is 1."""
    zero = np.float64(0)

    def body(x, parts, samples, channels, size, chunks, length):
        item = cuda.grid(1)
        while item < channels * chunks:
            chunk, channel = item // channels, item % channels
            first = chunk * length
            last = min(first + length, samples)
            total = zero
            for k in range(first, last):
                total += np.float64(x[k * channels + channel])
            mean = total / np.float64(last - first)
            squares = zero
            for k in range(first, last):
                apart = np.float64(x[k * channels + channel]) - mean
                squares += apart * apart
            parts[2 * item] = mean
            parts[2 * item + 1] = squares
            item += cuda.gridsize(1)

    return CudaKernel(body, [("x", dtype, 1), ("parts", "float64", 1)], SIZES)


def merge_moments(dtype: str) -> CudaKernel:
    """The batch's mean and 1 / std, the running statistics that follow, and kept: (mean, 1 / std * gamma) of each channel."""
    one, zero = np.float64(1), np.float64(0)

    def body(
        gamma, running_mean, running_var, batch_mean, inverse_std, new_mean, new_var, parts, kept,
        samples, channels, size, chunks, length, momentum_bits, epsilon_bits,
    ):  # fmt: skip
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        rate, epsilon = one - from_bits(momentum_bits), from_bits(epsilon_bits)
        count = np.float64(samples * size)
        channel = cuda.blockIdx.x
        while channel < channels:
            mean = zero
            chunk = cuda.threadIdx.x
            while chunk < chunks:
                here = np.float64(min(length, samples * size - chunk * length))
                mean += parts[2 * (chunk * channels + channel)] * (here / count)
                chunk += cuda.blockDim.x
            mean = block_sum(mean, shared)
            squares = zero
            chunk = cuda.threadIdx.x
            while chunk < chunks:
                here = np.float64(min(length, samples * size - chunk * length))
                item = chunk * channels + channel
                apart = parts[2 * item] - mean
                squares += parts[2 * item + 1] + apart * apart * here
                chunk += cuda.blockDim.x
            squares = block_sum(squares, shared)
            if cuda.threadIdx.x == 0:
                variance = squares / count
                inverse = one / sqrt(variance + epsilon)
                batch_mean[channel] = mean
                inverse_std[channel] = inverse
                before_mean, before_var = np.float64(running_mean[channel]), np.float64(running_var[channel])
                new_mean[channel] = before_mean + rate * (mean - before_mean)
                new_var[channel] = before_var + rate * (variance - before_var)
                kept[2 * channel] = mean
                kept[2 * channel + 1] = inverse * np.float64(gamma[channel])
            channel += cuda.gridDim.x

    vectors = ("gamma", "running_mean", "running_var", "batch_mean", "inverse_std", "new_mean", "new_var")
    arrays = [*((name, dtype, 1) for name in vectors), ("parts", "float64", 1), ("kept", "float64", 1)]
    return CudaKernel(body, arrays, (*SIZES, "momentum_bits", "epsilon_bits"))


def normalise(dtype: str, wide: bool) -> CudaKernel:
    """y = (x - mean) * scale + beta, (mean, scale) of a channel in `kept`. A thread reads x where it writes y."""
    quotient, number = divider(wide), FLOAT[dtype]

    def body(x, beta, kept, y, channels, size, size_inverse, channels_inverse):
        i = cuda.grid(1)
        while i < x.size:
            plane = quotient(i, size, size_inverse)
            channel = plane - quotient(plane, channels, channels_inverse) * channels
            apart = np.float64(x[i]) - kept[2 * channel]
            y[i] = number(apart * kept[2 * channel + 1] + np.float64(beta[channel]))
            i += cuda.gridsize(1)

    arrays = [("x", dtype, 1), ("beta", dtype, 1), ("kept", "float64", 1), ("y", dtype, 1)]
    return CudaKernel(body, arrays, ("channels", "size", "size_inverse", "channels_inverse"))


# ---- the gradient


def sums_planes(dtype: str, wide: bool) -> CudaKernel:
    """parts: the sums of dy and of dy (x - mean) of each chunk."""
    quotient, zero = divider(wide), np.float64(0)

    def body(dy, x, batch_mean, parts, samples, channels, size, chunks, length, size_inverse):
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        item = cuda.blockIdx.x
        while item < channels * chunks:
            chunk, channel = item // channels, item % channels
            first = chunk * length
            last = min(first + length, samples * size)
            mean = np.float64(batch_mean[channel])
            total, along = zero, zero
            k = first + cuda.threadIdx.x
            while k < last:
                place = _place(k, quotient(k, size, size_inverse), channel, channels, size)
                flowing = np.float64(dy[place])
                total += flowing
                along += flowing * (np.float64(x[place]) - mean)
                k += cuda.blockDim.x
            total = block_sum(total, shared)
            along = block_sum(along, shared)
            if cuda.threadIdx.x == 0:
                parts[2 * item] = total
                parts[2 * item + 1] = along
            item += cuda.gridDim.x

    return CudaKernel(body, _sum_arrays(dtype), (*SIZES, "size_inverse"))


def sums_columns(dtype: str) -> CudaKernel:
    """As `sums_planes` where size is 1."""
    zero = np.float64(0)

    def body(dy, x, batch_mean, parts, samples, channels, size, chunks, length):
        item = cuda.grid(1)
        while item < channels * chunks:
            chunk, channel = item // channels, item % channels
            first = chunk * length
            mean = np.float64(batch_mean[channel])
            total, along = zero, zero
            for k in range(first, min(first + length, samples)):
                flowing = np.float64(dy[k * channels + channel])
                total += flowing
                along += flowing * (np.float64(x[k * channels + channel]) - mean)
            parts[2 * item] = total
            parts[2 * item + 1] = along
            item += cuda.gridsize(1)

    return CudaKernel(body, _sum_arrays(dtype), SIZES)


def _sum_arrays(dtype: str) -> list[tuple[str, str, int]]:
    return [("dy", dtype, 1), ("x", dtype, 1), ("batch_mean", dtype, 1), ("parts", "float64", 1)]


def merge_sums(dtype: str) -> CudaKernel:
    """dgamma, dbeta, and kept: (mean of dy, slope) of each channel, dx being scale (dy - mean of dy - (x - mean) slope)."""
    zero = np.float64(0)

    def body(inverse_std, dgamma, dbeta, parts, kept, samples, channels, size, chunks, length):
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        count = np.float64(samples * size)
        channel = cuda.blockIdx.x
        while channel < channels:
            total, along = zero, zero
            chunk = cuda.threadIdx.x
            while chunk < chunks:
                item = chunk * channels + channel
                total += parts[2 * item]
                along += parts[2 * item + 1]
                chunk += cuda.blockDim.x
            total = block_sum(total, shared)
            along = block_sum(along, shared)
            if cuda.threadIdx.x == 0:
                inverse = np.float64(inverse_std[channel])
                dgamma[channel] = along * inverse
                dbeta[channel] = total
                kept[2 * channel] = total / count
                kept[2 * channel + 1] = along * inverse * inverse / count
            channel += cuda.gridDim.x

    vectors = [(name, dtype, 1) for name in ("inverse_std", "dgamma", "dbeta")]
    return CudaKernel(body, [*vectors, ("parts", "float64", 1), ("kept", "float64", 1)], SIZES)


def normalise_grad(dtype: str, wide: bool) -> CudaKernel:
    """dx from what `merge_sums` kept. A thread reads dy and x where it writes dx."""
    quotient, number = divider(wide), FLOAT[dtype]

    def body(dy, x, gamma, batch_mean, inverse_std, kept, dx, channels, size, size_inverse, channels_inverse):
        i = cuda.grid(1)
        while i < x.size:
            plane = quotient(i, size, size_inverse)
            channel = plane - quotient(plane, channels, channels_inverse) * channels
            apart = np.float64(x[i]) - np.float64(batch_mean[channel])
            scale = np.float64(gamma[channel]) * np.float64(inverse_std[channel])
            dx[i] = number(scale * ((np.float64(dy[i]) - kept[2 * channel]) - apart * kept[2 * channel + 1]))
            i += cuda.gridsize(1)

    vectors = [(name, dtype, 1) for name in ("dy", "x", "gamma", "batch_mean", "inverse_std")]
    arrays = [*vectors, ("kept", "float64", 1), ("dx", dtype, 1)]
    return CudaKernel(body, arrays, ("channels", "size", "size_inverse", "channels_inverse"))
