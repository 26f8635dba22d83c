"""Losses: the values and gradients they give, and the labels they take and refuse."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from tapeprop import ops
from tapeprop.errors import DTypeError, LabelError, ShapeError
from tapeprop.losses import MAE, MSE, NLL, BinaryCrossEntropy, CrossEntropy, Hinge, Huber, KLDivergence, Loss

ONE_HOT = np.array([[0, 1, 0], [1, 0, 0]])
IDS = np.array([1, 0])
LOGITS = np.array([[0.2, 1.0, -1.0], [0.5, 0.1, 2.0]])


def log_softmax(z: np.ndarray) -> np.ndarray:
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


LOGS = log_softmax(LOGITS)
SOFT = np.array([[0.2, 0.5, 0.3], [0.0, 0.25, 0.75]])
DIVERGENCE = sum(p * (np.log(p) - q) for p, q in zip(SOFT.flat, LOGS.flat, strict=True) if p) / 2
TARGETS = np.array([[0.1, 1.5, -1.0], [2.0, 0.0, -3.0]])
BINARY = np.array([[1.0, 0.0, 1.0], [0.0, 0.25, 1.0]])
SIGNS = np.array([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
E = LOGITS - TARGETS
SIGMOID = 1 / (1 + np.exp(-LOGITS))

# (loss, labels, predictions, value, gradient), each written out
CASES = [
    (CrossEntropy(), ONE_HOT, LOGITS, 1.1385756338124233, (np.exp(LOGS) - ONE_HOT) / 2),
    (CrossEntropy(), IDS, LOGITS, 1.1385756338124233, (np.exp(LOGS) - ONE_HOT) / 2),
    (CrossEntropy(), SOFT, LOGITS, -(SOFT * LOGS).sum() / 2, (np.exp(LOGS) - SOFT) / 2),
    (NLL(), IDS, LOGS, 1.1385756338124233, -ONE_HOT / 2),
    (NLL(), SOFT, LOGS, -(SOFT * LOGS).sum() / 2, -SOFT / 2),
    (KLDivergence(), SOFT, np.exp(LOGS), DIVERGENCE, -SOFT / np.exp(LOGS) / 2),
    (KLDivergence(), IDS, np.exp(LOGS), 1.1385756338124233, -ONE_HOT / np.exp(LOGS) / 2),
    (KLDivergence(log_predictions=True), SOFT, LOGS, DIVERGENCE, -SOFT / 2),
    (
        BinaryCrossEntropy(),
        BINARY,
        LOGITS,
        -(BINARY * np.log(SIGMOID) + (1 - BINARY) * np.log(1 - SIGMOID)).mean(),
        (SIGMOID - BINARY) / 6,
    ),
    (MSE(), TARGETS, LOGITS, np.mean(E**2), 2 * E / 6),
    (MAE(), TARGETS, LOGITS, np.mean(np.abs(E)), np.sign(E) / 6),
    (Hinge(), SIGNS, LOGITS, np.maximum(0, 1 - SIGNS * LOGITS).mean(), -SIGNS * (SIGNS * LOGITS < 1) / 6),
    (
        Hinge(),
        (SIGNS > 0).astype(int),
        LOGITS,
        np.maximum(0, 1 - SIGNS * LOGITS).mean(),
        -SIGNS * (SIGNS * LOGITS < 1) / 6,
    ),
    (
        Huber(),
        TARGETS,
        LOGITS,
        np.where(np.abs(E) <= 1, E**2 / 2, np.abs(E) - 0.5).mean(),
        np.clip(E, -1, 1) / 6,
    ),
    (
        Huber(0.25),
        TARGETS,
        LOGITS,
        np.where(np.abs(E) <= 0.25, E**2 / 2, 0.25 * (np.abs(E) - 0.125)).mean(),
        np.clip(E, -0.25, 0.25) / 6,
    ),
]
NAMES = [f"{loss!r}-{i}" for i, (loss, *_) in enumerate(CASES)]


@pytest.mark.parametrize(("loss", "y", "z", "value", "gradient"), CASES, ids=NAMES)
def test_values_and_gradients(loss, y, z, value, gradient) -> None:
    found = loss(y, z)
    assert type(found) is float
    assert found == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(loss.grad(y, z), gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("loss", "y", "z", "value", "gradient"), CASES, ids=NAMES)
def test_float32_stays_float32(loss, y, z, value, gradient) -> None:
    found = loss.grad(y, z.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-6)
    assert loss(y, z.astype(np.float32)) == pytest.approx(value, rel=1e-5)


def test_cross_entropy_of_large_logits() -> None:
    logits = np.array([[1000.0, 0.0, -1000.0]])
    assert CrossEntropy()([2], logits) == 2000.0
    np.testing.assert_array_equal(CrossEntropy().grad([2], logits), [[1.0, 0.0, -1.0]])
    assert BinaryCrossEntropy()([[0.0], [1.0]], np.array([[1000.0], [-1000.0]])) == 1000.0


def test_nan_predictions_give_nan() -> None:
    z = LOGITS.copy()
    z[0, 0] = np.nan
    for loss, y in ((CrossEntropy(), IDS), (MSE(), TARGETS), (Hinge(), SIGNS), (Huber(), TARGETS)):
        assert np.isnan(loss(y, z)), loss


def test_derivatives_at_the_kinks() -> None:
    """|e| has 0 at 0, as torch; the hinge has 0 where the margin is exactly 1."""
    np.testing.assert_array_equal(MAE().grad([[1.0]], [[1.0]]), [[0.0]])
    np.testing.assert_array_equal(Hinge().grad([[1.0]], [[1.0]]), [[0.0]])


def test_maps_count_every_place() -> None:
    random = np.random.default_rng(0)
    z, y = random.standard_normal((2, 5, 3, 4)), random.integers(0, 5, (2, 3, 4))
    flat = np.moveaxis(z, 1, -1).reshape(-1, 5)
    assert CrossEntropy()(y, z) == pytest.approx(CrossEntropy()(y.ravel(), flat), rel=1e-14)
    gradient = np.moveaxis(CrossEntropy().grad(y, z), 1, -1).reshape(-1, 5)
    np.testing.assert_allclose(gradient, CrossEntropy().grad(y.ravel(), flat), rtol=1e-13)
    one_hot = np.moveaxis(np.eye(5)[y], -1, 1)
    assert CrossEntropy()(one_hot, z) == pytest.approx(CrossEntropy()(y, z), rel=1e-14)


def test_arguments_are_left_alone() -> None:
    y, z = IDS.copy(), LOGITS.copy()
    gradient = CrossEntropy().grad(y, z)
    gradient += 1
    np.testing.assert_array_equal(y, IDS)
    np.testing.assert_array_equal(z, LOGITS)


def test_other_shapes_and_settings_later() -> None:
    loss = Huber(1.0)
    assert loss([3.0], [0.0]) == 2.5
    assert loss([3.0, 0.0], [0.0, 0.0]) == 1.25
    loss.delta = 2.0
    assert loss([3.0], [0.0]) == 4.0


class Quartic(Loss):
    """A loss of the user's own."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def trace(self, y_pred, y_true):
        e = (y_pred - y_true) * self.scale
        return ops.mean(e * e * e * e)


