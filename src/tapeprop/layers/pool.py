"""Pooling over (N, C, L), (N, C, H, W) and (N, C, D, H, W)."""

from __future__ import annotations

from typing import Any, ClassVar

from tapeprop import ops
from tapeprop.errors import GraphError
from tapeprop.ir import Tensor
from tapeprop.ir.dims import text
from tapeprop.layers import arguments
from tapeprop.layers.layer import Layer, misfit

Sizes = int | tuple[int, ...]

_IMAGES = {
    1: ("(N, C, L)", "sequences of rank 3"),
    2: ("(N, C, H, W)", "images of rank 4"),
    3: ("(N, C, D, H, W)", "volumes of rank 5"),
}
_MAX = {1: ops.max_pool1d, 2: ops.max_pool2d, 3: ops.max_pool3d}
_AVG = {1: ops.avg_pool1d, 2: ops.avg_pool2d, 3: ops.avg_pool3d}
_LP = {1: ops.lp_pool1d, 2: ops.lp_pool2d, 3: ops.lp_pool3d}


class _Spatial(Layer):
    """A layer over (N, C, *spatial) with `rank` spatial axes."""

    rank: ClassVar[int]

    def check_images(self, x: Tensor) -> None:
        """ShapeError unless x has the rank."""
        if x.ndim != self.rank + 2:
            axes, images = _IMAGES[self.rank]
            raise misfit(f"{type(self).__name__} expects {axes}, got {text(x.shape)}: give {images}")


class _Windows(_Spatial):
    """What pools with windows share: their geometry."""

    filter_size: Sizes
    stride: Sizes
    padding: Any
    dilation: Sizes = 1

    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], arguments.Sides]:
        """(filter size, stride, padding) in plain form, for each axis; padding as ((top, bottom), (left, right)).

        GraphError where they are out of range.
        """
        name = type(self).__name__
        size = arguments.per_axis(name, "filter_size", self.filter_size, self.rank)
        dilation = arguments.per_axis(name, "dilation", self.dilation, self.rank)
        extents = [step * (n - 1) + 1 for n, step in zip(size, dilation)]
        padding = arguments.sides(name, self.padding, extents)
        if any(2 * max(side) > extent for side, extent in zip(padding, extents)):
            window = " x ".join(map(str, extents))
            raise GraphError(
                f"{name}: expected padding of at most half the window, {window}, got {self.padding!r}: pad less"
            )
        return size, arguments.per_axis(name, "stride", self.stride, self.rank), padding


class _Pool(_Windows):
    """The maximum or mean of windows; see Pool2D."""

    def __init__(self, filter_size: Sizes = 2, stride: Sizes = 2, mode: str = "max", padding: Any = "valid"):
        self.filter_size = filter_size
        self.stride = stride
        self.mode = mode
        self.padding = padding
        self.geometry()

    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], arguments.Sides]:
        """See `_Windows`."""
        if self.mode not in ("max", "avg"):
            raise GraphError(f'{type(self).__name__}: expected mode to be "max" or "avg", got {self.mode!r}')
        return super().geometry()

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, *spatial). Gives (N, C, *pooled)."""
        self.check_images(x)
        return (_MAX if self.mode == "max" else _AVG)[self.rank](x, *self.geometry())


class _MaxPool(_Windows):
    """The maximum of windows; see MaxPool2D."""

    def __init__(
        self,
        filter_size: Sizes = 2,
        stride: Sizes = 2,
        padding: Any = "valid",
        dilation: Sizes = 1,
        ceil_mode: bool = False,
    ):
        self.filter_size = filter_size
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode
        self.geometry()

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, *spatial). Gives (N, C, *pooled)."""
        self.check_images(x)
        return _MAX[self.rank](x, *self.geometry(), self.dilation, self.ceil_mode)


class _AvgPool(_Windows):
    """The mean of windows; see AvgPool2D."""

    def __init__(
        self,
        filter_size: Sizes = 2,
        stride: Sizes = 2,
        padding: Any = "valid",
        count_include_pad: bool = True,
        ceil_mode: bool = False,
    ):
        self.filter_size = filter_size
        self.stride = stride
        self.padding = padding
        self.count_include_pad = count_include_pad
        self.ceil_mode = ceil_mode
        self.geometry()

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, *spatial). Gives (N, C, *pooled)."""
        self.check_images(x)
        return _AVG[self.rank](x, *self.geometry(), self.count_include_pad, self.ceil_mode)


class _LpPool(_Windows):
    """The p-norm of windows; see LpPool2D."""

    def __init__(
        self,
        p: float,
        filter_size: Sizes = 2,
        stride: Sizes = 2,
        padding: Any = "valid",
        ceil_mode: bool = False,
    ):
        name = type(self).__name__
        self.p = p
        if arguments.number(name, "p", p) <= 0:
            raise GraphError(f"{name}: expected p to be a number > 0, got {p!r}")
        self.filter_size = filter_size
        self.stride = stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.geometry()

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, *spatial). Gives (N, C, *pooled)."""
        self.check_images(x)
        return _LP[self.rank](x, self.p, *self.geometry(), self.ceil_mode)


class _GlobalAvgPool(_Spatial):
    """The mean of each channel; see GlobalAvgPool2D."""

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, *spatial). Gives (N, C, 1, ...). ShapeError for another rank."""
        self.check_images(x)
        return ops.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


class _GlobalMaxPool(_Spatial):
    """The maximum of each channel; see GlobalMaxPool2D."""

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, *spatial). Gives (N, C, 1, ...). ShapeError for another rank."""
        self.check_images(x)
        return ops.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)


