"""Figures as readers want them, and tables of them."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Table", "count_text", "one_line", "seconds_text", "share_text", "size_text"]

#: With three digits this is 1000, which is told in the next unit.
ROUNDS_UP = 999.5


def seconds_text(seconds: float) -> str:
    """A duration with three digits: 1.23 s, 45.6 ms, 789 us, 12 ns."""
    if not math.isfinite(seconds):
        return "-"
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        value = seconds * factor
        if abs(value) >= ROUNDS_UP / 1000:
            return f"{value:.3g} {unit}" if abs(value) < ROUNDS_UP else f"{value:,.0f} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def size_text(count: float) -> str:
    """Bytes: 512 B, 3.4 MiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def count_text(count: float) -> str:
    """A number with three digits and a letter for thousands: 512, 3.4 k, 1.2 M, 5.67 G."""
    value = float(count)
    for unit in ("", " k", " M", " G"):
        if abs(value) < ROUNDS_UP or unit == " G":
            return f"{value:.3g}{unit}" if abs(value) < ROUNDS_UP else f"{value:,.0f}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def share_text(share: float) -> str:
    """A part of the whole in per cent; "-" where there is none to tell."""
    return f"{share:.1%}" if math.isfinite(share) else "-"


def one_line(text: str) -> str:
    """Text in one line; a replacement character for what terminals obey, as escapes, and for what no encoding or font takes."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


class Table:
    """Something to print: str() gives the table, len() the rows, iteration the rows as dicts.

    left: the headings of the columns that stand to the left; the others are numbers. footer: what stands below.
    """

    def __init__(
        self,
        title: str,
        headings: Sequence[str],
        rows: Iterable[Sequence[str]],
        left: Iterable[str] = (),
        footer: str = "",
        width: int = 44,
    ):
        self.title = title
        self.headings = tuple(headings)
        self.rows = [tuple(row) for row in rows]
        self.left = frozenset(left)
        self.footer = footer
        self.width = width

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, str]]:
        return (dict(zip(self.headings, row, strict=True)) for row in self.rows)

    def __str__(self) -> str:
        lines = [self.headings, *([self._cut(cell) for cell in row] for row in self.rows)]
        used = [i for i in range(len(self.headings)) if not self.rows or any(row[i] for row in self.rows)]
        widths = {i: max(len(line[i]) for line in lines) for i in used}
        shown = [
            "  ".join(
                line[i].ljust(widths[i]) if self.headings[i] in self.left else line[i].rjust(widths[i]) for i in used
            ).rstrip()
            for line in lines
        ]
        return "\n".join(filter(None, [self.title, *shown, self.footer]))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in self.headings)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(one_line(cell))}</td>" for cell in row) + "</tr>" for row in self.rows
        )
        caption, footer = html.escape(self.title), html.escape(self.footer)
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{footer}</p>"

    def _cut(self, cell: str) -> str:
        line = one_line(cell)
        return line if len(line) <= self.width else line[: self.width - 3] + "..."
