"""Products of matrices: bits that do not depend on place, blocks of terms, specials, refusals, open shapes, other tiles."""

from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.op_runner import gradient, run

from tapeprop import ops
from tapeprop.compiler.interpret import call_of
from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Dim, Input, Tensor
from tapeprop.ops import registry
from tapeprop.ops.op import record

SIZES = st.integers(1, 70)


def random(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def tensor(*shape, dtype="float32"):
    return Tensor(shape, dtype, source=Input(0))


@settings(max_examples=60)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.sampled_from(["float32", "float64"]), st.integers(1, 3))
def test_any_size_and_transposition(m, k, n, ta, tb, dtype, workers):
    a, b = random((k, m) if ta else (m, k), dtype), random((n, k) if tb else (k, n), dtype, 1)
    y = run(lambda a, b: ops.matmul(a, b, ta, tb), a, b, workers=workers)
    left, right = (a.T if ta else a).astype(float), (b.T if tb else b).astype(float)
    # each of k + 1 roundings is at most half a unit of the magnitudes that are summed
    bound = (k + 1) * np.finfo(dtype).eps / 2 * (np.abs(left) @ np.abs(right))
    assert (np.abs(y - left @ right) <= bound).all()


@pytest.mark.parametrize("terms", [40, 700])
def test_an_element_has_the_same_bits_wherever_it_stands(terms):
    a, b = random((90, terms)), random((terms, 77), seed=1)
    whole = run(ops.matmul, a, b)
    for i in (0, 11, 12, 50, 71, 72, 89):
        np.testing.assert_array_equal(run(ops.matmul, a[i : i + 1].copy(), b)[0], whole[i])
    for j in (0, 15, 16, 31, 32, 76):
        np.testing.assert_array_equal(run(ops.matmul, a, b[:, j : j + 1].copy())[:, 0], whole[:, j])
    np.testing.assert_array_equal(run(lambda a, b: ops.matmul(a, b, True, True), a.T.copy(), b.T.copy()), whole)
    np.testing.assert_array_equal(run(ops.dense, a, b.T.copy()), whole)
    np.testing.assert_array_equal(run(ops.matmul, np.stack([a, a]), b)[1], whole)


@pytest.mark.parametrize(
    ("a_shape", "b_shape", "ta"),
    [((3, 90, 33), (3, 33, 45), False), ((2, 1, 150, 20), (4, 20, 29), False), ((3, 390, 75), (390, 37), True)],
)
def test_panels_that_several_blocks_of_rows_use(a_shape, b_shape, ta):
    """They are laid out anew for each matrix: each has the bits that it has alone."""
    a, b = random(a_shape), random(b_shape, seed=1)
    y = run(lambda a, b: ops.matmul(a, b, ta), a, b, workers=3)
    left = np.broadcast_to(a, (*y.shape[:-2], *a.shape[-2:]))
    right = np.broadcast_to(b, (*y.shape[:-2], *b.shape[-2:]))
    for place in np.ndindex(*y.shape[:-2]):
        one = run(lambda a, b: ops.matmul(a, b, ta), left[place].copy(), right[place].copy())
        np.testing.assert_array_equal(y[place], one)
        first = left[place].T if ta else left[place]
        np.testing.assert_allclose(one, first.astype(float) @ right[place].astype(float), rtol=1e-4, atol=1e-4)


def test_long_sums_are_cut_into_blocks():
    # 16384 ones after a large number: in one float32 chain each is lost, a block of them is not
    x, w = np.ones((1, 16385), np.float32), np.ones((1, 16385), np.float32)
    x[0, 0] = 2.0**25
    assert run(ops.dense, x, w) == pytest.approx(2.0**25 + 16384, rel=2e-5)


def test_bias_is_added_to_the_first_block_of_terms():
    x, w, b = random((7, 100)), random((35, 100), seed=1), 1e4 * random(35, seed=2)
    np.testing.assert_array_equal(run(ops.dense, x, w, b), run(ops.dense, x, w) + b)


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_specials_stay_in_their_row_and_column(special):
    a, b = random((30, 5)), random((5, 40), seed=1)
    a[17, 2] = special
    y = run(ops.matmul, a, b)
    assert not np.isfinite(y[17]).any()
    assert np.isfinite(np.delete(y, 17, 0)).all()
    a[17, 2], b[2, 33] = 1.0, special
    y = run(lambda a, b: ops.matmul(a, b, transpose_b=True), a, b.T.copy())
    assert not np.isfinite(y[:, 33]).any()
    assert np.isfinite(np.delete(y, 33, 1)).all()


def test_square_of_a_matrix():
    # d (A A) = d A^T + A^T d
    a, d = np.array([[1.0, 2.0], [3.0, 4.0]]), np.ones((2, 2))
    (da,) = gradient(lambda t: ops.matmul(t, t), a, flow=d)
    np.testing.assert_array_equal(da, [[7, 11], [9, 13]])


