"""checkpoint=True: inner results are computed again in backward, which takes less memory and more rows, and changes no bit."""

from __future__ import annotations

import numpy as np
import pytest
from random_graphs import Recipe, build, for_random_graphs
from rules.networks import assert_same_bits, batches, chain, images, labels, node_of, state, step_by_step
from rules.test_same_bits import outcome, trained

from tapeprop import LayerGraph, LayerNode, MergeMode, SequentialNode, ops
from tapeprop.layers import (
    Activation,
    BatchNorm1D,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Lambda,
    Layer,
    MaxPool2D,
    Sequential,
)
from tapeprop.layers.layer import tracing
from tapeprop.losses import MSE, CrossEntropy
from tapeprop.optimizers import SGD, Adam

LOSS = CrossEntropy()


class Drifting(Layer):
    """x times a state that grows with each training call, through a function whose gradient reads the product."""

    def __init__(self):
        self.factor = self.parameter((1,), "ones", name="factor", trainable=False)

    def trace(self, x):
        trace = tracing()
        factor = trace.latest(self.factor)
        if trace.training:
            trace.store(self.factor, factor * 1.5)
        y = x * ops.reshape(factor, (1,) * x.ndim)
        return y * ops.sigmoid(y)


def mark(graph: LayerGraph) -> None:
    """Checkpoints every node, those of graphs inside too."""
    for node in graph.nodes:
        node.checkpoint = True
        for _, layer in node.layer.walk():
            if isinstance(layer, LayerGraph):
                mark(layer)


def network(checkpoint: bool = False, seed: int = 0, **options) -> LayerGraph:
    """Batch norm between ops that read its result, dropout of both kinds, a shared layer, a nested graph, pools, an inner output.

    (N, 2, 6, 6) -> (N, 3), (N, 3).
    """
    again = Sequential(Conv2D(4, 4, 3), BatchNorm2D(4), Activation.Swish())
    first = LayerNode(Activation.Tanh(), name="first")
    last = SequentialNode(Drifting(), Conv2D(4, 4, 1), Activation.ReLU(), name="last")
    inside = LayerGraph({first: [last]}, root=first, term=last)
    stem = SequentialNode(Conv2D(2, 4, 3), BatchNorm2D(4), Activation.Swish(), name="stem")
    one = LayerNode(again, name="one")
    two = SequentialNode(again, Dropout(0.3), Activation.GELU(), merge_mode=MergeMode.HADAMARD, name="two")
    nested = SequentialNode(Dropout(0.2, random_state=5), inside, merge_mode=MergeMode.SUM, name="nested")
    pool = SequentialNode(
        MaxPool2D(3, 1, padding=1), Conv2D(8, 4, 3, stride=2), merge_mode=MergeMode.CHCAT, name="pool"
    )
    flat = SequentialNode(Activation.Tanh(), MaxPool2D(), Flatten(), name="flat")
    a = SequentialNode(Dense(4, 8), BatchNorm1D(8), Activation.Swish(), Dense(8, 3), name="a")
    b = SequentialNode(Dropout(0.1), Dense(3, 3), name="b")
    edges = {stem: [one, two, nested], one: [two, pool], two: [nested], nested: [pool], pool: [flat], flat: [a], a: [b]}
    graph = LayerGraph(edges, root=stem, term=[a, b], seed=seed)
    graph.stop_gradient(one, pool)
    if checkpoint:
        mark(graph)
    return graph.build((None, 2, 6, 6), **{"dtype": "float64", **options})


