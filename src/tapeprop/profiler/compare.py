"""Two profiles side by side: what became slower or faster and by how much, and what of it is more than chance.

The figure of a group is the median over the measured steps, its change the ratio of the two medians. The interval of the ratio comes from
the bootstrap (Efron and Tibshirani 1993, An Introduction to the Bootstrap): steps of both profiles are drawn anew with replacement, and
the 95 % interval lies between percentiles of the ratios (ch. 13). The corrected form (BCa, ch. 14) is not used: its acceleration comes
from the jackknife, which fails for medians (section 11.6).

In a tape of 150 instructions that did not change, seven intervals of 95 % leave 1 out by chance. So a group among m counts as changed only
where its interval of 1 - 0.05/m leaves 1 out (Bonferroni): two equal profiles show any change in one comparison of twenty.

What the interval cannot know: how much the machine itself drifts between the two measurements. Where others share it, measure both
again, in turns.
"""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tapeprop.profiler.alignment import Side, pair_rows, pair_tapes
from tapeprop.profiler.profile import Profile
from tapeprop.profiler.tables import BY
from tapeprop.profiler.text import Table, seconds_text, size_text
from tapeprop.runtime.writing import write_text

__all__ = ["Change", "Comparison", "Count", "compare"]

WIDTH = 120
LEVEL = 0.05
MANY = 10  # times as long, above which per cent are no words for it
DRAWS = 10_000
MOST_DRAWS = 100_000
MEMORY = ("arena", "unshared", "parameters", "gradients", "optimizer", "other", "inputs", "scratch")
#: Without as many steps the interval from the smallest to the largest misses the median more often than one time in twenty.
LEAST_STEPS = 6


@dataclass(frozen=True)
class Change:
    """One group in both profiles, or in one of them.

    key: (tape, phase, op, layer, "#2" for the second of these, ...) of an instruction, (tape, its name) of another group; "" for the only
    tape. before, after: median seconds of a step in the first and the second profile, NaN where the group is not there. ratio: after /
    before. low, high: ends of its 95 % interval. All three are NaN where there is nothing to tell. significant: more than chance, see
    the module. steps: how many were measured in each.
    """

    key: tuple[str, ...]
    before: float
    after: float
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    significant: bool = False
    steps: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """The key in one line."""
        return " ".join(filter(None, self.key))

    @property
    def change(self) -> float:
        """Seconds that it takes more; what is not there takes none."""
        return float(np.nan_to_num(self.after) - np.nan_to_num(self.before))

    @property
    def state(self) -> str:
        """ "new", "gone", "slower", "faster", or "" where nothing is certain."""
        if math.isnan(self.before) != math.isnan(self.after):
            return "new" if math.isnan(self.before) else "gone"
        return ("slower" if self.ratio > 1 else "faster") if self.significant else ""


@dataclass(frozen=True)
class Count:
    """An exact figure: of a counter, or of memory in bytes. None where a profile does not have it."""

    name: str
    before: int | None
    after: int | None


@dataclass
class Comparison:
    """What `compare` found; print it.

    whole: a step; where both profiles have several tapes, the sum of a step of each, whose names are its key. rows: all groups, the
    largest change in seconds first. counters, memory: the exact figures that both or one have, equal ones included. notes: what limits
    the comparison.
    """

    by: str
    whole: Change
    rows: list[Change]
    counters: list[Count] = field(default_factory=list)
    memory: list[Count] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> list[Change]:
        """The groups that are slower, faster, new or gone."""
        return [row for row in self.rows if row.state]

    def slower_by(self, part: float) -> bool:
        """Whether the step got slower by more than this part (0.05: 5 %), by its median and by the lower end of its interval.

        False where too few steps were measured to tell.
        """
        return bool(self.whole.ratio > 1 + part and self.whole.low > 1 + part)

    def table(self, top: int | None = 20) -> Table:
        """The `top` largest changes (None: all groups) to print."""
        shown = self.rows[:top]
        names = ("tape", *(("phase", "op", "layer", "") if self.by == "instruction" else (self.by,)))
        headings = (*names, "before", "after", "change", "ratio", "95 % interval", "verdict")
        footer = "\n".join(self._foot(len(self.rows) - len(shown)))
        lines = [(*row.key, *_cells(row)) for row in shown]
        return Table(self._head(), headings, lines, (*names, "verdict"), footer)

    def __str__(self) -> str:
        return str(self.table())

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; NaN and infinities are None."""
        found = asdict(self)
        found["whole"] |= {"state": self.whole.state, "change": self.whole.change}
        for plain, row in zip(found["rows"], self.rows, strict=True):
            plain |= {"state": row.state, "change": row.change}
        return _plain(found)

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Writes `to_dict()` to a JSON file; the path. OSError."""
        return write_text(path, [json.dumps(self.to_dict(), indent=2, allow_nan=False), "\n"])

    def __iter__(self) -> Iterator[Change]:
        return iter(self.rows)

    def _head(self) -> str:
        whole = self.whole
        step = "a step" if len(whole.key) < 2 else f"a step of each of {len(whole.key)} tapes"
        if math.isnan(whole.ratio):
            return f"{step}: nothing to compare"
        text = f"{step}: {seconds_text(whole.before)} -> {seconds_text(whole.after)}"
        if math.isnan(whole.low):
            return f"{text}, {_percent(whole.ratio)}; whether that is chance cannot be told"
        interval = f"95 % interval {_signed(whole.low)} to {_signed(whole.high)}"
        return f"{text}, {_percent(whole.ratio)} ({interval}){'' if whole.significant else ': may be chance'}"

    def _foot(self, more: int) -> Iterator[str]:
        if more > 0:
            yield f"{more} more"
        for title, counts, text in (("counters", self.counters, _number), ("memory", self.memory, _bytes)):
            differing = [c for c in counts if c.before != c.after]
            if differing:
                shown = (f"{c.name} {text(c.before)} -> {text(c.after)}" for c in differing)
                yield textwrap.fill(
                    f"{title}: {', '.join(shown)}", WIDTH, subsequent_indent="  ", break_on_hyphens=False
                )
            elif counts:
                yield f"{title}: equal"
        yield from self.notes


