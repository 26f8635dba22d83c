"""train_step() keeps what it worked out for the step before; here is what must not be kept."""

import pickle

import numpy as np
import pytest

import tapeprop as tp
from tapeprop.errors import LabelError
from tapeprop.layers import Activation, Dense
from tapeprop.losses import MAE, MSE, CrossEntropy
from tapeprop.optimizers import SGD

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
IDS = np.array([0, 2, 1, 1, 0, 2])


def network(lr: float = 0.1) -> tp.LayerGraph:
    hidden = tp.SequentialNode(Dense(4, 5), Activation.Tanh(), name="hidden")
    head = tp.LayerNode(Dense(5, 3), name="head")
    graph = tp.LayerGraph({hidden: [head], head: []}, root=hidden, term=head, seed=0).build((None, 4), workers=1)
    graph.set_optimizer(SGD(lr))
    return graph


def test_another_loss_counts_at_once() -> None:
    graph = network(lr=0.0)
    expected = {kind: kind()(Y, graph(X)) for kind in (MSE, MAE)}
    for kind, loss in ((MSE, MSE()), (MAE, MAE()), (MSE, MSE), (MAE, MAE())):
        # float32 sums in another order
        assert graph.train_step(X, Y, loss) == pytest.approx(expected[kind], rel=1e-6)


def test_another_weight_of_the_loss_counts_at_once() -> None:
    graph, loss = network(lr=0.0), MSE()
    once = graph.train_step(X, Y, loss)
    assert graph.train_step(X, Y, loss, loss_weights=3) == pytest.approx(3 * once, rel=1e-6)
    assert graph.train_step(X, Y, loss) == once


def test_labels_are_checked_at_every_step() -> None:
    graph, loss = network(), CrossEntropy()
    graph.train_step(X, IDS, loss)
    before = graph.state_dict()
    for wrong in (np.where(IDS == 2, 3, IDS), np.where(IDS == 2, -1, IDS), IDS[:5], IDS.astype(float)):
        with pytest.raises(LabelError):
            graph.train_step(X, wrong, loss)
    for name, value in graph.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_renamed_node_bears_its_new_name_in_errors() -> None:
    graph, loss = network(), CrossEntropy()
    graph.train_step(X, IDS, loss)
    graph.nodes[1].name = "renamed"
    graph.build((None, 4), workers=1)
    with pytest.raises(LabelError, match="renamed"):
        graph.train_step(X, IDS + 3, loss)


def test_arrays_in_other_places_and_read_only_ones_are_read() -> None:
    one, other = network(), network()
    x, y = X.copy(), IDS.copy()
    x.setflags(write=False)
    y.setflags(write=False)
    for step in range(3):
        shifted, labels = np.roll(x, step, 0), np.roll(y, step)
        shifted.setflags(write=False)
        assert one.train_step(shifted, labels, CrossEntropy()) == other.train_step(
            np.roll(X, step, 0).astype(np.float64), np.roll(IDS, step).tolist(), CrossEntropy()
        )


def test_gradients_that_wait_are_dropped_first() -> None:
    """As zero_grad() would, also where no step has asked for it before."""
    one, other = network(), network()
    one.forward(X, True)
    one.backward(Y)
    for _ in range(2):
        assert one.train_step(X, IDS, CrossEntropy()) == other.train_step(X, IDS, CrossEntropy())


def test_a_graph_that_has_trained_can_be_pickled() -> None:
    graph = network()
    graph.train_step(X, IDS, CrossEntropy())
    copy = pickle.loads(pickle.dumps(graph)).build((None, 4), workers=1)
    np.testing.assert_array_equal(copy(X), graph(X))
