"""Shapes as users write them (None where a size is open) and as the IR knows them (a `Dim` there)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from tapeprop.errors import ShapeError
from tapeprop.ir import Dim, Shape, Size

_AXES = {3: "NCL", 4: "NCHW", 5: "NCDHW"}


def open_shape(shape: Any, index: int = 0) -> Shape:
    """The symbolic shape of a user's: None on axis 0 becomes N, elsewhere C, H, W and so on by rank.

    index: which input it is. All inputs share N; the other open sizes of a second input are called H1, W1 and are taken
    to differ from the first's. ShapeError where it is no sequence of sizes >= 1.
    """
    remedy = "give a tuple of ints >= 1, with None for sizes that are open"
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise ShapeError(f"expected an input shape such as (None, 3, 32, 32), got {shape!r}; {remedy}")
    names = _AXES.get(len(shape), "N")
    found: list[Size] = []
    for axis, size in enumerate(shape):
        if size is None:
            name = names[axis] if axis < len(names) else f"d{axis}"
            found.append(Dim.symbol(name if axis == 0 or index == 0 else f"{name}{index}"))
            continue
        try:
            found.append(size if isinstance(size, Dim) else operator.index(size))
        except TypeError:
            raise ShapeError(
                f"expected sizes that are ints or None, got {size!r} in {tuple(shape)}; {remedy}"
            ) from None
        if not isinstance(size, Dim) and size < 1:
            what = "an empty batch" if axis == 0 and size == 0 else f"size {size} on axis {axis}"
            raise ShapeError(f"expected sizes >= 1, got {what} in input shape {tuple(shape)}; {remedy}")
    return tuple(found)


def plain_shape(shape: Shape) -> tuple[int | None, ...]:
    """A symbolic shape as users see it: None where a size is open."""
    return tuple(None if isinstance(size, Dim) else int(size) for size in shape)