def compare(a: Profile, b: Profile, by: str = "instruction", seed: int = 0) -> Comparison:
    """How `b` differs from `a`, by "instruction", "op", "node", "layer" or "phase".

    Tapes are matched by name, instructions by phase, op and layer; of several that agree in these, the first with the first, or where
    one profile has more of them, those whose operands have the same shapes in the same order: an instruction that comes in between
    shifts no other. seed: of the bootstrap. ValueError for another `by`.
    """
    if by not in BY:
        raise ValueError(f"compare: expected by={' or '.join(map(repr, BY))}, got {by!r}")
    sides = [Side(profile, tapes) for profile, tapes in zip((a, b), pair_tapes(a.tapes, b.tapes), strict=True)]
    draws = _Draws(seed)
    groups = [side.groups(by, keys) for side, keys in zip(sides, pair_rows(*sides), strict=True)]
    keys = list(dict.fromkeys((*groups[0], *groups[1])))
    rivals = sum(key in groups[0] and key in groups[1] for key in keys)
    rows = [_changed(key, [[side[key]] if key in side else [] for side in groups], draws, rivals) for key in keys]
    rows.sort(key=lambda row: (-abs(row.change), row.key))
    walls = [side.walls() for side in sides]
    common = [key for key in walls[0] if key in walls[1]]
    whole = _changed(tuple(common), [[side[key] for key in common] for side in walls], draws)
    memory = _memory(*sides), _memory(*sides[::-1])
    return Comparison(
        by,
        whole,
        rows,
        _counts(a.counters, b.counters),
        _counts(*memory),
        [*_step_notes(walls, rivals), *_differences(*sides)],
    )


# ---- figures


