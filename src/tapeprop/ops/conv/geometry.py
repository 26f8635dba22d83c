"""The sizes of a convolution, and how its work and a worker's scratch are cut: fixed by the shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import gcd

from tapeprop.errors import ShapeError
from tapeprop.ops.op import ITEM_BYTES, ArrayType, Attributes

STAGED_BYTES = 320 * 1024  # of a band: its planes and the weights that meet them share the second-level cache
LINE_BYTES = 64  # of the cache
GRAINS = 8  # that a convolution is cut into where its shape allows
PIXELS = 512  # of a band whose gradients the weight gradient lays out anew
ROW_GRAIN = 12  # rows of the weight gradient
PACKED_BITS = 21  # of each of the three numbers that `packed` puts in one integer
BLOCK_ROWS = 144  # of them that share such a layout, at most


@dataclass(frozen=True)
class Geometry:
    """The sizes of a convolution x (N, C, D, H, W), w (O, C / groups, KD, KH, KW) -> y (N, O, OD, OH, OW); in 2-D depths are 1.

    channels and filters are those of one group; step is the dilation.
    """

    images: int
    groups: int
    channels: int
    depth_in: int
    height_in: int
    width_in: int
    filters: int
    taps_d: int
    taps_h: int
    taps_w: int
    stride_d: int
    stride_h: int
    stride_w: int
    front: int
    top: int
    left: int
    step_d: int
    step_h: int
    step_w: int
    depth_out: int
    height_out: int
    width_out: int

    @classmethod
    def of(cls, x: ArrayType, w: ArrayType, y: ArrayType, attributes: Attributes) -> Geometry:
        fronts = [before for before, _ in attributes["padding"]]
        axes = list(zip(x.shape[2:], w.shape[2:], attributes["stride"], fronts, attributes["dilation"], y.shape[2:]))
        if len(axes) == 3:
            axes = _merged(axes)
        axes = [(1, 1, 1, 0, 1, 1)] * (3 - len(axes)) + axes
        sizes, taps, strides, fronts, steps, results = map(list, zip(*axes))
        groups = attributes["groups"]
        words = [
            x.shape[0],
            groups,
            w.shape[1],
            *sizes,
            w.shape[0] // groups,
            *taps,
            *strides,
            *fronts,
            *steps,
            *results,
        ]
        return cls(**dict(zip(FIELDS, words, strict=True)))

    @property
    def integers(self) -> list[int]:
        """The kernels' first integers, in the order of `FIELDS`."""
        return [getattr(self, name) for name in FIELDS]

    @property
    def taps(self) -> int:
        return self.taps_d * self.taps_h * self.taps_w

    @property
    def halo(self) -> int:
        """How many rows of a plane lie below those that the first row of taps reads."""
        return (self.taps_h - 1) * self.step_h // self.stride_h

    @property
    def slots(self) -> int:
        """How many phases of the vertical stride the taps read: row kh of the filter reads phase kh % slots."""
        return min(self.taps_h, self.stride_h // gcd(self.stride_h, self.step_h))

    @property
    def direct(self) -> bool:
        """Whether the rows of x are the planes' rows: a filter one column wide, no padding, no stride, no depth."""
        plain = (self.taps_w, self.stride_h, self.stride_w, self.top, self.left) == (1, 1, 1, 0, 0)
        flat = self.depth_in == self.depth_out == self.taps_d == 1
        return plain and flat and (self.height_out + self.halo, self.width_out) == (self.height_in, self.width_in)


def _merged(axes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The axes, (size, taps, stride, padding before, dilation, size of the result) each: of two neighbours that the filter takes
    pixel by pixel one is made, since that is how they lie in memory.
    """
    found = axes[:1]
    for axis in axes[1:]:
        if all((taps, stride, size) == (1, 1, out) for size, taps, stride, _, _, out in (found[-1], axis)):
            size = found[-1][0] * axis[0]
            found[-1] = (size, 1, 1, 0, 1, size)
        else:
            found.append(axis)
    return found


#: The names of the kernels' first integers.
FIELDS = tuple(field.name for field in fields(Geometry))


def packed(*numbers: int) -> int:
    """Three numbers, of depth, height and width, as one integer of a row. ShapeError where one is too large for that."""
    if max(numbers) >> PACKED_BITS:
        raise ShapeError(
            f"convolution on a GPU: expected filters, strides, padding and dilation below {1 << PACKED_BITS}, got {max(numbers)}"
        )
    depth, height, width = numbers
    return (depth << 2 * PACKED_BITS) | (height << PACKED_BITS) | width


def band_rows(
    rows: int, halo: int, row_bytes: int, parts: int = 1, limit: int | None = None, staged: int = STAGED_BYTES
) -> int:
    """Rows of a band: as many as can be staged, at least 4, or as make `parts` bands; all bands about equal."""
    most = max(staged // row_bytes - halo, 4)
    most = min(most, rows if limit is None else limit)
    bands = max(-(-rows // most), min(parts, rows // 4), 1)
    return -(-rows // bands)


def block_of(count: int, units: int) -> int:
    """Channels that one worker computes from a staged band: all, where there are bands enough."""
    parts = max(1, min(-(-GRAINS // units), count // 16))
    return -(-count // (parts * 4)) * 4 if parts > 1 else count


def depthwise(w: Sequence[int], groups: int) -> bool:
    """Whether convolutions with weights of shape w are computed channel by channel. From four filters on a product is faster."""
    return w[1] == 1 and w[0] <= 3 * groups


def whole(elements: int) -> int:
    """Elements rounded up to whole cache lines."""
    return -(-elements // 16) * 16


def pitch(elements: int, dtype: str) -> int:
    """Elements from one plane to the next: a cache line more where planes would be an even number of lines apart, since their rows
    would share few sets of the cache then.
    """
    line = LINE_BYTES // ITEM_BYTES[dtype]
    return elements if elements % (2 * line) else elements + line


def scratch_layout(dtype: str, *parts: int, table: int) -> tuple[list[int], int, int]:
    """(start of each part, start of the table in int64 words, elements in all) of a worker's scratch."""
    starts, total = [], 0
    for part in parts:
        starts.append(total)
        total += whole(part)
    return starts, total * ITEM_BYTES[dtype] // 8, total + whole(table * 8 // ITEM_BYTES[dtype])
