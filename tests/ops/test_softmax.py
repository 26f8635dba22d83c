"""softmax and log-softmax: large and infinite entries, NaN, axes, both kernels, gradients at the ends."""

import numpy as np
import pytest
from ops.op_runner import gradient, run

from tapeprop import ops
from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Input, Tensor

INF, NAN = np.inf, np.nan


def along(x, axis):
    """(a row along `axis`, beside it a row of zeros): axis 1 takes the kernel for rows, axis 0 that for columns."""
    table = np.array([x, np.zeros(len(x))])
    return table if axis == 1 else np.ascontiguousarray(table.T)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("x", "softmax", "log_softmax"),
    [
        ([1000.0, 0.0, -1000.0], [1, 0, 0], [0, -1000, -2000]),
        ([1000.0, 1000.0], [0.5, 0.5], [-np.log(2)] * 2),
        ([-1000.0, -1000.0], [0.5, 0.5], [-np.log(2)] * 2),
        ([0.0, -INF, 0.0], [0.5, 0, 0.5], [-np.log(2), -INF, -np.log(2)]),
        ([INF, 0.0, -INF], [1, 0, 0], [0, -INF, -INF]),
        ([INF, 3.0, INF], [0.5, 0, 0.5], [-np.log(2), -INF, -np.log(2)]),
        ([-INF, -INF], [NAN, NAN], [NAN, NAN]),
        ([0.0, NAN, INF], [NAN] * 3, [NAN] * 3),
        ([NAN, 1.0], [NAN] * 2, [NAN] * 2),
        ([7.0], [1], [0]),
    ],
)
def test_ends(x, softmax, log_softmax, axis, dtype):
    table = along(x, axis).astype(dtype)
    n = len(x)
    for function, wanted, beside in ((ops.softmax, softmax, 1 / n), (ops.log_softmax, log_softmax, -np.log(n))):
        found = run(lambda t, f=function: f(t, axis), table)
        assert found.dtype == dtype
        found = found if axis == 1 else found.T
        np.testing.assert_allclose(found[0], wanted, rtol=1e-6 if dtype == "float32" else 1e-15)
        np.testing.assert_allclose(found[1], beside, rtol=1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_axes(axis):
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    weights = np.exp(x)
    wanted = weights / weights.sum(axis, keepdims=True)
    np.testing.assert_allclose(run(lambda t: ops.softmax(t, axis), x), wanted, rtol=1e-14)
    np.testing.assert_allclose(run(lambda t: ops.log_softmax(t, axis), x), np.log(wanted), rtol=1e-13)


def test_the_last_axis_is_the_default():
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    np.testing.assert_array_equal(run(ops.softmax, x), run(lambda t: ops.softmax(t, 2), x))
    np.testing.assert_array_equal(run(ops.log_softmax, x), run(lambda t: ops.log_softmax(t, 2), x))


@pytest.mark.parametrize("axis", [0, 1])
def test_float32_sums_of_many_terms_lose_nothing(axis):
    x = np.zeros((100_000, 1) if axis == 0 else (1, 100_000), np.float32)
    x = np.concatenate([x, x], 1 - axis)  # so that axis 0 has columns
    np.testing.assert_array_equal(run(lambda t: ops.softmax(t, axis), x), np.float32(1e-5))
    np.testing.assert_allclose(run(lambda t: ops.log_softmax(t, axis), x), -np.log(1e5), rtol=2e-7)


def test_gradients_are_finite_at_the_ends():
    x = np.array([[1000.0, 0.0, -INF], [INF, 0.0, 5.0]])
    flow = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    (softmax,) = gradient(ops.softmax, x, flow=flow)
    np.testing.assert_array_equal(softmax, np.zeros((2, 3)))
    (log_softmax,) = gradient(ops.log_softmax, x, flow=flow)
    np.testing.assert_array_equal(log_softmax, [[-5, 2, 3], [-5, 2, 3]])


def test_refusals():
    x = Tensor((2, 3), "float64", source=Input(0))
    for name in ("softmax", "log_softmax"):
        function = getattr(ops, name)
        with pytest.raises(ShapeError, match=rf"{name}: expected an axis from -2 to 1 of shape \(2, 3\), got 2"):
            function(x, 2)
        with pytest.raises(ShapeError, match="axis"):
            function(Tensor((), "float64", source=Input(0)))
        with pytest.raises(DTypeError, match="int64"):
            function(Tensor((2, 3), "int64", source=Input(0)))
