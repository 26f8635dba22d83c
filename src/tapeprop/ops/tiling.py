"""How a matrix product is cut for a GPU: into tiles of the result, and its sums into parts; and its launches.

The cut depends on shapes and `Device` alone, by an estimate of cycles. Its figures are those of an H100 and rough: they have
to rank cuts, not to tell times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tapeprop.errors import ShapeError
from tapeprop.ops.op import ITEM_BYTES, Call, Device, Launch, Ref, Tile, cuda_launch

STEP_CYCLES = 700  # of a step whose loads from global memory nothing hides
SLOTS = 128  # instructions that a multiprocessor starts per cycle, counted by thread
MERGE_CYCLES = 5000  # of a launch more
MERGE_BYTES = 1000  # read or written per cycle by the whole device
FEWEST_STEPS = 4  # of a part of a sum
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Cut:
    """The tiles of `batch` products of (m, k) and (k, n), each sum in `splits` parts; cycles: the estimate."""

    m: int
    n: int
    tile: Tile
    splits: int
    tiles_m: int
    tiles_n: int
    batch: int
    cycles: float

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks of a launch."""
        return max(1, self.batch * self.splits * self.tiles_n * self.tiles_m), 1, 1

    @property
    def block(self) -> tuple[int, int, int]:
        """Threads of a block."""
        return self.tile.threads, 1, 1

    @property
    def literal(self) -> tuple[int, ...]:
        """The tile as a kernel's parameter."""
        return self.tile.m, self.tile.n, self.tile.k, self.tile.thread_m, self.tile.thread_n


def cut(m: int, n: int, k: int, batch: int, dtype: str, device: Device) -> Cut:
    """The cut of c (batch, m, n) = a b with sums of k terms that is expected to take the least time; of equal ones the
    largest tile, and the fewest parts.

    ShapeError for 2^31 or more rows, columns, terms or blocks, which the kernels count in 32 bits.
    """
    found = min(_cuts(m, n, k, batch, ITEM_BYTES[dtype] // 4, device), key=lambda each: each.cycles)
    if max(m, n, k, found.grid[0]) > LARGEST:
        raise ShapeError(
            f"a product of {batch} matrices ({m}, {k}) and ({k}, {n}) on a GPU: expected at most {LARGEST} rows, columns, "
            f"terms of a sum and blocks of threads ({found.grid[0]} here); cut the batch or the operands into pieces"
        )
    return found


def _cuts(m: int, n: int, k: int, batch: int, wide: int, device: Device) -> Iterator[Cut]:
    for given in device.tiles:
        tile = replace(given, k=max(1, given.k // wide))
        tiles_m, tiles_n, steps = -(-m // tile.m), -(-n // tile.n), -(-k // tile.k)
        splits = 1
        while splits == 1 or splits * FEWEST_STEPS <= steps:
            blocks = -(-batch * splits * tiles_m * tiles_n // device.multiprocessors)
            together = min(blocks, tile.together(4 * wide))
            step = max(STEP_CYCLES, together * _instructions(tile, wide) * tile.threads * tile.k / SLOTS)
            cycles = -(-blocks // together) * -(-steps // splits) * step
            if splits > 1:
                cycles += MERGE_CYCLES + (splits + 1) * batch * m * n * 4 * wide / MERGE_BYTES
            yield Cut(m, n, tile, splits, tiles_m, tiles_n, batch, cycles)
            splits += max(1, splits // 4)


def _instructions(tile: Tile, wide: int) -> float:
    """Of a thread for one term: multiply-adds, loads from shared memory, and its share of what is fetched."""
    loads = max(2, (tile.thread_m + tile.thread_n) * wide / 4)
    return wide * tile.thread_m * tile.thread_n + loads + 10 * (tile.m + tile.n) / tile.threads


@dataclass(frozen=True)
class Bias:
    """The operand that is added to a product, and where: element batch // alike * group + m * row + n * column of it.

    inner: elements of the result, as it lies in memory, that share an element of the bias.
    """

    operand: int
    group: int = 0
    row: int = 0
    column: int = 0
    inner: int = 1
    alike: int = 1


def launches(
    call: Call,
    device: Device,
    found: Cut,
    builder: str,
    left: int,
    right: int,
    bias: Bias | None,
    integers: Sequence[int],
    **parameters: Any,
) -> list[Launch]:
    """The launch of a `targets.cuda.gemm.product_kernel`, and that which adds up its parts, if there are several.

    left, right: operands. integers: the row's, after those that all products have. parameters: of the builder, besides dtype
    and tile.
    """
    c, whole = call.results[0], found.splits == 1
    added = bias or Bias(0)
    scratch = None if whole else (found.splits * c.size, c.dtype)
    arrays: list[tuple[Ref, tuple[int, ...]]] = [
        (Ref("operand", i), (call.operands[i].size,)) for i in (left, right, added.operand)
    ]
    arrays.append((Ref("result"), (c.size,)) if whole else (Ref("scratch"), (found.splits * c.size,)))
    first = [found.m, found.n, found.tiles_m, found.tiles_n, found.splits, c.size]
    first += [int(bias is not None and whole), added.row, added.column, added.group, added.alike]
    product = cuda_launch(
        builder,
        arrays,
        [*first, *integers],
        grid=found.grid,
        block=found.block,
        scratch=scratch,
        dtype=c.dtype,
        tile=found.literal,
        **parameters,
    )
    if whole:
        return [product]
    grid, block = device.spread(c.size)
    merge = cuda_launch(
        "tapeprop.targets.cuda.gemm:merge",
        [(Ref("scratch"), (found.splits * c.size,)), arrays[2], (Ref("result"), (c.size,))],
        [found.splits, added.inner, call.operands[added.operand].size, int(bias is not None)],
        grid=grid,
        block=block,
        scratch=scratch,
        label="merge",
        flops=found.splits * c.size,
        traffic=(found.splits + 1) * c.nbytes,
        dtype=c.dtype,
    )
    return [product, merge]
