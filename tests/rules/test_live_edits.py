"""Edits between training steps: what stays goes on as if nothing had happened, and what is cut is refused until it is put right."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from rules.networks import assert_same_bits, chain, images, labels, node_of, perceptron, rows, state

from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.errors import CycleError, DisconnectedError, GraphError, NotBuiltError
from tapeprop.layers import Activation, Dense, Identity, Lambda, Sequential
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam

LOSS = CrossEntropy()
RULES = {"momentum": lambda: SGD(0.05, momentum=0.9, nesterov=True), "adam": lambda: Adam(0.05)}


def train(graph: LayerGraph, steps: range) -> None:
    for i in steps:
        graph.train_step(rows(i), labels(5, i), LOSS)


class Perceptron(LayerGraph):
    """The layers and names of `perceptron`, put together through `self[node]` and `self.graph`."""

    def init_nodes(self) -> None:
        first, tanh, second = (
            LayerNode(layer, name=name)
            for layer, name in ((Dense(4, 8), "first"), (Activation.Tanh(), "tanh"), (Dense(8, 3), "second"))
        )
        self.graph[first] = []
        self[first].append(tanh)
        self.graph[tanh] = [second]
        self.root, self.term = first, second

    def widen(self) -> None:
        """Puts an Identity behind the first node, as a method of the user's would."""
        first, tanh = node_of(self, "first"), node_of(self, "tanh")
        self[first] = [between := LayerNode(Identity(), name="between")]
        self.graph[between] = [tanh]


def insert(graph: LayerGraph) -> None:
    first, tanh = node_of(graph, "first"), node_of(graph, "tanh")
    graph.disconnect(first, tanh)
    graph.add_node(LayerNode(Identity()), [first], [tanh])


def join(graph: LayerGraph) -> LayerGraph:
    end = LayerNode(Identity(), name="end")
    return graph + LayerGraph({end: []}, root=end, term=end)


def by_dict(graph: LayerGraph) -> None:
    first, tanh, second = graph.nodes
    between = LayerNode(Identity())
    graph.graph = {first: [between], between: [tanh], tanh: [second], second: []}


def by_keys(graph: LayerGraph) -> None:
    first, tanh, second = graph.nodes
    del graph.graph[tanh]
    graph.graph[first] = [fresh := LayerNode(Activation.Tanh(), name="tanh")]
    graph[fresh].append(second)


def by_clearing(graph: LayerGraph) -> None:
    first, tanh, second = graph.nodes
    graph.clear()
    graph.connect(first, tanh)
    graph.connect(tanh, second)
    graph.root, graph.term = first, second


def at_the_ends(graph: LayerGraph) -> None:
    front, back = LayerNode(Identity()), LayerNode(Identity())
    graph.connect(front, graph.root)
    graph.connect(graph.term, back)
    graph.root, graph.term = front, back


def add_and_remove(graph: LayerGraph) -> None:
    insert(graph)
    graph.build(dtype="float64")
    graph.remove_node(between := graph[node_of(graph, "first")][0])
    assert between not in graph
    graph.connect(node_of(graph, "first"), node_of(graph, "tanh"))