class _AdaptiveAvgPool(_Spatial):
    """Means such that sizes remain; see AdaptiveAvgPool2D."""

    def __init__(self, out_size: int | tuple[int | None, ...] | None):
        self.out_size = out_size
        self.sizes()

    def sizes(self) -> tuple[int | None, ...]:
        """The size of each axis of the result, None where it stays. GraphError where they are out of range."""
        name, given = type(self).__name__, self.out_size
        found = tuple(given) if isinstance(given, tuple | list) else (given,) * self.rank
        if len(found) != self.rank:
            raise GraphError(f"{name}: expected out_size to be an int, None or {self.rank} of them, got {given!r}")
        return tuple(None if size is None else arguments.whole(name, "every out_size", size) for size in found)

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, *spatial). Gives (N, C, *out_size). ShapeError for another rank."""
        self.check_images(x)
        return ops.adaptive_avg_pool(x, self.sizes())


# ---- one, two and three dimensions


class Pool1D(_Pool):
    """The maximum or mean of windows: (N, C, L) -> (N, C, L'). See Pool2D."""

    rank = 1


class Pool2D(_Pool):
    """The maximum or mean of windows: (N, C, H, W) -> (N, C, H', W'), H' = (H + top + bottom - filter) // stride + 1.

    filter_size, stride: an int or (vertical, horizontal). mode: "max" or "avg". padding: as Conv2D's; -inf for the
    maximum, zeros that count for the mean. GraphError for arguments out of range; ShapeError, in trace, for another
    rank or an image smaller than the window.
    """

    rank = 2


class Pool3D(_Pool):
    """The maximum or mean of windows: (N, C, D, H, W) -> (N, C, D', H', W'). See Pool2D."""

    rank = 3


class MaxPool1D(_MaxPool):
    """The maximum of windows: (N, C, L) -> (N, C, L'). See MaxPool2D."""

    rank = 1


class MaxPool2D(_MaxPool):
    """Pool2D with mode="max"; a tie goes to the first element of the window, in row-major order (torch.nn.MaxPool2d).

    dilation: the distance of neighbours in a window, which then covers dilation * (filter - 1) + 1. ceil_mode: the last
    window may reach beyond the padding, if it starts in the image or in the padding before it.
    """

    rank = 2


class MaxPool3D(_MaxPool):
    """The maximum of windows: (N, C, D, H, W) -> (N, C, D', H', W'). See MaxPool2D."""

    rank = 3


class AvgPool1D(_AvgPool):
    """The mean of windows: (N, C, L) -> (N, C, L'). See AvgPool2D."""

    rank = 1


class AvgPool2D(_AvgPool):
    """Pool2D with mode="avg" (torch.nn.AvgPool2d).

    count_include_pad: whether padding counts as zeros, or a sum is divided by the number of a window's real elements.
    ceil_mode: as MaxPool2D's; what a window has beyond the padding never counts.
    """

    rank = 2


class AvgPool3D(_AvgPool):
    """The mean of windows: (N, C, D, H, W) -> (N, C, D', H', W'). See AvgPool2D."""

    rank = 3


class LpPool1D(_LpPool):
    """The p-norm of windows: (N, C, L) -> (N, C, L'). See LpPool2D."""

    rank = 1


class LpPool2D(_LpPool):
    """(sum of |x|^p over each window)^(1/p): (N, C, H, W) -> (N, C, H', W') (torch.nn.LPPool2d; ONNX, LpPool).

    p: > 0. Where the sum is 0 the gradient is 0. The other arguments as MaxPool2D's; padding is zeros.
    """

    rank = 2


class LpPool3D(_LpPool):
    """The p-norm of windows: (N, C, D, H, W) -> (N, C, D', H', W'). See LpPool2D."""

    rank = 3


class GlobalAvgPool1D(_GlobalAvgPool):
    """The mean of each channel: (N, C, L) -> (N, C, 1)."""

    rank = 1


class GlobalAvgPool2D(_GlobalAvgPool):
    """The mean of each channel: (N, C, H, W) -> (N, C, 1, 1)."""

    rank = 2


class GlobalAvgPool3D(_GlobalAvgPool):
    """The mean of each channel: (N, C, D, H, W) -> (N, C, 1, 1, 1)."""

    rank = 3


class GlobalMaxPool1D(_GlobalMaxPool):
    """The maximum of each channel: (N, C, L) -> (N, C, 1); see GlobalMaxPool2D."""

    rank = 1


class GlobalMaxPool2D(_GlobalMaxPool):
    """The maximum of each channel: (N, C, H, W) -> (N, C, 1, 1); equal maxima share the gradient, as in `ops.max`."""

    rank = 2


class GlobalMaxPool3D(_GlobalMaxPool):
    """The maximum of each channel: (N, C, D, H, W) -> (N, C, 1, 1, 1); see GlobalMaxPool2D."""

    rank = 3


class AdaptiveAvgPool1D(_AdaptiveAvgPool):
    """Means of windows: (N, C, L) -> (N, C, out_size). See AdaptiveAvgPool2D."""

    rank = 1


class AdaptiveAvgPool2D(_AdaptiveAvgPool):
    """Means of windows such that sizes remain: (N, C, H, W) -> (N, C, *out_size) (torch.nn.AdaptiveAvgPool2d).

    out_size: an int, or one per axis; None leaves an axis as it is. Window i of O over H is floor(i H / O) to
    ceil((i + 1) H / O). GraphError for sizes below 1; ShapeError, in trace, for another rank.
    """

    rank = 2


class AdaptiveAvgPool3D(_AdaptiveAvgPool):
    """Means of windows: (N, C, D, H, W) -> (N, C, *out_size). See AdaptiveAvgPool2D."""

    rank = 3
