"""Rules 5 and 6: nothing of the caller's is written or kept, results are the caller's own, and calls leave nothing behind."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from rules.networks import chain, images, labels, merged, perceptron, rows, state, two_heads, vision

from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.layers import Activation, AvgPool2D, Dense, Flatten, Identity, MaxPool2D, Reshape, Sequential
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam

LOSS = CrossEntropy()

# What the first layer could overwrite, were its operand not the caller's.
FIRST = {
    "relu": lambda: Activation.ReLU(),
    "tanh": lambda: Activation.Tanh(),
    "identity then relu": lambda: Sequential(Identity(), Activation.ReLU()),
    "flatten then relu": lambda: Sequential(Flatten(), Activation.ReLU()),
    "reshape then softmax": lambda: Sequential(Reshape(72), Activation.Softmax()),
    "maximum of windows": lambda: MaxPool2D(),
    "mean of windows": lambda: AvgPool2D(),
    "nothing": lambda: Identity(),
}


@pytest.mark.parametrize("first", FIRST)
def test_inputs_and_output_gradients_are_not_written(first):
    graph = chain(FIRST[first](), Activation.Linear()).build(dtype="float64")
    x = images()
    kept = x.copy()
    for is_train in (False, True):
        y = graph.forward(x, is_train)
        d = images(1, y.shape)
        d_kept = d.copy()
        graph.backward(d)
        graph.predict(x)
        np.testing.assert_array_equal(x, kept)
        np.testing.assert_array_equal(d, d_kept)


@pytest.mark.parametrize("mode", [m for m in MergeMode if m is not MergeMode.DOT])
def test_merges_do_not_write_their_operands(mode):
    graph = merged(mode, 3, dtype="float64")
    x = [rows(i) for i in range(3)]
    kept = [a.copy() for a in x]
    y = graph.forward(x, True)
    d = images(7, y.shape)
    d_kept = d.copy()
    graph.backward(d)
    graph.predict(x)
    for a, b in zip([*x, d], [*kept, d_kept], strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_writes_neither_data_nor_labels():
    graph = vision(dtype="float64")
    graph.set_optimizer(Adam(0.1))
    x, ids = images(), labels(6)
    one_hot = np.eye(3)[ids]
    kept = x.copy(), ids.copy(), one_hot.copy()
    for y in (ids, one_hot):
        graph.train_step(x, y, LOSS)
        graph.fit(x, y, loss=LOSS, batch_size=4, verbose=0, validation_data=(x, y))
        graph.evaluate(x, y, loss=LOSS)
        LOSS.grad(y, graph.predict(x))
    for a, b in zip((x, ids, one_hot), kept, strict=True):
        np.testing.assert_array_equal(a, b)


def test_read_only_and_strided_arrays_are_taken_as_they_are():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.1))
    wide = images(0, (10, 8))
    x = wide[::2, ::2]
    x.setflags(write=False)
    y = graph.forward(x, True)
    np.testing.assert_array_equal(y, graph.forward(x.copy(), True))
    fortran = np.asfortranarray(x)
    np.testing.assert_array_equal(y, graph.forward(fortran, True))
    big_endian = x.astype(">f8")
    np.testing.assert_array_equal(y, graph.forward(big_endian, True))
    np.testing.assert_array_equal(y, graph.forward(x.tolist(), True))
    d = images(1, (3, 5)).T
    first = graph.backward(d)
    np.testing.assert_array_equal(first, graph.backward(np.ascontiguousarray(d)))
    graph.train_step(x, labels(5), LOSS)
    graph.train_step(fortran, labels(10)[::2], LOSS)


def test_dicts_and_lists_stay_the_callers():
    a, b = LayerNode(Identity(), name="a"), LayerNode(Activation.Tanh(), name="b")
    edges, following, terms = {}, [b], [b]
    edges[a] = following
    graph = LayerGraph(edges, root=[a], term=terms).build(dtype="float64")
    assert list(edges) == [a]
    assert edges[a] is following
    feed = {"a": rows()}
    graph.forward(feed, True)
    graph.backward({"b": np.ones((5, 4))})
    assert list(feed) == ["a"]
    following.append(a)  # the graph has a copy
    terms.append(a)
    edges.clear()
    assert graph.built_
    assert not graph.detect_cycle()
    assert len(graph) == 2


@pytest.mark.parametrize("is_train", [False, True])
def test_backward_belongs_to_the_input_as_it_was(is_train):
    graph = vision(dtype="float64")
    x = images()
    graph._random.assign([0, 0])
    graph.forward(x, is_train)
    expected = graph.backward()
    weights = {k: v for k, v in state(graph).items() if k.startswith("d ")}
    graph.zero_grad()
    graph._random.assign([0, 0])
    graph.forward(x, is_train)
    x[...] = np.nan
    np.testing.assert_array_equal(graph.backward(), expected)
    for name, gradient in weights.items():
        np.testing.assert_array_equal(state(graph)[name], gradient)


def test_identity_keeps_the_input_of_its_backward_too():
    """Aliases all the way: nothing but the copy that forward() takes stands between the caller and backward()."""
    root, term = LayerNode(Identity()), LayerNode(Identity(), MergeMode.HADAMARD)
    graph = LayerGraph({root: [term, term]}, root=root, term=term).build(dtype="float64")
    x = rows()
    y = graph.forward(x)
    kept = x.copy()
    x[...] = 0
    np.testing.assert_array_equal(graph.backward(), 2 * kept)
    np.testing.assert_array_equal(y, kept * kept)


def outputs_of(graph: LayerGraph, x) -> list[np.ndarray]:
    found = [graph.forward(x, True)]
    found.append(graph.backward())
    found.append(graph.predict(x))
    found.append(graph.predict(x, batch_size=2))
    return [a for item in found for a in (item if isinstance(item, list) else [item])]


@pytest.mark.parametrize("make", [perceptron, two_heads, lambda **o: chain(Identity(), Flatten()).build(**o)])
def test_results_are_arrays_of_their_own(make):
    graph = make(dtype="float64")
    x = rows()
    found = outputs_of(graph, x)
    kept = [a.copy() for a in found]
    other = outputs_of(graph, 3 * x)
    for a, b in zip(found, kept, strict=True):
        np.testing.assert_array_equal(a, b)  # later calls did not write them
        assert a.flags.owndata or a.base.flags.owndata
        assert a.flags.writeable
        assert not np.shares_memory(a, x)
    everything = [*found, *other]
    for i, a in enumerate(everything):
        assert not any(np.shares_memory(a, b) for b in everything[:i])
    for a in found:
        a[...] = np.nan  # writing them does the graph no harm
    for a, b in zip(outputs_of(graph, x), kept, strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_outputs_of_one_tensor_are_two_arrays():
    root, a, b = (LayerNode(Identity()) for _ in range(3))
    graph = LayerGraph({root: [a, b]}, root=root, term=[a, b]).build(dtype="float64")
    first, second = graph.forward(rows())
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(graph.backward([np.full((5, 4), 2.0), None]), np.full((5, 4), 2.0))
    np.testing.assert_array_equal(graph.backward([np.full((5, 4), 2.0), np.ones((5, 4))]), np.full((5, 4), 3.0))


@pytest.mark.parametrize("make", [perceptron, vision])
def test_forward_repeats_itself_without_backward(make):
    graph = make(dtype="float64")
    x = rows() if make is perceptron else images()
    expected = graph.forward(x)
    for _ in range(5):
        np.testing.assert_array_equal(graph.forward(x), expected)
    for _ in range(3):
        graph.forward(x, True)
    graph.load_state_dict(make(dtype="float64").state_dict())  # the running statistics of before
    np.testing.assert_array_equal(graph.forward(x), expected)


def growth(call, calls: int) -> tuple[int, int]:
    """(bytes held more after `calls` calls than before, the most held at a time beyond that before), by tracemalloc."""
    for _ in range(5):
        call()
    gc.collect()
    tracemalloc.start()
    try:
        call()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(calls):
            call()
        gc.collect()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before, peak - before


@pytest.mark.parametrize("is_train", [False, True])
def test_two_hundred_forwards_hold_no_more_than_one(is_train):
    graph = vision(dtype="float64")
    x = images()
    held, peak = growth(lambda: graph.forward(x, is_train), 200)
    assert held < x.nbytes  # one kept copy of the input per call would be 200 of these
    assert peak < 20 * x.nbytes


def test_backward_and_update_hold_no_more_after_a_hundred_rounds():
    graph = vision(dtype="float64")
    graph.set_optimizer(Adam(0.01))
    x = images()

    def round_trip():
        graph.backward(graph.forward(x, True))
        graph.update()

    held, _ = growth(round_trip, 100)
    assert held < x.nbytes


def test_a_step_allocates_no_arrays():
    """Peak memory of 200 steps on a large batch stays far below one activation of it: nothing is copied or made."""
    graph = chain(Dense(4, 64), Activation.Tanh(), Dense(64, 3)).build((None, 4), dtype="float64")
    graph.set_optimizer(Adam(0.01))
    x, y = images(0, (2048, 4)), labels(2048)
    held, peak = growth(lambda: graph.train_step(x, y, LOSS), 200)
    assert held < 20_000
    assert peak < 60_000 < x.nbytes
