"""A profile as a trace in the Trace Event Format, for Perfetto (ui.perfetto.dev) and chrome://tracing.

The format: "Trace Event Format", the Chromium project, JSON Object Format. A process for each calling thread; in it a track each for
steps, phases and nodes and one for each worker, and a counter of live memory. Times are microseconds with three digits behind the
point, which is what Perfetto keeps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tapeprop.profiler.profile import Profile, RowInfo, RunSamples, TapeInfo
from tapeprop.profiler.tracks import (
    Spans,
    groups,
    lanes,
    node_name,
    present,
    run_bounds,
    runs_side_by_side,
    waits,
    whole_rows,
    worker_spans,
)
from tapeprop.runtime.writing import write_text

__all__ = ["CATEGORIES", "write"]

#: The categories of complete events.
CATEGORIES = ("instruction", "wait", "phase", "node", "step")
_INSTRUCTION, _WAIT, _PHASE, _NODE, _STEP, _COUNTER = range(6)
# No number of a process: Perfetto would take that track for the main thread.
_TRACKS = {_STEP: 1001, _PHASE: 1002, _NODE: 1003}
_FIRST_WORKER = 1010


def write(profile: Profile, path: str | os.PathLike) -> Path:
    """Writes the trace to `path`, which is given back. OSError where it cannot be written.

    Events come in the order of time. Instructions have row, op, node, layer, phase, shapes, flops, traffic in bytes, and GFLOP/s where
    there are operations, of all workers over the time of the slowest. Spans that the profile has dropped are missing.
    """
    return write_text(path, _Writer(profile).parts())


@dataclass(frozen=True)
class _Events:
    """Events of one run as columns. kind: as _INSTRUCTION and so on. value: bytes, of a counter."""

    begin: np.ndarray
    end: np.ndarray
    kind: np.ndarray
    track: np.ndarray
    place: np.ndarray
    value: np.ndarray


def _columns(kind: int, track: int, spans: Spans, value: np.ndarray | None = None) -> _Events:
    count = len(spans.begin)
    numbers = np.zeros(count, np.int64) if value is None else value
    return _Events(spans.begin, spans.end, np.full(count, kind), np.full(count, track), spans.place, numbers)


def _events(run: RunSamples, tape: TapeInfo) -> _Events:
    """All that happens in a run, unsorted."""
    last = run_bounds(run)[1]
    rows = whole_rows(run)
    info = tape.rows
    parts = [
        _columns(_STEP, _TRACKS[_STEP], _steps(rows, len(run.rows))),
        _columns(_PHASE, _TRACKS[_PHASE], groups(rows, run, lambda row: info[row].phase)),
        _columns(_NODE, _TRACKS[_NODE], groups(rows, run, lambda row: (info[row].phase, info[row].node))),
        _memory(run, tape, rows, last),
    ]
    for worker in range(run.begin.shape[1]):
        spans = worker_spans(run, worker)
        parts.append(_columns(_INSTRUCTION, _FIRST_WORKER + worker, spans))
        parts.append(_columns(_WAIT, _FIRST_WORKER + worker, waits(spans, run)))
    return _Events(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Events.__dataclass_fields__))


def _steps(rows: Spans, slots: int) -> Spans:
    if not len(rows.place):
        return rows
    step = rows.place // slots
    first = np.flatnonzero(np.append([True], np.diff(step) != 0))
    final = np.append(first[1:], len(step)) - 1
    return Spans(rows.begin[first], rows.end[final], rows.place[first])


def _memory(run: RunSamples, tape: TapeInfo, rows: Spans, last: int) -> _Events:
    """Live bytes where they change, and none behind the run."""
    live = np.asarray(tape.memory.live, np.int64)
    if len(live) < len(tape.rows) or not len(rows.place):
        return _columns(_COUNTER, 0, Spans(*(np.zeros(0, np.int64),) * 3))
    value = np.append(live[np.asarray(run.rows)[rows.place % len(run.rows)]], 0)
    at = np.append(rows.begin, last)
    place = np.append(rows.place, 0)
    changes = np.append([True], np.diff(value) != 0)
    return _columns(_COUNTER, 0, Spans(at[changes], at[changes], place[changes]), value[changes])


class _Writer:
    """Writes a profile event by event: a million of them are never held as text."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self.lanes = lanes(profile)
        self.process = {i: number for number, lane in enumerate(self.lanes, 1) for i in lane.runs}
        self.rows = [[_arguments(row) for row in tape.rows] for tape in profile.tapes]
        self.names = [
            [tuple(map(json.dumps, (row.op, node_name(row), row.phase))) for row in tape.rows] for tape in profile.tapes
        ]

    def parts(self) -> Iterator[str]:
        """The whole file."""
        yield f'{{"displayTimeUnit":"ns","otherData":{json.dumps(_other_data(self.profile))},"traceEvents":['
        separator = "\n"
        for line in self.lines():
            yield separator + line
            separator = ",\n"
        yield "\n]}\n"

    def lines(self) -> Iterator[str]:
        """The events as JSON, names first."""
        yield from self._names()
        for bundle in runs_side_by_side(self.profile):
            yield from self._bundle(bundle)

    def _names(self) -> Iterator[str]:
        for number, lane in enumerate(self.lanes, 1):
            yield _metadata("process_name", number, 0, name=f"tapeprop: {lane.name}")
            yield _metadata("process_sort_index", number, 0, sort_index=number)
            if self.profile.dropped:
                yield _metadata("process_labels", number, 0, labels=f"{self.profile.dropped} earlier spans dropped")
            tracks = {track: f"{CATEGORIES[kind]}s" for kind, track in _TRACKS.items()}
            for worker in sorted({w for i in lane.runs for w in present(self.profile.runs[i])}):
                tracks[_FIRST_WORKER + worker] = f"worker {worker}" + ("" if worker else f" ({lane.name})")
            for track, name in tracks.items():
                yield _metadata("thread_name", number, track, name=name)
                yield _metadata("thread_sort_index", number, track, sort_index=track)

    def _bundle(self, bundle: list[int]) -> Iterator[str]:
        """The events of runs that go on at the same time, sorted together."""
        found = [_events(self.profile.runs[i], self.profile.tapes[self.profile.runs[i].tape]) for i in bundle]
        run = np.concatenate([np.full(len(events.begin), k) for k, events in enumerate(found)])
        begin, end, kind, track, place, value = (
            np.concatenate([getattr(events, name) for events in found]) for name in _Events.__dataclass_fields__
        )
        # A run that goes on inside another one's row began later; of one run's spans that begin together one has no length.
        order = np.lexsort((end, run, begin))
        texts = [_Run(self, i) for i in bundle]
        columns = (column[order].tolist() for column in (run, begin, end, kind, track, place, value))
        for k, *event in zip(*columns):
            yield texts[k].event(*event)


