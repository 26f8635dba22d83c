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

How an element of a or b is found is the op's: see `Operand`. So a convolution reads its images where they lie, as the matrix that
they would be if every pixel were copied for each tap ("implicit" im2col). Sums run over k in rising order; where a product has
too few tiles to fill the device, k is cut into `splits` parts whose sums `merge` adds in order: fixed by shapes and device.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tapeprop.ir.device import Tile
from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import FLOAT, cuda, device, opaque
from tapeprop.targets.cuda.library import SIMULATED

__all__ = ["FAR", "SIZES", "Operand", "Product", "beyond", "divide", "inline", "merge", "product_kernel"]

#: What makes an element's place lie outside of all limits: added where m, n or k is past its end.
FAR = 1 << 29
#: The integers that every product's row begins with. part: elements of a part of k, in c; bias_*: steps in the bias, the last
#: after every `alike` products.
SIZES = ("m", "n", "tiles_m", "tiles_n", "splits", "part", "biased", "bias_m", "bias_n", "bias_batch", "alike")

i32, u32, u64 = np.int32, np.uint32, np.uint64
# The simulator's device functions take a lock at each call: functions without `cuda` in them stay plain there.
inline: Any = (lambda function: function) if SIMULATED else cuda.jit(device=True, forceinline=True)


@dataclass(frozen=True)
class Operand:
    """How the elements of a or b are found. x is the row m of a or the column n of b; all are device functions.

    outer(sizes, place, x) -> (distance, u, v): what x contributes to an element's place.
    inner(sizes, place, entry) -> (distance, u, v): what k contributes; entry is (k, u, 0, 0), u being FAR where k is past its
    end, which has to go into the result's u; or what `Product.terms` gives, if `tabulated`.
    limits(sizes) -> (U, V): with the sums of distances, u and v, the element is memory[distance] if 0 <= u < U and 0 <= v < V,
    else 0. along_k: whether elements with neighbouring k are neighbours in memory; else those with neighbouring x are.
    """

    along_k: bool
    outer: Callable
    inner: Callable
    limits: Callable
    tabulated: bool = False


@dataclass(frozen=True)
class Product:
    """A product's addressing. sizes: the row's integers by name; batch: which of several products a block works on.

    place(sizes, batch) -> `places` int64, which the other functions get as `place`. depth(sizes, place): terms of a sum.
    row(sizes, place, m), column(sizes, place, n): their sum is the result's index; a negative column is left out.
    terms(sizes, place, k) -> four int32, tabulated in shared memory for many k at a time, so that it may divide; where k is
    past its end, all are FAR.
    """

    places: int
    place: Callable
    depth: Callable
    left: Operand
    right: Operand
    row: Callable
    column: Callable
    terms: Callable | None = None


