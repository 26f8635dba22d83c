"""One layer in many nodes: a recurrent network unrolled in time, against backpropagation through time written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rules.networks import CLASSES, assert_same_bits, images, labels

import tapeprop as tp
from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.layers import Activation, Dense, Layer
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam

LOSS = CrossEntropy()
SAMPLES, STEPS, FEATURES, HIDDEN = 5, 6, 4, 3
X, Y = images(0, (SAMPLES, STEPS, FEATURES)), labels(SAMPLES)


class Step(Layer):
    """x[:, index]."""

    def __init__(self, index: int):
        self.index = index

    def trace(self, x):
        return x[:, self.index]


class Elman(LayerGraph):
    """h_t = tanh(W x_t + b + U h_(t-1)), logits V h_T + c; W, U, V are a layer each, W in a node for every step."""

    def init_nodes(self) -> None:
        self.inward, self.out = Dense(FEATURES, HIDDEN), Dense(HIDDEN, CLASSES)
        self.recurrent = Dense(HIDDEN, HIDDEN, bias=False)
        self.root = LayerNode(tp.layers.Identity(), name="sequence")
        state = None
        for t in range(STEPS):
            step = LayerNode(Step(t), name=f"x{t}")
            inward = LayerNode(self.inward, name=f"W{t}")
            new = LayerNode(Activation.Tanh(), MergeMode.SUM, name=f"h{t}")
            self.graph |= {self.root: [*self.graph.get(self.root, ()), step], step: [inward], inward: [new]}
            if state is not None:
                self.graph[state] = [LayerNode(self.recurrent, name=f"U{t}")]
                self.connect(self[state][0], new)
            state = new
        self.term = LayerNode(self.out, name="V")
        self.connect(state, self.term)


def elman(**options) -> LayerGraph:
    return Elman(seed=0).build((None, STEPS, FEATURES), dtype="float64", **options)


def by_hand(graph: Elman, x: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(logits, gradient of x, gradients of the weights) for the gradient d of the logits: Werbos 1990, equations 12-16."""
    w, b = graph.inward.weight.value, graph.inward.bias.value
    u, v, c = graph.recurrent.weight.value, graph.out.weight.value, graph.out.bias.value
    states = [np.zeros((len(x), HIDDEN))]
    for t in range(STEPS):
        states.append(np.tanh(x[:, t] @ w.T + b + states[-1] @ u.T))
    y = states[-1] @ v.T + c
    dx, dw, db, du = np.zeros_like(x), np.zeros_like(w), np.zeros_like(b), np.zeros_like(u)
    dh = d @ v
    for t in reversed(range(STEPS)):
        da = dh * (1 - states[t + 1] ** 2)
        dw, db, du = dw + da.T @ x[:, t], db + da.sum(0), du + da.T @ states[t]
        dx[:, t], dh = da @ w, da @ u
    return y, dx, {"W0.weight": dw, "W0.bias": db, "U1.weight": du, "V.weight": d.T @ states[-1], "V.bias": d.sum(0)}


def test_gradients_are_those_of_backpropagation_through_time():
    graph = elman()
    d = images(1, (SAMPLES, CLASSES))
    y = graph.forward(X, True)
    dx = graph.backward(d)
    expected, expected_dx, expected_gradients = by_hand(graph, X, d)
    np.testing.assert_allclose(y, expected, rtol=1e-10)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-10, atol=1e-13)
    found = dict(graph.named_parameters())
    assert list(found) == list(expected_gradients)  # a shared layer stands under its first node's name, once
    for name, gradient in expected_gradients.items():
        np.testing.assert_allclose(found[name].grad, gradient, rtol=1e-10, atol=1e-13, err_msg=name)
    assert graph.param_size == (FEATURES * HIDDEN + HIDDEN**2 + HIDDEN * CLASSES, HIDDEN + CLASSES)


def test_gradcheck():
    assert tp.gradcheck(elman(), X) < 1e-8


