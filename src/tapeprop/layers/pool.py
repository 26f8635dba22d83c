"""Pooling over (N, C, H, W)."""

from __future__ import annotations

from typing import Any

from tapeprop import ops
from tapeprop.errors import GraphError
from tapeprop.ir import Tensor
from tapeprop.ir.dims import text
from tapeprop.layers import arguments
from tapeprop.layers.layer import Layer, misfit


class Pool2D(Layer):
    """The maximum or mean of windows: (N, C, H, W) -> (N, C, H', W'), H' = (H + top + bottom - filter) // stride + 1.

    filter_size, stride: an int or (vertical, horizontal). mode: "max" or "avg". padding: as Conv2D's; -inf for the
    maximum, zeros that count for the mean. GraphError for arguments out of range; ShapeError, in trace, for another
    rank or an image smaller than the window.
    """

    def __init__(
        self,
        filter_size: int | tuple[int, int] = 2,
        stride: int | tuple[int, int] = 2,
        mode: str = "max",
        padding: Any = "valid",
    ):
        self.filter_size = filter_size
        self.stride = stride
        self.mode = mode
        self.padding = padding
        self.geometry()

    def geometry(self) -> tuple[arguments.Pair, arguments.Pair, arguments.Sides]:
        """(filter size, stride, padding) in plain form: pairs, padding as ((top, bottom), (left, right))."""
        name = type(self).__name__
        if self.mode not in ("max", "avg"):
            raise GraphError(f'{name}: expected mode to be "max" or "avg", got {self.mode!r}')
        size = arguments.pair(name, "filter_size", self.filter_size)
        padding = arguments.sides(name, self.padding, size)
        if any(2 * max(side) > extent for side, extent in zip(padding, size)):
            raise GraphError(
                f"{name}: expected padding of at most half the window, {size[0]} x {size[1]}, got {self.padding!r}: "
                "pad less"
            )
        return size, arguments.pair(name, "stride", self.stride), padding

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). Gives (N, C, H', W')."""
        _expect_images(self, x)
        pool = ops.max_pool2d if self.mode == "max" else ops.avg_pool2d
        return pool(x, *self.geometry())


class MaxPool2D(Pool2D):
    """Pool2D with mode="max"; a tie goes to the first element of the window."""

    def __init__(
        self, filter_size: int | tuple[int, int] = 2, stride: int | tuple[int, int] = 2, padding: Any = "valid"
    ):
        super().__init__(filter_size, stride, "max", padding)


class AvgPool2D(Pool2D):
    """Pool2D with mode="avg"; padding counts."""

    def __init__(
        self, filter_size: int | tuple[int, int] = 2, stride: int | tuple[int, int] = 2, padding: Any = "valid"
    ):
        super().__init__(filter_size, stride, "avg", padding)


class GlobalAvgPool2D(Layer):
    """The mean of each channel: (N, C, H, W) -> (N, C, 1, 1)."""

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). Gives (N, C, 1, 1). ShapeError for another rank."""
        _expect_images(self, x)
        return ops.mean(x, axis=(2, 3), keepdims=True)


def _expect_images(layer: Layer, x: Tensor) -> None:
    if x.ndim != 4:
        raise misfit(f"{type(layer).__name__} expects (N, C, H, W), got {text(x.shape)}: give images of rank 4")
