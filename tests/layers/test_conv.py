"""Convolution layers of one to three axes, channel by channel and transposed: values, sizes, refusals.

Values are those of torch 2.13 in float64 for weights and bias sin(k), x = cos(k) and the gradient cos(0.1 k), k the number of an element:
the sum of y, <y, gradient>, and the sums of |dx|, |dw|, |db|.
"""

import numpy as np
import pytest
from traced import C, R, S

import tapeprop as tp
from tapeprop.errors import GraphError, ShapeError
from tapeprop.layers import (
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose1D,
    ConvTranspose2D,
    ConvTranspose3D,
    DepthConv1D,
    DepthConv2D,
    DepthConv3D,
    Layer,
)


def graph_of(layer: Layer) -> tp.LayerGraph:
    node = tp.LayerNode(layer, name="conv")
    return tp.LayerGraph({node: []}, root=node, term=node, seed=0).build(dtype="float64")


@pytest.mark.parametrize(
    ("layer", "x", "y", "values"),
    [
        (
            Conv1D(4, 6, 3, stride=2, groups=2, dilation=2),
            (2, 4, 13),
            (2, 6, 7),
            [2.4193230388803775, 20.690893984894814, 71.02888531629827, 11.703997402300645, 28.639494774485314],
        ),
        (
            Conv3D(2, 3, (3, 2, 3), stride=(1, 2, 1), padding=(1, 0, 2)),
            (2, 2, 4, 5, 6),
            (2, 3, 4, 2, 8),
            [225.33947517350293, 6.031282708081422, 282.6031103731743, 119.555449963088, 6.561457434454873],
        ),
        (
            DepthConv1D(3, 5, multiplier=2),
            (2, 3, 11),
            (2, 6, 11),
            [-8.790610235196802, -38.503532840568866, 92.48203133906243, 34.32328310505045, 81.6584786232105],
        ),
        (
            DepthConv2D(4, 3, stride=2),
            (2, 4, 9, 20),
            (2, 4, 5, 10),
            [189.49568592193043, 14.12635867529611, 536.401089951961, 8.285461549691599, 55.04469113764431],
        ),
        (
            DepthConv3D(2, 3, multiplier=2),
            (2, 2, 3, 4, 5),
            (2, 4, 3, 4, 5),
            [225.74241584940384, -36.9769450831666, 351.66627162489806, 134.13539294609416, 7.205988827960418],
        ),
        (
            ConvTranspose1D(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
            (2, 4, 7),
            (2, 6, 14),
            [5.036849310123957, -8.96373144444187, 27.44765520264384, 35.886391188026685, 44.777338833175186],
        ),
        (  # columns that no tap reaches
            ConvTranspose2D(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), output_padding=(1, 2), dilation=(1, 3)),
            (2, 3, 4, 5),
            (2, 4, 8, 10),
            [300.4991310869299, -23.079437230229395, 128.007500089133, 39.95877845626016, 74.7658141089264],
        ),
        (
            ConvTranspose3D(2, 3, 2, stride=2),
            (2, 2, 2, 3, 4),
            (2, 3, 4, 6, 8),
            [673.6860875307732, 4.716916447874913, 234.10863902240771, 28.778095390417548, 9.365000343540157],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Layer) else "",
)
def test_values(layer, x, y, values):
    graph = graph_of(layer)
    layer.weight.assign(S(*layer.weight.shape))
    layer.bias.assign(S(*layer.bias.shape))
    assert layer.out_shape(x) == y
    assert layer.out_shape((None, *x[1:])) == (None, *y[1:])
    found = graph.forward(C(*x), is_train=True)
    assert found.shape == y
    dx = graph.backward(R(*y))
    sums = [np.abs(each).sum() for each in (dx, layer.weight.grad, layer.bias.grad)]
    np.testing.assert_allclose([found.sum(), (found * R(*y)).sum(), *sums], values, rtol=1e-9)


def test_weights_lie_as_in_torch():
    assert Conv1D(4, 6, 3, groups=2).weight.shape == (6, 2, 3)
    assert Conv3D(4, 6, (1, 2, 3)).weight.shape == (6, 4, 1, 2, 3)
    assert DepthConv2D(4, 3, multiplier=2).weight.shape == (8, 1, 3, 3)
    assert ConvTranspose2D(4, 6, 3, groups=2).weight.shape == (4, 3, 3, 3)
    assert ConvTranspose2D(4, 6, 3, groups=2).bias.shape == (6,)
    assert DepthConv1D(4, 3, bias=False).param_size == (12, 0)


@pytest.mark.parametrize(
    ("layer", "length"),
    [
        (Conv1D(2, 4, 3), 9),
        (Conv1D(2, 4, 2), 8),
        (Conv1D(2, 4, 3, padding="valid"), 7),
        (Conv1D(2, 4, 3, padding=(2, 0)), 9),
        (Conv1D(2, 4, 3, padding=((2, 3),)), 12),
        (Conv1D(2, 4, (3,), stride=(2,), padding=(1,)), 5),
        (ConvTranspose1D(2, 4, 3), 11),
        (ConvTranspose1D(2, 4, 3, padding="same"), 9),
        (ConvTranspose1D(2, 4, 3, padding=(0, 2)), 9),
        (ConvTranspose1D(2, 4, 3, stride=3, output_padding=2), 29),
    ],
)
def test_padding_of_one_axis(layer, length):
    assert layer.out_shape((3, 2, 9)) == (3, 4, length)
    assert graph_of(layer)(C(3, 2, 9)).shape == (3, 4, length)


def test_padding_of_three_axes():
    sides = ((1, 0), (0, 2), (1, 1))
    assert Conv3D(1, 1, 3, padding=sides).out_shape((1, 1, 4, 5, 6)) == (1, 1, 3, 5, 6)
    assert Conv3D(1, 1, 3, padding=(0, 1, 2)).out_shape((1, 1, 4, 5, 6)) == (1, 1, 2, 5, 8)
    assert Conv3D(1, 1, (1, 3, 5)).out_shape((1, 1, 4, None, 6)) == (1, 1, 4, None, 6)


def test_channel_by_channel_is_a_convolution_in_groups():
    depth, plain = DepthConv2D(3, 3, multiplier=2, random_state=1), Conv2D(3, 6, 3, groups=3, random_state=1)
    x = C(2, 3, 6, 7)
    np.testing.assert_array_equal(graph_of(depth)(x), graph_of(plain)(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv1D(3, 6, (3, 3)), "Conv1D: expected filter_size to be an int >= 1, got (3, 3)"),
        (
            lambda: Conv3D(3, 6, (3, 3)),
            "Conv3D: expected filter_size to be an int or three ints, each >= 1, got (3, 3)",
        ),
        (
            lambda: Conv1D(3, 6, 3, padding=(1, 2, 3)),
            'Conv1D: expected padding to be "same", "valid", an int >= 0, (length,) or ((left, right),)',
        ),
        (
            lambda: Conv3D(3, 6, 3, padding=(1, 2)),
            "(depth, vertical, horizontal) or ((front, back), (top, bottom), (left, right)), got (1, 2)",
        ),
        (lambda: DepthConv2D(3, 3, multiplier=0), "DepthConv2D: expected multiplier to be an int >= 1, got 0"),
        (lambda: DepthConv2D(0, 3), "DepthConv2D: expected in_channels"),
        (lambda: ConvTranspose2D(3, 4, 3, groups=2), "multiples of groups=2, got 3 and 4"),
        (lambda: ConvTranspose2D(3, 4, 3, stride=2, output_padding=2), "smaller than stride=2 or dilation=1, got 2"),
        (
            lambda: ConvTranspose2D(3, 4, 3, output_padding=-1),
            "output_padding to be an int or a pair of ints, each >= 0",
        ),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(GraphError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            Conv1D(3, 6, 3),
            (2, 3, 8, 8),
            "Conv1D expects (N, 3, L), got (2, 3, 8, 8): give images of rank 3, or put Reshape(3, L)",
        ),
        (Conv1D(3, 6, 3), (2, 8, 3), "X.transpose(0, 2, 1) or write Conv1D(8, 6, 3) or add Conv1D(8, 3, 1) before it"),
        (
            Conv3D(3, 6, 3),
            (2, 4, 5, 5, 3),
            "X.transpose(0, 4, 1, 2, 3) or write Conv3D(4, 6, 3) or add Conv3D(4, 3, 1)",
        ),
        (Conv3D(3, 6, 3, padding=0), (2, 3, 2, 5, 5), "at least its filter, 3 x 3 x 3, got (2, 3, 2, 5, 5)"),
        (DepthConv2D(3, 3), (2, 4, 5, 5), "write DepthConv2D(4, 3) or add Conv2D(4, 3, 1) before it"),
        (ConvTranspose2D(3, 4, 3), (2, 5, 5, 5), "write ConvTranspose2D(5, 4, 3) or add Conv2D(5, 3, 1) before it"),
        (ConvTranspose2D(3, 4, 3, padding=2), (2, 3, 2, 1), "a result of at least one pixel, got 0 from (2, 3, 2, 1)"),
    ],
)
def test_wrong_inputs_get_a_remedy(layer, shape, message):
    with pytest.raises(ShapeError) as caught:
        layer.out_shape(shape)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        Conv1D(4, 6, 3, padding=(1, 2), groups=2),
        DepthConv3D(2, (1, 2, 3), multiplier=3, bias=False),
        ConvTranspose2D(4, 6, 3, stride=2, output_padding=(1, 0), groups=2, random_state=3),
    ],
)
def test_a_layer_is_written_as_it_was_made(layer):
    twin = eval(repr(layer))
    assert repr(twin) == repr(layer)
    assert twin.weight.shape == layer.weight.shape
    assert (twin.bias is None) == (layer.bias is None)


def test_auto_batch_norm_stands_behind_each_kind():
    for layer, norm in (
        (Conv1D(2, 4, 3), "BatchNorm1D(4)"),
        (DepthConv3D(2, 3), "BatchNorm3D(2)"),
        (ConvTranspose2D(2, 4, 3), "BatchNorm2D(4)"),
    ):
        conv, relu = tp.LayerNode(layer, name="conv"), tp.LayerNode(tp.layers.Activation.ReLU(), name="relu")
        graph = tp.LayerGraph({conv: [relu], relu: []}, root=conv, term=relu, seed=0)
        shape = (2, 2, *[5] * layer.rank)
        assert norm in str(graph.build(shape, auto_batch_norm=True).summary())