def test_training_steps_are_those_of_the_gradients_by_hand():
    graph = elman()
    graph.set_optimizer(SGD(0.1, momentum=0.9))
    parameters = dict(graph.named_parameters())
    weights = {name: p.value.copy() for name, p in parameters.items()}
    velocity = {name: np.zeros_like(p) for name, p in weights.items()}
    for i in range(4):
        x, y = images(i, X.shape), labels(SAMPLES, i)
        logits, _, _ = by_hand(graph, x, np.zeros((SAMPLES, CLASSES)))
        _, _, gradients = by_hand(graph, x, LOSS.grad(y, logits))
        assert graph.train_step(x, y, LOSS) == pytest.approx(LOSS(y, logits), rel=1e-12)
        for name, gradient in gradients.items():
            velocity[name] = 0.9 * velocity[name] + gradient
            weights[name] -= 0.1 * velocity[name]
            np.testing.assert_allclose(parameters[name].value, weights[name], rtol=1e-10, atol=1e-13, err_msg=name)


def changed(graph: LayerGraph, before: dict[str, np.ndarray]) -> set[str]:
    return {name for name, value in graph.state_dict().items() if (value != before[name]).any()}


def node(graph: LayerGraph, name: str) -> LayerNode:
    return next(n for n in graph.nodes if n.name == name)


def test_one_frozen_node_freezes_the_layer_wherever_it_is_used():
    graph = elman()
    graph.set_optimizer(SGD(0.1))
    node(graph, "U3").frozen = True
    assert graph.built_
    before = graph.state_dict()
    graph.train_step(X, Y, LOSS)
    assert changed(graph, before) == {"W0.weight", "W0.bias", "V.weight", "V.bias"}
    assert not graph.recurrent.weight.grad.any()


def test_the_first_node_of_a_layer_chooses_its_optimizer():
    graph = elman()
    graph.set_optimizer(SGD(0.1))
    node(graph, "U2").set_optimizer(SGD(0.0))  # not the first node of that layer
    before = graph.state_dict()
    graph.train_step(X, Y, LOSS)
    assert changed(graph, before) == set(before)
    node(graph, "U1").set_optimizer(SGD(0.0))
    before = graph.state_dict()
    graph.train_step(X, Y, LOSS)
    assert changed(graph, before) == set(before) - {"U1.weight"}


def test_a_saved_graph_shares_its_layers_again_and_trains_on(tmp_path: Path):
    graph = elman()
    graph.set_optimizer(Adam(0.05))
    for _ in range(3):
        graph.train_step(X, Y, LOSS)
    plain = LayerGraph(graph.graph, graph.root, graph.term, seed=0)  # a subclass would come back as what it is not
    plain.build((None, STEPS, FEATURES), dtype="float64").set_optimizer(Adam(0.05))
    for _ in range(3):
        plain.train_step(X, Y, LOSS)
    plain.save(tmp_path / "elman.safetensors", classes={"Step": Step})
    again = tp.load(tmp_path / "elman.safetensors", classes={"Step": Step})
    layers = {name: node(again, name).layer for name in ("W0", "W5", "U1", "U5")}
    assert layers["W0"] is layers["W5"]
    assert layers["U1"] is layers["U5"]
    assert_same_bits(again.state_dict(), plain.state_dict())
    for one in (plain, again):
        one.train_step(X, Y, LOSS)
    assert_same_bits(again.state_dict(), plain.state_dict())


def test_a_step_more_keeps_what_was_learned():
    """The sequence grows by an edit: the new nodes hold layers that are there already."""
    graph = elman()
    graph.set_optimizer(Adam(0.05))
    graph.train_step(X, Y, LOSS)
    kept = graph.state_dict()
    last, term = node(graph, f"h{STEPS - 1}"), graph.term
    again, inward = LayerNode(graph.recurrent, name="U6"), LayerNode(graph.inward, name="W6")
    step, new = LayerNode(Step(0), name="x6"), LayerNode(Activation.Tanh(), name="h6")
    graph.disconnect(last, term)
    for a, b in ((graph.root, step), (step, inward), (inward, new), (last, again), (again, new), (new, term)):
        graph.connect(a, b)
    graph.build((None, STEPS, FEATURES), dtype="float64")
    assert_same_bits(graph.state_dict(), kept)
    graph.train_step(X, Y, LOSS)
    assert tp.gradcheck(graph, X) < 1e-8
