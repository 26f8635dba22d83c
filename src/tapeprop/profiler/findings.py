"""What a profile says in words: where time is lost, how much, and what to do about it. `Profile.diagnose()`.

Each finding states what is at stake: the seconds that would be won if it were mended whole. What is below its threshold
is left out: a list of everything that is not perfect would hide what matters.
"""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeprop.profiler.profile import Profile, RowInfo, TapeInfo
from tapeprop.profiler.roofs import RowRoof, row_roof
from tapeprop.profiler.tables import row_seconds
from tapeprop.profiler.text import one_line, seconds_text, share_text, size_text

__all__ = ["Finding", "Report", "diagnose", "findings"]

#: A part of the time in tapes below which a finding is not worth reading.
WORTH = 0.05
#: A kernel is far under its roof where it takes this many times what the roof allows: good kernels with awkward sizes take twice.
FAR = 3.0
#: Shorter rows cost what calling them costs, and are judged together.
TINY_SECONDS = 2e-6
#: What passes between rows (calls, barriers) is told of from this part on, where most rows are tiny: it is the price of small steps.
BETWEEN = 0.2
#: A barrier takes a microsecond, waking a worker some ten: who waits for longer behind each row, in the mean, waits for other programs.
LONG_WAIT = 3e-5
#: A row is one worker's where the others do less than this part of what the busiest does.
IDLE = 0.1
#: Of the wall time of a program: what it spends outside of tapes, on planning, or on compiling.
OUTSIDE = 0.1
#: Compiling happens once for each machine, and is then in the cache; what is shorter nobody waits for.
COMPILE_SECONDS = 1.0
#: What it costs a program to have one native call noted, which is no fault of its own.
NOTING_SECONDS = 1e-4
#: Below it memory is no concern on any machine that trains.
MEMORY = 256 << 20
#: Rows that a text names.
NAMED = 4
#: Columns of a paragraph.
WIDTH = 100

CONVERSIONS = ("to_lanes", "from_lanes")


