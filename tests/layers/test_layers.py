"""Each layer's values where no op's own test knows them, its shapes, and what it refuses with which remedy."""

import numpy as np
import pytest
from traced import C, S, run

from tapeprop import ops
from tapeprop.errors import DTypeError, DuplicateNameError, GraphError, ShapeError
from tapeprop.layers import (
    Activation,
    AvgPool2D,
    BatchNorm1D,
    BatchNorm2D,
    BatchNorm3D,
    Conv2D,
    Dense,
    Dropout,
    Dropout1D,
    Dropout2D,
    Dropout3D,
    Flatten,
    GlobalAvgPool2D,
    Identity,
    Lambda,
    Layer,
    MaxPool2D,
    Pool2D,
    Reshape,
    Sequential,
)


def output(layer: Layer, x: np.ndarray, **options) -> np.ndarray:
    return run(layer, [x], **options).outputs[0]


# ---- refusals


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Conv2D(0, 6, 3), "in_channels to be an int >= 1, got 0"),
        (lambda: Conv2D(3, 6.0, 3), "out_channels to be an int >= 1, got 6.0"),
        (lambda: Conv2D(3, 6, 0), "filter_size"),
        (lambda: Conv2D(3, 6, (3, 3, 3)), "filter_size"),
        (lambda: Conv2D(3, 6, 3, stride=0), "stride"),
        (lambda: Conv2D(3, 6, 3, dilation=-1), "dilation"),
        (lambda: Conv2D(3, 6, 3, padding="full"), '"same", "valid"'),
        (lambda: Conv2D(3, 6, 3, padding=-1), "padding"),
        (lambda: Conv2D(3, 6, 3, padding=((1, 1), (1, 1), (1, 1))), "padding"),
        (lambda: Conv2D(3, 6, 3, groups=2), "multiples of groups=2"),
        (lambda: Conv2D(3, 6, 3, initializer="best"), "glorot"),
        (lambda: Conv2D(3, 6, 3, random_state=-1), "random_state"),
        (lambda: Dense(True, 3), "in_features"),
        (lambda: Dense("3", 3), "in_features"),
        (lambda: BatchNorm2D(6, momentum=1.5), "momentum to be a number from 0 to 1, got 1.5"),
        (lambda: BatchNorm2D(6, epsilon=-1e-5), "epsilon"),
        (lambda: BatchNorm2D(6, epsilon=float("nan")), "epsilon"),
        (lambda: Pool2D(mode="min"), '"max" or "avg"'),
        (lambda: MaxPool2D(0), "filter_size"),
        (lambda: MaxPool2D(2, padding=2), "half the window"),
        (lambda: AvgPool2D(2, stride=None), "stride"),
        (lambda: Dropout(1.5), "dropout_rate"),
        (lambda: Dropout("half"), "dropout_rate"),
        (lambda: Dropout(random_state=1.5), "random_state"),
        (lambda: Reshape(-1, -1), "at most one"),
        (lambda: Reshape(2, 0), "size"),
        (lambda: Activation.LeakyReLU(float("inf")), "alpha"),
        (lambda: Activation.Softmax(dim="last"), "dim"),
        (lambda: Lambda(3), "function"),
        (lambda: Sequential(Identity), r"write Identity\(...\)"),
        (lambda: Sequential(Identity(), abs), "Lambda"),
        (lambda: Sequential([Identity()]), "expected a layer, got list"),
        (lambda: Sequential(("a.b", Identity())), "dots"),
        (lambda: Sequential(("", Identity())), "name"),
    ],
)
def test_wrong_arguments(make, named: str) -> None:
    with pytest.raises(GraphError, match=named):
        make()