class _Draws:
    """Medians of samples that are drawn anew with replacement.

    What is drawn are the ranks of the two values in the middle: for samples of one size they are drawn once.
    """

    def __init__(self, seed: int):
        self._random = np.random.default_rng(seed)
        self._ranks: dict[Hashable, tuple[np.ndarray, np.ndarray]] = {}

    def medians(self, values: np.ndarray, which: Hashable, draws: int) -> np.ndarray:
        """float64 (draws,). values: at least one, finite. which: draws of other samples are independent of these."""
        key = len(values), which, draws
        if key not in self._ranks:
            size = (draws, len(values))
            ranks = np.sort(self._random.integers(0, len(values), size, np.int32), axis=1)
            self._ranks[key] = ranks[:, (len(values) - 1) // 2].copy(), ranks[:, len(values) // 2].copy()
        low, high = self._ranks[key]
        ordered = np.sort(values)
        return (ordered[low] + ordered[high]) / 2


def _changed(key: tuple[str, ...], sides: Sequence[Sequence[np.ndarray]], draws: _Draws, rivals: int = 1) -> Change:
    """The change of a sum of medians. sides: the samples of each part, before and after. rivals: how many are compared, this included."""
    before, after = sides
    old, new = (float(sum(map(np.median, side))) if side and all(map(len, side)) else math.nan for side in sides)
    steps = min(map(len, before), default=0), min(map(len, after), default=0)
    if min(steps) == 0:
        return Change(key, old, new, steps=steps)
    ratio = float(_ratios(np.array(old), np.array(new)))
    if min(steps) < LEAST_STEPS:
        return Change(key, old, new, ratio, steps=steps)

    def interval(level: float, count: int) -> tuple[float, float]:
        drawn = [
            np.sum([draws.medians(part, (side, i), count) for i, part in enumerate(parts)], axis=0)
            for side, parts in enumerate(sides)
        ]
        # Of NumPy's quantiles only those without interpolation can take infinities.
        ratios, outside = np.sort(_ratios(*drawn)), int(level / 2 * count)
        return float(ratios[outside]), float(ratios[-1 - outside])

    low, high = interval(LEVEL, DRAWS)
    strict = LEVEL / rivals
    # The smallest and the largest of n values enclose the median in all but 2^(1-n) of cases; no interval of theirs can promise more.
    significant = 2.0 ** (1 - min(steps)) <= strict and not low <= 1 <= high
    if significant and rivals > 1:
        least, most = interval(strict, min(max(DRAWS, math.ceil(4 / strict)), MOST_DRAWS))
        significant = not least <= 1 <= most
    return Change(key, old, new, ratio, low, high, significant, steps)


def _ratios(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """b / a; 1 where both are 0, infinite where only `a` is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((a == 0) & (b == 0), 1.0, b / a)


def _counts(a: dict[str, int], b: dict[str, int]) -> list[Count]:
    return [Count(name, a.get(name), b.get(name)) for name in dict.fromkeys((*a, *b))]


def _memory(side: Side, other: Side) -> dict[str, int]:
    """Bytes of the tapes that both sides have."""
    found = {}
    for name, tape in zip(side.tapes, side.profile.tapes, strict=True):
        if name in other.tapes:
            parts = {"peak": max(tape.memory.live, default=0), **{part: getattr(tape.memory, part) for part in MEMORY}}
            found.update({f"{name} {part}".strip(): value for part, value in parts.items()})
    return found


# ---- words


def _step_notes(walls: Sequence[dict[str, np.ndarray]], rivals: int) -> Iterator[str]:
    """Whether the steps suffice. walls: of each side. rivals: the groups that are compared."""
    common = [key for key in walls[0] if key in walls[1]]
    steps = {key: min(len(side[key]) for side in walls) for key in common}
    needed = 1 + math.ceil(math.log2(max(rivals, 1) / LEVEL))
    for few in dict.fromkeys(steps.values()):
        named = ", ".join(key for key, count in steps.items() if key and count == few)
        of = f"of {named} " if named else ""
        measured = "one step was measured" if few == 1 else f"{few} steps were measured"
        if few < LEAST_STEPS:
            yield f"{of}{measured}: that cannot tell a change from chance; profile with {max(needed, 20)} repeats"
        elif few < needed:
            yield f"{of}{measured}: to judge {rivals} groups takes {needed}; profile with {max(needed, 20)} repeats"
    if rivals > 1 and max(steps.values(), default=0) >= needed:
        yield f"slower, faster: more than chance among {rivals} groups, which takes more than a 95 % interval without 1"


def _differences(a: Side, b: Side) -> Iterator[str]:
    """What else differs, so that readers do not look for it in the instructions."""
    for name, one, other in (("first", a, b), ("second", b, a)):
        only = [key or tape.name for key, tape in zip(one.tapes, one.profile.tapes) if key not in other.tapes]
        if only:
            yield f"only in the {name}: {', '.join(only)}"
    for key, tape in zip(a.tapes, a.profile.tapes):
        if key in b.tapes:
            match = b.profile.tapes[b.tapes.index(key)]
            if tape.sizes != match.sizes:
                yield f"inputs of {tape.name} differ: {', '.join(tape.sizes)}; {', '.join(match.sizes)}"
            if tape.workers != match.workers:
                yield f"workers of {tape.name} differ: {tape.workers} and {match.workers}"
    for what in ("cpu", "vector_bits", "usable_cpus", "tapeprop", "numba", "llvmlite", "python"):
        old, new = a.profile.machine.get(what), b.profile.machine.get(what)
        if old != new:
            yield f"{what} differs: {old} and {new}"
    if a.profile.what != b.profile.what:
        yield f"different things were measured: {a.profile.what} and {b.profile.what}"


def _cells(row: Change) -> tuple[str, ...]:
    known = not math.isnan(row.low)
    return (
        seconds_text(row.before),
        seconds_text(row.after),
        f"{'+' if row.change > 0 else ''}{seconds_text(row.change)}",
        f"{row.ratio:.3f}" if not math.isnan(row.ratio) else "",
        f"{row.low:.3f} to {row.high:.3f}" if known else "",
        row.state,
    )


def _percent(ratio: float) -> str:
    if ratio == 1:
        return "equal"
    if ratio >= MANY:
        return f"{_times(ratio)} as long"
    return f"{abs(ratio - 1):.1%} {'slower' if ratio > 1 else 'faster'}"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times"


def _signed(ratio: float) -> str:
    return _times(ratio) if ratio >= MANY else f"{ratio - 1:+.1%}"


def _number(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"


def _bytes(value: int | None) -> str:
    return "none" if value is None else size_text(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
