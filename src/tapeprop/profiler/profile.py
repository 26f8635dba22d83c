"""What a profile holds: plain data, so that it can be written to a file, read back, compared and drawn without the graph."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tapeprop.profiler.compare import Comparison
    from tapeprop.profiler.findings import Report
    from tapeprop.profiler.tables import Figures
    from tapeprop.profiler.text import Table


@dataclass(frozen=True)
class RowInfo:
    """One instruction of a tape.

    row: its number there. phase: "fold", "gather", "forward", "loss", "backward" or "update"; "formula" outside of networks. op: what it
    computes, such as "conv2d" or "add+relu". node: the graph's node it belongs to, "" for none (the update, say). layer: the layer inside
    that node, as "stem.0"; the node itself where it holds one layer. operands, results: "float32 (64,3,32,32)" each. kernel:
    "module:function" of the machine code, "" where Python computes the row. flops: floating point operations. traffic: bytes that it must
    at least read and write. barrier: whether workers wait for each other behind it. after: the rows of this tape whose results it reads.
    """

    row: int
    phase: str
    op: str
    node: str
    layer: str
    operands: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    kernel: str = ""
    flops: int = 0
    traffic: int = 0
    barrier: bool = False
    after: tuple[int, ...] = ()

    @property
    def dtype(self) -> str:
        """The floating dtype it computes in, "float32" where it has none."""
        kinds = (kind.partition(" ")[0] for kind in (*self.results, *self.operands))
        return next((kind for kind in kinds if kind in ("float32", "float64")), "float32")


@dataclass(frozen=True)
class Block:
    """A value's stay in the arena: `nbytes` from byte `offset` on, from row `first` to row `last`, both included.

    label: "stem.0 conv2d float32 (4,16,32,32,16)", say. Of values that share memory one after another each is a block.
    """

    label: str
    offset: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Memory:
    """A tape's memory in bytes.

    live: for each row, what the values in the arena take while it runs. arena: the size of the arena. unshared: what it would be if
    every value had memory of its own. blocks: the values. parameters, gradients, optimizer: what the tape reads or writes of them.
    other: constants, counters, running totals. inputs: what the caller feeds. scratch: of all workers.
    """

    live: tuple[int, ...]
    arena: int
    unshared: int
    blocks: tuple[Block, ...] = ()
    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    other: int = 0
    inputs: int = 0
    scratch: int = 0

    @property
    def peak_row(self) -> int:
        """The first row at which most bytes are live; 0 where there are none."""
        return max(range(len(self.live)), key=self.live.__getitem__, default=0)

    @property
    def holders(self) -> list[Block]:
        """The values that are live at the peak, largest first."""
        row = self.peak_row
        return sorted((b for b in self.blocks if b.first <= row <= b.last), key=lambda b: -b.nbytes)


@dataclass
class TapeInfo:
    """A tape and what ran on it.

    name: "train_step", "fit", "forward", "backward", "update", "predict", "value_and_gradient", or the class of a loss by itself; where
    several tapes share one, as for batches of two sizes, "fit", "fit #2" and so on. sizes: its inputs, "float32 (64,3,32,32)".
    workers: of the plan; a run that finds the team busy has fewer. arena: "tight", "retained" or "backward".
    steps: how often it ran in all, those included whose spans were dropped. busy: float64 (rows, workers), seconds in all of each
    worker in each row. calls: int64 (rows,), how often each row ran. wall: seconds in all of the native calls.
    waits: float64 (rows, workers), seconds in all between the end of a row and what the worker did next. outline: index into
    `Profile.outlines` of the graph that it belongs to; -1 where that is unknown.
    """

    name: str
    sizes: tuple[str, ...]
    workers: int
    rows: list[RowInfo]
    memory: Memory
    steps: int
    busy: np.ndarray
    calls: np.ndarray
    wall: float
    waits: np.ndarray
    arena: str = "tight"
    outline: int = -1


@dataclass
class RunSamples:
    """One native call, or a part of it: `steps` steps over the same rows.

    tape: index into `Profile.tapes`. rows: int64 (slots,), the number of the row that each slot of a step holds; a row comes several
    times where a step repeats it (micro-batches). begin, end: float64 (steps, workers, slots), seconds since the profile began; both
    NaN where a worker took no part. start, stop: of the call, in the same seconds. thread: the name of the calling thread.
    """

    tape: int
    rows: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    start: float
    stop: float
    thread: str = "MainThread"

    @property
    def steps(self) -> int:
        """How many steps it holds."""
        return len(self.begin)

    @property
    def walls(self) -> np.ndarray:
        """float64 (steps,): how long each step took, from begin to begin; the first from the call on, the last to its end."""
        if not self.steps:
            return np.zeros(0)
        begins = np.fmin.reduce(self.begin.reshape(self.steps, -1), axis=1)
        return np.diff([self.start, *begins[1:], self.stop])

    @property
    def seconds(self) -> np.ndarray:
        """float64 (steps, slots): how long each row took; of several workers the slowest counts."""
        if not self.begin.shape[1]:
            return np.zeros((self.steps, len(self.rows)))
        return np.nan_to_num(np.fmax.reduce(self.end - self.begin, axis=1))


@dataclass(frozen=True)
class NodeInfo:
    """A node of the graph. name: its own; layer: its repr, cut. merge: "" or "CHCAT" and so on. shape: of its result, "" if unknown."""

    name: str
    layer: str
    merge: str = ""
    shape: str = ""


@dataclass(frozen=True)
class Outline:
    """The graph as a drawing needs it. edges: (name, name)."""

    nodes: tuple[NodeInfo, ...] = ()
    edges: tuple[tuple[str, str], ...] = ()
    roots: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Roofs:
    """What this machine reached when it was measured, with one worker and with `workers`.

    flops: {(dtype, workers): operations per second of fused multiply-adds in registers}. bandwidth: {workers: ((bytes of the working
    set of each worker, bytes per second of all workers), ...)}, smallest first: nearest cache to memory.
    """

    flops: dict[tuple[str, int], float] = field(default_factory=dict)
    bandwidth: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)


@dataclass(repr=False)
class Profile:
    """What ran, where the time and the memory went. Made by `graph.profile()`, `function.profile()` and `tapeprop.profiling()`.

    what: "train_step", "predict" or "profiling". created: ISO date and time. machine: {"cpu": ..., "python": ..., ...}. runs: in the
    order in which they began; `dropped` spans of earlier ones were dropped, as only so many are kept (the totals of `tapes` have
    them). seconds: of wall time from begin to end. compile_seconds: of them spent on compiling kernels; lowering_seconds: on tracing,
    planning and binding. counters: exact figures that are equal in each run of the same program: steps; instructions, barriers, flops and
    bytes (of one step in graph.profile(), else of all that ran); arena_bytes, scratch_bytes; lowerings, plans, plan_hits (of a fit
    these follow the number of its native calls, which goes by time).
    """

    what: str
    created: str
    machine: dict[str, Any]
    tapes: list[TapeInfo]
    runs: list[RunSamples]
    seconds: float
    compile_seconds: float = 0.0
    lowering_seconds: float = 0.0
    dropped: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    outlines: Sequence[Outline] = ()
    roofs: Roofs | None = None

    @property
    def per_step(self) -> bool:
        """Whether figures are of one step: there is one tape. Else they are of everything that ran."""
        return len(self.tapes) == 1 and self.tapes[0].steps > 0

    @property
    def step_seconds(self) -> float:
        """The median time of a step, waits included, where there is one tape; NaN else."""
        if not self.per_step:
            return math.nan
        tape = self.tapes[0]
        whole = [run for run in self.runs if run.begin.size and len(run.rows) >= len(tape.rows)]
        if not whole:  # row by row, or their spans were dropped
            return tape.wall / tape.steps
        return float(np.median(np.concatenate([run.walls for run in whole])))

    def figures(self, by: str = "instruction", sort: str = "time") -> list[Figures]:
        """Time, work and waits of each "instruction", "op", "node", "layer" or "phase"; see `tapeprop.profiler.tables.figures`."""
        from tapeprop.profiler import tables

        return tables.figures(self, by, sort)

    def table(self, by: str = "instruction", sort: str = "time", top: int | None = 20) -> Table:
        """The same to print: the `top` first (None: all), sorted by "time", "row", "calls", "flops", "bytes", "wait" or "name"."""
        from tapeprop.profiler import tables

        return tables.table(self, by, sort, top)

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Writes all of it to a JSON file, from which `Profile.load` makes it again; the path. OSError."""
        from tapeprop.profiler import files

        return files.write(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Profile:
        """The profile in a file that to_json() wrote. ValueError for another file, OSError for none."""
        from tapeprop.profiler import files

        return files.read(path)

    def to_chrome_trace(self, path: str | os.PathLike[str]) -> Path:
        """Writes a trace for Perfetto or chrome://tracing, a track for each worker; the path. OSError."""
        from tapeprop.profiler import chrome_trace

        return chrome_trace.write(self, path)

    def to_speedscope(self, path: str | os.PathLike[str]) -> Path:
        """Writes a file for www.speedscope.app, a profile for each worker; the path. OSError."""
        from tapeprop.profiler import speedscope

        return speedscope.write(self, path)

    def to_flame_graph(self, path: str | os.PathLike[str]) -> Path:
        """Draws a flame graph by phase, node and op into an SVG file; the path. ValueError for another ending, OSError."""
        from tapeprop.profiler import flame

        return flame.write(self, path)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Writes one HTML page that works offline: timeline, table, memory, roofline, graph; the path. OSError."""
        from tapeprop.profiler import page

        return page.write(self, path)

    def folded(self) -> str:
        """The same as text, "forward;stem;conv2d 1234" a line, in nanoseconds; see `tapeprop.profiler.flame.folded`."""
        from tapeprop.profiler import flame

        return flame.folded(self)

    def plot_roofline(self, path: str | os.PathLike[str]) -> Path:
        """Draws the rows under the machine's roofs into a PNG, SVG or PDF file; the path. Needs matplotlib. ValueError, OSError."""
        from tapeprop.profiler import roofline

        return roofline.plot(self, path)

    def diagnose(self) -> Report:
        """Where time is lost, how much of a step, and what to do, in words; see `tapeprop.profiler.findings`. Print it."""
        from tapeprop.profiler import findings

        return findings.diagnose(self)

    def compare(self, other: Profile, by: str = "instruction", seed: int = 0) -> Comparison:
        """What became slower or faster in `other`, the later one, and what of it is more than chance; print it.

        other: a profile, or what `profiling()` gave. TypeError for anything else. See `tapeprop.profiler.compare.compare`.
        """
        from tapeprop.profiler import compare

        later = getattr(other, "profile", other)
        if not isinstance(later, Profile):
            raise TypeError(f"compare: expected a Profile, got {other!r}; Profile.load(path) reads one from a file")
        return compare.compare(self, later, by, seed)

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        return f"<Profile of {self.what}: {len(self.tapes)} tapes, {sum(tape.steps for tape in self.tapes)} steps>"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()
