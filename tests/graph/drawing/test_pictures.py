"""What is drawn, and its Mermaid and Graphviz text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from graph.drawing.drawn import NASTY, nasty, network

import tapeprop as tp
from tapeprop.errors import GraphError, NotBuiltError, ShapeError
from tapeprop.graph import GraphStructure, LayerNode, MergeMode
from tapeprop.graph.drawing.picture import clean, graph_picture, tape_picture
from tapeprop.layers import Activation, Conv2D, Identity, Lambda


def shortcut() -> GraphStructure:
    root, conv = LayerNode(Identity(), name="root"), LayerNode(Conv2D(3, 3, 3))
    relu = LayerNode(Activation.ReLU(), name='"quoted" <relu>')
    term = LayerNode(Identity(), MergeMode.AVG, name="term")
    return GraphStructure({root: [conv, term], conv: [relu], relu: [term]}, root, term)


def parsed(dot: str) -> tuple[dict[str, str], list[tuple[str, str, str]], list[str]]:
    """({key: label}, (from, to, settings) of each edge, labels of clusters) of what this library writes; no line is passed over."""
    lines = dot.splitlines()
    assert lines[:2] == ["digraph {", "    node [shape=box]"]
    assert lines[-1] == "}"
    string = r'"((?:[^"\\]|\\.)*)"'
    nodes: dict[str, str] = {}
    edges, clusters, depth = [], [], 0
    for line in lines[2:-1]:
        text = line.strip()
        if found := re.fullmatch(rf"(n\d+) \[label={string}((?:, \w+=\w+)*)\]", text):
            nodes[found[1]] = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], found[2])
        elif found := re.fullmatch(rf"(n\d+) -> (n\d+)(?: \[((?:label={string}|\w+=\w+|, )*)\])?", text):
            edges.append((found[1], found[2], found[3] or ""))
        elif found := re.fullmatch(rf"label={string}", text):
            clusters.append(found[1])
        elif re.fullmatch(r"subgraph cluster_\d+ \{", text):
            depth += 1
        else:
            assert text == "}", line
            depth -= 1
    assert depth == 0
    return nodes, edges, clusters


def test_mermaid() -> None:
    drawing = shortcut().plot()
    assert drawing.startswith("flowchart TD\n")
    assert '    n0(["root<br>Identity()"])' in drawing
    assert '    n2["&quot;quoted&quot; &lt;relu&gt;<br>ReLU()"]' in drawing
    assert '    n3(["term<br>AVG<br>Identity()"])' in drawing
    assert drawing.count("-->") == 4


def test_files(tmp_path: Path) -> None:
    graph = shortcut()
    drawing = graph.plot()
    assert (graph.plot(tmp_path / "net.mmd"), (tmp_path / "net.mmd").read_text()) == (drawing, drawing)
    assert graph.plot(tmp_path / "net.md") == f"```mermaid\n{drawing}```\n"
    for name, begin in (("net.dot", "digraph {"), ("net.GV", "digraph {"), ("net.svg", "<svg ")):
        text = graph.plot(str(tmp_path / name))
        assert text.startswith(begin)
        assert (tmp_path / name).read_text(encoding="utf-8") == text
    for name in ("net.png", "net", ""):
        with pytest.raises(GraphError, match=r"ends in \.svg, \.mmd, \.md, \.dot or \.gv, got"):
            graph.plot(tmp_path / name if name else "")
    assert not (tmp_path / "net.png").exists()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        graph.plot(tmp_path / "nowhere" / "net.svg")


def test_what() -> None:
    with pytest.raises(GraphError, match="'graph' or 'tape', got 'cake'"):
        network().plot(what="cake")
    with pytest.raises(NotBuiltError, match="build"):
        nasty().plot(what="tape")
    with pytest.raises(GraphError, match="not for input_shape"):
        network().plot(what="tape", input_shape=(3, 4))
    with pytest.raises(GraphError, match="'tape'"):
        shortcut().plot(what="tape")  # a structure that no compiler has seen


def test_shapes() -> None:
    assert "(N, 3, 8, 8)" in shortcut().plot(input_shape=(None, 3, 8, 8))
    assert "(5, 3)" in network().plot()
    assert "(7, 3)" in network().plot(input_shape=(7, 4))
    with pytest.raises(ShapeError, match="start"):
        network().plot(input_shape=(7, 5))


def test_all_of_a_graph_is_drawn() -> None:
    graph = network()
    picture = graph_picture(graph, graph._known_results())
    found = {box.key: box for box in picture.boxes}
    assert list(found) == ["start", "start.auto_norm", "relu", "one", "two", "join", "side", "deep"]
    assert (found["start"].kind, found["deep"].kind, found["start.auto_norm"].kind) == ("root", "term", "norm")
    assert found["deep"].layers == ("Dense(8, 8)", "+ BatchNorm1D(8)", "ReLU()", "Dense(8, 3)")
    assert (found["one"].tags, found["two"].tags) == (("checkpoint", "shared 1"), ("shared 1",))
    assert found["side"].tags == ("frozen", "optimizer")
    assert (found["join"].merge, found["deep"].merge, found["relu"].merge) == ("SUB", "SUM", "")
    assert {box.shape for box in picture.boxes} == {"(5, 8)", "(5, 3)"}
    lines = [(picture.boxes[x.source].key, picture.boxes[x.target].key, x.label, x.stopped) for x in picture.lines]
    assert ("start", "start.auto_norm", "", False) in lines
    assert ("start.auto_norm", "relu", "", False) in lines
    assert ("start", "relu", "", False) not in lines
    # operands of SUB come in the order of the keys: relu, one, two
    assert [x for x in lines if x[1] == "join"] == [
        ("relu", "join", "1", False), ("one", "join", "2", False), ("two", "join", "3", False),
    ]  # fmt: skip
    assert [x for x in lines if x[3]] == [("join", "side", "", True)]


def test_graphviz() -> None:
    nodes, edges, clusters = parsed(_dot(network()))
    assert nodes["n0"] == "start\nDense(4, 8)\n(5, 8)"
    assert nodes["n6"] == "side\nDense(8, 8)\n(5, 8)\nfrozen, optimizer"
    assert ("n5", "n6", 'label="stop", style=dashed') in edges
    assert ("n2", "n5", 'label="1"') in edges
    assert len(edges) == 10
    assert clusters == []


def _dot(graph: tp.LayerGraph, what: str = "graph") -> str:
    from tapeprop.graph.drawing.text import dot

    return dot(graph._picture(what, None))


def test_marks_of_mermaid() -> None:
    drawing = network().plot()
    assert "n5 -.->|stop| n6" in drawing
    assert "n2 -->|1| n5" in drawing
    assert 'n1{{"start.auto_norm<br>' in drawing
    assert "    class n6 frozen\n" in drawing
    assert "<br>checkpoint, shared 1" in drawing


def test_nasty_names() -> None:
    nodes, _, _ = parsed(_dot(nasty()))
    assert nodes["n0"] == clean(NASTY) + "\nDense(4, 8)"
    label = next(line for line in nasty().plot().splitlines() if "n0" in line)
    assert label.count('"') == 2
    assert "&lt;b&gt; &quot;q&quot; &amp; \\ \\N ünï 二<br>line #35;35; #96;x#96; ]]&gt;" in label
    assert clean("a\r\nb\rc\td\x00\ud800é二") == "a\nb\nc d\ufffd\ufffdé二"


def test_double_edges_are_kept() -> None:
    a, b = LayerNode(Identity()), LayerNode(Lambda(lambda x: x))
    assert GraphStructure({a: [b, b]}, a, b).plot().count("n0 --> n1") == 2


@pytest.mark.parametrize("break_it", ["cycle", "cut", "rootless", "shapes"])
def test_graphs_that_are_not_valid_are_drawn(break_it: str) -> None:
    graph = network()
    nodes = {str(node): node for node in graph.graph}
    if break_it == "cycle":
        graph.connect(nodes["join"], nodes["relu"])
    elif break_it == "cut":
        graph.disconnect(nodes["relu"], nodes["join"])
        graph.add_node(LayerNode(Identity(), name="alone"))
    elif break_it == "rootless":
        graph.root = graph.term = None
    else:
        nodes["relu"].layer = Conv2D(1, 1, 1)
    drawing = graph.plot()
    assert all(name in drawing for name in nodes)
    assert break_it == "rootless" or "(5, 8)" not in drawing  # shapes are those of graphs that go through


def test_tape() -> None:
    graph = network()
    tape = graph.tape
    picture = tape_picture(tape)
    assert [box.key for box in picture.boxes] == [str(i) for i in range(len(tape))]
    assert list(picture.groups) == ["forward", "backward"]
    nodes, edges, clusters = parsed(_dot(graph, "tape"))
    assert len(nodes) == len(tape)
    assert clusters == ["forward", "backward"]
    assert len(edges) == len(picture.lines) == sum(len(row["after"]) for row in tape)
    mermaid = graph.plot(what="tape")
    assert mermaid.count("subgraph s") == mermaid.count("\n    end\n") == 2
    assert mermaid.count(" --> ") == len(edges)


def test_tapes_of_open_sizes() -> None:
    graph = network().build((None, 4))
    assert "(N, 8)" in graph.plot(what="tape")
    assert any(row["after"] for row in graph.tape)


class Doubled(tp.layers.PythonLayer):
    """2 x, computed in Python."""

    def forward(self, x, is_train=False):
        return 2 * x

    def backward(self, d_out):
        return 2 * d_out


def test_rows_of_python_are_marked() -> None:
    start = LayerNode(tp.layers.Dense(4, 4), name="start")
    own = LayerNode(Doubled(), name="own")
    graph = tp.LayerGraph({start: [own]}, root=start, term=own).build((5, 4))
    assert {box.node for box in tape_picture(graph.tape).boxes if "python" in box.tags} == {"own"}
