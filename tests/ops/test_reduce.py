"""Reductions: values that the generated tests cannot know, ties, specials, accuracy, open shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.op_runner import gradient, run, trace

from tapeprop import ops
from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Dim, Input, Tensor
from tapeprop.ops.op import SIMULATED_DEVICE, Device
from tapeprop.ops.reduce.tiling import parts_of, tile_of

N, C = Dim.symbol("N"), Dim.symbol("C")


def tensor(*shape, dtype="float64"):
    return Tensor(shape, dtype, source=Input(0))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: ops.sum(x), 21.0),
        (lambda x: ops.sum(x, axis=0), [5.0, 7.0, 9.0]),
        (lambda x: ops.sum(x, axis=-1, keepdims=True), [[6.0], [15.0]]),
        (lambda x: ops.mean(x, axis=(0, 1)), 3.5),
        (lambda x: ops.mean(x, axis=0), [2.5, 3.5, 4.5]),
        (lambda x: ops.max(x, axis=1), [3.0, 6.0]),
        (lambda x: ops.min(x, axis=(1,), keepdims=True), [[1.0], [4.0]]),
        (lambda x: ops.sum_to(x, (1, 3)), [[5.0, 7.0, 9.0]]),
        (lambda x: ops.sum_to(x, (3,)), [5.0, 7.0, 9.0]),
        (lambda x: ops.sum_to(x, ()), 21.0),
        (lambda x: ops.square_sum(x), 91.0),
        (lambda x: ops.l2norm(x[:, 1:] - 2, axis=0), [3.0, np.sqrt(17.0)]),
    ],
)
def test_values(function, expected):
    x = np.arange(1.0, 7.0).reshape(2, 3)
    np.testing.assert_array_equal(run(function, x), expected)


@settings(max_examples=60)
@given(data=st.data())
def test_any_axes_of_any_shape(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=8)))
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1))))
    mode = data.draw(st.sampled_from(["sum", "mean", "max", "min"]))
    x = np.random.default_rng(len(shape)).standard_normal(shape)
    found = run(lambda t: ops.add(ops.reduce(t, mode, axes), 0.0), x, workers=3)
    np.testing.assert_allclose(found, getattr(np, mode)(x, axis=axes), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("axis", [0, 1])
def test_ties_share_the_gradient_equally(mode, axis):
    x = np.array([[1.0, 5.0, 5.0, 0.0, 5.0], [2.0, 2.0, 2.0, 2.0, 1.0]]) * (1.0 if mode == "max" else -1.0)
    x = x if axis == 1 else x.T.copy()
    (dx,) = gradient(lambda t: getattr(ops, mode)(t, axis=axis), x, flow=np.array([3.0, 8.0]))
    expected = np.array([[0.0, 1.0, 1.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0, 0.0]])
    np.testing.assert_array_equal(dx if axis == 1 else dx.T, expected)


def test_gradient_of_sum_and_mean():
    x = np.ones((2, 3))
    (dx,) = gradient(lambda t: ops.sum(t, axis=0), x, flow=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(dx, [[1.0, 2.0, 3.0]] * 2)
    (dx,) = gradient(lambda t: ops.mean(t, axis=1, keepdims=True), x, flow=np.array([[3.0], [6.0]]))
    np.testing.assert_array_equal(dx, [[1.0] * 3, [2.0] * 3])


def test_the_l2_norm_has_a_gradient_at_zero():
    x = np.array([[3.0, 4.0], [0.0, 0.0]])
    (slope,) = gradient(lambda x: ops.l2norm(x, axis=1), x)
    np.testing.assert_allclose(slope, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-15)
    np.testing.assert_array_equal(run(lambda x: ops.l2norm(x), np.array([np.nan, 1.0])), np.nan)


def test_a_gradient_is_summed_over_broadcast_axes():
    x, s = np.arange(1.0, 7.0).reshape(1, 2, 3), np.array([[[2.0], [3.0]]])
    dx, ds = gradient(lambda a, b: ops.multiply(a, b), x, s)
    np.testing.assert_array_equal(ds.reshape(-1), [6.0, 15.0])
    np.testing.assert_array_equal(dx[0], [[2.0, 2.0, 2.0], [3.0, 3.0, 3.0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("place", [0, 3, 17, 63, 64, 130])
def test_nan_and_infinities_propagate(dtype, mode, axis, place):
    x = np.random.default_rng(0).standard_normal((131, 131)).astype(dtype)
    line = (slice(None), 5) if axis == 0 else (5, slice(None))
    x[line][place] = np.nan
    x[line][0 if place else 1] = np.inf  # a NaN wins over what comes before and after it
    other = (slice(None), 7) if axis == 0 else (7, slice(None))
    x[other][place] = np.inf
    x[other][100] = -np.inf
    found = run(lambda t: ops.reduce(t, mode, axis), x)
    assert np.isnan(found[5])
    if mode in ("max", "min"):
        assert found[7] == (np.inf if mode == "max" else -np.inf)
    else:
        assert np.isnan(found[7])
    assert np.isfinite(np.delete(found, [5, 7])).all()


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_extremes_of_infinities_alone(mode, value):
    x = np.full((3, 70), value)
    np.testing.assert_array_equal(run(lambda t: ops.reduce(t, mode, 1), x), [value] * 3)
    np.testing.assert_array_equal(run(lambda t: ops.reduce(t, mode, 0), x), [value] * 70)


@pytest.mark.parametrize("axis", [0, 1])
def test_float32_sums_are_rounded_once(axis):
    # 1 + 2^20 * 2^-24: adding the small numbers one by one in float32 would leave 1
    x = np.full((1 << 12, 4), 2.0**-24, np.float32)
    x[0] = 1.0
    x = x if axis == 0 else x.T.copy()
    exact = np.float32(1.0 + 4095 * 2.0**-24)
    np.testing.assert_array_equal(run(lambda t: ops.sum(t, axis=axis), x), [exact] * 4)


def test_float32_sum_beyond_the_range_of_its_parts():
    x = np.array([3e38, 3e38, -3e38], np.float32)
    assert run(lambda t: ops.sum(t), x) == x[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 8191, 8192, 8193, 50_000])
def test_square_sum(dtype, size):
    x = np.random.default_rng(size).standard_normal(size).astype(dtype)
    found = [run(lambda t: ops.square_sum(t), x, workers=w) for w in (1, 2, 3)]
    assert found[0].dtype == np.float64
    assert found[0].shape == ()
    assert found[0] == found[1] == found[2]
    np.testing.assert_allclose(found[0], np.sum(x.astype(np.float64) ** 2), rtol=1e-14)


@settings(max_examples=200)
@given(
    outputs=st.integers(0, 1 << 24),
    terms=st.integers(1, 1 << 28),
    across=st.booleans(),
    device=st.sampled_from([Device(), SIMULATED_DEVICE, Device(1024, 64)]),
)
def test_tiles_of_a_gpu_fill_a_block_and_parts_the_device(outputs, terms, across, device):
    width, lanes = tile_of(outputs, terms, outputs if across else 1, device)
    assert width * lanes == device.block
    assert {width.bit_count(), lanes.bit_count()} == {1}
    tiles = -(-outputs // width)
    parts = parts_of(outputs, terms, (width, lanes), device)
    assert parts == 1 or tiles * parts <= device.blocks
    assert parts == 1 or terms // parts >= lanes  # no thread without a term in most parts
    if tiles == 1:
        assert parts == min(device.blocks, -(-terms // (16 * lanes))) or terms <= 32 * lanes


def test_open_sizes():
    x = tensor(N, 3, C)
    assert ops.sum(x, axis=0).shape == (3, C)
    assert ops.mean(x, axis=(0, 2), keepdims=True).shape == (1, 3, 1)
    assert ops.sum_to(x, (3, 1)).shape == (3, 1)
    assert ops.sum_to(x, (N, 3, C)) is x
    assert ops.square_sum(x).shape == ()


def test_nothing_is_recorded_where_nothing_is_reduced():
    x = tensor(N, 1, 3)
    assert ops.sum(x, axis=()) is x
    assert ops.max(x, axis=1, keepdims=True) is x
    squeezed = ops.mean(x, axis=1)
    assert squeezed.shape == (N, 3)
    assert squeezed.producer.op.name == "reshape"
    scalar = tensor()
    assert ops.sum(scalar) is scalar


def test_more_groups_of_axes_than_a_kernel_takes():
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 3, 2, 3, 2, 3, 2))
    inputs, (output,) = trace(lambda t: ops.sum(t, axis=(0, 2, 4, 6, 8)), [x])
    assert output.shape == (3, 3, 3, 3)
    assert output.producer.operands[0] is not inputs[0]
    np.testing.assert_allclose(
        run(lambda t: ops.mean(t, axis=(0, 2, 4, 6, 8)), x), x.mean(axis=(0, 2, 4, 6, 8)), rtol=1e-13
    )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.sum(tensor(2, 3), axis=2), ShapeError, "from -2 to 1"),
        (lambda: ops.sum(tensor(2, 3), axis=(1, -1)), ShapeError, "each axis once"),
        (lambda: ops.reduce(tensor(2, 3), "median"), ShapeError, "median"),
        (lambda: ops.max(tensor(2, 0, 3), axis=1), ShapeError, "(2, 0, 3)"),
        (lambda: ops.sum(tensor(3, dtype="int64")), DTypeError, "int64"),
        (lambda: ops.square_sum(tensor(3, dtype="int64")), DTypeError, "int64"),
        (lambda: ops.sum_to(tensor(2, 3), (2, 2)), ShapeError, "(2, 2)"),
        (lambda: ops.sum_to(tensor(3), (2, 3)), ShapeError, "more axes"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