def test_sequential_names_differ() -> None:
    with pytest.raises(DuplicateNameError, match="'a'"):
        Sequential(("a", Identity()), ("a", Identity()))
    with pytest.raises(DuplicateNameError, match="'1'"):
        Sequential(("1", Identity()), Identity())


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            Conv2D(3, 6, 3),
            (2, 6, 8, 8),
            "Conv2D expects 3 channels on axis 1, got 6 in (2, 6, 8, 8): "
            "write Conv2D(6, 6, 3) or add Conv2D(6, 3, 1) before it",
        ),
        (Conv2D(3, 6, 3), (2, 3, 8), "Conv2D expects (N, 3, H, W), got (2, 3, 8)"),
        (Conv2D(3, 6, 5, padding="valid"), (2, 3, 4, 8), "at least its filter, 5 x 5, got (2, 3, 4, 8)"),
        (
            Dense(64, 10),
            (None, 16, 2, 2),
            "Dense expects (N, in_features=64), got (N, 16, 2, 2): put Flatten() before it",
        ),
        (Dense(64, 10), (2, 16, 2), "put Flatten() before it and write Dense(32, 10)"),
        (Dense(64, 10), (2, 32), "write Dense(32, 10)"),
        (Dense(64, 10), (64,), "add a batch axis"),
        (BatchNorm2D(6), (2, 3, 8, 8), "BatchNorm2D expects 6 channels on axis 1, got 3"),
        (BatchNorm2D(6), (2, 6), "BatchNorm2D expects (N, 6, H, W), got (2, 6)"),
        (BatchNorm1D(6), (2, 6, 8, 8), "BatchNorm1D expects (N, 6) or (N, 6, L)"),
        (MaxPool2D(), (2, 3), "MaxPool2D expects (N, C, H, W)"),
        (GlobalAvgPool2D(), (2, 3), "GlobalAvgPool2D expects (N, C, H, W)"),
        (MaxPool2D(9), (2, 3, 8, 8), "(9, 9)"),
        (Reshape(3, 5), (2, 16), "Reshape(3, 5) expects samples of 15 elements, got (2, 16) with 16"),
        (Reshape(3, -1), (2, 16), "a multiple of 3"),
        (Activation.Softmax(dim=2), (2, 16), "dim=2"),
        (Flatten(), (), "Flatten expects (N, ...)"),
        (Sequential(Identity(), ("d", Dense(3, 3))), (2, 4), "node 'd': Dense expects"),
    ],
)
def test_wrong_inputs_get_a_remedy(layer: Layer, shape: tuple, message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        layer.out_shape(shape)
    assert message in str(caught.value)


def test_one_value_per_channel_is_refused_in_training_only() -> None:
    for layer, shape in ((BatchNorm2D(3), (1, 3, 1, 1)), (BatchNorm1D(3), (1, 3))):
        with pytest.raises(ShapeError, match="more than one value per channel"):
            output(layer, np.ones(shape), training=True)
        assert output(layer, np.ones(shape)).shape == shape


# ---- shapes and values


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (Conv2D(3, 6, 3), (8, 9)),
        (Conv2D(3, 6, 2), (7, 8)),  # "same" of an even filter pads less on both sides
        (Conv2D(3, 6, 3, padding="valid"), (6, 7)),
        (Conv2D(3, 6, 3, padding=2), (10, 11)),
        (Conv2D(3, 6, 3, padding=(2, 0)), (10, 7)),
        (Conv2D(3, 6, 3, padding=((2, 0), (0, 1))), (8, 8)),
        (Conv2D(3, 6, 3, dilation=2), (8, 9)),
        (Conv2D(3, 6, (5, 1), stride=(2, 3)), (4, 3)),
        (Conv2D(3, 6, 1, stride=2), (4, 5)),
    ],
)
def test_conv_sizes(layer: Conv2D, size: tuple[int, int]) -> None:
    assert layer.out_shape((2, 3, 8, 9)) == (2, 6, *size)
    assert output(layer, C(2, 3, 8, 9)).shape == (2, 6, *size)


def test_conv_is_cross_correlation_in_groups() -> None:
    layer = Conv2D(4, 6, 3, groups=2, dilation=2, stride=2, padding=1)
    layer.bias.assign(S(6))
    assert layer.weight.shape == (6, 2, 3, 3)
    x = C(2, 4, 9, 9)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.zeros((2, 6, 4, 4)) + S(6)[:, None, None]
    for i in range(3):
        for j in range(3):
            taps = padded[:, :, 2 * i : 2 * i + 7 : 2, 2 * j : 2 * j + 7 : 2].reshape(2, 2, 2, 4, 4)
            weight = layer.weight.value[:, :, i, j].reshape(2, 3, 2)
            expected += np.einsum("ngchw,goc->ngohw", taps, weight).reshape(2, 6, 4, 4)
    np.testing.assert_allclose(output(layer, x), expected, rtol=1e-12, atol=1e-13)


def test_conv_sees_edited_arguments() -> None:
    layer = Conv2D(3, 6, 3)
    layer.stride = 2
    assert layer.out_shape((2, 3, 8, 8)) == (2, 6, 4, 4)
    layer.padding = "full"
    with pytest.raises(GraphError, match="padding"):
        layer.out_shape((2, 3, 8, 8))


