"""Edits: live lists, what the graph sees of them, and that nothing of the caller's is touched."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from traced import run

from tapeprop.errors import CycleError, DisconnectedError, GraphError
from tapeprop.graph import GraphStructure, LayerNode, MergeMode, SequentialNode
from tapeprop.layers import Activation, Dense, Dropout, Identity, Lambda, Layer
from tapeprop.optimizers import SGD


def node(name: str | None = None) -> LayerNode:
    return LayerNode(Identity(), name=name)


def names(graph: GraphStructure) -> dict[str, list[str]]:
    return {str(a): [str(b) for b in following] for a, following in graph.graph.items()}


def chain(*nodes: LayerNode, **options) -> GraphStructure:
    return GraphStructure({a: [b] for a, b in itertools.pairwise(nodes)}, nodes[0], nodes[-1], **options)


def test_identity_is_the_object() -> None:
    layer = Identity()
    a, b = LayerNode(layer, name="x"), LayerNode(layer, name="x")
    assert a != b
    assert len({a, b}) == 2
    assert [str(a), str(node()), str(SequentialNode(layer))] == ["x", "LayerNode", "SequentialNode"]


def test_nothing_of_the_callers_is_aliased() -> None:
    a, b, c = map(node, "abc")
    following, roots = [b], [a]
    adjacency = {a: following}
    graph = GraphStructure(adjacency, roots, b)
    following.append(c)
    roots.append(c)
    adjacency[c] = [b]
    assert names(graph) == {"a": ["b"], "b": []}
    assert graph.root == [a]
    graph[b].append(c)
    graph.root.append(c)
    assert (list(adjacency), following, roots) == ([a, c], [b, c], [a, c])


def test_protocol() -> None:
    a, b = node("a"), node("b")
    graph = chain(a, b)
    assert (len(graph), list(graph), graph.nodes, str(graph)) == (2, [a, b], [a, b], "GraphStructure")
    assert a in graph
    assert node("a") not in graph
    assert "a" not in graph
    with pytest.raises(GraphError, match="expected a node of the graph"):
        graph[node("a")]
    assert repr(graph) == "<GraphStructure: 2 nodes, root a, term b>"
    assert repr(a) == "<LayerNode 'a': Identity()>"


def test_keys_come_before_nodes_of_lists() -> None:
    a, b, c, d = map(node, "abcd")
    graph = GraphStructure({a: [d, c], b: [d]}, [a, b], [c, d])
    assert graph.nodes == [a, b, d, c]
    assert list(graph.labels.values()) == ["a", "b", "d", "c"]


def test_numbers_are_never_given_twice() -> None:
    a, b, c = node(), node(), node()
    graph = chain(a, b)
    assert graph.labels == {a: "node0", b: "node1"}
    graph.remove_node(b)
    graph.connect(a, c)
    assert graph.labels == {a: "node0", c: "node2"}
    graph.connect(c, b)
    assert graph.labels[b] == "node1"


def test_list_edits_are_seen_and_counted() -> None:
    a, b, c, d = map(node, "abcd")
    graph = chain(a, b)
    seen = [graph.version]

    def changed() -> bool:
        seen.append(graph.version)
        assert graph.version == seen[-1]
        return seen[-1] > seen[-2]

    graph[a].append(c)
    assert changed()
    assert c in graph
    graph[a].extend([d, d])
    assert changed()
    graph[a].insert(0, d)
    assert changed()
    assert names(graph)["a"] == ["d", "b", "c", "d", "d"]
    graph[a].remove(d)
    assert changed()
    assert graph[a].pop() is d
    assert changed()
    graph[a].reverse()
    assert changed()
    graph[a][0] = b
    assert changed()
    graph[a][1:] = [d, c]
    assert changed()
    del graph[a][0]
    assert changed()
    graph[a] += [b]
    assert changed()
    graph[a].sort(key=str)
    assert changed()
    assert names(graph)["a"] == ["b", "c", "d"]
    graph[a] *= 2
    assert changed()
    graph[a].clear()
    assert changed()
    graph[a] = [b]
    assert changed()
    assert names(graph) == {"a": ["b"], "b": [], "c": [], "d": []}
    graph.term = c
    assert changed()
    graph.term = c
    assert not changed()
    b.merge_mode = MergeMode.MAX
    assert changed()
    b.name = "bb"
    assert changed()
    b.layer = Activation.ReLU()
    assert changed()
    node("elsewhere")
    assert not changed()


def test_wrong_things_do_not_enter_lists() -> None:
    a, b = node("a"), node("b")
    graph = chain(a, b)
    for edit in (
        lambda: graph[a].append(Identity()),
        lambda: graph[a].extend([b, "b"]),
        lambda: graph[a].__setitem__(0, None),
        lambda: graph.__setitem__(a, [b, 3]),
        lambda: graph.graph.update({a: [3]}),
        lambda: graph.connect(a, Identity()),
        lambda: graph.add_node(a),
        lambda: graph.add_node(node(), [3]),
        lambda: graph.remove_node(node()),
        lambda: graph.replace_node(a, b),
        lambda: graph.replace_node(node(), node()),
        lambda: graph.disconnect(b, a),
        lambda: graph.stop_gradient(b, a),
        lambda: graph[a].remove(a),
        lambda: graph.graph.__delitem__(node()),
    ):
        with pytest.raises(GraphError):
            edit()
        assert names(graph) == {"a": ["b"], "b": []}


def test_adjacency_is_a_dict_that_keeps_its_promise() -> None:
    a, b, c, d = map(node, "abcd")
    graph = GraphStructure()
    graph.graph[a] = [b]
    graph.graph.setdefault(c, [d])
    graph.graph.update({b: [c]})
    assert names(graph) == {"a": ["b"], "b": ["c"], "c": ["d"], "d": []}
    del graph.graph[c]
    assert names(graph) == {"a": ["b"], "b": [], "d": []}
    assert graph.graph.pop(d) == []
    assert graph.graph.pop(d, "none") == "none"
    assert graph.graph.popitem()[0] is b
    assert names(graph) == {"a": []}
    graph.graph = {c: [a]}
    assert names(graph) == {"c": ["a"], "a": []}


def test_add_node() -> None:
    a, b, c, d = map(node, "abcd")
    graph = chain(a, b)
    graph.add_node(c, prev_nodes=a, next_nodes=[b])
    graph.add_node(d, [c])
    assert names(graph) == {"a": ["b", "c"], "b": [], "c": ["b", "d"], "d": []}


def test_remove_node_takes_edges_root_and_term() -> None:
    a, b, c = map(node, "abc")
    graph = GraphStructure({a: [b, c, b], b: [c]}, a, [b, c])
    graph.remove_node(b)
    assert names(graph) == {"a": ["c"], "c": []}
    assert graph.term == [c]
    graph.remove_node(a)
    assert graph.root is None


def test_replace_node_keeps_orders() -> None:
    a, b, c, x = map(node, "abcx")
    graph = GraphStructure({a: [b, c, b], b: [c]}, a, c)
    graph.stop_gradient(a, b)
    graph.replace_node(b, x)
    assert names(graph) == {"a": ["x", "c", "x"], "x": ["c"], "c": []}
    y = node("y")
    graph.replace_node(a, y)
    graph.replace_node(c, z := node("z"))
    assert (graph.root, graph.term, graph._stopped) == (y, z, {(y, x)})


def test_disconnect_takes_every_edge() -> None:
    a, b, c = map(node, "abc")
    graph = GraphStructure({a: [b, c, b]}, a, b)
    graph.disconnect(a, b)
    assert names(graph)["a"] == ["c"]


def test_clear() -> None:
    graph = chain(node(), node())
    graph.clear()
    assert (len(graph), graph.root, graph.term) == (0, None, None)


def test_stop_gradient_cuts_one_edge() -> None:
    r, t = node("r"), node("t")
    triple = LayerNode(Lambda(lambda x: x * 3.0))
    graph = GraphStructure({r: [triple, t], triple: [t]}, r, t)
    assert run(graph, [np.ones((1, 1))]).inputs[0] == 4
    graph.stop_gradient(r, triple)
    assert run(graph, [np.ones((1, 1))]).inputs[0] == 1
    graph.disconnect(r, triple)
    graph.connect(r, triple)
    assert run(graph, [np.ones((1, 1))]).inputs[0] == 4


def test_get_path() -> None:
    r, a, b, t = map(node, "rabt")
    graph = GraphStructure({r: [t, a], a: [b], b: [t]}, r, t)
    assert graph.get_path() == [r, t]
    assert graph.get_path(a) == [a, b, t]
    assert graph.get_path(end=b) == [r, a, b]
    with pytest.raises(DisconnectedError, match="path from 't'"):
        graph.get_path(t, r)
    with pytest.raises(DisconnectedError):
        graph.get_path(node())
    with pytest.raises(DisconnectedError):
        GraphStructure().get_path()


def test_joined_graphs_share_their_nodes() -> None:
    a, b, c, d = LayerNode(Dense(2, 3)), node("b"), LayerNode(Dense(3, 1)), node("d")
    first, second = chain(a, b, seed=3), chain(c, d)
    joined = first + second
    assert joined.nodes == [a, b, c, d]
    assert (joined.root, joined.term, joined[b]) == (a, d, [c])
    assert first[b] == []
    assert joined.out_shape((5, 2)) == (5, 1)
    x = np.ones((2, 2))
    np.testing.assert_array_equal(run(joined, [x]).outputs[0], run(second, run(first, [x]).outputs).outputs[0])
    with pytest.raises(GraphError, match="without common nodes"):
        first + joined
    with pytest.raises(TypeError):
        first + 3
    with pytest.raises(DisconnectedError):
        first + GraphStructure()


def test_joining_several_ends() -> None:
    a, b, c, d, e = map(node, "abcde")
    one_to_many = chain(a) + GraphStructure({b: [], c: []}, [b, c], [b, c])
    assert names(one_to_many) == {"a": ["b", "c"], "b": [], "c": []}
    many_to_one = GraphStructure({b: [], c: []}, [b, c], [b, c]) + chain(d)
    assert names(many_to_one) == {"b": ["d"], "c": ["d"], "d": []}
    paired = GraphStructure({a: [], b: []}, [a, b], [a, b]) + GraphStructure({c: [], d: []}, [c, d], [c, d])
    assert names(paired) == {"a": ["c"], "b": ["d"], "c": [], "d": []}
    with pytest.raises(GraphError, match="2 terms and 3 roots"):
        GraphStructure({a: [], b: []}, [a, b], [a, b]) + GraphStructure({c: [], d: [], e: []}, [c, d, e], c)


class Block(GraphStructure):
    """The style in which the nodes are made first."""

    def __init__(self, features: int):
        self.features = features
        self.init_nodes()
        super().__init__(graph={self.first: [self.second]}, root=self.first, term=self.last)
        self[self.second].append(self.last)
        self.graph[self.first].append(self.last)

    def init_nodes(self) -> None:
        self.made = getattr(self, "made", 0) + 1
        self.first = LayerNode(Dense(self.features, self.features), name="first")
        self.second = LayerNode(Activation.ReLU(), name="second")
        self.last = LayerNode(Identity(), name="last")


class Hooked(GraphStructure):
    def init_nodes(self) -> None:
        self.only = node("only")
        self.graph[self.only] = []
        self.root = self.term = self.only


def test_subclassing() -> None:
    block = Block(4)
    assert block.made == 1
    assert names(block) == {"first": ["second", "last"], "second": ["last"], "last": []}
    assert block.out_shape((2, 4)) == (2, 4)
    assert (str(block), block.param_size) == ("Block", (16, 4))
    assert Hooked().out_shape((2, 4)) == (2, 4)


def test_nested_graphs_and_edits_inside_them() -> None:
    block = Block(4)
    r, outer = node("r"), LayerNode(block, name="block")
    graph = chain(r, outer)
    assert [name for name, _ in graph.named_parameters()] == ["block.first.weight", "block.first.bias"]
    assert graph.layer_count == 4
    before = graph.version
    block[block.second].clear()
    assert graph.version > before
    block.remove_node(block.second)
    assert graph.version > before + 1
    x = np.ones((2, 4))
    np.testing.assert_array_equal(run(graph, [x]).outputs[0], run(block, [x]).outputs[0])


def test_hyper_parameters_may_be_edited() -> None:
    drop = Dropout(0.5)
    graph = chain(node(), SequentialNode(Identity(), drop))
    before = graph.version
    drop.dropout_rate = 0.25
    assert graph.version > before


class Counting(Layer):
    """Notes down something public while it is traced."""

    def __init__(self):
        self.traces = 0

    def trace(self, x):
        self.traces += 1
        return x


def test_what_layers_note_down_while_they_are_traced_is_no_edit() -> None:
    counting = Counting()
    graph = chain(node(), LayerNode(counting))
    before = graph.version
    for _ in range(3):
        graph.out_shape((1,))
        assert graph.version == before
    assert counting.traces == 3


def test_several_ends_by_list_and_by_name() -> None:
    a, b = node("a"), LayerNode(Lambda(lambda x: x * 2.0), name="b")
    graph = GraphStructure({a: [], b: []}, [a, b], [b, a])
    assert graph.out_shape([(1, 2), (3, 4)]) == [(3, 4), (1, 2)]
    assert graph.out_shape({"b": (3, 4), "a": (1, None)}) == [(3, 4), (1, None)]
    assert graph.arrange_inputs({"b": 1, "a": 0}) == [0, 1]
    assert graph.arrange_outputs({"a": 1}) == [None, 1]
    assert graph.arrange_outputs(None) == [None, None]
    assert graph.present_outputs([1, 2]) == [1, 2]
    for wrong in ([1], 3, {"a": 1}, {"a": 1, "b": 2, "c": 3}):
        with pytest.raises(GraphError, match="expected"):
            graph.arrange_inputs(wrong)
    single = chain(a)
    assert (single.arrange_inputs(5), single.present_outputs([5]), single.present_inputs([5])) == ([5], 5, 5)
    assert single.arrange_inputs({"a": 5}) == [5]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda graph: pickle.loads(pickle.dumps(graph))])
def test_copies_are_graphs_of_their_own(clone) -> None:
    block = Block(4)
    block.first.layer.weight.value[...] = 2.0
    graph = chain(node("r"), LayerNode(block, name="block"), seed=5)
    graph.root = [graph.root]
    other = clone(graph)
    assert names(other) == names(graph)
    assert other.nodes[0] is not graph.nodes[0]
    inner = other.nodes[1].layer
    assert inner.first in inner
    assert inner[inner.first] == [inner.second, inner.last]
    np.testing.assert_array_equal(inner.first.layer.weight.value, np.full((4, 4), 2.0))
    inner.first.layer.weight.value[...] = 3.0
    assert block.first.layer.weight.value[0, 0] == 2.0
    before = other.version
    other.root.append(extra := node("extra"))
    other.nodes[0].name = "renamed"
    inner[inner.last].append(extra)
    assert other.version > before
    assert extra in inner
    assert "extra" not in names(block)


def test_frozen_checkpoints_and_optimizers_of_nested_nodes() -> None:
    block = Block(4)
    tail = LayerNode(Dense(4, 1), name="tail", checkpoint=True)
    graph = chain(LayerNode(block, name="block"), tail)
    weight, bias = block.first.layer.weight, block.first.layer.bias
    assert graph.frozen_parameters() == set()
    block.first.frozen = True
    assert graph.frozen_parameters() == {weight, bias}
    block.last.checkpoint = True
    assert list(graph.checkpoints()) == ["block.last", "tail"]
    assert dict(graph.assigned_optimizers("default")) == dict.fromkeys(
        (weight, bias, tail.layer.weight, tail.layer.bias), "default"
    )
    graph._optimizer, block_own, outer, inner = (SGD(lr) for lr in (1, 2, 3, 4))
    graph.nodes[0].optimizer = outer
    assert dict(graph.assigned_optimizers())[weight] is outer
    assert dict(graph.assigned_optimizers())[tail.layer.weight] is graph._optimizer
    block._optimizer = block_own
    assert dict(graph.assigned_optimizers())[weight] is block_own
    block.first.optimizer = inner
    assert dict(graph.assigned_optimizers())[weight] is inner


def test_cycles_may_stand_until_build() -> None:
    a, b = node("a"), node("b")
    graph = chain(a, b)
    graph.connect(b, a)
    assert graph.detect_cycle()
    with pytest.raises(CycleError):
        graph.check()
    graph.disconnect(b, a)
    graph.check()


class Asking(Layer):
    """Asks another graph for a shape while it is traced."""

    def __init__(self, graph: GraphStructure):
        self.inner = graph

    def trace(self, x):
        assert self.inner.out_shape((7, 7)) == (7, 7)
        return self.inner(x)


def test_what_can_be_watched() -> None:
    a, b = node("a"), LayerNode(Lambda(lambda x: x * 2.0), name="b")
    outer = LayerNode(Asking(chain(a, b)), name="outer")
    graph = chain(r := node("r"), outer)
    outputs, watchable = graph.trace_open((3, 2))
    assert list(watchable) == [r, a, b, outer]
    assert watchable[b] is outputs[0]
    assert {tensor.shape for tensor in watchable.values()} == {(3, 2)}
    assert outputs[0].producer is not None
    assert outputs[0].producer.node == "outer.b"
