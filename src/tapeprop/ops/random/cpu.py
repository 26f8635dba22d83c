"""CPU kernels of dropout: Philox-4x32-10 on 16 blocks side by side (the order of words is told in the family's module).

All words are kept in int64 below 2^32: products then wrap in machine code and do not in plain Python, and masking the
low and the high half gives the same words in both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.ops.random import GROUP, KEY_STEPS, MASK, MULTIPLIERS, ROUNDS
from tapeprop.targets.cpu.kernel import NumbaKernel

AXES = ("own0", "shared0", "own1", "shared1", "run", "inner")
GROUPS_PER_GRAIN = 64  # a worker draws this many groups of a run at a time


def next_random() -> NumbaKernel:
    """The counter of the next call."""

    def body(counter, following, worker, workers):
        if worker == 0:
            following[0] = counter[0]
            following[1] = counter[1] + 1

    return NumbaKernel(body, [("counter", "int64", 1), ("following", "int64", 1)])


def dropout(dtype: str) -> NumbaKernel:
    """y = x times 0 or `factor`; x and y are flat, their axes (own, shared, own, shared, run, inner).

    The draws of a run, the last axis that is not shared, go into the scratch in groups of 64, aligned to groups of the whole mask.
    """
    from tapeprop.targets.cpu import block_math

    from_bits: Any = block_math.from_bits
    left_multiplier, right_multiplier = MULTIPLIERS
    left_step, right_step = KEY_STEPS
    low_half, rounds, group, lanes, grain_groups = MASK, ROUNDS, GROUP, GROUP // 4, GROUPS_PER_GRAIN
    kind: Any = np.dtype(dtype).type

    def body(
        x, counter, y, scratch, own0, shared0, own1, shared1, run, inner, site, threshold, factor_bits, worker, workers,
    ):  # fmt: skip
        factors = scratch[worker]
        first, second = factors[0:lanes], factors[lanes : 2 * lanes]
        third, fourth = factors[2 * lanes : 3 * lanes], factors[3 * lanes : 4 * lanes]
        kept, dropped = kind(from_bits(factor_bits)), kind(0.0)
        seed, call = int(counter[0]), int(counter[1])
        call_low, call_high = call & low_half, (call >> 32) & low_half
        pieces = (run + grain_groups * group - 1) // (grain_groups * group) + 1  # a run may begin inside a group
        grains = own0 * shared0 * own1 * shared1 * pieces
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            row, piece = grain // pieces, grain % pieces
            mask_row = row // (shared0 * own1 * shared1) * own1 + row // shared1 % own1
            begin, end = mask_row * run, (mask_row + 1) * run  # of the run, in the mask
            first_group = begin // group + piece * grain_groups
            last_group = min(first_group + grain_groups, (end + group - 1) // group)
            for number in range(first_group, last_group):
                for lane in range(lanes):
                    block = number * lanes + lane
                    c0, c1 = block & low_half, ((block >> 32) + (site << 8)) & low_half
                    c2, c3 = call_low, call_high
                    k0, k1 = seed & low_half, (seed >> 32) & low_half
                    for _ in range(rounds):
                        left, right = c0 * left_multiplier, c2 * right_multiplier
                        c0 = ((right >> 32) & low_half) ^ c1 ^ k0
                        c1 = right & low_half
                        c2 = ((left >> 32) & low_half) ^ c3 ^ k1
                        c3 = left & low_half
                        k0, k1 = (k0 + left_step) & low_half, (k1 + right_step) & low_half
                    first[lane] = kept if c0 >= threshold else dropped
                    second[lane] = kept if c1 >= threshold else dropped
                    third[lane] = kept if c2 >= threshold else dropped
                    fourth[lane] = kept if c3 >= threshold else dropped
                low, high = max(begin, number * group), min(end, (number + 1) * group)
                here = factors[low - number * group : high - number * group]
                place = (row * run + low - begin) * inner
                if inner == 1:
                    given, made = x[place : place + here.size], y[place : place + here.size]
                    for i in range(here.size):
                        made[i] = given[i] * here[i]
                else:
                    for i in range(here.size):
                        given = x[place + i * inner : place + (i + 1) * inner]
                        made = y[place + i * inner : place + (i + 1) * inner]
                        for j in range(inner):
                            made[j] = given[j] * here[i]

    arrays = [("x", dtype, 1), ("counter", "int64", 1), ("y", dtype, 1)]
    return NumbaKernel(body, arrays, (*AXES, "site", "threshold", "factor_bits"), scratch=dtype)