def test_gradient_of_a_broadcast_operand_is_summed():
    a, b = random((2, 3, 4, 5), "float64"), random((3, 5, 2), "float64", 1)
    d = random((2, 3, 4, 2), "float64", 2)
    da, db = gradient(ops.matmul, a, b, flow=d)
    np.testing.assert_allclose(da, d @ b.swapaxes(1, 2), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(db, (a.swapaxes(2, 3) @ d).sum(0), rtol=1e-12, atol=1e-12)


def test_a_matrix_on_the_right_makes_one_product():
    y = ops.matmul(tensor(Dim.symbol("N"), 7, 3), tensor(3, 4))
    product = y.producer.operands[0].producer
    assert product.op.name == "matmul"
    assert product.operands[0].ndim == 2
    assert str(y.shape[0]) == "N"
    assert y.shape[1:] == (7, 4)


def test_open_shapes():
    n = Dim.symbol("N")
    assert ops.matmul(tensor(n, 3), tensor(3, 4)).shape == (n, 4)
    assert ops.matmul(tensor(3, n), tensor(3, 4), transpose_a=True).shape == (n, 4)
    assert ops.dense(tensor(n, 3), tensor(5, 3), tensor(5)).shape == (n, 5)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ((3,), (3, 4), ["left operand", "(3,)"]),
        ((2, 3), (4,), ["right operand", "(4,)"]),
        ((2, 3), (4, 5), ["(2, 3)", "(4, 5)"]),
        ((2, 2, 3), (3, 3, 5), ["(2, 2, 3)", "(3, 3, 5)", "leading axes"]),
    ],
)
def test_matmul_refuses(a, b, words):
    with pytest.raises(ShapeError) as caught:
        ops.matmul(tensor(*a), tensor(*b))
    assert all(word in str(caught.value) for word in words)


def test_matmul_tells_shapes_as_they_are_multiplied():
    with pytest.raises(ShapeError, match=r"\(3, 2\) and \(2, 5\)|\(3, 2\) and \(4, 5\) after transposition"):
        ops.matmul(tensor(2, 3), tensor(4, 5), transpose_a=True)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(2, 3, 4), (5, 4)], ["(N, in)", "(2, 3, 4)"]),
        ([(2, 3), (5, 4)], ["(N, 4)", "(2, 3)"]),
        ([(2, 4), (5, 4), (4,)], ["bias", "(5,)", "(4,)"]),
    ],
)
def test_dense_refuses(shapes, words):
    with pytest.raises(ShapeError) as caught:
        ops.dense(*(tensor(*shape) for shape in shapes))
    assert all(word in str(caught.value) for word in words)


def test_dtypes_do_not_mix():
    with pytest.raises(DTypeError, match="float32, float64"):
        ops.matmul(tensor(2, 3), tensor(3, 4, dtype="float64"))


def test_leading_axes_that_alternate_too_often_are_refused_when_the_kernel_is_chosen():
    y = ops.matmul(tensor(2, 1, 2, 1, 2, 3, 3), tensor(1, 2, 1, 2, 1, 3, 3))
    with pytest.raises(ShapeError, match="leading axes that broadcast alike, got 5"):
        registry["matmul"].cpu(call_of(y.producer, {}))


def test_flops_count_a_multiplication_and_an_addition_for_each_term():
    product = record("matmul", [tensor(2, 7, 3), tensor(7, 5)], {"transpose_a": True, "transpose_b": False})[0]
    assert registry["matmul"].flops(call_of(product.producer, {})) == 2 * 2 * 3 * 7 * 5
    assert registry["dense"].flops(call_of(ops.dense(tensor(4, 3), tensor(5, 3)).producer, {})) == 2 * 4 * 3 * 5


@pytest.mark.parametrize("tile", [{"lanes": 4, "height": 6}, {"lanes": 8, "height": 6}, {"lanes": 2, "height": 12}])
def test_tiles_of_other_machines(tile, monkeypatch):
    # by the module's name: tapeprop.ops.matmul, as an attribute, is the function
    monkeypatch.setattr(import_module("tapeprop.ops.matmul.cpu"), "microtile", lambda dtype: tile)
    for shapes in (((27, 33), (33, 19)), ((5, 8), (8, 4)), ((1, 300), (300, 9))):
        a, b = random(shapes[0], "float64"), random(shapes[1], "float64", 1)
        np.testing.assert_allclose(run(ops.matmul, a, b, workers=2), a @ b, rtol=1e-12, atol=1e-12)
        found = run(lambda a, b: ops.matmul(a, b, True, True), a.T.copy(), b.T.copy())
        np.testing.assert_allclose(found, a @ b, rtol=1e-12, atol=1e-12)
