"""How a matrix product is cut for a GPU: into tiles of the result, and its sums into parts. By shapes and `Device` alone.

The choice follows an estimate of cycles. Its figures are those of an H100 and rough: they have to rank cuts, not to tell times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tapeprop.errors import ShapeError
from tapeprop.ops.op import ITEM_BYTES, Device, Tile

STEP_CYCLES = 700  # of a step whose loads from global memory nothing hides
SLOTS = 128  # instructions that a multiprocessor starts per cycle, counted by thread
REGISTERS = 65536  # of a multiprocessor
MERGE_CYCLES = 5000  # of a launch more
MERGE_BYTES = 1000  # read or written per cycle by the whole device
FEWEST_STEPS = 4  # of a part of a sum
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Cut:
    """The tiles of `batch` products of (m, k) and (k, n), each sum in `splits` parts; cycles: the estimate."""

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

    ShapeError for more than 2^31 - 1 terms, or blocks.
    """
    found = min(_cuts(m, n, k, batch, ITEM_BYTES[dtype] // 4, device), key=lambda each: each.cycles)
    if k > LARGEST or found.grid[0] > LARGEST:
        raise ShapeError(
            f"a product of {batch} matrices ({m}, {k}) and ({k}, {n}): expected at most {LARGEST} terms of a sum and blocks of "
            f"threads, got {k} and {found.grid[0]}; cut the operands into pieces"
        )
    return found


def _cuts(m: int, n: int, k: int, batch: int, wide: int, device: Device) -> Iterator[Cut]:
    for tile in device.tiles:
        tiles_m, tiles_n, steps = -(-m // tile.m), -(-n // tile.n), -(-k // tile.k)
        splits = 1
        while splits == 1 or splits * FEWEST_STEPS <= steps:
            blocks = -(-batch * splits * tiles_m * tiles_n // device.multiprocessors)
            together = min(blocks, _blocks_together(tile, wide))
            step = max(STEP_CYCLES, together * _instructions(tile, wide) * tile.threads * tile.k / SLOTS)
            cycles = -(-blocks // max(1, together)) * -(-steps // splits) * step
            if splits > 1:
                cycles += MERGE_CYCLES + (splits + 1) * batch * m * n * 4 * wide / MERGE_BYTES
            yield Cut(tile, splits, tiles_m, tiles_n, batch, cycles)
            splits += max(1, splits // 4)


def _instructions(tile: Tile, wide: int) -> float:
    """Of a thread for one term: multiply-adds, loads from shared memory, and its share of what is fetched."""
    loads = max(2, (tile.thread_m + tile.thread_n) * wide / 4)
    return wide * tile.thread_m * tile.thread_n + loads + 10 * (tile.m + tile.n) / tile.threads


def _blocks_together(tile: Tile, wide: int) -> int:
    """Blocks that share a multiprocessor, as registers allow."""
    registers = 40 + wide * (tile.thread_m * tile.thread_n + tile.thread_m + tile.thread_n)
    return max(1, REGISTERS // (registers * tile.threads))
