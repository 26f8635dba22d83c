"""Batch normalisation: statistics that are easy to get wrong, running values, specials, refusals."""

import numpy as np
import pytest
from ops.op_runner import gradient, run

from tapeprop import ops
from tapeprop.compiler.interpret import call_of
from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Dim, Input, Tensor

RESULTS = ("y", "batch_mean", "inverse_std", "new_running_mean", "new_running_var")


def training(x, gamma=None, beta=None, mean=None, var=None, momentum=0.9, epsilon=1e-5, workers=1):
    """{name: result} of batch_norm by the kernels."""
    ones, zeros = np.ones(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)
    vectors = [ones if gamma is None else gamma, zeros if beta is None else beta]
    vectors += [zeros if mean is None else mean, ones if var is None else var]
    vectors = [np.asarray(v, x.dtype) for v in vectors]
    return {
        name: run(lambda *a, i=i: ops.batch_norm(*a, momentum, epsilon)[i], x, *vectors, workers=workers)
        for i, name in enumerate(RESULTS)
    }


def test_by_hand():
    found = training(np.array([[1.0, 10], [3, 10], [5, 40]]), [2, 1], [1, 0], [10, 0], [4, 1], 0.75, 0.0)
    np.testing.assert_allclose(found["batch_mean"], [3, 20])
    np.testing.assert_allclose(found["inverse_std"], [1 / np.sqrt(8 / 3), 1 / np.sqrt(200)])
    np.testing.assert_allclose(found["y"][:, 0], 1 + 2 * np.array([-2, 0, 2]) / np.sqrt(8 / 3))
    np.testing.assert_allclose(found["new_running_mean"], [0.75 * 10 + 0.25 * 3, 5])
    np.testing.assert_allclose(found["new_running_var"], [0.75 * 4 + 0.25 * 8 / 3, 0.75 + 50])  # biased


@pytest.mark.parametrize("shape", [(4096, 2), (16, 2, 256), (3, 2, 5000), (2, 2, 33, 31)])
@pytest.mark.parametrize("ratio", [1e3, 1e5])
def test_float32_variance_beside_a_large_mean(shape, ratio):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + ratio * np.array([1.0, -1.0]).reshape(2, *[1] * (len(shape) - 2))).astype(
        np.float32
    )
    axes = (0, *range(2, len(shape)))
    wide = x.astype(np.float64)
    found = training(x, epsilon=0.0)
    np.testing.assert_allclose(found["batch_mean"], wide.mean(axes), rtol=1e-7)
    np.testing.assert_allclose(found["inverse_std"], 1 / wide.std(axes), rtol=1e-7)
    column = (2, *[1] * (len(shape) - 2))
    normal = (wide - wide.mean(axes).reshape(column)) / wide.std(axes).reshape(column)
    np.testing.assert_allclose(found["y"], normal, rtol=1e-6, atol=1e-6)


def test_float64_variance_beside_a_large_mean():
    x = np.random.default_rng(0).standard_normal((8, 2, 700))
    plain, shifted = training(x, epsilon=0.0), training(x + 2.0**20, epsilon=0.0)
    # x + 2^20 itself is rounded by 1e-10
    np.testing.assert_allclose(shifted["inverse_std"], plain["inverse_std"], rtol=1e-10)
    np.testing.assert_allclose(shifted["y"], plain["y"], atol=1e-9)


def test_a_constant_channel_gives_its_shift():
    x = np.full((5, 1, 3, 3), 0.1)
    found = training(x, beta=[7.0])
    np.testing.assert_allclose(found["y"], 7.0, atol=1e-12)
    np.testing.assert_allclose(found["inverse_std"], 1 / np.sqrt(1e-5))


def test_momentum_is_the_fraction_kept():
    x = np.random.default_rng(0).standard_normal((6, 2, 3)) + 5
    kept, replaced = (training(x, mean=[1, 2], var=[3, 4], momentum=m) for m in (1.0, 0.0))
    np.testing.assert_array_equal(kept["new_running_mean"], [1, 2])
    np.testing.assert_array_equal(kept["new_running_var"], [3, 4])
    np.testing.assert_allclose(replaced["new_running_mean"], x.mean((0, 2)), rtol=1e-14)
    np.testing.assert_allclose(replaced["new_running_var"], x.var((0, 2)), rtol=1e-13)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_spoils_its_channel_only(shape, bad):
    x = np.random.default_rng(0).standard_normal(shape)
    x[(1, 1, *[2] * (len(shape) - 2))] = bad
    y = training(x)["y"]
    assert np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, [0, 2]]).all()


def test_bits_do_not_depend_on_workers_for_many_channels():
    for shape in [(9, 70), (3, 7, 65)]:
        x = np.random.default_rng(0).standard_normal(shape)
        one = training(x)
        for workers in (2, 5):
            for name, value in training(x, workers=workers).items():
                np.testing.assert_array_equal(value, one[name])


