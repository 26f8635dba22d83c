"""A tape as SVG: a box for each row, in columns by span, and a line from each row to those that read what it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from tapeprop.graph.drawing.columns import HEAD, STEP, TRACK, Column, columns_of, heights, tracks
from tapeprop.graph.drawing.picture import Box, Line, Picture
from tapeprop.graph.drawing.style import ARROW, arrow_head, document, ink_on, rectangle, shortened, text_width, words

#: Cells for op, node and shape; what is longer is shortened, and whole in the row's <title>.
CELLS = (30, 34, 30)
BOX = 20.0
BETWEEN = 120.0
SPACE = 12.0
ROUND = 4.0


@dataclass(frozen=True)
class _Place:
    """Where a row lies: the middle of its height, its sides, the number of its column."""

    y: float
    left: float
    right: float
    column: int


def drawn(picture: Picture, fills: Mapping[str, str]) -> str:
    """The SVG of a tape's picture; fills: {number of a row as text: the colour behind it}."""
    columns = columns_of(picture)
    ys, height = heights(picture, columns)
    column_of = {i: number for number, column in enumerate(columns) for i in column.rows}
    inside: list[list[Line]] = [[] for _ in columns]
    order = {i: at for column in columns for at, i in enumerate(column.rows)}
    for line in picture.lines:
        number = column_of[line.source]
        if column_of[line.target] == number and order[line.target] != order[line.source] + 1:
            inside[number].append(line)
    beside = [_tracks(lines, ys) for lines in inside]
    cells = [_cells([picture.boxes[i] for i in column.rows]) for column in columns]
    places: list[_Place] = [_Place(0, 0, 0, 0)] * len(picture.boxes)
    x = 0.0
    for number, column in enumerate(columns):
        room = SPACE + TRACK * (max(beside[number].values(), default=-1) + 1)
        left = x + (room if number == 0 else BETWEEN)
        right = left + sum(cells[number]) + SPACE * 5
        x = right + SPACE + (room if number else 0.0)
        for i in column.rows:
            places[i] = _Place(ys[i], left, right, number)
    parts = [_frames(picture, column, places) for column in columns]
    leaving: list[list[str]] = [[] for _ in picture.boxes]
    for line in picture.lines:
        track = beside[column_of[line.source]].get(line.source, 0)
        leaving[line.source].append(_line(line, places, order, track))
    for i, box in enumerate(picture.boxes):
        row = _row(box, places[i], cells[places[i].column], fills.get(box.key, ""))
        parts.append(f"<g>{''.join(leaving[i])}{row}</g>")
    return document(picture.title, x, height, parts)


def _tracks(lines: list[Line], ys: list[float]) -> dict[int, int]:
    """{row: the track of all the lines that leave it}."""
    reach: dict[int, tuple[float, float]] = {}
    for line in lines:
        low, high = reach.get(line.source, (ys[line.source], ys[line.source]))
        reach[line.source] = min(low, ys[line.target]), max(high, ys[line.target])
    return dict(zip(reach, tracks(list(reach.values())), strict=True))


def _cells(boxes: list[Box]) -> tuple[float, float, float, float]:
    """The widths of number, op, node and shape in a column."""

    def widest(values: list[str], limit: int) -> float:
        return max((text_width(shortened(value, limit)) for value in values), default=0.0)

    return (
        widest([box.key for box in boxes], 8),
        widest([box.layers[0] for box in boxes], CELLS[0]) * 1.03,
        widest([box.node for box in boxes], CELLS[1]),
        widest([box.shape for box in boxes], CELLS[2]),
    )


def _frames(picture: Picture, column: Column, places: list[_Place]) -> str:
    parts = []
    for name, (first, end) in column.spans.items():
        top = min(places[i].y for i in range(first, end)) - STEP / 2 - HEAD + 4
        bottom = max(places[i].y for i in range(first, end)) + STEP / 2 + 4
        left, right = places[first].left - SPACE / 2, places[first].right + SPACE / 2
        parts.append(rectangle(left, top, right - left, bottom - top, "frame", 8))
        count = f"{end - first} row" + "s" * (end - first != 1)
        turn = "↑" if column.upwards else "↓"
        parts.append(words(left + SPACE, top + HEAD / 2 - 1, f"{name or 'rows'} {turn} {count}", "on"))
    return "".join(parts)


def _row(box: Box, place: _Place, cells: tuple[float, float, float, float], fill: str) -> str:
    number, op, node, _ = cells
    ink, x = ink_on(fill), place.left + SPACE
    title = "\n".join(filter(None, (*box.lines, *("runs in Python" for tag in box.tags if tag == "python"))))
    parts = [
        f"<title>{escape(title)}</title>",
        rectangle(place.left, place.y - BOX / 2, place.right - place.left, BOX, "box", 4, fill),
        words(x + number, place.y, box.key, "dim", "end", ink),
        words(x + number + SPACE, place.y, shortened(box.layers[0], CELLS[0]), "name", fill=ink),
        words(x + number + op + 2 * SPACE, place.y, shortened(box.node, CELLS[1]), fill=ink),
        words(x + number + op + node + 3 * SPACE, place.y, shortened(box.shape, CELLS[2]), "dim", fill=ink),
    ]
    if "python" in box.tags:
        parts.append(rectangle(place.left, place.y - BOX / 2, 5, BOX, "tag tag-python", 2))
    return "".join(parts)


def _line(line: Line, places: list[_Place], order: Mapping[int, int], track: int) -> str:
    a, b = places[line.source], places[line.target]
    if a.column != b.column:
        return _across(a, b)
    if order[line.target] == order[line.source] + 1:
        sign = 1 if b.y > a.y else -1
        x, start, end = a.left + SPACE * 2, a.y + sign * BOX / 2, b.y - sign * BOX / 2
        return f'<path class="line" d="M{x:.1f} {start:.1f}V{end - sign * ARROW:.1f}"/>{arrow_head(x, end, 0, sign)}'
    side = 1 if a.column else -1
    x = a.right if side > 0 else a.left
    out = x + side * (SPACE + TRACK * track)
    sign = 1 if b.y > a.y else -1
    y0, y1, r = a.y + 3 * sign, b.y - 3 * sign, ROUND
    path = (
        f"M{x:.1f} {y0:.1f}H{out - side * r:.1f}Q{out:.1f} {y0:.1f} {out:.1f} {y0 + sign * r:.1f}"
        f"V{y1 - sign * r:.1f}Q{out:.1f} {y1:.1f} {out - side * r:.1f} {y1:.1f}H{x + side * ARROW:.1f}"
    )
    return f'<path class="line" d="{path}"/>{arrow_head(x, y1, -side, 0)}'


def _across(a: _Place, b: _Place) -> str:
    """From one column to another, from the facing sides."""
    x0, x1, side = (a.right, b.left, 1) if b.column > a.column else (a.left, b.right, -1)
    middle, end = (x0 + x1) / 2, x1 - side * ARROW
    path = f"M{x0:.1f} {a.y:.1f}C{middle:.1f} {a.y:.1f} {middle:.1f} {b.y:.1f} {end:.1f} {b.y:.1f}"
    return f'<path class="line" d="{path}"/>{arrow_head(x1, b.y, side, 0)}'
