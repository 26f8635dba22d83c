"""CUDA kernels of dropout: the same Philox-4x32-10 as on the CPU (the order of words is told in the family's module).

A thread draws a block of four words, for four elements that lie 16 apart; where axes share their draws, the one word that
its element needs. Words are kept in int64 below 2^32, as on the CPU: their products wrap, and masking gives the same halves.
"""

from __future__ import annotations

import numpy as np

from tapeprop.ops.random import GROUP, KEY_STEPS, MASK, MULTIPLIERS, ROUNDS
from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import FLOAT, cuda, device, divider

LANES = GROUP // 4
AXES = ("shared0", "own1", "shared1", "run", "inner")
LEFT_MULTIPLIER, RIGHT_MULTIPLIER = MULTIPLIERS
LEFT_STEP, RIGHT_STEP = KEY_STEPS


def next_random() -> CudaKernel:
    """The counter of the next call."""

    def body(counter, following):
        if cuda.grid(1) == 0:
            following[0] = counter[0]
            following[1] = counter[1] + 1

    return CudaKernel(body, [("counter", "int64", 1), ("following", "int64", 1)])


@device
def _words(block, site, seed, call):
    """The four words of a block, int64 below 2^32."""
    c0, c1 = block & MASK, ((block >> 32) + (site << 8)) & MASK
    c2, c3 = call & MASK, (call >> 32) & MASK
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(ROUNDS):
        left, right = c0 * LEFT_MULTIPLIER, c2 * RIGHT_MULTIPLIER
        c0 = ((right >> 32) & MASK) ^ c1 ^ k0
        c1 = right & MASK
        c2 = ((left >> 32) & MASK) ^ c3 ^ k1
        c3 = left & MASK
        k0, k1 = (k0 + LEFT_STEP) & MASK, (k1 + RIGHT_STEP) & MASK
    return c0, c1, c2, c3


def dropout(dtype: str) -> CudaKernel:
    """y = x times 0 or the float64 of `factor_bits`, every element with a draw of its own."""
    kind, dropped, group, lanes = FLOAT[dtype], FLOAT[dtype](0), GROUP, LANES

    def body(x, counter, y, site, threshold, factor_bits):
        kept = kind(np.int64(factor_bits).view(np.float64))
        seed, call, n = counter[0], counter[1], y.size
        blocks = (n + group - 1) // group * lanes
        block = cuda.grid(1)
        while block < blocks:
            first, second, third, fourth = _words(block, site, seed, call)
            i = block // lanes * group + block % lanes
            j, k, m = i + lanes, i + 2 * lanes, i + 3 * lanes
            if i >= n:
                block += cuda.gridsize(1)
                continue
            # all four are read before the first is written, so that their latencies overlap; past the end this thread's own first,
            # since y may lie over x, and other threads write there
            given_i, given_j = x[i], x[j if j < n else i]
            given_k, given_m = x[k if k < n else i], x[m if m < n else i]
            y[i] = given_i * (kept if first >= threshold else dropped)
            if j < n:
                y[j] = given_j * (kept if second >= threshold else dropped)
            if k < n:
                y[k] = given_k * (kept if third >= threshold else dropped)
            if m < n:
                y[m] = given_m * (kept if fourth >= threshold else dropped)
            block += cuda.gridsize(1)

    arrays = [("x", dtype, 1), ("counter", "int64", 1), ("y", dtype, 1)]
    return CudaKernel(body, arrays, ["site", "threshold", "factor_bits"])


def dropout_shared(dtype: str, wide: bool) -> CudaKernel:
    """As `dropout`; x and y have the axes (own, shared, own, shared, run, inner), of which shared ones and inner share draws."""
    kind, dropped, group, lanes, quotient = FLOAT[dtype], FLOAT[dtype](0), GROUP, LANES, divider(wide)

    def body(
        x, counter, y, shared0, own1, shared1, run, inner, shared0_inverse, own1_inverse, shared1_inverse, run_inverse,
        inner_inverse, site, threshold, factor_bits,
    ):  # fmt: skip
        kept = kind(np.int64(factor_bits).view(np.float64))
        i = cuda.grid(1)
        while i < y.size:
            rest = quotient(i, inner, inner_inverse)
            above = quotient(rest, run, run_inverse)
            place = rest - above * run
            rest = quotient(above, shared1, shared1_inverse)
            above = quotient(rest, own1, own1_inverse)
            row = rest - above * own1 + quotient(above, shared0, shared0_inverse) * own1
            place += row * run  # in the mask
            drawn = _words(place // group * lanes + place % lanes, site, counter[0], counter[1])
            word = place % group // lanes
            here = drawn[0] if word == 0 else drawn[1] if word == 1 else drawn[2] if word == 2 else drawn[3]
            y[i] = x[i] * (kept if here >= threshold else dropped)
            i += cuda.gridsize(1)

    arrays = [("x", dtype, 1), ("counter", "int64", 1), ("y", dtype, 1)]
    integers = [*AXES, *(f"{axis}_inverse" for axis in AXES), "site", "threshold", "factor_bits"]
    return CudaKernel(body, arrays, integers)