def test_the_gradient_is_orthogonal_to_what_the_normalisation_removes():
    rng = np.random.default_rng(0)
    x, gamma, beta = rng.standard_normal((5, 3, 4)), rng.uniform(1, 2, 3), rng.standard_normal(3)
    zeros, ones = np.zeros(3), np.ones(3)
    flow = rng.standard_normal(x.shape)
    dx, dgamma, dbeta, dmean, dvar = gradient(
        lambda *a: ops.batch_norm(*a, 0.9, 0.0)[0], x, gamma, beta, zeros, ones, flow=flow
    )
    np.testing.assert_allclose(dx.sum((0, 2)), 0, atol=1e-13)  # a shift of x changes nothing
    np.testing.assert_allclose((dx * x).sum((0, 2)), 0, atol=1e-12)  # nor does a factor
    np.testing.assert_allclose(dbeta, flow.sum((0, 2)))
    normal = (x - x.mean((0, 2), keepdims=True)) / x.std((0, 2), keepdims=True)
    np.testing.assert_allclose(dgamma, (flow * normal).sum((0, 2)))
    assert not dmean.any()
    assert not dvar.any()


def test_inference_takes_the_mean_off_first():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((4, 2, 3, 3)) + 1e4).astype(np.float32)
    vectors = [np.array(v, np.float32) for v in ([2, 3], [1, -1], [1e4, 1e4], [4, 0.25])]
    y = run(lambda *a: ops.batch_norm_inference(*a, epsilon=0.0), x, *vectors)
    gamma, beta, mean, var = (v.astype(np.float64).reshape(2, 1, 1) for v in vectors)
    np.testing.assert_allclose(y, (x - mean) * gamma / np.sqrt(var) + beta, rtol=1e-6)
    for dtype in ("float32", "float64"):
        assert run(lambda *a: ops.batch_norm_inference(*a), *(a.astype(dtype) for a in (x, *vectors))).dtype == dtype


def test_inference_has_all_gradients():
    rng = np.random.default_rng(0)
    x, gamma, beta, mean, var = rng.standard_normal((4, 2)), *rng.uniform(1, 2, (4, 2))
    dx, dgamma, dbeta, dmean, dvar = gradient(
        lambda *a: ops.batch_norm_inference(*a, epsilon=0.5), x, gamma, beta, mean, var
    )
    deviation = np.sqrt(var + 0.5)
    np.testing.assert_allclose(dx, np.broadcast_to(gamma / deviation, x.shape))
    np.testing.assert_allclose(dgamma, ((x - mean) / deviation).sum(0))
    np.testing.assert_allclose(dbeta, [4, 4])
    np.testing.assert_allclose(dmean, -4 * gamma / deviation)
    np.testing.assert_allclose(dvar, ((x - mean) * gamma * -0.5 / deviation**3).sum(0))


def leaf(*shape, dtype="float64"):
    return Tensor(shape, dtype, source=Input(0))


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)])
def test_one_value_per_channel_is_refused(shape):
    with pytest.raises(ShapeError, match="one value per channel"):
        ops.batch_norm(leaf(*shape), *[leaf(3)] * 4)


def test_one_value_per_channel_is_refused_in_the_call_where_the_batch_was_open():
    n = Dim.symbol("N")
    for shape in [(n, 3), (n, 3, n, 1)]:
        call = ops.batch_norm(leaf(*shape), *[leaf(3)] * 4)[0].producer
        single = call_of(call, {"N": 1})
        with pytest.raises(ShapeError, match="one value per channel"):
            call.op.cpu(single)
        with pytest.raises(ShapeError, match="one value per channel"):
            call.op.reference(single, np.zeros(single.operands[0].shape), *[np.ones(3)] * 4)
        assert call.op.cpu(call_of(call, {"N": 2}))
    assert ops.batch_norm(leaf(n, 3, 2), *[leaf(3)] * 4)[0].shape == (n, 3, 2)  # known to have two


def test_shapes_and_dtypes_that_are_refused():
    with pytest.raises(ShapeError, match=r"shape \(N, C\) or \(N, C, ...\), got \(3,\)"):
        ops.batch_norm(leaf(3), *[leaf(3)] * 4)
    with pytest.raises(ShapeError, match=r"beta of shape \(3,\).*got \(4,\)"):
        ops.batch_norm(leaf(2, 3), leaf(3), leaf(4), leaf(3), leaf(3))
    with pytest.raises(ShapeError, match=r"var of shape \(3,\).*got \(3, 1\)"):
        ops.batch_norm_inference(leaf(2, 3), leaf(3), leaf(3), leaf(3), leaf(3, 1))
    with pytest.raises(DTypeError, match=r"batch_norm.*float32, float64"):
        ops.batch_norm(leaf(2, 3), leaf(3, dtype="float32"), *[leaf(3)] * 3)
