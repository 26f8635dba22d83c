"""CUDA kernels of the gathering and scattering of rows, and of counters and totals. All arrays are flat."""

from __future__ import annotations

import numpy as np

from tapeprop.ops.gather.rows import CURSOR_OUT_OF_RANGE, INDEX_OUT_OF_RANGE
from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import (
    BLOCK_SLOTS,
    FLOAT,
    block_before,
    block_max,
    block_sum,
    cuda,
    divider,
    report,
)

AHEAD = 4  # values that a thread has read before it adds the first


def take_rows(dtype: str, wide: bool) -> CudaKernel:
    """y (batch, length) = the rows of the table that indices (M,) name from cursor (1,) on."""
    bad_index, bad_cursor, quotient = INDEX_OUT_OF_RANGE, CURSOR_OUT_OF_RANGE, divider(wide)

    def body(y, table, indices, cursor, batch, length, inverse, rows, control, number):
        start, i = cursor[0], cuda.grid(1)
        inside = start >= 0 and start <= indices.size - batch
        if not inside and i == 0:
            report(control, number, bad_cursor)
        while inside and i < y.size:
            row = quotient(i, length, inverse)
            column, index = i - row * length, indices[start + row]
            if index >= 0 and index < rows:
                y[i] = table[index * length + column]
            elif column == 0:
                report(control, number, bad_index)
            i += cuda.gridsize(1)

    arrays = [("y", dtype, 1), ("table", dtype, 1), ("indices", "int64", 1), ("cursor", "int64", 1)]
    return CudaKernel(body, arrays, ["batch", "length", "inverse", "rows"], reports=True)


def take(dtype: str, wide: bool) -> CudaKernel:
    """y (M, length) = the rows of the table that indices (M,) name."""
    bad_index, quotient = INDEX_OUT_OF_RANGE, divider(wide)

    def body(y, table, indices, length, inverse, rows, control, number):
        i = cuda.grid(1)
        while i < y.size:
            row = quotient(i, length, inverse)
            column, index = i - row * length, indices[row]
            if index >= 0 and index < rows:
                y[i] = table[index * length + column]
            elif column == 0:
                report(control, number, bad_index)
            i += cuda.gridsize(1)

    arrays = [("y", dtype, 1), ("table", dtype, 1), ("indices", "int64", 1)]
    return CudaKernel(body, arrays, ["length", "inverse", "rows"], reports=True)


def scatter_rows(dtype: str, threads: int, each: int) -> CudaKernel:
    """y (rows, length) = the rows of x (M, length) added up where indices (M,) say, in their order; none at row `skip`.

    A block of `threads` owns a range of rows and of at most `threads` columns, and each element of it is one thread's. The
    block looks through all indices, each * threads at a time, and lists in shared memory those of its rows, in order.
    """
    bad_index, kind, zero, ahead = INDEX_OUT_OF_RANGE, FLOAT[dtype], FLOAT[dtype](0), AHEAD
    chunk = threads * each

    def body(y, x, indices, rows, length, row_blocks, column_blocks, skip, control, number):
        counts = cuda.shared.array(BLOCK_SLOTS, np.int64)
        sources = cuda.shared.array(chunk, np.int32)
        targets = cuda.shared.array(chunk, np.int32)
        owners = cuda.shared.array(chunk, np.int32)
        values = cuda.local.array(ahead, kind)
        thread = np.int64(cuda.threadIdx.x)
        piece = np.int64(cuda.blockIdx.x)
        while piece < row_blocks * column_blocks:
            row_block = piece // column_blocks
            left = (piece - row_block * column_blocks) * threads
            first, last = rows * row_block // row_blocks, rows * (row_block + 1) // row_blocks
            width = min(length - left, threads)
            slots = threads // width  # rows that are added to side by side
            slot = thread // width
            column = left + thread - slot * width
            row = first + slot
            while slot < slots and row < last:
                y[row * length + column] = zero
                row += slots
            base = np.int64(0)
            while base < indices.size:
                begin, end = base + thread * each, min(base + (thread + 1) * each, indices.size)
                found = np.int64(0)
                for i in range(begin, end):
                    index = indices[i]
                    if index >= first and index < last:
                        found += index != skip
                    elif piece == 0 and (index < 0 or index >= rows):
                        report(control, number, bad_index)
                place, count = block_before(found, counts)
                for i in range(begin, end):
                    index = indices[i]
                    if index >= first and index < last and index != skip:
                        sources[place] = i - base
                        targets[place] = index - first
                        owners[place] = (index - first) % slots
                        place += 1
                cuda.syncthreads()
                current, total = np.int64(-1), zero  # the row that is added to, and its sum so far
                entry = np.int64(0)
                while slot < slots and entry < count:
                    for k in range(ahead):
                        at = min(entry + k, count - 1)
                        if owners[at] == slot:
                            values[k] = x[(base + sources[at]) * length + column]
                    for k in range(ahead):
                        if entry + k < count and owners[entry + k] == slot:
                            target = first + targets[entry + k]
                            if target != current:
                                if current >= 0:
                                    y[current * length + column] = total
                                current, total = target, y[target * length + column]
                            total += values[k]
                    entry += ahead
                if current >= 0:
                    y[current * length + column] = total
                cuda.syncthreads()  # the list is made anew
                base += chunk
            piece += cuda.gridDim.x

    arrays = [("y", dtype, 1), ("x", dtype, 1), ("indices", "int64", 1)]
    return CudaKernel(body, arrays, ["rows", "length", "row_blocks", "column_blocks", "skip"], reports=True)


