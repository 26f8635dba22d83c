"""Checks of constructor arguments: each gives the value in its plain form, or a GraphError that says what would do."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from tapeprop.errors import GraphError

Pair = tuple[int, int]
Sides = tuple[Pair, ...]

_AXES = {1: ("length",), 2: ("vertical", "horizontal"), 3: ("depth", "vertical", "horizontal")}
_SIDES = {
    1: ("(left, right)",),
    2: ("(top, bottom)", "(left, right)"),
    3: ("(front, back)", "(top, bottom)", "(left, right)"),
}


def whole(owner: str, name: str, value: Any, least: int = 1) -> int:
    """An int >= least; NumPy's integers are taken, bools are not."""
    number = _as_int(value)
    if number is None or number < least:
        raise GraphError(f"{owner}: expected {name} to be an int >= {least}, got {value!r}")
    return number


def per_axis(owner: str, name: str, value: Any, rank: int, least: int = 1) -> tuple[int, ...]:
    """`rank` ints, each >= least, from one for all or from a sequence of them."""
    given = value if isinstance(value, tuple | list) else (value,) * rank
    numbers = tuple(_as_int(n) for n in given)
    if len(numbers) != rank or any(n is None or n < least for n in numbers):
        several = {1: "an int", 2: "an int or a pair of ints, each", 3: "an int or three ints, each"}[rank]
        raise GraphError(f"{owner}: expected {name} to be {several} >= {least}, got {value!r}")
    return numbers  # type: ignore[return-value]


def pair(owner: str, name: str, value: Any, least: int = 1) -> Pair:
    """(vertical, horizontal) from one int for both or a pair of ints, each >= least."""
    vertical, horizontal = per_axis(owner, name, value, 2, least)
    return vertical, horizontal


def sizes(owner: str, name: str, value: Any) -> tuple[int, ...]:
    """A shape of at least one axis, from one int or a sequence of ints, each >= 1."""
    numbers = [_as_int(n) for n in (value if isinstance(value, tuple | list) else (value,))]
    if not numbers or any(n is None or n < 1 for n in numbers):
        raise GraphError(f"{owner}: expected {name} to be an int >= 1 or a sequence of such, got {value!r}")
    return tuple(numbers)  # type: ignore[arg-type]


def sides(owner: str, padding: Any, extents: Sequence[int]) -> Sides:
    """((before, after), ...) of a padding, a pair for each axis: ((top, bottom), (left, right)) for images.

    padding: "same" ((extent - 1) // 2 on each side), "valid" (none), an int for all sides, an int or a pair for each axis, of a
    single axis also the pair itself. extents: what the window covers of each axis, dilation included.
    """
    rank = len(extents)
    if padding == "valid":
        return ((0, 0),) * rank
    if padding == "same":
        return tuple(((extent - 1) // 2, (extent - 1) // 2) for extent in extents)
    given = padding if isinstance(padding, tuple | list) else (padding,) * rank
    if rank == 1 and len(given) == 2:
        given = (given,)
    found = [_as_pair(side) for side in given]
    if len(found) == rank and None not in found:
        return tuple(found)  # type: ignore[arg-type]
    comma = "," if rank == 1 else ""
    raise GraphError(
        f'{owner}: expected padding to be "same", "valid", an int >= 0, ({", ".join(_AXES[rank])}{comma}) or '
        f"({', '.join(_SIDES[rank])}{comma}), got {padding!r}"
    )


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
