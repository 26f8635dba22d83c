"""Rules 13 to 15: padding, pooling, NaN and infinity, large numbers, dtypes; and torch's word on a whole network."""

from __future__ import annotations

import numpy as np
import pytest
from rules.networks import assert_same_bits, batches, chain, images, labels, merged, perceptron, rows, vision

from tapeprop import MergeMode, ops
from tapeprop.errors import DTypeError, NumericsError
from tapeprop.layers import (
    Activation,
    AvgPool2D,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Identity,
    Lambda,
    MaxPool2D,
    Pool2D,
    Sequential,
)
from tapeprop.losses import MSE, BinaryCrossEntropy, CrossEntropy
from tapeprop.optimizers import Adam

INF, NAN = np.inf, np.nan


def run(layer, x, is_train=False):
    """(y, dX for ones) in float64."""
    graph = chain(layer).build(dtype="float64")
    return graph.forward(np.asarray(x, float), is_train), graph.backward()


# ---- 13


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_same_pads_the_smaller_half_on_each_side(size):
    layer = Conv2D(1, 1, size, bias=False)
    layer.weight.assign(np.arange(1.0, size * size + 1).reshape(1, 1, size, size))
    x = images(0, (1, 1, 6, 6))
    y, _ = run(layer, x)
    side = (size - 1) // 2
    padded = np.pad(x[0, 0], side)
    n = 6 + 2 * side - size + 1
    expected = [
        [(padded[i : i + size, j : j + size] * layer.weight.value[0, 0]).sum() for j in range(n)] for i in range(n)
    ]
    np.testing.assert_allclose(y[0, 0], expected, rtol=1e-12, atol=1e-12)  # and no filter is flipped


def test_a_maximum_pads_with_minus_infinity_and_the_first_of_a_tie_takes_it():
    x = -np.ones((1, 1, 2, 2))
    y, dx = run(MaxPool2D(3, 1, padding=1), x)
    np.testing.assert_array_equal(y, x)  # not 0, which padding with zeros would give
    np.testing.assert_array_equal(dx, [[[[4, 0], [0, 0]]]])
    y, dx = run(MaxPool2D(2, 2), [[[[1, 3, 2, 2], [3, 0, 2, 2]]]])
    np.testing.assert_array_equal(y, [[[[3, 2]]]])
    np.testing.assert_array_equal(dx, [[[[0, 1, 1, 0], [0, 0, 0, 0]]]])


def test_a_mean_counts_its_padding():
    y, dx = run(AvgPool2D(3, 1, padding=1), np.ones((1, 1, 2, 2)))
    np.testing.assert_allclose(y, np.full((1, 1, 2, 2), 4 / 9), rtol=1e-15)
    np.testing.assert_allclose(dx, np.full((1, 1, 2, 2), 4 / 9), rtol=1e-15)
    y, _ = run(Pool2D(2, 2, mode="avg"), np.arange(25.0).reshape(1, 1, 5, 5))  # the odd row and column fall away
    np.testing.assert_array_equal(y, [[[[3, 5], [13, 15]]]])


def test_kinks_have_derivative_zero():
    zero = np.zeros((1, 4))
    for layer in (Activation.ReLU(), Activation.ReLU6(), Lambda(lambda x: ops.abs(x))):
        np.testing.assert_array_equal(run(layer, zero)[1], zero)


