"""From what a recorder has heard to a `Profile`."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import numpy as np

from tapeprop.compiler.interpret import array_type
from tapeprop.errors import StateError
from tapeprop.profiler.memory import memory_of
from tapeprop.profiler.profile import NodeInfo, Outline, Profile, Roofs, RowInfo, RunSamples, TapeInfo
from tapeprop.profiler.roofs import machine_roofs
from tapeprop.runtime import ledger
from tapeprop.runtime.executable import Executable
from tapeprop.runtime.listing import Producers
from tapeprop.runtime.plans import Trial
from tapeprop.runtime.recorder import SPANS_KEPT, RecordedRun, Recorder, Totals, listen, recording_runs, stop_listening

PACKAGES = ("tapeprop", "numpy", "numba", "llvmlite")
LONGEST_LAYER = 200
PER_STEP = ("instructions", "barriers", "flops", "bytes")
LEDGER = ("lowerings", "plans", "plan_hits")


def profile_trial(opened: AbstractContextManager[Trial], repeats: int = 20) -> Profile:
    """The profile of `repeats` runs of one tape, after one that is not measured; counters are of one step.

    opened: gives the trial, where it has to be planned in the measured time of lowering. ValueError for less than one repeat.
    """
    if isinstance(repeats, bool) or not isinstance(repeats, int | np.integer) or repeats < 1:
        raise ValueError(f"profile: expected repeats of at least 1, got {repeats!r}")
    before = ledger.figures()
    with opened as trial:
        trial.run(1)
        prepared = {name: value - before[name] for name, value in ledger.figures().items()}
        with recording_runs(Recorder(only=trial.executable)) as recorder:
            trial.run(int(repeats))
    found = profile_of(recorder, trial.executable.name)
    found.compile_seconds, found.lowering_seconds = prepared["compile_seconds"], prepared["lowering_seconds"]
    for name in PER_STEP:
        found.counters[name] //= max(found.counters["steps"], 1)  # a tape without instructions never runs
    found.counters |= {name: int(prepared[name]) for name in LEDGER}
    return found


class Profiling:
    """What `profiling()` gives, a context manager: from the beginning of its block on it has the methods of a `Profile`."""

    def __init__(self, spans: int):
        self._spans = spans
        self._recorder: Recorder | None = None
        self._profile: Profile | None = None

    def __enter__(self) -> Profiling:
        if self._recorder is not None or self._profile is not None:
            raise StateError("profiling: this one has begun already; make another by tapeprop.profiling()")
        self._recorder = Recorder(self._spans)
        listen(self._recorder)
        return self

    def __exit__(self, *error: object) -> None:
        if self._recorder is not None:
            stop_listening(self._recorder)

    @property
    def profile(self) -> Profile:
        """Of what has run until now, or until the end of the block. StateError before its beginning."""
        if self._profile is not None:
            return self._profile
        if self._recorder is None:
            raise StateError(
                "profiling: nothing is recorded yet; write `with tapeprop.profiling() as p:` around what runs"
            )
        found, over = profile_of(self._recorder, "profiling"), self._recorder.ended is not None
        if over:
            self._profile, self._recorder = found, None  # which holds the memory of all that ran
        return found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.profile, name)

    def __str__(self) -> str:
        return str(self.profile)

    def __repr__(self) -> str:
        begun = self._recorder is not None or self._profile is not None
        return repr(self.profile) if begun else "<profiling that has not begun>"

    def _repr_html_(self) -> str:
        return self.profile._repr_html_()


def profiling(spans: int = SPANS_KEPT) -> Profiling:
    """Profiles all that runs inside, by any graph and any thread: fit, forward and backward, predict.

        with tp.profiling() as p:
            graph.fit(X, y, loss=loss)
        print(p.table())

    spans: how many (an instruction on a worker each time it runs) are kept, of the last runs; the totals hold all. 16 bytes each.
    ValueError for fewer than one.
    """
    if isinstance(spans, bool) or not isinstance(spans, int | np.integer) or spans < 1:
        raise ValueError(f"profiling: expected to keep at least 1 span, got {spans!r}")
    return Profiling(int(spans))


def profile_of(recorder: Recorder, what: str) -> Profile:
    """What a recorder has heard until now."""
    totals, runs, dropped = recorder.heard()
    scale = recorder.seconds_per_tick
    indices = {executable: i for i, executable in enumerate(totals)}
    outlines = list(dict.fromkeys(found for t in totals.values() if (found := outline_of(t.outline)) is not None))
    names = _told_apart([executable.name for executable in totals])
    tapes = [
        _tape_of(executable, found, name, scale, outlines)
        for name, (executable, found) in zip(names, totals.items(), strict=True)
    ]
    counted = recorder.figures()
    return Profile(
        what,
        datetime.now().astimezone().isoformat(timespec="seconds"),
        machine() | {name: value for executable in totals for name, value in executable.where().items()},
        tapes,
        [
            _samples_of(run, indices[run.executable], recorder.began[0], scale)
            for run in sorted(runs, key=lambda run: run.start)
        ],
        recorder.seconds,
        compile_seconds=counted["compile_seconds"],
        lowering_seconds=counted["lowering_seconds"],
        dropped=dropped,
        counters=_counters(totals, counted),
        outlines=tuple(outlines),
        roofs=_roofs(tapes) if tapes and not any(executable.where() for executable in totals) else None,
    )


def _roofs(tapes: Sequence[TapeInfo]) -> Roofs:
    from tapeprop.targets.cpu.machine import usable_cpus

    # More workers than CPUs are never all at work at once, so their own measurement would show no more than one reaches.
    return machine_roofs(min(max(tape.workers for tape in tapes), usable_cpus()))


def machine() -> dict[str, Any]:
    """The processor and the versions that figures belong to."""
    from tapeprop.targets.cpu.machine import cpu_model, cpu_name, usable_cpus, vector_bits

    return {
        "cpu": cpu_model(),
        "llvm_cpu": cpu_name(),
        "vector_bits": vector_bits(),
        "usable_cpus": usable_cpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return None


def outline_of(found: Any) -> Outline | None:
    """From what `GraphStructure.outline` gives; None where there is no graph."""
    if found is None:
        return None
    nodes, edges, roots, terms = found
    named = tuple(NodeInfo(name, _cut(layer), merge) for name, layer, merge in nodes)
    return Outline(named, edges, roots, terms)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_LAYER else text[: LONGEST_LAYER - 3] + "..."


def _counters(totals: Mapping[Executable, Totals], counted: Mapping[str, float]) -> dict[str, int]:
    """Exact figures of all that ran; of memory those of the largest tape."""
    found = dict.fromkeys(("steps", *PER_STEP, "arena_bytes", "scratch_bytes"), 0)
    for executable, total in totals.items():
        calls = total.calls.tolist()
        found["steps"] += _steps(calls)
        for row, n in zip(executable.tape.rows, calls, strict=True):
            found["instructions"] += n
            found["barriers"] += n * row.barrier
            found["flops"] += n * row.flops
            found["bytes"] += n * row.traffic
        found["arena_bytes"] = max(found["arena_bytes"], executable.tape.arena_bytes)
        found["scratch_bytes"] = max(found["scratch_bytes"], executable.tape.scratch_bytes * executable.workers)
    return found | {name: int(counted[name]) for name in LEDGER}


def _steps(calls: list[int]) -> int:
    """How often a tape ran: its last row runs once in each step, those before it more often where batches are accumulated."""
    return (calls[-1] or max(calls)) if calls else 0


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names, the second of those that are equal with a number: "fit", "fit #2"."""
    counts: Counter[str] = Counter()
    found = []
    for name in names:
        counts[name] += 1
        found.append(name if counts[name] == 1 else f"{name} #{counts[name]}")
    return found


