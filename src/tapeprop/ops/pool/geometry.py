"""Windows on images: what sizes, strides, padding and dilation say about any number of axes, and windows in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Dim, Shape, Size, UndecidedError
from tapeprop.ir.dims import at_least, text
from tapeprop.ops.op import Attributes

Pair = tuple[int, int]
COUNTS = {1: "an int", 2: "an int or two ints", 3: "an int or three ints"}
BORDERS = {
    1: "((before, after),)",
    2: "((top, bottom), (left, right))",
    3: "((front, back), (top, bottom), (left, right))",
}


def pool_attributes(
    name: str,
    size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: Any,
    dilation: int | Sequence[int] = 1,
    rank: int = 2,
) -> dict[str, Any]:
    """The attributes of a pooling op: size, stride (vertical, horizontal), padding ((top, bottom), (left, right)).

    size, stride, padding, dilation: one int for all, or one per axis; padding also a (before, after) pair per axis;
    stride None: the size. `dilation` is an attribute only where it is not 1. ShapeError where they make no sense.
    """
    sizes = _per_axis(name, "size", size, rank, 1)
    strides = sizes if stride is None else _per_axis(name, "stride", stride, rank, 1)
    dilations = _per_axis(name, "dilation", dilation, rank, 1)
    sides: list[Pair] = []
    for given in (padding,) * rank if isinstance(padding, int | np.integer) else tuple(padding):
        before, after = _per_axis(name, "padding", given, 2, 0)
        sides.append((before, after))
    if len(sides) != rank:
        raise ShapeError(f"{name}: expected padding {BORDERS[rank]}, got {padding}")
    attributes: dict[str, Any] = {"size": sizes, "stride": strides, "padding": tuple(sides)}
    if set(dilations) != {1}:
        attributes["dilation"] = dilations
    for extent, side in zip(extents(attributes), sides):
        if 2 * max(side) > extent:
            raise ShapeError(
                f"{name}: expected padding of at most half the window {extents(attributes)}, got {tuple(sides)}; "
                "pad less or widen the window"
            )
    return attributes


def _per_axis(name: str, what: str, value: Any, count: int, least: int) -> tuple[int, ...]:
    numbers = (value,) * count if isinstance(value, int | np.integer) else tuple(value)
    if len(numbers) != count or any(not isinstance(n, int | np.integer) or n < least for n in numbers):
        raise ShapeError(f"{name}: expected {what} to be {COUNTS[count]}, each >= {least}, got {value}")
    return tuple(int(n) for n in numbers)


def dilations(attributes: Attributes) -> tuple[int, ...]:
    """The distance of neighbours in a window, along each axis."""
    return attributes.get("dilation", (1,) * len(attributes["size"]))


def extents(attributes: Attributes) -> tuple[int, ...]:
    """What a window covers of each axis, gaps included."""
    return tuple((size - 1) * step + 1 for size, step in zip(attributes["size"], dilations(attributes)))


def pooled_shape(name: str, shape: Shape, attributes: Attributes) -> Shape:
    """(N, C, *pooled sizes) of pooling (N, C, *sizes). ShapeError where a window is larger than the padded image."""
    found = []
    covered = extents(attributes)
    for size, extent, step, stride, padding in zip(
        shape[2:], covered, dilations(attributes), attributes["stride"], attributes["padding"], strict=True
    ):
        room = size + sum(padding)
        if not _may_be_at_least(room, extent):
            raise ShapeError(
                f"{name}: expected an image of at least the window {covered} after padding, "
                f"got {text(shape)} with padding {attributes['padding']}; use a smaller window or fewer pooling layers"
            )
        if padding != (0, 0) and step > 1 and not _may_be_at_least(size, step):
            raise ShapeError(
                f"{name}: expected an image of at least the dilation {dilations(attributes)}, got {text(shape)}: some "
                "windows would hold nothing but padding; use a smaller dilation or no padding"
            )
        found.append((room - extent) // stride + 1)
    return (*shape[:2], *found)


def overhang(shape: Shape, attributes: Attributes) -> tuple[int, ...]:
    """How far the last window of each axis may reach beyond the padding in ceil mode, as padding behind.

    A last window has to start within the image or the padding before it, as in torch. UndecidedError for open sizes.
    """
    found = []
    for size, extent, stride, (before, after) in zip(
        shape[2:], extents(attributes), attributes["stride"], attributes["padding"], strict=True
    ):
        if stride == 1:
            found.append(0)
            continue
        if isinstance(size, Dim):
            raise UndecidedError(f"{size} % {stride}")
        room = size + before + after - extent
        more = -room % stride
        last = (room + more) // stride * stride
        found.append(more if last < size + before else 0)
    return tuple(found)


def _may_be_at_least(a: Size, bound: int) -> bool:
    """False only where it is known: an open size is checked again when the kernel is chosen."""
    try:
        return at_least(a, bound)
    except UndecidedError:
        return True


def windows(x: np.ndarray, attributes: Attributes, fill: float) -> np.ndarray:
    """(N, C, H', W', elements of a window, in row-major order) of images (N, C, H, W)."""
    (sh, sw), (dh, dw), (eh, ew) = attributes["stride"], dilations(attributes), extents(attributes)
    padded = np.pad(x, ((0, 0), (0, 0), *attributes["padding"]), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, (eh, ew), (2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]
    return view.reshape(*view.shape[:4], -1)


def targets(shape: tuple[int, ...], attributes: Attributes) -> np.ndarray:
    """(H', W', window): the row-major index in the image of every element of every window; -1 in the padding."""
    h, w = shape[2:]
    index = np.arange(h * w, dtype=np.float64).reshape(1, 1, h, w)
    return windows(index, attributes, -1.0)[0, 0].astype(np.int64)


def picks(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    """(N, C, H', W'): the row-major index in the image of each window's first maximum, or first NaN."""
    found = np.broadcast_to(targets(x.shape, attributes), windows(x, attributes, -np.inf).shape)
    values = windows(x, attributes, -np.inf)
    # argmax gives the first NaN or maximum; where all is -inf, the first element that is no padding
    place = np.where(values.max(-1) == -np.inf, np.argmax(found >= 0, -1), np.argmax(values, -1))
    return np.take_along_axis(found, place[..., None], -1)[..., 0]
