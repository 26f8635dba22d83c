"""What makes a tape slow, told in words before it runs: `graph.diagnose()`.

Costs are estimates, by operations and bytes, of the kind that chooses the number of workers; what a run really spends is told by a
profile's `diagnose()`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tapeprop.compiler.encode import Row, Tape
from tapeprop.compiler.layout import CONVOLUTIONS, LANES, batch_lanes
from tapeprop.ir import Instruction, Program, Tensor
from tapeprop.runtime.executable import row_seconds, worthwhile_workers
from tapeprop.runtime.listing import Listing, op_label

#: Conversions of layout are told of from this part of the bytes that a tape moves on; below it mending them gains less than it costs
#: to read about them. Every network of the benchmarks stays below half of it.
CONVERTED_SHARE = 0.05
#: A row that leaves workers idle is told of from this part of the tape's estimated time on.
SERIAL_SHARE = 0.05
#: Columns of a finding's text.
WIDTH = 100

CONVERSIONS = ("to_lanes", "from_lanes")


@dataclass(frozen=True)
class Finding:
    """One thing that makes a tape slow. why: what and why. remedy: what to do. row, span, op, node: where; "" for the whole tape."""

    why: str
    remedy: str
    row: str = ""
    span: str = ""
    op: str = ""
    node: str = ""


#: Of the table that notebooks show.
HEADINGS = ("row", "span", "op", "node", "why", "remedy")


class Diagnosis(Listing):
    """Findings to print, a short paragraph each; iteration gives dicts with row, span, op, node, why and remedy."""

    def __init__(self, title: str, findings: Sequence[Finding], footer: str):
        super().__init__(title, [dict(vars(finding)) for finding in findings], footer, HEADINGS)

    def __str__(self) -> str:
        remedies = [*(row["remedy"] for row in self.rows), ""]
        texts = [_paragraph(row, row["remedy"] != remedies[i + 1]) for i, row in enumerate(self.rows)]
        return "\n".join([self.title, *texts, self.footer])

    __repr__ = __str__


def _paragraph(row: dict[str, str], with_remedy: bool) -> str:
    """A finding as text; of several in a row with one remedy only the last tells it."""
    where = f"row {row['row']}, {row['op']} ({row['span']})" if row["row"] else "the whole tape"
    where += f", node {row['node']!r}" if row["node"] else ""
    text = f"{where}: {row['why']}" + (f". {row['remedy']}." if with_remedy else "")
    return textwrap.fill(text, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)


@dataclass(frozen=True)
class Setting:
    """What a graph was built with. batch: axis 0 of the first input, None where it is open. asked: build()'s workers.

    device: "cpu" or "cuda". plain: why a device gets its rows as single launches, where that is so.
    """

    dtype: str
    batch: int | None
    workers: int
    asked: int | None
    debug_nan: bool
    device: str = "cpu"
    plain: str | None = None


def diagnose_program(program: Program, title: str, setting: Setting) -> Diagnosis:
    """What can be told while sizes are open: the instructions that Python computes, and switches that are on."""
    calls = program.instructions
    spans = [span.name for span in program.spans for _ in span.instructions]
    places = [
        Finding("", "", str(number), span, op_label(call), call.node)
        for number, (span, call) in enumerate(zip(spans, calls, strict=True))
    ]
    found = [*_switches(setting), *_python(calls, places)]
    return Diagnosis(title, found, f"sizes are open: what depends on them is told when data has come\n{_native(calls)}")


def diagnose_tape(tape: Tape, title: str, setting: Setting) -> Diagnosis:
    """All findings on a planned tape of forward and backward; none where everything is fine."""
    calls = [row.step.instruction for row in tape.rows]
    places = [
        Finding("", "", str(number), row.step.span, row.label, row.step.instruction.node)
        for number, row in enumerate(tape.rows)
    ]
    if setting.device != "cpu":
        found = [*_switches(setting), *_launches(setting), *_python(calls, places)]
        return Diagnosis(title, found, _remark(setting) + _native(calls))
    found = [
        *_switches(setting),
        *_unfilled_lanes(tape, setting),
        *_too_small(tape, setting),
        *_python(calls, places),
        *_conversions(tape, places, setting),
        *_serial(tape, places, setting),
    ]
    return Diagnosis(title, found, _remark(setting) + _native(calls))


def _native(calls: Sequence[Instruction]) -> str:
    leaving = sum(call.op.in_python for call in calls)
    if leaving:
        return f"{leaving} of {len(calls)} instructions leave native code; the others run without Python between them"
    return f"all {len(calls)} instructions run natively"


def _remark(setting: Setting) -> str:
    if setting.dtype != "float64":
        return ""
    if setting.device != "cpu":
        return "in float64, of which most GPUs compute far fewer per second than of float32\n"
    return "in float64, of which a vector holds half as many as of float32\n"


# ---- the whole tape


def _switches(setting: Setting) -> Iterator[Finding]:
    if setting.debug_nan:
        yield Finding(
            "debug_nan=True runs it row by row from Python, looks at every result and fuses nothing",
            "Once the NaN is found, build() without it",
        )


def _launches(setting: Setting) -> Iterator[Finding]:
    if setting.plain is not None:
        yield Finding(
            f"its rows are launched one by one from Python and not replayed as one captured graph: {setting.plain}",
            "A newer driver, or a GPU that no other process is debugging, lets CUDA capture it",
        )


def _unfilled_lanes(tape: Tape, setting: Setting) -> Iterator[Finding]:
    batch, dtype = setting.batch, setting.dtype
    if batch is None or batch_lanes(dtype, batch) is not None:
        return
    plain = [row for row in tape.rows if row.step.instruction.op.name in CONVOLUTIONS and _could_use_lanes(row)]
    if not plain:
        return
    step = LANES[dtype] // 2 if batch_lanes(dtype, LANES[dtype] // 2) is not None else LANES[dtype]
    near = sorted({batch // step * step, -(-batch // step) * step} - {0})
    count = sum(row.step.instruction.op.name == "conv2d" for row in plain)
    whose = (
        "its convolution and the gradients work" if count == 1 else f"its {count} convolutions and the gradients work"
    )
    yield Finding(
        f"a batch of {batch} does not fill the vector lanes of {dtype}, so {whose} image by image, with edges and tails",
        f"Take a multiple of {step}: {' or '.join(map(str, near))} samples instead of {batch}",
    )


def _could_use_lanes(row: Row) -> bool:
    attributes = row.step.instruction.attributes
    return attributes["groups"] == 1 and attributes["dilation"] == (1, 1)


def _too_small(tape: Tape, setting: Setting) -> Iterator[Finding]:
    asked = setting.asked
    if asked is None or asked < 2 or worthwhile_workers(tape, asked) > 1:
        return
    work = sum(map(row_seconds, tape.rows))
    barriers = sum(row.barrier for row in tape.rows)
    yield Finding(
        f"{asked} workers were asked for and one is used: {barriers} meetings at barriers would cost more than is saved of about "
        f"{work * 1e6:.0f} us of work",
        "Take a larger batch" + ("" if setting.batch is None else f" than {setting.batch}") + ", or workers=1",
    )


# ---- single rows


def _python(calls: Sequence[Instruction], places: Sequence[Finding]) -> Iterator[Finding]:
    for call, place in zip(calls, places, strict=True):
        if why := call.op.why_in_python(call):
            remedy = "Write it in tapeprop.ops, or as a kernel with @tapeprop.ops.kernel, if it takes long"
            yield replace(place, why=why, remedy=remedy)


def _conversions(tape: Tape, places: Sequence[Finding], setting: Setting) -> Iterator[Finding]:
    """Conversions between two instructions; where the network's own inputs and outputs are converted nothing can be done."""
    numbers = [i for i, row in enumerate(tape.rows) if row.step.instruction.op.name in CONVERSIONS]
    total = sum(row.traffic for row in tape.rows)
    inner = [(i, *_neighbours(tape, i)) for i in numbers]
    inner = [(i, before, after) for i, before, after in inner if before and after]
    share = sum(tape.rows[i].traffic for i, _, _ in inner) / max(total, 1)
    if share < CONVERTED_SHARE:
        return
    for i, before, after in inner:
        row = tape.rows[i]
        to_lanes = row.step.instruction.op.name == "to_lanes"
        images, lanes = (before, after) if to_lanes else (after, before)
        yield replace(
            places[i],
            why=(
                f"{row.traffic / total:.1%} of all bytes are moved to change the layout: {images} "
                f"{'gives' if to_lanes else 'takes'} plain images, {lanes} {'takes' if to_lanes else 'gives'} vector lanes "
                "along the batch"
            ),
            remedy=(
                "Let what stands between convolutions be batch norm, pooling, elementwise ops, channel concatenation or slices, which "
                f"keep the lanes; a batch that is no multiple of {LANES[setting.dtype] // 2} has no lanes and no conversions, but "
                "slower convolutions"
            ),
        )