@pytest.fixture
def every_worker_counts(monkeypatch):
    """Small tapes would go to one worker."""
    monkeypatch.setattr("tapeprop.runtime.executable.worthwhile_workers", lambda tape, workers: workers)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_same_bits_in_every_way_to_train(dtype, every_worker_counts):
    """train_step, separate calls, fit and predict, for batches that fill vector lanes and others."""
    expected = trained(network, dtype=dtype, workers=1)
    for workers in (1, 3):
        assert_same_bits(trained(network, checkpoint=True, dtype=dtype, workers=workers), expected)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_step_is_its_parts(dtype):
    whole, parts, plain = (network(checkpoint, dtype=dtype) for checkpoint in (True, True, False))
    for graph in (whole, parts, plain):
        graph.set_optimizer(Adam(0.01))
    for i in range(3):
        x = batches(i)
        y = [labels(len(x), i)] * 2
        for graph in (whole, plain):
            graph.train_step(x, y, LOSS)
        parts.zero_grad()
        out = parts.forward(x, True)
        parts.backward([LOSS.grad(t, z) for t, z in zip(y, out, strict=True)])
        parts.update()
        assert_same_bits(state(whole), state(parts))
        assert_same_bits(state(whole), state(plain))


@pytest.mark.parametrize("watched", [(), ("one", "two", "flat")])
@pytest.mark.parametrize("training", [True, False])
def test_backward_from_any_outputs_any_number_of_times(training, watched):
    """Of one forward: each recomputes what it needs, and state that has advanced since is not read."""
    found = []
    for checkpoint in (False, True):
        graph = network(checkpoint)
        watching = [node_of(graph, name) for name in watched]
        graph.watch(*watching)
        for i in range(2):
            outputs = graph.forward(batches(i), training)
        d = images(3, outputs[0].shape)
        arrays = {}
        for i, flow in enumerate(([d, None], [None, d], [d, d], [None, d])):
            arrays[f"dx {i}"] = graph.backward(flow)
            arrays |= {f"d {node} {i}": graph.gradient(node) for node in watching}
        found.append(arrays | {str(node): graph.value(node) for node in watching} | state(graph))
    assert_same_bits(*found)


@for_random_graphs(40)
def test_the_same_bits_on_random_graphs(recipe: Recipe) -> None:
    plain, marked = build(recipe), build(recipe)
    mark(marked.graph)
    marked.graph.build(dtype="float64")
    assert_same_bits(outcome(marked), outcome(plain))


@for_random_graphs(15)
def test_a_step_has_the_same_bits_on_random_graphs(recipe: Recipe) -> None:
    plain, marked = build(recipe), build(recipe)
    mark(marked.graph)
    marked.graph.build(dtype="float64")
    if plain.graph.param_size == (0, 0):
        return  # nothing to train is an error
    losses = [None if d is None else MSE() for d in plain.d_out]
    for case in (plain, marked):
        case.graph.set_optimizer(Adam(0.01))
        case.graph.train_step(case.inputs if isinstance(case.graph.root, list) else case.inputs[0], case.d_out, losses)
    assert_same_bits(state(marked.graph), state(plain.graph))


# ---- memory and work


def deep(checkpoint: bool, nodes: int = 8, nested: bool = False) -> LayerGraph:
    """A chain of convolution, batch norm and Swish, each three a node, or two nodes in a graph in a node: (N, 4, 8, 8) -> (N, 3)."""
    made = []
    for i in range(nodes):
        layers = [Conv2D(4, 4, 3), BatchNorm2D(4), Activation.Swish()]
        if nested:
            parts = [SequentialNode(*layers, name="x"), SequentialNode(Conv2D(4, 4, 3), Activation.Tanh(), name="y")]
            layers = [LayerGraph({parts[0]: [parts[1]]}, root=parts[0], term=parts[1])]
        made.append(SequentialNode(*layers, name=f"n{i}", checkpoint=checkpoint))
    made.append(SequentialNode(Flatten(), Dense(256, 3), name="head"))
    edges = {node: made[i + 1 : i + 2] for i, node in enumerate(made)}
    return LayerGraph(edges, root=made[0], term=made[-1], seed=0).build((None, 4, 8, 8))


