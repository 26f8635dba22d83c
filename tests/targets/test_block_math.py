"""Stretches of arrays: compiled against the twins, at every length, and the fixed order of the sums."""

import numpy as np
import pytest
from numba import njit

from tapeprop.targets.cpu import block_math
from tapeprop.targets.cpu.plain import plain

LENGTHS = (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100)


@njit
def sums(x, y, start, rows, stride, count, made):
    made[0] = block_math.sum_rows(x, start, rows, stride, count)
    made[1] = block_math.spread_rows(x, 0.3, start, rows, stride, count)
    made[2] = block_math.dot_rows(x, y, 0.3, start, rows, stride, count)


@njit
def exponentials(x, start, count, made):
    made[0] = block_math.exp_sum(x, start, count)


@njit
def largest(x, start, count, made):
    made[0] = block_math.max_block(x, start, count)


@njit
def exp_stretch(x, start, count):
    block_math.exp_block(x, start, count)


@njit
def log_stretch(x, start, count):
    block_math.log_block(x, start, count)


@njit
def normalised(target, x, start, count):
    block_math.normalise_block(target, x, start, count, 0.3, 1e-9, 1.7, -0.2)


@njit
def normalised_gradient(target, g, x, start, count):
    block_math.normalise_grad_block(target, g, x, start, count, 0.1, 0.9, 0.3, 1.3)


@njit
def scalars(x, bits, made):
    made[0] = block_math.log_of(x)
    made[1] = block_math.from_bits(bits)


def arrays(dtype):
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 5, 113)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_have_the_order_of_their_twins(dtype):
    x, y = arrays(dtype)
    for count in LENGTHS:
        compiled, twin = np.zeros(3), np.zeros(3)
        sums(x, y, 3, 4, 113, count, compiled)
        plain(sums)(x, y, 3, 4, 113, count, twin)
        np.testing.assert_array_equal(compiled, twin)
        part = x[:4, 3 : 3 + count].astype(np.float64)
        np.testing.assert_allclose(compiled[:2], [part.sum(), ((part - 0.3) ** 2).sum()], atol=1e-12)
        exponentials(x, 5, count, compiled)
        plain(exponentials)(x, 5, count, twin)
        np.testing.assert_allclose(compiled[0], twin[0], rtol=1e-7 if dtype == "float32" else 1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_maximum(dtype):
    x = arrays(dtype)[0].reshape(-1)
    made = np.zeros(1)
    for count in LENGTHS:
        largest(x, 4, count, made)
        assert made[0] == x[4 : 4 + count].max(initial=-np.inf)
    for place in range(40):
        spoiled = x[:40].copy()
        spoiled[place] = np.nan
        largest(spoiled, 0, 40, made)
        assert np.isnan(made[0])
        largest(spoiled, place + 1, 39 - place, made)
        assert made[0] == x[place + 1 : 40].max(initial=-np.inf)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("function", "reference"), [(exp_stretch, np.exp), (log_stretch, np.log)])
def test_maps_touch_their_stretch_only(function, reference, dtype):
    x = np.abs(arrays(dtype)[0]) + 0.01
    for count in LENGTHS:
        compiled, twin, wanted = x.copy(), x.copy(), x.copy().reshape(-1)
        function(compiled, 5, count)
        plain(function)(twin, 5, count)
        wanted[5 : 5 + count] = reference(wanted[5 : 5 + count])
        np.testing.assert_array_equal(twin.reshape(-1), wanted)
        outside = np.delete(compiled.reshape(-1), slice(5, 5 + count))
        np.testing.assert_array_equal(outside, np.delete(x.reshape(-1), slice(5, 5 + count)))
        np.testing.assert_allclose(compiled.reshape(-1), wanted, rtol=3e-7 if dtype == "float32" else 1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("function", "operands"), [(normalised, 1), (normalised_gradient, 2)])
def test_normalisation_in_place_and_apart(function, operands, dtype):
    given = list(arrays(dtype)[:operands])
    tolerance = 1e-6 if dtype == "float32" else 1e-15  # the compiled one fuses a product and a sum
    for count in LENGTHS:
        apart, twin = np.zeros_like(given[0]), np.zeros_like(given[0])
        function(apart, *given, 2, count)
        plain(function)(twin, *given, 2, count)
        np.testing.assert_allclose(apart, twin, atol=tolerance)
        for k in range(operands):
            over = [a.copy() for a in given]
            function(over[k], *over, 2, count)
            np.testing.assert_array_equal(over[k].reshape(-1)[2 : 2 + count], apart.reshape(-1)[2 : 2 + count])


def test_scalars():
    for function in (scalars, plain(scalars)):
        made = np.zeros(2)
        function(2.0, int(np.float64(-1.25).view(np.int64)), made)
        np.testing.assert_allclose(made, [np.log(2), -1.25], rtol=1e-15)
        function(0.0, 0, made)
        np.testing.assert_array_equal(made, [-np.inf, 0])
