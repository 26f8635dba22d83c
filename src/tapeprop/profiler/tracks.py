"""Where a profile's spans stand on a time line: whole nanoseconds, by thread and worker, such that what one track holds nests.

Viewers refuse or misplace events of one track that overlap without one holding the other, and some round to nanoseconds on reading.
So everything is rounded here, once; and rows that several workers go through at different times are put one behind the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tapeprop.profiler.profile import Profile, RowInfo, RunSamples

__all__ = [
    "Lane",
    "Spans",
    "groups",
    "in_order",
    "lanes",
    "node_name",
    "present",
    "run_bounds",
    "runs_side_by_side",
    "waits",
    "whole_rows",
    "with_waits",
    "worker_spans",
]


@dataclass(frozen=True)
class Spans:
    """Spans of one run, in order of time; none begins before the one before it ends.

    begin, end: int64 nanoseconds since the profile began. place: int64, step * slots + slot of what each shows, of its first row
    where it shows several.
    """

    begin: np.ndarray
    end: np.ndarray
    place: np.ndarray


@dataclass(frozen=True)
class Lane:
    """Runs of one calling thread. name: its name, with a number where several threads share one. runs: indices into `Profile.runs`."""

    name: str
    runs: list[int]


def _nanoseconds(seconds: np.ndarray) -> np.ndarray:
    return np.rint(np.asarray(seconds) * 1e9).astype(np.int64)


def _spans(begin: np.ndarray, end: np.ndarray) -> Spans:
    """Of float64 seconds (steps, slots), NaN where there is none."""
    begin, end = begin.reshape(-1), end.reshape(-1)
    place = np.flatnonzero(np.isfinite(begin) & np.isfinite(end))
    starts, ends = _nanoseconds(begin[place]), _nanoseconds(end[place])
    starts = np.maximum.accumulate(starts)
    following = np.append(starts[1:], np.iinfo(np.int64).max) if len(starts) else starts
    return Spans(starts, np.clip(ends, starts, following), place)


def worker_spans(run: RunSamples, worker: int) -> Spans:
    """One for each row that the worker had a part in."""
    return _spans(run.begin[:, worker], run.end[:, worker])


def whole_rows(run: RunSamples) -> Spans:
    """One for each row: from the first worker's begin to the last one's end, or to where the next row begins."""
    if not run.begin.shape[1]:
        return _spans(run.begin[:, :0], run.end[:, :0])
    return _spans(np.fmin.reduce(run.begin, axis=1), np.fmax.reduce(run.end, axis=1))


def with_waits(spans: Spans, run: RunSamples) -> Spans:
    """A worker's spans, each until the next one begins, the last until the last of all workers ends."""
    if not len(spans.end):
        return spans
    last = int(_nanoseconds(np.fmax.reduce(run.end, axis=None)))
    return Spans(spans.begin, np.append(spans.begin[1:], max(last, int(spans.end[-1]))), spans.place)


def waits(spans: Spans, run: RunSamples) -> Spans:
    """The gaps behind a worker's spans, each with the place of the row before it."""
    until = with_waits(spans, run).end
    some = until > spans.end
    return Spans(spans.end[some], until[some], spans.place[some])


def groups(spans: Spans, run: RunSamples, label: Callable[[int], object]) -> Spans:
    """Neighbours with one label in one step become one span. label: of a row's number."""
    slots = len(run.rows)
    if not len(spans.place) or not slots:
        return spans
    known: dict[object, int] = {}
    of_slot = np.array([known.setdefault(label(int(row)), len(known)) for row in run.rows])
    slot, step = spans.place % slots, spans.place // slots
    labels, rows = of_slot[slot], np.asarray(run.rows)[slot]
    # a row that does not come after the one before begins another round of a step
    first = np.flatnonzero(
        np.concatenate([[True], (np.diff(labels) != 0) | (np.diff(step) != 0) | (np.diff(rows) <= 0)])
    )
    final = np.append(first[1:], len(labels)) - 1
    return Spans(spans.begin[first], spans.end[final], spans.place[first])


def run_bounds(run: RunSamples) -> tuple[int, int]:
    """(start, stop) of a run in nanoseconds; nothing that it holds lies outside."""
    first = np.fmin.reduce(run.begin, axis=None, initial=run.start)
    last = np.fmax.reduce(run.end, axis=None, initial=run.stop)
    start, stop = _nanoseconds(np.array([first, last])).tolist()
    return start, stop


def present(run: RunSamples) -> list[int]:
    """The workers that took part in a run."""
    return np.flatnonzero(np.isfinite(run.begin).any(axis=(0, 2))).tolist()


def node_name(row: RowInfo) -> str:
    """The node of a row; the phase in brackets where it belongs to none."""
    return row.node or f"({row.phase})"


def in_order(profile: Profile, indices: Iterable[int] | None = None) -> list[int]:
    """Runs (None: all) by their starts; of two that start together the longer first."""
    chosen = range(len(profile.runs)) if indices is None else indices
    bounds = {i: run_bounds(profile.runs[i]) for i in chosen}
    return sorted(bounds, key=lambda i: (bounds[i][0], -bounds[i][1], i))


def runs_side_by_side(profile: Profile, indices: Iterable[int] | None = None) -> Iterator[list[int]]:
    """Runs (None: all) in bundles: those that go on at the same time are in one, and bundles follow one another."""
    bundle: list[int] = []
    last = 0
    for i in in_order(profile, indices):
        start, stop = run_bounds(profile.runs[i])
        if bundle and start >= last:
            yield bundle
            bundle = []
        last = max(last, stop) if bundle else stop
        bundle.append(i)
    if bundle:
        yield bundle


def lanes(profile: Profile) -> list[Lane]:
    """The calling threads in the order of their first runs.

    A run inside a row of another one (of a layer in Python that calls a graph) is in the lane of that one. Runs of one name that go on
    at the same time otherwise are of several threads.
    """
    found: list[_Filling] = []
    for i in in_order(profile):
        run = profile.runs[i]
        start, stop = run_bounds(run)
        mine = [lane for lane in found if lane.thread == run.thread]
        lane = next((lane for lane in mine if lane.takes(profile.runs, start, stop)), None)
        if lane is None:
            name = run.thread if not mine else f"{run.thread} ({len(mine) + 1})"
            lane = _Filling(run.thread, name, [], [])
            found.append(lane)
        lane.runs.append(i)
        lane.open.append(i)
    return [Lane(lane.name, lane.runs) for lane in found]


@dataclass
class _Filling:
    """A lane as runs come to it. open: those that had not ended when the last one began, outermost first."""

    thread: str
    name: str
    runs: list[int]
    open: list[int]

    def takes(self, runs: Sequence[RunSamples], start: int, stop: int) -> bool:
        """Whether a run from `start` to `stop` has a place in it."""
        while self.open and run_bounds(runs[self.open[-1]])[1] <= start:
            self.open.pop()
        return not self.open or _within_a_row(runs[self.open[-1]], start, stop)


def _within_a_row(run: RunSamples, start: int, stop: int) -> bool:
    if not run.begin.shape[1]:
        return False
    rows = worker_spans(run, 0)
    at = int(np.searchsorted(rows.begin, start, side="right")) - 1
    return at >= 0 and stop <= int(rows.end[at])
