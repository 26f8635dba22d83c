"""Rules of shapes: axes by number, the size that -1 stands for, broadcasting, what is refused; operands of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Dim, Shape, Size, UndecidedError
from tapeprop.ir.dims import product, same, text


def normalise_axes(name: str, axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes as a sorted tuple of 0 <= axis < rank; None gives all. ShapeError where one is absent or comes twice."""
    if axes is None:
        return tuple(range(rank))
    given = (axes,) if isinstance(axes, int | np.integer) else tuple(axes)
    found = sorted(int(axis) + rank if axis < 0 else int(axis) for axis in given)
    if any(not 0 <= axis < rank for axis in found):
        raise ShapeError(f"{name}: expected axes from {-rank} to {rank - 1} for a tensor of rank {rank}, got {given}")
    if len(set(found)) != len(found):
        raise ShapeError(f"{name}: expected each axis once, got {given}")
    return tuple(found)


def refuse_empty(name: str, *shapes: Shape) -> None:
    """ShapeError where a shape has an axis of size 0."""
    for shape in shapes:
        if any(isinstance(size, int) and size < 1 for size in shape):
            raise ShapeError(
                f"{name}: expected sizes >= 1, got shape {text(tuple(shape))}; an array without elements has no use"
            )


def resolve(source: Shape, shape: Sequence[Size]) -> Shape:
    """`shape` with its one -1 replaced by what the elements of `source` leave for it.

    ShapeError where the numbers of elements differ or leave a rest; UndecidedError where that is open.
    """
    total, known = product(source), product(size for size in shape if not _is_free(size))
    free = [axis for axis, size in enumerate(shape) if _is_free(size)]
    what = f"reshape: expected a shape of {total} elements, those of {text(tuple(source))}, got {text(tuple(shape))}"
    if len(free) > 1 or any(isinstance(size, int) and size < 1 and not _is_free(size) for size in shape):
        raise ShapeError(f"{what}; use sizes >= 1 and at most one -1")
    if not free:
        if not same(total, known):
            raise ShapeError(what)
        return tuple(shape)
    if not isinstance(total, Dim) and isinstance(known, Dim):
        raise UndecidedError(f"{total} // {known}")
    whole: Size = total // known  # type: ignore[operator]
    if not same(whole * known, total):
        raise ShapeError(f"{what}; the sizes beside -1 must divide it")
    return (*shape[: free[0]], whole, *shape[free[0] + 1 :])


def _is_free(size: Size) -> bool:
    return isinstance(size, int) and size == -1


def broadcast_axes(name: str, source: Shape, shape: Shape) -> tuple[int, ...]:
    """The axes of `shape` along which an array of shape `source` is repeated to fill it.

    ShapeError where `source` does not broadcast to `shape`; UndecidedError where that is open.
    """
    lead = len(shape) - len(source)
    what = f"{name}: shape {text(tuple(source))} does not broadcast to {text(tuple(shape))}"
    if lead < 0:
        raise ShapeError(f"{what}; it has more axes")
    repeated = list(range(lead))
    for axis, size in enumerate(source, start=lead):
        if is_one(size) and not is_one(shape[axis]):
            repeated.append(axis)
        elif not same(size, shape[axis]):
            raise ShapeError(f"{what}; an axis must be 1 or agree")
    return tuple(repeated)


def is_one(size: Size) -> bool:
    """Whether the size is known to be 1."""
    return isinstance(size, int) and size == 1


def drawn(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    """What makes the operands of a sample: normal numbers of the shapes."""
    return lambda random: [np.asarray(random.standard_normal(shape)) for shape in shapes]
