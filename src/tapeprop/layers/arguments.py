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


def pair(owner: str, name: str, value: Any, least: int = 1) -> Pair:
    """(vertical, horizontal) from one int for both or a pair of ints, each >= least."""
    given = value if isinstance(value, tuple | list) else (value, value)
    numbers = [_as_int(n) for n in given]
    if len(numbers) != 2 or any(n is None or n < least for n in numbers):
        raise GraphError(f"{owner}: expected {name} to be an int or a pair of ints, each >= {least}, got {value!r}")
    return numbers[0], numbers[1]  # type: ignore[return-value]


def sizes(owner: str, name: str, value: Any) -> tuple[int, ...]:
    """A shape of at least one axis, from one int or a sequence of ints, each >= 1."""
    numbers = [_as_int(n) for n in (value if isinstance(value, tuple | list) else (value,))]
    if not numbers or any(n is None or n < 1 for n in numbers):
        raise GraphError(f"{owner}: expected {name} to be an int >= 1 or a sequence of such, got {value!r}")
    return tuple(numbers)  # type: ignore[arg-type]


def sides(owner: str, padding: Any, extents: Sequence[int]) -> Sides:
    """((top, bottom), (left, right)) of a padding.

    padding: "same" ((extent - 1) // 2 on each side), "valid" (none), an int for all sides, (vertical, horizontal), or
    the four themselves. extents: the window's height and width, dilation included.
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        vertical, horizontal = ((extent - 1) // 2 for extent in extents)
        return (vertical, vertical), (horizontal, horizontal)
    given = padding if isinstance(padding, tuple | list) else (padding, padding)
    if len(given) == 2:
        found = [_as_pair(side) for side in given]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    raise GraphError(
        f'{owner}: expected padding to be "same", "valid", an int >= 0, (vertical, horizontal) or '
        f"((top, bottom), (left, right)), got {padding!r}"
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
