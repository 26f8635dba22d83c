"""Every structure that is refused: the error's kind, the nodes it names, and that nothing was changed."""

import itertools

import numpy as np
import pytest
from patience import calls_of
from traced import run

from tapeprop import ops
from tapeprop.errors import (
    CycleError,
    DisconnectedError,
    DTypeError,
    DuplicateNameError,
    GraphError,
    MergeError,
    ShapeError,
)
from tapeprop.graph import GraphStructure, LayerNode, SequentialNode
from tapeprop.layers import Activation, Dense, Dropout, Identity, Lambda, Layer
from tapeprop.layers.layer import tracing


def node(name: str | None = None) -> LayerNode:
    return LayerNode(Identity(), name=name)


def refused(graph: GraphStructure, kind: type[GraphError], *named: str) -> None:
    """check() raises this kind, names these, and leaves the graph as it was."""
    before = ({a: list(b) for a, b in graph.graph.items()}, graph.root, graph.term, graph.labels)
    with pytest.raises(kind) as caught:
        graph.check()
    assert type(caught.value) is kind
    for part in named:
        assert part in str(caught.value)
    assert before == ({a: list(b) for a, b in graph.graph.items()}, graph.root, graph.term, graph.labels)


def test_cycle_is_named_in_the_order_of_its_edges() -> None:
    r, a, b, c = map(node, "rabc")
    graph = GraphStructure({r: [a], a: [b], b: [c], c: [a]}, r, c)
    refused(graph, CycleError, "a -> b -> c -> a", "(Identity)")
    assert graph.detect_cycle() is True
    graph.disconnect(c, a)
    assert graph.detect_cycle() is False
    graph.check()


def test_a_long_cycle_gives_a_short_message() -> None:
    nodes = [node() for _ in range(1000)]
    graph = GraphStructure({a: [b] for a, b in zip(nodes, [*nodes[1:], nodes[0]])}, nodes[0], nodes[-1])
    with pytest.raises(CycleError, match=r"node0 -> node1 .* \.\.\. -> node0") as caught:
        graph.check()
    assert len(str(caught.value)) < 500


def test_unreachable_node() -> None:
    r, t, lost = node("r"), node("t"), LayerNode(Activation.ReLU(), name="lost")
    refused(GraphStructure({r: [t], lost: [t]}, r, t), DisconnectedError, "'lost' (ReLU)", "'r'", "reachable")


def test_dead_end_is_refused_unless_allowed() -> None:
    r, t, x = LayerNode(Lambda(lambda v: v * 2.0), name="r"), node("t"), node("x")
    graph = GraphStructure({r: [t, x]}, r, t)
    refused(graph, DisconnectedError, "'x' (Identity)", "'t'", "allow_dead")
    graph._allow_dead = True
    assert x not in graph.check().order
    found = run(graph, [np.array([[3.0]])])
    assert (found.outputs[0].item(), found.inputs[0].item()) == (6.0, 2.0)
    graph._allow_dead = False
    refused(graph, DisconnectedError, "'x'")


def test_a_term_may_have_edges_to_another() -> None:
    r, h, t = map(node, "rht")
    assert GraphStructure({r: [h], h: [t]}, r, [h, t]).check().order == [r, h, t]


@pytest.mark.parametrize("end", ["root", "term"])
def test_missing_and_absent_ends(end: str) -> None:
    r, t, stranger = map(node, ("r", "t", "stranger"))
    graph = GraphStructure({r: [t]}, r, t)
    for nothing in (None, []):
        setattr(graph, end, nothing)
        refused(graph, DisconnectedError, end, "none")
    setattr(graph, end, stranger)
    refused(graph, DisconnectedError, end, "'stranger'")
    setattr(graph, end, [r, r])
    refused(graph, GraphError, "'r'", "twice")


def test_edge_into_root() -> None:
    r, s, t = map(node, "rst")
    refused(GraphStructure({r: [t], s: [r, t]}, [r, s], t), GraphError, "root 'r'", "'s'", "Identity()")


def test_duplicate_names() -> None:
    r, t = node("same"), LayerNode(Activation.ReLU(), name="same")
    refused(GraphStructure({r: [t]}, r, t), DuplicateNameError, "'same'", "Identity", "ReLU")
    refused(GraphStructure({(a := node()): [b := node("node0")]}, a, b), DuplicateNameError, "'node0'")


def test_duplicate_state_keys() -> None:
    a = SequentialNode(("b", Dense(2, 2)), name="a")
    b = LayerNode(Dense(2, 2), name="a.b")
    refused(GraphStructure({a: [b]}, a, b), DuplicateNameError, "a.b.weight")


def test_the_empty_graph() -> None:
    refused(GraphStructure(), DisconnectedError, "root")


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: GraphStructure([a, b], a, b),
        lambda a, b: GraphStructure({a: [Identity()]}, a, b),
        lambda a, b: GraphStructure({Identity(): [b]}, a, b),
        lambda a, b: GraphStructure({a: 3}, a, b),
        lambda a, b: GraphStructure({a: [b]}, Identity(), b),
        lambda a, b: GraphStructure({a: [b]}, a, 3),
        lambda a, b: GraphStructure({a: [b]}, a, b, seed=-1),
        lambda a, b: GraphStructure({a: [b]}, a, b, seed=True),
        lambda a, b: LayerNode(Identity),
        lambda a, b: LayerNode(lambda x: x),
        lambda a, b: LayerNode(3),
        lambda a, b: LayerNode(Identity(), name=""),
        lambda a, b: LayerNode(Identity(), name=3),
    ],
)
def test_wrong_kinds_of_things(make) -> None:
    with pytest.raises(GraphError, match="expected"):
        make(node(), node())


