"""What a callback may do to the graph while fit() runs: it takes effect at the next call, or is a clear error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from rules.networks import assert_same_bits, images, labels, node_of, perceptron, rows

from tapeprop import LayerGraph, LayerNode
from tapeprop.callbacks import Callback
from tapeprop.errors import NotBuiltError, StateError
from tapeprop.layers import Activation, Identity
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam

LOSS = CrossEntropy()
X, Y = images(0, (16, 4)), labels(16)
EPOCHS = 3


class After(Callback):
    """Does something once, at the end of the first epoch."""

    def __init__(self, action: Callable[[LayerGraph], object]):
        self.action = action

    def on_epoch_end(self, epoch, logs):
        if epoch == 0:
            self.action(self.run.graph)


def fit(action: Callable[[LayerGraph], object], **options) -> LayerGraph:
    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.1))
    run(graph, action, **options)
    return graph


def run(graph: LayerGraph, action: Callable[[LayerGraph], object], **options) -> None:
    defaults = {"epochs": EPOCHS, "batch_size": 8, "shuffle": False, "verbose": 0}
    graph.fit(X, Y, loss=LOSS, callbacks=[After(action)], **(defaults | options))


def nothing(graph):
    pass


def insert(graph):
    graph.add_node(LayerNode(Identity(), name="more"), [graph.nodes[0]], [graph.nodes[1]])


STRUCTURE = {
    "a node": insert,
    "an edge": lambda g: g.connect(g.nodes[0], g.nodes[1]),
    "a layer": lambda g: setattr(node_of(g, "tanh"), "layer", Activation.ReLU()),
    "the terms": lambda g: setattr(g, "term", [g.term]),
    "a name": lambda g: setattr(g.nodes[0], "name", "other"),
}


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("edit", STRUCTURE)
def test_an_edit_of_the_structure_ends_the_run(edit, accumulate, validated):
    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.1))
    with pytest.raises(NotBuiltError, match=r"edited.*build\(\)"):
        run(graph, STRUCTURE[edit], accumulate=accumulate, validation_data=(X, Y) if validated else None)
    assert not graph.built_
    once = fit(nothing, epochs=1, accumulate=accumulate)
    for a, b in zip(graph.state_dict().values(), once.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a, b)  # the epoch before is whole, none of the next has run
    graph.build(dtype="float64").predict(X)


def test_a_build_ends_the_run():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.1))
    with pytest.raises(StateError, match="built anew"):
        run(graph, lambda g: (insert(g), g.build(dtype="float64")))
    run(graph, nothing)


HARMLESS = {
    "predict": lambda g: g.predict(images(1, (40, 4))),
    "evaluate": lambda g: g.evaluate(X, Y, loss=LOSS),
    "summary": lambda g: (g.summary(), g.out_shape((2, 4)), str(g.tape)),
    "forward and backward": lambda g: (g.forward(rows(), True), g.backward()),
    "state_dict": lambda g: g.load_state_dict(g.state_dict()),
    "zero_grad": lambda g: g.zero_grad(),
    "an edit taken back": lambda g: (g.connect(g.nodes[0], g.nodes[1]), g[g.nodes[0]].pop()),
}


@pytest.mark.parametrize("action", HARMLESS)
def test_looking_at_the_graph_changes_nothing(action):
    assert_same_bits(fit(HARMLESS[action]).state_dict(), fit(nothing).state_dict())


def test_a_step_in_between_counts_like_any_other():
    found = fit(lambda g: g.train_step(rows(), labels(5), LOSS))
    by_hand = fit(nothing, epochs=1)
    by_hand.train_step(rows(), labels(5), LOSS)
    run(by_hand, nothing, epochs=EPOCHS - 1)
    assert_same_bits(found.state_dict(), by_hand.state_dict())


def test_a_fit_inside_a_fit_is_its_epochs_in_between():
    def inner(graph):
        graph.fit(X[:10], Y[:10], loss=LOSS, batch_size=4, shuffle=False, verbose=0)

    by_hand = fit(nothing, epochs=1)
    inner(by_hand)
    run(by_hand, nothing, epochs=EPOCHS - 1)
    assert_same_bits(fit(inner).state_dict(), by_hand.state_dict())


def test_another_optimizer_takes_over_at_once():
    found = fit(lambda g: g.set_optimizer(Adam(0.05)))
    by_hand = fit(nothing, epochs=1)
    by_hand.set_optimizer(Adam(0.05))
    run(by_hand, nothing, epochs=EPOCHS - 1)
    assert_same_bits(found.state_dict(), by_hand.state_dict())


def test_a_learning_rate_holds_from_the_next_call():
    found = fit(lambda g: g.update_lr(0.0))
    assert_same_bits(found.state_dict(), fit(nothing, epochs=1).state_dict())


def test_a_weight_set_by_hand_is_trained_on():
    def reset(graph):
        for _, parameter in graph.named_parameters():
            parameter.value[...] = 0.5

    by_hand = perceptron(dtype="float64")
    by_hand.set_optimizer(SGD(0.1))
    reset(by_hand)
    run(by_hand, nothing, epochs=EPOCHS - 1)
    assert_same_bits(fit(reset).state_dict(), by_hand.state_dict())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_node_frozen_on_the_way_stands_still_from_there(accumulate):
    found = fit(lambda g: setattr(node_of(g, "first"), "frozen", True), accumulate=accumulate)
    once = fit(nothing, epochs=1, accumulate=accumulate)
    np.testing.assert_array_equal(found.state_dict()["first.weight"], once.state_dict()["first.weight"])
    assert (found.state_dict()["second.weight"] != once.state_dict()["second.weight"]).any()


def test_no_optimizer_any_more_is_an_error():
    with pytest.raises(StateError, match="set_optimizer"):
        fit(lambda g: g.set_optimizer(None))


def test_an_exception_in_a_callback_comes_out_and_leaves_whole_steps():
    class Stop(Exception):
        pass

    def stop(graph):
        raise Stop

    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.1))
    with pytest.raises(Stop):
        run(graph, stop)
    assert_same_bits(graph.state_dict(), fit(nothing, epochs=1).state_dict())
    run(graph, nothing)
