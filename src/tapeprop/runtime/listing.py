"""The tape as text: one line per row, with op, node, operands, shapes, places, bytes and FLOPs."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from tapeprop.compiler.encode import Extent, Tape
from tapeprop.ir import Instruction, Program, Tensor
from tapeprop.ir.dims import text

HEADINGS = ("row", "span", "op", "node", "operands", "results", "bytes", "FLOPs")


class Listing:
    """Something to print: str() gives the table, len() the rows, iteration the rows as dicts.

    A row holds a text under each of `headings`, and of a tape besides: "shape" of its first result; "after", the numbers of the rows
    that make what it reads, in order; "why" it leaves native code, or "".
    """

    def __init__(self, title: str, rows: Sequence[dict[str, Any]], footer: str, headings: Sequence[str] = HEADINGS):
        self.title = title
        self.rows = list(rows)
        self.footer = footer
        self.headings = tuple(headings)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.title}\n{self.footer}"
        headings = self._used()
        widths = {h: max([len(h), *(len(row.get(h, "")) for row in self.rows)]) for h in headings}
        lines = [self.title, "  ".join(h.ljust(widths[h]) for h in headings).rstrip()]
        lines += ["  ".join(row.get(h, "").ljust(widths[h]) for h in headings).rstrip() for row in self.rows]
        return "\n".join([*lines, self.footer])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The table as HTML, for notebooks."""
        title, footer = html.escape(self.title), f"<p>{html.escape(self.footer)}</p>"
        if not self.rows:
            return f"<p>{title}</p>{footer}"
        headings = self._used()
        head = "".join(f"<th>{html.escape(h)}</th>" for h in headings)
        cells = ["".join(f"<td>{html.escape(row.get(h, ''))}</td>" for h in headings) for row in self.rows]
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{footer}"

    def _used(self) -> list[str]:
        """The headings under which something stands."""
        return [h for h in self.headings if any(row.get(h) for row in self.rows) or h in ("row", "op")]


def op_label(instruction: Instruction) -> str:
    """The op's name, or for an elementwise instruction what it computes."""
    return str(instruction.attributes.get("label", instruction.op.name))


def list_tape(tape: Tape, title: str) -> Listing:
    """The rows of a planned tape: places are buffer+offset in bytes."""
    rows: list[dict[str, Any]] = []
    made_by = Producers(tape)
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
                "shape": text(call.results[0].shape) if call.results else "",
                "after": made_by.read_in(number),
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

    rows: list[dict[str, Any]] = []
    maker: dict[Tensor, int] = {}
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
                    "shape": text(instruction.results[0].shape) if instruction.results else "",
                    "after": sorted({maker[tensor] for tensor in instruction.operands if tensor in maker}),
                    "why": instruction.op.why_in_python(instruction),
                }
            )
            maker.update((tensor, len(rows) - 1) for tensor in instruction.results)
        maker.update((store.target, maker[store.value]) for store in span.stores if store.value in maker)
    return Listing(title, rows, f"{len(rows)} instructions; sizes are open until data comes")


class Producers:
    """Which row makes what another reads.

    Aliases have no row: what they stand for is looked up in their stead. What an earlier row has stored to a leaf, or to a part of it,
    is found by its place.
    """

    def __init__(self, tape: Tape):
        self._tape = tape
        self._stands_for: dict[Tensor, Tensor] = {
            step.instruction.results[0]: step.instruction.operands[0]
            for step in tape.plan.steps
            if step.instruction.op.alias
        }
        self._maker: dict[Tensor, int] = {}
        self._writers: dict[str, dict[Extent, int]] = {}  # by buffer

    def read_in(self, number: int) -> list[int]:
        """The rows whose results row `number` reads; to be asked for one row after another."""
        row = self._tape.rows[number]
        found: set[int] = set()
        for tensor, extent in zip(row.step.instruction.operands, row.reads, strict=True):
            while tensor in self._stands_for:
                tensor = self._stands_for[tensor]
            if tensor.producer is not None:
                found.update({self._maker[tensor]} if tensor in self._maker else ())
            else:
                written = self._writers.get(extent.place.buffer, {})
                found.update(made for other, made in written.items() if other.meets(extent))
        if number and self._tape.rows[number - 1].step is row.step:  # one instruction in several rows
            found.add(number - 1)
        self._maker.update((tensor, number) for tensor in row.step.instruction.results)
        for extent in row.writes:
            self._writers.setdefault(extent.place.buffer, {})[extent] = number
        return sorted(found)


def _placed(extent: Extent, shape: Sequence[int]) -> str:
    return f"{extent.place.buffer}+{extent.place.offset}({','.join(map(str, shape))})"
