"""Convolution: Conv1D, Conv2D, Conv3D, and channel by channel: DepthConv1D, DepthConv2D, DepthConv3D."""

from __future__ import annotations

from typing import Any, ClassVar

from tapeprop import ops
from tapeprop.errors import GraphError
from tapeprop.ir import Size, Tensor, UndecidedError
from tapeprop.ir.dims import at_least, same, text
from tapeprop.layers import arguments
from tapeprop.layers.initializers import Initializer
from tapeprop.layers.layer import Layer, misfit

Sizes = int | tuple[int, ...]
AXES = {1: "L", 2: "H, W", 3: "D, H, W"}


class Filters(Layer):
    """What layers that move filters over images of `rank` axes have in common."""

    rank: ClassVar[int]
    in_channels: int
    filter_size: Sizes
    stride: Sizes
    padding: Any
    dilation: Sizes

    def geometry(self) -> tuple[tuple[int, ...], tuple[arguments.Pair, ...], tuple[int, ...], tuple[int, ...]]:
        """(stride, padding, dilation, extent) in plain form: a number for each axis, padding as ((top, bottom), (left, right))."""
        name = type(self).__name__
        filter_size = arguments.per_axis(name, "filter_size", self.filter_size, self.rank)
        stride = arguments.per_axis(name, "stride", self.stride, self.rank)
        dilation = arguments.per_axis(name, "dilation", self.dilation, self.rank)
        extent = tuple(step * (taps - 1) + 1 for step, taps in zip(dilation, filter_size))
        return stride, arguments.sides(name, self.padding, extent), dilation, extent

    def expected_input(self) -> tuple[int | None, ...]:
        """(N, in_channels, H, W)."""
        return None, self.in_channels, *[None] * self.rank

    def check_images(self, x: Tensor) -> None:
        """ShapeError unless x has the rank and the channels."""
        name, axes = type(self).__name__, AXES[self.rank]
        if x.ndim != self.rank + 2:
            raise misfit(
                f"{name} expects (N, {self.in_channels}, {axes}), got {text(x.shape)}: give images of rank {self.rank + 2}, "
                f"or put Reshape({self.in_channels}, {axes}) before it"
            )
        channels = x.shape[1]
        if not same(channels, self.in_channels):
            raise misfit(
                f"{name} expects {self.in_channels} channels on axis 1, got {channels} in {text(x.shape)}: "
                f"{' or '.join(self.remedies(x))}"
            )

    def remedies(self, x: Tensor) -> list[str]:
        """What would let x pass, where its channels do not fit."""
        ways = [f"add Conv{self.rank}D({x.shape[1]}, {self.in_channels}, 1) before it"]
        if x.shape[-1] == self.in_channels:
            axes = ", ".join(map(str, (0, self.rank + 1, *range(1, self.rank + 1))))
            ways.insert(0, f"give images with the channels on axis 1, as X.transpose({axes})")
        return ways


