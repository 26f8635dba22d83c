"""Graphs, options and calls that are refused: one error of the right class that names the node, the graph as it was.

Data are in rules/test_bad_data.py, edits during a run in rules/test_edits_during_fit.py.
"""

import numpy as np
import pytest

import tapeprop as tp
from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.errors import (
    CycleError,
    DeviceError,
    DisconnectedError,
    DuplicateNameError,
    GraphError,
    LabelError,
    MergeError,
    NotBuiltError,
    NumericsError,
    ShapeError,
    StateError,
)
from tapeprop.layers import Activation, BatchNorm1D, Conv2D, Dense, Flatten, Identity, Lambda, Sequential
from tapeprop.losses import MSE, CrossEntropy
from tapeprop.optimizers import SGD

X, Y = np.ones((4, 5)), np.array([0, 1, 2, 0])


@pytest.fixture
def graph():
    first, last = LayerNode(Dense(5, 4), name="first"), LayerNode(Dense(4, 3), name="last")
    made = LayerGraph({first: [last]}, root=first, term=last, seed=0).build((None, 5))
    made.set_optimizer(SGD(lr=0.1))
    return made


def works(graph):
    """Whether the graph still runs, and its weights are what they were."""
    return graph.forward(X).shape == (4, 3)


# ---- structure: refused at build, nothing changed


def node(name, layer=None, mode=MergeMode.SUM):
    return LayerNode(layer or Identity(), mode, name=name)


def structures():
    a, b, c, d = (node(n) for n in "abcd")
    yield CycleError, "b", {a: [b], b: [c], c: [b, d]}, a, d
    a, b, c = (node(n) for n in "abc")
    yield DisconnectedError, "c", {a: [b], c: [b]}, a, b
    a, b, c = (node(n) for n in "abc")
    yield DisconnectedError, "c", {a: [b, c]}, a, b
    a, b = (node(n) for n in "ab")
    yield DisconnectedError, "term", {a: [b]}, a, None
    yield DisconnectedError, "root", {a: [b]}, None, b
    yield DisconnectedError, "stranger", {a: [b]}, node("stranger"), b
    a, b, c = (node(n) for n in "abc")
    yield GraphError, "a", {a: [b], b: [a, c]}, a, c
    a, b = node("twin"), node("twin")
    yield DuplicateNameError, "twin", {a: [b]}, a, b


@pytest.mark.parametrize(("error", "named", "edges", "root", "term"), list(structures()))
def test_structures(error, named, edges, root, term):
    graph = LayerGraph(edges, root=root, term=term)
    before = {n: list(following) for n, following in graph.graph.items()}
    with pytest.raises(error, match=named):
        graph.build()
    assert not graph.built_
    assert {n: list(following) for n, following in graph.graph.items()} == before
    with pytest.raises(NotBuiltError, match=r"build\(\)"):
        graph.forward(X)


SHAPES = [
    (ShapeError, "conv", node("conv", Conv2D(3, 4, 3)), (2, 6, 8, 8), "6"),
    (ShapeError, "conv", node("conv", Conv2D(3, 4, 3)), (2, 8, 8), "rank"),
    (ShapeError, "dense", node("dense", Dense(64, 4)), (2, 16, 2, 2), "Flatten"),
    (ShapeError, "dense", node("dense", Dense(64, 4)), (2, 32), "32"),
    (ShapeError, "norm", node("norm", BatchNorm1D(4)), (1, 4), "one value per channel"),
]


@pytest.mark.parametrize(("error", "named", "single", "shape", "told"), SHAPES)
@pytest.mark.parametrize("when", ["build", "forward"])
def test_shapes(error, named, single, shape, told, when):
    graph = LayerGraph({single: []}, root=single, term=single)
    if when == "forward":
        graph.build()
    with pytest.raises(error, match=named) as refusal:
        graph.build(shape) if when == "build" else graph.forward(np.ones(shape), True)
    assert told in str(refusal.value)


def test_operands_that_do_not_merge_name_the_node_and_both_shapes():
    r, body, t = node("r"), node("body", Conv2D(3, 6, 3)), node("joined")
    with pytest.raises(MergeError, match="joined") as refusal:
        LayerGraph({r: [body, t], body: [t]}, root=r, term=t).build((2, 3, 8, 8))
    assert "(2, 3, 8, 8)" in str(refusal.value)
    assert "(2, 6, 8, 8)" in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dtype": "float16"}, GraphError),
        ({"device": "cuda"}, DeviceError),
        ({"device": "abacus"}, DeviceError),
        ({"workers": 0}, GraphError),
        ({"workers": 1.5}, GraphError),
        ({"clip_norm": -1.0}, GraphError),
        ({"math_mode": "tf32"}, GraphError),
    ],
)
def test_build_options(graph, options, error):
    with pytest.raises(error, match=next(iter(options))):
        graph.build((None, 5), **options)
    assert works(graph)


# ---- order of calls


def test_backward_wants_a_forward_whose_weights_still_stand(graph):
    for spoil in (lambda: None, lambda: graph.train_step(X, Y, CrossEntropy())):
        spoil()
        with pytest.raises(StateError, match=r"forward\(\)"):
            graph.backward(np.ones((4, 3)))
        graph.forward(X, True)
        graph.backward(np.ones((4, 3)))
        graph.update()
        with pytest.raises(StateError, match=r"forward\(\)"):
            graph.backward(np.ones((4, 3)))


def test_an_update_without_an_optimizer():
    only = node("only", Dense(5, 3))
    graph = LayerGraph({only: []}, root=only, term=only).build()
    graph.forward(X, True)
    graph.backward()
    for call in (graph.update, lambda: graph.train_step(X, Y, CrossEntropy()), lambda: graph.lr):
        with pytest.raises(StateError, match="set_optimizer"):
            call()


@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf")])
def test_learning_rates(graph, lr):
    with pytest.raises(ValueError, match="lr"):
        graph.update_lr(lr)
    assert graph.lr == 0.1


def test_an_edit_asks_for_a_build_and_keeps_the_weights(graph):
    weights, first, last = graph.state_dict(), *graph.nodes
    graph.disconnect(first, last)
    graph.add_node(node("between", Activation.Tanh()), [first], [last])
    with pytest.raises(NotBuiltError, match="edited"):
        graph.forward(X)
    graph.build((None, 5))
    assert all(np.array_equal(weights[name], value) for name, value in graph.state_dict().items())


def test_a_layer_that_raises_names_its_node():
    bad = node("broken", Lambda(lambda x: x.nonsense))
    graph = LayerGraph({bad: []}, root=bad, term=bad).build()
    with pytest.raises(AttributeError) as refusal:
        graph.forward(X)
    assert "broken" in "".join(getattr(refusal.value, "__notes__", []))


def test_debug_nan_names_the_first_node_that_made_one():
    log = node("logarithm", Lambda(lambda x: tp.ops.log(x)))
    tail = node("tail", Sequential(Flatten(), Dense(5, 3)))
    graph = LayerGraph({log: [tail]}, root=log, term=tail).build((None, 5), debug_nan=True)
    assert graph.forward(X).shape == (4, 3)
    with pytest.raises(NumericsError, match="logarithm"):
        graph.forward(-X)


def test_losses_are_checked(graph):
    for wrong in ("mse", 3, None):
        with pytest.raises((TypeError, ValueError, GraphError)):
            graph.train_step(X, Y, wrong)
    with pytest.raises(LabelError):
        graph.train_step(X, np.ones((4, 2)), MSE())
    assert works(graph)