def test_a_loss_of_the_users_own() -> None:
    assert Quartic(2.0)([[1.0], [0.0]], [[2.0], [0.0]]) == 8.0
    np.testing.assert_allclose(Quartic().grad([[1.0], [0.0]], [[3.0], [0.0]]), [[16.0], [0.0]])
    assert Quartic().key() != Quartic(2.0).key()


def test_a_loss_without_a_formula_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Loss has no trace\(\)"):
        Loss()([1.0], [1.0])


def test_keys() -> None:
    assert CrossEntropy().key() == CrossEntropy().key()
    assert CrossEntropy().key() != NLL().key()
    assert Huber(1).key() == Huber(1.0).key()
    assert Huber(1).key() != Huber(2).key()
    odd = Quartic([1])
    assert odd.key() == odd.key()
    assert odd.key() != Quartic([1]).key()


def test_copies_and_pickles() -> None:
    loss = Huber(2.0)
    loss([1.0], [0.0])
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert twin.key() == loss.key()
        assert twin([1.0], [0.0]) == 0.5
    assert repr(loss) == "Huber(delta=2.0)"


# ---- labels


@pytest.mark.parametrize("loss", [CrossEntropy(), NLL()], ids=["CrossEntropy", "NLL"])
def test_class_ids_become_int64_and_are_kept_where_they_are(loss) -> None:
    ids = np.array([0, 2, 1], dtype=np.int64)
    assert loss.labels(ids, (3, 4)) is ids
    for given in ([0, 2, 1], ids.astype(np.uint8), ids[:, None], ids.astype(np.int32)):
        found = loss.labels(given, (3, 4))
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(loss.labels([True, False], (2, 2)), [1, 0])