NEUTRAL = {
    "add_node": insert,
    "remove_node": add_and_remove,
    "replace_node": lambda g: g.replace_node(node_of(g, "tanh"), LayerNode(Activation.Tanh(), name="other")),
    "replace a node, keep its layer": lambda g: g.replace_node(
        node_of(g, "first"), LayerNode(node_of(g, "first").layer, name="first")
    ),
    "a dict": by_dict,
    "keys": by_keys,
    "clear": by_clearing,
    "roots and terms": at_the_ends,
    "a method of a subclass": lambda g: Perceptron.widen(g),
    "node.layer": lambda g: setattr(node_of(g, "tanh"), "layer", Activation.Tanh()),
    "node.layer around a layer": lambda g: setattr(
        node_of(g, "second"), "layer", Sequential(node_of(g, "second").layer)
    ),
    "node.merge_mode": lambda g: setattr(node_of(g, "tanh"), "merge_mode", "max"),  # of one operand: itself
    "node.name": lambda g: setattr(node_of(g, "first"), "name", "renamed"),
    "node.checkpoint": lambda g: setattr(node_of(g, "tanh"), "checkpoint", True),
    "node.frozen, and back": lambda g: [setattr(node_of(g, "first"), "frozen", value) for value in (True, False)],
    "node.optimizer": lambda g: setattr(node_of(g, "first"), "optimizer", g.optimizer),  # as before, but its own
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("edit", NEUTRAL)
def test_what_stays_goes_on_as_if_nothing_had_happened(edit, rule):
    """Values, gradients and the optimizer's state: the steps after a neutral edit are bit for bit those without one."""
    plain = perceptron(dtype="float64")
    edited = Perceptron(seed=0).build((None, 4), dtype="float64")
    for graph in (plain, edited):
        graph.set_optimizer(RULES[rule]())
        train(graph, range(3))
    views = [(p, p.value, p.grad) for _, p in edited.named_parameters()]
    NEUTRAL[edit](edited)
    edited.build((None, 4), dtype="float64")
    train(plain, range(3, 6))
    train(edited, range(3, 6))
    for ours, theirs in zip(plain.named_parameters(), edited.named_parameters(), strict=True):
        assert ours[1].value.tobytes() == theirs[1].value.tobytes()
        assert ours[1].grad.tobytes() == theirs[1].grad.tobytes()
    for parameter, value, gradient in views:  # what was handed out before still shows what is
        assert np.shares_memory(value, parameter.value)
        np.testing.assert_array_equal(value, parameter.value)
        np.testing.assert_array_equal(gradient, parameter.grad)


def test_joined_graphs_train_the_same_weights():
    plain, graph = perceptron(dtype="float64"), perceptron(dtype="float64")
    joined = join(graph).build(dtype="float64")
    for one in (plain, joined):
        one.set_optimizer(Adam(0.05))
        train(one, range(3))
    assert_same_bits(graph.state_dict(), plain.state_dict())
    np.testing.assert_array_equal(graph.forward(rows()), joined.forward(rows()))


def test_an_optimizer_given_to_a_node_takes_over_and_leaves_the_others():
    graph, plain = (perceptron(dtype="float64") for _ in range(2))
    for one in (graph, plain):
        one.set_optimizer(Adam(0.05))
        train(one, range(3))
    node_of(graph, "second").optimizer = SGD(0.0)
    before = graph.state_dict()
    assert graph.built_  # nothing is compiled anew but the step
    train(graph, range(3, 4))
    train(plain, range(3, 4))
    np.testing.assert_array_equal(graph.state_dict()["second.weight"], before["second.weight"])
    np.testing.assert_array_equal(graph.state_dict()["first.weight"], plain.state_dict()["first.weight"])


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("layer", Dense), ("layer", None), ("merge_mode", "sums"), ("name", ""), ("name", 3), ("optimizer", 0.1)],
)
def test_what_no_node_can_have_is_refused_when_it_is_set(attribute, value):
    graph = perceptron(dtype="float64")
    node = node_of(graph, "second")
    before = getattr(node, attribute)
    with pytest.raises(GraphError):
        setattr(node, attribute, value)
    assert getattr(node, attribute) is before
    assert graph.built_


# ---- an edit that is refused changes nothing


def holding(graph: LayerGraph) -> LayerNode:
    """A node that may not enter the graph."""
    node = LayerNode(Identity())
    node.layer = Sequential(graph)
    return node


