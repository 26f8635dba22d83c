"""CPU kernels of the gathering and scattering of rows, and of counters and totals."""

from __future__ import annotations

import numpy as np

from tapeprop.ops.gather.rows import CURSOR_OUT_OF_RANGE, INDEX_OUT_OF_RANGE
from tapeprop.targets.cpu.kernel import NumbaKernel


def take_rows(dtype: str) -> NumbaKernel:
    """y (batch, row) = table (R, row) at indices (M,) int64 from cursor (1,) int64 on."""
    from tapeprop.targets.cpu.intrinsics import report

    bad_index, bad_cursor = INDEX_OUT_OF_RANGE, CURSOR_OUT_OF_RANGE

    def body(y, table, indices, cursor, control, number, worker, workers):
        batch, rows = y.shape[0], table.shape[0]
        start = cursor[0]
        if start < 0 or start + batch > indices.size:
            report(control, number, bad_cursor)
            return
        for i in range(batch * worker // workers, batch * (worker + 1) // workers):
            index = indices[start + i]
            if index < 0 or index >= rows:
                report(control, number, bad_index)
                return
            target, source = y[i], table[index]
            for j in range(target.size):
                target[j] = source[j]

    return NumbaKernel(body, arrays=((dtype, 2), (dtype, 2), ("int64", 1), ("int64", 1)), reports=True)


def take(dtype: str) -> NumbaKernel:
    """y (M, row) = table (R, row) at indices (M,) int64."""
    from tapeprop.targets.cpu.intrinsics import report

    bad_index = INDEX_OUT_OF_RANGE

    def body(y, table, indices, control, number, worker, workers):
        count, rows = indices.size, table.shape[0]
        for i in range(count * worker // workers, count * (worker + 1) // workers):
            index = indices[i]
            if index < 0 or index >= rows:
                report(control, number, bad_index)
                return
            target, source = y[i], table[index]
            for j in range(target.size):
                target[j] = source[j]

    return NumbaKernel(body, arrays=((dtype, 2), (dtype, 2), ("int64", 1)), reports=True)


def scatter_rows(dtype: str) -> NumbaKernel:
    """y (R, row) = the rows of x (M, row) added up where indices (M,) int64 say, in their order.

    A worker owns a range of the rows of y and reads all indices, so no two write one row and the order stays. Nothing is added
    to row `skip`.
    """
    from tapeprop.targets.cpu.intrinsics import report

    bad_index = INDEX_OUT_OF_RANGE

    def body(y, x, indices, skip, control, number, worker, workers):
        rows = y.shape[0]
        first, last = rows * worker // workers, rows * (worker + 1) // workers
        for row in range(first, last):
            target = y[row]
            for j in range(target.size):
                target[j] = 0.0
        for i in range(indices.size):
            index = indices[i]
            if index < 0 or index >= rows:
                report(control, number, bad_index)
                return
            if first <= index < last and index != skip:
                target, source = y[index], x[i]
                for j in range(target.size):
                    target[j] += source[j]

    return NumbaKernel(body, arrays=((dtype, 2), (dtype, 2), ("int64", 1)), integers=("skip",), reports=True)


def advance() -> NumbaKernel:
    """y = x + step, int64."""

    def body(y, x, step, worker, workers):
        if worker == 0:
            for i in range(x.size):
                y[i] = x[i] + step

    return NumbaKernel(body, arrays=(("int64", 1), ("int64", 1)), integers=("step",))


def count_correct(dtype: str, one_hot: bool) -> NumbaKernel:
    """total (1,) float64 = the number of rows of logits (N, C) whose first largest entry, or first NaN, is the label.

    labels: (N,) int64, or (N, C) of `dtype` where `one_hot`. One worker counts: there is one result.
    """

    def body(total, logits, labels, worker, workers):
        if worker != 0:
            return
        correct = 0
        for i in range(logits.shape[0]):
            row = logits[i]
            best = 0
            for j in range(1, row.size):
                if row[j] > row[best] or (row[j] != row[j] and row[best] == row[best]):
                    best = j
            if one_hot:
                truth = labels[i]
                expected = 0
                for j in range(1, truth.size):
                    if truth[j] > truth[expected] or (truth[j] != truth[j] and truth[expected] == truth[expected]):
                        expected = j
            else:
                expected = labels[i]
            if best == expected:
                correct += 1
        total[0] = correct

    labels = (dtype, 2) if one_hot else ("int64", 1)
    return NumbaKernel(body, arrays=(("float64", 1), (dtype, 2), labels))


def accumulate(dtype: str, weight: str | None = None) -> NumbaKernel:
    """y (1,) = total (1,) float64 + weight * value (1,); the weight an integer, or an array (1,) of dtype `weight`."""

    def by_integer(y, total, value, weight, worker, workers):
        if worker == 0:
            y[0] = total[0] + np.float64(weight) * np.float64(value[0])

    def by_array(y, total, value, weight, worker, workers):
        if worker == 0:
            y[0] = total[0] + np.float64(weight[0]) * np.float64(value[0])

    arrays = (("float64", 1), ("float64", 1), (dtype, 1))
    if weight is None:
        return NumbaKernel(by_integer, arrays=arrays, integers=("weight",))
    return NumbaKernel(by_array, arrays=(*arrays, (weight, 1)))
