"""What the convolutions of every rank share: their attributes in plain form, their shapes, and the samples' geometries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import GraphError, ShapeError
from tapeprop.ir import Shape, Size, Tensor, UndecidedError
from tapeprop.ir.dims import at_least, same, text
from tapeprop.ops.op import Attributes, Call, Sample, check_rank
from tapeprop.ops.shape import reshape

#: The axes of images and of filters behind the first two, by rank.
AXES = {1: ("L", "K"), 2: ("H, W", "KH, KW"), 3: ("D, H, W", "KD, KH, KW")}
COUNTS = {1: "one", 2: "two", 3: "three"}
SIDES = {
    1: "(left, right)",
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
    sides: tuple[Any, ...] = (padding,) * rank if isinstance(padding, (int, np.integer)) else tuple(padding)
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


def check_result(call: Call) -> None:
    """ShapeError where the sizes of a convolution's call leave no output pixel."""
    x, w = call.operands[:2]
    if min(call.results[0].shape[2:]) < 1:
        raise ShapeError(_too_small(x.shape[2:], w.shape[2:], call.attributes))


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


# ---- one axis: an image with a single row


def as_sides(padding: Any) -> Any:
    """The padding of a single axis, (left, right) or ((left, right),), in the form of several axes; an int as it is."""
    given = tuple(padding) if isinstance(padding, Sequence) else padding
    whole = isinstance(given, tuple) and len(given) == 2 and all(isinstance(n, (int, np.integer)) for n in given)
    return (given,) if whole else given


def in_rows(attributes: Attributes) -> dict[str, Any]:
    """The attributes of a convolution along one axis for images with a single row."""
    first: dict[str, Any] = {"stride": 1, "padding": (0, 0), "dilation": 1}
    return {name: (first[name], *value) if name in first else value for name, value in attributes.items()}


def with_row(x: Tensor) -> Tensor:
    """x (N, C, L) as (N, C, 1, L)."""
    return reshape(x, (*x.shape[:2], 1, x.shape[2]))


def without_row(y: Tensor) -> Tensor:
    """y (N, C, 1, L) as (N, C, L)."""
    return reshape(y, (*y.shape[:2], y.shape[3]))


# ---- transposed


def transposed_rank(x: Tensor, w: Tensor) -> int:
    """The axes of the images x and filters w of a transposed convolution. ShapeError where there are not one to three, or not as many."""
    rank = x.ndim - 2
    if rank not in AXES:
        raise ShapeError(f"conv_transpose: expected (N, C, ...) with one to three axes more, got {text(x.shape)}")
    if w.ndim != x.ndim:
        raise ShapeError(
            f"conv_transpose: expected filters (C, O / groups, {AXES[rank][1]}) for images of shape {text(x.shape)}, "
            f"got {text(w.shape)}"
        )
    return rank


def check_transposed_channels(x: Tensor, w: Tensor, attributes: Attributes) -> None:
    """ShapeError unless the channels of x are those of w, and as many in each group."""
    if not same(x.shape[1], w.shape[0]):
        raise ShapeError(
            f"conv_transpose: expected {w.shape[0]} channels for weights {text(w.shape)}, got {x.shape[1]}; "
            "change the weights' first axis"
        )
    if isinstance(w.shape[0], int) and w.shape[0] % attributes["groups"]:
        raise ShapeError(
            f"conv_transpose: expected a number of channels that {attributes['groups']} groups divide, got {w.shape[0]}"
        )


def transposed_size(
    size: Sequence[Size], kernel: Sequence[Size], attributes: Attributes, output_padding: int | Sequence[int]
) -> tuple[tuple[Size, ...], tuple[tuple[int, int], ...], tuple[int, ...]]:
    """(size of the result, padding of the convolution that it transposes, rows of zeros behind that) of a transposed convolution.

    output_padding takes away padding at the end, where there is any; then it adds what the convolution's stride skips; and then what
    no tap reaches.
    """
    extra = _numbers(len(size), "output_padding", output_padding, 0)
    found, sides, missing = [], [], []
    for n, taps, stride, (before, after), step, more in zip(
        size, kernel, attributes["stride"], attributes["padding"], attributes["dilation"], extra
    ):
        if more >= max(stride, step):
            raise GraphError(
                f"conv_transpose: expected output_padding smaller than stride or dilation, got {output_padding!r} with stride "
                f"{attributes['stride']} and dilation {attributes['dilation']}"
            )
        beyond = max(0, more - after)
        zeros = max(0, beyond - (stride - 1))
        whole = (n - 1) * stride + (taps - 1) * step + 1 - before - after + more - zeros
        if isinstance(whole, int) and whole < 1:
            raise ShapeError(
                f"conv_transpose: expected a result of at least one pixel, got {whole} from {by(size)} by filters {by(kernel)} with "
                f"padding {attributes['padding']}; use less padding"
            )
        found.append(whole)
        sides.append((before, max(0, after - more)))
        missing.append(zeros)
    return tuple(found), tuple(sides), tuple(missing)


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
        at: Any = (..., *met)
        dx[at] += np.einsum(formula, dy, w[(..., *tap)])
    inside = [slice(before, before + n) for n, (before, _) in zip(size, sides)]
    at = (..., *inside)
    return dx[at].reshape(dx.shape[0], -1, *size)


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
        ((2, 2, 5, 19), (4, 1, 3, 3), 1, 1, 1, 2),  # so with rows of several vectors
        ((1, 2, 9, 7), (2, 1, 3, 2), (1, 2), ((1, 0), (0, 2)), (2, 3), 2),
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
