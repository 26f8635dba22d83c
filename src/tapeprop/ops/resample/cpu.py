"""The CPU kernel of sparse maps along an axis.

Where there are axes behind the one that is mapped, each result row is a weighted sum of rows. Else its elements are picked one by
one. Elements are indexed by unsigned numbers or through slices: see `ops/shape/cpu.py`.
"""

from __future__ import annotations

import numpy as np

from tapeprop.ops.resample import COLUMNS, ROW
from tapeprop.targets.cpu.kernel import NumbaKernel


def resample(dtype: str) -> NumbaKernel:
    """y (outer, outputs, inner) = the map of `places` and `weights`, of `taps` terms each or 0, of x (outer, length, inner)."""
    most, piece, zero = COLUMNS, ROW, np.dtype(dtype).type(0)

    def body(y, x, places, weights, outer, length, outputs, inner, taps, worker, workers):
        offsets, sources = places[: outputs + 1], places[outputs + 1 :]
        if inner == 1:
            pieces = (outputs + piece - 1) // piece
            grains = outer * pieces
            for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
                row = grain // pieces
                first = (grain - row * pieces) * piece
                count = min(piece, outputs - first)
                line = x[row * length : (row + 1) * length]
                made = y[row * outputs + first : row * outputs + first + count]
                if taps == 1:
                    w, s = weights[first : first + count], sources[first : first + count]
                    for i in range(count):
                        made[i] = w[i] * line[np.uint64(s[i])]
                elif taps == 2:
                    w, s = weights[2 * first : 2 * (first + count)], sources[2 * first : 2 * (first + count)]
                    for i in range(count):
                        a, b = np.uint64(2 * i), np.uint64(2 * i + 1)
                        made[i] = w[a] * line[np.uint64(s[a])] + w[b] * line[np.uint64(s[b])]
                else:
                    for i in range(count):
                        total = zero
                        for t in range(offsets[first + i], offsets[first + i + 1]):
                            total += weights[np.uint64(t)] * line[np.uint64(sources[np.uint64(t)])]
                        made[i] = total
            return
        pieces = (inner + most - 1) // most
        grains = outer * outputs * pieces
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            row = grain // pieces
            left = (grain - row * pieces) * most
            count = min(most, inner - left)
            plane = row // outputs
            i = row - plane * outputs
            made = y[row * inner + left : row * inner + left + count]
            start = plane * length * inner + left
            t, last = offsets[i], offsets[i + 1]
            if last - t == 1:
                w, from_a = weights[t], start + sources[t] * inner
                a = x[from_a : from_a + count]
                for j in range(count):
                    made[j] = w * a[j]
                continue
            if last - t >= 2:
                w, from_a, v, from_b = (
                    weights[t],
                    start + sources[t] * inner,
                    weights[t + 1],
                    start + sources[t + 1] * inner,
                )
                a, b = x[from_a : from_a + count], x[from_b : from_b + count]
                for j in range(count):
                    made[j] = w * a[j] + v * b[j]
                t += 2
            else:
                for j in range(count):
                    made[j] = zero
            while t < last:
                w, from_a = weights[t], start + sources[t] * inner
                a = x[from_a : from_a + count]
                for j in range(count):
                    made[j] += w * a[j]
                t += 1

    arrays = [("y", dtype, 1), ("x", dtype, 1), ("places", "int64", 1), ("weights", dtype, 1)]
    return NumbaKernel(body, arrays, ("outer", "length", "outputs", "inner", "taps"))