# ---- 14


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Lambda(lambda x: (x + 1) - x), [NAN, NAN, NAN]),
        (Sequential(Lambda(lambda x: x + 1), Lambda(lambda x: x * 0)), [NAN, NAN, NAN]),
        (Lambda(lambda x: x - x), [NAN, NAN, NAN]),
        (Lambda(lambda x: x * 0 + 1), [NAN, NAN, NAN]),
        (Activation.ReLU(), [INF, 0, NAN]),
        (Activation.ReLU6(), [6, 0, NAN]),
        (Activation.LeakyReLU(), [INF, -INF, NAN]),
        (Activation.Sigmoid(), [1, 0, NAN]),
        (Activation.Tanh(), [1, -1, NAN]),
        (Activation.Softplus(), [INF, 0, NAN]),
        (Activation.ELU(), [INF, -1, NAN]),
        (Lambda(lambda x: ops.exp(x)), [INF, 0, NAN]),
        (Lambda(lambda x: ops.sqrt(x)), [INF, NAN, NAN]),
        (Lambda(lambda x: ops.log(x)), [INF, NAN, NAN]),
        (Lambda(lambda x: ops.maximum(x, 0)), [INF, 0, NAN]),
        (Lambda(lambda x: ops.minimum(x, 0)), [0, -INF, NAN]),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_infinity_and_nan_go_through(layer, expected, dtype):
    graph = chain(layer).build(dtype=dtype)
    x = np.array([[INF, -INF, NAN]])
    np.testing.assert_array_equal(graph.forward(x), [expected])
    np.testing.assert_array_equal(graph.predict(x), [expected])


@pytest.mark.parametrize("mode", [m for m in MergeMode if m is not MergeMode.DOT])
def test_merges_hand_on_nan(mode):
    graph = merged(mode, 2, dtype="float64")
    clean, spoiled = np.ones((1, 3)), np.array([[1.0, NAN, 2.0]])
    for x in ([clean, spoiled], [spoiled, clean]):
        assert np.isnan(graph.forward(x)).sum() == 1


