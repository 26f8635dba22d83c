"""Training on compiled graphs: the loop, the losses and the optimizers through the tape."""

from __future__ import annotations

import numpy as np
import pytest
from training.fakes import blobs
from training.stepper import Stepper

from tapeprop import LayerGraph, LayerNode
from tapeprop.callbacks import EarlyStopping
from tapeprop.errors import LabelError, StateError
from tapeprop.layers import Activation, Dense, Sequential
from tapeprop.losses import MSE, BinaryCrossEntropy, CrossEntropy, Hinge
from tapeprop.optimizers import SGD, AdaDelta, AdaGrad, Adam, AdaMax, AdamW, Lion, NAdam, RMSProp
from tapeprop.schedules import LinearWarmup, StepLR

X, Y = blobs(90)


def perceptron(dtype="float64", seed=0, classes=3) -> LayerGraph:
    node = LayerNode(Sequential(Dense(4, 16), Activation.ReLU(), Dense(16, classes)), name="net")
    graph = LayerGraph({node: []}, root=node, term=node, seed=seed)
    graph.build((None, 4), dtype=dtype)
    return graph


def weights(graph: LayerGraph) -> list[np.ndarray]:
    return list(graph.state_dict().values())


def test_learns() -> None:
    graph = perceptron("float32")
    history = graph.fit(X, Y, loss=CrossEntropy(), optimizer=Adam(0.02), epochs=20, batch_size=16, seed=0, verbose=0)
    assert history.accuracy[-1] > 0.9
    found = graph.evaluate(X, Y, loss=CrossEntropy())
    assert found["accuracy"] > 0.9
    assert np.mean(graph.predict(X).argmax(1) == Y) == found["accuracy"]


def test_fit_is_a_train_step_per_batch() -> None:
    """The same rows, the same bits, the last smaller batch included."""
    fitted, stepped = perceptron(), perceptron()
    fitted.fit(X, Y, loss=CrossEntropy(), optimizer=Adam(0.01), epochs=2, batch_size=32, shuffle=False, verbose=0)
    stepped.set_optimizer(Adam(0.01))
    for _ in range(2):
        for start in range(0, 90, 32):
            stepped.train_step(X[start : start + 32], Y[start : start + 32], CrossEntropy())
    for a, b in zip(weights(fitted), weights(stepped), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_epochs_loss_is_the_mean_over_samples() -> None:
    graph, losses = perceptron(), []
    graph.set_optimizer(SGD(0.1))
    for start in range(0, 90, 32):
        batch = X[start : start + 32], Y[start : start + 32]
        losses.append(graph.train_step(*batch, CrossEntropy()) * len(batch[0]))
    other = perceptron()
    history = other.fit(X, Y, loss=CrossEntropy(), optimizer=SGD(0.1), batch_size=32, shuffle=False, verbose=0)
    assert history.loss[0] == pytest.approx(sum(losses) / 90, rel=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1), SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01), RMSProp(), RMSProp(momentum=0.5), Adam(),
        AdamW(), NAdam(), AdaMax(), AdaGrad(), AdaDelta(), Lion(),
    ],
    ids=repr,
)  # fmt: skip
def test_optimizers_through_the_tape_are_their_expressions(optimizer) -> None:
    """Twenty steps of the compiled update against the NumPy evaluation of the same rule."""
    graph = perceptron()
    graph.set_optimizer(optimizer)
    steppers = {name: Stepper(optimizer, p.value) for name, p in graph.named_parameters()}
    for _ in range(20):
        graph.zero_grad()
        graph.backward(CrossEntropy().grad(Y, graph.forward(X, True)))
        for name, p in graph.named_parameters():
            steppers[name].step(p.grad)
        graph.update()
        for name, p in graph.named_parameters():
            np.testing.assert_allclose(p.value, steppers[name].weights, rtol=1e-11, atol=1e-12, err_msg=name)


def test_a_fit_can_be_repeated() -> None:
    def run(seed, workers=None):
        graph = perceptron()
        graph.build((None, 4), dtype="float64", workers=workers)
        graph.fit(X, Y, loss=CrossEntropy(), optimizer=Adam(0.01), epochs=3, seed=seed, verbose=0)
        return np.concatenate([w.ravel() for w in weights(graph)])

    np.testing.assert_array_equal(run(1), run(1, workers=1))
    assert (run(1) != run(2)).any()


