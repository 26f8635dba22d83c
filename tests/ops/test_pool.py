"""Pooling: every geometry against loops, ties, padding, specials, refusals, open shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.op_runner import gradient, run

from tapeprop import ops
from tapeprop.compiler.interpret import call_of
from tapeprop.errors import ShapeError
from tapeprop.ir import Dim, Input, Tensor
from tapeprop.ops.op import record

INF, NAN = np.inf, np.nan


def image(*rows):
    return np.array([[rows]], dtype=np.float64)


def windows(shape, size, stride, padding):
    """(output row, output column, its elements of the image as (rows, columns), row-major) of every window."""
    (top, bottom), (left, right) = padding
    for oy in range((shape[2] + top + bottom - size[0]) // stride[0] + 1):
        for ox in range((shape[3] + left + right - size[1]) // stride[1] + 1):
            y, x = oy * stride[0] - top, ox * stride[1] - left
            places = [(i, j) for i in range(y, y + size[0]) for j in range(x, x + size[1])]
            yield oy, ox, [(i, j) for i, j in places if 0 <= i < shape[2] and 0 <= j < shape[3]]


@st.composite
def geometries(draw):
    size = (draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    padding = tuple((draw(st.integers(0, n // 2)), draw(st.integers(0, n // 2))) for n in size)
    least = [max(1, n - sum(side)) for n, side in zip(size, padding)]
    shape = (1, draw(st.integers(1, 3)), draw(st.integers(least[0], 9)), draw(st.integers(least[1], 40)))
    return shape, size, stride, padding


@settings(max_examples=60)
@given(geometries(), st.sampled_from(["float32", "float64"]), st.integers(1, 3))
def test_maximum_against_loops(geometry, dtype, workers):
    shape, size, stride, padding = geometry
    x = np.random.default_rng(0).integers(-3, 3, shape).astype(dtype)  # few values: many ties
    y = run(lambda t: ops.max_pool2d(t, size, stride, padding), x, workers=workers)
    dy = np.arange(1, y.size + 1, dtype=dtype).reshape(y.shape)
    dx = run(lambda a, b: record("max_pool2d_grad", [a, b], _attributes(geometry))[0], x, dy, workers=workers)
    wanted = np.zeros_like(x)
    for c in range(shape[1]):
        for oy, ox, places in windows(*geometry):
            values = [x[0, c, i, j] for i, j in places]
            assert y[0, c, oy, ox] == max(values)
            i, j = places[int(np.argmax(values))]
            wanted[0, c, i, j] += dy[0, c, oy, ox]
    np.testing.assert_array_equal(dx, wanted)


@settings(max_examples=60)
@given(geometries(), st.sampled_from(["float32", "float64"]), st.booleans(), st.integers(1, 3))
def test_mean_against_loops(geometry, dtype, counted, workers):
    shape, size, stride, padding = geometry
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    y = run(lambda t: ops.avg_pool2d(t, size, stride, padding, counted), x, workers=workers)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    attributes = {**_attributes(geometry), "count_include_pad": counted, "height": shape[2], "width": shape[3]}
    dx = run(lambda t: record("avg_pool2d_grad", [t], attributes)[0], dy, workers=workers)
    wanted = np.zeros_like(x)
    tolerance = 1e-5 if dtype == "float32" else 1e-13  # 20 terms of about 1
    for c in range(shape[1]):
        for oy, ox, places in windows(*geometry):
            number = size[0] * size[1] if counted else len(places)
            assert y[0, c, oy, ox] == pytest.approx(sum(x[0, c, i, j] for i, j in places) / number, abs=tolerance)
            for i, j in places:
                wanted[0, c, i, j] += dy[0, c, oy, ox] / number
    np.testing.assert_allclose(dx, wanted, atol=tolerance)


def _attributes(geometry):
    _, size, stride, padding = geometry
    return {"size": size, "stride": stride, "padding": padding}


@settings(max_examples=25)
@given(geometries(), st.sampled_from(["float32", "float64"]), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_maximum_of_windows_with_gaps_against_loops(geometry, dtype, down, across, workers):
    shape, size, stride, padding = geometry
    shape = (*shape[:2], shape[2] + down * size[0], shape[3] + across * size[1])
    x = np.random.default_rng(0).integers(-3, 3, shape).astype(dtype)
    y = run(lambda t: ops.max_pool2d(t, size, stride, padding, (down, across)), x, workers=workers)
    attributes = {**_attributes(geometry), "dilation": (down, across)}
    dy = np.arange(1, y.size + 1, dtype=dtype).reshape(y.shape)
    dx = run(lambda a, b: record("max_pool2d_grad", [a, b], attributes)[0], x, dy, workers=workers)
    padded = np.pad(x, ((0, 0), (0, 0), *padding), constant_values=-INF)
    place = np.pad(np.arange(x[0, 0].size).reshape(shape[2:]), padding, constant_values=-1)
    wanted = np.zeros(shape, dtype)
    for c, oy, ox in np.ndindex(*y.shape[1:]):
        taps = np.ix_(oy * stride[0] + down * np.arange(size[0]), ox * stride[1] + across * np.arange(size[1]))
        values, places = padded[0, c][taps], place[taps]
        assert y[0, c, oy, ox] == values.max()
        wanted[0, c].reshape(-1)[places[places >= 0][values[places >= 0].argmax()]] += dy[0, c, oy, ox]
    np.testing.assert_array_equal(dx, wanted)


def test_other_ranks_are_images():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5, 6))
    boxes = np.lib.stride_tricks.sliding_window_view(x, (2, 3, 2), (2, 3, 4))[:, :, ::2, ::1, ::3]
    for function, mean in ((ops.max_pool3d, False), (ops.avg_pool3d, True)):
        y = run(lambda t, f=function: f(t, (2, 3, 2), (2, 1, 3)), x, workers=2)
        wanted = boxes.mean((5, 6, 7)) if mean else boxes.max((5, 6, 7))
        np.testing.assert_allclose(y, wanted, rtol=1e-13, atol=1e-15)
        row = run(lambda t, f=function: (ops.avg_pool1d if f is ops.avg_pool3d else ops.max_pool1d)(t, 2), x[0, 0])
        pairs = x[0, 0, :, :, :].reshape(4, 5, 3, 2)
        np.testing.assert_allclose(row, pairs.mean(-1) if mean else pairs.max(-1), rtol=1e-13, atol=1e-15)


def test_a_last_window_starts_in_the_image_or_the_padding_before_it():
    x = Tensor((1, 1, 7, 8), "float64", source=Input(0))
    assert ops.max_pool2d(x, 2, 2, ceil_mode=True).shape == (1, 1, 4, 4)
    assert ops.max_pool2d(x, 2, 3, 1, ceil_mode=True).shape == (
        1,
        1,
        3,
        3,
    )  # the fourth column would start behind the image
    assert ops.max_pool2d(x, 9, 4, ceil_mode=True).shape == (1, 1, 1, 1)


def test_a_tie_goes_to_the_first_in_row_major_order():
    x = image([1, 2, 0, 0], [2, 2, 0, 0])
    (dx,) = gradient(lambda t: ops.max_pool2d(t, 2), x)
    np.testing.assert_array_equal(dx, image([0, 1, 1, 0], [0, 0, 0, 0]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_wins_and_takes_the_gradient(dtype):
    x = image([5, NAN, 1, 1], [NAN, 7, INF, 2]).astype(dtype)
    np.testing.assert_array_equal(run(lambda t: ops.max_pool2d(t, 2), x), image([NAN, INF]))
    picked = run(
        lambda a, b: record("max_pool2d_grad", [a, b], _attributes((0, (2, 2), (2, 2), ((0, 0), (0, 0)))))[0],
        x,
        image([3, 4]).astype(dtype),
    )
    np.testing.assert_array_equal(picked, image([0, 3, 0, 0], [0, 0, 4, 0]))


def test_nan_stays_in_the_windows_that_hold_it():
    x = np.zeros((1, 1, 3, 9))
    x[0, 0, 1, 4] = NAN
    for pool in (ops.max_pool2d, ops.avg_pool2d):
        y = run(lambda t, pool=pool: pool(t, 3, 1, 1), x)
        assert np.isnan(y[0, 0, :, 3:6]).all()
        assert np.isfinite(np.delete(y, [3, 4, 5], 3)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_maximum_pads_with_minus_infinity_and_never_picks_the_padding(dtype):
    x = np.full((1, 1, 4, 4), -INF, dtype)
    y = run(lambda t: ops.max_pool2d(t, 3, 2, 1), x)
    np.testing.assert_array_equal(y, np.full((1, 1, 2, 2), -INF))
    attributes = _attributes((0, (3, 3), (2, 2), ((1, 1), (1, 1))))
    dx = run(lambda a, b: record("max_pool2d_grad", [a, b], attributes)[0], x, np.ones_like(y))
    assert dx.sum() == 4  # nothing is lost in the padding
    np.testing.assert_array_equal(
        run(lambda t: ops.max_pool2d(t, 3, 2, 1), -np.ones((1, 1, 4, 4), dtype)), -np.ones(y.shape)
    )


def test_mean_counts_the_padding_by_default():
    x = np.ones((1, 1, 2, 2))
    np.testing.assert_allclose(run(lambda t: ops.avg_pool2d(t, 3, 1, 1), x), np.full((1, 1, 2, 2), 4 / 9))
    counted = run(lambda t: ops.avg_pool2d(t, 3, 1, 1, count_include_pad=False), x)
    np.testing.assert_array_equal(counted, np.ones((1, 1, 2, 2)))


def test_stride_defaults_to_the_size():
    x = np.arange(12.0).reshape(1, 1, 2, 6)
    np.testing.assert_array_equal(run(lambda t: ops.max_pool2d(t, (2, 3)), x), image([8, 11]))
    np.testing.assert_array_equal(run(lambda t: ops.avg_pool2d(t, (2, 3)), x), image([4, 7]))


def test_rows_of_several_vectors():
    # up to 399 outputs, the last vector partly filled, for every kind of load
    x = np.arange(400.0).reshape(1, 1, 1, 400)
    for stride in (1, 2, 4):
        y = run(lambda t, s=stride: ops.max_pool2d(t, (1, 2), (1, s)), x)
        np.testing.assert_array_equal(y[0, 0, 0], np.arange(399)[::stride] + 1)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((3, 1, 2), "half the window"),
        ((2, 1, ((0, 0), (2, 0))), "half the window"),
        ((0, 1), "size"),
        ((2, 0), "stride"),
        ((2, 1, -1), "padding"),
        (((2, 2, 2), 1), "size"),
        ((5, 1), "at least the window"),
        ((6, 1, 1), "at least the window"),
    ],
)
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_geometry_that_is_refused(name, arguments, what):
    x = Tensor((1, 2, 3, 4), "float64", source=Input(0))
    with pytest.raises(ShapeError, match=f"{name}.*{what}"):
        getattr(ops, name)(x, *arguments)


def test_rank_is_checked():
    with pytest.raises(ShapeError, match=r"rank 4 \(N, C, H, W\), got shape \(2, 3, 4\)"):
        ops.max_pool2d(Tensor((2, 3, 4), "float64", source=Input(0)), 2)


def test_open_sizes():
    n, h, w = Dim.symbol("N"), Dim.symbol("H"), Dim.symbol("W")
    x = Tensor((n, 3, h, w), "float32", source=Input(0))
    y = ops.max_pool2d(x, 3, 2, 1)
    assert y.shape == (n, 3, (h - 1) // 2 + 1, (w - 1) // 2 + 1)
    assert ops.avg_pool2d(x, 3, 1, 1).shape == x.shape
    call = call_of(y.producer, {"N": 1, "H": 9, "W": 4})
    assert call.results[0].shape == (1, 3, 5, 2)


def test_a_window_too_large_for_an_open_image_is_refused_in_the_call():
    h = Dim.symbol("H")
    y = ops.max_pool2d(Tensor((1, 1, h, h), "float64", source=Input(0)), 3, 1)
    call = call_of(y.producer, {"H": 2})
    with pytest.raises(ShapeError, match="at least the window"):
        y.producer.op.cpu(call)
    with pytest.raises(ShapeError, match="at least the window"):
        y.producer.op.reference(call, np.zeros((1, 1, 2, 2)))


def test_second_derivative_of_the_maximum_is_that_of_the_elements_picked():
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 6))

    def slope(t):  # d/dt of sum(max_pool(t)^2) / 2
        y = ops.max_pool2d(t, 2)
        return record("max_pool2d_grad", [t, y], y.producer.attributes)[0]

    (found,) = gradient(slope, x)
    picked = (x == np.kron(run(lambda t: ops.max_pool2d(t, 2), x), np.ones((2, 2)))).astype(float)
    np.testing.assert_array_equal(found, picked)