def _tape_of(executable: Executable, totals: Totals, name: str, scale: float, outlines: list[Outline]) -> TapeInfo:
    tape, program = executable.tape, executable.program
    own = outline_of(totals.outline)
    nodes = {node.name for node in own.nodes} if own is not None else None
    return TapeInfo(
        name,
        tuple(_kind(kind.dtype, kind.shape) for t in program.inputs for kind in [array_type(t, executable.sizes)]),
        executable.workers,
        _rows(executable, nodes),
        memory_of(executable),
        _steps(totals.calls.tolist()),
        totals.busy * scale,
        totals.calls.copy(),
        totals.wall * scale,
        totals.waits * scale,
        tape.arena,
        -1 if own is None else outlines.index(own),
    )


def _rows(executable: Executable, names: set[str] | None) -> list[RowInfo]:
    producers = Producers(executable.tape)
    found = []
    for number, row in enumerate(executable.tape.rows):
        call, instruction = row.step.call, row.step.instruction
        found.append(
            RowInfo(
                number,
                row.step.span,
                row.label,
                _node(instruction.node, names),
                instruction.node,
                tuple(_kind(kind.dtype, kind.shape) for kind in call.operands),
                tuple(_kind(kind.dtype, kind.shape) for kind in call.results),
                "" if row.kernel is None else row.kernel.builder,
                row.flops,
                row.traffic,
                row.barrier,
                tuple(producers.read_in(number)),
            )
        )
    return found


def _node(path: str, names: set[str] | None) -> str:
    """The node of a layer's path, such as "stem" of "stem.0": the longest beginning that is a node's name."""
    if names is None:
        return path.partition(".")[0]
    parts = path.split(".")
    beginnings = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in beginnings if name in names), path.partition(".")[0])


def _kind(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} ({','.join(map(str, shape))})"


def _samples_of(run: RecordedRun, tape: int, zero: int, scale: float) -> RunSamples:
    def seconds(ticks: Any) -> Any:
        return np.rint((ticks - zero) * (scale * 1e9)) / 1e9  # whole nanoseconds, as files hold them

    times = seconds(run.ticks)
    times[run.ticks == 0] = np.nan
    start, stop = float(seconds(run.start)), float(seconds(run.stop))
    return RunSamples(tape, run.rows, times[..., 0], times[..., 1], start, stop, run.thread)