REFUSED = {
    "graph": lambda g, fresh: setattr(g, "graph", {fresh: [], holding(g): []}),
    "update": lambda g, fresh: g.graph.update({fresh: [], holding(g): []}),
    "setitem": lambda g, fresh: g.graph.__setitem__(fresh, [holding(g)]),
    "add_node": lambda g, fresh: g.add_node(fresh, [g.root], [holding(g)]),
    "connect": lambda g, fresh: g.connect(fresh, holding(g)),
    "replace_node": lambda g, fresh: g.replace_node(g.root, holding(g)),
    "extend": lambda g, fresh: g[g.root].extend([fresh, holding(g)]),
    "slice": lambda g, fresh: g[g.root].__setitem__(slice(0, 1), [fresh, holding(g)]),
    "index": lambda g, fresh: g[g.root].__setitem__(5, fresh),
    "insert": lambda g, fresh: g[g.root].insert("0", fresh),
    "sort": lambda g, fresh: g[g.root].sort(key=lambda node: node.nothing),
}


@pytest.mark.parametrize("edit", REFUSED)
def test_an_edit_that_is_refused_is_as_if_it_had_not_been_tried(edit):
    graph = perceptron(dtype="float64")
    before = {node: list(following) for node, following in graph.graph.items()}
    with pytest.raises((CycleError, IndexError, TypeError, AttributeError)):
        REFUSED[edit](graph, LayerNode(Identity()))
    assert {node: list(following) for node, following in graph.graph.items()} == before
    assert graph.built_
    graph.connect(graph.term, fresh := LayerNode(Identity()))
    assert graph.labels[fresh] == "node3"  # no number was given away


def cut_edge(graph):
    first, tanh, _ = graph.nodes
    graph.disconnect(first, tanh)
    return lambda: graph.connect(first, tanh)


def cut_list(graph):
    first, tanh, _ = graph.nodes
    graph[first].clear()
    return lambda: graph[first].append(tanh)


def cut_node(graph):
    _, tanh, second = graph.nodes
    graph.remove_node(second)

    def undo():
        graph.connect(tanh, second)
        graph.term = second

    return undo


def cut_key(graph):
    first, tanh, _ = graph.nodes
    before = dict(graph.graph)
    del graph.graph[tanh]
    return lambda: setattr(graph, "graph", before | {first: [tanh]})


def cut_term(graph):
    term = graph.term
    graph.term = LayerNode(Identity(), name="elsewhere")
    return lambda: setattr(graph, "term", term)


@pytest.mark.parametrize("cut", [cut_edge, cut_list, cut_node, cut_key, cut_term])
def test_a_cut_is_allowed_and_told_by_build_and_taken_back_it_is_as_if_it_had_not_been(cut):
    graph, plain = (perceptron(dtype="float64") for _ in range(2))
    for one in (graph, plain):
        one.set_optimizer(Adam(0.05))
        train(one, range(3))
    graph.forward(rows())
    plans = graph.cache_info().misses
    undo = cut(graph)
    with pytest.raises(NotBuiltError, match=r"edited.*build\(\)"):
        graph.predict(rows())
    edges = dict(graph.graph)
    with pytest.raises(DisconnectedError):
        graph.build((None, 4), dtype="float64")
    assert graph.graph == edges
    with pytest.raises(NotBuiltError, match=r"edited.*build\(\)"):
        train(graph, range(3, 4))
    assert graph.lr == 0.05  # asking is no reason to drop what is out for the moment
    undo()
    assert graph.built_
    graph.forward(rows())
    assert graph.cache_info().misses == plans
    train(graph, range(3, 6))
    train(plain, range(3, 6))
    assert_same_bits(state(graph), state(plain))


def test_the_error_names_both_sides_of_a_cut():
    graph = perceptron(dtype="float64")
    first, tanh, _ = graph.nodes
    graph.disconnect(first, tanh)
    expected = (
        r"path from root 'first' \(Dense\) to term 'second' \(Dense\), found none: paths from the root end at "
        r"'first' \(Dense\), and nothing leads to 'tanh' \(Tanh\); connect them"
    )
    with pytest.raises(DisconnectedError, match=expected):
        graph.build()