def test_shape_errors_name_the_node() -> None:
    r, wide, narrow = node("r"), LayerNode(Dense(8, 4), name="wide"), LayerNode(Dense(3, 4), name="narrow")
    t = node("t")
    graph = GraphStructure({r: [wide, narrow], wide: [t], narrow: [t]}, r, t)
    with pytest.raises(ShapeError, match=r"node 'narrow': Dense expects \(N, in_features=3\), got \(2, 8\)"):
        graph.out_shape((2, 8))
    graph.remove_node(narrow)
    assert graph.out_shape((2, 8)) == (2, 4)
    assert graph.out_shape((None, 8)) == (None, 4)
    graph.connect(r, t)
    with pytest.raises(MergeError, match=r"node 't': SUM expects .*'r' \(N, 8\), 'wide' \(N, 4\)"):
        graph.out_shape((None, 8))


def test_errors_of_layers_name_the_node_once() -> None:
    inner = GraphStructure({(a := LayerNode(Dense(3, 3), name="deep")): []}, a, a)
    r, outer = node("r"), SequentialNode(Identity(), inner, name="outer")
    with pytest.raises(ShapeError) as caught:
        GraphStructure({r: [outer]}, r, outer).out_shape((1, 2))
    assert str(caught.value).startswith("node 'outer.1.deep': Dense expects")
    assert str(caught.value).count("node '") == 1


def test_errors_of_ops_name_the_node_whatever_its_name() -> None:
    a, b, e = node("a"), node("b"), LayerNode(Lambda(lambda x: ops.reshape(x, (7,))), name="e")
    with pytest.raises(ShapeError, match=r"node 'e'.*reshape"):
        GraphStructure({e: []}, e, e).out_shape((1, 2))
    ints = LayerNode(Lambda(lambda x: tracing().input(9, (1, 2), "int64")), name="ints")
    t = node("t")
    with pytest.raises(DTypeError, match=r"node 't'.*int64"):
        GraphStructure({a: [ints, b], ints: [t], b: [t]}, a, t).out_shape((1, 2))


def test_a_layer_that_returns_no_tensor() -> None:
    class Forgetful(Layer):
        def trace(self, x):
            ops.relu(x)

    n = LayerNode(Forgetful(), name="n")
    with pytest.raises(GraphError, match=r"node .n. \(Forgetful\): .* to return a Tensor, got NoneType"):
        GraphStructure({n: []}, n, n).out_shape((1, 2))


def test_open_tracing_of_what_draws() -> None:
    drop = LayerNode(Dropout(), name="drop")
    outputs, _ = GraphStructure({drop: []}, drop, drop).trace_open((None, 3), training=True)
    assert outputs[0].producer is not None


def test_foreign_exceptions_keep_their_kind_and_gain_a_note() -> None:
    bad = LayerNode(Lambda(lambda x: x.nonsense), name="bad")
    with pytest.raises(AttributeError) as caught:
        GraphStructure({bad: []}, bad, bad).out_shape((1, 2))
    assert any("'bad'" in note for note in caught.value.__notes__)


def test_a_graph_cannot_hold_itself() -> None:
    a = node("a")
    graph = GraphStructure({a: []}, a, a)
    with pytest.raises(CycleError, match="very graph"):
        graph.add_node(LayerNode(graph))
    inner = GraphStructure({(b := node("b")): []}, b, b)
    graph.add_node(outer := SequentialNode(inner, name="outer"), a)
    with pytest.raises(CycleError):
        inner.add_node(LayerNode(graph))
    assert graph.nodes == [a, outer]
    a.layer = graph
    with pytest.raises(CycleError, match="without end"):
        graph.check()


def test_a_graph_of_several_ends_is_no_layer() -> None:
    a, b = node("a"), node("b")
    two = LayerNode(GraphStructure({a: [b]}, a, [a, b]), name="two")
    with pytest.raises(GraphError, match=r"node 'two' .*1 roots and 2 terms"):
        GraphStructure({two: []}, two, two).out_shape((1, 2))


def test_checks_take_calls_in_proportion_to_the_graph() -> None:
    def calls(count: int) -> int:
        nodes = [node() for _ in range(count)]
        edges = {a: [b] for a, b in itertools.pairwise(nodes)}
        return calls_of(lambda: GraphStructure(edges, nodes[0], nodes[-1]).check())

    calls(10)  # what is imported or made once
    assert calls(1_000) < 5 * calls(250)  # 4 times the graph; quadratic work would take 16


def test_20000_nodes_in_a_chain_are_checked() -> None:
    nodes = [node() for _ in range(20_000)]
    graph = GraphStructure({a: [b] for a, b in itertools.pairwise(nodes)}, nodes[0], nodes[-1])
    assert graph.check().order == nodes
    assert graph.get_path() == nodes
    assert graph.out_shape((None, 3)) == (None, 3)
    assert graph.layer_count == 20_000


def test_a_ladder_of_5000_splits_gives_its_input() -> None:
    def half() -> LayerNode:
        return LayerNode(Identity(), "avg")

    rungs = [half() for _ in range(5001)]
    edges: dict[LayerNode, list[LayerNode]] = {}
    for top, bottom in itertools.pairwise(rungs):
        left, right = half(), half()
        edges |= {top: [left, right], left: [bottom], right: [bottom]}
    graph = GraphStructure(edges, rungs[0], rungs[-1])
    assert len(graph.check().order) == 15_001
    assert graph.out_shape((None, 2)) == (None, 2)
    assert len(graph.get_path()) == 10_001
