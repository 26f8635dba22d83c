"""Pooling in one to three dimensions, by windows of two: the functions behind the layers.

One dimension is an image of height 1. Three are two pools, first of each image of a volume, then along the depth: the maximum
and the mean of a box are those of its slices. A tie of maxima goes to the first slice and in it to the first element, hence
to the first in row-major order. What lies between the two is renamed, not moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tapeprop.errors import ShapeError
from tapeprop.ir import Dim, Shape, Tensor, UndecidedError
from tapeprop.ir.dims import text
from tapeprop.ops.op import as_tensor, check_rank, record
from tapeprop.ops.pool.geometry import overhang, pool_attributes, pooled_shape

AXES = {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}
Attributes = dict[str, Any]


def max_pool1d(
    x: Any, size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """The maximum of each window: (N, C, L) -> (N, C, L'). See `max_pool2d`."""
    return _max_pool("max_pool1d", 1, x, size, stride, padding, dilation, ceil_mode)


def max_pool2d(
    x: Any, size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """The maximum of each window: (N, C, H, W) -> (N, C, (H + top + bottom - extent) // stride + 1, likewise).

    size, stride, dilation: an int or (vertical, horizontal); stride None: the size; extent = dilation (size - 1) + 1.
    padding: ((top, bottom), (left, right)) of -inf, or an int for all sides. ceil_mode: a last window may reach beyond
    the padding, if it starts in the image or in the padding before it (torch.nn.MaxPool2d). A tie goes to the first
    element of the window in row-major order. ShapeError where the padding exceeds half the extent, or the extent the
    padded image.
    """
    return _max_pool("max_pool2d", 2, x, size, stride, padding, dilation, ceil_mode)


def max_pool3d(
    x: Any, size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """The maximum of each window: (N, C, D, H, W) -> (N, C, D', H', W'). See `max_pool2d`."""
    return _max_pool("max_pool3d", 3, x, size, stride, padding, dilation, ceil_mode)


def avg_pool1d(
    x: Any, size: Any, stride: Any = None, padding: Any = 0, count_include_pad: bool = True, ceil_mode: bool = False
) -> Tensor:
    """The mean of each window: (N, C, L) -> (N, C, L'). See `avg_pool2d`."""
    return _avg_pool("avg_pool1d", 1, x, size, stride, padding, count_include_pad, ceil_mode)


def avg_pool2d(
    x: Any, size: Any, stride: Any = None, padding: Any = 0, count_include_pad: bool = True, ceil_mode: bool = False
) -> Tensor:
    """The mean of each window: (N, C, H, W) -> (N, C, (H + top + bottom - size) // stride + 1, likewise).

    count_include_pad: whether padding counts as zeros, or a window's sum is divided by the number of its real elements.
    What a window has beyond the padding, with ceil_mode, never counts (torch.nn.AvgPool2d). Else as `max_pool2d`.
    """
    return _avg_pool("avg_pool2d", 2, x, size, stride, padding, count_include_pad, ceil_mode)


def avg_pool3d(
    x: Any, size: Any, stride: Any = None, padding: Any = 0, count_include_pad: bool = True, ceil_mode: bool = False
) -> Tensor:
    """The mean of each window: (N, C, D, H, W) -> (N, C, D', H', W'). See `avg_pool2d`."""
    return _avg_pool("avg_pool3d", 3, x, size, stride, padding, count_include_pad, ceil_mode)


def lp_pool1d(x: Any, p: float, size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False) -> Tensor:
    """The p-norm of each window: (N, C, L) -> (N, C, L'). See `lp_pool2d`."""
    return _lp_pool("lp_pool1d", 1, x, p, size, stride, padding, ceil_mode)


def lp_pool2d(x: Any, p: float, size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False) -> Tensor:
    """(sum of |x|^p over each window)^(1/p): (N, C, H, W) -> (N, C, H', W'), p > 0.

    As torch.nn.LPPool2d and ONNX' LpPool; the gradient is 0 where the sum is. Windows as in `max_pool2d`, padding is zeros.
    (With ceil_mode torch scales the norm of a window that reaches beyond the image; here it is that of its elements.)
    ShapeError for another p.
    """
    return _lp_pool("lp_pool2d", 2, x, p, size, stride, padding, ceil_mode)


def lp_pool3d(x: Any, p: float, size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False) -> Tensor:
    """The p-norm of each window: (N, C, D, H, W) -> (N, C, D', H', W'). See `lp_pool2d`."""
    return _lp_pool("lp_pool3d", 3, x, p, size, stride, padding, ceil_mode)


def adaptive_avg_pool(x: Any, sizes: int | Sequence[int | None] | None) -> Tensor:
    """Means of windows such that sizes remain: (N, C, *spatial) -> (N, C, *sizes), one to three spatial axes.

    Window i of O over an axis of H is floor(i H / O) to ceil((i + 1) H / O) (torch.nn.AdaptiveAvgPool2d). sizes: an int for
    all axes, or one per axis; None leaves an axis as it is. ShapeError for others; UndecidedError for open sizes, but for
    sizes of 1.
    """
    from tapeprop.ops.reduce import mean
    from tapeprop.ops.resample import resample
    from tapeprop.ops.resample.tables import adaptive

    name, x = "adaptive_avg_pool", as_tensor(x)
    rank = x.ndim - 2
    if rank not in AXES:
        raise ShapeError(f"{name}: expected (N, C, L), (N, C, H, W) or (N, C, D, H, W), got shape {text(x.shape)}")
    given = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,) * rank
    if len(given) != rank or any(size is not None and size < 1 for size in given):
        raise ShapeError(f"{name}: expected a size >= 1 or None for each of {rank} axes, got {sizes}")
    if all(size == 1 for size in given):
        return mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)
    changed = {axis: size for axis, size in enumerate(given, start=2) if size is not None}
    for axis, size in changed.items():
        if isinstance(x.shape[axis], Dim):
            raise UndecidedError(f"{x.shape[axis]} // {size}")
    factors = {axis: divmod(int(x.shape[axis]), size) for axis, size in changed.items()}
    if all(rest == 0 for _, rest in factors.values()):
        windows = [factors[axis][0] if axis in factors else 1 for axis in range(2, x.ndim)]
        return _avg_pool(name, rank, x, windows, windows, 0, True, False)
    for axis, size in changed.items():
        x = resample(x, adaptive(int(x.shape[axis]), size), axis)
    return x


# ---- any number of dimensions


def _max_pool(
    name: str, rank: int, x: Any, size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Tensor:
    x = as_tensor(x)
    check_rank(name, x, rank + 2, AXES[rank])
    attributes = pool_attributes(name, size, stride, padding, dilation, rank)
    if ceil_mode:
        attributes = _reaching(attributes, overhang(x.shape, attributes))
    pooled_shape(name, x.shape, attributes)
    return _by_images(x, attributes, lambda image, window: record("max_pool2d", [image], window)[0])


def _avg_pool(
    name: str, rank: int, x: Any, size: Any, stride: Any, padding: Any, counted: bool, ceil_mode: bool
) -> Tensor:
    x = as_tensor(x)
    check_rank(name, x, rank + 2, AXES[rank])
    attributes = pool_attributes(name, size, stride, padding, rank=rank)
    more = overhang(x.shape, attributes) if ceil_mode else (0,) * rank
    if any(more) and counted:
        # Padding counts, what lies beyond does not: the padding becomes part of the image.
        from tapeprop.ops.join import pad

        x = pad(x, [(0, 0), (0, 0), *attributes["padding"]])
        attributes, counted = {**attributes, "padding": ((0, 0),) * rank}, False
    attributes = _reaching(attributes, more)
    pooled_shape(name, x.shape, attributes)
    return _mean(x, attributes, counted)


def _mean(x: Tensor, attributes: Attributes, counted: bool) -> Tensor:
    further = {"count_include_pad": bool(counted)}
    return _by_images(x, attributes, lambda image, window: record("avg_pool2d", [image], window | further)[0])


def _lp_pool(name: str, rank: int, x: Any, p: float, size: Any, stride: Any, padding: Any, ceil_mode: bool) -> Tensor:
    from tapeprop.ops.elementwise import compute
    from tapeprop.ops.expression import absolute, power, where

    x = as_tensor(x)
    check_rank(name, x, rank + 2, AXES[rank])
    if not 0 < p < float("inf"):
        raise ShapeError(f"{name}: expected a finite p > 0, got {p}; the maximum of |x| is max_pool of abs(x)")
    attributes = pool_attributes(name, size, stride, padding, rank=rank)
    if ceil_mode:
        attributes = _reaching(attributes, overhang(x.shape, attributes))
    pooled_shape(name, x.shape, attributes)
    elements = 1
    for n in attributes["size"]:
        elements *= n

    def raised(a):
        if p in (1, 2):
            return absolute(a) if p == 1 else a * a
        return where(absolute(a) <= 0, 0.0, power(absolute(a), float(p)))  # no slope at 0 for p < 1 either

    def rooted(mean):
        total = mean * float(elements)
        return where(total <= 0, 0.0, power(total, 1 / p))

    return compute(rooted, _mean(compute(raised, x)[0], attributes, True))[0]


def _reaching(attributes: Attributes, more: Sequence[int]) -> Attributes:
    """The attributes with so much more padding behind each axis."""
    padding = tuple((before, after + n) for (before, after), n in zip(attributes["padding"], more))
    return {**attributes, "padding": padding}


def _by_images(x: Tensor, attributes: Attributes, pool: Callable[[Tensor, Attributes], Tensor]) -> Tensor:
    """`pool` of images, (N, C, H, W), applied to one, two or three spatial axes."""
    from tapeprop.ops.shape import reshape

    shape: Shape = x.shape
    if len(shape) == 4:
        return pool(x, attributes)
    if len(shape) == 3:
        y = pool(reshape(x, (*shape[:2], 1, shape[2])), _for_axes(attributes, None, 0))
        return reshape(y, (*shape[:2], y.shape[3]))
    n, c, depth, height, width = shape
    y = pool(reshape(x, (n, c * depth, height, width)), _for_axes(attributes, 1, 2))
    height, width = y.shape[2:]
    y = pool(reshape(y, (n, c, depth, height * width)), _for_axes(attributes, 0, None))
    return reshape(y, (n, c, y.shape[2], height, width))


def _for_axes(attributes: Attributes, vertical: int | None, horizontal: int | None) -> Attributes:
    """The attributes of a pool of images over two of the axes, None for one that stays as it is."""
    found = {}
    for name, values in attributes.items():
        plain = (0, 0) if name == "padding" else 1
        found[name] = tuple(plain if axis is None else values[axis] for axis in (vertical, horizontal))
    if set(found.get("dilation", ())) == {1}:
        del found["dilation"]
    return found