def test_dense() -> None:
    layer = Dense(3, 4)
    layer.bias.assign(S(4))
    x = C(2, 3)
    assert (layer.weight.shape, layer.bias.shape) == ((4, 3), (4,))
    np.testing.assert_allclose(output(layer, x), x @ layer.weight.value.T + S(4), rtol=1e-14)
    np.testing.assert_allclose(output(bare := Dense(3, 4, bias=False), x), x @ bare.weight.value.T, rtol=1e-14)
    assert bare.bias is None
    assert bare.param_size == (12, 0)


def test_new_layers_have_zero_biases() -> None:
    for layer in (Dense(3, 4), Conv2D(3, 4, 3)):
        assert not layer.bias.value.any()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (BatchNorm1D(3), (4, 3)),
        (BatchNorm1D(3), (4, 3, 5)),
        (BatchNorm2D(3), (4, 3, 5, 2)),
        (BatchNorm3D(3), (4, 3, 5, 2, 2)),
    ],
)
def test_batch_norm(layer: BatchNorm2D, shape: tuple) -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, shape)
    axes = (0, *range(2, x.ndim))
    mean, variance = x.mean(axes), x.var(axes)
    column = (slice(None), *[None] * (x.ndim - 2))
    found = run(layer, [x], training=True)
    expected = (x - mean[column]) / np.sqrt(variance[column] + 1e-5)
    np.testing.assert_allclose(found.outputs[0], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.states[layer.running_mean], 0.1 * mean, rtol=1e-12)
    np.testing.assert_allclose(found.states[layer.running_var], 0.9 + 0.1 * variance, rtol=1e-12)
    layer.running_mean.assign(mean)
    layer.running_var.assign(variance)
    np.testing.assert_allclose(output(layer, x), expected, rtol=1e-9, atol=1e-12)
    assert layer.param_size == (6, 0)
    keys = [(name, parameter.trainable) for name, parameter in layer.named_parameters()]
    assert keys == [("weight", True), ("bias", True), ("running_mean", False), ("running_var", False)]


def test_pooling() -> None:
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    assert output(MaxPool2D(), x).tolist() == [[[[5, 7], [13, 15]]]]
    assert output(AvgPool2D(), x).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert output(Pool2D(3, 1, "max", "same"), x).shape == (1, 1, 4, 4)
    assert output(AvgPool2D(3, 2, "same"), x)[0, 0, 0, 0] == (0 + 1 + 4 + 5) / 9  # padding counts
    assert output(MaxPool2D(3, 2, ((1, 0), (0, 1))), -x - 1)[0, 0].tolist() == [[-1, -3], [-5, -7]]
    assert output(GlobalAvgPool2D(), x).tolist() == [[[[7.5]]]]
    assert MaxPool2D((3, 2), (1, 2)).out_shape((None, 4, 9, 8)) == (None, 4, 7, 4)
    pool = Pool2D()
    pool.mode = "avg"
    assert output(pool, x)[0, 0, 0, 0] == 2.5


def test_shape_layers() -> None:
    x = C(2, 3, 4)
    assert (output(Flatten(), x) == x.reshape(2, 12)).all()
    assert output(Reshape(4, 3), x).shape == (2, 4, 3)
    assert output(Reshape((-1, 2, 1)), x).shape == (2, 6, 2, 1)
    assert Reshape().out_shape((None, 1)) == (None,)
    assert Reshape(-1, 6).out_shape((None, 3, 4)) == (None, 2, 6)
    assert (output(Identity(), x) == x).all()


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (Activation.Linear(), lambda x: x),
        (Activation.ReLU(), lambda x: np.maximum(x, 0)),
        (Activation.ReLU6(), lambda x: np.clip(x, 0, 6)),
        (Activation.Sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
        (Activation.Tanh(), np.tanh),
        (Activation.LeakyReLU(), lambda x: np.where(x > 0, x, 0.01 * x)),
        (Activation.LeakyReLU(alpha=0.3), lambda x: np.where(x > 0, x, 0.3 * x)),
        (Activation.Softmax(), lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
        (Activation.Softmax(dim=1), lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
        (Activation.ELU(), lambda x: np.where(x > 0, x, np.expm1(x))),
        (Activation.SELU(), lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))),
        (Activation.Softplus(), lambda x: np.log1p(np.exp(x))),
        (Activation.Swish(), lambda x: x / (1 + np.exp(-x))),
        (Activation.HardSwish(), lambda x: x * np.clip(x + 3, 0, 6) / 6),
        (
            Activation.GELU(approximate=True),
            lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        ),
        (Activation.Mish(), lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    ],
)
def test_activations(layer: Layer, function) -> None:
    x = np.linspace(-8, 8, 60).reshape(3, 4, 5)
    np.testing.assert_allclose(output(layer, x), function(x), rtol=1e-12, atol=1e-14)
    assert layer.out_shape((None, 4, 5)) == (None, 4, 5)


