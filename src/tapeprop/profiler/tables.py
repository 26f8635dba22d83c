"""A profile in figures: time, work and waits by instruction, op, node, layer or phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop.profiler.profile import Profile, RowInfo, TapeInfo
from tapeprop.profiler.roofs import roof_seconds
from tapeprop.profiler.text import Table, count_text, seconds_text, share_text, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

BY = ("instruction", "op", "node", "layer", "phase")
SORTS = ("time", "row", "calls", "flops", "bytes", "wait", "name")


@dataclass(frozen=True)
class Figures:
    """The figures of one instruction, or of all of an op, node, layer or phase.

    All are of one step where the profile has one tape that ran whole steps (`Profile.per_step`), else of everything that ran.

    key: what it is called. rows: (tape, row) of its instructions. seconds: of the slowest worker, median over the calls that are kept
    times the number of calls. share: of the seconds of all rows. calls: how often its instructions ran. flops, traffic: operations, and
    bytes that must at least be read and written. wait: seconds that a worker waits behind its rows, mean over the workers. imbalance:
    busiest worker over the mean of all, 1 where all do the same. roof: the part of the machine's best that it reaches, NaN where
    no roofs were measured or there is nothing to compare. phase, op, node, layer: where all its rows agree, else "".
    """

    key: str
    rows: tuple[tuple[int, int], ...]
    seconds: float
    share: float
    calls: float
    flops: float
    traffic: float
    wait: float
    imbalance: float
    roof: float
    phase: str
    op: str
    node: str
    layer: str

    @property
    def gflops(self) -> float:
        """Operations per nanosecond."""
        return self.flops / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def gbytes(self) -> float:
        """Bytes per nanosecond."""
        return self.traffic / self.seconds / 1e9 if self.seconds else 0.0


def row_seconds(profile: Profile) -> list[np.ndarray]:
    """For each tape float64 (rows,): the median seconds of a call of the row, over the calls whose spans are kept.

    Of several workers the slowest counts. Other work on the machine interrupts a few calls for much longer than they take, which a
    median does not see. A row whose spans were all dropped has its mean.
    """
    samples: list[list[list[np.ndarray]]] = [[[] for _ in tape.rows] for tape in profile.tapes]
    for run in profile.runs:
        for row, column in zip(run.rows.tolist(), run.seconds.T, strict=True):
            if column.size:
                samples[run.tape][row].append(column)
    found = []
    for tape, rows in zip(profile.tapes, samples, strict=True):
        means = tape.busy.max(axis=1, initial=0.0) / np.maximum(tape.calls, 1)
        found.append(
            np.array(
                [np.median(np.concatenate(s)) if s else mean for s, mean in zip(rows, means.tolist(), strict=True)]
            )
        )
    return found


def figures(profile: Profile, by: str = "instruction", sort: str = "time") -> list[Figures]:
    """A `Figures` for each instruction, op, node, layer or phase that ran, largest first ("row" and "name": smallest first).

    ValueError for another `by` or `sort`.
    """
    if by not in BY:
        raise ValueError(f"profile: expected by={' or '.join(map(repr, BY))}, got {by!r}")
    if sort not in SORTS:
        raise ValueError(f"profile: expected sort={' or '.join(map(repr, SORTS))}, got {sort!r}")
    groups: dict[str, list[tuple[int, int]]] = {}
    for t, tape in enumerate(profile.tapes):
        for row, calls in zip(tape.rows, tape.calls.tolist(), strict=True):
            if calls:
                groups.setdefault(_key(profile, t, row, by), []).append((t, row.row))
    seconds = [s * tape.calls for s, tape in zip(row_seconds(profile), profile.tapes, strict=True)]
    total = float(sum(s.sum() for s in seconds)) or 1.0
    steps = profile.tapes[0].steps if profile.per_step else 1
    found = [_figures(profile, key, rows, seconds, total, steps) for key, rows in groups.items()]
    orders: dict[str, Callable[[Figures], Any]] = {
        "time": lambda f: -f.seconds,
        "row": lambda f: f.rows[0],
        "calls": lambda f: -f.calls,
        "flops": lambda f: -f.flops,
        "bytes": lambda f: -f.traffic,
        "wait": lambda f: -f.wait,
        "name": lambda f: f.key,
    }
    return sorted(found, key=orders[sort])


def _key(profile: Profile, tape: int, row: RowInfo, by: str) -> str:
    if by == "instruction":
        name = f"{row.row} {row.op}"
        return name if len(profile.tapes) == 1 else f"{profile.tapes[tape].name} {name}"
    return {"op": row.op, "node": row.node, "layer": row.layer, "phase": row.phase}[by] or "(none)"


def _figures(
    profile: Profile,
    key: str,
    rows: Sequence[tuple[int, int]],
    seconds: Sequence[np.ndarray],
    total: float,
    steps: int,
) -> Figures:
    own = float(sum(seconds[t][r] for t, r in rows))
    tapes = profile.tapes
    calls = sum(int(tapes[t].calls[r]) for t, r in rows)
    busy = [tapes[t].busy[r] for t, r in rows]
    slowest, mean = sum(float(b.max()) for b in busy), sum(float(b.mean()) for b in busy)
    infos = [(tapes[t].rows[r], int(tapes[t].calls[r])) for t, r in rows]
    roof = sum(_roof_seconds(profile, tapes[t], tapes[t].rows[r]) * int(tapes[t].calls[r]) for t, r in rows)
    return Figures(
        key,
        tuple(rows),
        own / steps,
        own / total,
        calls / steps,
        sum(info.flops * n for info, n in infos) / steps,
        sum(info.traffic * n for info, n in infos) / steps,
        sum(float(tapes[t].waits[r].mean()) for t, r in rows) / steps,
        slowest / mean if mean else 1.0,
        roof / own if own and roof else float("nan"),
        *(_agreed([getattr(info, name) for info, _ in infos]) for name in ("phase", "op", "node", "layer")),
    )


def _roof_seconds(profile: Profile, tape: TapeInfo, row: RowInfo) -> float:
    if profile.roofs is None:
        return float("nan")
    return roof_seconds(profile.roofs, row.flops, row.traffic, row.dtype, tape.workers)


def _agreed(names: Sequence[str]) -> str:
    return names[0] if len(set(names)) == 1 else ""


def table(profile: Profile, by: str = "instruction", sort: str = "time", top: int | None = 20) -> Table:
    """The figures as a table to print; top: how many lines, None for all."""
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise ValueError(f"profile: expected top of at least 1 or None, got {top!r}")
    found = figures(profile, by, sort)
    shown = found[:top]
    names = ("row", "phase", "op", "layer") if by == "instruction" else (by,)
    headings = (*names, "time", "share", "calls", "FLOPs", "GFLOP/s", "bytes", "GB/s", "roof", "wait", "imbalance")
    shared = any(tape.workers > 1 for tape in profile.tapes)
    lines = []
    for f in shown:
        tape, row = f.rows[0]
        own = (f"{profile.tapes[tape].name} {row}" if len(profile.tapes) > 1 else str(row), f.phase, f.op, f.layer)
        lines.append((*(own if by == "instruction" else (f.key,)), *cells(f, shared)))
    rest = found[len(shown) :]
    footer = ""
    if rest:
        seconds = sum(f.seconds for f in rest)
        footer = f"{len(rest)} more take {seconds_text(seconds)} ({share_text(sum(f.share for f in rest))})\n"
    return Table(title(profile), headings, lines, names, footer + summary(profile))


def cells(f: Figures, shared: bool = True) -> tuple[str, ...]:
    """The figures as text, in the order of the columns; shared: whether to tell the imbalance of workers."""
    return (
        seconds_text(f.seconds),
        share_text(f.share),
        f"{f.calls:,.0f}" if f.calls == int(f.calls) else f"{f.calls:,.1f}",
        count_text(f.flops),
        f"{f.gflops:.3g}" if f.flops else "",
        size_text(f.traffic),
        f"{f.gbytes:.3g}",
        share_text(f.roof) if f.roof == f.roof else "",
        seconds_text(f.wait),
        f"{f.imbalance:.2f}" if shared else "",
    )


def title(profile: Profile) -> str:
    """What ran, how often and how long: one line for each tape."""
    lines = []
    for tape in profile.tapes:
        sizes = ", ".join(tape.sizes)
        step = profile.step_seconds if profile.per_step else tape.wall / max(tape.steps, 1)
        each = f" of {seconds_text(step)}" if tape.steps else ""
        workers = "1 worker" if tape.workers == 1 else f"{tape.workers} workers"
        steps = "1 step" if tape.steps == 1 else f"{tape.steps:,} steps"
        rows = "1 instruction" if len(tape.rows) == 1 else f"{len(tape.rows):,} instructions"
        lines.append(f"{tape.name}({sizes}): {steps}{each} on {workers}, {rows}")
    return "\n".join(lines) or "nothing ran"


def summary(profile: Profile) -> str:
    """Where the wall time went: instructions, waits, outside of tapes, compiling; and the memory."""
    wall = sum(tape.wall for tape in profile.tapes)
    busy = sum(float(tape.busy.mean(axis=1).sum()) for tape in profile.tapes if tape.busy.size)
    waits = sum(float(tape.waits.mean(axis=1).sum()) for tape in profile.tapes if tape.waits.size)
    lines = []
    if wall:
        rest = 1 - (busy + waits) / wall  # what a call costs to enter and to leave
        lines.append(
            f"of {seconds_text(wall)} in tapes: instructions {busy / wall:.1%}, waits and dispatch {waits / wall:.1%}"
            + (f", outside of the executor's loop {rest:.1%}" if rest >= 0.0005 else "")
        )
    if profile.what == "profiling":
        outside = max(profile.seconds - wall - profile.compile_seconds - profile.lowering_seconds, 0.0)
        lines.append(
            f"of {seconds_text(profile.seconds)} in all: tapes {wall / profile.seconds:.1%}, Python {outside / profile.seconds:.1%}"
        )
    lines.append(
        f"apart from that: compiling kernels {seconds_text(profile.compile_seconds)}, tracing and planning "
        f"{seconds_text(profile.lowering_seconds)}"
    )
    for tape in profile.tapes:
        memory = tape.memory
        saved = f", {1 - memory.arena / memory.unshared:.0%} less than side by side" if memory.unshared else ""
        lines.append(f"{tape.name}: values {size_text(memory.arena)}{saved}; parameters {size_text(memory.parameters)}")
    if profile.dropped:
        lines.append(f"{profile.dropped:,} spans of earlier runs were dropped; the totals hold them")
    return "\n".join(lines)
