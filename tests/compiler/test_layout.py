"""The batch-lane layout: the same values as without it, conversions only at the edges, and the same bits whichever way a step is run."""

from types import SimpleNamespace

import numpy as np
import pytest

import tapeprop.compiler.layout as layout
from tapeprop import LayerGraph, LayerNode, MergeMode, ops
from tapeprop.compiler.interpret import interpret
from tapeprop.compiler.passes import Lanes, optimize
from tapeprop.ir import Input, Program, Span, Tensor, reachable
from tapeprop.layers import (
    Activation,
    AvgPool2D,
    BatchNorm2D,
    Conv2D,
    Dense,
    Flatten,
    GlobalAvgPool2D,
    MaxPool2D,
    Sequential,
)
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((16, 3, 8, 8)), RNG.integers(0, 3, 16)


def network():
    """Convolutions of stride 1 and 2, norm, a shortcut, a concatenation, all pools, a dense head."""
    stem = LayerNode(Sequential(Conv2D(3, 6, 3), BatchNorm2D(6), Activation.ReLU()))
    body = LayerNode(Sequential(Conv2D(6, 6, 3), Activation.Tanh(), AvgPool2D(3, 1, padding=1)))
    joined = LayerNode(Activation.ReLU(), MergeMode.SUM)
    left, right = (
        LayerNode(Conv2D(6, 5, 3, stride=2)),
        LayerNode(Sequential(Conv2D(6, 4, 1, stride=2), Activation.ReLU())),
    )
    both = LayerNode(MaxPool2D(2), MergeMode.CHCAT)
    flat = LayerNode(Sequential(Flatten(), Dense(36, 3)))
    pooled = LayerNode(Sequential(GlobalAvgPool2D(), Flatten(), Dense(9, 3)))
    head = LayerNode(Activation.Linear(), MergeMode.SUM)
    edges = {
        stem: [body, joined],
        body: [joined],
        joined: [left, right],
        left: [both],
        right: [both],
        both: [flat, pooled],
        flat: [head],
        pooled: [head],
    }
    return LayerGraph(edges, root=stem, term=head, seed=1)


def everything(graph, x=X):
    """Output, input gradient and all parameter gradients of a forward and backward in training."""
    y = graph.forward(x, True)
    dx = graph.backward(np.cos(np.arange(y.size)).reshape(y.shape))
    return [y, dx, *(p.grad.copy() for _, p in graph.named_parameters() if p.trainable)]


def test_the_same_values_as_in_images(monkeypatch):
    found = everything(network().build((None, 3, 8, 8), dtype="float64"))
    monkeypatch.setattr("tapeprop.runtime.lowering.batch_lanes", lambda dtype, batch: None)
    plain = everything(network().build((None, 3, 8, 8), dtype="float64"))
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_conversions_stand_at_the_edges_only():
    graph = network().build((16, 3, 8, 8))
    found = [row["op"] for row in graph.tape]
    assert sum("lanes" in op and op.startswith("conv2d") for op in found) == 12
    assert not any(op in ("conv2d", "max_pool2d", "avg_pool2d", "max_pool2d_grad") for op in found)
    # in: the input. out: flattened features, pooled features, and the gradient of the input; back: the two feature gradients
    assert found.count("to_lanes") <= 3
    assert found.count("from_lanes") <= 3


def test_a_batch_that_fills_no_vector_stays_in_images():
    graph = network().build((15, 3, 8, 8))
    assert not any("lanes" in row["op"] for row in graph.tape)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_has_the_same_bits_in_one_call_and_in_many(dtype):
    one, many = (network().build((None, 3, 8, 8), dtype=dtype) for _ in range(2))
    loss = CrossEntropy()
    for graph in (one, many):
        graph.set_optimizer(SGD(lr=0.1, momentum=0.9))
    for _ in range(3):
        one.train_step(X, Y, loss)
        many.zero_grad()
        y = many.forward(X, True)
        many.backward(loss.grad(Y, y))
        many.update()
    for a, b in zip(one.state_dict().values(), many.state_dict().values(), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("vector", "batch", "lanes"), [(8, 32, 16), (8, 24, 8), (4, 8, 8), (16, 24, None), (8, 12, None), (8, 4, None)]
)
def test_half_the_lanes_do_where_a_vector_has_no_more(monkeypatch, vector, batch, lanes):
    monkeypatch.setattr(layout, "machine", SimpleNamespace(lanes=lambda dtype: vector))
    found = layout.batch_lanes("float32", batch)
    assert (found and found.lanes) == lanes


def test_half_the_lanes_give_the_same_values_as_images(monkeypatch):
    monkeypatch.setattr(layout, "machine", SimpleNamespace(lanes=lambda dtype: 4))
    graphs = [network().build((None, 3, 8, 8), dtype="float64") for _ in range(2)]
    found = everything(graphs[0], X[:12])
    assert any("lanes" in row["op"] for row in graphs[0].tape)
    monkeypatch.setattr("tapeprop.runtime.lowering.batch_lanes", lambda dtype, batch: None)
    for a, b in zip(found, everything(graphs[1], X[:12]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_watched_nodes_are_read_as_images():
    graph = network().build((None, 3, 8, 8), dtype="float64")
    stem = graph.nodes[0]
    graph.watch(stem)
    graph.forward(X)
    graph.backward()
    assert graph.value(stem).shape == graph.gradient(stem).shape == (16, 6, 8, 8)


def test_one_layout_serves_every_full_batch():
    graph = network().build((None, 3, 8, 8))
    for count in (16, 32, 48):
        graph.forward(np.resize(X, (count, 3, 8, 8)), True)
    assert len({key for key in graph._network.lowering._programs if key[0][0] == "retained"}) == 1


def small_program(activation):
    x = Tensor((16, 2, 5, 5), "float64", source=Input(0))
    w = Tensor((3, 2, 3, 3), "float64", source=Input(1))
    y = activation(ops.conv2d(x, w, padding=1))
    return Program([Span("all", reachable([y]))], [x, w], [y]), {
        x: RNG.standard_normal(x.shape),
        w: RNG.standard_normal(w.shape),
    }


@pytest.mark.parametrize(
    ("activation", "count"),
    [(ops.relu, 3), (ops.tanh, 4), (lambda y: ops.relu(y) + y, 4)],
    ids=["relu joins the convolution", "tanh does not", "nor a relu beside another reader"],
)
def test_epilogues(activation, count):
    program, feeds = small_program(activation)
    expected, _ = interpret(program, feeds)
    found = optimize(program, lanes=Lanes(16, 8))
    assert len(found.instructions) == count
    values, _ = interpret(found, feeds)
    np.testing.assert_allclose(values[0], expected[0], rtol=1e-12, atol=1e-12)
