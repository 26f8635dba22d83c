"""LayerGraph as a whole: training goes on from a file or a copy, gradcheck, predict and evaluate."""

import copy
import pickle

import numpy as np
import pytest

from tapeprop import LayerGraph, LayerNode, MergeMode, gradcheck, load
from tapeprop.errors import NotBuiltError, ShapeError, StateError, WeightFileError
from tapeprop.layers import Activation, BatchNorm1D, Conv2D, Dense, Dropout, Identity, Sequential
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((24, 5)), RNG.integers(0, 3, 24)


def network(dropout=0.25):
    root = LayerNode(Sequential(Dense(5, 8), BatchNorm1D(8), Activation.Tanh()), name="root")
    side = LayerNode(Sequential(Dense(8, 8), Dropout(dropout)), name="side")
    term = LayerNode(Identity(), MergeMode.SUM, name="joined")
    head = LayerNode(Dense(8, 3), name="head")
    return LayerGraph({root: [side, term], side: [term], term: [head]}, root=root, term=head, seed=3)


@pytest.fixture
def trained():
    graph = network().build((None, 5))
    graph.set_optimizer(Adam(lr=0.01))
    graph.nodes[-1].set_optimizer(SGD(lr=0.05, momentum=0.9))
    for _ in range(3):
        graph.train_step(X, Y, CrossEntropy())
    return graph


def steps(graph, count=4):
    return [graph.train_step(X, Y, CrossEntropy()) for _ in range(count)]


def test_training_goes_on_from_a_file_as_if_nothing_had_happened(trained, tmp_path):
    trained.save(tmp_path / "graph.safetensors")
    again = load(tmp_path / "graph.safetensors")
    np.testing.assert_array_equal(again(X), trained(X))
    assert steps(again) == steps(trained)
    for a, b in zip(again.state_dict().values(), trained.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_for_another_graph_is_refused(trained):
    state = trained.optimizer_state_dict()
    other = LayerNode(Dense(5, 3))
    graph = LayerGraph({other: []}, root=other, term=other).build()
    with pytest.raises(WeightFileError, match="expected"):
        graph.load_optimizer_state_dict(state)
    with pytest.raises(WeightFileError, match="expected shape"):
        trained.load_optimizer_state_dict({**state, "unit0": np.zeros(9)})


@pytest.mark.parametrize("make", [copy.deepcopy, lambda graph: pickle.loads(pickle.dumps(graph))])
def test_a_copy_is_a_graph_of_its_own(trained, make):
    again = make(trained)
    with pytest.raises(NotBuiltError, match="build"):
        again(X)
    again.build((None, 5))
    np.testing.assert_array_equal(again(X), trained(X))
    before = trained(X)
    next(iter(again.nodes[0].layer.children()))[1].weight.value[...] = 0
    np.testing.assert_array_equal(trained(X), before)


def test_gradcheck_agrees_with_differences_and_sees_an_error():
    graph = network(dropout=0.0).build((None, 5), dtype="float64")
    assert gradcheck(graph, X) < 1e-7

    class Wrong(LayerGraph):
        def backward(self, d_out=None):
            return super().backward(d_out) * 1.01

    node = LayerNode(Dense(5, 2))
    assert gradcheck(Wrong({node: []}, root=node, term=node).build(dtype="float64"), X) > 1e-4


def test_fit_learns_and_predict_and_evaluate_agree():
    graph = network(dropout=0.0).build((None, 5))
    history = graph.fit(X, Y, loss=CrossEntropy(), optimizer=Adam(lr=0.02), epochs=40, batch_size=10, verbose=0)
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    scores = graph.predict(X, batch_size=7)
    found = graph.evaluate(X, Y, loss=CrossEntropy())
    assert found["accuracy"] == pytest.approx(np.mean(scores.argmax(1) == Y))
    assert found["loss"] == pytest.approx(CrossEntropy()(Y, scores), rel=1e-5)


def test_an_array_that_is_read_as_it_is_gives_what_any_other_gives():
    graph = network().build((None, 5))
    ready = X.astype(np.float32)
    expected, kept = graph.predict(X), ready.copy()  # of float64: looked at, and cast
    for given in (ready, np.asfortranarray(ready), np.repeat(ready, 2, axis=0)[::2], ready.tolist()):
        np.testing.assert_array_equal(graph.predict(given), expected)
    np.testing.assert_array_equal(graph.predict(ready, batch_size=24), expected)
    first = graph.predict(ready)
    graph.predict(-ready)
    np.testing.assert_array_equal(first, expected)  # a fresh array each time
    np.testing.assert_array_equal(ready, kept)
    for one in (graph.predict(ready[:1]), graph.predict(ready[:1], batch_size=1)):
        np.testing.assert_allclose(one, expected[:1], rtol=1e-6, atol=1e-6)
    graph.nodes[-1].layer.weight.value[...] *= 2
    assert not np.array_equal(graph.predict(ready), expected)


def test_an_array_that_is_read_as_it_is_meets_the_same_refusals():
    graph = network().build((None, 5))
    ready = X.astype(np.float32)
    graph.predict(ready)
    for size in (0, -1):
        with pytest.raises(ValueError, match="batch_size"):
            graph.predict(ready, batch_size=size)
    for size in (True, 2.5, None):
        with pytest.raises(TypeError, match="batch_size"):
            graph.predict(ready, batch_size=size)
    with pytest.raises(ShapeError, match="in_features=5"):
        graph.predict(ready[:, :4].copy())
    with pytest.raises(ShapeError, match="at least one sample"):
        graph.predict(ready[:0])
    before, head = graph.predict(ready), graph.nodes[-1]
    layer, head.layer = head.layer, Dense(8, 2)
    with pytest.raises(NotBuiltError, match="edited"):
        graph.predict(ready)
    head.layer = layer
    np.testing.assert_array_equal(graph.predict(ready), before)


def test_timing_a_step_changes_nothing(trained):
    twin = copy.deepcopy(trained).build((None, 5))
    twin.load_optimizer_state_dict(trained.optimizer_state_dict())
    twin.nodes[-1].set_optimizer(twin.nodes[-1].optimizer)
    rows = trained.profile(X, Y, CrossEntropy(), repeats=3).figures()
    assert {row.phase for row in rows} >= {"forward", "backward", "update"}
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert steps(trained) == steps(twin)


def test_the_tape_is_shown_before_sizes_are_known():
    root, conv = LayerNode(Identity()), LayerNode(Sequential(Dropout(0.1), Conv2D(3, 6, 3)))
    graph = LayerGraph({root: [conv]}, root=root, term=conv).build()
    assert "(N,6,H,W)" in str(graph.tape)
    graph.forward(np.ones((2, 3, 4, 4)))
    assert "(2,6,4,4)" in str(graph.tape)
    alone = LayerGraph({root: []}, root=root, term=root).build()
    with pytest.raises(StateError, match="input_shape"):
        print(alone.tape)
