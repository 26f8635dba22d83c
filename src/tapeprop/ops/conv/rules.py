"""What the convolutions of every rank share: their attributes in plain form, their shapes, and the samples' geometries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import GraphError, ShapeError
from tapeprop.ir import Shape, Size, Tensor, UndecidedError
from tapeprop.ir.dims import at_least, same, text
from tapeprop.ops.op import ArrayType, Attributes, Sample, check_rank

#: The axes of images and of filters behind the first two, by rank.
AXES = {2: ("H, W", "KH, KW"), 3: ("D, H, W", "KD, KH, KW")}
COUNTS = {1: "one", 2: "two", 3: "three"}
SIDES = {
    1: "((left, right),)",
    2: "((top, bottom), (left, right)), a pair",
    3: "((front, back), (top, bottom), (left, right)), three ints",
}


def _numbers(rank: int, what: str, given: int | Sequence[int], least: int, count: int | None = None) -> tuple[int, ...]:
    count = rank if count is None else count
    found = (given,) * count if isinstance(given, (int, np.integer)) else tuple(given)
    if len(found) != count or not all(isinstance(n, (int, np.integer)) and n >= least for n in found):
        raise GraphError(
            f"conv{rank}d: expected {what} as an int or {COUNTS[count]} ints, each at least {least}, got {given!r}"
        )
    return tuple(int(n) for n in found)


def plain_attributes(rank: int, stride: Any, padding: Any, dilation: Any, groups: int) -> dict[str, Any]:
    """The attributes of a convolution and its gradients in plain form. GraphError where one makes no sense."""
    sides = (padding,) * rank if isinstance(padding, (int, np.integer)) else tuple(padding)
    if len(sides) != rank:
        raise GraphError(f"conv{rank}d: expected padding {SIDES[rank]} or an int, got {padding!r}")
    if not isinstance(groups, (int, np.integer)) or groups < 1:
        raise GraphError(f"conv{rank}d: expected groups as an int of at least 1, got {groups!r}")
    return {
        "stride": _numbers(rank, "stride", stride, 1),
        "padding": tuple(_numbers(rank, "padding", side, 0, 2) for side in sides),
        "dilation": _numbers(rank, "dilation", dilation, 1),
        "groups": int(groups),
    }


def output_size(size: Sequence[Size], kernel: Sequence[Size], attributes: Attributes) -> tuple[Size, ...]:
    """(OH, OW), or (OD, OH, OW). ShapeError where the filter is known to be larger than the padded image."""
    found = []
    for n, taps, stride, (before, after), step in zip(
        size, kernel, attributes["stride"], attributes["padding"], attributes["dilation"]
    ):
        room = n + before + after - (taps - 1) * step
        try:
            fits = at_least(room, 1)
        except UndecidedError:  # the launch looks again, at the sizes of the call
            fits = True
        if not fits:
            raise ShapeError(_too_small(size, kernel, attributes))
        found.append((room - 1) // stride + 1)
    return tuple(found)


def check_result(x: ArrayType, w: ArrayType, y: ArrayType, attributes: Attributes) -> None:
    """ShapeError where the sizes of a call leave no output pixel."""
    if min(y.shape[2:]) < 1:
        raise ShapeError(_too_small(x.shape[2:], w.shape[2:], attributes))


def _too_small(size: Sequence[Size], kernel: Sequence[Size], attributes: Attributes) -> str:
    return (
        f"conv{len(size)}d: expected an image of at least the filter, {by(kernel)} with dilation "
        f"{attributes['dilation']}, got {by(size)} with padding {attributes['padding']}; use a smaller filter or more padding"
    )


def by(sizes: Sequence[Size]) -> str:
    """3 x 3."""
    return " x ".join(map(str, sizes))


def check_images(name: str, rank: int, x: Tensor, channels: str = "C", out: bool = False) -> None:
    """ShapeError unless x has the rank of (N, channels, H, W)."""
    axes = AXES[rank][0]
    axes = ", ".join(f"O{axis}" for axis in axes.split(", ")) if out else axes
    check_rank(name, x, rank + 2, f"(N, {channels}, {axes})")


def check_filters(name: str, rank: int, w: Tensor) -> None:
    """ShapeError unless w has the rank of (filters, C / groups, KH, KW)."""
    check_rank(name, w, rank + 2, f"(filters, C / groups, {AXES[rank][1]})")


def check_channels(channels: Size, w: Shape, attributes: Attributes) -> None:
    """ShapeError unless images of `channels` channels and weights of shape w go together."""
    groups, name = attributes["groups"], f"conv{len(w) - 2}d"
    if not same(channels, w[1] * groups):
        raise ShapeError(
            f"{name}: expected {w[1] * groups} channels for weights {text(w)} in {groups} group(s), got {channels}; "
            "change the weights' input channels"
        )
    if isinstance(w[0], int) and w[0] % groups:
        raise ShapeError(f"{name}: expected a number of filters that {groups} groups divide, got {w[0]} in {text(w)}")


def check_gradient(dy: Tensor, expected: Shape) -> None:
    """ShapeError unless dy has the shape of what it is the gradient of."""
    if not all(same(a, b) for a, b in zip(dy.shape, expected)):
        raise ShapeError(
            f"conv{dy.ndim - 2}d: expected a gradient of shape {text(expected)}, got {text(dy.shape)}; check size and stride"
        )


# ---- NumPy


def windows(x: np.ndarray, kernel: Sequence[int], attributes: Attributes) -> np.ndarray:
    """(N, groups, C / groups, OH, OW, KH, KW): what each tap of each output pixel sees of x (N, C, H, W); so in 3-D."""
    padded = np.pad(x, ((0, 0), (0, 0), *attributes["padding"]))
    extents = tuple((taps - 1) * step + 1 for taps, step in zip(kernel, attributes["dilation"]))
    view = np.lib.stride_tricks.sliding_window_view(padded, extents, tuple(range(2, x.ndim)))
    steps = [slice(None, None, step) for step in (*attributes["stride"], *attributes["dilation"])]
    view = view[(slice(None), slice(None), *steps)]
    return view.reshape(x.shape[0], attributes["groups"], -1, *view.shape[2:])


def grouped(array: np.ndarray, axis: int, groups: int) -> np.ndarray:
    """`array` with `axis` cut into (groups, the rest)."""
    return array.reshape(*array.shape[:axis], groups, -1, *array.shape[axis + 1 :])


def by_taps(dy: np.ndarray, w: np.ndarray, size: Sequence[int], attributes: Attributes) -> np.ndarray:
    """The gradient of a convolution in its images, (N, C, *size): each tap gives its share to all that it has met."""
    groups, sides, rank = attributes["groups"], attributes["padding"], dy.ndim - 2
    out, kernel = dy.shape[2:], w.shape[2:]
    dy, w = grouped(dy, 1, groups), grouped(w, 0, groups)
    padded = [n + before + after for n, (before, after) in zip(size, sides)]
    dx = np.zeros((dy.shape[0], groups, w.shape[2], *padded), dy.dtype)
    formula = f"ngo{'xyz'[:rank]},goc->ngc{'xyz'[:rank]}"
    for tap in np.ndindex(*kernel):
        met = [
            slice(a * step, a * step + (n - 1) * stride + 1, stride)
            for a, step, n, stride in zip(tap, attributes["dilation"], out, attributes["stride"])
        ]
        dx[(..., *met)] += np.einsum(formula, dy, w[(..., *tap)])
    inside = [slice(before, before + n) for n, (before, _) in zip(size, sides)]
    return dx[(..., *inside)].reshape(dx.shape[0], -1, *size)


# ---- samples

#: x, w, stride, padding, dilation, groups.
GEOMETRIES: dict[int, tuple[tuple, ...]] = {
    2: (
        ((1, 1, 1, 1), (1, 1, 1, 1), 1, 0, 1, 1),
        ((2, 3, 8, 8), (6, 3, 3, 3), 1, 1, 1, 1),
        ((1, 2, 5, 7), (3, 2, 3, 3), 1, 0, 1, 1),  # read in place
        ((2, 3, 9, 7), (5, 3, 3, 3), 2, 1, 1, 1),
        ((1, 4, 11, 6), (4, 4, 1, 1), 2, 0, 1, 1),  # pixels that no tap reaches
        ((2, 2, 7, 8), (3, 2, 2, 4), (3, 2), ((1, 0), (2, 3)), 1, 1),
        ((1, 2, 12, 11), (2, 2, 3, 3), 1, 2, (2, 3), 1),
        ((1, 2, 13, 12), (2, 2, 3, 2), (2, 4), (1, 0), (3, 2), 1),
        ((2, 4, 6, 5), (6, 2, 3, 3), 1, 1, 1, 2),
        ((1, 3, 6, 6), (3, 1, 3, 3), 2, 1, 1, 3),  # depthwise
        ((1, 17, 4, 40), (18, 17, 1, 3), 1, (0, 1), 1, 1),  # panels of odd widths
        ((3, 2, 4, 4), (40, 2, 4, 4), 1, 0, 1, 1),  # one pixel left
    ),
    3: (
        ((1, 1, 1, 1, 1), (1, 1, 1, 1, 1), 1, 0, 1, 1),
        ((2, 2, 4, 5, 6), (3, 2, 3, 3, 3), 1, 1, 1, 1),
        ((1, 2, 6, 5, 7), (3, 2, 3, 2, 3), (2, 1, 2), ((1, 0), (0, 2), (1, 1)), 1, 1),
        ((2, 4, 7, 4, 5), (6, 2, 2, 3, 1), (3, 2, 1), ((0, 2), (1, 0), (0, 0)), (2, 1, 1), 2),
        ((1, 2, 9, 4, 4), (2, 2, 3, 2, 2), (2, 1, 1), ((3, 1), (0, 0), (0, 1)), (3, 1, 2), 1),
        ((2, 3, 3, 4, 4), (3, 1, 3, 3, 3), 2, 1, 1, 3),  # depthwise
        ((1, 3, 4, 3, 5), (5, 3, 1, 1, 1), 1, 0, 1, 1),  # all axes in one
        ((1, 2, 5, 3, 4), (3, 2, 3, 1, 1), 1, ((1, 1), (0, 0), (0, 0)), 1, 1),  # rows and columns in one
        ((1, 2, 5, 4, 3), (2, 2, 1, 1, 1), 2, 0, 1, 1),  # pixels that no tap reaches
    ),
}  # fmt: skip


def samples(rank: int, make: Callable) -> Iterator[Sample]:
    """A sample for each geometry: make(x, w, y) gives (operand shapes, attributes of its own, depth, gradients)."""
    for x, w, stride, padding, dilation, groups in GEOMETRIES[rank]:
        attributes = plain_attributes(rank, stride, padding, dilation, groups)
        y = (x[0], w[0], *output_size(x[2:], w[2:], attributes))
        shapes, own, depth, gradient = make(x, w, y)

        def operands(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]] = shapes) -> list[np.ndarray]:
            return [rng.standard_normal(shape) for shape in shapes]

        yield Sample(operands, attributes | own, depth=depth, gradient=gradient)