@dataclass(frozen=True)
class Lanes:
    """Which elements (k, x) of an operand's tile a thread fetches: k = first_k + i step_k, x = first_x + j step_x."""

    by_k: bool
    across: int  # threads side by side
    step_k: int
    count_k: int
    step_x: int
    count_x: int

    @classmethod
    def of(cls, along_k: bool, extent: int, depth: int, threads: int) -> Lanes:
        if along_k:
            return cls(True, depth, depth, 1, threads // depth, max(1, extent * depth // threads))
        across = min(extent, threads)
        rows = threads // across
        return cls(False, across, rows, max(1, depth // rows), across, extent // across)

    def first(self, thread: str) -> tuple[str, str]:
        """Source of first_k and first_x."""
        pair = f"i32({thread} % {self.across})", f"i32({thread} // {self.across})"
        return pair if self.by_k else pair[::-1]

    @property
    def elements(self) -> list[tuple[int, int]]:
        """(i, j) of each element."""
        return [(i, j) for i in range(self.count_k) for j in range(self.count_x)]


@inline
def beyond(u):
    """FAR if u is that of a k past its end, else 0."""
    return FAR if u >= FAR // 2 else 0


@inline
def divide(number, size):
    """number // size for 0 <= number < 2^32, 0 < size < 2^32: a division of 64 bits would be a call, and take registers for it."""
    return np.int64(u32(number) // u32(size))


@inline
def _inside(u, v, limit_u, limit_v):
    # As unsigned numbers, negative ones are larger than any limit.
    return u32(i32(u)) < u32(limit_u) and u32(i32(v)) < u32(limit_v)


def _made(name: str, lines: Sequence[str], decorate: Callable = inline, **scope: Any) -> Any:
    """The device function `name` of generated source: sums in registers need scalar variables with names."""
    scope |= {"i32": i32, "u32": u32, "u64": u64, "cuda": cuda}
    exec(compile("\n".join(lines) + "\n", f"<{name}>", "exec"), scope)
    return decorate(scope[name])


def _tuple(items: Sequence[str]) -> str:
    return f"({', '.join(items)},)"


# ---- the pieces of a tile's work; each is made once for each shape of tile


@cache
def _arithmetic(dtype: str, tile: tuple[int, ...], pads: tuple[int, int]) -> tuple[Any, Any]:
    """(zeros() -> sums, multiply(left, right, at_left, at_right, sums) -> sums) of a thread.

    A thread's rows lie in runs as long as one load of 16 bytes, the runs of all threads side by side: neighbours in a warp
    read neighbours. An element k of the tile is worked on by a function of its own, which Numba compiles once.
    """
    m, n, k, thread_m, thread_n = tile
    sums = [f"s{i}_{j}" for i in range(thread_m) for j in range(thread_n)]
    zeros = _made("zeros", ["def zeros():", f"    return {_tuple(['zero'] * len(sums))}"], zero=FLOAT[dtype](0))
    lines = ["def term(left, right, at_left, at_right, sums):", f"    {_tuple(sums)} = sums"]
    for name, memory, extent, count in (("a", "left", m, thread_m), ("b", "right", n, thread_n)):
        for i, place in enumerate(_runs(dtype, extent, count)):
            lines.append(f"    {name}{i} = {memory}[at_{memory} + u32({place})]")
    lines += [f"    s{i}_{j} += a{i} * b{j}" for i in range(thread_m) for j in range(thread_n)]
    term = _made("term", [*lines, f"    return {_tuple(sums)}"])
    lines = ["def multiply(left, right, at_left, at_right, sums):"]
    for i in range(k):
        lines.append(
            f"    sums = term(left, right, at_left + u32({i * (m + pads[0])}), at_right + u32({i * (n + pads[1])}), sums)"
        )
    return zeros, _made("multiply", [*lines, "    return sums"], term=term)


def _run(dtype: str, count: int) -> int:
    """Elements that a thread reads from shared memory at once."""
    return min(16 // np.dtype(dtype).itemsize, count)


def _runs(dtype: str, extent: int, count: int) -> list[int]:
    """Where in a tile's `extent` rows (or columns) thread 0 has its `count`; thread t has them t runs further on."""
    run = _run(dtype, count)
    return [i // run * (extent // count) * run + i % run for i in range(count)]


@cache
def _fetching(
    dtype: str, lanes: Lanes, operand: Operand, tile_k: int, extent: int, padded: int, mask: int
) -> tuple[Any, Any, Any]:
    """(known, fetch, stash) of an operand: what is known before the loop; elements to registers; these to shared memory.

    A thread that fetches for one x keeps in registers what that contributes. Those that fetch for several x and one k find it in
    shared memory, two words for each of the tile's x: the distance, and u and v.
    tile_k, extent: terms and x of a tile; padded: elements between two terms in shared memory; mask: entries of the table less 1.
    """
    first_k, first_x = lanes.first("thread")
    columns = range(lanes.count_x)
    outer, by_k = operand.outer, lanes.by_k

    @inline
    def tabulate(xs, sizes, place, first, end, thread):
        x, across = thread, lanes_across
        while x < extent:
            d, u, v = outer(sizes, place, first + x)
            if first + x >= end:
                u = FAR
            xs[2 * x] = d
            xs[2 * x + 1] = (np.int64(u) << 32) | (np.int64(v) & 0xFFFFFFFF)
            x = i32(x + across)
        return (0,)

    lines = ["def known(xs, sizes, place, first, end, thread):", f"    x = first + {first_x}"]
    for j in columns:
        lines.append(f"    d{j}, u{j}, v{j} = outer(sizes, place, x + {j * lanes.step_x})")
        lines.append(f"    u{j} = i32(FAR) if x + {j * lanes.step_x} >= end else i32(u{j})")
    lines.append(f"    return {_tuple([f'(d{j}, u{j}, i32(v{j}))' for j in columns])}")
    lanes_across = lanes.across * lanes.step_x if by_k else 0
    known = tabulate if by_k else _made("known", lines, outer=operand.outer, FAR=FAR)

    lines = [
        "def fetch(memory, sizes, place, known, xs, limits, table, first, length, step, thread):",
        "    limit_u, limit_v = limits",
        f"    k = i32(step * {tile_k} + {first_k})",
    ]
    if operand.tabulated:  # the terms of a tile stand in one half of the table
        lines.append(f"    at = u32(((step * {tile_k} & {mask}) + {first_k}) * 4)")
    if by_k:
        lines.append(f"    at_x = u32(2 * {first_x})")
    for j in columns:
        if by_k:
            at = 2 * j * lanes.step_x
            lines.append(f"    d{j}, uv{j} = xs[at_x + u32({at})], xs[at_x + u32({at + 1})]")
            lines.append(f"    u{j}, v{j} = i32(uv{j} >> 32), i32(uv{j})")
        else:
            lines.append(f"    d{j}, u{j}, v{j} = known[{j}]")
    for i in range(lanes.count_k):
        if operand.tabulated:
            entry = _tuple([f"table[at + u32({4 * i * lanes.step_k + word})]" for word in range(4)])
        else:
            lines.append(f"    k_i = i32(k + {i * lanes.step_k})")
            entry = "(first + k_i, i32(FAR) if k_i >= length else i32(0), i32(0), i32(0))"
        lines.append(f"    d, u, v = inner(sizes, place, {entry})")
        for j in columns:
            lines.append(f"    e{i}_{j} = zero")
            lines.append(f"    if inside(i32(u + u{j}), i32(v + v{j}), limit_u, limit_v):")
            lines.append(f"        e{i}_{j} = memory[u64(d + d{j})]")
    lines.append(f"    return {_tuple([f'e{i}_{j}' for i, j in lanes.elements])}")
    scope = {"inner": operand.inner, "inside": _inside, "FAR": FAR, "zero": FLOAT[dtype](0)}
    fetch = _made("fetch", lines, **scope)

    lines = ["def stash(memory, half, thread, elements):"]
    lines.append(f"    at = u32(half * {tile_k * padded} + {first_k} * {padded} + {first_x})")
    for number, (i, j) in enumerate(lanes.elements):
        place = i * lanes.step_k * padded + j * lanes.step_x
        lines.append(f"    memory[at + u32({place})] = elements[{number}]")
    return known, fetch, _made("stash", lines)


@cache
def _unloading(dtype: str, tile: tuple[int, ...], row: Callable, column: Callable) -> Any:
    """unload(...): a thread's sums by way of shared memory to c, so that neighbours in a warp write neighbours in a row.

    One row of every thread at a time; into the two shared arrays by turns, so that one barrier is enough for each.
    """
    m, n, _, thread_m, thread_n = tile
    threads, run = m // thread_m * (n // thread_n), _run(dtype, thread_m)
    across, rows = min(n, threads), m // thread_m
    columns, high = range(n // across), threads // across

    @inline
    def write(memory, bias, c, sizes, place, start, first_m, r, mine, at, bias_at):
        while r < rows:
            m_r = first_m + r * run
            if m_r < sizes.m and at >= 0:
                value = memory[u32(r * n + mine)]
                if sizes.biased:
                    value += bias[u64(bias_at + m_r * sizes.bias_m)]
                c[u64(start + row(sizes, place, m_r) + at)] = value
            r = i32(r + high)

    lines = [
        "def unload(bias, c, left, right, sizes, place, bias_start, start, first_m, first_n, thread, ty, tx, sums):",
        f"    at = u32(ty * {n} + tx * {_run(dtype, thread_n)})",
        f"    mine, r = i32(thread % {across}), i32(thread // {across})",
    ]
    for j in columns:
        lines.append(f"    n{j} = first_n + mine + {j * across}")
        lines.append(f"    c{j} = column(sizes, place, n{j}) if n{j} < sizes.n else -1")
        lines.append(f"    b{j} = bias_start + n{j} * sizes.bias_n")
    for i in range(thread_m):
        memory = ("left", "right")[i % 2]
        for j, there in enumerate(_runs(dtype, n, thread_n)):
            lines.append(f"    {memory}[at + u32({there})] = sums[{i * thread_n + j}]")
        lines.append("    cuda.syncthreads()")
        first = f"first_m + {i // run * rows * run + i % run}"
        for j in columns:
            known = f"{memory}, bias, c, sizes, place, start, {first}"
            lines.append(f"    write({known}, r, mine + {j * across}, c{j}, b{j})")
    return _made("unload", lines, decorate=device if SIMULATED else inline, write=write, column=column)


@cache
def _filling(terms: Callable | None, threads: int) -> Any:
    """fill(table, sizes, place, first, length, chunk, thread): the table's entries of one chunk of k, one by each thread."""

    @inline
    def fill(table, sizes, place, first, length, chunk, thread):
        k = i32(chunk * threads + thread)
        at = u32(((chunk & 1) * threads + thread) * 4)
        e0, e1, e2, e3 = i32(FAR), i32(FAR), i32(FAR), i32(FAR)
        if k < length:
            f0, f1, f2, f3 = terms(sizes, place, first + k)
            e0, e1, e2, e3 = i32(f0), i32(f1), i32(f2), i32(f3)
        table[at] = e0
        table[at + u32(1)] = e1
        table[at + u32(2)] = e2
        table[at + u32(3)] = e3

    @inline
    def nothing(table, sizes, place, first, length, chunk, thread):
        pass

    return nothing if terms is None else fill


@cache
def _keeping(*counts: int) -> tuple[Any, Any, int]:
    """(keep(kept, *tuples), recall(kept) -> tuples, words) of as many tuples of int64, each of its count.

    What all threads of a block know alike is kept in shared memory, or it would take registers all through the loop.
    """
    names = [f"t{i}" for i in range(len(counts))]
    words = [(name, i) for name, count in zip(names, counts) for i in range(count)]
    lines = [f"def keep(kept, {', '.join(names)}):"]
    lines += [f"    kept[{word}] = {name}[{i}]" for word, (name, i) in enumerate(words)]
    tuples = [_tuple([f"kept[{word}]" for word, (owner, _) in enumerate(words) if owner == name]) for name in names]
    return _made("keep", lines), _made("recall", ["def recall(kept):", f"    return {_tuple(tuples)}"]), len(words)


@cache
def _sizes(names: tuple[str, ...]) -> Any:
    """The type of a row's integers; one for all kernels alike, so that Numba compiles their device functions once."""
    make: Any = namedtuple  # mypy wants to know the names
    return make("Sizes", (*SIZES, *names))


# ---- the kernels


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
    run_m, run_n = _run(dtype, thread_m), _run(dtype, thread_n)

    zeros, multiply = _arithmetic(dtype, tile, (pad, pad))
    lanes_a = Lanes.of(product.left.along_k, tile_m, tile_k, threads)
    lanes_b = Lanes.of(product.right.along_k, tile_n, tile_k, threads)
    knowing_a, fetch_a, stash_a = _fetching(dtype, lanes_a, product.left, tile_k, tile_m, row_left, 2 * threads - 1)
    knowing_b, fetch_b, stash_b = _fetching(dtype, lanes_b, product.right, tile_k, tile_n, row_right, 2 * threads - 1)
    fill, unload = _filling(product.terms, threads), _unloading(dtype, tile, product.row, product.column)
    place_of, depth_of, limits_a, limits_b = product.place, product.depth, product.left.limits, product.right.limits
    tabulated = product.terms is not None
    Sizes = _sizes(tuple(names))
    words_a, words_b = 2 * tile_m if lanes_a.by_k else 2, 2 * tile_n if lanes_b.by_k else 2
    keep_words, recall_words, count_words = _keeping(len(SIZES) + len(names))
    keep, recall, kept_words = _keeping(6, product.places)

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
