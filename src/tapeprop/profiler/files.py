"""A profile as a JSON file, and back. Times are whole nanoseconds since the profile began; -1 where a worker took no part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tapeprop.profiler.profile import Block, Memory, NodeInfo, Outline, Profile, Roofs, RowInfo, RunSamples, TapeInfo
from tapeprop.runtime.writing import write_text

FORMAT, VERSION = "tapeprop profile", 1
_PLAIN = ("what", "created", "machine", "seconds", "compile_seconds", "lowering_seconds", "dropped", "counters")


def write(profile: Profile, path: str | os.PathLike[str]) -> Path:
    """Writes a profile, whole or not at all; the path. OSError."""
    return write_text(path, _parts(profile))


def _parts(profile: Profile) -> Iterator[str]:
    head = {"format": FORMAT, "version": VERSION, **{name: getattr(profile, name) for name in _PLAIN}}
    head["tapes"] = [_tape_to_plain(tape) for tape in profile.tapes]
    head["outlines"] = [asdict(outline) for outline in profile.outlines]
    head["roofs"] = None if profile.roofs is None else _roofs_to_plain(profile.roofs)
    yield json.dumps(head, allow_nan=False)[:-1] + ',\n"runs": ['
    for i, run in enumerate(profile.runs):  # one at a time: there may be many
        yield (",\n" if i else "\n") + json.dumps(_run_to_plain(run), separators=(",", ":"), allow_nan=False)
    yield "\n]}\n"


def read(path: str | os.PathLike[str]) -> Profile:
    """The profile in a file. OSError where it cannot be read, ValueError where it holds no profile of this version."""
    name = os.fspath(path)
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{name}: expected a profile written by to_json(), got a file that is no JSON ({error})"
        ) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{name}: expected a profile written by to_json(), got other JSON")
    if found.get("version") != VERSION:
        raise ValueError(
            f"{name}: expected version {VERSION} of the format, got {found.get('version')!r}; profile again"
        )
    try:
        return _from_plain(found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"{name}: the profile is damaged ({type(error).__name__}: {error}); profile again") from None


def _from_plain(found: dict[str, Any]) -> Profile:
    tapes = [_tape_from_plain(tape) for tape in found["tapes"]]
    runs = [_run_from_plain(run) for run in found["runs"]]
    for run in runs:
        if not 0 <= run.tape < len(tapes) or (run.rows.size and run.rows.max() >= len(tapes[run.tape].rows)):
            raise ValueError("a run names a row that its tape does not have")
    outlines = tuple(
        Outline(
            tuple(NodeInfo(**node) for node in item["nodes"]),
            tuple((str(a), str(b)) for a, b in item["edges"]),
            tuple(item["roots"]),
            tuple(item["terms"]),
        )
        for item in found["outlines"]
    )
    roofs = None if found["roofs"] is None else _roofs_from_plain(found["roofs"])
    return Profile(tapes=tapes, runs=runs, outlines=outlines, roofs=roofs, **{name: found[name] for name in _PLAIN})


def _tape_to_plain(tape: TapeInfo) -> dict[str, Any]:
    return {
        "name": tape.name,
        "sizes": tape.sizes,
        "workers": tape.workers,
        "arena": tape.arena,
        "outline": tape.outline,
        "steps": tape.steps,
        "wall": tape.wall,
        "rows": [asdict(row) for row in tape.rows],
        "memory": asdict(tape.memory),
        "busy": tape.busy.tolist(),
        "waits": tape.waits.tolist(),
        "calls": tape.calls.tolist(),
    }


def _tape_from_plain(found: dict[str, Any]) -> TapeInfo:
    plain: list[dict[str, Any]] = [
        {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
        for row in found["rows"]
    ]
    rows = [RowInfo(**row) for row in plain]
    memory = dict(found["memory"])
    memory["live"], memory["blocks"] = tuple(memory["live"]), tuple(Block(**block) for block in memory["blocks"])
    shape = len(rows), int(found["workers"])
    return TapeInfo(
        found["name"],
        tuple(found["sizes"]),
        shape[1],
        rows,
        Memory(**memory),
        found["steps"],
        np.array(found["busy"], np.float64).reshape(shape),
        np.array(found["calls"], np.int64).reshape(len(rows)),
        found["wall"],
        np.array(found["waits"], np.float64).reshape(shape),
        found["arena"],
        found["outline"],
    )


def _run_to_plain(run: RunSamples) -> dict[str, Any]:
    begin = np.where(np.isnan(run.begin), -1, np.rint(np.nan_to_num(run.begin) * 1e9)).astype(np.int64)
    length = np.rint(np.nan_to_num(run.end - run.begin) * 1e9).astype(np.int64)
    return {
        "tape": run.tape,
        "thread": run.thread,
        "start": round(run.start * 1e9),
        "stop": round(run.stop * 1e9),
        "shape": run.begin.shape,  # steps, workers, slots
        "rows": run.rows.tolist(),
        "begin": begin.reshape(-1).tolist(),
        "length": length.reshape(-1).tolist(),
    }


def _run_from_plain(found: dict[str, Any]) -> RunSamples:
    shape = tuple(found["shape"])
    begin = np.array(found["begin"], np.float64).reshape(shape)
    end = begin + np.array(found["length"], np.float64).reshape(shape)
    absent = begin < 0
    begin[absent] = end[absent] = np.nan
    rows = np.array(found["rows"], np.int64).reshape(shape[2])
    start, stop = found["start"] / 1e9, found["stop"] / 1e9
    return RunSamples(int(found["tape"]), rows, begin / 1e9, end / 1e9, start, stop, found["thread"])


def _roofs_to_plain(roofs: Roofs) -> dict[str, Any]:
    return {
        "flops": [[dtype, workers, rate] for (dtype, workers), rate in roofs.flops.items()],
        "bandwidth": {str(workers): levels for workers, levels in roofs.bandwidth.items()},
    }


def _roofs_from_plain(found: dict[str, Any]) -> Roofs:
    levels = {int(w): tuple((int(size), float(rate)) for size, rate in v) for w, v in found["bandwidth"].items()}
    return Roofs({(str(dtype), int(workers)): float(rate) for dtype, workers, rate in found["flops"]}, levels)
