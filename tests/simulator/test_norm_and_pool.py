"""Batch norm and pooling on a device where samples do not reach: NaN, ties, padding, memory that is shared, large means."""

import numpy as np
import pytest
from simulator.launches import driver, run_launches, run_on

from tapeprop.compiler.interpret import call_of
from tapeprop.ir import Input, Tensor, Trace, recording
from tapeprop.ops import registry
from tapeprop.ops.op import record
from tapeprop.ops.pool import pool_attributes

pytestmark = pytest.mark.cuda


def call(name, arrays, attributes):
    with recording(Trace("float64", True)):
        tensors = [Tensor(a.shape, str(a.dtype), source=Input(i)) for i, a in enumerate(arrays)]
        return call_of(record(registry[name], tensors, attributes)[0].producer, {})


def computed(name, arrays, attributes):
    made = call(name, arrays, attributes)
    return run_launches(registry[name].cuda_rows(made, driver().limits), made, arrays)


def in_place(name, arrays, attributes, shared):
    """The results where those in `shared`, {result: operand}, take an operand's memory."""
    made = call(name, arrays, attributes)
    operands = [np.array(a) for a in arrays]
    results = [
        operands[shared[i]] if i in shared else np.full(kind.shape, np.nan) for i, kind in enumerate(made.results)
    ]
    launches = registry[name].cuda_rows(made, driver().limits)
    scratch = np.full(max(launch.scratch[0] if launch.scratch else 8 for launch in launches), np.nan)
    assert run_on({"operand": operands, "result": results, "scratch": [scratch]}, launches) == 0
    return results


@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (9, 5)])
def test_norms_may_write_over_their_operands(shape):
    random, c = np.random.default_rng(0), shape[1]
    arrays = [random.standard_normal(shape), *random.uniform(0.5, 2, (4, c))]
    settings = {"momentum": 0.9, "epsilon": 1e-5}
    plain = computed("batch_norm", arrays, settings)
    for a, b in zip(in_place("batch_norm", arrays, settings, {0: 0, 3: 3, 4: 4}), plain, strict=True):
        np.testing.assert_array_equal(a, b)
    arrays = [random.standard_normal(shape), random.standard_normal(shape), *random.uniform(0.5, 2, (3, c))]
    plain = computed("batch_norm_grad", arrays, {})
    for operand in (0, 1):
        for a, b in zip(in_place("batch_norm_grad", arrays, {}, {0: operand}), plain, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_large_mean_does_not_eat_the_variance():
    x = (1e4 + np.random.default_rng(0).standard_normal((6, 2, 8, 8))).astype(np.float32)
    ones = np.ones(2, np.float32)
    y, mean, inverse, _, _ = computed("batch_norm", [x, ones, 0 * ones, ones, ones], {"momentum": 0.9, "epsilon": 0.0})
    wide = x.astype(np.float64)
    axes = (0, 2, 3)
    np.testing.assert_allclose(mean, wide.mean(axes), rtol=1e-7)
    np.testing.assert_allclose(inverse, 1 / wide.std(axes), rtol=1e-5)
    expected = (wide - wide.mean(axes, keepdims=True)) / wide.std(axes, keepdims=True)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_a_nan_stays_in_its_channel():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
    x[1, 1, 2, 3] = np.nan
    ones = np.ones(3)
    y, mean, *_ = computed("batch_norm", [x, ones, ones, ones, ones], {"momentum": 0.9, "epsilon": 1e-5})
    assert np.isnan(y[:, 1]).all()
    assert np.isnan(mean[1])
    assert np.isfinite(y[:, [0, 2]]).all()


IMAGE = np.array(
    [[1, 5, 5, 2], [5, 1, 2, 5], [-np.inf, -np.inf, np.nan, 3], [-np.inf, -np.inf, 7, np.nan]], np.float64
).reshape(1, 1, 4, 4)


def test_maxima_with_ties_infinities_and_nan():
    attributes = pool_attributes("max_pool2d", 2, 2, 0)
    (y,) = computed("max_pool2d", [IMAGE], attributes)
    np.testing.assert_array_equal(y[0, 0], [[5, 5], [-np.inf, np.nan]])
    places = np.arange(16.0).reshape(1, 1, 4, 4)
    (picked,) = computed("max_pool2d_pick", [IMAGE, places], attributes)
    np.testing.assert_array_equal(picked[0, 0], [[1, 2], [8, 10]])  # of equal ones, and of several NaN, the first
    (dx,) = computed("max_pool2d_grad", [IMAGE, np.array([[[[1.0, 2], [3, 4]]]])], attributes)
    expected = np.zeros(16)
    expected[[1, 2, 8, 10]] = 1, 2, 3, 4
    np.testing.assert_array_equal(dx.reshape(-1), expected)


def test_padding_is_no_element():
    x = np.full((1, 1, 3, 3), -5.0)
    attributes = pool_attributes("max_pool2d", 3, 2, 1)
    (y,) = computed("max_pool2d", [x], attributes)
    np.testing.assert_array_equal(y, np.full((1, 1, 2, 2), -5.0))
    means = {**pool_attributes("avg_pool2d", 3, 2, 1), "count_include_pad": False}
    (y,) = computed("avg_pool2d", [x], means)
    np.testing.assert_allclose(y, np.full((1, 1, 2, 2), -5.0), rtol=1e-15)