@pytest.mark.parametrize(
    "layer",
    [
        Conv2D(2, 2, 3, random_state=0), MaxPool2D(3, 1, padding=1), AvgPool2D(3, 1, padding=1), GlobalAvgPool2D(),
        BatchNorm2D(2), Dropout(0.0), Sequential(Flatten(), Dense(72, 3, random_state=0)), Activation.Softmax(),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
@pytest.mark.parametrize("is_train", [False, True])
def test_layers_hand_on_nan(layer, is_train):
    """One NaN in sample 1: it is seen there, and the others stay clean wherever samples do not meet."""
    graph = chain(layer).build(dtype="float64")
    x = images()
    x[1, 1, 2, 3] = NAN
    y = graph.forward(x, is_train)
    assert np.isnan(y[1]).any()
    if not (is_train and isinstance(layer, BatchNorm2D)):
        assert np.isfinite(np.delete(y, 1, axis=0)).all()


def test_debug_nan_names_the_node():
    graph = chain(Identity(), Lambda(lambda x: ops.log(x)), Activation.Tanh(), names=["in", "bad", "out"])
    graph.build(dtype="float64", debug_nan=True)
    np.testing.assert_allclose(graph.forward(np.ones((1, 2))), 0)
    with pytest.raises(NumericsError, match=r"node 'bad'.*NaN"):
        graph.forward(-np.ones((1, 2)))
    np.testing.assert_allclose(graph.forward(np.ones((1, 2))), 0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_thousand_is_not_too_much(dtype):
    x = np.array([[1000.0, 0.0, -1000.0]])

    def both(layer):
        graph = chain(layer).build(dtype=dtype)
        y = graph.forward(x)
        dx = graph.backward(np.array([[1.0, 2.0, 3.0]]))
        assert np.isfinite(dx).all()
        return y, dx

    np.testing.assert_array_equal(both(Activation.Softmax())[0], [[1, 0, 0]])
    np.testing.assert_array_equal(both(Activation.Softmax())[1], [[0, 0, 0]])
    y, dx = both(Lambda(lambda x: ops.log_softmax(x)))
    np.testing.assert_array_equal(y, [[0, -1000, -2000]])
    np.testing.assert_array_equal(dx, [[-5, 2, 3]])
    y, dx = both(Activation.Sigmoid())
    np.testing.assert_array_equal(y, [[1, 0.5, 0]])
    np.testing.assert_array_equal(dx, [[0, 0.5, 0]])
    y, dx = both(Activation.Softplus())
    np.testing.assert_allclose(y, [[1000, np.log(2), 0]], rtol=1e-6)
    np.testing.assert_array_equal(dx, [[1, 1, 0]])
    for layer in (Activation.Tanh(), Activation.Swish(), Activation.Mish(), Activation.GELU(), Activation.ELU()):
        assert np.isfinite(both(layer)[0]).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_losses_at_a_thousand(dtype):
    z = np.array([[1000.0, 0.0, -1000.0]], dtype)
    assert CrossEntropy()([0], z) == 0
    assert CrossEntropy()([2], z) == 2000
    np.testing.assert_array_equal(CrossEntropy().grad([2], z), [[1, 0, -1]])
    assert BinaryCrossEntropy()([[0.0, 0.5, 1.0]], z) == pytest.approx((2000 + np.log(2)) / 3, rel=1e-6)
    np.testing.assert_allclose(BinaryCrossEntropy().grad([[0.0, 0.5, 1.0]], z), [[1 / 3, 0, -1 / 3]], rtol=1e-6)


def test_a_step_with_nan_data_says_nan():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(Adam(0.1))
    x = rows()
    x[0, 0] = NAN
    assert np.isnan(graph.train_step(x, labels(5), CrossEntropy()))
    assert np.isnan(graph.state_dict()["first.weight"]).any()


# ---- 15


def test_float32_is_float64_rounded():
    wide, narrow = (vision(dtype=dtype) for dtype in ("float64", "float32"))
    narrow.load_state_dict(wide.state_dict())
    wide.load_state_dict(narrow.state_dict())
    x = images(dtype="float32")
    for is_train in (False, True):
        wide._random.assign([0, 0])
        narrow._random.assign([0, 0])
        y, expected = narrow.forward(x, is_train), wide.forward(x, is_train)
        np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(narrow.backward(), wide.backward(), rtol=2e-3, atol=2e-4)


def test_one_dtype_for_shared_layers():
    layer = Dense(4, 3)
    chain(layer).build(dtype="float64")
    other = chain(layer, names=["late"])
    with pytest.raises(DTypeError, match=r"float64.*float32"):
        other.build(dtype="float32")
    assert not other.built_
    other.build(dtype="float64")


def test_training_follows_torch():
    """Convolution, batch norm, ReLU, pooling, a head, cross-entropy, Adam: five steps in float64."""
    torch = pytest.importorskip("torch")
    # without a bias before the norm: its gradient is 0 but for rounding, which Adam would magnify
    layers = [Conv2D(2, 4, 3, bias=False), BatchNorm2D(4), Activation.ReLU(), MaxPool2D(), Flatten(), Dense(36, 3)]
    graph = chain(*layers, names=["conv", "norm", "relu", "pool", "flat", "head"], seed=0).build(dtype="float64")
    graph.set_optimizer(Adam(0.01))
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1, bias=False), torch.nn.BatchNorm2d(4, momentum=0.1), torch.nn.ReLU(),
        torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(36, 3),
    ).double()  # fmt: skip
    start = graph.state_dict()
    for name, module in (("conv", net[0]), ("norm", net[1]), ("head", net[5])):
        module.weight.data = torch.tensor(start[f"{name}.weight"])
        if module.bias is not None:
            module.bias.data = torch.tensor(start[f"{name}.bias"])
    peer = torch.optim.Adam(net.parameters(), lr=0.01)
    for i in range(5):
        x = batches(i)
        y = labels(len(x), i)
        peer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y))
        loss.backward()
        peer.step()
        assert graph.train_step(x, y, CrossEntropy()) == pytest.approx(loss.item(), rel=1e-9)
    found = graph.state_dict()
    for name, module in (("conv", net[0]), ("norm", net[1]), ("head", net[5])):
        for part, twin in module.named_parameters():
            np.testing.assert_allclose(found[f"{name}.{part}"], twin.detach(), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found["norm.running_mean"], net[1].running_mean, rtol=1e-9, atol=1e-12)


def test_a_loss_in_the_tape_is_the_loss_outside():
    for loss, y in ((MSE(), images(3, (5, 3))), (CrossEntropy(), labels(5)), (CrossEntropy(), np.eye(3)[labels(5)])):
        for dtype in ("float64", "float32"):
            graph = perceptron(dtype=dtype)
            graph.set_optimizer(Adam(0.0))
            kept = graph.state_dict()
            assert graph.train_step(rows(), y, loss) == loss(y, graph.forward(rows(), True))
            assert_same_bits(graph.state_dict(), kept)
