"""How a convolution in batch lanes is cut: blocks of channels, tiles that fill the registers, and what the nearest cache holds.

All of it is chosen from the shapes and the machine's registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

# What a correlation may fill of the nearest cache, 32 KB or more, before its sums go through memory (8 and 28 KB are slower).
NEAR = 20 << 10
# Input channels whose rows the weights' gradient takes at a time, and what they and those of dy may fill of the second-level cache
# (24 KB: 0.8 to 0.9 times as fast where the arrays come from further away, for short streams are fetched late).
TOGETHER, NEAR_GRADIENT = 4, 256 << 10
MANY_BLOCKS = 8  # of output channels, from which on a correlation copies the rows it reads
GRAINS = 8  # that a weight gradient is cut into where its shape allows
TALLEST = 8  # channels or pixels of a tile


@dataclass(frozen=True)
class Blocks:
    """`count` channels in blocks of about one size: the first `tall` hold `size`, the others one less."""

    count: int
    blocks: int

    @property
    def size(self) -> int:
        return -(-self.count // self.blocks)

    @property
    def tall(self) -> int:
        return self.count - self.blocks * (self.size - 1)

    @property
    def fewer(self) -> int:
        """The size of the smaller blocks, that of the others where there are none."""
        return self.size if self.tall == self.blocks else self.size - 1


@cache
def correlation_tile(
    registers: int, parts: int, outs: int, count: int, columns: int, first: int, taps: int, stride: int
) -> tuple[Blocks, int]:
    """(blocks of output channels, pixels) of the tile that takes the least time for a row of `count` pixels.

    parts: vectors of a pixel; the others as in `targets.cpu.lane_correlation.correlate_row`. A tap that meets the image multiplies outs x
    pixels x parts vectors and loads as many weights as there are outs; the pixels come from further away. A core multiplies and
    loads about as many vectors at a time. The sums, a column of pixels and a weight have to stay in registers.
    """
    room = registers - (3 if registers >= 32 else 2)
    best = None
    for size in range(1, min(outs, TALLEST) + 1):
        split = Blocks(outs, -(-outs // size))
        for pixels in range(1, min(count, TALLEST) + 1):
            vectors = pixels * parts
            if split.size * vectors + vectors > room and (split.size, pixels) != (1, 1):
                continue
            time, window = 0.0, (pixels - 1) * stride + taps
            for q in range(0, count, pixels):
                column = first + q * stride
                met = [k for k in range(taps) if column + k < columns and column + k + (pixels - 1) * stride >= 0]
                inside = column >= 0 and column + window <= columns and q + pixels <= count
                seen = parts * (min(window, taps * pixels) if inside else len(met) * pixels)
                for m, blocks in ((split.size, split.tall), (split.fewer, split.blocks - split.tall)):
                    # fewer than 8 sums wait for each other
                    products, loads = len(met) * max(m * vectors, 8), seen + len(met) * m
                    time += blocks * (max(products, loads) + seen / 2 + 2)
            # of equals the one with less code
            time *= 1 + 0.001 * split.size * vectors + 0.01 * (split.fewer < split.size)
            if best is None or time < best[0]:
                best = time, split, pixels
    assert best is not None
    return best[1], best[2]


@cache
def gradient_tile(registers: int, outs: int, ins: int, taps: int) -> tuple[Blocks, int]:
    """(blocks of output channels, input channels) of the weight gradient's tile that takes the least time for a product.

    A pixel multiplies outs x ins x taps vectors and loads outs of dy and ins x taps of x, ins of which no tap has met before.
    """
    best = None
    for size in range(1, min(outs, TALLEST) + 1):
        split = Blocks(outs, -(-outs // size))
        for group in (n for n in range(1, min(ins, TALLEST) + 1) if ins % n == 0):
            if split.size * (group * taps + 1) + 2 > registers and (split.size, group) != (1, 1):
                continue
            time = 0.0
            for m, blocks in ((split.size, split.tall), (split.fewer, split.blocks - split.tall)):
                products, loads, fresh = m * group * taps, m + group * taps, m + group
                time += blocks * (max(products, loads, 8) + 0.25 * loads + 0.75 * fresh) / group
            time *= 1 + 0.01 * (split.fewer < split.size)
            if best is None or time < best[0]:
                best = time, split, group
    assert best is not None
    return best[1], best[2]


def depth_of(itemsize: int, channels: int, rows: int, taps: int, images: int, outs: int, pixels: int) -> int:
    """How many channels a row of outputs is summed over before the next are, in equal parts.

    What a tile of `pixels` windows of rows x taps sees and the weights of `outs` channels then stay in the first-level cache from one
    tile to the next; the sums go through memory in between.
    """
    seen = rows * ((pixels + taps - 1) * images + outs * taps) * itemsize
    parts = min(-(-channels * seen // NEAR), channels)
    return -(-channels // parts)


def panel_step(width: int, blocks: int) -> int:
    """How far the rows of a panel are apart, in pixels, to which the rows under a row of filters are copied; 0: read where they lie.

    Planes of powers of two lie on each other in the sets of the caches, so that rows of several channels push each other out of
    the second level. Where many blocks of outputs read them, copying costs less: with 8 blocks and more it is 1.0 to 1.2 times as
    fast, the more so the busier the third level is. An odd number of pixels keeps the panel's own rows apart.
    """
    return width | 1 if blocks >= MANY_BLOCKS else 0


def gradient_grain(split: Blocks, ins: int, channels: int, taps_h: int) -> tuple[int, int]:
    """(input channels of a grain of the weights' gradient, parts of the output channels), for a tile of `ins` channels."""
    deep = ins * max(min(TOGETHER, channels) // ins, 1)
    return deep, min(-(-GRAINS // (-(-channels // deep) * taps_h)), split.blocks)


def gradient_rows(row_bytes: int) -> int:
    """How many rows of pixels the weights' gradient sums before the next block of output channels is."""
    return max(NEAR_GRADIENT // row_bytes, 1)
