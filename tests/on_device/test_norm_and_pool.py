"""Batch norm and pooling on a device where samples do not reach: NaN, ties, padding, memory that is shared, large means."""

import dataclasses

import numpy as np
import pytest
from on_device.launches import driver, run_launches, run_on

from tapeprop.compiler.interpret import call_of
from tapeprop.ir import Input, Tensor, Trace, recording
from tapeprop.ops import norm, pool, registry
from tapeprop.ops.op import record
from tapeprop.ops.pool import pool_attributes

pytestmark = pytest.mark.cuda


def call(name, arrays, attributes):
    with recording(Trace("float64", True)):
        tensors = [Tensor(a.shape, str(a.dtype), source=Input(i)) for i, a in enumerate(arrays)]
        return call_of(record(registry[name], tensors, attributes)[0].producer, {})


def computed(name, arrays, attributes, **limits):
    """The results; limits: of the device that launches are cut to, where it is not the one at hand."""
    made = call(name, arrays, attributes)
    device = dataclasses.replace(driver().limits, **limits)
    return run_launches(registry[name].cuda_rows(made, device), made, arrays)


def expected(name, arrays, attributes):
    return registry[name].reference(call(name, arrays, attributes), *arrays)


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


def norm_arrays(name, shape):
    random, c = np.random.default_rng(0), shape[1]
    count, vectors = (1, 4) if name == "batch_norm" else (2, 3)
    return [*random.standard_normal((count, *shape)), *random.uniform(0.5, 2, (vectors, c))]


SETTINGS = {"batch_norm": {"momentum": 0.9, "epsilon": 1e-5}, "batch_norm_grad": {}}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("shape", [(5, 2, 9, 23), (311, 3)])
def test_a_channel_in_more_chunks_than_a_block_has_threads(name, shape):
    arrays = norm_arrays(name, shape)
    arrays[0] += 100  # chunks whose means are far from each other are the harder for it
    arrays[0][0] -= 150
    limits = {"blocks": 64, "block": 4} if driver().simulated else {}
    found = computed(name, arrays, SETTINGS[name], **limits)
    for a, b in zip(found, expected(name, arrays, SETTINGS[name]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", SETTINGS)
def test_norms_of_any_size_give_the_same_bits(name, monkeypatch):
    arrays = norm_arrays(name, (3, 2, 5, 7))
    plain = computed(name, arrays, SETTINGS[name])
    monkeypatch.setattr(norm, "NARROW", 1)  # the kernels of more than 2^31 elements
    for a, b in zip(computed(name, arrays, SETTINGS[name]), plain, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_channel_of_one_value_repeated():
    x, ones = np.full((4, 2, 3, 3), 7.25), np.ones(2)
    y, mean, inverse, _, var = computed("batch_norm", [x, ones, ones, ones, ones], {"momentum": 0.0, "epsilon": 1e-2})
    np.testing.assert_array_equal(mean, [7.25, 7.25])
    np.testing.assert_array_equal(var, [0.0, 0.0])
    np.testing.assert_allclose(inverse, 10.0, rtol=1e-15)
    np.testing.assert_array_equal(y, np.ones(x.shape))


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


POOLS = {"max_pool2d": 1, "max_pool2d_pick": 2, "max_pool2d_grad": 1, "avg_pool2d": 1, "avg_pool2d_grad": 0}  # images


def pool_case(name, shape, *geometry):
    """(operands, attributes); the image's values are few, so that windows have ties, and some are NaN or infinite."""
    random = np.random.default_rng(1)
    attributes = pool_attributes(name, *geometry)
    images = [random.integers(-2, 3, shape).astype(float) for _ in range(POOLS[name])]
    if name.startswith("max"):
        images[0][random.random(shape) < 0.1] = np.nan
        images[0][random.random(shape) < 0.1] = -np.inf
        images[0][random.random(shape) < 0.1] = np.inf
    else:
        attributes["count_include_pad"] = False
    if name.endswith("grad"):
        images.append(random.integers(-9, 10, pool.pooled_shape(name, shape, attributes)).astype(float))
    if name == "avg_pool2d_grad":
        attributes |= {"height": shape[2], "width": shape[3]}
    return images, attributes


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(
    "geometry",
    [(3, 1, 1), (2, 3, 0), ((3, 2), (2, 1), ((1, 0), (0, 1))), (1, 1, 0)],
    ids=["overlap", "gaps", "uneven", "single"],
)
def test_pools_of_ties_nan_and_infinities(name, geometry, monkeypatch):
    arrays, attributes = pool_case(name, (1, 2, 6, 7), *geometry)
    (found,) = computed(name, arrays, attributes)
    (wanted,) = expected(name, arrays, attributes)
    np.testing.assert_allclose(found, wanted, rtol=1e-15, atol=1e-15)
    monkeypatch.setattr(pool, "NARROW", 1)  # the kernels of more than 2^31 elements
    np.testing.assert_array_equal(computed(name, arrays, attributes)[0], found)
