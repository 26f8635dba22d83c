"""Rule 12: bad data is refused by one class of error that names the node, in every call, and leaves the graph as it was."""

from __future__ import annotations

import numpy as np
import pytest
from rules.networks import CLASSES, assert_same_bits, images, labels, perceptron, rows, state, two_heads, vision

from tapeprop import LayerGraph
from tapeprop.errors import DTypeError, GraphError, LabelError, ShapeError, StateError
from tapeprop.losses import MSE, BinaryCrossEntropy, CrossEntropy, Hinge
from tapeprop.optimizers import Adam

LOSS = CrossEntropy()
X, Y = images(), labels(6)
ONE_HOT = np.eye(CLASSES)[Y]


@pytest.fixture(scope="module")
def shared_graph() -> LayerGraph:
    graph = vision(dtype="float64")
    graph.set_optimizer(Adam(0.01))
    graph.train_step(X, Y, LOSS)
    return graph


@pytest.fixture
def graph(shared_graph):
    """A graph with a forward that waits for its backward; all must be the same afterwards, that backward included."""
    shared_graph.zero_grad()
    shared_graph._random.assign([1, 0])
    shared_graph.forward(X, True)
    before = state(shared_graph)
    yield shared_graph
    assert shared_graph.built_
    assert_same_bits(state(shared_graph), before)
    dx = shared_graph.backward()
    shared_graph.load_state_dict({name: value for name, value in before.items() if not name.startswith("d ")})
    shared_graph._random.assign([1, 0])
    shared_graph.forward(X, True)
    np.testing.assert_array_equal(shared_graph.backward(), dx)


CALLS = {
    "forward": lambda graph, x: graph.forward(x),
    "forward in training": lambda graph, x: graph.forward(x, True),
    "predict": lambda graph, x: graph.predict(x),
    "train_step": lambda graph, x: graph.train_step(x, Y, LOSS),
    "fit": lambda graph, x: graph.fit(x, Y, loss=LOSS, verbose=0),
    "evaluate": lambda graph, x: graph.evaluate(x, Y, loss=LOSS),
    "validation": lambda graph, x: graph.fit(X, Y, loss=LOSS, validation_data=(x, Y), verbose=0),
}
INPUTS = {
    "complex": (X * 1j, DTypeError),
    "objects": (X.astype(object), DTypeError),
    "strings": (np.full(X.shape, "1"), DTypeError),
    "bytes": (np.full(X.shape, b"1"), DTypeError),
    "dates": (np.zeros(X.shape, "M8[s]"), DTypeError),
    "None": (None, DTypeError),
    "ragged rows": ([[1.0, 2.0], [3.0]], DTypeError),
    "no sample": (X[:0], ShapeError),
    "an empty axis": (X[:, :, :0], ShapeError),
    "a scalar": (1.0, ShapeError),
    "one image without a batch": (X[0], ShapeError),
    "an axis too many": (X[None], ShapeError),
    "another number of channels": (np.concatenate([X, X], 1), ShapeError),
    "a smaller image": (X[:, :, :4, :4], ShapeError),
    "an image smaller than a window": (X[:, :, :1, :1], ShapeError),
}
NODES = {"a smaller image": "head", "an image smaller than a window": "pool"}


@pytest.mark.parametrize("call", CALLS)
def test_the_name_of_another_node(graph, call):
    with pytest.raises(GraphError, match=r"expected .*conv, (got|received) head"):
        CALLS[call](graph, {"head": X})


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("bad", INPUTS)
def test_inputs(graph, bad, call):
    x, error = INPUTS[bad]
    with pytest.raises(error, match=f"'{NODES.get(bad, 'conv')}'") as refusal:
        CALLS[call](graph, x)
    assert type(refusal.value) is error


LABELS = {
    "too high": Y + 1 + (2 - Y.max()),
    "negative": Y - 3,
    "too few": Y[:5],
    "too many": np.append(Y, 0),
    "none": Y[:0],
    "NaN in one-hot": np.where(ONE_HOT == 1, np.nan, ONE_HOT),
    "all NaN": np.full(6, np.nan),
    "floating ids": Y * 1.0,
    "of other classes": np.eye(CLASSES + 1)[Y],
    "two ones": np.ones((6, CLASSES), int),
    "below zero": ONE_HOT - 1,
    "complex": ONE_HOT * 1j,
    "objects": Y.astype(object),
    "strings": Y.astype(str),
    "None": None,
    "ragged": [[0], [1, 2]],
}
TRAINING = {
    "train_step": lambda graph, y: graph.train_step(X, y, LOSS),
    "fit": lambda graph, y: graph.fit(X, y, loss=LOSS, verbose=0),
    "fit, last row": lambda graph, y: graph.fit(X, y, loss=LOSS, batch_size=5, shuffle=False, verbose=0),
    "evaluate": lambda graph, y: graph.evaluate(X, y, loss=LOSS),
    "validation": lambda graph, y: graph.fit(X, Y, loss=LOSS, validation_data=(X, y), verbose=0),
}


@pytest.mark.parametrize("call", TRAINING)
@pytest.mark.parametrize("bad", LABELS)
def test_labels(graph, bad, call):
    with pytest.raises(LabelError, match="head") as refusal:
        TRAINING[call](graph, LABELS[bad])
    assert type(refusal.value) is LabelError


