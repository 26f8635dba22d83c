"""Losses with class weights, smoothed labels and samples left out: PyTorch's numbers, in every way to use a loss."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from training.fakes import blobs

from tapeprop import LayerGraph, LayerNode
from tapeprop.errors import LabelError, ShapeError
from tapeprop.layers import Conv2D, Dense
from tapeprop.losses import NLL, BinaryCrossEntropy, CrossEntropy
from tapeprop.optimizers import SGD

Z = np.cos(np.arange(12.0)).reshape(4, 3)
LOGS = Z - np.log(np.exp(Z).sum(1, keepdims=True))
IDS, LEFT_OUT = np.array([0, 2, 1, 1]), np.array([0, 2, -100, 1])
WEIGHTS = [0.5, 2.0, 1.0]
SOFT = np.array([[0.2, 0.5, 0.3], [0, 0.25, 0.75], [1, 0, 0], [0.1, 0.8, 0.1]])
MAPS, MAP_IDS = np.cos(np.arange(24.0)).reshape(2, 3, 2, 2), np.array([[[0, 1], [2, -1]], [[1, 1], [-1, 0]]])

# (loss, labels, predictions, value, the gradient's first elements, its sum of magnitudes): torch 2.13 in float64, by
# CrossEntropyLoss, NLLLoss and BCEWithLogitsLoss with the arguments of these names
CASES = [
    (CrossEntropy(label_smoothing=0.1), IDS, Z, 0.9231948544323835,
     [-0.09993751329103978, 0.07590272744510389, 0.024034785845935887], 0.9935416784556041),
    (CrossEntropy(class_weights=WEIGHTS), IDS, Z, 1.0295273690641595,
     [-0.04240151998462053, 0.030631294828522625, 0.011770225156097897], 1.2385978175351533),
    (CrossEntropy(ignore_index=-100), LEFT_OUT, Z, 0.8633132714018567,
     [-0.1554722399436086, 0.11231474770458295, 0.043157492239025624], 1.0887518383268746),
    (CrossEntropy(0.2, WEIGHTS, -100), LEFT_OUT, Z, 1.1007954126807875,
     [-0.027256358826530384, 0.022875624944392655, 0.004380733882137721], 0.9407520283342727),
    (CrossEntropy(1.0, WEIGHTS, 1), IDS, Z, 1.965216264721069,
     [0.30389810679824664, -0.1823766998004175, -0.12152140699782908], 1.1321701826162869),
    (CrossEntropy(label_smoothing=0.1), SOFT, Z, 1.0594565347051794,
     [0.08006248670896021, -0.036597272554896115, -0.04346521415406412], 0.7198383643631794),
    (CrossEntropy(0.1, WEIGHTS), SOFT, Z, 1.4287701445744767,
     [0.1569749122582241, -0.12570168966168477, -0.031273222596539384], 1.0825670962981329),
    (CrossEntropy(0.1, WEIGHTS, -1), MAP_IDS, MAPS, 1.6195791610614525,
     [-0.011405699634936279, 0.1172381426341134, 0.020547812892721503], 1.4018052659654388),
    (NLL(WEIGHTS), IDS, LOGS, 1.0295273690641595, [-1 / 11, 0, 0], 1.0),
    (NLL(WEIGHTS, -100), LEFT_OUT, LOGS, 1.0639870594806158, [-1 / 7, 0, 0], 1.0),
    (NLL(ignore_index=-100), LEFT_OUT, LOGS, 0.8633132714018567, [-1 / 3, 0, 0], 1.0),
    (BinaryCrossEntropy(2.5), SOFT, Z, 1.028968779205775,
     [0.03753134601825053, -0.012017100564966706, -0.014476103317366087], 0.452884158040322),
    (BinaryCrossEntropy(WEIGHTS), SOFT, Z, 0.7871471939676944,
     [0.046496060063917044, -0.004347990960447652, 0.008119928746644078], 0.3494073112640188),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]!r}-{i}" for i, case in enumerate(CASES)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_is_what_pytorch_gives(case, dtype) -> None:
    loss, y, z, value, first, size = case
    tolerance = 1e-12 if dtype == "float64" else 2e-6
    assert loss(y, z.astype(dtype)) == pytest.approx(value, rel=tolerance)
    gradient = loss.grad(y, z.astype(dtype))
    assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient.reshape(-1)[:3], first, rtol=tolerance, atol=tolerance)
    assert np.abs(gradient).sum() == pytest.approx(size, rel=tolerance)


def test_all_settings_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    settings = itertools.product([(6, 4), (5, 12), (2, 3, 4, 5)], [0.0, 0.1], [False, True], [None, -100, 1])
    for shape, smoothing, weighted, ignored in settings:
        random = np.random.default_rng(0)
        z, w = random.standard_normal(shape), random.uniform(0.2, 2, shape[1]) if weighted else None
        y = random.integers(0, shape[1], (shape[0], *shape[2:]))
        if weighted:
            w[2] = 0
        if ignored is not None:
            y.flat[::3] = ignored
        their = torch.tensor(z, requires_grad=True)
        options = {"weight": w if w is None else torch.tensor(w), "ignore_index": -1000 if ignored is None else ignored}
        value = functional.cross_entropy(their, torch.tensor(y), label_smoothing=smoothing, **options)
        value.backward()
        loss = CrossEntropy(smoothing, w, ignored)
        assert loss(y, z) == pytest.approx(value.item(), rel=1e-12)
        np.testing.assert_allclose(loss.grad(y, z), their.grad.numpy(), rtol=1e-11, atol=1e-15)


def test_where_nothing_counts_the_loss_is_nan_and_the_gradient_is_zero() -> None:
    """As in PyTorch: there is nothing to take a mean of, and nothing to learn from."""
    y = np.full(4, -100)
    for loss in (CrossEntropy(ignore_index=-100), CrossEntropy(0.1, WEIGHTS, -100), NLL(ignore_index=-100)):
        assert np.isnan(loss(y, LOGS))
        np.testing.assert_array_equal(loss.grad(y, LOGS), np.zeros((4, 3)))


def test_a_sample_left_out_may_hold_anything() -> None:
    z = Z.copy()
    z[2] = [np.nan, np.inf, -np.inf]
    loss = CrossEntropy(0.2, WEIGHTS, -100)
    assert loss(LEFT_OUT, z) == loss(LEFT_OUT, Z)
    np.testing.assert_array_equal(loss.grad(LEFT_OUT, z), loss.grad(LEFT_OUT, Z))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_large_logits(dtype) -> None:
    z = np.array([[1000.0, 0.0, -1000.0]], dtype)
    assert CrossEntropy(class_weights=WEIGHTS)([2], z) == 2000.0
    np.testing.assert_array_equal(CrossEntropy(class_weights=WEIGHTS).grad([2], z), [[1.0, 0.0, -1.0]])
    # (1 - 0.3) 2000 + 0.1 (0 + 1000 + 2000)
    assert CrossEntropy(label_smoothing=0.3)([2], z) == pytest.approx(1700.0, rel=1e-6)
    assert BinaryCrossEntropy(3.0)([[0.0], [1.0]], np.array([[1000.0], [-1000.0]], dtype)) == 2000.0


# ---- in a network


def network(dtype: str = "float64") -> LayerGraph:
    node = LayerNode(Dense(4, 3, random_state=0), name="net")
    graph = LayerGraph({node: []}, root=node, term=node, seed=0).build((None, 4), dtype=dtype)
    graph.set_optimizer(SGD(0.5))
    return graph


X, Y = blobs(24)
SETTINGS = [
    (CrossEntropy(0.1, WEIGHTS, -100), np.where(np.arange(24) % 5 == 0, -100, Y)),
    (CrossEntropy(0.1, WEIGHTS), np.eye(3)[Y]),
    (NLL(WEIGHTS, 7), np.where(np.arange(24) % 5 == 0, 7, Y)),
]


@pytest.mark.parametrize(("loss", "y"), SETTINGS, ids=["ids", "one-hot", "nll"])
def test_a_training_step_is_its_parts(loss, y) -> None:
    whole, parts, fitted = network(), network(), network()
    values = []
    for _ in range(2):
        values.append(whole.train_step(X, y, loss))
        out = parts.forward(X, True)
        assert values[-1] == loss(y, out)
        parts.zero_grad()
        parts.backward(loss.grad(y, out))
        parts.update()
    history = fitted.fit(X, y, loss=loss, epochs=2, batch_size=24, shuffle=False, metrics=(), verbose=0)
    assert history.loss == pytest.approx(values, rel=1e-12)
    for a, b, c in zip(*(list(graph.state_dict().values()) for graph in (whole, parts, fitted)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    found = whole.evaluate(X, y, loss=loss, batch_size=7)
    assert found["loss"] == loss(y, whole.predict(X))


def test_accuracy_counts_what_the_loss_counts() -> None:
    loss, y = SETTINGS[0]
    graph = network()
    history = graph.fit(X, y, loss=loss, epochs=3, batch_size=24, metrics=("accuracy", "top5_accuracy"), verbose=0)
    counted = y != -100
    expected = np.mean(graph.predict(X).argmax(1)[counted] == y[counted])
    assert graph.evaluate(X, y, loss=loss)["accuracy"] == expected == history.accuracy[-1]
    assert history.top5_accuracy[-1] == 1
    assert np.isnan(graph.evaluate(X, np.full(24, -100), loss=loss)["accuracy"])


def test_maps_of_labels_in_a_network() -> None:
    node = LayerNode(Conv2D(2, 3, 1, random_state=0), name="net")
    graph = LayerGraph({node: []}, root=node, term=node, seed=0).build((None, 2, 2, 2), dtype="float64")
    graph.set_optimizer(SGD(0.1))
    x, loss = np.cos(np.arange(16.0)).reshape(2, 2, 2, 2), CrossEntropy(0.1, WEIGHTS, -1)
    expected = loss(MAP_IDS, graph(x))
    assert graph.train_step(x, MAP_IDS, loss) == expected
    assert loss(MAP_IDS, graph(x)) < expected


def test_losses_of_other_settings_are_other_programs() -> None:
    graph, y = network(), np.zeros(24, int)
    graph.set_optimizer(SGD(0.0))
    plain, smooth = CrossEntropy(), CrossEntropy(0.5)
    first = graph.train_step(X, y, plain)
    assert graph.train_step(X, y, smooth) != first
    assert graph.train_step(X, y, plain) == first
    assert CrossEntropy(class_weights=WEIGHTS).key() == CrossEntropy(class_weights=np.array(WEIGHTS)).key()


# ---- what is refused


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: CrossEntropy(1.5), ValueError, "label_smoothing: expected a number from 0 to 1, received 1.5"),
        (lambda: CrossEntropy(-0.1), ValueError, "label_smoothing: expected a number from 0 to 1"),
        (lambda: CrossEntropy(np.nan), ValueError, "label_smoothing: expected a number from 0 to 1"),
        (lambda: CrossEntropy("0.1"), TypeError, "label_smoothing: expected a real number, received '0.1'"),
        (lambda: CrossEntropy(class_weights=2.0), TypeError, "class_weights: expected a list of real numbers"),
        (lambda: CrossEntropy(class_weights=[[1.0]]), TypeError, "class_weights: expected a list of real numbers"),
        (lambda: CrossEntropy(class_weights=[]), TypeError, "class_weights: expected a list of real numbers"),
        (lambda: NLL([1.0, -1.0]), ValueError, "NLL: class_weights: expected finite numbers >= 0"),
        (lambda: NLL([1.0, np.nan]), ValueError, "class_weights: expected finite numbers >= 0"),
        (lambda: NLL([0, 0]), ValueError, "class_weights: expected finite numbers >= 0, not all of them 0"),
        (lambda: NLL(ignore_index=1.0), TypeError, "ignore_index: expected an integer or None, received 1.0"),
        (lambda: CrossEntropy(ignore_index=True), TypeError, "ignore_index: expected an integer or None"),
        (lambda: BinaryCrossEntropy(-1), ValueError, "pos_weight: expected a finite number >= 0, received -1"),
        (lambda: BinaryCrossEntropy("many"), TypeError, "pos_weight: expected a list of real numbers"),
    ],
)
def test_arguments_are_checked(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()


def test_weights_of_another_number_of_classes() -> None:
    text = r"CrossEntropy: expected class_weights for each of 3 classes, received 2; predictions are of shape \(24, 3\)"
    loss, graph = CrossEntropy(class_weights=[1, 2]), network()
    for call in (
        lambda: loss(Y, np.zeros((24, 3))),
        lambda: graph.train_step(X, Y, loss),
        lambda: graph.fit(X, Y, loss=loss, verbose=0),
        lambda: graph.evaluate(X, Y, loss=loss),
    ):
        with pytest.raises(ShapeError, match=text):
            call()
    with pytest.raises(ShapeError, match=r"expected pos_weight as one number, or one for each place along axis 1"):
        BinaryCrossEntropy([1.0, 2.0])(np.zeros((4, 3)), Z)


@pytest.mark.parametrize("loss", [CrossEntropy(ignore_index=-100), NLL(ignore_index=-100)], ids=["CrossEntropy", "NLL"])
def test_labels_that_are_refused(loss) -> None:
    with pytest.raises(LabelError, match=r"ignore_index=-100 is a class id, received one-hot labels of shape \(4, 3\)"):
        loss(SOFT, Z)
    for bad in (3, -1, -99):
        with pytest.raises(
            LabelError, match=f"expected class ids from 0 to 2, or -100, received values from {min(bad, 0)}"
        ):
            loss([0, 1, 2, bad], Z)
