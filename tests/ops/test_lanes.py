"""The batch-lane layout: the same values as the ops on images, ties and specials, any tile the same bits, errors, open shapes."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.kernel_harness import run_launch
from ops.op_runner import gradient, run

from tapeprop import ops
from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.ir import Dim, Input, Tensor
from tapeprop.ops.lanes.cpu import conv as kernels
from tapeprop.ops.lanes.cpu import tiles
from tapeprop.ops.op import ArrayType, Call, registry
from tapeprop.targets.cpu.kernel import run_plain

N, H = Dim.symbol("N"), Dim.symbol("H")
LANES = {"float32": 16, "float64": 8}


def tensor(*shape, dtype="float32"):
    return Tensor(shape, dtype, source=Input(0))


def drawn(*shapes, dtype="float64", seed=0):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


def in_lanes(x, lanes=8):
    """(N, ...) as (N / lanes, ..., lanes)."""
    return np.ascontiguousarray(np.moveaxis(x.reshape(-1, lanes, *x.shape[1:]), 1, -1))


# ---- conversions


def test_lane_of_an_image_is_its_number_in_the_group():
    x = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    y = run(lambda t: ops.to_lanes(t, 8), x)
    assert y.shape == (2, 3, 8)
    assert y[1, 2, 5] == x[13, 2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(32, 5), (32, 2, 3, 16), (64, 3, 1, 173)])
def test_there_and_back_gives_the_same_bits(dtype, shape):
    (x,) = drawn(shape, dtype=dtype)
    there = run(lambda t: ops.to_lanes(t, LANES[dtype]), x, workers=3)
    np.testing.assert_array_equal(there, in_lanes(x, LANES[dtype]))
    np.testing.assert_array_equal(run(lambda t: ops.from_lanes(t, shape[0]), there, workers=3), x)


def test_open_batches_keep_one_form():
    x = ops.to_lanes(tensor(N, 3, H, H), 16)
    assert x.shape == (N // 16, 3, H, H, 16)
    assert ops.from_lanes(x, N).shape == (N, 3, H, H)
    y = ops.conv2d_lanes(x, tensor(6, 3, 3, 3), padding=1)
    assert y.shape == (N // 16, 6, H, H, 16)
    assert ops.max_pool2d_lanes(y, 2).shape == (N // 16, 6, H // 2, H // 2, 16)


# ---- the same as on images


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("x", "w", "stride", "padding"),
    [((32, 3, 9, 8), (6, 3, 3, 3), 1, 1), ((16, 1, 12, 12), (6, 1, 5, 5), 1, 2), ((16, 6, 8, 9), (9, 6, 3, 3), 2, 1)],
)
def test_convolution_equals_the_one_on_images(dtype, x, w, stride, padding):
    image, weight, bias = drawn(x, w, (w[0],), dtype=dtype)
    lanes, geometry = LANES[dtype], {"stride": stride, "padding": padding}
    bound = {"rtol": 0, "atol": 2e-4 if dtype == "float32" else 1e-12}  # sums of up to 1152 and of 2304 terms of size 1

    def both(images, laned, *arrays):
        expected = run(images, *arrays)
        np.testing.assert_allclose(run(laned, *arrays, workers=2), expected, **bound)
        return expected

    y = both(
        lambda a, k, b: ops.conv2d(a, k, b, **geometry),
        lambda a, k, b: ops.from_lanes(ops.conv2d_lanes(ops.to_lanes(a, lanes), k, b, **geometry), x[0]),
        image, weight, bias,
    )  # fmt: skip
    (flow,) = drawn(y.shape, dtype=dtype, seed=1)
    size, kernel = x[2:], w[2:]
    both(
        lambda g, k: ops.conv2d_input_grad(g, k, size, **geometry),
        lambda g, k: ops.from_lanes(ops.conv2d_lanes_input_grad(ops.to_lanes(g, lanes), k, size, **geometry), x[0]),
        flow, weight,
    )  # fmt: skip
    both(
        lambda a, g: ops.conv2d_weight_grad(a, g, kernel, **geometry),
        lambda a, g: ops.conv2d_lanes_weight_grad(ops.to_lanes(a, lanes), ops.to_lanes(g, lanes), kernel, **geometry),
        image, flow,
    )  # fmt: skip


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((1, 2), (2, 3), 0)])
def test_pools_equal_those_on_images_for_ties_and_specials(size, stride, padding):
    random = np.random.default_rng(0)
    x = random.integers(-2, 3, (16, 2, 7, 8)).astype(np.float64)  # most windows tie
    x[random.random(x.shape) < 0.05] = np.nan
    x[random.random(x.shape) < 0.05] = -np.inf
    x[0, 0] = -np.inf
    window = {"size": size, "stride": stride, "padding": padding}
    for images, laned in (
        (lambda t: ops.max_pool2d(t, **window), lambda t: ops.max_pool2d_lanes(t, **window)),
        (lambda t: ops.avg_pool2d(t, **window), lambda t: ops.avg_pool2d_lanes(t, **window)),
    ):
        expected = run(images, x)
        np.testing.assert_array_equal(run(laned, in_lanes(x)), in_lanes(expected))
        flow = random.standard_normal(expected.shape)
        np.testing.assert_allclose(
            gradient(laned, in_lanes(x), flow=in_lanes(flow))[0],
            in_lanes(gradient(images, x, flow=flow)[0]),
            rtol=1e-13,
        )


def test_gradient_kernel_of_the_maximum_breaks_ties_as_its_reference():
    op, attributes = registry["max_pool2d_lanes_grad"], {"size": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0))}
    x = np.zeros((1, 1, 2, 4, 8))
    x[..., 2:, :] = np.nan
    y, dy = np.stack([np.zeros(8), np.full(8, np.nan)]).reshape(1, 1, 1, 2, 8), np.ones((1, 1, 1, 2, 8))
    call = Call(tuple(ArrayType(a.shape, "float64") for a in (x, y, dy)), (ArrayType(x.shape, "float64"),), attributes)
    (found,) = run_launch(op.cpu(call), call, [x, y, dy], 1)
    expected = np.zeros(x.shape)
    expected[:, :, 0, ::2] = 1
    np.testing.assert_array_equal(found, expected)


# ---- the activation


def test_relu_keeps_nan_and_infinity():
    x = np.array([1.0, -1.0, np.nan, np.inf, -np.inf, 0.0, -0.5, 2.0]).reshape(1, 1, 1, 1, 8)
    expected = np.array([1.0, 0.0, np.nan, np.inf, 0.0, 0.0, 0.0, 2.0]).reshape(1, 1, 1, 1, 8)
    one = np.ones((1, 1, 1, 1))
    np.testing.assert_array_equal(run(lambda a, w: ops.conv2d_lanes(a, w, activation="relu"), x, one), expected)
    np.testing.assert_array_equal(run(lambda a: ops.max_pool2d_lanes(a, 1, activation="relu"), x), expected)


def test_fused_relu_has_the_gradient_of_relu_behind():
    x, w, b = drawn((2, 3, 5, 5, 8), (4, 3, 3, 3), (4,))
    fused = gradient(lambda *t: ops.conv2d_lanes(*t, padding=1, activation="relu"), x, w, b, flow=0.5)
    apart = gradient(lambda *t: ops.relu(ops.conv2d_lanes(*t, padding=1)), x, w, b, flow=0.5)
    for a, c in zip(fused, apart, strict=True):
        np.testing.assert_array_equal(a, c)
    fused = gradient(lambda t: ops.max_pool2d_lanes(t, 2, activation="relu"), x, flow=0.5)
    apart = gradient(lambda t: ops.relu(ops.max_pool2d_lanes(t, 2)), x, flow=0.5)
    np.testing.assert_array_equal(fused[0], apart[0])


# ---- the kernels


@settings(max_examples=60)
@given(data=st.data())
def test_bodies_hold_for_any_geometry(data):
    draw = data.draw
    kernel, stride = ([draw(st.integers(1, 4)) for _ in range(2)] for _ in range(2))
    padding = [[draw(st.integers(0, 3)) for _ in range(2)] for _ in range(2)]
    size = [draw(st.integers(max(1, k - sum(p)), 9)) for k, p in zip(kernel, padding)]
    channels, filters = draw(st.integers(1, 5)), draw(st.integers(1, 11))
    x, w = (draw(st.integers(1, 2)), channels, *size, 4), (filters, channels, *kernel)
    out = [(n + sum(p) - k) // s + 1 for n, p, k, s in zip(size, padding, kernel, stride)]
    y = (x[0], filters, *out, 4)
    geometry = {"stride": tuple(stride), "padding": tuple(map(tuple, padding))}
    for name, operands, result, more in (
        ("conv2d_lanes", (x, w), y, {"activation": draw(st.sampled_from([None, "relu"]))}),
        ("conv2d_lanes_input_grad", (y, w), x, {"size": x[2:4]}),
        ("conv2d_lanes_weight_grad", (x, y), w, {"kernel": w[2:]}),
    ):
        op, arrays = registry[name], drawn(*operands)
        kinds = tuple(ArrayType(shape, "float64") for shape in operands)
        call = Call(kinds, (ArrayType(result, "float64"),), geometry | more)
        near = dict.fromkeys(("NEAR", "NEAR_GRADIENT"), draw(st.sampled_from([1, 1 << 10, 20 << 10])))
        with mock.patch.multiple(
            tiles,
            **near,
            TOGETHER=draw(st.integers(1, 5)),
            GRAINS=draw(st.integers(1, 9)),
            MANY_BLOCKS=draw(st.integers(1, 3)),
        ):
            (found,) = run_launch(op.cpu(call), call, arrays, 1, run=run_plain)
        np.testing.assert_allclose(found, op.reference(call, *arrays)[0], rtol=1e-12, atol=1e-12)


def test_any_tile_gives_the_same_bits(monkeypatch):
    x, w, b = drawn((2, 5, 6, 11, 16), (7, 5, 3, 3), (7,), dtype="float32")
    attributes = {"stride": (2, 2), "padding": ((1, 1), (1, 1)), "activation": None}
    call = Call(
        tuple(ArrayType(a.shape, "float32") for a in (x, w, b)), (ArrayType((2, 7, 3, 6, 16), "float32"),), attributes
    )
    found = []
    for size, pixels, near in ((7, 2, 20 << 10), (4, 4, 1), (2, 1, 4 << 10)):  # 1 byte: channel by channel
        tile = tiles.Blocks(7, -(-7 // size)), pixels
        monkeypatch.setattr(kernels, "correlation_tile", lambda *_, tile=tile: tile)
        monkeypatch.setattr(tiles, "NEAR", near)
        monkeypatch.setattr(tiles, "MANY_BLOCKS", size)  # 7 channels in blocks of 2 are copied first
        found += run_launch(registry["conv2d_lanes"].cpu(call), call, [x, w, b], 2)
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


@pytest.mark.parametrize(("registers", "parts"), [(16, 1), (16, 2), (32, 1), (32, 4)])
def test_tiles_fit_the_registers_and_cover_all_channels(registers, parts):
    for count in (1, 2, 3, 6, 7, 13, 16, 36, 64, 100):
        for width, taps, stride in ((1, 1, 1), (5, 3, 1), (14, 5, 1), (32, 3, 2), (50, 13, 1)):
            split, pixels = tiles.correlation_tile(registers, parts, count, width, width * stride, -1, taps, stride)
            assert split.tall * split.size + (split.blocks - split.tall) * split.fewer == count
            assert (split.size + 1) * pixels * parts < registers
        for ins, taps in ((1, 1), (3, 3), (16, 3), (7, 5), (12, 1), (5, 11)):
            split, group = tiles.gradient_tile(registers, count, ins, taps)
            assert split.tall * split.size + (split.blocks - split.tall) * split.fewer == count
            assert ins % group == 0


# ---- errors


def test_errors_name_what_came():
    x, w = tensor(2, 3, 8, 8, 16), tensor(6, 3, 3, 3)
    with pytest.raises(ShapeError, match=r"batch that 16 lanes divide, got shape \(24, 3\)"):
        ops.to_lanes(tensor(24, 3), 16)
    with pytest.raises(ShapeError, match="got 5;"):
        ops.to_lanes(tensor(25, 3), 5)
    with pytest.raises(ShapeError, match="rank 2"):
        ops.to_lanes(tensor(16), 16)
    with pytest.raises(ShapeError, match="groups of 16 of 48 images"):
        ops.from_lanes(x, 48)
    with pytest.raises(ShapeError, match="rank 5"):
        ops.conv2d_lanes(tensor(2, 3, 8, 8), w)
    with pytest.raises(ShapeError, match="3 channels"):
        ops.conv2d_lanes(tensor(2, 4, 8, 8, 16), w)
    with pytest.raises(GraphError, match="tanh"):
        ops.conv2d_lanes(x, w, activation="tanh")
    with pytest.raises(GraphError, match="stride"):
        ops.conv2d_lanes(x, w, stride=0)
    with pytest.raises(DTypeError, match="float64"):
        ops.conv2d_lanes(x, tensor(6, 3, 3, 3, dtype="float64"))
    with pytest.raises(ShapeError, match="at least the filter"):
        ops.conv2d_lanes(tensor(2, 3, 2, 2, 16), w)
    with pytest.raises(ShapeError, match="equal lanes"):
        ops.conv2d_lanes_weight_grad(x, tensor(4, 6, 6, 6, 8), (3, 3))
    with pytest.raises(ShapeError, match="half the window"):
        ops.max_pool2d_lanes(x, 2, padding=2)
    with pytest.raises(GraphError, match="swish"):
        ops.max_pool2d_lanes(x, 2, activation="swish")


def test_open_sizes_are_checked_when_they_are_known():
    op = registry["to_lanes"]
    call = Call((ArrayType((24, 3), "float32"),), (ArrayType((1, 3, 16), "float32"),), {"lanes": 16})
    with pytest.raises(ShapeError, match="got 24 images"):
        op.cpu(call)
    op, geometry = registry["conv2d_lanes"], {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "activation": None}
    kinds = ArrayType((1, 1, 2, 2, 16), "float32"), ArrayType((1, 1, 3, 3), "float32")
    with pytest.raises(ShapeError, match="at least the filter, 3 x 3, got 2 x 2"):
        op.cpu(Call(kinds, (ArrayType((1, 1, 0, 0, 16), "float32"),), geometry))