def arenas(graph: LayerGraph, count: int) -> dict[str, int]:
    """Bytes of each arena after a step of either kind with so many samples."""
    graph.set_optimizer(SGD(0.1))
    x, y = images(0, (count, 4, 8, 8)), labels(count)
    graph.train_step(x, y, LOSS)
    step_by_step(graph, x, y, LOSS)
    network = graph._network
    apart = network.retained_arena.array.nbytes + network.backward_arena.array.nbytes
    return {"tight": network.tight_arena.array.nbytes, "retained": apart}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("count", [32, 7])
def test_memory_falls(count, nested):
    """Of each node of the chain backward reads two or more tensors inside it; one result stays."""
    plain, marked = (arenas(deep(checkpoint, nested=nested), count) for checkpoint in (False, True))
    for layout in ("tight", "retained"):
        assert marked[layout] < (0.55 if nested else 0.7) * plain[layout], layout


def test_fit_takes_less_too():
    x, y, sizes = images(0, (64, 4, 8, 8)), labels(64), []
    for checkpoint in (False, True):
        graph = deep(checkpoint)
        graph.fit(x, y, loss=LOSS, optimizer=SGD(0.1), epochs=1, batch_size=32, verbose=0)
        sizes.append(graph._network.tight_arena.array.nbytes)
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("count", [32, 7])
def test_what_is_repeated_stands_in_backward_under_the_nodes_name(count):
    graph = deep(True, nodes=3)
    graph.forward(images(0, (count, 4, 8, 8)), True)
    convolutions = ("conv2d", "conv2d_lanes")
    for name in ("n0", "n1", "n2"):
        found = [row for row in graph.tape if row["node"].startswith(f"{name}.")]
        for span in ("forward", "backward"):
            names = [row["op"] for row in found if row["span"] == span]
            assert sum(op in convolutions for op in names) == 1, (name, span)
            assert names.count("batch_norm") == 1, (name, span)


def test_only_the_marked_node_is_repeated():
    graph = deep(False, nodes=3)
    node_of(graph, "n1").checkpoint = True
    assert not graph.built_
    graph.build((16, 4, 8, 8))
    again = [row["node"] for row in graph.tape if row["span"] == "backward" and row["op"] == "batch_norm"]
    assert again == ["n1.1"]  # layer 1 of the node


def test_pools_in_vector_lanes_are_repeated_too():
    """Their gradient takes the pooled image that stands already, which must not be the one that forward made."""
    layers = [Conv2D(4, 4, 3), Sequential(MaxPool2D(3, 1, padding=1), Conv2D(4, 4, 3), Activation.Swish())]
    graph = chain(*layers, names=["first", "pool"], seed=0)
    mark(graph)
    spans = [row["span"] for row in graph.build((16, 4, 8, 8)).tape if row["op"] == "max_pool2d_lanes"]
    assert spans == ["forward", "backward"]


def test_a_node_that_keeps_nothing_inside_repeats_nothing():
    """relu's gradient reads its result, and the node's own result is kept."""
    plain = chain(Dense(4, 4), Activation.ReLU(), Dense(4, 3), Lambda(lambda x: x), seed=0).build((5, 4))
    marked = chain(Dense(4, 4), Activation.ReLU(), Dense(4, 3), Lambda(lambda x: x), seed=0)
    mark(marked)
    assert [row["op"] for row in marked.build((5, 4)).tape] == [row["op"] for row in plain.tape]


def test_statistics_advance_once_and_are_those_of_the_batch():
    graph = deep(True, nodes=1)
    norm = node_of(graph, "n0").layer[1]
    before = norm.running_mean.value.copy()
    graph.set_optimizer(SGD(0.0))
    x = images(0, (7, 4, 8, 8), "float32")
    graph.train_step(x, labels(7), LOSS)
    once = norm.running_mean.value.copy()
    assert not np.array_equal(once, before)
    graph.train_step(x, labels(7), LOSS)
    np.testing.assert_allclose(norm.running_mean.value, 0.9 * once + once, rtol=1e-5, atol=1e-8)