@pytest.mark.parametrize("loss", [CrossEntropy(), NLL(), KLDivergence()], ids=["CrossEntropy", "NLL", "KLDivergence"])
def test_one_hot_labels_take_the_predictions_dtype(loss) -> None:
    one_hot = np.eye(4, dtype=np.float32)
    assert loss.labels(one_hot, (4, 4), "float32") is one_hot
    for given in (np.eye(4), np.eye(4, dtype=int), np.eye(4, dtype=bool), np.eye(4).tolist()):
        found = loss.labels(given, (4, 4), "float32")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, one_hot)
    soft = np.full((4, 4), 0.25)
    assert loss.labels(soft, (4, 4), "float64") is soft


def test_kl_divergence_makes_distributions_of_ids() -> None:
    np.testing.assert_array_equal(KLDivergence().labels([2, 0], (2, 3), "float64"), [[0, 0, 1], [1, 0, 0]])


def test_a_single_class_takes_ids() -> None:
    """Of (N, 1) whole numbers for (N, 1) predictions both readings are possible; ids it is."""
    found = CrossEntropy().labels([[0], [0]], (2, 1))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, [0, 0])


def test_regression_targets() -> None:
    y = np.array([[1.0], [2.0]], dtype=np.float32)
    assert MSE().labels(y, (2, 1)) is y
    np.testing.assert_array_equal(MSE().labels([1, 2], (2, 1)), y)
    assert MSE().labels([1, 2], (2, 1), "float64").dtype == np.float64
    assert MSE().labels([np.inf, 1.0], (2,))[0] == np.inf  # an infinity propagates; only NaN is no label


def test_strided_labels_are_packed() -> None:
    wide = np.arange(12.0).reshape(2, 6)
    found = MSE().labels(wide[:, ::2], (2, 3), "float64")
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, wide[:, ::2])


def test_hinge_takes_two_codings() -> None:
    np.testing.assert_array_equal(Hinge().labels([1, -1], (2,)), [1, -1])
    np.testing.assert_array_equal(Hinge().labels([1, 0], (2,)), [1, -1])
    np.testing.assert_array_equal(Hinge().labels([True, False], (2, 1)), [[1], [-1]])
    given = np.array([0.0, 1.0])
    Hinge().labels(given, (2,), "float64")
    np.testing.assert_array_equal(given, [0, 1])


