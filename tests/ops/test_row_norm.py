"""Normalisation by rows: statistics that are easy to get wrong, long and short rows, specials, how samples are dealt out, refusals."""

import numpy as np
import pytest
from ops.kernel_harness import run_rows
from ops.op_runner import gradient, run, trace
from traced import evaluate

import tapeprop as tp
from tapeprop import ops
from tapeprop.compiler.interpret import call_of
from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.ir import Dim, Input, Tensor
from tapeprop.ops.op import record
from tapeprop.ops.row_norm.spec import CHUNKS, FEW_CHUNKS, TURN, deal


def kernels(op, attributes, *arrays, workers=1):
    """All results of a call, by its kernels."""
    _, results = trace(lambda *tensors: record(op, tensors, attributes), arrays)
    call = call_of(results[0].producer, {})
    return run_rows(results[0].producer.op.cpu_rows(call), call, arrays, workers)


def forward(x, gamma=None, beta=None, epsilon=0.0, center=True, workers=1):
    """(y, mean, inverse_std) of row_norm."""
    vector = x.shape[1:3]
    gamma = np.ones(vector, x.dtype) if gamma is None else gamma
    beta = np.zeros(vector, x.dtype) if beta is None else beta
    return kernels("row_norm", {"epsilon": epsilon, "center": center}, x, gamma, beta, workers=workers)


