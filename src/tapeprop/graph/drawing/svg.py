"""Drawings as SVG, made here: no program, font or network is needed to see them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape

from tapeprop.graph.drawing import tape_svg
from tapeprop.graph.drawing.layered import Point, layout
from tapeprop.graph.drawing.picture import Box, Line, Picture
from tapeprop.graph.drawing.style import (
    ARROW,
    arrow_head,
    check_colours,
    document,
    ink_on,
    rectangle,
    shortened,
    text_width,
    words,
)

#: Cells in a line of text, and layers in a box; what is longer is shortened, and whole in the box's <title>.
CELLS = 44
LAYERS = 7
LINE = 16.0
PADDING = 8.0
TAB = 15.0
PILL = 15.0


def svg(picture: Picture, fills: Mapping[str, str] | None = None) -> str:
    """The drawing as one SVG element with everything in it, readable on light and dark ground.

    A graph is laid out in layers from top to bottom, a tape in columns. Each box has a <title> with its whole text, which browsers show
    over it. fills: {key of a box: the colour behind it, "#rrggbb"}; text on it is black or white. ValueError for another colour.
    """
    fills = {} if fills is None else fills
    check_colours(fills)
    return tape_svg.drawn(picture, fills) if picture.tape else _graph(picture, fills)


def _graph(picture: Picture, fills: Mapping[str, str]) -> str:
    contents = [_contents(box) for box in picture.boxes]
    sizes = [_size(box, lines) for box, lines in zip(picture.boxes, contents, strict=True)]
    placed = layout(sizes, [(line.source, line.target) for line in picture.lines])
    leaving: list[list[str]] = [[] for _ in picture.boxes]
    for line, path in zip(picture.lines, placed.paths, strict=True):
        leaving[line.source].append(_line(line, path))
    parts = []
    for box, lines, size, center, away in zip(picture.boxes, contents, sizes, placed.centers, leaving, strict=True):
        parts.append(_box(box, lines, size, center, fills.get(box.key, ""), away))
    return document(picture.title, placed.width, placed.height, parts)


def _contents(box: Box) -> list[tuple[str, str]]:
    """(kind, text) of each line in a box, shortened."""
    layers = [f"… {len(box.layers) - LAYERS + 1} more"] if len(box.layers) > LAYERS else []
    layers = [*box.layers[: LAYERS - len(layers)], *layers]
    found = [("name", box.key), *(("", layer) for layer in layers)]
    found += [("dim", f"→ {box.shape}")] if box.shape else []
    return [(kind, shortened(value, CELLS)) for kind, value in found]


def _tags(box: Box) -> list[str]:
    return [*(end for end in ("root", "term") if end in box.kind), *box.tags]


def _pill_width(value: str) -> float:
    return text_width(value, 10.0) + 10.0


def _size(box: Box, lines: Sequence[tuple[str, str]]) -> Point:
    tags = _tags(box)
    pills = sum(_pill_width(tag) + 4 for tag in tags) - 4 if tags else 0.0
    width = max([text_width(value) * (1.03 if kind == "name" else 1.0) for kind, value in lines] + [pills, 40.0])
    height = LINE * len(lines) + (PILL + 4) * bool(tags) + 2 * PADDING + TAB * bool(box.merge)
    return width + 2.5 * PADDING, height


def _box(
    box: Box, lines: Sequence[tuple[str, str]], size: Point, center: Point, fill: str, leaving: Sequence[str]
) -> str:
    (w, h), (x, y) = size, center
    left, top, ink = x - w / 2, y - h / 2, ink_on(fill)
    kinds = [*box.kind.split(), *("frozen" for tag in box.tags if tag == "frozen")]
    parts = [*leaving, f"<title>{escape(chr(10).join((box.key, *_whole(box))))}</title>"]
    if box.merge:
        wide = min(w, _pill_width(box.merge) + 6)
        parts.append(rectangle(x - wide / 2, top, wide, TAB + 6, "merge"))
        parts.append(words(x, top + TAB / 2, box.merge, "pill", "middle"))
        top, h = top + TAB, h - TAB
    parts.append(rectangle(left, top, w, h, "box", 14 if "root" in kinds or "term" in kinds else 5, fill))
    at = top + PADDING + LINE / 2
    for kind, value in lines:
        parts.append(words(x, at, value, kind, "middle", ink))
        at += LINE
    tags = _tags(box)
    pill = x - (sum(_pill_width(tag) + 4 for tag in tags) - 4) / 2
    for tag in tags:
        parts.append(rectangle(pill, at - LINE / 2 + 2, _pill_width(tag), PILL, f"tag tag-{tag.split()[0]}", PILL / 2))
        parts.append(words(pill + _pill_width(tag) / 2, at - LINE / 2 + 2 + PILL / 2, tag, "pill", "middle"))
        pill += _pill_width(tag) + 4
    return f'<g class="{" ".join(kinds)}">{"".join(parts)}</g>'


def _whole(box: Box) -> list[str]:
    """Everything in a box but its key, unshortened."""
    merge = [f"merge: {box.merge}"] if box.merge else []
    shape = [f"→ {box.shape}"] if box.shape else []
    tags = _tags(box)
    return [*merge, *box.layers, *shape, *([", ".join(tags)] if tags else [])]


def _line(line: Line, path: Sequence[Point]) -> str:
    (x0, y0), (x, y) = path[-2], path[-1]
    if y0 == y:
        dx, dy = (1 if x > x0 else -1), 0
    else:
        dx, dy = 0, (1 if y > y0 else -1)
    points = [*path[:-1], (x - ARROW * dx, y - ARROW * dy)]
    kind = "line stopped" if line.stopped else "line"
    parts = [f'<path class="{kind}" d="{_curve(points)}"/>', arrow_head(x, y, dx, dy)]
    label = " ".join(filter(None, (line.label, "stop" * line.stopped)))
    if label:
        pairs = list(itertools.pairwise(path))
        a, b = next((pair for pair in reversed(pairs) if pair[0][0] != pair[1][0]), pairs[-1])
        x, y, upright = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2, abs(a[0] - b[0]) < 2 * ARROW
        parts.append(words(x + 6, y, label, "label") if upright else words(x, y - 9, label, "label", "middle"))
    return "".join(parts)


def _curve(points: Sequence[Point]) -> str:
    """Straight where upright or level, else a curve that begins and ends upright."""
    parts = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (x0, y0), (x, y) in itertools.pairwise(points):
        if abs(x - x0) < 0.05 or abs(y - y0) < 0.05:
            parts.append(f"L{x:.1f} {y:.1f}")
        else:
            middle = (y0 + y) / 2
            parts.append(f"C{x0:.1f} {middle:.1f} {x:.1f} {middle:.1f} {x:.1f} {y:.1f}")
    return "".join(parts)
