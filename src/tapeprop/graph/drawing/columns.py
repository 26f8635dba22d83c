"""Where the rows of a tape go: in columns, so that forward runs down, backward comes up beside it, and update goes down again.

Rows of backward stand beside those of the node that they belong to, as far as both spans pass the nodes in opposite orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from tapeprop.graph.drawing.picture import Picture

STEP = 26.0  #: from one row to the next
HEAD = 30.0  #: above the rows of a span, for its name
GAP = 14.0  #: between spans in a column
TRACK = 7.0  #: between lines beside a column
TRACKS = 30
UP = "backward"


@dataclass(frozen=True)
class Column:
    """One column. spans: {name: (number of its first row, one past the last)}; upwards: whether the last row is at the top."""

    spans: dict[str, tuple[int, int]]
    upwards: bool

    @property
    def rows(self) -> list[int]:
        """Its rows in the order in which they run."""
        return [i for first, end in self.spans.values() for i in range(first, end)]


def columns_of(picture: Picture) -> list[Column]:
    """The spans before backward, backward, those after it; without backward one column."""
    found: list[Column] = []
    for name, members in picture.groups.items():
        upwards = name == UP
        if not found or found[-1].upwards or upwards:
            found.append(Column({}, upwards))
        found[-1].spans[name] = (members[0], members[-1] + 1)
    return found


def heights(picture: Picture, columns: Sequence[Column]) -> tuple[list[float], float]:
    """(the y of the middle of each row, the height of all)."""
    ys = [0.0] * len(picture.boxes)
    for column in columns:
        y = 0.0
        for first, end in column.spans.values():
            y += HEAD
            for i in range(first, end):
                ys[i], y = y + STEP / 2, y + STEP
            y += GAP
        if column.upwards:  # counted from below, where the name stands as well
            for i in column.rows:
                ys[i] = -ys[i]
    if len(columns) > 1 and columns[1].upwards:
        _side_by_side(picture, columns[0], columns[1], ys)
    top = min(ys, default=0.0) - STEP / 2 - HEAD
    ys = [y - top for y in ys]
    if len(columns) > 2:  # begins where backward ends
        shift = min(ys[i] for i in columns[1].rows) - min(ys[i] for i in columns[2].rows)
        for i in columns[2].rows:
            ys[i] += shift
    return ys, max(ys, default=0.0) + STEP / 2 + GAP


def _side_by_side(picture: Picture, down: Column, up: Column, ys: list[float]) -> None:
    """Moves the rows of both columns apart, so that blocks of rows of one node stand side by side; from below."""
    left, right = _blocks(picture, down.rows[::-1]), _blocks(picture, up.rows)
    matcher = SequenceMatcher(None, [name for name, _ in left], [name for name, _ in right], autojunk=False)
    partner = {m.a + k: m.b + k for m in matcher.get_matching_blocks() for k in range(m.size)}
    low = high = 0.0
    taken = 0
    span_of = {i: name for column in (down, up) for name, (a, b) in column.spans.items() for i in range(a, b)}
    before: str | None = None

    def stack(rows: Sequence[int], y: float) -> float:
        for i in rows:
            ys[i], y = y - STEP / 2, y - STEP
        return y

    for number, (_, rows) in enumerate(left):
        if before is not None and span_of[rows[0]] != before:
            low -= HEAD + GAP
        before = span_of[rows[-1]]
        if number in partner:
            for _, other in right[taken : partner[number]]:
                high = stack(other, high)
            low = high = min(low, high)
            high = stack(right[partner[number]][1], high)
            taken = partner[number] + 1
        low = stack(rows, low)
    for _, other in right[taken:]:
        high = stack(other, high)


def _blocks(picture: Picture, rows: Sequence[int]) -> list[tuple[str, list[int]]]:
    """(node, rows) of neighbours that belong to one node of the graph and to one span."""
    found: list[tuple[str, list[int]]] = []
    group = None
    for i in rows:
        name = picture.boxes[i].node.partition(".")[0]
        if found and found[-1][0] == name and picture.boxes[i].group == group:
            found[-1][1].append(i)
        else:
            found.append((name, [i]))
        group = picture.boxes[i].group
    return found


def tracks(spans: Sequence[tuple[float, float]]) -> list[int]:
    """A track for each stretch (from, to), so that those on one track do not meet; short ones get the nearest. At most TRACKS."""
    found = [0] * len(spans)
    taken: list[list[tuple[float, float]]] = []
    for i in sorted(range(len(spans)), key=lambda i: (spans[i][1] - spans[i][0], i)):
        low, high = spans[i]
        free = (number for number, others in enumerate(taken) if all(high < a or b < low for a, b in others))
        number = next(free, len(taken))
        if number == TRACKS:
            number = i % TRACKS  # lines lie on one another then, which only the eye can part
        elif number == len(taken):
            taken.append([])
        taken[number].append(spans[i])
        found[i] = number
    return found