class Convolution(Filters):
    """Cross-correlation of images with `rank` axes: see Conv1D, Conv2D, Conv3D."""

    out_channels: int
    groups: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        filter_size: Sizes,
        stride: Sizes = 1,
        padding: Any = "same",
        groups: int = 1,
        dilation: Sizes = 1,
        bias: bool = True,
        initializer: str | Initializer = "he",
        random_state: int | None = None,
    ):
        name = type(self).__name__
        self.in_channels = arguments.whole(name, "in_channels", in_channels)
        self.out_channels = arguments.whole(name, "out_channels", out_channels)
        self.filter_size = filter_size
        self.stride = stride
        self.padding = padding
        self.groups = arguments.whole(name, "groups", groups)
        self.dilation = dilation
        if in_channels % groups or out_channels % groups:
            raise GraphError(
                f"{name}: expected in_channels and out_channels to be multiples of groups={groups}, "
                f"got {in_channels} and {out_channels}"
            )
        self._draw_later(bias, initializer, random_state)

    def _draw_later(self, bias: bool, initializer: str | Initializer, random_state: int | None) -> None:
        """The parameters, once all that decides their shapes is there and checked."""
        name = type(self).__name__
        self.geometry()
        self.initializer = initializer
        self.random_state = arguments.seed(name, "random_state", random_state)
        taps = arguments.per_axis(name, "filter_size", self.filter_size, self.rank)
        shape = (self.out_channels, self.in_channels // self.groups, *taps)
        self.weight = self.parameter(shape, initializer, name="weight")
        self.bias = self.parameter((self.out_channels,), name="bias") if bias else None

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Gives (N, out_channels, H', W')."""
        self.check_images(x)
        stride, padding, dilation, extent = self.geometry()
        for size, (before, after), least in zip(x.shape[2:], padding, extent):
            if not _may_be_at_least(size + before + after, least):
                raise misfit(
                    f"{type(self).__name__} expects an image of at least its filter, {' x '.join(map(str, extent))}, "
                    f"got {text(x.shape)} with padding {padding}: use a smaller filter or more padding"
                )
        weight, bias, groups = self.weight, self.bias, self.groups
        if self.rank == 1:
            return ops.conv1d(x, weight, bias, *stride, *padding, *dilation, groups)
        convolution = ops.conv2d if self.rank == 2 else ops.conv3d
        return convolution(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)

    def remedies(self, x: Tensor) -> list[str]:
        """A layer for as many channels, where its groups divide them, before other ways."""
        channels, ways = x.shape[1], super().remedies(x)
        if isinstance(channels, int) and channels % self.groups == 0:
            ways.insert(len(ways) - 1, f"write {self.written(in_channels=channels)}")
        return ways


class Conv1D(Convolution):
    """Cross-correlation over (N, in_channels, L) -> (N, out_channels, L'), as torch.nn.Conv1d.

    filter_size, stride, dilation: an int. padding: "same", (extent - 1) // 2 on each side, where extent = dilation *
    (filter_size - 1) + 1; "valid", none; an int; or (left, right). L' = (L + left + right - extent) // stride + 1.

    weight: (out_channels, in_channels // groups, filter_size); bias and errors as for Conv2D. A batch of shape (N, L) gets its
    channel by Reshape(1, L).
    """

    rank = 1


class Conv2D(Convolution):
    """Cross-correlation over (N, in_channels, H, W) -> (N, out_channels, H', W'), as torch.nn.Conv2d.

    filter_size, stride, dilation: an int or (vertical, horizontal). padding: "same", (extent - 1) // 2 on each side,
    where extent = dilation * (filter_size - 1) + 1; "valid", none; an int; (vertical, horizontal); or ((top, bottom),
    (left, right)). H' = (H + top + bottom - extent) // stride + 1.

    weight: (out_channels, in_channels // groups, filter height, filter width); bias: (out_channels,), zeros at first,
    or None. GraphError for arguments out of range; ShapeError, in trace, for an x of another rank or channel count, or
    smaller than the filter.
    """

    rank = 2


class Conv3D(Convolution):
    """Cross-correlation over (N, in_channels, D, H, W) -> (N, out_channels, D', H', W'), as torch.nn.Conv3d.

    filter_size, stride, dilation: an int or three, of depth, height and width. padding: "same", "valid", an int, three ints, or
    ((front, back), (top, bottom), (left, right)), as for Conv2D. weight: (out_channels, in_channels // groups, filter depth, filter
    height, filter width). All else as Conv2D.
    """

    rank = 3


class DepthConvolution(Convolution):
    """Cross-correlation channel by channel: see DepthConv1D, DepthConv2D, DepthConv3D."""

    def __init__(
        self,
        in_channels: int,
        filter_size: Sizes,
        stride: Sizes = 1,
        padding: Any = "same",
        dilation: Sizes = 1,
        bias: bool = True,
        multiplier: int = 1,
        initializer: str | Initializer = "he",
        random_state: int | None = None,
    ):
        name = type(self).__name__
        self.in_channels = self.groups = arguments.whole(name, "in_channels", in_channels)
        self.filter_size = filter_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.multiplier = arguments.whole(name, "multiplier", multiplier)
        self.out_channels = self.in_channels * self.multiplier
        self._draw_later(bias, initializer, random_state)

    def remedies(self, x: Tensor) -> list[str]:
        """A layer for as many channels, before other ways."""
        channels, ways = x.shape[1], Filters.remedies(self, x)
        if isinstance(channels, int):
            ways.insert(len(ways) - 1, f"write {self.written(in_channels=channels)}")
        return ways


class DepthConv1D(DepthConvolution):
    """Each channel's own filters over (N, in_channels, L) -> (N, in_channels * multiplier, L').

    Conv1D(in_channels, in_channels * multiplier, ..., groups=in_channels): result channel c * multiplier + m comes from channel c.
    weight: (in_channels * multiplier, 1, filter_size). Sizes, arguments and errors as for Conv1D.
    """

    rank = 1


class DepthConv2D(DepthConvolution):
    """Each channel's own filters over (N, in_channels, H, W) -> (N, in_channels * multiplier, H', W').

    Conv2D(in_channels, in_channels * multiplier, ..., groups=in_channels): result channel c * multiplier + m comes from channel c, as
    in Howard et al., "MobileNets" (2017), section 3.1, where multiplier is 1. weight: (in_channels * multiplier, 1, filter
    height, filter width). Sizes, arguments and errors as for Conv2D.
    """

    rank = 2


class DepthConv3D(DepthConvolution):
    """Each channel's own filters over (N, in_channels, D, H, W) -> (N, in_channels * multiplier, D', H', W').

    Conv3D(in_channels, in_channels * multiplier, ..., groups=in_channels); weight: (in_channels * multiplier, 1, filter depth, filter
    height, filter width). Sizes, arguments and errors as for Conv3D.
    """

    rank = 3


def _may_be_at_least(size: Size, bound: int) -> bool:
    """False only where it is known; an open size is checked by the op once the call's size is known."""
    try:
        return at_least(size, bound)
    except UndecidedError:
        return True
