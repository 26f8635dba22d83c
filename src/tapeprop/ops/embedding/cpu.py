"""The CPU kernel that makes indices of floats."""

from __future__ import annotations

import math

from tapeprop.ops.embedding import LIMIT, NOT_WHOLE
from tapeprop.targets.cpu.kernel import NumbaKernel

GRAIN = 1024  # elements that a worker does at a time


def whole_numbers(dtype: str) -> NumbaKernel:
    """y (n,) int64 = x (n,); reports a number that is not whole."""
    from tapeprop.targets.cpu.intrinsics import report

    grain, limit, not_whole = GRAIN, LIMIT, NOT_WHOLE

    def body(y, x, control, number, worker, workers):
        n = y.size
        grains = (n + grain - 1) // grain
        for i in range(grains * worker // workers * grain, min(n, grains * (worker + 1) // workers * grain)):
            value = x[i]
            inside = abs(value) < limit
            if value != value or (inside and value != math.floor(value)):
                report(control, number, not_whole)
                return
            y[i] = int(value) if inside else -1  # what has no int64 is out of range of any table

    return NumbaKernel(body, arrays=(("int64", 1), (dtype, 1)), reports=True)
