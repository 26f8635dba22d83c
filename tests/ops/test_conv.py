"""Convolutions: any geometry, bits that do not depend on place, worked cases, specials, refusals, open shapes, other tiles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.op_runner import run

from tapeprop import ops
from tapeprop.compiler.interpret import call_of
from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.ir import Dim, Input, Tensor
from tapeprop.ops import registry
from tapeprop.ops.op import Device


def tensor(*shape, dtype="float32"):
    return Tensor(shape, dtype, source=Input(0))


def random(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def by_loops(x, w, stride, padding, dilation, groups):
    """The convolution, pixel by pixel, in float64."""
    x = np.pad(x.astype(float), ((0, 0), (0, 0), *padding))
    filters, channels, *kernel = w.shape
    size = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], kernel, dilation, stride)]
    y = np.zeros((x.shape[0], filters, *size))
    for o in range(filters):
        first = o // (filters // groups) * channels
        for pixel in np.ndindex(*size):
            taps = [k * s + np.arange(n) * d for k, s, n, d in zip(pixel, stride, kernel, dilation)]
            seen = x[:, first : first + channels][(..., *np.ix_(*taps))]
            y[:, o, *pixel] = (seen * w[o]).reshape(len(x), -1).sum(1)
    return y


@st.composite
def geometries(draw, rank=2, channels=5, filters=20, width=40):
    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    groups, kernel, stride, dilation = draw(st.integers(1, 3)), each(1, 4), each(1, 4), each(1, 3)
    padding = tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(rank))
    least = [max(1, (k - 1) * d + 1 - sum(side)) for k, d, side in zip(kernel, dilation, padding)]
    size = [n + draw(st.integers(0, 9 if i < rank - 1 else width)) for i, n in enumerate(least)]
    x = (draw(st.integers(1, 3)), groups * draw(st.integers(1, channels)), *size)
    w = (groups * draw(st.integers(1, filters)), x[1] // groups, *kernel)
    return x, w, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


def check(x_shape, w_shape, attributes, dtype, workers):
    """y is what the loops give, and <conv(x, w), dy> = <x, input gradient> = <w, weight gradient>, for any dy."""
    name = f"conv{len(x_shape) - 2}d"
    conv, input_grad, weight_grad = (getattr(ops, f"{name}{kind}") for kind in ("", "_input_grad", "_weight_grad"))
    x, w, b = random(x_shape, dtype), random(w_shape, dtype, 1), random(w_shape[0], dtype, 2)
    y = run(lambda x, w, b: conv(x, w, b, **attributes), x, w, b, workers=workers)
    wanted = by_loops(x, w, **attributes)
    tolerance = 1e-12 if dtype == "float64" else 1e-4
    bias = b.reshape(-1, *[1] * (len(x_shape) - 2))
    np.testing.assert_allclose(y, wanted + bias, rtol=tolerance, atol=tolerance)
    dy = random(y.shape, dtype, 3)
    dx = run(lambda dy, w: input_grad(dy, w, x_shape[2:], **attributes), dy, w, workers=workers)
    dw = run(lambda x, dy: weight_grad(x, dy, w_shape[2:], **attributes), x, dy, workers=workers)
    assert dx.shape == x_shape
    assert dw.shape == w_shape
    scale = np.sqrt(y.size * np.prod(w_shape[1:]))
    expected = np.vdot(wanted, dy.astype(float))
    assert np.vdot(x.astype(float), dx) == pytest.approx(expected, rel=tolerance, abs=tolerance * scale)
    assert np.vdot(w.astype(float), dw) == pytest.approx(expected, rel=tolerance, abs=tolerance * scale)


@settings(max_examples=60)
@given(geometries(), st.sampled_from(["float32", "float64"]), st.integers(1, 3))
def test_any_geometry(geometry, dtype, workers):
    check(*geometry, dtype, workers)


@settings(max_examples=12)
@given(geometries(rank=3, channels=3, filters=6, width=5), st.sampled_from(["float32", "float64"]), st.integers(1, 3))
def test_any_geometry_in_three_dimensions(geometry, dtype, workers):
    check(*geometry, dtype, workers)


@settings(max_examples=15)
@given(geometries(channels=1, filters=3, width=90), st.sampled_from(["float32", "float64"]), st.integers(1, 3))
def test_any_geometry_channel_by_channel(geometry, dtype, workers):
    check(*geometry, dtype, workers)


@pytest.mark.parametrize(("size", "kernel"), [((200, 40), (3, 3)), ((3, 600), (2, 3)), ((40, 130), (9, 7))])
def test_bands_of_a_large_plane(size, kernel):
    attributes = {"stride": (1, 2), "padding": ((1, 1), (2, 0)), "dilation": (2, 1), "groups": 2}
    check((1, 2, *size), (4, 1, *kernel), attributes, "float64", 2)


@pytest.mark.parametrize(
    ("x_shape", "w_shape"),
    [((1, 65, 9, 16), (50, 65, 3, 3)), ((2, 700, 4, 8), (18, 700, 1, 1)), ((1, 800, 5, 5), (9, 800, 1, 1))],
)
def test_sums_of_several_blocks_of_terms(x_shape, w_shape):
    """Planes of whole cache lines, which lie further apart or are copied, and of others, which are read in place."""
    padding = (w_shape[2] // 2,) * 2
    attributes = {"stride": (1, 1), "padding": (padding, padding), "dilation": (1, 1), "groups": 1}
    for dtype in ("float32", "float64"):
        check(x_shape, w_shape, attributes, dtype, 2)


GEOMETRIES = [
    ((6, 3, 13, 17), (20, 3, 3, 3), {"padding": 1}),
    ((6, 4, 12, 11), (6, 2, 3, 2), {"stride": 2, "padding": 1, "groups": 2}),
    ((9, 5, 40, 40), (33, 5, 1, 1), {}),
    ((3, 4, 9, 21), (8, 1, 3, 3), {"padding": 1, "groups": 4}),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), GEOMETRIES)
def test_an_image_has_the_same_bits_alone_as_in_a_batch(x_shape, w_shape, attributes):
    x, w = random(x_shape), random(w_shape, seed=1)
    y = run(lambda x, w: ops.conv2d(x, w, **attributes), x, w)
    dx = run(lambda dy, w: ops.conv2d_input_grad(dy, w, x_shape[2:], **attributes), y, w)
    for n in range(0, x_shape[0], 2):
        one = run(lambda x, w: ops.conv2d(x, w, **attributes), x[n : n + 1].copy(), w, workers=3)
        np.testing.assert_array_equal(one[0], y[n])
        one = run(
            lambda dy, w: ops.conv2d_input_grad(dy, w, x_shape[2:], **attributes), y[n : n + 1].copy(), w, workers=3
        )
        np.testing.assert_array_equal(one[0], dx[n])


def test_a_filter_has_the_same_bits_alone_as_among_others():
    x, w, dy = random((3, 5, 9, 9)), random((37, 5, 3, 3), seed=1), random((3, 37, 9, 9), seed=2)
    y = run(lambda x, w: ops.conv2d(x, w, padding=1), x, w)
    dw = run(lambda x, dy: ops.conv2d_weight_grad(x, dy, (3, 3), padding=1), x, dy)
    for o in (0, 11, 12, 31, 32, 36):
        one = run(lambda x, w: ops.conv2d(x, w, padding=1), x, w[o : o + 1].copy())
        np.testing.assert_array_equal(one[:, 0], y[:, o])
        one = run(lambda x, dy: ops.conv2d_weight_grad(x, dy, (3, 3), padding=1), x, dy[:, o : o + 1].copy())
        np.testing.assert_array_equal(one[0], dw[o])


def test_bias_is_added_to_the_first_block_of_terms():
    x, w, b = random((2, 3, 8, 8)), random((6, 3, 3, 3), seed=1), 1e4 * random(6, seed=2)
    y = run(lambda x, w, b: ops.conv2d(x, w, b, padding=1), x, w, b)
    np.testing.assert_array_equal(y, run(lambda x, w: ops.conv2d(x, w, padding=1), x, w) + b[:, None, None])


def waves(function, shape, factor=1.0):
    return function(factor * np.arange(np.prod(shape))).reshape(shape)


def test_shortcut_from_a_convolution():
    # y = conv + relu(conv), weights and bias sin(k), x = cos(k), the gradient of y cos(0.1 k)
    x, w, b = waves(np.cos, (2, 3, 8, 8)), waves(np.sin, (6, 3, 3, 3)), waves(np.sin, (6,))
    conv = run(lambda x, w, b: ops.conv2d(x, w, b, padding=1), x, w, b)
    dy = waves(np.cos, conv.shape, 0.1) * (1 + (conv > 0))
    dx = run(lambda dy, w: ops.conv2d_input_grad(dy, w, (8, 8), padding=1), dy, w)
    dw = run(lambda x, dy: ops.conv2d_weight_grad(x, dy, (3, 3), padding=1), x, dy)
    assert (conv + np.maximum(conv, 0)).sum() == pytest.approx(622.1141236267933, rel=1e-9)
    assert np.abs(dx).sum() == pytest.approx(1616.0421037834371, rel=1e-9)
    assert np.abs(dw).sum() == pytest.approx(334.40074898759065, rel=1e-9)


def test_three_branches():
    x, sums, norms = waves(np.cos, (2, 3, 8, 8)), 0.0, []
    flow = waves(np.cos, (2, 36, 8, 8), 0.1)
    total, first = np.zeros_like(x), 0
    for filters in (6, 12, 18):
        w, b = waves(np.sin, (filters, 3, 3, 3)), waves(np.sin, (filters,))
        conv = run(lambda x, w, b: ops.conv2d(x, w, b, padding=1), x, w, b)
        sums += np.maximum(conv, 0).sum()
        dy = flow[:, first : first + filters] * (conv > 0)
        first += filters
        norms.append(np.abs(run(lambda x, dy: ops.conv2d_weight_grad(x, dy, (3, 3), padding=1), x, dy)).sum())
        total += run(lambda dy, w: ops.conv2d_input_grad(dy, w, (8, 8), padding=1), dy, w)
    assert sums == pytest.approx(3592.4293410120245, rel=1e-9)
    assert np.abs(total).sum() == pytest.approx(4040.626098357636, rel=1e-9)
    # The list of cases has 184.4516036 as the first norm, two digits exchanged; NumPy alone, tap by tap, gives this one.
    assert norms == pytest.approx([184.451583608555, 410.33432137392424, 503.21636310338204], rel=1e-9)


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_a_special_pixel_reaches_what_sees_it_and_nothing_else(special):
    x, w = random((2, 3, 7, 9)), random((5, 3, 3, 3), seed=1)
    x[0, 1, 3, 4] = special
    y = run(lambda x, w: ops.conv2d(x, w, padding=1), x, w)
    reached = np.zeros(y.shape, bool)
    reached[0, :, 2:5, 3:6] = True
    np.testing.assert_array_equal(~np.isfinite(y), reached)
    dw = run(lambda x, dy: ops.conv2d_weight_grad(x, dy, (3, 3), padding=1), x, np.ones_like(y))
    np.testing.assert_array_equal(~np.isfinite(dw), np.broadcast_to([[[False]], [[True]], [[False]]], dw.shape))
    dy = np.ones((2, 5, 7, 9), np.float32)
    dy[1, 4, 0, 0] = special
    dx = run(lambda dy, w: ops.conv2d_input_grad(dy, w, (7, 9), padding=1), dy, w)
    reached = np.zeros(dx.shape, bool)
    reached[1, :, :2, :2] = True
    np.testing.assert_array_equal(~np.isfinite(dx), reached)


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_a_special_pixel_stays_in_its_channel(special):
    x, w = random((2, 3, 7, 19)), random((3, 1, 3, 3), seed=1)
    x[0, 1, 3, 18] = special
    y = run(lambda x, w: ops.conv2d(x, w, padding=1, groups=3), x, w)
    reached = np.zeros(y.shape, bool)
    reached[0, 1, 2:5, 17:] = True
    np.testing.assert_array_equal(~np.isfinite(y), reached)
    dw = run(lambda x, dy: ops.conv2d_weight_grad(x, dy, (3, 3), padding=1, groups=3), x, np.ones_like(y))
    reached = np.zeros(dw.shape, bool)
    reached[1, 0, :, 1:] = True  # the left column of taps never lies on the last column of pixels
    np.testing.assert_array_equal(~np.isfinite(dw), reached)
    dx = run(lambda dy, w: ops.conv2d_input_grad(dy, w, (7, 19), padding=1, groups=3), x, w)
    np.testing.assert_array_equal(~np.isfinite(dx), ~np.isfinite(y))


def test_a_special_pixel_reaches_through_depth():
    x, w = random((1, 2, 5, 4, 6)), random((2, 2, 3, 3, 3), seed=1)
    x[0, 1, 2, 2, 3] = np.nan
    y = run(lambda x, w: ops.conv3d(x, w, padding=1), x, w)
    reached = np.zeros(y.shape, bool)
    reached[:, :, 1:4, 1:4, 2:5] = True
    np.testing.assert_array_equal(np.isnan(y), reached)


def test_one_axis_is_a_single_row():
    x, w, b = random((2, 4, 33)), random((6, 2, 3), seed=1), random(6, seed=2)
    y = run(lambda x, w, b: ops.conv1d(x, w, b, 2, (1, 2), 3, 2), x, w, b)
    rows = {"stride": (1, 2), "padding": ((0, 0), (1, 2)), "dilation": (1, 3), "groups": 2}
    alike = run(lambda x, w, b: ops.conv2d(x, w, b, **rows), x[:, :, None], w[:, :, None], b)
    np.testing.assert_array_equal(y, alike[:, :, 0])
    assert ops.conv1d(tensor(Dim.symbol("N"), 1, 9), tensor(2, 1, 3)).shape == (Dim.symbol("N"), 2, 7)


def test_a_transposed_convolution_is_the_gradient_of_one():
    x, w = random((2, 6, 3, 4), "float64"), random((6, 2, 3, 3), "float64", 1)
    y = run(lambda x, w: ops.conv_transpose(x, w, stride=2, padding=1, output_padding=1, groups=2), x, w)
    assert y.shape == (2, 4, 6, 8)
    seen = run(lambda y, w: ops.conv2d(y, w, stride=2, padding=1, groups=2), y, w)
    assert np.vdot(seen, x) == pytest.approx(np.vdot(y, y), rel=1e-12)
    n = Dim.symbol("N")
    assert ops.conv_transpose(tensor(n, 2, n), tensor(2, 3, 3), stride=2).shape == (n, 3, 2 * (n - 1) + 3)


def test_pixels_that_no_tap_reaches_have_no_gradient():
    dy, w = random((2, 3, 4, 4)), random((3, 2, 1, 1), seed=1)
    dx = run(lambda dy, w: ops.conv2d_input_grad(dy, w, (8, 7), stride=2), dy, w)
    assert not dx[:, :, 1::2].any()
    assert not dx[..., 1::2].any()
    np.testing.assert_allclose(dx[:, :, ::2, ::2], np.einsum("noij,oc->ncij", dy, w[:, :, 0, 0]), rtol=1e-5, atol=1e-5)


def test_open_shapes():
    n, h = Dim.symbol("N"), Dim.symbol("H")
    x, w = tensor(n, 3, h, h), tensor(6, 3, 3, 3)
    assert ops.conv2d(x, w, padding=1).shape == (n, 6, h, h)
    y = ops.conv2d(x, w, tensor(6), stride=2, padding=1)
    assert str(y.shape[2]) == "((H - 1) // 2) + 1" or y.shape[2] == (h - 1) // 2 + 1
    assert ops.conv2d_input_grad(y, w, (h, h), stride=2, padding=1).shape == (n, 3, h, h)
    assert ops.conv2d_weight_grad(x, y, (3, 3), stride=2, padding=1).shape == (6, 3, 3, 3)


def test_attributes_may_be_single_numbers():
    wanted = {"stride": (2, 2), "padding": ((1, 1), (1, 1)), "dilation": (3, 3), "groups": 1}
    assert ops.conv2d(tensor(1, 1, 9, 9), tensor(1, 1, 3, 3), None, 2, 1, 3).producer.attributes == wanted


@pytest.mark.parametrize(
    ("shapes", "attributes", "words"),
    [
        ([(3, 8, 8), (6, 3, 3, 3)], {}, ["rank 4", "(N, C, H, W)", "(3, 8, 8)"]),
        ([(2, 3, 8, 8), (6, 3, 3)], {}, ["rank 4", "(6, 3, 3)"]),
        ([(2, 4, 8, 8), (6, 3, 3, 3)], {}, ["expected 3 channels", "got 4"]),
        ([(2, 4, 8, 8), (6, 3, 3, 3)], {"groups": 2}, ["expected 6 channels", "2 group"]),
        ([(2, 4, 8, 8), (5, 2, 3, 3)], {"groups": 2}, ["2 groups divide", "got 5"]),
        ([(2, 3, 8, 8), (6, 3, 3, 3), (3,)], {}, ["bias", "(6,)", "(3,)"]),
        ([(2, 3, 2, 8), (6, 3, 3, 3)], {}, ["2 x 8", "3 x 3", "smaller filter"]),
        ([(2, 3, 8, 8), (6, 3, 3, 3)], {"dilation": 4}, ["8 x 8", "dilation (4, 4)"]),
    ],
)
def test_conv2d_refuses(shapes, attributes, words):
    with pytest.raises(ShapeError) as caught:
        ops.conv2d(*(tensor(*shape) for shape in shapes), **attributes)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (lambda: ops.conv3d(tensor(2, 3, 8, 8), tensor(6, 3, 3, 3, 3)), ["conv3d", "rank 5", "(N, C, D, H, W)"]),
        (lambda: ops.conv3d(tensor(2, 3, 2, 8, 8), tensor(6, 3, 3, 3, 3)), ["conv3d", "3 x 3 x 3", "2 x 8 x 8"]),
        (lambda: ops.conv1d(tensor(2, 3, 8, 8), tensor(6, 3, 3)), ["conv1d", "rank 3", "(N, C, L)"]),
        (lambda: ops.conv1d(tensor(2, 4, 8), tensor(6, 3, 3)), ["conv1d", "expected 3 channels", "got 4"]),
        (lambda: ops.conv1d(tensor(2, 3, 2), tensor(6, 3, 3)), ["conv1d", "at least the filter, 3", "got 2"]),
        (lambda: ops.conv_transpose(tensor(2, 3), tensor(3, 3)), ["one to three axes", "(2, 3)"]),
        (lambda: ops.conv_transpose(tensor(2, 3, 4, 4), tensor(3, 2, 3)), ["(C, O / groups, KH, KW)", "(3, 2, 3)"]),
        (lambda: ops.conv_transpose(tensor(2, 3, 4), tensor(4, 2, 3)), ["expected 4 channels", "got 3"]),
        (lambda: ops.conv_transpose(tensor(2, 3, 4), tensor(3, 2, 3), groups=2), ["2 groups divide", "got 3"]),
        (lambda: ops.conv_transpose(tensor(2, 3, 1), tensor(3, 2, 3), padding=2), ["at least one pixel", "got -1"]),
        (lambda: ops.conv_transpose(tensor(2, 3, 4), tensor(3, 2, 3), tensor(3)), ["bias", "(2,)", "(3,)"]),
    ],
)
def test_others_refuse(record, words):
    with pytest.raises(ShapeError) as caught:
        record()
    assert all(word in str(caught.value) for word in words)


def test_output_padding_is_smaller_than_stride_or_dilation():
    with pytest.raises(GraphError, match="output_padding smaller than stride or dilation, got 2"):
        ops.conv_transpose(tensor(2, 3, 4), tensor(3, 2, 3), stride=2, output_padding=2)


@pytest.mark.parametrize(
    "attributes",
    [
        {"stride": 0},
        {"dilation": (1, 0)},
        {"padding": -1},
        {"padding": (1, 2, 3)},
        {"groups": 0},
        {"stride": (1, 1, 1)},
    ],
)
def test_attributes_out_of_range(attributes):
    with pytest.raises(GraphError, match=next(iter(attributes))):
        ops.conv2d(tensor(1, 1, 9, 9), tensor(1, 1, 3, 3), **attributes)


def test_an_open_size_is_looked_at_when_the_kernel_is_chosen():
    y = ops.conv2d(tensor(1, 1, Dim.symbol("H"), 9), tensor(1, 1, 5, 5))
    with pytest.raises(ShapeError, match="4 x 9"):
        registry["conv2d"].cpu(call_of(y.producer, {"H": 4}))


def test_gradients_refuse_other_sizes():
    with pytest.raises(ShapeError, match=r"\(2, 6, 8, 8\), got \(2, 6, 7, 8\)"):
        ops.conv2d_input_grad(tensor(2, 6, 7, 8), tensor(6, 3, 3, 3), (8, 8), padding=1)
    with pytest.raises(ShapeError, match=r"\(2, 6, 8, 8\), got \(2, 6, 8, 7\)"):
        ops.conv2d_weight_grad(tensor(2, 3, 8, 8), tensor(2, 6, 8, 7), (3, 3), padding=1)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "forward", "input_grad"),
    [
        ((1, 64, 6000, 6000), (8, 64, 3, 3), 64 * 6002**2, None),
        ((1, 64, 6000, 6000), (64, 64, 1, 1), 64 * 6002**2, None),  # the gradient finds filters without a table
        ((1, 1, 40000, 40000), (4, 1, 3, 3), None, 4 * 40000**2),
        ((1, 20000, 3, 3), (20000, 20000, 3, 3), None, 9 * 20000**2),  # weights
        ((2, 4, 30000, 20000), (4, 2, 3, 3), None, None),  # only both groups together have as many
    ],
)
def test_a_gpu_refuses_distances_of_more_than_32_bits(x_shape, w_shape, forward, input_grad):
    options = {"padding": 1, "groups": x_shape[1] // w_shape[1]}
    y = ops.conv2d(tensor(*x_shape), tensor(*w_shape), **options)
    dx = ops.conv2d_input_grad(y, tensor(*w_shape), x_shape[2:], **options)
    for made, elements in ((y, forward), (dx, input_grad)):
        call = call_of(made.producer, {})
        if elements is None:
            assert made.producer.op.cuda_rows(call, Device())
        else:
            with pytest.raises(ShapeError, match=f"at most 2147483647 elements of each group .* got {elements}; cut"):
                made.producer.op.cuda_rows(call, Device())


@pytest.mark.parametrize(
    ("x_shape", "elements"),
    [
        ((70000, 1, 40000, 2, 2), 70000 << 16),  # images and depths, which share 32 bits
        ((1, 1, 1, 50000, 50000), 50000**2),
        ((1, 1, 2, 40000, 20000), None),
        ((1, 3, 1, 30000, 30000), None),  # only all channels together have as many
    ],
)
def test_the_weights_gradient_refuses_them_too(x_shape, elements):
    taps, stride = ((2, 2, 2), (20000, 1, 1)) if x_shape[2] > 2 else ((1, 1, 1), (1, 1, 1))
    x, w = tensor(*x_shape), tensor(2, x_shape[1], *taps)
    made = ops.conv3d_weight_grad(x, ops.conv3d(x, w, stride=stride), taps, stride=stride)
    call = call_of(made.producer, {})
    if elements is None:
        assert made.producer.op.cuda_rows(call, Device())
    else:
        with pytest.raises(ShapeError, match=f"at most 2147483647 elements of each group .* got {elements}; cut"):
            made.producer.op.cuda_rows(call, Device())


def test_dtypes_do_not_mix():
    with pytest.raises(DTypeError, match="float32, float64"):
        ops.conv2d(tensor(1, 1, 9, 9), tensor(1, 1, 3, 3, dtype="float64"))


def test_flops_are_the_same_for_all_three():
    x, w = tensor(2, 4, 9, 9), tensor(6, 2, 3, 3)
    y = ops.conv2d(x, w, stride=2, groups=2)
    dx = ops.conv2d_input_grad(y, w, (9, 9), stride=2, groups=2)
    dw = ops.conv2d_weight_grad(x, y, (3, 3), stride=2, groups=2)
    found = {registry[t.producer.op.name].flops(call_of(t.producer, {})) for t in (y, dx, dw)}
    assert found == {2 * (2 * 6 * 4 * 4) * (2 * 3 * 3)}


@pytest.mark.parametrize("tile", [{"lanes": 4, "height": 6}, {"lanes": 2, "height": 12}])
@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), GEOMETRIES[:2])
def test_tiles_of_other_machines(tile, x_shape, w_shape, attributes, monkeypatch):
    for walk in ("rows", "input_grad", "weight_grad"):
        monkeypatch.setattr(f"tapeprop.ops.conv.cpu.{walk}.microtile", lambda dtype: tile)
    x, w = random(x_shape, "float64"), random(w_shape, "float64", 1)
    y = run(lambda x, w: ops.conv2d(x, w, **attributes), x, w, workers=2)
    in_full = ops.conv2d(tensor(*x_shape), tensor(*w_shape), **attributes).producer.attributes
    np.testing.assert_allclose(y, by_loops(x, w, **in_full), rtol=1e-12, atol=1e-12)
    dx = run(lambda dy, w: ops.conv2d_input_grad(dy, w, x_shape[2:], **attributes), y, w, workers=2)
    dw = run(lambda x, dy: ops.conv2d_weight_grad(x, dy, w_shape[2:], **attributes), x, y, workers=2)
    assert np.vdot(x, dx) == pytest.approx(np.vdot(y, y), rel=1e-12)
    assert np.vdot(w, dw) == pytest.approx(np.vdot(y, y), rel=1e-12)
