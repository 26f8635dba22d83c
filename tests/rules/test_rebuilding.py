"""Rule 11: building takes O(nodes + edges) and no recursion, and an edit keeps the weights and optimizer state of nodes that stay."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from patience import calls_of
from rules.networks import assert_same_bits, chain, images, labels, node_of, perceptron, rows, state, vision

from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.errors import GraphError, NotBuiltError
from tapeprop.layers import Activation, Dense, Identity, Sequential
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam
from tapeprop.runtime import linker

LOSS = CrossEntropy()


def trained(make=perceptron, steps=3, **build):
    graph = make(dtype="float64", **build)
    graph.set_optimizer(Adam(0.05))
    for i in range(steps):
        x = rows(i) if make is perceptron else images(i)
        graph.train_step(x, labels(len(x), i), LOSS)
    return graph


@pytest.mark.parametrize("make", [perceptron, vision])
def test_building_again_changes_nothing(make):
    plain, rebuilt = trained(make), trained(make)
    before = state(rebuilt)
    rebuilt.build(dtype="float64")
    assert_same_bits(state(rebuilt), before)
    for i in range(3, 6):
        x = rows(i) if make is perceptron else images(i)
        y = labels(len(x), i)
        assert plain.train_step(x, y, LOSS) == rebuilt.train_step(x, y, LOSS)
        rebuilt.build(dtype="float64")
    assert_same_bits(state(plain), state(rebuilt))


def test_an_inserted_identity_changes_nothing_but_the_structure():
    plain, edited = trained(), trained()
    first, tanh = node_of(edited, "first"), node_of(edited, "tanh")
    between = LayerNode(Identity(), name="between")
    edited.disconnect(first, tanh)
    edited.add_node(between, [first], [tanh])
    edited.build(dtype="float64")
    for i in range(3, 6):
        assert plain.train_step(rows(i), labels(5, i), LOSS) == edited.train_step(rows(i), labels(5, i), LOSS)
    assert_same_bits(plain.state_dict(), edited.state_dict())


def test_an_edit_asks_for_no_kernel_that_is_not_there(monkeypatch):
    """Kernels belong to ops and sizes, not to graphs: what an Identity or another such node needs is linked already."""

    def everything(graph):
        graph.forward(rows(), True)
        graph.backward()
        graph.update()
        graph.train_step(rows(), labels(5), LOSS)
        graph.predict(rows())

    graph = chain(Dense(4, 4), *[Sequential(Dense(4, 4), Activation.Tanh()) for _ in range(4)], seed=0)
    graph.build(dtype="float64")
    graph.set_optimizer(Adam(0.05))
    everything(graph)

    def refuse(missing):
        raise AssertionError(missing)

    monkeypatch.setattr(linker, "_link_missing", refuse)
    _, a, b, *_ = graph.nodes
    for layer in (Identity(), Sequential(Dense(4, 4), Activation.Tanh())):
        graph.disconnect(a, b)
        graph.add_node(new := LayerNode(layer), [a], [b])
        graph.build(dtype="float64")
        everything(graph)
        a = new


def test_a_new_node_starts_afresh_beside_those_that_stay():
    """The old nodes' Adam has counted three steps, the new one's none: each is corrected by its own count."""
    graph = trained()
    second = node_of(graph, "second")
    view = second.layer.weight.value
    head = LayerNode(Dense(3, 3, bias=False, random_state=5), name="head")
    graph.connect(second, head)
    graph.term = head
    graph.build(dtype="float64")
    assert np.shares_memory(view, second.layer.weight.value)
    before = graph.state_dict()
    x, y = rows(7), labels(5, 7)
    graph.train_step(x, y, LOSS)
    moved = graph.state_dict()["head.weight"] - before["head.weight"]
    gradient = head.layer.weight.grad
    # the first step of Adam has length lr whatever the gradient is
    np.testing.assert_allclose(moved, -0.05 * np.sign(gradient), rtol=1e-3)
    moved = graph.state_dict()["second.weight"] - before["second.weight"]
    assert not np.allclose(np.abs(moved), 0.05, rtol=1e-2)


def test_removing_a_node_keeps_the_others():
    graph = trained()
    first, tanh, second = graph.nodes
    kept = graph.state_dict()
    graph.remove_node(tanh)
    graph.connect(first, second)
    graph.build(dtype="float64")
    assert_same_bits(graph.state_dict(), kept)
    x = rows()
    w = [p.value for _, p in graph.named_parameters()]
    np.testing.assert_allclose(graph.forward(x), (x @ w[0].T + w[1]) @ w[2].T + w[3], rtol=1e-12, atol=1e-13)
    graph.train_step(x, labels(5), LOSS)


def test_replacing_a_layer_draws_a_new_one_and_keeps_the_rest():
    graph = trained()
    kept = graph.state_dict()
    graph.replace_node(node_of(graph, "second"), LayerNode(Dense(8, 3, random_state=9), name="fresh"))
    graph.build(dtype="float64")
    now = graph.state_dict()
    for name in ("first.weight", "first.bias"):
        np.testing.assert_array_equal(now[name], kept[name])
    assert (now["fresh.weight"] != kept["second.weight"]).any()
    graph.train_step(rows(), labels(5), LOSS)


def test_gradients_that_wait_survive_a_rebuild():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.5))
    graph.forward(rows(), True)
    graph.backward()
    gradients, before = {n: p.grad.copy() for n, p in graph.named_parameters()}, graph.state_dict()
    graph.build(dtype="float64")
    graph.update()
    for name, value in graph.state_dict().items():
        np.testing.assert_array_equal(value, before[name] - 0.5 * gradients[name])


CALLS = {
    "forward": lambda g: g.forward(rows()),
    "call": lambda g: g(rows()),
    "backward": lambda g: g.backward(),
    "update": lambda g: g.update(),
    "zero_grad": lambda g: g.zero_grad(),
    "predict": lambda g: g.predict(rows()),
    "train_step": lambda g: g.train_step(rows(), labels(5), LOSS),
    "fit": lambda g: g.fit(rows(), labels(5), loss=LOSS, verbose=0),
    "evaluate": lambda g: g.evaluate(rows(), labels(5), loss=LOSS),
    "tape": lambda g: g.tape,
    "watch": lambda g: g.watch(g.nodes[0]),
    "cache_info": lambda g: g.cache_info(),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_runs_asks_for_a_build_first_and_after_edits(call):
    graph = chain(Dense(4, 3), Activation.Tanh(), seed=0)
    with pytest.raises(NotBuiltError, match=r"build\(\)"):
        CALLS[call](graph)
    graph.build((None, 4), dtype="float64")
    graph.set_optimizer(SGD(0.1))
    graph.forward(rows(), True)
    graph.connect(graph.term, last := LayerNode(Identity()))
    graph.term = last
    assert not graph.built_
    assert not graph
    with pytest.raises(NotBuiltError, match=r"edited.*build\(\)"):
        CALLS[call](graph)
    graph.build(dtype="float64")
    assert graph
    graph.forward(rows(), True)
    CALLS[call](graph)


EDITS = {
    "a dict": lambda g: g.graph.update({g.nodes[0]: [g.nodes[1], g.nodes[1]]}),
    "a list": lambda g: g[g.nodes[0]].append(g.nodes[1]),
    "a merge": lambda g: setattr(g.nodes[1], "merge_mode", MergeMode.MAX),
    "a layer": lambda g: setattr(g.nodes[1], "layer", Activation.ReLU()),
    "a setting": lambda g: setattr(g.nodes[1].layer, "alpha", 0.5),
    "a term": lambda g: setattr(g, "term", [g.term]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_noticed_wherever_they_happen(edit):
    graph = chain(Identity(), Activation.LeakyReLU(), seed=0).build(dtype="float64")
    assert graph.built_
    EDITS[edit](graph)
    assert not graph.built_


def test_an_edit_inside_a_nested_graph_is_noticed():
    inner = chain(Identity(), Activation.LeakyReLU())
    graph = chain(Sequential(inner), Identity()).build(dtype="float64")
    inner[inner.root].append(inner.term)
    assert not graph.built_
    np.testing.assert_array_equal(graph.build(dtype="float64").forward(np.ones((1, 2))), [[2, 2]])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda g: g.connect(g.nodes[2], g.nodes[0]),
        lambda g: g.connect(g.nodes[2], g.nodes[1]),
        lambda g: setattr(g, "term", None),
        lambda g: setattr(g.nodes[1], "name", "first"),
        lambda g: g.replace_node(g.nodes[1], LayerNode(Dense(5, 8))),
    ],
)
def test_a_build_that_fails_leaves_weights_and_optimizers_as_they_were(spoil):
    graph, plain = trained(), trained()
    edges = {node: list(following) for node, following in graph.graph.items()}
    nodes, term = graph.nodes, graph.term
    before = [p.value.copy() for _, p in graph.named_parameters()]
    spoil(graph)
    with pytest.raises(GraphError):
        graph.build((None, 4), dtype="float64")
    assert not graph.built_
    for node, name in zip(nodes, ("first", "tanh", "second"), strict=True):
        node.name = name
    graph.graph, graph.term, graph.root = edges, term, nodes[0]
    graph.build((None, 4), dtype="float64")
    for (_, parameter), value in zip(graph.named_parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.value, value)
    assert graph.train_step(rows(8), labels(5), LOSS) == plain.train_step(rows(8), labels(5), LOSS)
    assert_same_bits(state(graph), state(plain))


def calls_to_build(count: int) -> int:
    """The function calls, built-in ones included, that building a chain of double edges takes."""
    nodes = [LayerNode(Identity()) for _ in range(count)]
    graph = LayerGraph({a: [b, b] for a, b in itertools.pairwise(nodes)}, root=nodes[0], term=nodes[-1])
    return calls_of(lambda: graph.build((2, 3)))


def test_building_takes_calls_in_proportion_to_the_graph():
    calls_to_build(10)  # what is imported or made once
    assert calls_to_build(1_000) < 5 * calls_to_build(250)  # 4 times the graph; a quadratic build would take 16


def test_depth_is_no_matter():
    nodes = [LayerNode(Identity()) for _ in range(3 * sys.getrecursionlimit())]
    graph = LayerGraph({a: [b] for a, b in itertools.pairwise(nodes)}, root=nodes[0], term=nodes[-1]).build()
    assert len(graph.get_path()) == len(nodes)
    assert not graph.detect_cycle()
    graph.connect(nodes[-1], nodes[1])
    assert graph.detect_cycle()
