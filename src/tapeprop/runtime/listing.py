"""The tape as text: one line per row, with op, node, operands, shapes, places, bytes and FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

from tapeprop.compiler.encode import Extent, Tape
from tapeprop.ir import Instruction, Program, Tensor
from tapeprop.ir.dims import text

HEADINGS = ("row", "span", "op", "node", "operands", "results", "bytes", "FLOPs")


class Listing:
    """Something to print: str() gives the table, len() the rows, iteration the rows as dicts."""

    def __init__(self, title: str, rows: Sequence[dict[str, str]], footer: str, headings: Sequence[str] = HEADINGS):
        self.title = title
        self.rows = list(rows)
        self.footer = footer
        self.headings = tuple(headings)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.title}\n{self.footer}"
        headings = [h for h in self.headings if any(row.get(h) for row in self.rows) or h in ("row", "op")]
        widths = {h: max([len(h), *(len(row.get(h, "")) for row in self.rows)]) for h in headings}
        lines = [self.title, "  ".join(h.ljust(widths[h]) for h in headings).rstrip()]
        lines += ["  ".join(row.get(h, "").ljust(widths[h]) for h in headings).rstrip() for row in self.rows]
        return "\n".join([*lines, self.footer])

    __repr__ = __str__


def op_label(instruction: Instruction) -> str:
    """The op's name, or for an elementwise instruction what it computes."""
    return str(instruction.attributes.get("label", instruction.op.name))


def list_tape(tape: Tape, title: str) -> Listing:
    """The rows of a planned tape: places are buffer+offset in bytes."""
    rows = []
    for number, row in enumerate(tape.rows):
        call = row.step.call
        rows.append(
            {
                "row": str(number),
                "span": row.step.span,
                "op": row.label,
                "node": row.step.instruction.node,
                "operands": " ".join(
                    _placed(extent, kind.shape) for extent, kind in zip(row.reads, call.operands, strict=True)
                ),
                "results": " ".join(
                    _placed(extent, kind.shape) for extent, kind in zip(row.writes, call.results, strict=True)
                ),
                "bytes": str(row.traffic),
                "FLOPs": str(row.flops),
                "why": row.step.instruction.op.why_in_python(row.step.instruction),
            }
        )
    saved = 1 - tape.arena_bytes / tape.plan.unshared_bytes if tape.plan.unshared_bytes else 0.0
    barriers = sum(row.barrier for row in tape.rows)
    footer = (
        f"{len(rows)} rows, {barriers} barriers; {tape.arena} {tape.arena_bytes:,} bytes "
        f"({saved:.0%} less than the {tape.plan.unshared_bytes:,} of values side by side)"
    )
    return Listing(title, rows, footer)


def list_program(program: Program, title: str) -> Listing:
    """The instructions of a program whose sizes are open: no places yet, shapes in symbols."""
    names: dict[Tensor, str] = {}

    def name(tensor: Tensor) -> str:
        if tensor not in names:
            kind = "%" if tensor.producer is not None else f"{tensor.name or 'constant'}"
            names[tensor] = f"%{len(names)}" if kind == "%" else kind
        return f"{names[tensor]}{text(tensor.shape).replace(' ', '')}"

    rows: list[dict[str, str]] = []
    for span in program.spans:
        for instruction in span.instructions:
            operands = " ".join(map(name, instruction.operands))
            rows.append(
                {
                    "row": str(len(rows)),
                    "span": span.name,
                    "op": op_label(instruction),
                    "node": instruction.node,
                    "operands": operands,
                    "results": " ".join(map(name, instruction.results)),
                    "why": instruction.op.why_in_python(instruction),
                }
            )
    return Listing(title, rows, f"{len(rows)} instructions; sizes are open until data comes")


def _placed(extent: Extent, shape: Sequence[int]) -> str:
    return f"{extent.place.buffer}+{extent.place.offset}({','.join(map(str, shape))})"
