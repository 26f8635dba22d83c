"""Convolution: Conv2D."""

from __future__ import annotations

from typing import Any

from tapeprop import ops
from tapeprop.errors import GraphError
from tapeprop.ir import Size, Tensor, UndecidedError
from tapeprop.ir.dims import at_least, same, text
from tapeprop.layers import arguments
from tapeprop.layers.initializers import Initializer
from tapeprop.layers.layer import Layer, misfit


class Conv2D(Layer):
    """Cross-correlation over (N, in_channels, H, W) -> (N, out_channels, H', W'), as torch.nn.Conv2d.

    filter_size, stride, dilation: an int or (vertical, horizontal). padding: "same", (extent - 1) // 2 on each side,
    where extent = dilation * (filter_size - 1) + 1; "valid", none; an int; (vertical, horizontal); or ((top, bottom),
    (left, right)). H' = (H + top + bottom - extent) // stride + 1.

    weight: (out_channels, in_channels // groups, filter height, filter width); bias: (out_channels,), zeros at first,
    or None. GraphError for arguments out of range; ShapeError, in trace, for an x of another rank or channel count, or
    smaller than the filter.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        filter_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: Any = "same",
        groups: int = 1,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        initializer: str | Initializer = "he",
        random_state: int | None = None,
    ):
        self.in_channels = arguments.whole("Conv2D", "in_channels", in_channels)
        self.out_channels = arguments.whole("Conv2D", "out_channels", out_channels)
        self.filter_size = filter_size
        self.stride = stride
        self.padding = padding
        self.groups = arguments.whole("Conv2D", "groups", groups)
        self.dilation = dilation
        if in_channels % groups or out_channels % groups:
            raise GraphError(
                f"Conv2D: expected in_channels and out_channels to be multiples of groups={groups}, "
                f"got {in_channels} and {out_channels}"
            )
        self.geometry()
        self.initializer = initializer
        self.random_state = arguments.seed("Conv2D", "random_state", random_state)
        height, width = arguments.pair("Conv2D", "filter_size", filter_size)
        shape = (self.out_channels, self.in_channels // self.groups, height, width)
        self.weight = self.parameter(shape, initializer, name="weight")
        self.bias = self.parameter((self.out_channels,), name="bias") if bias else None

    def geometry(self) -> tuple[arguments.Pair, arguments.Sides, arguments.Pair, arguments.Pair]:
        """(stride, padding, dilation, extent) in plain form: pairs, padding as ((top, bottom), (left, right))."""
        filter_size = arguments.pair("Conv2D", "filter_size", self.filter_size)
        stride = arguments.pair("Conv2D", "stride", self.stride)
        dilation = arguments.pair("Conv2D", "dilation", self.dilation)
        extent = dilation[0] * (filter_size[0] - 1) + 1, dilation[1] * (filter_size[1] - 1) + 1
        return stride, arguments.sides("Conv2D", self.padding, extent), dilation, extent

    def expected_input(self) -> tuple[int | None, ...]:
        """(N, in_channels, H, W)."""
        return None, self.in_channels, None, None

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Gives (N, out_channels, H', W')."""
        if x.ndim != 4:
            raise misfit(
                f"Conv2D expects (N, {self.in_channels}, H, W), got {text(x.shape)}: give images of rank 4, "
                f"or put Reshape({self.in_channels}, H, W) before it"
            )
        channels = x.shape[1]
        if not same(channels, self.in_channels):
            raise misfit(
                f"Conv2D expects {self.in_channels} channels on axis 1, got {channels} in {text(x.shape)}: {self._remedy(x)}"
            )
        stride, padding, dilation, extent = self.geometry()
        for size, (before, after), least in zip(x.shape[2:], padding, extent):
            if not _may_be_at_least(size + before + after, least):
                raise misfit(
                    f"Conv2D expects an image of at least its filter, {extent[0]} x {extent[1]}, got {text(x.shape)} "
                    f"with padding {padding}: use a smaller filter or more padding"
                )
        return ops.conv2d(
            x, self.weight, self.bias, stride=stride, padding=padding, dilation=dilation, groups=self.groups
        )

    def _remedy(self, x: Tensor) -> str:
        channels = x.shape[1]
        ways = [f"add Conv2D({channels}, {self.in_channels}, 1) before it"]
        if isinstance(channels, int) and channels % self.groups == 0:
            ways.insert(0, f"write {self.written(in_channels=channels)}")
        if x.shape[3] == self.in_channels:
            ways.insert(0, "give images with the channels on axis 1, as X.transpose(0, 3, 1, 2)")
        return " or ".join(ways)


def _may_be_at_least(size: Size, bound: int) -> bool:
    """False only where it is known; an open size is checked by the op once the call's size is known."""
    try:
        return at_least(size, bound)
    except UndecidedError:
        return True