# ---- live lists


def test_lists_that_were_handed_out_stay_those_of_the_graph():
    a, b, c, d = (LayerNode(Identity(), name=name) for name in "abcd")
    graph = LayerGraph({a: [b], b: [c]}, root=[a], term=[c])
    following, roots, terms = graph[a], graph.root, graph.term
    graph.replace_node(b, d)
    graph.replace_node(c, b)
    assert (following, terms) == ([d], [b])
    terms.append(d)
    following.append(b)
    assert (graph.term, graph[a]) == ([b, d], [d, b])
    graph.remove_node(d)
    assert (graph.term, roots, graph[a]) == ([b], [a], [b])
    assert graph.term is terms
    assert graph.root is roots
    assert graph[a] is following


def test_a_list_that_was_replaced_is_the_callers():
    a, b, c = (LayerNode(Identity(), name=name) for name in "abc")
    graph = LayerGraph({a: [b]}, root=a, term=b)
    before = graph[a]
    graph.graph[a] = [b, b]
    before.append(c)
    assert c not in graph
    graph.graph[a] = before  # what it holds by now
    assert graph[a] == [b, c]
    assert graph[a] is not before


def test_a_stop_ends_with_its_edge():
    r, t = LayerNode(Identity(), name="r"), LayerNode(Lambda(lambda x: x * 3.0), name="t")
    graph = LayerGraph({r: [t]}, root=r, term=t).build(dtype="float64")
    graph.stop_gradient(r, t)
    graph[r].remove(t)
    with pytest.raises(DisconnectedError):
        graph.build()
    assert graph.stopped == set()
    graph.graph[r] = [middle := LayerNode(Identity(), name="middle")]
    graph.graph[middle] = [t]
    graph.build(dtype="float64")
    graph.graph[r] = [t]
    graph.remove_node(middle)
    graph.build(dtype="float64")
    graph.forward(rows())
    np.testing.assert_array_equal(graph.backward(), np.full((5, 4), 3.0))


def test_nodes_that_are_gone_are_let_go():
    """A search that edits a graph a thousand times holds the weights of what is in it, not of what has been in it."""
    graph = chain(Dense(4, 4), Dense(4, 3), names=["first", "second"], seed=0).build(dtype="float64")
    graph.set_optimizer(Adam(0.05))
    gone = []
    for i in range(3):
        train(graph, range(i, i + 1))
        old = graph.term
        gone += [weakref.ref(old), weakref.ref(old.layer.weight), weakref.ref(old.layer.weight.storage.segment)]
        graph.replace_node(old, LayerNode(Dense(4, 3), name=f"head{i}"))
        del old
        graph.build(dtype="float64")
        assert list(graph.labels.values()) == ["first", f"head{i}"]
    train(graph, range(1))
    gc.collect()
    # the segment of the first build holds the first node, which stays, beside the second one
    assert [ref() is None for ref in gone[3:]] == [True] * 6
    graph.connect(graph.term, last := LayerNode(Identity()))
    assert graph.labels[last] == "node5"


def test_every_merge_mode_may_be_set_between_steps():
    graph = LayerGraph({(r := LayerNode(Dense(4, 3), name="r")): [t := LayerNode(Identity(), name="t")]}, r, t, seed=0)
    graph[r].append(side := LayerNode(Lambda(lambda x: x * 2.0), name="side"))
    graph[side].append(t)
    graph.build(dtype="float64").set_optimizer(SGD(0.1, momentum=0.9))
    x = images(0, (5, 4))
    for mode, combine in ((MergeMode.SUM, lambda a: 3 * a), ("sub", lambda a: -a), ("HADAMARD", lambda a: 2 * a * a)):
        t.merge_mode = mode
        graph.build(dtype="float64")
        a = x @ r.layer.weight.value.T + r.layer.bias.value
        np.testing.assert_allclose(graph.forward(x), combine(a), rtol=1e-12)
        train(graph, range(1))
