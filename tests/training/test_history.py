"""What a history keeps, and how it answers."""

from __future__ import annotations

import math

import pytest

from tapeprop.training.history import History, direction


def filled() -> History:
    history = History()
    for epoch, (loss, accuracy) in enumerate([(1.0, 0.5), (0.25, 0.9), (0.5, 0.9)]):
        history.append(epoch, {"loss": loss, "val_accuracy": accuracy}, 0.5)
    return history


def test_lists_by_key_and_attribute() -> None:
    history = filled()
    assert history.history == {"loss": [1.0, 0.25, 0.5], "val_accuracy": [0.5, 0.9, 0.9]}
    assert history.loss is history["loss"] is history.history["loss"]
    assert history.epochs == [0, 1, 2]
    assert history.seconds == [0.5] * 3
    assert len(history) == 3


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(KeyError, match="no figure 'f1' was measured; there are loss, val_accuracy"):
        filled()["f1"]
    with pytest.raises(AttributeError, match="no figure 'f1'"):
        filled().f1  # noqa: B018
    assert not hasattr(History(), "loss")


def test_best() -> None:
    history = filled()
    assert history.best() == {"epoch": 1, "loss": 0.25, "val_accuracy": 0.9}
    assert history.best("val_accuracy")["epoch"] == 1  # the earlier of equals
    assert history.best("val_accuracy", "min")["epoch"] == 0
    history.append(3, {"loss": math.nan, "val_accuracy": 0.1})
    assert history.best()["epoch"] == 1


def test_best_takes_validation_first() -> None:
    history = History()
    history.append(0, {"loss": 1.0, "val_loss": 2.0})
    history.append(1, {"loss": 0.5, "val_loss": 3.0})
    assert history.best()["epoch"] == 0


def test_best_of_nothing() -> None:
    history = History()
    with pytest.raises(KeyError, match="none yet"):
        history.best()
    history.append(0, {"loss": math.nan})
    with pytest.raises(ValueError, match="no epoch has a value of 'loss'"):
        history.best()


def test_late_and_missing_figures_are_nan() -> None:
    history = History()
    history.append(0, {"loss": 1.0})
    history.append(1, {"loss": 0.5, "f1": 0.3})
    history.append(2, {"loss": 0.4})
    assert math.isnan(history.f1[0])
    assert history.f1[1] == 0.3
    assert math.isnan(history.f1[2])


def test_repr_is_a_table() -> None:
    assert repr(filled()).splitlines() == [
        "epoch    loss  val_accuracy  seconds",
        "    0  1.0000        0.5000     0.50",
        "    1  0.2500        0.9000     0.50",
        "    2  0.5000        0.9000     0.50",
    ]
    assert repr(History()) == "History(no epochs)"


def test_a_long_table_shows_both_ends() -> None:
    history = History()
    for epoch in range(30):
        history.append(epoch, {"loss": 1e-5 * epoch})
    lines = repr(history).splitlines()
    assert len(lines) == 12
    assert lines[6].split() == ["..."] * 3
    assert lines[1].split()[0] == "0"
    assert lines[-1].split()[:2] == ["29", "0.00029"]


def test_direction_goes_by_the_name() -> None:
    assert [direction(name) for name in ("val_accuracy", "f1", "r2", "loss", "mae")] == [
        "max",
        "max",
        "max",
        "min",
        "min",
    ]
    assert direction("loss", "max") == "max"
    with pytest.raises(ValueError, match="mode must be"):
        direction("loss", "up")
