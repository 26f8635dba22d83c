"""Transposed convolution: ConvTranspose1D, ConvTranspose2D, ConvTranspose3D."""

from __future__ import annotations

from typing import Any

from tapeprop import ops
from tapeprop.errors import GraphError
from tapeprop.ir import Tensor
from tapeprop.ir.dims import text
from tapeprop.layers import arguments
from tapeprop.layers.conv import Filters, Sizes
from tapeprop.layers.initializers import Initializer
from tapeprop.layers.layer import misfit


class ConvTranspose(Filters):
    """Transposed convolution of images with `rank` axes: see ConvTranspose1D, ConvTranspose2D, ConvTranspose3D."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        filter_size: Sizes,
        stride: Sizes = 1,
        padding: Any = 0,
        output_padding: Sizes = 0,
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
        self.output_padding = output_padding
        self.groups = arguments.whole(name, "groups", groups)
        self.dilation = dilation
        if in_channels % groups or out_channels % groups:
            raise GraphError(
                f"{name}: expected in_channels and out_channels to be multiples of groups={groups}, "
                f"got {in_channels} and {out_channels}"
            )
        self.extra()
        self.initializer = initializer
        self.random_state = arguments.seed(name, "random_state", random_state)
        taps = arguments.per_axis(name, "filter_size", filter_size, self.rank)
        shape = (self.in_channels, self.out_channels // self.groups, *taps)
        self.weight = self.parameter(shape, initializer, name="weight")
        self.bias = self.parameter((self.out_channels,), name="bias") if bias else None

    def extra(self) -> tuple[int, ...]:
        """output_padding in plain form. GraphError where it is not smaller than stride or dilation."""
        name = type(self).__name__
        extra = arguments.per_axis(name, "output_padding", self.output_padding, self.rank, 0)
        stride, _, dilation, _ = self.geometry()
        if any(more >= max(pair) for more, *pair in zip(extra, stride, dilation)):
            raise GraphError(
                f"{name}: expected output_padding smaller than stride={self.stride} or dilation={self.dilation}, got "
                f"{self.output_padding!r}"
            )
        return extra

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Gives (N, out_channels, H', W')."""
        self.check_images(x)
        (stride, padding, dilation, extent), extra = self.geometry(), self.extra()
        for n, step, (before, after), reach, more in zip(x.shape[2:], stride, padding, extent, extra):
            size = (n - 1) * step - before - after + reach + more
            if isinstance(size, int) and size < 1:
                raise misfit(
                    f"{type(self).__name__} expects a result of at least one pixel, got {size} from {text(x.shape)} with padding "
                    f"{padding}: use less padding"
                )
        return ops.conv_transpose(x, self.weight, self.bias, stride, padding, extra, dilation, self.groups)

    def remedies(self, x: Tensor) -> list[str]:
        """A layer for as many channels, where its groups divide them, before other ways."""
        channels, ways = x.shape[1], super().remedies(x)
        if isinstance(channels, int) and channels % self.groups == 0:
            ways.insert(len(ways) - 1, f"write {self.written(in_channels=channels)}")
        return ways


class ConvTranspose1D(ConvTranspose):
    """Transposed convolution of (N, in_channels, L) -> (N, out_channels, L'), as torch.nn.ConvTranspose1d.

    filter_size, stride, output_padding, dilation: an int. padding: an int or (left, right). L' = (L - 1) * stride - left - right +
    dilation * (filter_size - 1) + output_padding + 1. weight: (in_channels, out_channels // groups, filter_size). All else as
    ConvTranspose2D.
    """

    rank = 1


class ConvTranspose2D(ConvTranspose):
    """Transposed convolution of (N, in_channels, H, W) -> (N, out_channels, H', W'), as torch.nn.ConvTranspose2d.

    What the gradient of a Conv2D with the same weight, stride, padding and dilation makes of x: each pixel adds its multiple of
    the filter to the result, `stride` apart; padding is taken off at the edges. H' = (H - 1) * stride - top - bottom + dilation *
    (filter height - 1) + output_padding + 1.

    filter_size, stride, dilation: an int or (vertical, horizontal). padding: an int, a pair, or ((top, bottom), (left, right)); also
    "valid", none, and "same", (extent - 1) // 2 on each side. output_padding: rows and columns more at the end, smaller than
    stride or dilation.

    weight: (in_channels, out_channels // groups, filter height, filter width); bias: (out_channels,), zeros at first, or None.
    GraphError for arguments out of range; ShapeError, in trace, for an x of another rank or channel count, or where nothing is left.
    """

    rank = 2


class ConvTranspose3D(ConvTranspose):
    """Transposed convolution of (N, in_channels, D, H, W) -> (N, out_channels, D', H', W'), as torch.nn.ConvTranspose3d.

    Arguments are an int or three, of depth, height and width; padding also a pair for each. weight: (in_channels, out_channels //
    groups, filter depth, filter height, filter width). All else as ConvTranspose2D.
    """

    rank = 3