def test_gelu_is_exact_by_default() -> None:
    # x Phi(x) at 1, from tables of the normal distribution
    assert abs(output(Activation.GELU(), np.ones((1, 1))).item() - 0.8413447460685429) < 1e-12


def test_softmax_at_extremes() -> None:
    found = output(Activation.Softmax(), np.array([[1000.0, 0.0, -1000.0]]))
    assert found.tolist() == [[1, 0, 0]]


def test_dropout() -> None:
    x = np.ones((50, 40))
    layer = Dropout(0.25)
    y = output(layer, x, training=True, seed=1)
    assert set(np.unique(y)) == {0.0, 1 / 0.75}
    assert 0.2 < (y == 0).mean() < 0.3
    np.testing.assert_array_equal(output(layer, x, training=True, seed=1), y)
    assert (output(layer, x, training=True, seed=2) != y).any()
    assert (output(layer, x) == x).all()
    assert (output(Dropout(0.0), x, training=True) == x).all()
    found = run(layer, [x], [x], training=True, seed=1)
    np.testing.assert_array_equal(found.inputs[0], found.outputs[0])


@pytest.mark.parametrize(
    ("cls", "shape"), [(Dropout1D, (4, 8, 9)), (Dropout2D, (4, 8, 3, 3)), (Dropout3D, (4, 8, 3, 3, 1))]
)
def test_channel_dropout(cls: type[Dropout], shape: tuple) -> None:
    y = output(cls(0.5), np.ones(shape), training=True).reshape(32, -1)
    assert (y == y[:, :1]).all()
    assert set(np.unique(y)) == {0.0, 2.0}
    with pytest.raises(ShapeError, match=f"{cls.__name__} expects rank {len(shape)}"):
        cls(0.5).out_shape(shape[:-1])


def test_dropout_with_a_seed_of_its_own() -> None:
    x = np.ones((30, 30))
    layer = Dropout(0.5, random_state=11)
    first = run(layer, [x], training=True, seed=1)
    beside = run(Sequential(Dropout(0.1), layer), [x], training=True, seed=2).outputs[0]
    assert not beside[first.outputs[0] == 0].any()
    assert (beside[first.outputs[0] != 0] != 0).mean() > 0.8
    assert first.states[layer.counter].tolist() == [11, 1]
    second = run(layer, [x], training=True, states=first.states)
    assert (second.outputs[0] != first.outputs[0]).any()
    twice = run(Sequential(layer, layer), [x], training=True)
    np.testing.assert_array_equal(twice.outputs[0] != 0, (first.outputs[0] != 0) & (second.outputs[0] != 0))
    assert [name for name, _ in layer.named_parameters()] == ["counter"]
    assert layer.param_size == (0, 0)


def test_lambda() -> None:
    layer = Lambda(lambda x: ops.tanh(x) * x)
    x = C(3, 3)
    found = run(layer, [x])
    np.testing.assert_allclose(found.outputs[0], np.tanh(x) * x, rtol=1e-14)
    np.testing.assert_allclose(found.inputs[0], np.tanh(x) + x * (1 - np.tanh(x) ** 2), rtol=1e-12, atol=1e-14)
    assert output(Lambda(lambda x: 3.0), x).item() == 3
    with pytest.raises(DTypeError):
        Lambda(lambda x: "text").out_shape((1,))


def test_sequential() -> None:
    inner = Sequential(Dense(3, 4), ("act", Activation.ReLU()))
    layer = Sequential(inner, ("head", Dense(4, 2)))
    assert [name for name, _ in layer.named_parameters()] == ["0.0.weight", "0.0.bias", "head.weight", "head.bias"]
    assert layer[0] is inner
    assert layer["head"] is layer[-1]
    assert inner["act"] is inner[1]
    assert (len(layer), list(layer), layer.layer_count) == (2, [inner, layer["head"]], 3)
    x = C(2, 3)
    hidden = np.maximum(x @ inner[0].weight.value.T, 0)
    np.testing.assert_allclose(output(layer, x), hidden @ layer["head"].weight.value.T, rtol=1e-13)
    assert (output(Sequential(), x) == x).all()
    with pytest.raises(KeyError, match="act"):
        inner["none"]
    with pytest.raises(IndexError, match="act"):
        inner[2]
