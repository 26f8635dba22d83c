"""Summary and the notebook table."""

import pytest

from tapeprop.errors import ShapeError
from tapeprop.graph import GraphStructure, LayerNode, MergeMode
from tapeprop.layers import Activation, Conv2D, Identity


def shortcut() -> GraphStructure:
    root, conv = LayerNode(Identity(), name="root"), LayerNode(Conv2D(3, 3, 3))
    relu = LayerNode(Activation.ReLU(), name='"quoted" <relu>')
    term = LayerNode(Identity(), MergeMode.AVG, name="term")
    conv.frozen = True
    return GraphStructure({root: [conv, term], conv: [relu], relu: [term]}, root, term)


def test_summary() -> None:
    plain, shaped = shortcut().summary(), shortcut().summary((None, 3, 8, 8))
    lines = shaped.splitlines()
    assert lines[0].split() == ["node", "layer", "output", "parameters", "leads", "to"]
    conv = next(line for line in lines if line.startswith("node1"))
    assert conv.split() == [
        "node1",
        "Conv2D(3,",
        "3,",
        "3)",
        "(frozen)",
        "(N,",
        "3,",
        "8,",
        "8)",
        "84",
        '"quoted"',
        "<relu>",
    ]
    assert "Identity() after AVG" in shaped
    assert lines[-1] == "GraphStructure: 4 nodes, 4 layers, 81 weights and 3 biases to train"
    assert "output" not in plain
    graph = shortcut()
    graph._input_shape = (None, 3, 8, 8)
    assert graph.summary() == shaped
    with pytest.raises(ShapeError, match="node1"):
        graph.summary((1, 2, 3, 4))


def test_long_cells_are_cut() -> None:
    node = LayerNode(Identity(), name="n" * 200)
    table = GraphStructure({node: []}, node, node).summary()
    assert max(map(len, table.splitlines())) < 120
    assert "nnn..." in table


def test_html_is_escaped() -> None:
    html = shortcut()._repr_html_()
    assert "&lt;relu&gt;" in html
    assert html.count("<tr>") == 5
