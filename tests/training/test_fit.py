"""The fit loop: what it feeds, what it reports, what it refuses, what comes between native calls."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from training.fakes import PlainCrossEntropy, PlainGraph, PlainMSE, blobs

from tapeprop.callbacks import Callback
from tapeprop.errors import DTypeError, GraphError, LabelError, NotBuiltError, ShapeError, StateError
from tapeprop.optimizers import SGD
from tapeprop.schedules import ExponentialLR, LinearWarmup, OneCycleLR, ReduceLROnPlateau, StepLR
from tapeprop.training import fit as fit_module
from tapeprop.training.fit import fit

QUIET = {"verbose": 0}


def test_learns_and_reports_every_epoch() -> None:
    graph, (X, y) = PlainGraph(), blobs()
    history = fit(graph, X, y, loss=PlainCrossEntropy(), optimizer=SGD(0.5), epochs=5, batch_size=16, seed=0, **QUIET)
    assert graph.optimizer.lr == 0.5
    assert list(history.history) == ["loss", "accuracy"]
    assert history.epochs == [0, 1, 2, 3, 4]
    assert history.loss[-1] < history.loss[0]
    assert history.accuracy[-1] > 0.8
    assert len(history.seconds) == 5


def test_every_sample_once_per_epoch_the_last_batch_smaller() -> None:
    graph, (X, y) = PlainGraph(), blobs(50)
    fit(graph, X, y, loss=PlainCrossEntropy(), epochs=3, batch_size=16, seed=1, **QUIET)
    assert [len(rows) for rows in graph.batches] == [16, 16, 16, 2] * 3
    for epoch in range(3):
        rows = np.concatenate(graph.batches[4 * epoch : 4 * epoch + 4])
        np.testing.assert_array_equal(np.sort(rows), np.arange(50))


def test_order_comes_from_the_seed_and_differs_between_epochs() -> None:
    def orders(seed, graph_seed=None):
        graph, (X, y) = PlainGraph(seed=graph_seed), blobs(40)
        fit(graph, X, y, loss=PlainCrossEntropy(), epochs=2, batch_size=40, seed=seed, **QUIET)
        return graph.batches

    first, again = orders(3), orders(3)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()
    assert (orders(4)[0] != first[0]).any()
    np.testing.assert_array_equal(orders(None, graph_seed=3), first)  # the graph's seed stands in
    assert (orders(None)[0] != orders(None)[0]).any()


def test_without_shuffling_the_order_is_that_of_the_data() -> None:
    graph, (X, y) = PlainGraph(), blobs(10)
    fit(graph, X, y, loss=PlainCrossEntropy(), epochs=2, batch_size=4, shuffle=False, **QUIET)
    assert [rows.tolist() for rows in graph.batches[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_batch_size_above_the_data_is_the_data() -> None:
    graph, (X, y) = PlainGraph(), blobs(10)
    fit(graph, X, y, loss=PlainCrossEntropy(), batch_size=1000, **QUIET)
    assert [len(rows) for rows in graph.batches] == [10]


def test_fitting_arrays_are_not_copied(monkeypatch) -> None:
    graph, (X, y) = PlainGraph(), blobs()
    seen = {}

    def remember(arrays, labels, *rest, **options):
        seen.update(X=arrays[0], y=labels[0])
        return PlainGraph.fit_session(graph, arrays, labels, *rest, **options)

    monkeypatch.setattr(graph, "fit_session", remember)
    y = y.astype(np.int64)
    fit(graph, X, y, loss=PlainCrossEntropy(), **QUIET)
    assert seen["X"] is X
    assert seen["y"] is y
    fit(graph, X.astype(np.int32), y, loss=PlainCrossEntropy(), **QUIET)
    assert seen["X"].dtype == np.float64


def test_validation_split_takes_the_end() -> None:
    graph, (X, y) = PlainGraph(), blobs(50)
    history = fit(graph, X, y, loss=PlainCrossEntropy(), validation_split=0.2, epochs=2, seed=0, **QUIET)
    assert max(rows.max() for rows in graph.batches) == 39
    assert list(history.history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    z = X[40:] @ graph.weights[0]
    assert history.val_loss[-1] == PlainCrossEntropy()(y[40:], z)
    assert history.val_accuracy[-1] == np.mean(z.argmax(1) == y[40:])


@pytest.mark.parametrize(("samples", "part", "held"), [(2, 0.9, 1), (2, 0.01, 1), (10, 0.25, 2), (10, 0.99, 9)])
def test_validation_split_leaves_something_on_both_sides(samples, part, held) -> None:
    graph, (X, y) = PlainGraph(), blobs(samples)
    fit(graph, X, y, loss=PlainCrossEntropy(), validation_split=part, batch_size=samples, **QUIET)
    assert [len(rows) for rows in graph.batches] == [samples - held]


def test_validation_data() -> None:
    graph, (X, y), (X_val, y_val) = PlainGraph(), blobs(50), blobs(300, seed=9)
    history = fit(
        graph, X, y, loss=PlainCrossEntropy(), validation_data=(X_val, y_val), metrics=["top5_accuracy"], **QUIET
    )
    assert list(history.history) == ["loss", "top5_accuracy", "val_loss", "val_top5_accuracy"]
    assert history.val_top5_accuracy == [1.0]


def test_accuracy_is_left_out_where_it_means_nothing() -> None:
    graph, (X, y) = PlainGraph(classes=1), blobs()
    history = fit(graph, X, y.astype(float), loss=PlainMSE(), optimizer=SGD(0.001), validation_split=0.2, **QUIET)
    assert list(history.history) == ["loss", "val_loss"]


def test_metrics_that_the_tape_does_not_count_are_measured_after_the_epoch() -> None:
    graph, (X, y) = PlainGraph(), blobs(60)

    def worst(y_true, y_pred):
        assert y_true is y or (y_true == y).all()
        return y_pred.min()

    history = fit(graph, X, y, loss=PlainCrossEntropy(), metrics=["accuracy", worst], epochs=2, **QUIET)
    assert list(history.history) == ["loss", "accuracy", "worst"]
    assert history.worst[-1] == (X @ graph.weights[0]).min()


def test_epoch_schedule() -> None:
    graph, (X, y) = PlainGraph(), blobs(20)
    history = fit(
        graph,
        X,
        y,
        loss=PlainCrossEntropy(),
        optimizer=SGD(1.0),
        schedule=StepLR(2, 0.5),
        epochs=5,
        batch_size=10,
        **QUIET,
    )
    assert graph.lrs == [1.0] * 4 + [0.5] * 4 + [0.25] * 2
    assert history.lr == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_batch_schedule_runs_step_by_step() -> None:
    graph, (X, y) = PlainGraph(), blobs(50)
    schedule = LinearWarmup(4, 0.25, then=ExponentialLR(0.5, by="batch"))
    fit(graph, X, y, loss=PlainCrossEntropy(), optimizer=SGD(1.0), schedule=schedule, epochs=2, batch_size=20, **QUIET)
    assert graph.lrs == pytest.approx([0.25, 0.4375, 0.625, 0.8125, 1.0, 0.5])
    assert graph.calls == [1] * 6


def test_one_cycle_gets_the_number_of_steps() -> None:
    graph, (X, y) = PlainGraph(), blobs(50)
    schedule = OneCycleLR(1.0)
    fit(graph, X, y, loss=PlainCrossEntropy(), optimizer=SGD(1.0), schedule=schedule, epochs=3, batch_size=20, **QUIET)
    assert schedule.total_steps == 9
    assert graph.lrs[-1] == pytest.approx(1 / 25 / 1e4)


def test_plateau_schedule_sees_the_epochs_figures() -> None:
    graph, (X, y) = PlainGraph(), blobs(20)
    schedule = ReduceLROnPlateau(
        patience=0, factor=0.5, threshold=10.0, threshold_mode="abs"
    )  # nothing is better by 10
    fit(graph, X, y, loss=PlainCrossEntropy(), optimizer=SGD(1.0), schedule=schedule, epochs=4, batch_size=20, **QUIET)
    assert graph.lrs == [1.0, 1.0, 0.5, 0.25]


def test_calls_grow_to_a_tenth_of_a_second(monkeypatch) -> None:
    graph, (X, y) = PlainGraph(), blobs(600)
    graph.step_seconds = 2**-9  # a tenth of a second holds 51.2 of them
    monkeypatch.setattr(fit_module, "time", SimpleNamespace(perf_counter=lambda: graph.now))
    fit(graph, X, y, loss=PlainCrossEntropy(), batch_size=1, **QUIET)
    assert graph.calls == [1, 4, 16, *[51] * 11, 18]
    assert sum(graph.calls) == 600


def test_long_steps_are_called_one_by_one(monkeypatch) -> None:
    monkeypatch.setattr(fit_module, "CALL_SECONDS", 1e-9)
    graph, (X, y) = PlainGraph(), blobs(10)
    fit(graph, X, y, loss=PlainCrossEntropy(), batch_size=1, **QUIET)
    assert graph.calls == [1] * 10


class Log(Callback):
    """Writes down what happens."""

    def __init__(self, fail=None):
        self.events, self.fail = [], fail

    def _note(self, name, *args):
        self.events.append((name, *args))
        if name == self.fail:
            raise RuntimeError(f"failed in {name}")

    def on_train_begin(self):
        self._note("train_begin", self.run.epochs, self.run.batches, self.run.samples)

    def on_epoch_begin(self, epoch):
        self._note("epoch_begin", epoch)

    def on_batch_end(self, done, logs):
        self._note("batch_end", done)

    def on_epoch_end(self, epoch, logs):
        self._note("epoch_end", epoch, sorted(logs))

    def on_train_end(self):
        self._note("train_end")


def test_callbacks_are_called_in_order() -> None:
    graph, (X, y), log = PlainGraph(), blobs(20), Log()
    fit(graph, X, y, loss=PlainCrossEntropy(), epochs=2, batch_size=10, callbacks=[log], **QUIET)
    names = ["accuracy", "loss"]
    assert log.events == [
        ("train_begin", 2, 2, 20),
        ("epoch_begin", 0), ("batch_end", 1), ("batch_end", 2), ("epoch_end", 0, names),
        ("epoch_begin", 1), ("batch_end", 1), ("batch_end", 2), ("epoch_end", 1, names),
        ("train_end",),
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["train_begin", "epoch_begin", "batch_end", "epoch_end", "train_end"])
def test_an_error_in_a_callback_comes_out_and_training_is_ended_properly(where) -> None:
    graph, (X, y), log, other = PlainGraph(), blobs(20), Log(where), Log()
    with pytest.raises(RuntimeError, match=f"failed in {where}"):
        fit(graph, X, y, loss=PlainCrossEntropy(), callbacks=[other, log], **QUIET)
    assert log.events[-1] == other.events[-1] == ("train_end",)
    assert graph.sessions_closed == 1


def test_an_interrupt_between_calls_ends_training_properly() -> None:
    class Interrupt(Callback):
        def on_batch_end(self, done, logs):
            raise KeyboardInterrupt

    graph, (X, y), log = PlainGraph(), blobs(20), Log()
    with pytest.raises(KeyboardInterrupt):
        fit(graph, X, y, loss=PlainCrossEntropy(), callbacks=[log, Interrupt()], **QUIET)
    assert log.events[-1] == ("train_end",)
    assert graph.sessions_closed == 1


def test_a_callback_can_stop() -> None:
    class Stop(Callback):
        def on_epoch_end(self, epoch, logs):
            if epoch == 1:
                self.run.stop("enough")

    graph, (X, y) = PlainGraph(), blobs(20)
    history = fit(graph, X, y, loss=PlainCrossEntropy(), epochs=10, callbacks=[Stop()], **QUIET)
    assert history.epochs == [0, 1]
    assert history.stopped == "enough"


def test_several_outputs() -> None:
    graph, (X, y) = PlainGraph(outputs=("a", "b"), lr=0.1), blobs()
    one_hot = np.eye(3)[y]
    history = fit(
        graph, X, [y, one_hot], loss=[PlainCrossEntropy(), PlainMSE()], loss_weights={"a": 2.0, "b": 0.5},
        validation_split=0.2, epochs=2, **QUIET,
    )  # fmt: skip
    assert list(history.history) == [
        "loss", "a_loss", "a_accuracy", "b_loss", "val_loss", "val_a_loss", "val_a_accuracy", "val_b_loss",
    ]  # fmt: skip
    assert history.val_loss[-1] == pytest.approx(2 * history.val_a_loss[-1] + 0.5 * history.val_b_loss[-1])


def test_an_output_without_loss_is_left_alone() -> None:
    graph, (X, y) = PlainGraph(outputs=("a", "b"), lr=0.1), blobs()
    before = graph.weights[1].copy()
    history = fit(graph, X, {"a": y, "b": None}, loss={"a": PlainCrossEntropy(), "b": None}, **QUIET)
    np.testing.assert_array_equal(graph.weights[1], before)
    assert "b_loss" not in history.history


def test_a_class_of_losses_will_do() -> None:
    graph, (X, y) = PlainGraph(), blobs()
    assert fit(graph, X, y, loss=PlainCrossEntropy, **QUIET).loss[0] > 0


class Ended(PlainGraph):
    """A graph whose epochs end early."""

    def fit_session(self, *args, **options):
        session = super().fit_session(*args, **options)
        session.run = lambda steps: 0
        return session


def test_an_epoch_that_ends_early_is_an_error() -> None:
    X, y = blobs()
    with pytest.raises(StateError, match="ended after 0 of 3 batches"):
        fit(Ended(), X, y, loss=PlainCrossEntropy(), **QUIET)


X, Y = blobs()
REFUSED = [
    ({"epochs": 0}, ValueError, "epochs: expected at least 1, received 0"),
    ({"epochs": 1.5}, TypeError, "epochs: expected an integer, received 1.5"),
    ({"epochs": True}, TypeError, "epochs: expected an integer, received True"),
    ({"batch_size": 0}, ValueError, "batch_size: expected at least 1"),
    ({"accumulate": 0}, ValueError, "accumulate: expected at least 1"),
    ({"validation_split": 1.0}, ValueError, r"validation_split: expected a number in \[0, 1\)"),
    ({"validation_split": -0.1}, ValueError, "validation_split: expected"),
    ({"validation_split": 0.1, "validation_data": (X, Y)}, ValueError, "received both"),
    ({"validation_data": X}, TypeError, r"validation_data: expected a pair \(X, y\)"),
    ({"validation_data": (X, Y[:-1])}, LabelError, "validation y of node 'out': expected 90 labels"),
    ({"seed": -1}, ValueError, "seed: expected at least 0"),
    ({"seed": 0.5}, TypeError, "seed: expected an integer"),
    ({"schedule": 0.1}, TypeError, "schedule: expected a tapeprop.schedules.Schedule"),
    ({"metrics": "accuracy"}, TypeError, "expected a list of names or functions"),
    ({"metrics": ["acuracy"]}, ValueError, "there is no 'acuracy'; there are accuracy"),
    ({"metrics": ["mae", "mae"]}, ValueError, "the name 'mae' occurs twice"),
    ({"metrics": [3]}, TypeError, "expected a name or a function"),
    ({"callbacks": [print]}, TypeError, "callbacks: expected tapeprop.callbacks.Callback objects"),
    ({"verbose": 3}, ValueError, "verbose: expected 0, 1 or 2"),
    ({"loss": "cross_entropy"}, TypeError, r"expected a tapeprop.losses.Loss such as CrossEntropy\(\)"),
    ({"loss": None}, ValueError, "a loss for at least one output"),
    ({"loss_weights": float("nan")}, ValueError, "loss_weights: expected finite numbers"),
    ({"y": Y[:-1]}, LabelError, r"y of node 'out': expected 90 labels, one per sample, received shape \(89,\)"),
    ({"y": Y + 0.5}, LabelError, "y of node 'out': PlainCrossEntropy: expected class ids"),
    ({"y": Y + 1}, LabelError, "class ids from 0 to 2, received values from 1 to 3"),
    ({"y": Y.astype(complex)}, LabelError, "received dtype complex128"),
    ({"y": 3}, LabelError, "one per sample, received shape"),
    ({"X": X[:0], "y": Y[:0]}, ShapeError, "at least one sample"),
    ({"X": X.astype(complex)}, DTypeError, "X of node 'in': expected real numbers, received dtype complex128"),
    ({"X": X.astype(object)}, DTypeError, "received dtype object"),
    ({"X": [[1.0, 2.0], [3.0]]}, DTypeError, "rows of unequal length"),
    ({"X": {"other": X}}, GraphError, "X: expected the keys in, received other"),
]


@pytest.mark.parametrize(
    ("change", "error", "text"), REFUSED, ids=[f"{i}-{next(iter(c[0]))}" for i, c in enumerate(REFUSED)]
)
def test_what_is_wrong_is_refused_before_the_graph_is_touched(change, error, text) -> None:
    graph = PlainGraph()
    call = {"X": X, "y": Y, "loss": PlainCrossEntropy(), "optimizer": SGD(0.1), "verbose": 0} | change
    with pytest.raises(error, match=text):
        fit(graph, call.pop("X"), call.pop("y"), **call)
    assert graph.optimizer is None
    assert graph.batches == []


def test_lists_are_counted() -> None:
    graph = PlainGraph(outputs=("a", "b"))
    with pytest.raises(GraphError, match=r"y: expected a list of 2 \(a, b\), received 1 entries"):
        fit(graph, X, [Y], loss=PlainCrossEntropy(), **QUIET)
    with pytest.raises(GraphError, match=r"y: expected a list of 2 \(a, b\), received ndarray"):
        fit(graph, X, Y, loss=PlainCrossEntropy(), **QUIET)


def test_a_graph_that_is_not_built_is_refused() -> None:
    graph = PlainGraph()
    graph.built_ = False
    with pytest.raises(NotBuiltError, match=r"call build\(\) first"):
        fit(graph, X, Y, loss=PlainCrossEntropy())


def test_seconds_and_compile_seconds_are_wall_times() -> None:
    class Slow(PlainGraph):
        def fit_session(self, *args, **options):
            time.sleep(0.02)
            return super().fit_session(*args, **options)

    history = fit(Slow(), X, Y, loss=PlainCrossEntropy(), epochs=2, **QUIET)
    assert history.compile_seconds >= 0.02
    assert all(seconds > 0 for seconds in history.seconds)
