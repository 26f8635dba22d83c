"""What belongs together in two profiles: their tapes, the rows of those, and the steps that are compared."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from tapeprop.profiler.profile import Profile, RowInfo, RunSamples, TapeInfo

__all__ = ["Side", "numbers", "pair_rows", "pair_tapes"]


class Side:
    """One of the two profiles. tapes: the name under which each of its tapes is compared."""

    def __init__(self, profile: Profile, tapes: list[str]):
        self.profile = profile
        self.tapes = tapes
        self.steps = _steps_of(profile)

    def groups(self, by: str, keys: list[list[tuple[str, ...]]]) -> dict[tuple[str, ...], np.ndarray]:
        """{key: seconds of the group in each step}. keys: of each row of each tape."""
        found: dict[tuple[str, ...], list[np.ndarray]] = {}
        for steps in self.steps:
            columns: dict[tuple[str, ...], list[int]] = {}
            for slot, row in enumerate(steps.rows.tolist()):
                key = keys[steps.tape][row]
                if by != "instruction":
                    info = self.profile.tapes[steps.tape].rows[row]
                    key = (key[0], getattr(info, by) or "(none)")
                columns.setdefault(key, []).append(slot)
            for key, slots in columns.items():
                found.setdefault(key, []).append(_sum(steps.seconds[:, slots]))
        return {key: _finite(np.concatenate(parts)) for key, parts in found.items()}

    def walls(self) -> dict[str, np.ndarray]:
        """{tape: seconds of each of its steps}."""
        found: dict[str, list[np.ndarray]] = {}
        for steps in self.steps:
            found.setdefault(self.tapes[steps.tape], []).append(steps.walls)
        return {key: _finite(np.concatenate(parts)) for key, parts in found.items()}


@dataclass
class _Steps:
    """Steps of a tape. rows: of each slot; seconds: float64 (steps, slots); walls: float64 (steps,)."""

    tape: int
    rows: np.ndarray
    seconds: np.ndarray
    walls: np.ndarray


def _steps_of(profile: Profile) -> list[_Steps]:
    """All steps that are kept; one that was run by several calls (forward, then backward) is put together again."""
    found: list[_Steps] = []
    begun: dict[int, _Steps] = {}
    for run in profile.runs:
        if not run.steps or not len(run.rows):
            continue
        part = _Steps(run.tape, run.rows, _row_seconds(run), run.walls)
        before = begun.get(run.tape)
        whole = len(run.rows) >= len(profile.tapes[run.tape].rows) or run.steps > 1
        if not whole and before is not None and before.rows[-1] < run.rows[0]:
            before.rows = np.concatenate([before.rows, part.rows])
            before.seconds = np.concatenate([before.seconds, part.seconds], axis=1)
            before.walls = before.walls + part.walls
            continue
        found.append(part)
        if whole:
            begun.pop(run.tape, None)
        else:
            begun[run.tape] = part
    return found


def pair_tapes(a: Sequence[TapeInfo], b: Sequence[TapeInfo]) -> tuple[list[str], list[str]]:
    """A name for each tape; those that belong together have the same one, which is "" where there is one on both sides."""
    if len(a) == len(b) == 1 and a[0].name == b[0].name:
        return [""], [""]
    # Not by the numbers that tell tapes of one name apart: they go by which ran first.
    before, after = _paired(*([(t.name.partition(" #")[0], t.sizes) for t in side] for side in (a, b)))
    return [" ".join(filter(None, name)) for name in before], [" ".join(filter(None, name)) for name in after]


def pair_rows(a: Side, b: Side) -> tuple[list[list[tuple[str, ...]]], list[list[tuple[str, ...]]]]:
    """The key of each row of each tape: (tape, phase, op, layer, number among those that are alike)."""
    found: tuple[list[Any], list[Any]] = ([()] * len(a.tapes), [()] * len(b.tapes))
    for name in dict.fromkeys((*a.tapes, *b.tapes)):
        places = [side.tapes.index(name) if name in side.tapes else None for side in (a, b)]
        rows = [[] if i is None else side.profile.tapes[i].rows for side, i in zip((a, b), places, strict=True)]
        paired = _paired(*([(_identity(row), (row.operands, row.results)) for row in side] for side in rows))
        for keys, place, names in zip(found, places, paired, strict=True):
            if place is not None:
                keys[place] = [(name, *identity, number) for identity, number in names]
    return found


def _identity(row: RowInfo) -> tuple[str, str, str]:
    return row.phase, row.op, row.layer or row.node


def _paired(
    a: Sequence[tuple[Any, Hashable]], b: Sequence[tuple[Any, Hashable]]
) -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
    """For each (identity, details) of both sides (identity, number); what belongs together has equal ones.

    The number is "" for the first of an identity, then "#2" and so on.
    """
    found: tuple[list[Any], list[Any]] = ([None] * len(a), [None] * len(b))
    places: dict[Any, tuple[list[int], list[int]]] = {}
    for side, items in enumerate((a, b)):
        for i, (identity, _) in enumerate(items):
            places.setdefault(identity, ([], []))[side].append(i)
    for identity, (left, right) in places.items():
        numbered = numbers([a[i][1] for i in left], [b[i][1] for i in right])
        for side, own in enumerate((left, right)):
            for i, number in zip(own, numbered[side], strict=True):
                found[side][i] = identity, f"#{number + 1}" if number else ""
    return found


def numbers(a: Sequence[Hashable], b: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """A number for each entry: in the order of `a`, equal for entries that belong together, other ones for those without a partner."""
    left = list(range(len(a)))
    if len(a) == len(b):
        return left, left
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    partner = {block.b + i: block.a + i for block in blocks for i in range(block.size)}
    if not partner:  # other sizes throughout: another batch, say
        partner = dict(zip(range(len(b)), left))
    spare = iter(range(len(a), len(a) + len(b)))
    return left, [partner[i] if i in partner else next(spare) for i in range(len(b))]


def _row_seconds(run: RunSamples) -> np.ndarray:
    """float64 (steps, slots): of the slowest worker; NaN where no worker took part."""
    return np.fmax.reduce(run.end - run.begin, axis=1)


def _sum(seconds: np.ndarray) -> np.ndarray:
    """Along axis 1, over what is there; NaN where nothing is."""
    absent = np.isnan(seconds)
    return np.where(absent.all(axis=1), np.nan, np.where(absent, 0.0, seconds).sum(axis=1))


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
