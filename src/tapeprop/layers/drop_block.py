"""DropBlock: dropout of neighbourhoods."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tapeprop import ops
from tapeprop.ir import Dim, Tensor, UndecidedError
from tapeprop.ir.dims import product, text
from tapeprop.layers import arguments
from tapeprop.layers.dropout import Dropout
from tapeprop.layers.layer import misfit, tracing
from tapeprop.ops.elementwise import compute
from tapeprop.ops.scalar import equal, less, where


class DropBlock(Dropout):
    """In training, blocks of neighbours in each channel become 0 (Ghiasi, Lin and Le 2018, section 3 and algorithm 1).

    A block of `block_size` elements along every axis (or the whole axis where that is shorter) begins at each place where it fits,
    with the probability that lets about `dropout_rate` of all elements fall into blocks (section 3, eq. 1; blocks that overlap are
    counted twice there, so somewhat fewer do). What stays is scaled by the number of elements over the number of those that stay.

    Outside of training, x itself. Masks follow from the seed as Dropout's, and backward has that of its forward. GraphError for
    arguments out of range; ShapeError, in trace, for an x of another rank.
    """

    #: How the shape is written.
    expected: ClassVar[str]

    def __init__(self, dropout_rate: float = 0.1, block_size: int = 7, random_state: int | None = None):
        super().__init__(dropout_rate, random_state)
        self.block_size = arguments.whole(type(self).__name__, "block_size", block_size)

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, ...) of the layer's rank. Gives the same shape."""
        name = type(self).__name__
        rate = arguments.fraction(name, "dropout_rate", self.dropout_rate)
        if x.ndim != self.expected.count(",") + 1:
            raise misfit(f"{name} expects {self.expected}, got {text(x.shape)}: use the DropBlock of that rank")
        if not tracing().training or rate == 0:
            return x
        sizes = [size for size in x.shape[2:] if not isinstance(size, Dim)]
        if len(sizes) < x.ndim - 2:
            raise UndecidedError(f"the probability of a block in {text(x.shape)}")
        blocks = [min(arguments.whole(name, "block_size", self.block_size), size) for size in sizes]
        places = [size - block + 1 for size, block in zip(sizes, blocks)]
        chance = min(1.0, rate * math.prod(sizes) / (math.prod(blocks) * math.prod(places)))
        ones = ops.expand(np.ones([1] * x.ndim, x.dtype), (*x.shape[:2], *places))
        seeds = self.drop(ones, 1 - chance)  # what stays begins a block
        (kept,) = compute(lambda seed: where(less(0.0, seed), 0.0, 1.0), _blocks(seeds, blocks), label="kept")
        # where nothing stays, there is nothing to scale
        (factor,) = compute(lambda share: where(equal(share, 0.0), 1.0, 1.0 / share), ops.mean(kept), label="factor")
        return x * (kept * factor)


def _blocks(seeds: Tensor, blocks: list[int]) -> Tensor:
    """Where a block covers an element, the largest of the seeds at the blocks' first elements: 0 where none does."""
    widths = [(0, 0), (0, 0), *((block - 1, block - 1) for block in blocks)]
    mask = ops.pad(seeds, widths)
    for axis, block in enumerate(blocks, 2):
        *before, size = mask.shape[: axis + 1]
        after = product(mask.shape[axis + 1 :])
        n, c = before[0], product(before[1:])
        # the window lies along rows where rows are the axis: columns of one element would fill no vector
        plane, window = (
            ((n, 1, c, size), (1, block))
            if isinstance(after, int) and after == 1
            else ((n, c, size, after), (block, 1))
        )
        shape = (*before, size - block + 1, *mask.shape[axis + 1 :])
        mask = ops.reshape(ops.max_pool2d(ops.reshape(mask, plane), window, 1), shape)
    return mask


class DropBlock1D(DropBlock):
    """DropBlock of (N, C, L)."""

    expected: ClassVar = "(N, C, L)"


class DropBlock2D(DropBlock):
    """DropBlock of (N, C, H, W)."""

    expected: ClassVar = "(N, C, H, W)"


class DropBlock3D(DropBlock):
    """DropBlock of (N, C, D, H, W)."""

    expected: ClassVar = "(N, C, D, H, W)"