REFUSED = [
    (CrossEntropy(), [0, 3], (2, 3), "expected class ids from 0 to 2, received values from 0 to 3"),
    (CrossEntropy(), [0, -1], (2, 3), "expected class ids from 0 to 2, received values from -1 to 0"),
    (CrossEntropy(), np.array([2**63], np.uint64), (1, 3), "expected class ids from 0 to 2"),
    (CrossEntropy(), [0.0, 1.5], (2, 3), r"received float64 of shape \(2,\); class ids are integers"),
    (CrossEntropy(), [0.0, 1.0], (2, 3), r'convert them with y.astype\("int64"\)'),
    (
        CrossEntropy(),
        [0, 1, 2],
        (2, 3),
        r"ids of shape \(2,\) or one-hot labels of shape \(2, 3\), received shape \(3,\)",
    ),
    (CrossEntropy(), [[0, 1]], (2, 3), r"received shape \(1, 2\)"),
    (CrossEntropy(), np.eye(4), (4, 3), r"received shape \(4, 4\)"),
    (CrossEntropy(), 1, (1, 3), r"received shape \(\)"),
    (CrossEntropy(), np.eye(3) * 2, (3, 3), r"one-hot labels in \[0, 1\], received values from 0.0 to 2.0"),
    (CrossEntropy(), -np.eye(3), (3, 3), r"one-hot labels in \[0, 1\]"),
    (CrossEntropy(), np.ones((2, 3), int), (2, 3), "with a single 1 for each sample"),
    (CrossEntropy(), np.zeros((2, 3), int), (2, 3), "with a single 1 for each sample"),
    (CrossEntropy(), [[np.nan, 0, 1]], (1, 3), "labels without NaN, received 1 of them"),
    (CrossEntropy(), [[np.inf, 0, 1]], (1, 3), r"one-hot labels in \[0, 1\]"),
    (CrossEntropy(), [np.nan], (1, 3), "labels without NaN"),
    (CrossEntropy(), [1j], (1, 3), "received dtype complex128"),
    (CrossEntropy(), ["cat"], (1, 3), "received dtype <U3"),
    (CrossEntropy(), np.array([1], object), (1, 3), "received dtype object"),
    (CrossEntropy(), np.array(["2020-01-01"], "datetime64[D]"), (1, 3), "received dtype datetime64"),
    (CrossEntropy(), [[1], [1, 2]], (2, 3), "rows of unequal length"),
    (CrossEntropy(), np.zeros(0, int), (0, 3), "at least one label"),
    (CrossEntropy(), [0, 1], (2,), r"expected predictions of shape \(N, C\), received shape \(2,\)"),
    (NLL(), [7], (1, 3), "NLL: expected class ids"),
    (KLDivergence(), [[0.5, 1.5]], (1, 2), "KLDivergence: expected one-hot"),
    (BinaryCrossEntropy(), [2.0], (1,), r"expected labels in \[0, 1\], received values from 2.0 to 2.0"),
    (BinaryCrossEntropy(), [-1, 1], (2,), r"expected labels in \[0, 1\]"),
    (Hinge(), [-1, 0, 1], (3,), "labels -1 and 1, or 0 and 1, received values from -1.0 to 1.0"),
    (Hinge(), [2.0], (1,), "labels -1 and 1, or 0 and 1"),
    (MSE(), [np.nan], (1,), "labels without NaN"),
    (MSE(), [1.0, 2.0], (2, 3), r"labels of the prediction's shape \(2, 3\), received shape \(2,\)"),
    (MSE(), [[1.0, 2.0]], (2, 1), r"received shape \(1, 2\)"),
    (MSE(), [1e300], (1,), "labels that fit float32"),
    (Huber(), ["a"], (1,), "Huber: expected integer or floating labels"),
]


@pytest.mark.parametrize(
    ("loss", "y", "shape", "text"), REFUSED, ids=[f"{i}-{type(c[0]).__name__}" for i, c in enumerate(REFUSED)]
)
def test_labels_that_are_refused(loss, y, shape, text) -> None:
    with pytest.raises(LabelError, match=text) as caught:
        loss.labels(y, shape)
    assert str(caught.value).startswith(type(loss).__name__)


def test_predictions_that_are_refused() -> None:
    with pytest.raises(DTypeError, match="MSE: expected real predictions, received dtype complex128"):
        MSE()([1.0], [1j])
    with pytest.raises(ShapeError, match=r"MSE: expected at least one prediction, received shape \(0, 3\)"):
        MSE()(np.zeros((0, 3)), np.zeros((0, 3)))


def test_huber_checks_delta() -> None:
    for delta in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="delta must be finite and above 0"):
            Huber(delta)
