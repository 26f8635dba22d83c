"""Rules 10 and 16: train_step is zero_grad, forward, loss, loss.grad, backward, clip and update one by one, to the last bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from rules.networks import (
    CALL_SECONDS,
    assert_same_bits,
    batches,
    images,
    labels,
    node_of,
    perceptron,
    rows,
    shared,
    state,
    step_by_step,
    two_heads,
    vision,
)

from tapeprop import LayerGraph, LayerNode
from tapeprop.layers import Dense
from tapeprop.losses import MSE, CrossEntropy
from tapeprop.optimizers import SGD, Adam, AdamW

LOSS = CrossEntropy()
NETWORKS = {"vision": (vision, batches), "perceptron": (perceptron, rows), "shared": (shared, rows)}


def train_both(a: LayerGraph, b: LayerGraph, make_input, steps: int = 3) -> None:
    """Steps of a in one call each and of b call by call: the same loss, weights, gradients and statistics."""
    for i in range(steps):
        x = make_input(i)
        y = labels(len(x), i)
        assert a.train_step(x, y, LOSS) == step_by_step(b, x, y, LOSS)
        assert_same_bits(state(a), state(b))


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_is_its_parts(network, dtype, clip_norm):
    make, make_input = NETWORKS[network]
    for optimizer in (SGD(0.1, momentum=0.9, weight_decay=0.01), Adam(0.01)):
        a, b = (make(dtype=dtype, clip_norm=clip_norm) for _ in range(2))
        a.set_optimizer(optimizer)
        b.set_optimizer(optimizer)
        train_both(a, b, make_input)
        train_both(b, a, make_input)  # the two ways may alternate


def test_clipping_changes_the_step():
    """What the comparison above would not see if clip_norm were ignored in both ways."""
    x, y = rows(), labels(5)
    moved = {}
    for clip_norm in (None, 1e-3):
        graph = perceptron(dtype="float64", clip_norm=clip_norm)
        graph.set_optimizer(SGD(1.0))
        before = graph.state_dict()
        graph.train_step(x, y, LOSS)
        moved[clip_norm] = np.sqrt(sum(np.square(v - before[k]).sum() for k, v in graph.state_dict().items()))
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-4)
    assert moved[None] > 0.1


def only_the_first(graph):
    node_of(graph, "first").set_optimizer(Adam(0.01))


def one_of_its_own(graph):
    only_the_first(graph)
    graph.set_optimizer(SGD(0.1))


def one_frozen(graph):
    graph.set_optimizer(Adam(0.01))
    node_of(graph, "first").frozen = True


def waiting_gradients(graph):
    x = rows(3)
    graph.backward(LOSS.grad(labels(5), graph.forward(x, True)))
    one_of_its_own(graph)


def frozen_with_a_waiting_gradient(graph):
    waiting_gradients(graph)
    node_of(graph, "first").frozen = True


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize(
    "prepare", [only_the_first, one_of_its_own, one_frozen, waiting_gradients, frozen_with_a_waiting_gradient]
)
def test_a_step_is_its_parts_where_some_parameters_are_not_trained(prepare, clip_norm):
    """Clipping measures the gradients that the update consumes; those of others wait, as after backward() and update()."""
    a, b = (perceptron(dtype="float64", clip_norm=clip_norm) for _ in range(2))
    prepare(a)
    prepare(b)
    train_both(a, b, rows)
    for graph in (a, b):  # what waited adds to the next gradient
        graph.backward(LOSS.grad(labels(5, 9), graph.forward(rows(9), True)))
    assert_same_bits(state(a), state(b))


def test_a_step_is_its_parts_where_weights_lie_in_several_segments():
    """Nodes that come later have storage of their own; the norm of all gradients is one sum in one order."""

    def grown():
        graph = perceptron(dtype="float64", clip_norm=0.05)
        graph.set_optimizer(Adam(0.01))
        graph.train_step(rows(), labels(5), LOSS)
        for name, before, after in (("third", "second", None), ("early", "first", "tanh")):
            size = 3 if after is None else 8
            new = LayerNode(Dense(size, size, random_state=size), name=name)
            last = node_of(graph, before)
            if after is None:
                graph.connect(last, new)
                graph.term = new
            else:
                following = node_of(graph, after)
                graph.disconnect(last, following)
                graph.add_node(new, [last], [following])
            graph.build((None, 4), dtype="float64", clip_norm=0.05)
        return graph

    a, b = grown(), grown()
    node_of(a, "early").set_optimizer(SGD(0.1))
    node_of(b, "early").set_optimizer(SGD(0.1))
    train_both(a, b, rows)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_a_step_on_some_of_the_outputs(clip_norm):
    a, b = (two_heads(dtype="float64", clip_norm=clip_norm) for _ in range(2))
    for graph in (a, b):
        graph.set_optimizer(Adam(0.01))
    for i, which in enumerate(["ab", "a", "ab", "b", "b", "ab"]):
        x, y = rows(i), labels(5, i)
        losses = [LOSS if name in which else None for name in "ab"]
        value = a.train_step(x, [y if loss else None for loss in losses], losses)
        b.zero_grad()
        outputs = b.forward(x, True)
        pairs = list(zip(losses, outputs, strict=True))
        expected = sum(loss(y, out) for loss, out in pairs if loss)
        b.backward([loss.grad(y, out) if loss else None for loss, out in pairs])
        b.update()
        assert value == expected
        assert_same_bits(state(a), state(b))


def test_weighted_losses_are_weighted_gradients():
    a, b = (two_heads(dtype="float64") for _ in range(2))
    x, y, target = rows(), labels(5), images(1, (5, 3))
    for graph in (a, b):
        graph.set_optimizer(SGD(0.1))
    total = a.train_step(x, {"a": y, "b": target}, [LOSS, MSE()], loss_weights=[0.25, 2.0])
    out = b.forward(x, True)
    b.backward([0.25 * LOSS.grad(y, out[0]), 2.0 * MSE().grad(target, out[1])])
    b.update()
    assert total == pytest.approx(0.25 * LOSS(y, out[0]) + 2.0 * MSE()(target, out[1]), rel=1e-14)
    assert_same_bits(state(a), state(b))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("network", ["vision", "perceptron"])
@pytest.mark.parametrize("seconds", CALL_SECONDS)
def test_fit_is_a_step_per_batch_the_last_smaller_one_included(network, accumulate, seconds, monkeypatch):
    monkeypatch.setattr("tapeprop.training.fit.CALL_SECONDS", seconds)
    make, _ = NETWORKS[network]
    shape = (30, 2, 6, 6) if network == "vision" else (30, 4)
    x, y = images(0, shape), labels(30)
    a, b = (make(dtype="float64", clip_norm=0.5) for _ in range(2))
    a.fit(
        x, y, loss=LOSS, optimizer=Adam(0.01), epochs=2, batch_size=8, shuffle=False, accumulate=accumulate, verbose=0
    )
    b.set_optimizer(Adam(0.01))
    for _ in range(2):
        bounds = list(itertools.pairwise([0, 8, 16, 24, 30]))
        for start in range(0, 4, accumulate):
            group = bounds[start : start + accumulate]
            b.zero_grad()
            for first, last in group:
                out = b.forward(x[first:last], True)
                b.backward(LOSS.grad(y[first:last], out) / len(group))
            b.update()
    if accumulate < 3:
        assert_same_bits(state(a), state(b))
    # A third of a loss has its gradient rounded elsewhere than a third of the gradient; Adam turns the rounding in a bias
    # that a batch norm follows into steps.
    for name, value in state(b).items():
        np.testing.assert_allclose(state(a)[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_update_consumes_and_zero_grad_drops():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.0))
    x, d = rows(), images(1, (5, 3))

    def gradients():
        return {name: p.grad.copy() for name, p in graph.named_parameters()}

    graph.forward(x, True)
    graph.backward(d)
    once = gradients()
    graph.backward(d)
    for name, gradient in gradients().items():
        np.testing.assert_array_equal(gradient, 2 * once[name])
    graph.update()
    for name, gradient in gradients().items():  # consumed, and still there to be read
        np.testing.assert_array_equal(gradient, 2 * once[name])
    graph.forward(x, True)
    graph.backward(d)
    assert_same_bits(gradients(), once)
    graph.zero_grad()
    assert not any(gradient.any() for gradient in gradients().values())
    graph.backward(d)
    assert_same_bits(gradients(), once)


def test_an_update_without_gradients_changes_nothing():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(AdamW(0.1))
    graph.train_step(rows(), labels(5), LOSS)
    before = graph.state_dict()
    graph.update()
    assert_same_bits(graph.state_dict(), before)
    graph.zero_grad()
    graph.update()
    assert_same_bits(graph.state_dict(), before)


def test_gradients_edited_between_backward_and_update_are_what_is_applied():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.5))
    graph.forward(rows(), True)
    graph.backward()
    before = graph.state_dict()
    for name, parameter in graph.named_parameters():
        parameter.grad[...] = np.full(parameter.shape, 2.0 if name.endswith("weight") else 0.0)
    graph.update()
    for name, value in graph.state_dict().items():
        np.testing.assert_array_equal(value, before[name] - (1.0 if name.endswith("weight") else 0.0))


def test_clipping_sees_edited_gradients():
    graph = perceptron(dtype="float64", clip_norm=1.0)
    graph.set_optimizer(SGD(1.0))
    graph.forward(rows(), True)
    graph.backward()
    before = graph.state_dict()
    for _, parameter in graph.named_parameters():
        parameter.grad[...] = 0
    node_of(graph, "second").layer.bias.grad[...] = [3.0, 0.0, 4.0]
    graph.update()
    after = graph.state_dict()
    np.testing.assert_allclose(before["second.bias"] - after["second.bias"], [0.6, 0, 0.8], rtol=1e-5)
