"""What a page shows, as plain data for JSON: figures as the tables print them, memory, roofs, the graph with its places, the spans."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tapeprop.graph.drawing.layered import layout
from tapeprop.profiler.colours import phase_colour
from tapeprop.profiler.findings import diagnose
from tapeprop.profiler.page.spans import Strings, shown_runs
from tapeprop.profiler.profile import Memory, Outline, Profile, Roofs, TapeInfo
from tapeprop.profiler.roofs import level_names
from tapeprop.profiler.tables import BY, Figures, cells, figures, row_seconds
from tapeprop.profiler.text import seconds_text, share_text, size_text

NODE_WIDTH, NODE_HEIGHT = 148.0, 40.0


def content(profile: Profile) -> dict[str, Any]:
    """The data of the page. Times of spans are whole nanoseconds since the first that is shown, all others seconds."""
    strings = Strings()
    bases = _bases(profile.tapes)
    medians = row_seconds(profile)
    found = {
        "what": profile.what,
        "created": profile.created,
        "dropped": profile.dropped,
        "machine": [[name, _plain(value)] for name, value in profile.machine.items()],
        "phases": {phase: phase_colour(phase) for phase in _phases(profile)},
        "counters": [[name, f"{value:,}"] for name, value in profile.counters.items()],
        "tapes": [
            _tape(tape, median.tolist(), profile.roofs, strings)
            for tape, median in zip(profile.tapes, medians, strict=True)
        ],
        "scopes": [_scope(profile, t, bases, strings) for t in _scopes(profile)],
        "findings": _findings(profile, bases),
        "outlines": [_outline(outline) for outline in profile.outlines],
        **shown_runs(profile, strings),
    }
    return found | {"strings": strings.texts}


def _phases(profile: Profile) -> list[str]:
    """In the order in which they come up."""
    return list(dict.fromkeys(row.phase for tape in profile.tapes for row in tape.rows))


def _bases(tapes: list[TapeInfo]) -> list[int]:
    """The number of each tape's first row where the rows of all tapes are counted through."""
    found = [0]
    for tape in tapes:
        found.append(found[-1] + len(tape.rows))
    return found


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _tape(tape: TapeInfo, medians: list[float], roofs: Roofs | None, strings: Strings) -> dict[str, Any]:
    rows = [
        [
            *(strings.number(text) for text in (row.phase, row.op, row.node, row.layer)),
            [strings.number(text) for text in row.operands],
            [strings.number(text) for text in row.results],
            strings.number(row.kernel),
            row.flops,
            row.traffic,
            int(row.barrier),
            row.after,
            _short(median),
            strings.number(row.dtype),
        ]
        for row, median in zip(tape.rows, medians, strict=True)
    ]
    return {
        "name": tape.name,
        "sizes": tape.sizes,
        "workers": tape.workers,
        "steps": tape.steps,
        "outline": tape.outline,
        "rows": rows,
        "memory": _memory(tape.memory, strings),
        "roofs": None if roofs is None else _roofs(roofs, tape.workers),
    }


def _memory(memory: Memory, strings: Strings) -> dict[str, Any]:
    kinds = ("parameters", "gradients", "optimizer", "other", "inputs", "scratch")
    held = [("values", memory.arena), *((kind, getattr(memory, kind)) for kind in kinds)]
    return {
        "live": memory.live,
        "peak": memory.peak_row,
        "arena": memory.arena,
        "unshared": memory.unshared,
        "saved": share_text(1 - memory.arena / memory.unshared) if memory.unshared else "",
        "held": [[kind, size_text(nbytes)] for kind, nbytes in held if nbytes],
        "blocks": [[strings.number(b.label), b.offset, b.nbytes, b.first, b.last] for b in memory.blocks],
    }


def _roofs(roofs: Roofs, workers: int) -> dict[str, Any]:
    """Of so many workers, or of the most below that were measured, as `row_roof` takes them."""
    counts = {n for _, n in roofs.flops if n <= workers}
    peaks = [[kind, _short(rate)] for (kind, n), rate in roofs.flops.items() if n == max(counts, default=-1)]
    counts = {n for n in roofs.bandwidth if n <= workers}
    levels = roofs.bandwidth[max(counts)] if counts else ()
    named = zip(level_names(len(levels)), levels, strict=True)
    return {"peaks": peaks, "levels": [[name, _short(rate)] for name, (_, rate) in named]}


def _scopes(profile: Profile) -> list[int | None]:
    """What the reader can look at: each tape, longest first, and all of them where there are several (None)."""
    order = sorted(range(len(profile.tapes)), key=lambda t: -float(profile.tapes[t].busy.sum()))
    return [*order, None] if len(order) > 1 else [*order] or [None]


