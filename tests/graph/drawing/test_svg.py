"""SVG drawings: well-formed, whole, self-contained, nothing over anything else."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import pytest
from graph.drawing.drawn import NASTY, nasty, network

import tapeprop as tp
from tapeprop.graph import LayerNode
from tapeprop.graph.drawing.columns import columns_of, heights, tracks
from tapeprop.graph.drawing.picture import Box, Line, Picture, clean
from tapeprop.graph.drawing.style import ink_on, shortened, text_width
from tapeprop.graph.drawing.svg import svg
from tapeprop.layers import Dense, Identity

SVG = "{http://www.w3.org/2000/svg}"


def read(drawing: str) -> ET.Element:
    root = ET.fromstring(drawing)
    assert root.tag == f"{SVG}svg"
    return root


def groups(root: ET.Element) -> dict[str, ET.Element]:
    """{first line of its title: the group} of each box."""
    return {(g.findtext(f"{SVG}title") or "").split("\n")[0]: g for g in root.iter(f"{SVG}g")}


def rectangles(root: ET.Element, kind: str = "box") -> list[tuple[float, float, float, float]]:
    found = []
    for rect in root.iter(f"{SVG}rect"):
        if rect.get("class") == kind:
            x, y, w, h = (float(rect.get(name, "nan")) for name in ("x", "y", "width", "height"))
            found.append((x, y, x + w, y + h))
    return found


def apart(boxes: list[tuple[float, float, float, float]]) -> bool:
    return all(
        a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for i, a in enumerate(boxes) for b in boxes[:i]
    )


@pytest.mark.parametrize("what", ["graph", "tape"])
def test_boxes_and_lines(what: str) -> None:
    picture = network()._picture(what, None)
    root = read(svg(picture))
    boxes = rectangles(root)
    assert len(boxes) == len(picture.boxes)
    assert apart(boxes)
    left, top, width, height = map(float, root.get("viewBox", "").split())
    assert all(left < x0 and top < y0 and x1 < left + width and y1 < top + height for x0, y0, x1, y1 in boxes)
    paths = [path for path in root.iter(f"{SVG}path") if "line" in path.get("class", "").split()]
    assert len(paths) == len(picture.lines)
    assert svg(picture) == svg(picture)


def test_nothing_outside_is_referred_to() -> None:
    for what in ("graph", "tape"):
        drawing = svg(network()._picture(what, None))
        assert re.findall(r"https?://[^\"' ]*", drawing) == ["http://www.w3.org/2000/svg"]
        assert "url(" not in drawing
        assert "@import" not in drawing
        assert " id=" not in drawing  # several drawings stand in one notebook page


def test_rules_of_the_style_stay_in_the_drawing() -> None:
    style = read(svg(network()._picture("graph", None))).findtext(f"{SVG}style") or ""
    assert re.findall(r"(?:^|\})(?!\.tapeprop-drawing|@media|\}|$)", style) == []


def test_the_texts_of_a_graph() -> None:
    found = groups(read(svg(network()._picture("graph", None))))
    texts = {name: [t.text for t in g.iter(f"{SVG}text")] for name, g in found.items()}
    assert texts["one"][1:] == ["one", "Dense(8, 8)", "→ (5, 8)", "checkpoint", "shared 1"]
    assert "SUB" in texts["join"]
    assert "stop" in texts["join"]  # at the line to side, which is drawn with the box that it leaves
    assert found["side"].get("class") == "node frozen"
    assert found["start"].get("class") == "root"
    assert "root" in texts["start"]
    assert "term" in texts["deep"]
    assert found["start.auto_norm"].get("class") == "norm"


def test_names_that_are_nasty_or_long() -> None:
    found = groups(read(svg(nasty()._picture("graph", None))))
    title = found[clean(NASTY).split("\n")[0]].findtext(f"{SVG}title") or ""
    assert title.startswith(clean(NASTY))
    long = found["x" * 300]
    shown = [t.text or "" for t in long.iter(f"{SVG}text")]
    assert shown[0] == "x" * 43 + "…"
    assert text_width("二" * 100) == 2 * text_width("x" * 100)
    assert shortened("二" * 100, 11) == "二" * 5 + "…"
    assert shortened("a\nb", 3) == "a↵b"


def test_many_layers_are_counted_and_in_the_title() -> None:
    node = tp.SequentialNode(*(Dense(4, 4) for _ in range(20)), name="deep")
    graph = tp.LayerGraph({node: []}, root=node, term=node)
    group = groups(read(svg(graph._picture("graph", None))))["deep"]
    assert [t.text for t in group.iter(f"{SVG}text")][-3] == "… 14 more"
    assert (group.findtext(f"{SVG}title") or "").count("Dense(4, 4)") == 20


def test_fills() -> None:
    drawing = svg(network()._picture("graph", None), {"one": "#ffeecc", "two": "#123", "absent": "#000000"})
    found = groups(read(drawing))
    one, two, join = (found[name] for name in ("one", "two", "join"))
    assert "fill:#ffeecc" in ET.tostring(one, "unicode")
    assert "fill:#111111" in ET.tostring(one, "unicode")
    assert "fill:#123" in ET.tostring(two, "unicode")
    assert "fill:#ffffff" in ET.tostring(two, "unicode")
    assert "style=" not in ET.tostring(join, "unicode")
    tape = groups(read(svg(network()._picture("tape", None), {"3": "#ff0000"})))
    assert sum("fill:#ff0000" in ET.tostring(group, "unicode") for group in tape.values()) == 1
    for colour in ("red", "#12", '#fff"/><script>', None):
        with pytest.raises(ValueError, match="expected a colour such as"):
            svg(network()._picture("graph", None), {"one": colour})  # type: ignore[dict-item]
    assert (ink_on("#fff"), ink_on("#000000"), ink_on("")) == ("#111111", "#ffffff", "")


def test_empty_pictures() -> None:
    for tape in (False, True):
        assert rectangles(read(svg(Picture("nothing", (), (), tape)))) == []
    assert len(rectangles(read(svg(tp.LayerGraph()._picture("graph", None))))) == 0


def row(number: int, span: str, node: str = "") -> Box:
    return Box(str(number), ("op",), kind="row", group=span, node=node)


def tape_of(*spans: tuple[str, str]) -> Picture:
    """A tape of (span, its nodes as letters)."""
    boxes = [row(0, span, node) for span, nodes in spans for node in nodes]
    boxes = [row(i, box.group, box.node) for i, box in enumerate(boxes)]
    return Picture("tape", tuple(boxes), tuple(Line(i, i + 1) for i in range(len(boxes) - 1)), True)


def test_backward_comes_up_beside_forward() -> None:
    picture = tape_of(("forward", "abbc"), ("backward", "cccbaaa"))
    columns = columns_of(picture)
    assert [column.upwards for column in columns] == [False, True]
    ys, height = heights(picture, columns)
    assert ys[:4] == sorted(ys[:4])
    assert ys[4:] == sorted(ys[4:], reverse=True)
    assert ys[3] == ys[4]  # c beside c
    assert ys[2] == ys[7]  # b beside b
    assert ys[0] == ys[8]
    assert min(ys) > 0
    assert max(ys) < height


@pytest.mark.parametrize(
    "spans",
    [
        [("forward", "abc")],
        [("backward", "abc")],
        [("backward", "abc"), ("update", "x")],
        [("fold", "ab"), ("forward", "ab")],
        [("gather", "xx"), ("forward", "abcd"), ("loss", "l"), ("backward", "ldcbabab"), ("update", "uvwx")],
        [("forward", "ab"), ("backward", "xyzxyzxyz")],
        [("", "aaa")],
    ],
    ids=lambda spans: " ".join(name for name, _ in spans),
)
def test_any_spans(spans: list[tuple[str, str]]) -> None:
    picture = tape_of(*spans)
    root = read(svg(picture))
    assert len(rectangles(root)) == len(picture.boxes)
    assert apart(rectangles(root))
    frames = rectangles(root, "frame")
    assert len(frames) == len(spans)
    assert apart(frames)
    left, top, width, height = map(float, root.get("viewBox", "").split())
    for x0, y0, x1, y1 in frames:
        assert left <= x0 < x1 <= left + width
        assert top <= y0 < y1 <= top + height


def test_tracks_do_not_meet() -> None:
    spans = [(0.0, 10.0), (2.0, 4.0), (4.0, 6.0), (5.0, 20.0), (11.0, 12.0)]
    found = tracks(spans)
    for i, (low, high) in enumerate(spans):
        for j in range(i):
            meet = low <= spans[j][1] and spans[j][0] <= high
            assert not (meet and found[i] == found[j])
    assert found[1] == found[4] == 0  # the shortest are the nearest
    assert max(tracks([(0.0, 1.0)] * 100)) == 29


def test_notebooks() -> None:
    page = network()._repr_html_()
    assert page.index("<svg") < page.index("<table>")
    root = ET.fromstring(f"<div>{page}</div>")
    assert len(root.findall(".//tbody/tr")) == 9  # two of them norms
    ET.fromstring(f"<div>{nasty()._repr_html_()}</div>")


def test_notebooks_draw_no_large_graphs() -> None:
    nodes = [LayerNode(Identity()) for _ in range(201)]
    graph = tp.LayerGraph({a: [b] for a, b in itertools.pairwise(nodes)}, root=nodes[0], term=nodes[-1])
    assert "201 nodes are too many to draw here" in graph._repr_html_()
    assert "<svg" not in graph._repr_html_()
    assert graph._repr_html_().count("<tr>") == 202


class Rude(Identity):
    """A layer that cannot be printed."""

    def __repr__(self) -> str:
        raise RuntimeError("no <name>")


def test_notebooks_show_whatever_there_is() -> None:
    graph = network()
    nodes = {str(node): node for node in graph.graph}
    graph.connect(nodes["join"], nodes["relu"])
    assert "<svg" in graph._repr_html_()
    assert "(5, 8)" not in graph._repr_html_()
    graph.disconnect(nodes["join"], nodes["relu"])
    nodes["relu"].layer = Dense(3, 3)  # no longer fits
    assert "<svg" in graph._repr_html_()
    nodes["relu"].layer = Rude()
    assert "no drawing: RuntimeError: no &lt;name&gt;" in graph._repr_html_()
    assert "<table>" in tp.LayerGraph()._repr_html_()
