"""Optimizers in a file: of the graph, of nodes, for predicates, of graphs inside, and of classes of the user's own."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from rules.networks import assert_same_bits, labels, rows, state

import tapeprop as tp
from tapeprop import LayerGraph, LayerNode, SequentialNode, ops
from tapeprop.callbacks import Checkpoint
from tapeprop.errors import GraphError, WeightFileError
from tapeprop.layers import Activation, Dense
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam, Optimizer, RMSProp

X, Y = rows(), labels(5)


class Whole(Optimizer):
    """Steps of a length of its own: a rule over whole parameters with a slot."""

    elementwise = False
    slots = ("buffer",)

    def __init__(self, lr: float = 0.1, keep: float = 0.5):
        super().__init__(lr)
        self.keep = keep

    def rule(self, weight, gradient, slots, scalars):
        new = self.keep * slots["buffer"] + gradient / (ops.sqrt(ops.sum(gradient**2)) + 1e-6)
        return weight - scalars["lr"] * new, {"buffer": new}


CLASSES = {"Whole": Whole}


def network() -> LayerGraph:
    inner = LayerNode(Dense(6, 6), name="inner")
    block = LayerNode(LayerGraph({inner: []}, root=inner, term=inner), name="block")
    first = SequentialNode(Dense(4, 6), Activation.Tanh(), name="first")
    head = LayerNode(Dense(6, 3), name="head")
    return LayerGraph({first: [block], block: [head]}, root=first, term=head, seed=0).build((None, 4))


def of_the_graph(graph: LayerGraph) -> None:
    graph.set_optimizer(Whole(0.05))


def of_a_node(graph: LayerGraph) -> None:
    graph.set_optimizer(Adam(0.01))
    graph.nodes[0].set_optimizer(Whole(0.05))


def of_a_predicate(graph: LayerGraph) -> None:
    graph.set_optimizer(Adam(0.01))
    graph.set_optimizer(SGD(0.05, momentum=0.9), where=lambda name, p: p.value.ndim == 1)


def of_two_predicates(graph: LayerGraph) -> None:
    graph.set_optimizer(SGD(0.1), where=lambda name, p: p.value.ndim == 1)
    graph.set_optimizer(Whole(0.02), where=lambda name, p: name.startswith("head"))


def of_a_node_inside(graph: LayerGraph) -> None:
    graph.set_optimizer(Adam(0.01))
    graph.nodes[1].layer.nodes[0].set_optimizer(SGD(0.05, momentum=0.9))


def steps(graph: LayerGraph, count: int = 2) -> dict[str, np.ndarray]:
    for _ in range(count):
        graph.train_step(X, Y, CrossEntropy())
    return state(graph)


def arrays(graph: LayerGraph) -> dict[str, np.ndarray]:
    """Those of the optimizers."""
    return {name: value for name, value in graph.optimizer_state_dict().items() if isinstance(value, np.ndarray)}


KINDS = [of_the_graph, of_a_node, of_a_predicate, of_two_predicates, of_a_node_inside]


@pytest.mark.parametrize("optimizers", KINDS)
def test_training_goes_on_from_a_file(optimizers, tmp_path) -> None:
    graph = network()
    optimizers(graph)
    steps(graph)
    graph.update_lr(0.03)
    graph.save(tmp_path / "g", classes=CLASSES)
    again = tp.load(tmp_path / "g", classes=CLASSES)
    assert_same_bits(again.state_dict(), graph.state_dict())
    assert_same_bits(steps(again), steps(graph))


@pytest.mark.parametrize("optimizers", KINDS)
def test_a_twin_goes_on_with_the_optimizers_that_it_has(optimizers) -> None:
    graph, twin = network(), network()
    for one in (graph, twin):
        optimizers(one)
    steps(graph)
    at_work = list(twin.optimizers.values())
    twin.load_state_dict(graph.state_dict())
    twin.load_optimizer_state_dict(graph.optimizer_state_dict())
    assert all(a is b for a, b in zip(twin.optimizers.values(), at_work, strict=True))
    assert_same_bits(steps(twin), steps(graph))


def test_others_are_replaced() -> None:
    graph, twin = network(), network()
    of_a_predicate(graph)
    twin.set_optimizer(RMSProp(), where=lambda name, p: p.value.ndim == 2)
    twin.nodes[0].set_optimizer(RMSProp())
    steps(graph)
    twin.load_state_dict(graph.state_dict())
    twin.load_optimizer_state_dict(graph.optimizer_state_dict())
    assert_same_bits(steps(twin), steps(graph))


def test_a_graph_from_a_file_can_be_copied_to_another_process(tmp_path) -> None:
    graph = network()
    of_a_predicate(graph)
    graph.save(tmp_path / "g")
    again = pickle.loads(pickle.dumps(tp.load(tmp_path / "g"))).build((None, 4))
    again.load_optimizer_state_dict(graph.optimizer_state_dict())
    assert_same_bits(steps(again), steps(graph))


def test_a_class_that_was_not_given_is_asked_for(tmp_path) -> None:
    graph = network()
    of_the_graph(graph)
    with pytest.raises(GraphError, match=r'got Whole, a class of your own: give classes=\{"Whole": Whole\}'):
        graph.save(tmp_path / "g")
    graph.save(tmp_path / "g", classes=CLASSES)
    with pytest.raises(WeightFileError, match=r"got 'Whole'; give a class of your own: classes="):
        tp.load(tmp_path / "g")
    with pytest.raises(GraphError, match="under the name of its class, got 'Other'"):
        graph.save(tmp_path / "g", classes={"Other": Whole})


def test_what_does_not_fit_changes_nothing() -> None:
    graph, other = network(), network()
    of_a_predicate(graph)
    steps(graph)
    saved = graph.optimizer_state_dict()
    other.set_optimizer(SGD(0.1, momentum=0.9))
    before, rule, moments = steps(other), other.optimizer, arrays(other)
    last = max(key for key in saved if key.startswith("slot/"))
    for wrong in ({last: np.zeros(1)}, {"random": np.zeros(3)}, {"rules": ({"class": "Nothing"},) * 2}):
        with pytest.raises(WeightFileError, match="expected"):
            other.load_optimizer_state_dict({**saved, **wrong})
        assert other.optimizer is rule
        assert_same_bits(arrays(other), moments)
    assert_same_bits(state(other), before)


def test_checkpoints_of_a_fit_take_classes(tmp_path) -> None:
    graph = network()
    keep = Checkpoint(tmp_path / "g", classes=CLASSES)
    graph.fit(X, Y, loss=CrossEntropy(), optimizer=Whole(0.05), epochs=2, callbacks=[keep], verbose=0)
    again = tp.load(tmp_path / "g", classes=CLASSES)
    assert_same_bits(steps(again), steps(graph))