@pytest.mark.parametrize("bad", LABELS)
def test_labels_of_a_loss_by_itself(bad):
    for call in (LOSS, LOSS.grad):
        with pytest.raises(LabelError, match="CrossEntropy"):
            call(LABELS[bad], np.zeros((6, CLASSES)))


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (MSE(), np.zeros((6, 2))),
        (MSE(), np.full((6, CLASSES), np.nan)),
        (BinaryCrossEntropy(), np.full((6, CLASSES), 1.5)),
        (Hinge(), np.full((6, CLASSES), 0.5)),
    ],
)
def test_labels_of_other_losses(graph, loss, y):
    for call in (
        lambda: graph.train_step(X, y, loss),
        lambda: graph.fit(X, y, loss=loss, metrics=(), verbose=0),
        lambda: graph.evaluate(X, y, loss=loss, metrics=()),
    ):
        with pytest.raises(LabelError, match="head"):
            call()


def test_the_labels_of_each_output_are_told_apart():
    graph = two_heads(dtype="float64")
    graph.set_optimizer(Adam(0.1))
    x, y, bad = rows(), labels(5), labels(5) + 3
    before = state(graph)
    for given, name in (([y, bad], "'b'"), ([bad, y], "'a'"), ({"a": y, "b": bad}, "'b'")):
        for call in (
            lambda given=given: graph.train_step(x, given, LOSS),
            lambda given=given: graph.fit(x, given, loss=LOSS, verbose=0),
        ):
            with pytest.raises(LabelError, match=name):
                call()
    for wrong in ([y], {"a": y}, {"a": y, "c": y}, y):
        with pytest.raises(GraphError, match=r"a.*b"):
            graph.train_step(x, wrong, LOSS)
    assert_same_bits(state(graph), before)


# ---- what only the kernel sees


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("id_", [CLASSES, -1, 2**40, -(2**63)])
def test_a_label_that_nobody_checked_stops_the_tape(workers, id_, monkeypatch):
    """The status word: LabelError with the node's name, and neither weights nor moments nor step counts move."""
    monkeypatch.setattr("tapeprop.runtime.executable.worthwhile_workers", lambda tape, workers: workers)
    graph, plain = (perceptron(dtype="float64", workers=workers) for _ in range(2))
    x, y = rows(), labels(5)
    bad = y.copy()
    bad[3] = id_
    for g in (graph, plain):
        g.set_optimizer(Adam(0.01))
        g.train_step(x, y, LOSS)
    for _ in range(2):
        with pytest.raises(LabelError, match=r"node 'second'.*label"):
            graph.native_step(([x], [bad], [LOSS], [1.0]))
    assert_same_bits(graph.state_dict(), plain.state_dict())
    assert not any(p.grad.any() for _, p in graph.named_parameters())
    with pytest.raises(StateError, match=r"forward\(\)"):
        graph.backward()
    assert graph.train_step(x, y, LOSS) == plain.train_step(x, y, LOSS)
    assert_same_bits(state(graph), state(plain))


def test_labels_that_go_bad_during_a_fit_stop_it_at_their_step():
    graph, plain = (perceptron(dtype="float64") for _ in range(2))
    x, y = images(0, (12, 4)), labels(12)
    for g in (graph, plain):
        g.set_optimizer(Adam(0.01))
    mine = y.copy()
    session = graph.fit_session([x], [mine], [LOSS], [1.0], 4)
    session.start_epoch(np.arange(12))
    mine[9] = 77
    assert session.run(2) == 2
    with pytest.raises(LabelError, match="second"):
        session.run(2)
    for start in (0, 4):
        plain.train_step(x[start : start + 4], y[start : start + 4], LOSS)
    assert_same_bits(graph.state_dict(), plain.state_dict())


# ---- gradients of outputs


BAD_D_OUT = {
    "another width": (np.ones((6, 2)), ShapeError),
    "another length": (np.ones((5, 3)), ShapeError),
    "what would broadcast": (np.ones((1, 3)), ShapeError),
    "transposed": (np.ones((3, 6)), ShapeError),
    "a number": (1.0, ShapeError),
    "in a list": ([np.ones((6, 3))], ShapeError),
    "complex": (np.ones((6, 3)) * 1j, DTypeError),
    "objects": (np.ones((6, 3), object), DTypeError),
    "strings": (np.full((6, 3), "1"), DTypeError),
    "ragged": ([[1, 2, 3], [1, 2]], DTypeError),
    "nothing": (np.ones((0, 3)), ShapeError),
    "of another node": ({"conv": np.ones((6, 3))}, GraphError),
}


@pytest.mark.parametrize("bad", BAD_D_OUT)
def test_output_gradients(graph, bad):
    d_out, error = BAD_D_OUT[bad]
    with pytest.raises(error, match="head") as refusal:
        graph.backward(d_out)
    assert type(refusal.value) is error


def test_output_gradients_of_lists():
    graph = two_heads(dtype="float64")
    y = graph.forward(rows(), True)
    for wrong in (y[0], [y[0]], [*y, y[0]], {"c": y[0]}):
        with pytest.raises(GraphError, match=r"a.*b"):
            graph.backward(wrong)
    with pytest.raises(ShapeError, match="'b'"):
        graph.backward([None, y[1][:, :2]])
    graph.backward(tuple(y))
