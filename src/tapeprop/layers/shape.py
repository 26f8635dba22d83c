"""Layers that rename, move, cut, repeat or interpolate elements."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any

from tapeprop import ops
from tapeprop.errors import GraphError, ShapeError
from tapeprop.ir import Size, Tensor
from tapeprop.ir.dims import product, same, text
from tapeprop.layers import arguments
from tapeprop.layers.layer import Layer, misfit


class Identity(Layer):
    """x itself."""

    keeps_shape = True

    def trace(self, x: Tensor) -> Tensor:
        """x: any shape. Gives x."""
        return x


class Flatten(Layer):
    """(N, ...) -> (N, product of the rest)."""

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, ...). ShapeError for a scalar."""
        if x.ndim == 0:
            raise misfit("Flatten expects (N, ...), got a scalar: give the input a batch axis")
        return ops.flatten(x)


class Reshape(Layer):
    """Each sample under another shape: (N, ...) -> (N, *shape).

    shape: sizes >= 1, as arguments or as one tuple; one of them may be -1, to be computed. GraphError for others;
    ShapeError, in trace, where the numbers of elements differ.
    """

    def __init__(self, *shape: Any):
        given = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        self.shape = tuple(-1 if size == -1 else arguments.whole("Reshape", "every size", size) for size in given)
        if self.shape.count(-1) > 1:
            raise GraphError(f"Reshape: expected at most one size of -1, got {self.shape}")

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, ...). Gives (N, *shape)."""
        if x.ndim == 0:
            raise misfit(f"{self!r} expects (N, ...), got a scalar: give the input a batch axis")
        elements, known = product(x.shape[1:]), math.prod(size for size in self.shape if size != -1)
        free: Size = elements // known if -1 in self.shape else 1
        if not same(known * free, elements):
            raise misfit(
                f"{self!r} expects samples of {'a multiple of ' if -1 in self.shape else ''}{known} elements, "
                f"got {text(x.shape)} with {elements}: choose sizes that multiply to it"
            )
        return ops.reshape(x, (x.shape[0], *(free if size == -1 else size for size in self.shape)))

    def __repr__(self) -> str:
        return f"Reshape({', '.join(map(str, self.shape))})"


class Transpose(Layer):
    """The axes in another order: axis i of the result is axis axes[i] of x, as numpy.transpose.

    axes: an order of all axes of x, axis 0 included; leave that in front where it is the batch. GraphError for what is no
    order; ShapeError, in trace, for an x of another rank.
    """

    def __init__(self, axes: Sequence[int]):
        given = axes if isinstance(axes, tuple | list) else None
        if given is None or sorted(given) != list(range(len(given))):
            raise GraphError(f"Transpose: expected an order of the axes, such as (0, 2, 1), got {axes!r}")
        self.axes = tuple(arguments.whole("Transpose", "every axis", axis, 0) for axis in given)

    def trace(self, x: Tensor) -> Tensor:
        """x: of rank len(axes)."""
        if x.ndim != len(self.axes):
            raise misfit(f"{self!r} expects a tensor of rank {len(self.axes)}, got {text(x.shape)}: list all its axes")
        return ops.transpose(x, self.axes)


class Slice(Layer):
    """x[starts[0]:stops[0]:steps[0], starts[1]:stops[1]:steps[1], ...], each read as Python reads it.

    starts, stops, steps: an int or None for each of the first axes, axis 0 (the batch) included; the others stay whole.
    stops, steps None: to the end, in steps of 1. Steps may be negative. In place of starts alone, a tuple of Python slices.
    GraphError for others; ShapeError, in trace, for too few axes or where nothing is left.

        Slice((None, 0), (None, 3))              # x[:, 0:3]
        Slice((slice(None), slice(None, None, -1)))   # x[:, ::-1]
    """

    def __init__(
        self,
        starts: Sequence[Any],
        stops: Sequence[int | None] | None = None,
        steps: Sequence[int | None] | None = None,
    ):
        if not isinstance(starts, tuple | list):
            raise GraphError(f"Slice: expected starts to be a tuple with an int or None for each axis, got {starts!r}")
        if any(isinstance(entry, builtins.slice) for entry in starts):
            if stops is not None or steps is not None or not all(isinstance(s, builtins.slice) for s in starts):
                raise GraphError("Slice: expected slices alone, or starts, stops and steps, got both")
            starts, stops, steps = ([getattr(s, part) for s in starts] for part in ("start", "stop", "step"))
        self.starts = _bounds("starts", starts, len(starts))
        self.stops = _bounds("stops", stops, len(starts))
        self.steps = _bounds("steps", steps, len(starts))
        if 0 in self.steps:
            raise GraphError(f"Slice: expected steps other than 0, got {self.steps}")

    def trace(self, x: Tensor) -> Tensor:
        """x: of rank len(starts) or more."""
        if x.ndim < len(self.starts):
            raise misfit(f"{self!r} expects at least {len(self.starts)} axes, got {text(x.shape)}: list fewer starts")
        return ops.index(x, tuple(builtins.slice(*bounds) for bounds in zip(self.starts, self.stops, self.steps)))


def _bounds(name: str, given: Sequence[int | None] | None, count: int) -> tuple[int | None, ...]:
    """An int or None for each of `count` axes."""
    values = (None,) * count if given is None else given
    whole = isinstance(values, tuple | list) and all(
        n is None or (isinstance(n, int) and not isinstance(n, bool)) for n in values
    )
    if not whole or len(values) != count:
        raise GraphError(
            f"Slice: expected {name} to be a tuple with an int or None for each of {count} axes, got {given!r}"
        )
    return tuple(values)


class Pad(Layer):
    """A border around the last axes: (N, ..., H, W) -> (N, ..., H + top + bottom, W + left + right).

    padding: an int for all axes from axis 2 on; or for each of the last axes an int or (before, after), in the order of the
    axes: ((top, bottom), (left, right)). mode: "constant", of `value`; "reflect", what lies behind the ends; "replicate", the
    ends; "circular", the other end (torch.nn.functional.pad). GraphError for others; ShapeError, in trace, for fewer axes, or
    more border than the axis has elements for.
    """

    def __init__(self, padding: Any, mode: str = "constant", value: float = 0.0):
        self.padding = padding
        self.mode = mode
        self.value = arguments.number("Pad", "value", value)
        if mode not in ("constant", "reflect", "replicate", "circular"):
            raise GraphError(f'Pad: expected mode to be "constant", "reflect", "replicate" or "circular", got {mode!r}')
        self.sides(3)

    def sides(self, rank: int) -> list[tuple[int, int]]:
        """(before, after) of each of `rank` axes."""
        given = self.padding
        if not isinstance(given, tuple | list):
            width = _width(given)
            return [(0, 0)] * min(2, rank) + [(width, width)] * (rank - 2)
        pairs = [side if isinstance(side, tuple | list) else (side, side) for side in given]
        if any(len(side) != 2 for side in pairs):
            raise GraphError(f"Pad: expected an int, or an int or (before, after) for each axis, got {given!r}")
        found = [(_width(before), _width(after)) for before, after in pairs]
        return [(0, 0)] * (rank - len(found)) + found

    def trace(self, x: Tensor) -> Tensor:
        """x: with an axis for each that is padded."""
        least = len(self.padding) if isinstance(self.padding, tuple | list) else 3
        if x.ndim < least:
            raise misfit(f"{self!r} expects at least {least} axes, got {text(x.shape)}: list fewer borders")
        try:
            return ops.pad(x, self.sides(x.ndim), self.value, self.mode)
        except ShapeError as error:
            raise misfit(f"{self!r}: {error}") from None


def _width(value: Any) -> int:
    return arguments.whole("Pad", "padding", value, 0)


class Upsample2D(Layer):
    """Images of another size: (N, C, H, W) -> (N, C, floor(H scale), floor(W scale)), or (N, C, *size).

    scale: a number > 0, or (vertical, horizontal); size: an int or a pair, in its place. mode: "nearest", "bilinear" or
    "bicubic"; align_corners: the corner pixels lie on each other (torch.nn.Upsample; see `ops.resize`). GraphError for others;
    ShapeError, in trace, for another rank.
    """

    def __init__(self, scale: Any = 2, size: Any = None, mode: str = "nearest", align_corners: bool = False):
        self.scale = scale
        self.size = size
        self.mode = mode
        self.align_corners = align_corners
        self.geometry()

    def geometry(self) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
        """(size, scale), one of them None. GraphError where they, or the mode, are out of range."""
        if self.mode not in ("nearest", "bilinear", "bicubic"):
            raise GraphError(f'Upsample2D: expected mode to be "nearest", "bilinear" or "bicubic", got {self.mode!r}')
        if self.align_corners and self.mode == "nearest":
            raise GraphError('Upsample2D: expected align_corners with "bilinear" or "bicubic", got "nearest"')
        if self.size is not None:
            return arguments.pair("Upsample2D", "size", self.size), None
        given = self.scale if isinstance(self.scale, tuple | list) else (self.scale, self.scale)
        scales = tuple(arguments.number("Upsample2D", "scale", factor) for factor in given)
        if len(scales) != 2 or min(scales) <= 0:
            raise GraphError(f"Upsample2D: expected scale to be a number > 0 or a pair of them, got {self.scale!r}")
        return None, scales

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        if x.ndim != 4:
            raise misfit(f"Upsample2D expects (N, C, H, W), got {text(x.shape)}: give images of rank 4")
        size, scale = self.geometry()
        try:
            return ops.resize(x, size, scale, self.mode, self.align_corners)
        except ShapeError as error:
            raise misfit(f"{self!r}: {error}") from None
