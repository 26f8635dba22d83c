"""Metrics against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tapeprop.errors import ShapeError
from tapeprop.losses import MSE, BinaryCrossEntropy, CrossEntropy, Hinge
from tapeprop.training import metrics

LOGITS = np.array([[0.2, 1.0, -1.0], [0.5, 0.1, 2.0], [3.0, 3.0, 0.0]])


def test_accuracy_takes_ids_and_one_hot_and_the_first_of_equals() -> None:
    assert metrics.accuracy(np.array([1, 0, 0]), LOGITS) == pytest.approx(2 / 3)
    assert metrics.accuracy(np.array([[1], [0], [1]]), LOGITS) == pytest.approx(1 / 3)
    assert metrics.accuracy(np.eye(3)[[1, 2, 0]], LOGITS) == 1.0


def test_accuracy_of_maps() -> None:
    logits = np.zeros((2, 3, 2, 2))
    logits[:, 2] = 1
    labels = np.full((2, 2, 2), 2)
    labels[0, 0, 0] = 0
    assert metrics.accuracy(labels, logits) == 7 / 8


def test_sign_accuracy() -> None:
    z = np.array([[1.0], [-1.0], [0.0], [2.0]])
    assert metrics.sign_accuracy(np.array([1, 0, 0, 0]), z) == 0.75
    assert metrics.sign_accuracy(np.array([1, -1, -1, -1]), z, 0.0) == 0.75


def test_top5() -> None:
    scores = np.arange(8.0)[None].repeat(3, axis=0)
    assert metrics.top5_accuracy(np.array([7, 3, 2]), scores) == pytest.approx(2 / 3)


def test_errors_of_regression() -> None:
    y, z = np.array([1.0, 2.0, 3.0]), np.array([[2.0], [2.0], [1.0]])
    assert metrics.mae(y, z) == 1.0
    assert metrics.mse(y, z) == pytest.approx(5 / 3)
    assert metrics.rmse(y, z) == pytest.approx((5 / 3) ** 0.5)
    assert metrics.r2(y, z) == pytest.approx(1 - 5 / 2)


def test_r2_is_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    y, z = random.standard_normal(30), random.standard_normal(30)
    assert metrics.r2(y, z) == pytest.approx(sklearn.r2_score(y, z), rel=1e-12)
    assert metrics.r2(np.ones(4), np.ones(4)) == sklearn.r2_score(np.ones(4), np.ones(4)) == 1.0
    assert metrics.r2(np.ones(4), np.zeros(4)) == sklearn.r2_score(np.ones(4), np.zeros(4)) == 0.0


def test_integers_do_not_overflow() -> None:
    assert metrics.mse(np.array([255], np.uint8), np.array([0], np.uint8)) == 255.0**2


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: metrics.accuracy(np.array([1, 0]), LOGITS), r"expected labels of shape \(3,\) or \(3, 3\)"),
        (lambda: metrics.accuracy(np.array([1]), np.zeros(1)), r"expected predictions of shape \(N, C\)"),
        (lambda: metrics.top5_accuracy(np.array([1]), np.zeros(1)), r"expected predictions of shape \(N, C\)"),
        (lambda: metrics.mae(np.zeros(3), np.zeros((3, 2))), r"mae: expected labels of shape \(3, 2\)"),
        (lambda: metrics.sign_accuracy(np.zeros(3), np.zeros((3, 2))), r"expected labels of shape \(3, 2\)"),
    ],
)
def test_shapes_are_checked(call, text) -> None:
    with pytest.raises(ShapeError, match=text):
        call()


def test_accuracy_means_what_the_loss_says() -> None:
    z, y = np.array([[1.0], [-1.0]]), np.array([[1.0], [1.0]])
    assert metrics.resolve(["accuracy"], CrossEntropy())["accuracy"] is metrics.accuracy
    assert metrics.resolve(["accuracy"], BinaryCrossEntropy())["accuracy"](y, z) == 0.5
    assert metrics.resolve(["accuracy"], Hinge())["accuracy"](np.array([[0.2], [-1]]), z) == 1.0
    assert metrics.resolve(["accuracy"], MSE()) == {}


def test_functions_are_named_by_their_names() -> None:
    class Score:
        def __call__(self, y_true, y_pred):
            return 1.0

    def recall(y_true, y_pred):
        return 0.5

    assert list(metrics.resolve(["mae", recall, Score()], MSE())) == ["mae", "recall", "Score"]
    with pytest.raises(ValueError, match="the name 'loss' occurs twice"):
        metrics.listed([type("loss", (), {"__call__": lambda *_: 0.0})()])