@dataclass(frozen=True)
class Finding:
    """One thing that costs time or memory.

    kind: "python", "layout", "roof", "serial", "balance", "alone", "dispatch", "interrupted", "outside", "planning", "compile" or "memory".
    text: what, where and how much. rows: (tape, row) of the instructions meant. seconds: at stake, of one step in graph.profile(), else
    of all that ran; 0 for memory. remedy: what to do.
    """

    kind: str
    text: str
    rows: tuple[tuple[int, int], ...]
    seconds: float
    remedy: str

    def __str__(self) -> str:
        stake = f"[{seconds_text(self.seconds)}] " if self.seconds else ""
        text = f"{stake}{self.text}. {self.remedy}."
        return textwrap.fill(text, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


class Report:
    """Findings to print, a short paragraph each, with the seconds that are at stake; iteration gives dicts."""

    def __init__(self, title: str, findings: Sequence[Finding]):
        self.title = title
        self.findings = list(findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(vars(finding)) for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join([self.title, *map(str, self.findings)])

    __repr__ = __str__


def diagnose(profile: Profile) -> Report:
    """The findings of a profile, to print."""
    found = findings(profile)
    if not any(tape.steps for tape in profile.tapes):
        return Report("nothing ran", found)
    if _of_a_step(profile):
        whole = f"a step of {profile.tapes[0].name} takes {seconds_text(profile.step_seconds)}"
    else:
        whole = f"all that ran took {seconds_text(profile.seconds)}"
    if not found:
        return Report(f"{whole}; nothing stands out", found)
    return Report(f"{whole}; at stake in it, as far as each could be mended:", found)


def findings(profile: Profile) -> list[Finding]:
    """What costs time or memory in a profile, most seconds first. Empty where nothing stands out, or nothing ran."""
    if not any(tape.steps for tape in profile.tapes):
        return []
    look = _Look(profile)
    found = [
        *look.python(),
        *look.layout(),
        *look.roof(),
        *look.sharing(),
        *look.dispatch(),
        *look.interrupted(),
        *look.outside(),
        *look.memory(),
    ]
    return sorted(found, key=lambda finding: -finding.seconds)


def _of_a_step(profile: Profile) -> bool:
    """Whether seconds are those of one step; what a program does around its steps belongs to none of them."""
    return profile.per_step and profile.what != "profiling"


class _Look:
    """One look at a profile. wall: seconds in tapes in all; steps: which seconds in all are divided by, 1 where they are told as such."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self.tapes = list(enumerate(profile.tapes))
        self.steps = profile.tapes[0].steps if _of_a_step(profile) else 1
        self.wall = sum(tape.wall for tape in profile.tapes)
        self.each = row_seconds(profile)  # of a call

    def finding(self, kind: str, text: str, rows: Sequence[tuple[int, int]], seconds: float, remedy: str) -> Finding:
        """seconds: in all."""
        return Finding(kind, text, tuple(rows), seconds / self.steps, remedy)

    def worth(self, seconds: float, part: float = WORTH) -> bool:
        """Whether seconds, in all, are so large a part of the time in tapes."""
        return seconds > 0 and seconds >= part * self.wall

    def share(self, seconds: float) -> str:
        return share_text(seconds / self.wall if self.wall else float("nan"))

    def rows(self) -> Iterator[tuple[int, TapeInfo, RowInfo, float]]:
        """(tape's number, tape, row, seconds in all of its slowest worker) of all rows that ran."""
        for t, tape in self.tapes:
            for row in tape.rows:
                if tape.calls[row.row]:
                    yield t, tape, row, float(self.each[t][row.row] * tape.calls[row.row])

    def named(self, rows: Sequence[tuple[int, int]]) -> str:
        """The rows in words: the first few, and how many more."""
        words = []
        for t, r in rows[:NAMED]:
            tape = self.profile.tapes[t]
            row = tape.rows[r]
            where = f" of {row.layer or row.node!r}" if row.layer or row.node else ""
            own = f"{tape.name} " if len(self.profile.tapes) > 1 else ""
            words.append(f"{own}row {r} {row.op}{where} ({row.phase})")
        more = len(rows) - len(words)
        return ", ".join(words) + (f" and {more} more" if more else "")

    # ---- rows of a kind

    def python(self) -> Iterator[Finding]:
        """Layers that Python computes."""
        found = [(t, row.row, seconds) for t, _, row, seconds in self.rows() if not row.kernel]
        total = sum(seconds for *_, seconds in found)
        if self.worth(total):
            rows = _longest(found)
            yield self.finding(
                "python",
                f"Python computes {self.named(rows)}: {self.share(total)} of the time, while all workers wait",
                rows,
                total,
                "Write it in tapeprop.ops, or as a kernel with @tapeprop.ops.kernel",
            )

    def layout(self) -> Iterator[Finding]:
        """Conversions between images and batch lanes."""
        found = [(t, row.row, seconds) for t, _, row, seconds in self.rows() if row.op in CONVERSIONS]
        total = sum(seconds for *_, seconds in found)
        if self.worth(total):
            rows = _longest(found)
            yield self.finding(
                "layout",
                f"{self.named(rows)} change the layout between plain images and vector lanes: {self.share(total)} of the time",
                rows,
                total,
                "Keep what stands between convolutions to layers that take lanes: graph.diagnose() names the neighbours that do not",
            )

    # ---- kernels under their roof

    def roof(self) -> Iterator[Finding]:
        """Ops whose rows take much longer than the machine would need."""
        groups: dict[tuple[str, str], list[tuple[int, int, float, float, RowRoof]]] = defaultdict(list)
        roofs = self.profile.roofs
        if roofs is None:
            return
        for t, tape, row, seconds in self.rows():
            if not row.kernel or row.op in CONVERSIONS or self.each[t][row.row] < TINY_SECONDS:
                continue
            workers = 1 if _alone(tape, row.row) else int(_taking_part(tape).sum())
            roof = row_roof(roofs, row.flops, row.traffic, row.dtype, max(workers, 1))
            least = roof.seconds * float(tape.calls[row.row])
            if least > 0 and seconds >= FAR * least:
                groups[row.op, roof.bound].append((t, row.row, seconds, least, roof))
        for (op, bound), members in groups.items():
            spent, least = sum(m[2] for m in members), sum(m[3] for m in members)
            if not self.worth(spent - least):
                continue
            rows = _longest([(t, r, seconds) for t, r, seconds, *_ in members])
            yield self.finding(
                "roof",
                f"{self.named(rows)}: {seconds_text(spent / self.steps)} where this machine's "
                f"{'arithmetic' if bound == 'compute' else 'memory'} would need {seconds_text(least / self.steps)}, "
                f"{least / spent:.0%} of its roof",
                rows,
                spent - least,
                _roof_remedy(op, bound),
            )

    # ---- workers

    def sharing(self) -> Iterator[Finding]:
        """Rows that one worker does while the others wait, rows of which one does more than the others, and workers that never came."""
        serial: list[tuple[int, int, float]] = []
        uneven: list[tuple[int, int, float]] = []
        for t, tape, row, _ in self.rows():
            taking = _taking_part(tape)
            if int(taking.sum()) < 2 or not row.kernel:
                continue
            busy = tape.busy[row.row][taking]
            saved = float(busy.max() - busy.mean())  # if it were shared evenly
            (serial if _alone(tape, row.row) else uneven).append((t, row.row, saved))
        yield from self._shared(
            serial,
            "serial",
            "one worker alone does {rows} and the others wait; shared evenly, that would save {share} of the time",
            "Give it more parts to share: more results to a reduction, more channels to a norm; a kernel of your own takes worker and "
            "workers and does its share",
        )
        yield from self._shared(
            uneven,
            "balance",
            "workers do unequal parts of {rows}, and wait for the busiest; equal parts would save {share} of the time",
            "Few large parts cannot be dealt out evenly: take a batch or channels that the number of workers divides; where other work "
            "keeps a core busy, take one worker less",
        )
        for _, tape in self.tapes:
            if tape.workers > 1 and int(_taking_part(tape).sum()) == 1 and self.worth(tape.wall):
                yield self.finding(
                    "alone",
                    f"{tape.name} was planned for {tape.workers} workers and ran on one: a run of another thread held the team",
                    [],
                    tape.wall * (1 - 1 / tape.workers),
                    "Let one thread run graphs at a time, or build() them with workers=1",
                )

    def _shared(self, members: list[tuple[int, int, float]], kind: str, text: str, remedy: str) -> Iterator[Finding]:
        total = sum(saved for *_, saved in members)
        if self.worth(total):
            rows = _longest([member for member in members if member[2] >= total / 100])
            yield self.finding(kind, text.format(rows=self.named(rows), share=self.share(total)), rows, total, remedy)

    def dispatch(self) -> Iterator[Finding]:
        """Tapes of rows so short that what passes between them counts."""
        for t, tape in self.tapes:
            ran = [row.row for row in tape.rows if tape.calls[row.row] and row.kernel]
            taking = _taking_part(tape)
            if not ran or not taking.any():
                continue
            median = float(np.median(self.each[t][ran]))
            between = _waited(tape, taking)
            several = int(taking.sum()) > 1
            if median > TINY_SECONDS or between < BETWEEN * tape.wall or not self.worth(between):
                continue
            if several and between > LONG_WAIT * tape.calls.sum():
                continue  # see interrupted()
            yield self.finding(
                "dispatch",
                f"{tape.name} has {len(ran):,} instructions, half of them shorter than {seconds_text(median)}: what passes between them, "
                f"calls{' and barriers' if several else ''}, takes {share_text(between / tape.wall)} of its time",
                [],
                between,
                "Take a larger batch: an instruction then does more"
                + (", or workers=1, which needs no barriers" * several),
            )

    def interrupted(self) -> Iterator[Finding]:
        """Workers that wait for longer than barriers take, though they share rows evenly: the system runs something else on their CPUs."""
        for _, tape in self.tapes:
            taking = _taking_part(tape)
            if int(taking.sum()) < 2:
                continue
            lost = _waited(tape, taking)
            if lost >= BETWEEN * tape.wall and lost > LONG_WAIT * tape.calls.sum() and self.worth(lost):
                yield self.finding(
                    "interrupted",
                    f"the workers of {tape.name} wait {share_text(lost / tape.wall)} of its time for one another, though they share its "
                    "rows evenly: other work holds their CPUs",
                    [],
                    lost,
                    "Measure again where nothing else runs, or take fewer workers",
                )

    # ---- around the tapes

    def outside(self) -> Iterator[Finding]:
        """Time that no tape ran, where the profile is of a program and not of a tape alone."""
        profile, seconds = self.profile, self.profile.seconds
        if profile.what != "profiling" or seconds <= 0:
            return
        if profile.compile_seconds >= max(COMPILE_SECONDS, OUTSIDE * seconds):
            yield self.finding(
                "compile",
                f"compiling kernels took {seconds_text(profile.compile_seconds)}, "
                f"{share_text(profile.compile_seconds / seconds)} of the time",
                [],
                profile.compile_seconds,
                "That is once for each machine: the next process finds them in the cache on disk",
            )
        if profile.lowering_seconds >= OUTSIDE * seconds:
            plans = profile.counters.get("plans", 0)
            yield self.finding(
                "planning",
                f"tracing and planning took {seconds_text(profile.lowering_seconds)}, "
                f"{share_text(profile.lowering_seconds / seconds)} of the time: {plans:,} plans were made",
                [],
                profile.lowering_seconds,
                "A graph plans once for each batch size and keeps eight plans: use few sizes, and build() it once",
            )
        python = seconds - self.wall - profile.compile_seconds - profile.lowering_seconds
        python -= NOTING_SECONDS * len(profile.runs)
        if python >= OUTSIDE * seconds:
            calls = sum(tape.steps for tape in profile.tapes)
            yield self.finding(
                "outside",
                f"no tape runs in {share_text(python / seconds)} of the time: Python around them, "
                f"{seconds_text(python / max(calls, 1))} for each of {calls:,} steps",
                [],
                python,
                "fit() runs many steps in one native call; in a loop of your own prepare data beforehand, and call train_step() with "
                "arrays of the graph's dtype",
            )

    def memory(self) -> Iterator[Finding]:
        """The values that a large arena is large for."""
        for t, tape in self.tapes:
            memory = tape.memory
            if memory.arena < MEMORY or not memory.live:
                continue
            holders = memory.holders
            words = ", ".join(f"{one_line(block.label)} {size_text(block.nbytes)}" for block in holders[:NAMED])
            peak = max(memory.live)
            yield self.finding(
                "memory",
                f"{tape.name} holds {size_text(peak)} at its peak, {self.named([(t, memory.peak_row)])}"
                + (f": {words}" if words else "")
                + (f" and {len(holders) - NAMED} more" if len(holders) > NAMED else ""),
                [(t, memory.peak_row)],
                0.0,
                "checkpoint=True on the nodes that hold most computes them again in backward; or take a smaller batch and accumulate",
            )


def _longest(rows: Sequence[tuple[int, int, float]]) -> list[tuple[int, int]]:
    """(tape, row), those with most seconds first."""
    return [(t, r) for t, r, _ in sorted(rows, key=lambda item: -item[2])]


def _taking_part(tape: TapeInfo) -> np.ndarray:
    """Which workers did anything: a run that finds the team busy has one."""
    return tape.busy.sum(axis=0) > 0


def _waited(tape: TapeInfo, taking: np.ndarray) -> float:
    """Seconds in all that a worker of `taking` waits, in the mean, less those for a worker that has more to do, or for Python."""
    busy = tape.busy[:, taking]
    return float(tape.waits[:, taking].mean(axis=1).sum() - (busy.max(axis=1) - busy.mean(axis=1)).sum())


def _alone(tape: TapeInfo, row: int) -> bool:
    """Whether one worker does nearly all of a row of a tape that has several."""
    busy = tape.busy[row]
    most = float(busy.max(initial=0.0))
    return len(busy) > 1 and float(busy.sum()) - most < IDLE * most


def _roof_remedy(op: str, bound: str) -> str:
    if op.startswith("conv2d") and "lanes" not in op:
        return "A batch that fills the vector lanes (a multiple of 16 in float32, of 8 in float64) lets convolutions run along the batch"
    if bound == "compute":
        return "Its sizes may be too small to fill vectors and registers: more channels or features, or a larger batch, use them better"
    return (
        "What it reads may lie in a farther cache than its size says, or in strides: a smaller batch keeps it near; elementwise ops that "
        "follow one another in one layer are fused and read once"
    )