#: (samples, period, segments, inner): a row as one, cut into chunks, elements of gamma, segments, few elements.
SHAPES = [(6, 1, 1, 700), (2, 1, 1, 9001), (3, 1, 640, 1), (2, 3, 4, 90), (40, 2, 3, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ratio", [1e4, 1e5])
def test_float32_beside_a_large_mean(shape, ratio):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + ratio * rng.choice([-1.0, 1.0], (*shape[:2], 1, 1))).astype(np.float32)
    wide, row = x.astype(np.float64), (2, 3)
    mean, std = wide.mean(row, keepdims=True), wide.std(row, keepdims=True)
    y, found_mean, inverse = forward(x)
    np.testing.assert_allclose(found_mean, mean.reshape(-1), rtol=1e-13)
    np.testing.assert_allclose(inverse, 1 / std.reshape(-1), rtol=1e-9)
    np.testing.assert_allclose(y, (wide - mean) / std, rtol=1e-6, atol=1e-6)
    # the gradient takes the same mean off, though float32 cannot hold it
    dy, gamma = (rng.standard_normal(s).astype(np.float32) for s in (shape, shape[1:3]))
    attributes = {"center": True, "chunks": 2, "turn": 1}
    dx, to_gamma, to_beta = kernels("row_norm_grad", attributes, dy, x, gamma, found_mean, inverse)
    normal, flow = (wide - mean) / std, dy * gamma[..., None].astype(np.float64)
    expected = (flow - flow.mean(row, keepdims=True) - normal * (flow * normal).mean(row, keepdims=True)) / std
    largest = np.abs(expected).max()
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=2e-6 * largest)
    np.testing.assert_allclose(to_gamma.sum(0), (dy * normal).sum((0, 3)), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(to_beta.sum(0), dy.sum((0, 3), np.float64), rtol=1e-12, atol=1e-12)


def test_float64_beside_a_large_mean():
    x = np.random.default_rng(0).standard_normal((3, 2, 2, 2500))
    plain, shifted = forward(x), forward(x + 2.0**20)
    # x + 2^20 itself is rounded by 1e-10
    np.testing.assert_allclose(shifted[2], plain[2], rtol=1e-10)
    np.testing.assert_allclose(shifted[0], plain[0], atol=1e-9)


def test_without_a_mean():
    x = np.random.default_rng(0).standard_normal((3, 1, 1, 5000)) + 2
    y, mean, inverse = forward(x, center=False, epsilon=0.25)
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_allclose(inverse, 1 / np.sqrt(np.square(x).mean((1, 2, 3)) + 0.25), rtol=1e-14)
    np.testing.assert_allclose(y, x * inverse.reshape(3, 1, 1, 1), rtol=1e-14)


def test_a_constant_row_gives_its_shift():
    for shape in ((5, 1, 9, 1), (5, 1, 1, 9), (5, 1, 1, 1)):
        y, _, inverse = forward(np.full(shape, 0.1), beta=np.full(shape[1:3], 7.0), epsilon=1e-5)
        np.testing.assert_allclose(y, 7.0, atol=1e-12)
        np.testing.assert_allclose(inverse, 1 / np.sqrt(1e-5))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_row_only(shape, bad):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[1, 0, -1, -1] = bad
    y = forward(x, epsilon=1e-5)[0]
    assert np.isnan(y[1, 0]).all()
    y[1, 0] = 0
    assert np.isfinite(y).all()
    dy, gamma = np.ones_like(x), np.ones(shape[1:3], np.float32)
    x[1, 0, -1, -1] = 0
    dy[1, 0, 0, 0] = bad
    attributes = {"center": True, "chunks": 1, "turn": 1}
    dx = kernels("row_norm_grad", attributes, dy, x, gamma, *forward(x, epsilon=1e-5)[1:])[0]
    assert not np.isfinite(dx[1, 0]).any()
    dx[1, 0] = 0
    assert np.isfinite(dx).all()


def test_the_gradient_is_orthogonal_to_what_the_normalisation_removes():
    rng = np.random.default_rng(0)
    rows, flow = rng.standard_normal((2, 15, 12))
    gamma, beta = rng.uniform(1, 2, (2, 12))
    layer_norm = lambda x, *vectors: ops.layer_norm(x, 12, *vectors, epsilon=0.0)  # noqa: E731
    dx, dgamma, dbeta = gradient(layer_norm, rows, gamma, beta, flow=flow)
    np.testing.assert_allclose(dx.sum(1), 0, atol=1e-13)  # a shift of a row changes nothing
    np.testing.assert_allclose((dx * rows).sum(1), 0, atol=1e-12)  # nor does a factor
    np.testing.assert_allclose(dbeta, flow.sum(0))
    np.testing.assert_allclose(
        dgamma, (flow * (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)).sum(0)
    )


# ---- how samples are dealt out


def test_samples_are_dealt_out_by_shape_alone():
    n, h = Dim.symbol("N"), Dim.symbol("H")
    assert deal((8192, 1, 512, 1)) == {"chunks": CHUNKS, "turn": 8}
    assert deal((n, 1, 512, 1)) == {"chunks": CHUNKS, "turn": 8}
    assert deal((20, 1, 512, 1)) == {"chunks": 3, "turn": 8}  # three turns are all there are
    assert deal((32, 8, 8, h)) == {"chunks": CHUNKS, "turn": 1}
    assert deal((64, 1, 3 * 224 * 224, 1)) == {"chunks": FEW_CHUNKS, "turn": 1}
    assert deal((1000, 1, 1, 1)) == {"chunks": 1, "turn": TURN}


@pytest.mark.parametrize(("chunks", "turn"), [(1, 3), (2, 1), (3, 2), (5, 4), (32, 1)])
def test_every_sample_goes_to_one_chunk(chunks, turn):
    x = np.random.default_rng(0).standard_normal((11, 2, 3, 1))
    statistics = np.zeros(22), np.ones(22)
    attributes = {"center": True, "chunks": chunks, "turn": turn}
    for workers in (1, 3):
        _, to_gamma, to_beta = kernels(
            "row_norm_grad", attributes, np.ones_like(x), x, np.ones((2, 3)), *statistics, workers=workers
        )
        wanted = np.zeros((chunks, 2, 3))
        for sample in range(11):
            wanted[sample // turn % chunks] += x[sample, :, :, 0]
        np.testing.assert_allclose(to_gamma, wanted, atol=1e-14)
        np.testing.assert_array_equal(to_beta.sum(0), 11)


def test_gradients_where_sizes_are_open():
    """Of a second derivative as well, whose batch is not known to be whole turns."""
    x = tp.placeholder((None, 5, None), "x", dtype="float64")
    gamma = tp.placeholder((5,), "gamma", dtype="float64")
    y = ops.group_norm(x, 1, gamma)
    (slope,) = tp.gradients([y * y], [gamma])
    (second,) = tp.gradients([slope * slope], [x])
    found = tp.function([slope, second], [x, gamma])
    rng = np.random.default_rng(0)
    for shape in ((3, 5, 4), (40, 5, 2)):
        numbers, scale = rng.standard_normal(shape), rng.uniform(1, 2, 5)
        normal = (numbers - numbers.mean((1, 2), keepdims=True)) / np.sqrt(numbers.var((1, 2), keepdims=True) + 1e-5)
        along = (2 * normal**2).sum((0, 2)) * scale
        got_slope, got_second = found(numbers, scale)
        np.testing.assert_allclose(got_slope, along, rtol=1e-12)
        direction, step = rng.standard_normal(shape), 1e-6

        def total(moved, scale=scale):
            normal = (moved - moved.mean((1, 2), keepdims=True)) / np.sqrt(moved.var((1, 2), keepdims=True) + 1e-5)
            return (((2 * normal**2).sum((0, 2)) * scale) ** 2).sum()

        difference = (total(numbers + step * direction) - total(numbers - step * direction)) / (2 * step)
        np.testing.assert_allclose((got_second * direction).sum(), difference, rtol=1e-5, atol=1e-4)


# ---- the functions


def normalised(x, axes, epsilon=1e-5):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def test_functions():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 3, 4))
    gamma, beta = rng.standard_normal((2, 6))
    column = (6, 1, 1)
    groups = normalised(x.reshape(2, 3, 2, 3, 4), (2, 3, 4)).reshape(x.shape)
    for found, wanted in [
        (run(lambda x: ops.layer_norm(x, (3, 4)), x), normalised(x, (2, 3))),
        (run(lambda x: ops.layer_norm(x, x.shape, epsilon=1.0), x), normalised(x, (0, 1, 2, 3), 1.0)),
        (run(lambda x, b: ops.layer_norm(x, 4, None, b), x, beta[:4]), normalised(x, 3) + beta[:4]),
        (run(lambda x, g: ops.layer_norm(x, 4, g), x, gamma[:4]), normalised(x, 3) * gamma[:4]),
        (run(lambda x: ops.group_norm(x, 3), x), groups),
        (
            run(lambda *a: ops.group_norm(a[0], 3, *a[1:]), x, gamma, beta),
            groups * gamma.reshape(column) + beta.reshape(column),
        ),
        (
            run(lambda *a: ops.instance_norm(*a), x, gamma, beta),
            normalised(x, (2, 3)) * gamma.reshape(column) + beta.reshape(column),
        ),
        (run(lambda x: ops.instance_norm(x), x), normalised(x, (2, 3))),
        (
            run(lambda x, g: ops.rms_norm(x, 4, g, 0.5), x, gamma[:4]),
            x / np.sqrt(np.square(x).mean(3, keepdims=True) + 0.5) * gamma[:4],
        ),
    ]:
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)


