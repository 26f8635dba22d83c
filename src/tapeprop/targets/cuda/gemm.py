"""The one matrix product behind `matmul`, `dense` and the convolutions: c(m, n) = sum over k of a(m, k) b(k, n).

A block of threads makes a tile of (m, n) results, k terms at a time, which all its threads fetch from global into shared memory;
each thread keeps (thread_m, thread_n) sums in registers. Why: a multiply-add on two numbers from global memory would move 4 bytes
per operation (float32), and an H100 does 20 operations in the time of one byte. A tile moves (m + n) k numbers for 2 m n k
operations: with 128 x 128 that is 32 operations per byte, past that limit even where no cache helps. From shared memory a
thread reads thread_m + thread_n numbers for 2 thread_m thread_n operations: with 8 x 8 it issues 4 loads (of 16 bytes) for
64 multiply-adds, and a warp's loads take 4 to 6 of the 64 cycles that its multiply-adds take, of which four warps share one
memory: so the arithmetic units decide. What remains is the fetching (two loads, two stores and their addresses for every 64
multiply-adds of a term): of the loop's 707 instructions (float32 `matmul` on sm_90a) 512 are multiply-adds, so 72 % of the peak
without tensor cores is the most to expect, and less with 4 x 4 and with 2 x 2.

How an element of a or b is found is the op's: see `targets.cuda.product`. Sums run over k in rising order; where a product has
too few tiles to fill the device, k is cut into `splits` parts whose sums `merge` adds in order: fixed by shapes and device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tapeprop.ir.device import Tile
from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import FLOAT, cuda, opaque
from tapeprop.targets.cuda.product import SIZES, Product, divide, i32, inline, u32, u64
from tapeprop.targets.cuda.product_pieces import (
    Lanes,
    arithmetic,
    fetching,
    filling,
    keeping,
    run_length,
    sizes_type,
    unloading,
)

__all__ = ["merge", "product_kernel"]


def product_kernel(dtype: str, tile: tuple[int, ...], names: Sequence[str], product: Product) -> CudaKernel:
    """The kernel of a product: c = a b (+ bias), or one part of each sum into c[part * sizes.part:].

    tile: m, n, k, thread_m, thread_n. names: of the row's integers after SIZES. Arrays a, b, bias, c, all flat. The block of
    number ((batch * splits + part) * tiles_n + j) * tiles_m + i makes tile (i, j).
    """
    tile_m, tile_n, tile_k, thread_m, thread_n = tile
    number = FLOAT[dtype]
    across_m, across_n = tile_m // thread_m, tile_n // thread_n
    threads = across_m * across_n
    pad = 16 // np.dtype(dtype).itemsize  # keeps rows on 16 bytes, and threads that write a column in different banks
    row_left, row_right = tile_m + pad, tile_n + pad
    unloaded = across_m * tile_n  # a row of every thread's sums, which `unload` lays where the operands were
    elements_left, elements_right = max(2 * tile_k * row_left, unloaded), max(2 * tile_k * row_right, unloaded)
    chunk = threads // tile_k  # steps that a chunk of the table lasts
    chunk_bits = chunk.bit_length() - 1
    table_words = 8 * threads if product.terms is not None else 4
    wide, high = min(8, across_n), min(4, across_m)  # threads of a warp
    warps_n, warp = across_n // wide, wide * high
    run_m, run_n = run_length(dtype, thread_m), run_length(dtype, thread_n)

    zeros, multiply = arithmetic(dtype, tile, (pad, pad))
    lanes_a = Lanes.of(product.left.along_k, tile_m, tile_k, threads)
    lanes_b = Lanes.of(product.right.along_k, tile_n, tile_k, threads)
    knowing_a, fetch_a, stash_a = fetching(dtype, lanes_a, product.left, tile_k, tile_m, row_left, 2 * threads - 1)
    knowing_b, fetch_b, stash_b = fetching(dtype, lanes_b, product.right, tile_k, tile_n, row_right, 2 * threads - 1)
    fill, unload = filling(product.terms, threads), unloading(dtype, tile, product.row, product.column)
    place_of, depth_of, limits_a, limits_b = product.place, product.depth, product.left.limits, product.right.limits
    tabulated = product.terms is not None
    Sizes = sizes_type(tuple(names))
    words_a, words_b = 2 * tile_m if lanes_a.by_k else 2, 2 * tile_n if lanes_b.by_k else 2
    keep_words, recall_words, count_words = keeping(len(SIZES) + len(names))
    keep, recall, kept_words = keeping(6, product.places)

    @inline
    def spot(thread):
        # A warp makes a stretch of the tile that is about square: so it reads the fewest numbers of left and right.
        in_warp = thread % warp
        tx = i32(thread // warp % warps_n * wide + in_warp % wide)
        return i32(thread // warp // warps_n * high + in_warp // wide), tx

    def body(a, b, bias, c, *words):
        left = cuda.shared.array(elements_left, number)
        right = cuda.shared.array(elements_right, number)
        table = cuda.shared.array(table_words, i32)
        row = cuda.shared.array(count_words, np.int64)
        kept = cuda.shared.array(kept_words, np.int64)
        xs_b = cuda.shared.array(words_b, np.int64)
        xs_a = cuda.shared.array(words_a, np.int64)
        thread = u32(cuda.threadIdx.x)

        # What stands in shared memory takes no registers across a barrier: hence those before the loop.
        if thread == 0:
            keep_words(row, words)
        cuda.syncthreads()
        (words,) = recall_words(row)
        sizes = Sizes(*words)
        rest = divide(cuda.blockIdx.x, sizes.tiles_m)
        first_m = (cuda.blockIdx.x - rest * sizes.tiles_m) * tile_m
        batch_part = divide(rest, sizes.tiles_n)
        first_n = (rest - batch_part * sizes.tiles_n) * tile_n
        batch = divide(batch_part, sizes.splits)
        part = batch_part - batch * sizes.splits
        bias_start = divide(batch, sizes.alike) * sizes.bias_batch
        place = place_of(sizes, batch)
        depth = depth_of(sizes, place)
        steps = divide(divide(depth + tile_k - 1, tile_k) + sizes.splits - 1, sizes.splits)
        first = part * steps * tile_k
        length = i32(min(depth - first, steps * tile_k))
        if thread == 0:
            keep(kept, (first_m, first_n, bias_start, part * sizes.part, first, np.int64(length)), place)
        cuda.syncthreads()
        (words,), ((first_m, first_n, bias_start, start, first, count), place) = recall_words(row), recall(kept)
        sizes, length = Sizes(*words), i32(count)
        known_a = knowing_a(xs_a, sizes, place, first_m, sizes.m, thread)
        known_b = knowing_b(xs_b, sizes, place, first_n, sizes.n, thread)
        cuda.syncthreads()
        (words,), ((first_m, first_n, bias_start, start, first, count), place) = recall_words(row), recall(kept)
        sizes, length = Sizes(*words), i32(count)
        if tabulated:
            fill(table, sizes, place, first, length, 0, thread)
            fill(table, sizes, place, first, length, 1, thread)
        cuda.syncthreads()
        step = i32(0)
        next_a = fetch_a(a, sizes, place, known_a, xs_a, limits_a(sizes), table, first, length, step, thread)
        next_b = fetch_b(b, sizes, place, known_b, xs_b, limits_b(sizes), table, first, length, step, thread)
        stash_a(left, step, thread, next_a)
        stash_b(right, step, thread, next_b)
        cuda.syncthreads()
        sums = zeros()
        while step * tile_k < length:
            # While this step is computed the next one is on its way; after the last there are only zeros.
            (words,), ((first_m, first_n, bias_start, start, first, count), place) = recall_words(row), recall(kept)
            sizes, length = Sizes(*words), i32(count)
            thread = opaque(thread)
            ty, tx = spot(thread)
            at_left = u32((step & 1) * (tile_k * row_left) + ty * run_m)
            at_right = u32((step & 1) * (tile_k * row_right) + tx * run_n)
            step = i32(step + 1)
            next_a = fetch_a(a, sizes, place, known_a, xs_a, limits_a(sizes), table, first, length, step, thread)
            next_b = fetch_b(b, sizes, place, known_b, xs_b, limits_b(sizes), table, first, length, step, thread)
            sums = multiply(left, right, at_left, at_right, sums)
            stash_a(left, step & 1, thread, next_a)
            stash_b(right, step & 1, thread, next_b)
            if tabulated and (step & (chunk - 1)) == 0:
                fill(table, sizes, place, first, length, (step >> chunk_bits) + 1, thread)
            cuda.syncthreads()
        (words,), ((first_m, first_n, bias_start, start, first, count), place) = recall_words(row), recall(kept)
        sizes = Sizes(*words)
        ty, tx = spot(thread)
        unload(bias, c, left, right, sizes, place, bias_start, start, first_m, first_n, thread, ty, tx, sums)

    arrays = [(name, dtype, 1) for name in ("a", "b", "bias", "c")]
    return CudaKernel(
        body, arrays, (*SIZES, *names), operands=3, bounds=(threads, Tile(*tile).together(np.dtype(dtype).itemsize))
    )


def merge(dtype: str) -> CudaKernel:
    """c = the sum of `count` parts of its size, one after another in `parts`, plus bias[i // inner % biases] if `biased`."""

    def body(parts, bias, c, count, inner, biases, biased):
        i = cuda.grid(1)
        while i < c.size:
            total = parts[u64(i)]
            part = 1
            while part < count:
                total += parts[u64(part * c.size + i)]
                part += 1
            if biased:
                total += bias[u64(i // inner % biases)]
            c[u64(i)] = total
            i += cuda.gridsize(1)

    arrays = [("parts", dtype, 1), ("bias", dtype, 1), ("c", dtype, 1)]
    return CudaKernel(body, arrays, ("count", "inner", "biases", "biased"))