def _neighbours(tape: Tape, number: int) -> tuple[str, str]:
    """(who makes the operand, who reads the result first) of a row, "" for none, through ops that only give another shape."""
    row = tape.rows[number]
    (operand,) = row.step.instruction.operands
    makers = {t: step.instruction for step in tape.plan.steps for t in step.instruction.results}
    while operand in makers and makers[operand].op.alias:
        operand = makers[operand].operands[0]
    before = _named(makers[operand]) if operand in makers else ""
    forms: set[Tensor] = set(row.step.instruction.results)
    for step in tape.plan.steps:
        call = step.instruction
        if not forms.intersection(call.operands):
            continue
        if not call.op.alias:
            return before, _named(call)
        forms.update(call.results)
    return before, ""


def _named(call: Instruction) -> str:
    return op_label(call) + (f" of node {call.node!r}" if call.node else "")


def _serial(tape: Tape, places: Sequence[Finding], setting: Setting) -> Iterator[Finding]:
    workers = worthwhile_workers(tape, setting.workers)
    if workers < 2:
        return
    seconds = list(map(row_seconds, tape.rows))
    total = sum(seconds) or 1.0
    for i, row in enumerate(tape.rows):
        parts = row.step.instruction.op.parts(row.step.call)
        if row.kernel is None or parts is None or parts >= workers or seconds[i] < SERIAL_SHARE * total:
            continue
        idle = "the other waits" if workers - parts == 1 else f"the other {workers - parts} wait"
        yield replace(
            places[i],
            why=(
                f"about {seconds[i] / total:.0%} of the work, and only {parts} of {workers} workers can do it: its sums or its kernel are "
                f"not cut further; {idle}"
            ),
            remedy=(
                "Let the kernel take worker and workers and do its share"
                if row.kernel.module == "tapeprop.ops.own.cpu"
                else "Reduce in two steps, or over fewer axes at once, so that there are more results to share"
            ),
        )
