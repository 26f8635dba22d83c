"""The pieces of a block's work on a tile of a product: device functions, each made once for each shape of tile.

`arithmetic` multiplies; `fetching` brings elements of an operand from global to shared memory, as `Lanes` shares them out among threads, by
way of the table that `filling` fills; `unloading` writes the sums; `keeping` spares registers. `targets.cuda.gemm` puts them together.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from tapeprop.targets.cuda.language import FLOAT, cuda, device
from tapeprop.targets.cuda.library import SIMULATED
from tapeprop.targets.cuda.product import FAR, SIZES, Operand, i32, inline, u32, u64

__all__ = ["Lanes", "arithmetic", "fetching", "filling", "keeping", "run_length", "sizes_type", "unloading"]


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


@cache
def arithmetic(dtype: str, tile: tuple[int, ...], pads: tuple[int, int]) -> tuple[Any, Any]:
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


def run_length(dtype: str, count: int) -> int:
    """Elements that a thread reads from shared memory at once."""
    return min(16 // np.dtype(dtype).itemsize, count)


def _runs(dtype: str, extent: int, count: int) -> list[int]:
    """Where in a tile's `extent` rows (or columns) thread 0 has its `count`; thread t has them t runs further on."""
    run = run_length(dtype, count)
    return [i // run * (extent // count) * run + i % run for i in range(count)]


@cache
def fetching(
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
def unloading(dtype: str, tile: tuple[int, ...], row: Callable, column: Callable) -> Any:
    """unload(...): a thread's sums by way of shared memory to c, so that neighbours in a warp write neighbours in a row.

    One row of every thread at a time; into the two shared arrays by turns, so that one barrier is enough for each.
    """
    m, n, _, thread_m, thread_n = tile
    threads, run = m // thread_m * (n // thread_n), run_length(dtype, thread_m)
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
        f"    at = u32(ty * {n} + tx * {run_length(dtype, thread_n)})",
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
def filling(terms: Callable | None, threads: int) -> Any:
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
def keeping(*counts: int) -> tuple[Any, Any, int]:
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
def sizes_type(names: tuple[str, ...]) -> Any:
    """The type of a row's integers; one for all kernels alike, so that Numba compiles their device functions once."""
    make: Any = namedtuple  # mypy wants to know the names
    return make("Sizes", (*SIZES, *names))
