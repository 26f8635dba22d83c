"""The reading of `x[1:3, ..., None]`: keys and slices as Python and NumPy have them, as regions."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Dim, Size, Tensor
from tapeprop.ir.dims import at_least, text
from tapeprop.ops.join.regions import region
from tapeprop.ops.op import as_tensor
from tapeprop.ops.shape import reshape


def _bound(value: Size | None, length: Size, step: int, is_start: bool) -> Size:
    """A slice's bound as Python clamps it. UndecidedError where that depends on an open length."""
    low: Size = 0 if step > 0 else -1
    high: Size = length if step > 0 else length - 1
    if value is None:
        return low if is_start == (step > 0) else high
    if isinstance(value, int) and value < 0:
        value = length + value
        return value if at_least(value - low, 0) else low
    return value if at_least(high - value, 0) else high


def _whole(value: Any, name: str) -> Any:
    """An int for what stands for one; None and open sizes as they are."""
    if value is None or isinstance(value, Dim):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise DTypeError(f"{name}: expected whole numbers in a slice, got {value!r}") from None


def _range(key: builtins.slice, length: Size, name: str) -> tuple[Size, Size, int]:
    """(start, size, step) of a Python slice along an axis."""
    first, last, step = (_whole(value, name) for value in (key.start, key.stop, key.step))
    step = 1 if step is None else step
    if step == 0:
        raise ShapeError(f"{name}: expected a step other than 0")
    start, stop = _bound(first, length, step, True), _bound(last, length, step, False)
    span = stop - start if step > 0 else start - stop
    size = (span + (abs(step) - 1)) // abs(step)
    if not at_least(size, 1):
        raise ShapeError(f"{name}: expected at least one element, got none of the {length} from {start} to {stop}")
    return start, size, step


def index(x: Any, key: Any) -> Tensor:
    """x[key] for a key of ints, slices, Ellipsis and None, with NumPy's meaning.

    ShapeError for an index out of range, an empty slice or too many; DTypeError for a key of another type.
    """
    x = as_tensor(x)
    keys = list(key) if isinstance(key, tuple) else [key]
    for entry in keys:
        if not (entry is None or entry is Ellipsis or isinstance(entry, int | np.integer | Dim | builtins.slice)):
            raise DTypeError(
                f"index: expected ints, slices, Ellipsis or None, got {entry!r}; use take() for an array of indices"
            )
        if isinstance(entry, bool):
            raise DTypeError(f"index: expected ints, slices, Ellipsis or None, got {entry}; use where() for a mask")
    used = [entry for entry in keys if entry is not None and entry is not Ellipsis]
    dots = [i for i, entry in enumerate(keys) if entry is Ellipsis]
    if len(dots) > 1 or len(used) > x.ndim:
        raise ShapeError(f"index: expected at most {x.ndim} indices and one ... for {text(x.shape)}, got {key}")
    whole = [builtins.slice(None)] * (x.ndim - len(used))
    keys = [*keys[: dots[0]], *whole, *keys[dots[0] + 1 :]] if dots else [*keys, *whole]
    starts: list[Size] = []
    sizes: list[Size] = []
    steps: list[int] = []
    shape: list[Size] = []
    for entry in keys:
        if entry is None:
            shape.append(1)
            continue
        axis = len(starts)
        name, length = f"index along axis {axis} of {text(x.shape)}", x.shape[axis]
        if isinstance(entry, builtins.slice):
            start, size, step = _range(entry, length, name)
            shape.append(size)
        else:
            position: Size = entry if isinstance(entry, Dim) else int(entry)
            start, size, step = (position + length if isinstance(position, int) and position < 0 else position), 1, 1
            if not (at_least(start, 0) and at_least(length - start, 1)):
                raise ShapeError(f"{name}: expected an index from {-length} to {length - 1}, got {entry}")
        starts.append(start)
        sizes.append(size)
        steps.append(step)
    return reshape(region(x, starts, sizes, steps), shape)


def slice(x: Any, starts: Sequence[int], stops: Sequence[Size | None], steps: Sequence[int] | None = None) -> Tensor:
    """x[starts[0]:stops[0]:steps[0], starts[1]:..., ...], each read as Python reads it; axes not listed stay whole.

    A stop of None is the end. ShapeError where nothing is left.
    """
    x = as_tensor(x)
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(stops) == len(steps) <= x.ndim:
        raise ShapeError(
            f"slice: expected as many starts, stops and steps, at most {x.ndim} for {text(x.shape)}, "
            f"got {len(starts)}, {len(stops)} and {len(steps)}"
        )
    return index(x, tuple(builtins.slice(*bounds) for bounds in zip(starts, stops, steps)))