def test_rms_norm_takes_the_machine_epsilon_of_the_dtype():
    for dtype in ("float32", "float64"):
        epsilon = np.finfo(dtype).eps
        x = np.full((1, 4), np.sqrt(epsilon), dtype)
        np.testing.assert_allclose(run(lambda x: ops.rms_norm(x, 4), x), np.sqrt(0.5), rtol=1e-6)


def leaf(*shape, dtype="float64"):
    return Tensor(shape, dtype, source=Input(0))


def test_what_is_refused():
    with pytest.raises(ShapeError, match=r"layer_norm: expected x to end with the axes \(4,\), got \(2, 3\)"):
        ops.layer_norm(leaf(2, 3), 4)
    with pytest.raises(ShapeError, match=r"rms_norm: expected x to end with the axes \(2, 3, 4\), got \(3, 4\)"):
        ops.rms_norm(leaf(3, 4), (2, 3, 4))
    with pytest.raises(ShapeError, match=r"layer_norm: expected beta of shape \(3,\), got \(2,\)"):
        ops.layer_norm(leaf(2, 3), 3, leaf(3), leaf(2))
    with pytest.raises(ShapeError, match="channels in 4 equal groups, got 6"):
        ops.group_norm(leaf(2, 6, 3), 4)
    with pytest.raises(GraphError, match="groups >= 1, got 0"):
        ops.group_norm(leaf(2, 6, 3), 0)
    with pytest.raises(ShapeError, match=r"\(N, C\) or \(N, C, ...\), got \(6,\)"):
        ops.group_norm(leaf(6), 2)
    with pytest.raises(ShapeError, match=r"\(N, C, ...\), got \(2, 6\)"):
        ops.instance_norm(leaf(2, 6))
    with pytest.raises(DTypeError, match=r"row_norm.*float32, float64"):
        ops.layer_norm(leaf(2, 3), 3, leaf(3, dtype="float32"))
    with pytest.raises(ShapeError, match=r"row_norm_grad: expected an operand of shape \(6,\)"):
        record(
            "row_norm_grad",
            [leaf(3, 2, 4, 1), leaf(3, 2, 4, 1), leaf(2, 4), leaf(3), leaf(6)],
            {"center": True, "chunks": 1, "turn": 1},
        )
    d = Dim.symbol("D")
    assert ops.layer_norm(leaf(2, d), d).shape == (2, d)
    assert ops.layer_norm(leaf(2, d), (d,), leaf(d), leaf(d)).shape == (2, d)
    with pytest.raises(ShapeError, match=r"sizes that decide whether gamma and beta are \(1, D\)"):
        ops.layer_norm(leaf(2, d), (d,), leaf(d))


def test_evaluated_by_the_reference():
    x = leaf(2, 3)
    (y,) = evaluate([ops.layer_norm(x, 3, epsilon=0.0)], {x: np.array([[1.0, 2, 3], [0, 0, 6]])})
    np.testing.assert_allclose(y, [[-np.sqrt(1.5), 0, np.sqrt(1.5)], [-np.sqrt(0.5), -np.sqrt(0.5), np.sqrt(2)]])