def advance() -> CudaKernel:
    """y = x + step, int64."""

    def body(y, x, step):
        i = cuda.grid(1)
        while i < y.size:
            y[i] = x[i] + step
            i += cuda.gridsize(1)

    return CudaKernel(body, [("y", "int64", 1), ("x", "int64", 1)], ["step"])


@cuda.jit(device=True)
def _first_largest(values, start, n, lane, step):
    """Which of the values lane, lane + step, ... below n, from start on, is the first largest; a NaN is. n where none is."""
    best, top = n, values[start]
    i = np.int64(lane)
    while i < n:
        value = values[start + i]
        if best == n or value > top or (value != value and top == top):
            best, top = i, value
        i += step
    return best


@cuda.jit(device=True)
def _first_largest_of_block(values, start, n, tops, places):
    """Which of the n values from start on is the first largest, found by the whole block."""
    best = _first_largest(values, start, n, cuda.threadIdx.x, cuda.blockDim.x)
    mine = values[start + (best if best < n else 0)]  # where this thread has none, any of the row's does no harm
    top = block_max(mine, tops)
    if mine != top and mine == mine:
        best = n
    return -block_max(-best, places)


def count_correct(dtype: str, one_hot: bool, team: bool) -> CudaKernel:
    """counts[b] = in how many of its rows of logits (N, C) block b found the first largest entry, or first NaN, at the label.

    labels: (N,) int64, or (N, C) of `dtype` where `one_hot`. A row is a thread's, or with team=True a block's.
    """
    kind = FLOAT[dtype]

    def body(counts, logits, labels, samples, classes):
        tops = cuda.shared.array(BLOCK_SLOTS, kind)
        places = cuda.shared.array(BLOCK_SLOTS, np.int64)
        correct = np.int64(0)
        sample = np.int64(cuda.blockIdx.x) if team else np.int64(cuda.grid(1))
        while sample < samples:
            start = sample * classes
            if team:
                best = _first_largest_of_block(logits, start, classes, tops, places)
            else:
                best = _first_largest(logits, start, classes, 0, 1)
            if one_hot and team:
                expected = _first_largest_of_block(labels, start, classes, tops, places)
            elif one_hot:
                expected = _first_largest(labels, start, classes, 0, 1)
            else:
                expected = labels[sample]
            if best == expected:
                correct += 1
            sample += cuda.gridDim.x if team else cuda.gridsize(1)
        if not team:
            correct = block_sum(correct, places)
        if cuda.threadIdx.x == 0:
            counts[cuda.blockIdx.x] = correct

    labels = (dtype if one_hot else "int64", 1)
    return CudaKernel(body, [("float64", 1), (dtype, 1), labels], ["samples", "classes"])


def count_total() -> CudaKernel:
    """total (1,) = the sum of the counts of blocks. One block."""

    def body(counts, total):
        shared = cuda.shared.array(BLOCK_SLOTS, np.float64)
        mine = np.float64(0)
        i = cuda.threadIdx.x
        while i < counts.size:
            mine += counts[i]
            i += cuda.blockDim.x
        mine = block_sum(mine, shared)
        if cuda.threadIdx.x == 0:
            total[0] = mine

    return CudaKernel(body, [("counts", "float64", 1), ("total", "float64", 1)])


def accumulate(dtype: str, weight: str | None = None) -> CudaKernel:
    """y (1,) = total (1,) float64 + weight * value (1,); the weight an integer, or an array (1,) of dtype `weight`."""

    def by_integer(y, total, value, weight):
        if cuda.grid(1) == 0:
            y[0] = total[0] + np.float64(weight) * np.float64(value[0])

    def by_array(y, total, value, weight):
        if cuda.grid(1) == 0:
            y[0] = total[0] + np.float64(weight[0]) * np.float64(value[0])

    arrays = [("y", "float64", 1), ("total", "float64", 1), ("value", dtype, 1)]
    if weight is None:
        return CudaKernel(by_integer, arrays, ["weight"])
    return CudaKernel(by_array, [*arrays, ("weight", weight, 1)])
