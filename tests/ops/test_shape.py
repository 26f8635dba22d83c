"""Shape ops: aliases, collapsing of strides, casts, open sizes, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.op_runner import gradient, run, trace

from tapeprop import ops
from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Dim, Input, Tensor
from tapeprop.ops.shape.strides import TILE, collapse, contiguous

N, H, W = Dim.symbol("N"), Dim.symbol("H"), Dim.symbol("W")


def tensor(*shape, dtype="float64"):
    return Tensor(shape, dtype, source=Input(0))


# ---- reshape and its kin


@pytest.mark.parametrize(
    ("source", "wanted", "found"),
    [
        ((2, 3, 4), (6, -1), (6, 4)),
        ((2, 3, 4), -1, (24,)),
        ((), (1, 1), (1, 1)),
        ((1, 1), (), ()),
        ((N, 3, H, W), (N, -1), (N, 3 * H * W)),
        ((N, 12), (-1, 3, 4), (N, 3, 4)),
        ((N, 3, H), (3, -1), (3, N * H)),
        ((N, 2 * H), (N, 2, -1), (N, 2, H)),
        ((2, 3), (np.int64(3), 2), (3, 2)),
    ],
)
def test_reshape_computes_the_free_size(source, wanted, found):
    assert ops.reshape(tensor(*source), wanted).shape == found


@pytest.mark.parametrize(
    ("source", "wanted"),
    [((2, 3), (5,)), ((2, 3), (4, -1)), ((2, 3), (-1, -1)), ((2, 3), (0, -1)), ((2, 3), (-2, -3)), ((N, 3), (N, 4))],
)
def test_reshape_refuses(source, wanted):
    with pytest.raises(ShapeError, match="expected a shape of" if source[0] is not N else "got an open one"):
        ops.reshape(tensor(*source), wanted)


def test_an_open_question_is_left_open():
    with pytest.raises(ShapeError, match="got an open one"):
        ops.reshape(tensor(N, 5), (-1, 3))
    with pytest.raises(ShapeError, match="got an open one"):
        ops.reshape(tensor(6), (N, -1))


def test_aliases_move_no_memory():
    x = tensor(N, 3, 4)
    flat = ops.flatten(x)
    assert flat.shape == (N, 12)
    assert flat.producer.op.alias
    assert ops.reshape(x, (N, 3, 4)) is x
    assert ops.identity(x) is x
    assert ops.stop_gradient(x).producer.op.alias
    assert ops.transpose(tensor(N, 1, 4, 1), (0, 3, 2, 1)).producer is None  # only axes of size 1 move: the shape stays
    assert ops.transpose(tensor(N, 1, 4), (1, 0, 2)).producer.op.name == "reshape"
    assert not ops.copy(x).producer.op.alias
    with pytest.raises(ShapeError, match="batch axis"):
        ops.flatten(tensor())


def test_stop_gradient_stops_it():
    x = np.array([2.0, 3.0])
    (dx,) = gradient(lambda t: ops.multiply(ops.stop_gradient(t), t), x)
    np.testing.assert_array_equal(dx, x)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8"])
@pytest.mark.parametrize("size", [1, 5, 1024, 5000])
def test_copy_of_any_dtype(dtype, size):
    x = np.arange(size).astype(dtype)
    found = run(lambda t: ops.copy(t), x, workers=3)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("source", ["float32", "float64", "int64", "int32", "uint8"])
@pytest.mark.parametrize("target", ["float32", "float64"])
def test_cast(source, target):
    x = np.array([0.0, 1.1, 200.7, 3.0]).astype(source)
    (_,), (y,) = trace(lambda t: ops.cast(t, target), [x])
    if source == target:
        assert y.producer is None
        return
    found = run(lambda t: ops.cast(t, target), x)
    assert found.dtype == target
    np.testing.assert_array_equal(found, x.astype(target))


def test_cast_rounds_and_overflows_as_ieee_says_and_its_gradient_casts_back():
    x = np.array([0.1, 1e300, -1e300, np.nan, np.inf, 1e-300])
    with np.errstate(over="ignore"):
        expected = x.astype(np.float32)
    np.testing.assert_array_equal(run(lambda t: ops.cast(t, "float32"), x), expected)
    (dx,) = gradient(lambda t: ops.cast(t, "float64"), np.ones(2, np.float32), flow=0.1)
    assert dx.dtype == np.float32
    np.testing.assert_array_equal(dx, np.float32(0.1))
    with pytest.raises(DTypeError, match="int64"):
        ops.cast(tensor(3), "int64")


# ---- transpose and expand


@settings(max_examples=60)
@given(data=st.data())
def test_any_transposition(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=8)))
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    x = np.random.default_rng(0).standard_normal(shape)
    np.testing.assert_array_equal(run(lambda t: ops.copy(ops.transpose(t, axes)), x, workers=2), x.transpose(axes))


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
@pytest.mark.parametrize("rows", [1, TILE - 1, TILE, TILE + 1, 3 * TILE + 5])
def test_transposition_in_tiles(dtype, rows):
    x = np.arange(2 * rows * 37).reshape(2, rows, 37).astype(dtype)
    for workers in (1, 2, 5):
        found = run(lambda t: ops.copy(ops.transpose(t, (0, -1, 1))), x, workers=workers)
        np.testing.assert_array_equal(found, x.transpose(0, 2, 1))


def test_transpose_reverses_by_default_and_refuses_what_is_no_order():
    assert ops.transpose(tensor(N, 3, 4)).shape == (4, 3, N)
    for axes in [(0, 1), (0, 0, 1), (0, 1, 3)]:
        with pytest.raises(ShapeError, match="order of the axes"):
            ops.transpose(tensor(2, 3, 4), axes)


def test_too_many_axes_that_do_not_merge():
    shape = (2,) * 9
    with pytest.raises(ShapeError, match="two steps"):
        run(lambda t: ops.transpose(t, (8, 6, 4, 2, 0, 7, 5, 3, 1)), np.zeros(shape))


@settings(max_examples=60)
@given(data=st.data())
def test_any_broadcast(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6)))
    kept = [data.draw(st.booleans()) for _ in shape]
    source = tuple(n if keep else 1 for n, keep in zip(shape, kept, strict=True))[
        data.draw(st.integers(0, len(shape))) :
    ]
    source = tuple(n if n in (1, m) else m for n, m in zip(source, shape[len(shape) - len(source) :], strict=True))
    x = np.random.default_rng(0).standard_normal(source)
    expected = np.broadcast_to(x, shape)
    np.testing.assert_array_equal(run(lambda t: ops.copy(ops.expand(t, shape)), x, workers=2), expected)
    mean = run(lambda t: ops.copy(ops.expand(t, shape, mean=True)), x, workers=3)
    np.testing.assert_allclose(mean, expected * x.size / expected.size, rtol=1e-15)


def test_expand_and_its_gradients():
    x = tensor(1, 3, 1)
    assert ops.expand(x, (N, 3, H)).shape == (N, 3, H)
    assert ops.expand(x, (1, 3, 1)) is x
    a = np.array([[1.0], [2.0]])
    flow = np.arange(6.0).reshape(2, 3)
    (da,) = gradient(lambda t: ops.expand(t, (2, 3)), a, flow=flow)
    np.testing.assert_array_equal(da, [[3.0], [12.0]])
    (da,) = gradient(lambda t: ops.expand(t, (2, 3), mean=True), a, flow=flow)
    np.testing.assert_array_equal(da, [[1.0], [4.0]])


@pytest.mark.parametrize(
    ("source", "shape"), [((2, 3), (3,)), ((2,), (3,)), ((3,), (3, 1)), ((1,), (0,)), ((0,), (0,))]
)
def test_expand_refuses(source, shape):
    x = tensor(*source)
    with pytest.raises(ShapeError):
        ops.expand(x, shape) if source != shape else ops.copy(x)
    with pytest.raises(DTypeError, match="cast"):
        ops.expand(tensor(1, dtype="int64"), (3,), mean=True)


def test_collapse_merges_what_runs_on():
    assert contiguous((2, 3, 4)) == [12, 4, 1]
    assert collapse((2, 3, 4), (12, 4, 1)) == [(24, 1)]
    assert collapse((2, 3, 4), (0, 0, 1)) == [(6, 0), (4, 1)]
    assert collapse((2, 1, 4), (4, 99, 1)) == [(8, 1)]
    assert collapse((3, 4), (-4, -1)) == [(12, -1)]
    assert collapse((3, 4), (1, 3)) == [(3, 1), (4, 3)]
    assert collapse((1, 1), (1, 1)) == []
