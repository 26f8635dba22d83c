"""Checks of constructor arguments: each gives the value in its plain form, or a GraphError that says what would do."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from tapeprop.errors import GraphError

Pair = tuple[int, int]
Sides = tuple[Pair, Pair]


def whole(owner: str, name: str, value: Any, least: int = 1) -> int:
    """An int >= least; NumPy's integers are taken, bools are not."""
    number = _as_int(value)
    if number is None or number < least:
        raise GraphError(f"{owner}: expected {name} to be an int >= {least}, got {value!r}")
    return number


def numbers(owner: str, name: str, value: Any, rank: int, least: int = 1) -> tuple[int, ...]:
    """One int for each of `rank` axes, from one for all or one for each, each >= least."""
    given = value if isinstance(value, tuple | list) else (value,) * rank
    found = [_as_int(n) for n in given]
    if len(found) != rank or any(n is None or n < least for n in found):
        wanted = {1: "", 2: " or a pair of ints, each", 3: " or three ints, each"}[rank]
        raise GraphError(f"{owner}: expected {name} to be an int{wanted} >= {least}, got {value!r}")
    return tuple(found)  # type: ignore[arg-type]


def pair(owner: str, name: str, value: Any, least: int = 1) -> Pair:
    """(vertical, horizontal) from one int for both or a pair of ints, each >= least."""
    vertical, horizontal = numbers(owner, name, value, 2, least)
    return vertical, horizontal


_SIDES = {
    1: "(left, right)",
    2: "(vertical, horizontal) or ((top, bottom), (left, right))",
    3: "three ints or ((front, back), (top, bottom), (left, right))",
}


def sides_of(owner: str, padding: Any, extents: Sequence[int]) -> tuple[Pair, ...]:
    """(before, after) of each axis of a padding.

    padding: "same" ((extent - 1) // 2 on each side), "valid" (none), an int for all sides, one for each axis, or a pair for each;
    of a single axis also the one pair. extents: the window's sizes, dilation included.
    """
    rank = len(extents)
    if padding == "valid":
        return ((0, 0),) * rank
    if padding == "same":
        return tuple(((extent - 1) // 2,) * 2 for extent in extents)
    given = tuple(padding) if isinstance(padding, tuple | list) else (padding,) * rank
    if rank == 1 and len(given) == 2:
        given = (given,)
    found = [_as_pair(side) for side in given]
    if len(found) != rank or None in found:
        raise GraphError(
            f'{owner}: expected padding to be "same", "valid", an int >= 0, {_SIDES[rank]}, got {padding!r}'
        )
    return tuple(found)  # type: ignore[arg-type]


def sides(owner: str, padding: Any, extents: Sequence[int]) -> Sides:
    """((top, bottom), (left, right)) of a padding: see `sides_of`."""
    vertical, horizontal = sides_of(owner, padding, extents)
    return vertical, horizontal


def fraction(owner: str, name: str, value: Any) -> float:
    """A number from 0 to 1."""
    found = _as_float(value)
    if found is None or not 0 <= found <= 1:
        raise GraphError(f"{owner}: expected {name} to be a number from 0 to 1, got {value!r}")
    return found


def number(owner: str, name: str, value: Any, *, least: float = -math.inf) -> float:
    """A finite number >= least."""
    found = _as_float(value)
    if found is None or not math.isfinite(found) or found < least:
        bound = "" if least == -math.inf else f" >= {least:g}"
        raise GraphError(f"{owner}: expected {name} to be a finite number{bound}, got {value!r}")
    return found


def seed(owner: str, name: str, value: Any) -> int | None:
    """An int >= 0, or None."""
    return None if value is None else whole(owner, name, value, 0)


def _as_int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _as_float(value: Any) -> float | None:
    if isinstance(value, bool | str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _as_pair(side: Any) -> Pair | None:
    numbers = [_as_int(n) for n in (side if isinstance(side, tuple | list) else (side, side))]
    if len(numbers) != 2 or any(n is None or n < 0 for n in numbers):
        return None
    return numbers[0], numbers[1]  # type: ignore[return-value]