def test_schedules_reach_the_tape() -> None:
    graph = perceptron()
    history = graph.fit(
        X, Y, loss=CrossEntropy(), optimizer=SGD(0.4), schedule=StepLR(1, 0.5), epochs=3, batch_size=45, verbose=0
    )
    assert history.lr == [0.4, 0.2, 0.1]
    assert graph.lr == 0.1
    by_hand, scheduled = perceptron(), perceptron()
    options = {"loss": CrossEntropy(), "batch_size": 45, "shuffle": False, "verbose": 0}
    scheduled.fit(X, Y, optimizer=SGD(0.4), schedule=LinearWarmup(2, 0.5), epochs=1, **options)
    by_hand.set_optimizer(SGD(0.2))
    by_hand.train_step(X[:45], Y[:45], CrossEntropy())
    by_hand.update_lr(0.4 * 0.75)
    by_hand.train_step(X[45:], Y[45:], CrossEntropy())
    for a, b in zip(weights(scheduled), weights(by_hand), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_accumulated_batches_are_one_update() -> None:
    """Two batches of 15 that are averaged are one of 30, but for rounding."""
    options = {"loss": CrossEntropy(), "shuffle": False, "verbose": 0, "epochs": 2}
    whole, parts = perceptron(), perceptron()
    whole.fit(X, Y, optimizer=Adam(0.01), batch_size=30, **options)
    parts.fit(X, Y, optimizer=Adam(0.01), batch_size=15, accumulate=2, **options)
    for a, b in zip(weights(whole), weights(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("loss", "labels"),
    [(MSE(), Y * 0.5), (BinaryCrossEntropy(), Y > 0), (Hinge(), np.where(Y > 0, 1, -1))],
    ids=["MSE", "BinaryCrossEntropy", "Hinge"],
)
def test_losses_with_one_output(loss, labels) -> None:
    graph = perceptron(classes=1)
    history = graph.fit(X, labels, loss=loss, optimizer=Adam(0.02), epochs=15, seed=0, verbose=0)
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert ("accuracy" in history.history) == (loss.accuracy is not None)
    found = graph.evaluate(X, labels, loss=loss)
    assert found["loss"] == pytest.approx(loss(labels, graph.predict(X)), rel=1e-12)


def test_validation_does_not_disturb_training() -> None:
    plain, watched = perceptron(), perceptron()
    options = {"loss": CrossEntropy(), "epochs": 3, "seed": 0, "verbose": 0}
    plain.fit(X[:70], Y[:70], optimizer=Adam(0.01), **options)
    history = watched.fit(X[:70], Y[:70], optimizer=Adam(0.01), validation_data=(X[70:], Y[70:]), **options)
    for a, b in zip(weights(plain), weights(watched), strict=True):
        np.testing.assert_array_equal(a, b)
    assert history.val_loss[-1] == watched.evaluate(X[70:], Y[70:], loss=CrossEntropy())["loss"]


def test_early_stopping_restores_a_compiled_graph() -> None:
    graph = perceptron()
    stopping = EarlyStopping(patience=2)
    history = graph.fit(
        X,
        Y,
        loss=CrossEntropy(),
        optimizer=SGD(30.0),
        epochs=20,
        validation_data=(X, Y),
        callbacks=[stopping],
        verbose=0,
    )
    best = history.best("val_loss")["val_loss"]
    assert graph.evaluate(X, Y, loss=CrossEntropy())["loss"] == pytest.approx(best, rel=1e-12)


def test_without_an_optimizer() -> None:
    with pytest.raises(StateError, match="optimizer"):
        perceptron().fit(X, Y, loss=CrossEntropy(), verbose=0)


def test_wrong_labels_leave_the_graph_as_it_was() -> None:
    graph = perceptron()
    before = weights(graph)
    with pytest.raises(LabelError, match="node 'net': CrossEntropy: expected class ids from 0 to 2"):
        graph.fit(X, Y + 1, loss=CrossEntropy(), optimizer=SGD(0.1), verbose=0)
    for a, b in zip(weights(graph), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_outputs() -> None:
    body, a, b = (
        LayerNode(layer, name=name) for name, layer in (("body", Dense(4, 8)), ("a", Dense(8, 3)), ("b", Dense(8, 1)))
    )
    graph = LayerGraph({body: [a, b], a: [], b: []}, root=body, term=[a, b], seed=0)
    graph.build((None, 4), dtype="float64")
    history = graph.fit(
        X, {"a": Y, "b": Y * 0.5}, loss=[CrossEntropy(), MSE()], loss_weights=[1.0, 0.1], optimizer=Adam(0.01),
        epochs=10, seed=0, validation_split=0.1, verbose=0,
    )  # fmt: skip
    assert history.loss[-1] < history.loss[0]
    assert [y.shape for y in graph.predict(X)] == [(90, 3), (90, 1)]
    assert {"val_a_loss", "val_a_accuracy", "val_b_loss"} <= set(history.history)
