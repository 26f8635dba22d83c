"""A profile as a file for speedscope (www.speedscope.app): for each worker what it did, phase over node over op.

The format: speedscope's "file format schema", evented profiles. Times are whole nanoseconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tapeprop.profiler.profile import Profile, RowInfo
from tapeprop.profiler.tracks import (
    Spans,
    groups,
    lanes,
    node_name,
    present,
    run_bounds,
    runs_side_by_side,
    waits,
    with_waits,
    worker_spans,
)
from tapeprop.runtime.writing import write_text

__all__ = ["SCHEMA", "write"]

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def write(profile: Profile, path: str | os.PathLike) -> Path:
    """Writes the file to `path`, which is given back. OSError where it cannot be written.

    One profile for each worker of each calling thread; the first is the one that is shown. A wait stands under the node of the row
    before it. Spans that the profile has dropped are missing.
    """
    return write_text(path, _parts(profile))


def _parts(profile: Profile) -> Iterator[str]:
    frames = _Frames()
    bounds = [run_bounds(run) for run in profile.runs]
    ends = min((start for start, _ in bounds), default=0), max((stop for _, stop in bounds), default=0)
    yield f'{{"$schema":{json.dumps(SCHEMA)},"exporter":"tapeprop","name":{json.dumps(_name(profile))},'
    yield '"activeProfileIndex":0,"profiles":['
    separator = "\n"
    for lane in lanes(profile):
        for worker in sorted({worker for i in lane.runs for worker in present(profile.runs[i])}):
            name = json.dumps(f"{lane.name}: worker {worker}")
            yield f'{separator}{{"type":"evented","name":{name},"unit":"nanoseconds",'
            yield f'"startValue":{ends[0]},"endValue":{ends[1]},"events":['
            yield from _events(_pieces(profile, lane.runs, worker, frames))
            yield "]}"
            separator = ",\n"
    # behind the profiles, since only they tell which frames there are
    yield f'\n],"shared":{{"frames":{json.dumps(frames.plain)}}}}}\n'


def _name(profile: Profile) -> str:
    dropped = f", {profile.dropped} earlier spans dropped" if profile.dropped else ""
    return f"tapeprop {profile.what} {profile.created}{dropped}"


class _Frames:
    """The frames that the profiles share, numbered as they come. Those of a kind have the kind as their file."""

    def __init__(self) -> None:
        self.plain: list[dict[str, str]] = []
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, kind: str, name: str) -> int:
        """The number of a frame."""
        found = self._numbers.get((kind, name))
        if found is None:
            found = self._numbers[kind, name] = len(self.plain)
            self.plain.append({"name": name, "file": kind})
        return found


# begin, end, frame
_Piece = tuple[int, int, int]


def _events(pieces: Iterable[_Piece]) -> Iterator[str]:
    """Opening and closing events of pieces that nest, sorted by begin, outer before inner."""
    open_: list[tuple[int, int]] = []
    separator = ""
    for begin, end, frame in pieces:
        while open_ and open_[-1][0] <= begin:
            yield f'{separator}{{"type":"C","at":{open_[-1][0]},"frame":{open_.pop()[1]}}}'
        end = min(end, open_[-1][0]) if open_ else end
        yield f'{separator}{{"type":"O","at":{begin},"frame":{frame}}}'
        open_.append((end, frame))
        separator = ","
    for end, frame in reversed(open_):
        yield f',{{"type":"C","at":{end},"frame":{frame}}}'


def _pieces(profile: Profile, indices: list[int], worker: int, frames: _Frames) -> Iterator[_Piece]:
    """What a worker did in some runs."""
    for bundle in runs_side_by_side(profile, indices):
        found = [
            (begin, -end, order, depth, frame)
            for order, i in enumerate(bundle)
            for depth, begin, end, frame in _pieces_of(profile, i, worker, frames)
        ]
        yield from ((begin, -end, frame) for begin, end, _, _, frame in sorted(found))


def _pieces_of(profile: Profile, index: int, worker: int, frames: _Frames) -> Iterator[tuple[int, int, int, int]]:
    """(depth, begin, end, frame) of each piece of a run that takes any time at all."""
    run = profile.runs[index]
    info = profile.tapes[run.tape].rows
    if worker not in present(run):
        return
    rows = worker_spans(run, worker)
    every = with_waits(rows, run)
    slots = run.rows.tolist()
    kinds: list[tuple[str, Spans, Callable[[RowInfo], str]]] = [
        ("phase", groups(every, run, lambda row: info[row].phase), lambda row: row.phase),
        ("node", groups(every, run, lambda row: (info[row].phase, info[row].node)), node_name),
        ("op", rows, lambda row: row.op),
        ("wait", waits(rows, run), lambda row: "wait"),
    ]
    for depth, (kind, spans, name) in enumerate(kinds):
        known = [frames.number(kind, name(info[row])) for row in slots] if len(spans.place) else []
        for begin, end, place in zip(spans.begin.tolist(), spans.end.tolist(), spans.place.tolist()):
            if end > begin:
                yield depth, begin, end, known[place % len(slots)]