def _scope(profile: Profile, t: int | None, bases: list[int], strings: Strings) -> dict[str, Any]:
    """The figures of one tape, or of everything."""
    part, start = profile, [0] if t is None else [bases[t]]
    if t is not None:
        tape = profile.tapes[t]
        runs = [replace(run, tape=0) for run in profile.runs if run.tape == t]
        part = replace(profile, what=tape.name, tapes=[tape], runs=runs)
    bases = bases if t is None else start
    shared = any(tape.workers > 1 for tape in part.tapes)
    return {
        "tape": t,
        "name": "all tapes" if t is None else f"{profile.tapes[t].name}({', '.join(profile.tapes[t].sizes)})",
        "unit": "of one step" if part.per_step else "in all",
        "facts": _facts(part),
        "figures": {by: [_figure(f, bases, strings, shared) for f in figures(part, by)] for by in BY},
    }


def _findings(profile: Profile, bases: list[int]) -> dict[str, Any]:
    """What `Profile.diagnose()` says: its title and [seconds at stake, text, remedy, rows counted through all tapes]."""
    report = diagnose(profile)
    found = [
        [seconds_text(f.seconds) if f.seconds else "", f.text, f.remedy, [bases[t] + row for t, row in f.rows]]
        for f in report.findings
    ]
    return {"title": report.title, "list": found}


def _facts(profile: Profile) -> list[list[str]]:
    """[what, how much]: the same figures as around the printed table."""
    tapes = profile.tapes
    wall = sum(tape.wall for tape in tapes)
    busy = sum(float(tape.busy.mean(axis=1).sum()) for tape in tapes if tape.busy.size)
    waits = sum(float(tape.waits.mean(axis=1).sum()) for tape in tapes if tape.waits.size)
    facts = [("steps", f"{sum(tape.steps for tape in tapes):,}")]
    if profile.per_step:
        facts.append(("time per step", seconds_text(profile.step_seconds)))
    else:
        facts.append(("time in tapes", seconds_text(wall)))
    if wall:
        rest = max(wall - busy - waits, 0.0)  # calls of the executor, Python between its stretches
        facts += [
            (name, share_text(seconds / wall))
            for name, seconds in (("in instructions", busy), ("in waits", waits), ("around them", rest))
            if name != "around them" or rest >= 0.0005 * wall
        ]
    facts += [
        ("instructions", f"{sum(len(tape.rows) for tape in tapes):,}"),
        ("workers", f"{max((tape.workers for tape in tapes), default=0)}"),
        ("arena", size_text(max((tape.memory.arena for tape in tapes), default=0))),
        ("apart: compiling", seconds_text(profile.compile_seconds)),
        ("planning", seconds_text(profile.lowering_seconds)),
    ]
    return [list(fact) for fact in facts]


def _figure(f: Figures, bases: list[int], strings: Strings, shared: bool) -> list[Any]:
    """[key, rows counted through all tapes, numbers to sort by, the same as the table prints them, names where all rows agree]."""
    numbers = (f.seconds, f.share, f.calls, f.flops, f.gflops, f.traffic, f.gbytes, f.roof, f.wait, f.imbalance)
    return [
        strings.number(f.key),
        [bases[t] + row for t, row in f.rows],
        [_short(number) for number in numbers],
        [strings.number(text) for text in cells(f, shared)],
        [strings.number(text) for text in (f.phase, f.op, f.node, f.layer)],
    ]


def _short(number: float) -> float | None:
    """Six digits are more than a screen can show; None for what JSON has no word for."""
    return float(f"{number:.6g}") if math.isfinite(number) else None


def _outline(outline: Outline) -> dict[str, Any]:
    numbers = {node.name: i for i, node in enumerate(outline.nodes)}
    edges = [(numbers[a], numbers[b]) for a, b in outline.edges if a in numbers and b in numbers]
    placed = layout([(NODE_WIDTH, NODE_HEIGHT)] * len(outline.nodes), edges, gap_x=20, gap_y=30)
    ends = {*outline.roots}, {*outline.terms}
    nodes = [
        [node.name, node.layer, node.merge, node.shape, *_rounded(center), *(int(node.name in end) for end in ends)]
        for node, center in zip(outline.nodes, placed.centers, strict=True)
    ]
    paths = [[place for point in path for place in _rounded(point)] for path in placed.paths]
    size = [*_rounded((placed.width, placed.height)), NODE_WIDTH, NODE_HEIGHT]
    return {"nodes": nodes, "edges": edges, "paths": paths, "size": size}


def _rounded(point: Iterable[float]) -> list[float]:
    return [round(place, 1) for place in point]
