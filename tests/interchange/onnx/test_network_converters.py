"""Convolutions, pools, norms, Resize and Dropout with attributes that ONNX' own cases leave out, and what is refused.

The oracle is ONNX' reference evaluator; onnxruntime 1.32 gave the same numbers for all that it runs.
"""

import numpy as np
import pytest
from onnx_text import model, run, typed

from tapeprop.errors import GraphError
from tapeprop.interchange.onnx import load, load_function

RANDOM = np.random.default_rng(11)


def drawn(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def sure(*values):
    return np.array(values, np.int64)


SIGNAL, IMAGES, VOLUMES = drawn(2, 4, 9), drawn(2, 4, 7, 6), drawn(1, 2, 5, 4, 6)
WEIGHTS = {1: drawn(6, 2, 3), 2: drawn(6, 2, 3, 2), 3: drawn(4, 1, 2, 3, 2)}
TRANSPOSED = {1: drawn(4, 3, 3), 2: drawn(4, 3, 3, 2), 3: drawn(2, 3, 2, 3, 2)}
BY_RANK = {1: SIGNAL, 2: IMAGES, 3: VOLUMES}

CONVOLUTIONS = [
    (1, "group = 2, dilations = [2], strides = [2], pads = [3, 1]"),
    (1, 'group = 2, auto_pad = "SAME_LOWER", strides = [2]'),
    (2, "group = 2, dilations = [1, 3], pads = [2, 0, 1, 4], strides = [3, 2]"),
    (2, 'group = 2, auto_pad = "SAME_UPPER", strides = [2, 3]'),
    (2, 'group = 2, auto_pad = "VALID", kernel_shape = [3, 2]'),
    (3, "group = 2, dilations = [2, 1, 3], pads = [1, 0, 2, 0, 1, 1], strides = [1, 2, 2]"),
]
TRANSPOSED_CONVOLUTIONS = [
    (1, "strides = [3], output_padding = [2], pads = [1, 0]"),
    (1, 'strides = [2], auto_pad = "SAME_LOWER"'),
    (2, "strides = [2, 3], dilations = [2, 1], pads = [1, 0, 2, 1], output_padding = [1, 1]"),
    (2, 'strides = [2, 2], auto_pad = "SAME_UPPER"'),
    (3, "strides = [2, 1, 2], pads = [0, 1, 1, 1, 0, 0]"),
]
POOLS = [
    (1, "AveragePool", "kernel_shape = [4], strides = [3], pads = [3, 3]"),  # pads of more than half the window
    (2, "AveragePool", "kernel_shape = [3, 2], strides = [2, 2], ceil_mode = 1, pads = [1, 1, 0, 0]"),
    (2, "AveragePool", "kernel_shape = [3, 2], strides = [2, 2], ceil_mode = 1, count_include_pad = 1, pads = [1, 1, 0, 0]"),
    (2, "AveragePool", "kernel_shape = [2, 3], dilations = [3, 2], pads = [1, 1, 2, 1], count_include_pad = 1"),
    (3, "AveragePool", 'kernel_shape = [2, 3, 2], strides = [2, 1, 1], auto_pad = "SAME_LOWER"'),
    (1, "MaxPool", "kernel_shape = [2], dilations = [3], pads = [1, 2], strides = [2], ceil_mode = 1"),
    (2, "MaxPool", "kernel_shape = [3, 4], pads = [1, 1, 1, 1], storage_order = 1"),
    (3, "MaxPool", 'kernel_shape = [2, 2, 3], strides = [2, 1, 2], auto_pad = "SAME_UPPER"'),
    (1, "LpPool", "kernel_shape = [3], strides = [2], p = 1"),
    (2, "LpPool", "kernel_shape = [2, 3], dilations = [2, 1], pads = [1, 0, 0, 1], p = 3"),
]  # fmt: skip
RESIZES = [
    ('mode = "linear", antialias = 1, exclude_outside = 1', sure(2, 4, 3, 2), None),
    ('mode = "cubic", antialias = 1, cubic_coeff_a = -0.5', sure(2, 4, 4, 3), None),
    ('mode = "cubic", exclude_outside = 1, coordinate_transformation_mode = "asymmetric"', None, (1, 1, 1.7, 0.6)),
    ('mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"', sure(2, 4, 1, 9), None),
    ('mode = "nearest", nearest_mode = "ceil", axes = [3]', sure(11), None),
    ('mode = "linear", keep_aspect_ratio_policy = "not_smaller", axes = [3, 2]', sure(9, 9), None),
]


def against_the_reference(body, initialisers=None, opset=22, tolerance=1e-5, **arrays):
    """What we make of a model and what ONNX' reference evaluator makes of it are the same."""
    from onnx.reference import ReferenceEvaluator

    made = model(body, initialisers, opset=opset, **{name: typed(array) for name, array in arrays.items()})
    (wanted,) = ReferenceEvaluator(made).run(None, arrays)
    found = np.asarray(load_function(made)(*arrays.values()))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rank", "attributes"), CONVOLUTIONS)
def test_convolution(rank, attributes):
    weights = WEIGHTS[rank]
    initialisers = {"w": weights, "b": drawn(weights.shape[0])}
    against_the_reference(f"y = Conv<{attributes}>(x, w, b)", initialisers, x=BY_RANK[rank])


@pytest.mark.parametrize(("rank", "attributes"), TRANSPOSED_CONVOLUTIONS)
def test_transposed_convolution(rank, attributes):
    initialisers = {"w": TRANSPOSED[rank], "b": drawn(3)}
    against_the_reference(f"y = ConvTranspose<{attributes}>(x, w, b)", initialisers, x=BY_RANK[rank])


@pytest.mark.parametrize(
    "op", ["MaxPool<kernel_shape = [3, 3], ", "AveragePool<kernel_shape = [3, 3], ", "Conv<group = 2, "]
)
def test_padding_behind_every_axis_is_that_of_the_layer_too(op):
    inputs = "x, w" if op.startswith("Conv") else "x"
    made = model(f"y = {op}strides = [2, 2], pads = [0, 0, 1, 1]>({inputs})", {"w": WEIGHTS[2]}, x="float[N,4,7,6]")
    np.testing.assert_allclose(load(made)(IMAGES), load_function(made)(IMAGES), rtol=1e-6, atol=1e-6)


def test_a_transposed_convolution_to_more_than_its_filters_reach_ends_in_the_bias():
    bias = drawn(3)
    y = run("y = ConvTranspose<output_shape = [10, 9]>(x, w, b)", {"w": TRANSPOSED[2], "b": bias}, x=IMAGES)
    assert y.shape == (2, 3, 10, 9)
    np.testing.assert_array_equal(y[:, :, 9:], np.broadcast_to(bias[:, None, None], (2, 3, 1, 9)))


@pytest.mark.parametrize(("rank", "op", "attributes"), POOLS)
def test_pool(rank, op, attributes):
    against_the_reference(f"y = {op}<{attributes}>(x)", x=BY_RANK[rank])


def test_the_maximum_with_padding_of_more_than_half_a_window():
    bordered = np.pad(IMAGES, ((0, 0), (0, 0), (2, 1), (3, 3)), constant_values=-np.inf)
    y = run("y = MaxPool<kernel_shape = [3, 4], pads = [2, 3, 1, 3]>(x)", x=IMAGES)
    np.testing.assert_array_equal(y, run("y = MaxPool<kernel_shape = [3, 4]>(x)", x=bordered))


def test_the_p_norm_of_a_whole_image():
    y = run("y = GlobalLpPool<p = 3>(x)", x=IMAGES)
    np.testing.assert_allclose(y, (abs(IMAGES) ** 3).sum((2, 3), keepdims=True) ** (1 / 3), rtol=1e-5)


def test_the_slope_of_a_p_norm_of_zeros_is_zero():
    made = load_function(model("y = LpPool<kernel_shape = [2], p = 2>(x)", x="float[1,1,4]"))
    _, (slope,) = made.value_and_grad(np.zeros((1, 1, 4), np.float32))
    np.testing.assert_array_equal(slope, 0)


# ---- norms


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_local_response_normalisation_of_even_and_odd_sizes(size):
    """By the definition: the reference evaluator takes the number of samples for that of channels."""
    squares = np.pad(IMAGES**2, ((0, 0), ((size - 1) // 2, size // 2), (0, 0), (0, 0)))
    sums = sum(squares[:, i : i + 4] for i in range(size))
    y = run(f"y = LRN<size = {size}, alpha = 0.3, beta = 0.6, bias = 1.5>(x)", x=IMAGES)
    np.testing.assert_allclose(y, IMAGES / (1.5 + 0.3 / size * sums) ** 0.6, rtol=1e-5)


def test_layer_normalisation_with_a_scale_that_broadcasts():
    initialisers = {"s": drawn(6), "b": drawn(7, 1)}
    against_the_reference("y = LayerNormalization<axis = 2, epsilon = 0.01>(x, s, b)", initialisers, x=IMAGES)
    against_the_reference("y = RMSNormalization<axis = -2>(x, s)", {"s": drawn(6)}, opset=23, x=IMAGES)


def test_groups_have_one_scale_each_up_to_opset_20():
    scale, bias = drawn(2), drawn(2)
    body = "y = GroupNormalization<num_groups = 2, epsilon = 0.1>(x, s, b)"
    old = run(body, {"s": scale, "b": bias}, opset=18, x=IMAGES)
    new = run(body, {"s": scale.repeat(2), "b": bias.repeat(2)}, opset=21, x=IMAGES)
    np.testing.assert_array_equal(old, new)


def test_running_statistics_are_not_trained():
    body = "y = BatchNormalization<momentum = 0.7>(x, s, b, m, v)"
    initialisers = {"s": drawn(4), "b": drawn(4), "m": drawn(4), "v": abs(drawn(4))}
    made = load_function(model(body, initialisers, x="float[2,4,7,6]"))
    trained = {parameter.name for parameter in made._parameters() if parameter.trainable}
    assert trained == {"s", "b"}
    x, wide = IMAGES, {name: array[:, None, None] for name, array in initialisers.items()}
    wanted = (x - wide["m"]) / np.sqrt(wide["v"] + 1e-5) * wide["s"] + wide["b"]
    np.testing.assert_allclose(made(x), wanted, rtol=1e-5, atol=1e-5)


# ---- Resize, Dropout


@pytest.mark.parametrize(("attributes", "sizes", "scales"), RESIZES)
def test_resize(attributes, sizes, scales):
    given = {"s": sizes} if scales is None else {"s": np.array(scales, np.float32)}
    inputs = "x, , , s" if scales is None else "x, , s"
    against_the_reference(f"y = Resize<{attributes}>({inputs})", given, opset=19, x=IMAGES)


def test_resize_of_images_whose_batch_is_open():
    body = 'y = Resize<mode = "linear">(x, , s)'
    made = load_function(model(body, {"s": np.array([1, 1, 2, 2], np.float32)}, x="float[N,4,7,6]"))
    assert made(IMAGES).shape == (2, 4, 14, 12)
    assert made(IMAGES[:1]).shape == (1, 4, 14, 12)


def test_an_infinite_neighbour_of_weight_0_stays_apart():
    x = np.array([[[1, 2, np.inf, 4]]], np.float32)
    body = 'y = Resize<mode = "cubic", coordinate_transformation_mode = "align_corners">(x, , , s)'
    np.testing.assert_array_equal(run(body, {"s": sure(1, 1, 2)}, x=x), [[[1, 4]]])


def test_dropout_drops_nothing_and_says_so():
    y, mask = run("y, mask = Dropout<seed = 3>(x, r)", {"r": np.float32(0.5)}, outputs="y mask", x=SIGNAL)
    np.testing.assert_array_equal(y, SIGNAL)
    np.testing.assert_array_equal(mask, np.ones(SIGNAL.shape))


# ---- refusals


X = "float[2,4,7,6]"
FOUR = {name: np.ones(4, np.float32) for name in "sbmv"}
FILTERS = {"w": WEIGHTS[2]}


@pytest.mark.parametrize(
    ("body", "known", "message"),
    [
        ("y = Conv<group = 2, kernel_shape = [3, 3]>(x, w)", FILTERS, r"weights of kernel_shape \[3, 3\], got shape"),
        ('y = Conv<auto_pad = "SAME">(x, w)', FILTERS, "auto_pad to be one of NOTSET, SAME_UPPER"),
        ('y = Conv<group = 2, auto_pad = "SAME_UPPER", pads = [1, 1, 1, 1]>(x, w)', FILTERS, "either pads or auto_pad"),
        ("y = Conv<group = 2, pads = [1, 1]>(x, w)", FILTERS, "pads to be 4 numbers >= 0"),
        ("y = Conv<group = 2, pads = [0, 0, -1, 0]>(x, w)", FILTERS, "pads to be 4 numbers >= 0"),
        ("y = Conv<group = 2, strides = [0, 1]>(x, w)", FILTERS, "strides to be 2 numbers >= 1"),
        ("y = Conv(x, w)", FILTERS, "channels"),
        ("y = ConvTranspose<output_padding = [2, 0]>(x, t)", {"t": TRANSPOSED[2]}, "output_padding"),
        ("y = ConvTranspose<output_shape = [9]>(x, t)", {"t": TRANSPOSED[2]}, "output_shape to be 2 numbers"),
        ("y, i = MaxPool<kernel_shape = [2, 2]>(x)", {}, "the places of maxima"),
        ("y = AveragePool<kernel_shape = [9, 2]>(x)", {}, "at least the window"),
        ("y = AveragePool<kernel_shape = [9, 2], dilations = [2, 1]>(x)", {}, "at least 17 elements along axis 2"),
        ("y = AveragePool<kernel_shape = [2, 2], pads = [3, 0, 0, 0]>(x)", {}, "one of padding alone"),
        ("y = LpPool<kernel_shape = [2, 2], p = 0>(x)", {}, "p >= 1"),
        ("y, q = BatchNormalization(x, s, b, m, v)", FOUR, "one output outside training_mode"),
        ("y = GroupNormalization<num_groups = 3>(x, s, b)", FOUR, r"a scale and a bias of shape \(3,\)"),
        ("y = LayerNormalization<axis = 4>(x, s)", FOUR, "an axis from -4 to 3"),
        ("y = LayerNormalization<stash_type = 10>(x, s)", FOUR, r"stash_type 1 \(float32\)"),
        ("y = LRN<size = 0>(x)", {}, "size >= 1"),
        ('y = Resize<mode = "area">(x, , s)', FOUR, "mode to be one of nearest, linear, cubic"),
        ('y = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn">(x, , s)', FOUR, "half_pixel_symmetric"),
        ('y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, , s)', FOUR, "a roi of 8 numbers"),
        ("y = Resize<antialias = 1>(x, , s)", FOUR, "antialias with linear or cubic"),
        ("y = Resize(x)", {}, "either scales or sizes"),
        ("y = Resize<axes = [2, -2]>(x, , s)", {"s": np.ones(2, np.float32)}, "each once"),
        ("y = Resize<axes = [2]>(x, , s)", {"s": np.float32([0.1])}, "at least one element"),
        ("y = Resize<axes = [2]>(x, , s)", {"s": np.float32([-1])}, "scales > 0"),
        ("y = Dropout(x, r, t)", {"r": np.float32(0.3), "t": np.True_}, "training_mode to be false"),
    ],
)  # fmt: skip
def test_refusals(body, known, message):
    outputs = "y" if body.startswith("y =") else f"y {body[3]}"
    with pytest.raises(GraphError, match=message) as found:
        load_function(model(body, known, outputs=outputs, opset=19, x=X))
    assert "ONNX node" in str(found.value)


def test_an_open_size_on_which_padding_depends_is_asked_for():
    made = model('y = MaxPool<kernel_shape = [3], strides = [2], auto_pad = "SAME_UPPER">(x)', x="float[N,4,L]")
    with pytest.raises(
        GraphError, match=r"axis 2 of .* to have a known size.*give shapes=\{input: \(None, 3, 224, 224\)\}"
    ):
        load_function(made)
    assert load_function(made, shapes={"x": (None, 4, 9)})(SIGNAL).shape == (2, 4, 5)
    by_one = model('y = MaxPool<kernel_shape = [3], auto_pad = "SAME_UPPER">(x)', x="float[N,4,L]")
    assert load_function(by_one)(SIGNAL).shape == (2, 4, 9)