class _Run:
    """Turns the columns of one run into JSON."""

    def __init__(self, writer: _Writer, index: int):
        self.index = index
        self.run = writer.profile.runs[index]
        self.tape = writer.profile.tapes[self.run.tape]
        self.arguments = writer.rows[self.run.tape]
        self.process = writer.process[index]
        self.slots = self.run.rows.tolist()
        self.rates = self._rates()
        self.names = writer.names[self.run.tape]
        self.counter = json.dumps(f"live memory of {self.tape.name}")

    def _rates(self) -> list[float]:
        """GFLOP/s of each row in each step; NaN where it has no operations or took no time that can be told."""
        flops = np.array([self.tape.rows[row].flops for row in self.slots], np.float64)
        if not self.run.begin.shape[1]:
            return []
        seconds = np.fmax.reduce(self.run.end - self.run.begin, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = np.where((flops > 0) & (seconds > 0), flops / seconds / 1e9, np.nan)
        return rates.reshape(-1).tolist()

    def event(self, begin: int, end: int, kind: int, track: int, place: int, value: int) -> str:
        """One event."""
        at = f'"ts":{_microseconds(begin)},"pid":{self.process}'
        if kind == _COUNTER:
            return f'{{"name":{self.counter},"ph":"C",{at},"args":{{"bytes":{value}}}}}'
        step, slot = divmod(place, len(self.slots))
        row = self.slots[slot]
        name, arguments = self._described(kind, row, step, place)
        return (
            f'{{"name":{name},"cat":"{CATEGORIES[kind]}","ph":"X",{at},"tid":{track},'
            f'"dur":{_microseconds(end - begin)},"args":{{{arguments}}}}}'
        )

    def _described(self, kind: int, row: int, step: int, place: int) -> tuple[str, str]:
        op, node, phase = self.names[row]
        if kind == _INSTRUCTION:
            rate = self.rates[place]
            return op, self.arguments[row] + (f',"GFLOP/s":{rate:.6g}' if math.isfinite(rate) else "")
        if kind == _WAIT:
            return '"wait"', f'"after row":{row},"op":{op}'
        if kind == _STEP:
            return json.dumps(self.tape.name), f'"step":{step},"run":{self.index},"tape":{self.run.tape}'
        return (phase, f'"step":{step}') if kind == _PHASE else (node, f'"step":{step},"phase":{phase}')


def _microseconds(nanoseconds: int) -> str:
    sign, size = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    return f"{sign}{size // 1000}.{size % 1000:03d}"


def _arguments(row: RowInfo) -> str:
    """What stands between the braces of an instruction's arguments, but for its rate."""
    found = {
        "row": row.row,
        "op": row.op,
        "node": row.node,
        "layer": row.layer,
        "phase": row.phase,
        "operands": list(row.operands),
        "results": list(row.results),
        "flops": int(row.flops),
        "traffic": int(row.traffic),
    }
    return json.dumps(found, separators=(",", ":"))[1:-1]


def _metadata(kind: str, process: int, track: int, **arguments: Any) -> str:
    return json.dumps({"name": kind, "ph": "M", "pid": process, "tid": track, "args": arguments}, separators=(",", ":"))


def _other_data(profile: Profile) -> dict[str, str]:
    """Where the trace comes from; viewers show it as text."""
    found = {"program": "tapeprop", "what": profile.what, "created": profile.created, **profile.machine}
    if profile.dropped:
        found["dropped spans"] = profile.dropped
    return {str(name): str(value) for name, value in found.items()}
