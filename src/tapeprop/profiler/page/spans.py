"""The spans that a page shows: the last steps of each tape, as differences of whole nanoseconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tapeprop.profiler.profile import Profile, RunSamples

#: So many spans go into a page, some 10 bytes each, unless one step of every tape has more.
SPANS = 50_000


class Strings:
    """Texts that come many times, each kept once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The place of a text in `texts`."""
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> list[str]:
        """Each text once."""
        return [*self._numbers]


@dataclass
class Part:
    """The last steps of a run, with the number of the first among the steps of its tape."""

    run: RunSamples
    number: int
    track: int = -1

    @property
    def extent(self) -> tuple[float, float]:
        """Seconds from the first begin to the last end."""
        return float(np.nanmin(self.run.begin)), float(np.nanmax(self.run.end))


def shown_runs(profile: Profile, strings: Strings, limit: int = SPANS) -> dict[str, Any]:
    """The runs that are shown, the tracks that they stand in, and for each tape [steps shown, steps kept or ran].

    Times are nanoseconds since the first span shown. A run's `spans` hold, worker after worker and step after step, two numbers for each
    slot: the gap to what that worker did before (at first: to the run's begin) and the length; 0, -1 where it took no part.
    """
    parts, counts = _last_steps(profile, limit)
    parts.sort(key=lambda part: (part.extent[0], -part.extent[1]))
    zero = parts[0].extent[0] if parts else 0.0
    tracks = _into_tracks(parts)
    runs = [
        {
            "tape": part.run.tape,
            "track": part.track,
            "number": part.number,
            "steps": part.run.steps,
            "workers": part.run.begin.shape[1],
            "rows": part.run.rows.tolist(),
            "begin": round((part.extent[0] - zero) * 1e9),
            "spans": _spans(part.run, zero),
        }
        for part in parts
    ]
    return {
        "tracks": [[strings.number(thread), level] for thread, level in tracks],
        "runs": runs,
        "shown": counts,
    }


def _last_steps(profile: Profile, limit: int) -> tuple[list[Part], list[list[int]]]:
    """The last steps of each tape that fit, one of each at least; and [shown, in all] of each tape."""
    of_tape: list[list[RunSamples]] = [[] for _ in profile.tapes]
    for run in profile.runs:
        if np.isfinite(run.begin).any():
            of_tape[run.tape].append(run)
    shares = _shares([sum(run.begin.size for run in runs) for runs in of_tape], limit)
    parts, counts = [], []
    for tape, runs, share in zip(profile.tapes, of_tape, shares, strict=True):
        number = total = max(tape.steps, sum(run.steps for run in runs))
        for run in reversed(runs):
            each = run.begin[0].size
            fits = min(run.steps, share // each)
            if not fits and number == total:
                fits = 1
            if not fits:
                break
            share -= fits * each
            number -= fits
            own = replace(run, begin=run.begin[-fits:], end=run.end[-fits:])
            if np.isfinite(own.begin).any():
                parts.append(Part(own, number))
            if fits < run.steps:
                break
        counts.append([total - number, total])
    return parts, counts


def _shares(wanted: list[int], limit: int) -> list[int]:
    """How many spans each tape gets: all get alike, and what one does not need goes to the others."""
    found = [0] * len(wanted)
    left = limit
    for position, t in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        found[t] = min(wanted[t], left // (len(wanted) - position))
        left -= found[t]
    return found


def _into_tracks(parts: list[Part]) -> list[tuple[str, int]]:
    """Gives each part a track on which nothing overlaps: (thread, level), a level above 0 for runs inside a run of the same thread."""
    reached: dict[str, list[float]] = {}  # of each level of each thread, the last end
    levels = []
    for part in parts:
        begin, end = part.extent
        own = reached.setdefault(part.run.thread, [])
        level = next((i for i, last in enumerate(own) if last <= begin), len(own))
        own[level:] = [end, *own[level + 1 :]]
        levels.append(level)
    tracks = [(thread, level) for thread, own in reached.items() for level in range(len(own))]
    numbers = {track: i for i, track in enumerate(tracks)}
    for part, level in zip(parts, levels, strict=True):
        part.track = numbers[part.run.thread, level]
    return tracks


def _spans(run: RunSamples, zero: float) -> list[int]:
    start = round((float(np.nanmin(run.begin)) - zero) * 1e9)
    found = []
    for worker in range(run.begin.shape[1]):
        begin, end = run.begin[:, worker].ravel(), run.end[:, worker].ravel()
        took_part = np.isfinite(begin)
        first = np.rint((begin[took_part] - zero) * 1e9).astype(np.int64)
        last = np.maximum(np.rint((end[took_part] - zero) * 1e9).astype(np.int64), first)
        pairs = np.tile(np.array([0, -1], np.int64), (begin.size, 1))
        pairs[took_part, 0] = np.diff(last, prepend=start) - (last - first) if first.size else 0
        pairs[took_part, 1] = last - first
        found += pairs.ravel().tolist()
    return found
