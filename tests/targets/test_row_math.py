"""Normalisation of stretches: compiled against the twins, at every length, in place and apart."""

import numpy as np
import pytest
from numba import njit

from tapeprop.targets.cpu import row_math
from tapeprop.targets.cpu.plain import plain

LENGTHS = (0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100)
MEAN = 0.3 + 1e-9  # float32 cannot hold it


@njit
def sums(dy, x, gamma, start, place, count, made):
    made[0], made[1] = row_math.flow_sums(dy, x, start, count, MEAN)
    made[2], made[3] = row_math.weighted_flow_sums(dy, x, gamma, start, place, count, MEAN)


@njit
def elements(target, x, gamma, beta, start, place, count):
    row_math.normalise_elements(target, x, gamma, beta, start, place, count, MEAN, 1.7)


@njit
def block_gradient(target, dy, x, start, count):
    row_math.grad_block(target, dy, x, start, count, MEAN, 0.9, 1.3, 0.1)


@njit
def element_gradient(target, dy, x, gamma, to_gamma, to_beta, start, place, count):
    row_math.grad_elements(target, dy, x, gamma, to_gamma, to_beta, start, place, place + 1, count, MEAN, 1.7, 1.3, 0.1)


def arrays(dtype):
    return list(np.random.default_rng(0).standard_normal((4, 110)).astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_have_the_order_of_their_twins(dtype):
    dy, x, gamma, _ = arrays(dtype)
    for count in LENGTHS:
        compiled, twin = np.zeros(4), np.zeros(4)
        sums(dy, x, gamma, 3, 5, count, compiled)
        plain(sums)(dy, x, gamma, 3, 5, count, twin)
        np.testing.assert_array_equal(compiled, twin)
        part = slice(3, 3 + count)
        flow, apart = dy[part].astype(np.float64), x[part].astype(np.float64) - MEAN
        weighted = flow * gamma[5 : 5 + count]
        wanted = [flow.sum(), flow @ apart, weighted.sum(), weighted @ apart]
        np.testing.assert_allclose(compiled, wanted, atol=1e-5 if dtype == "float32" else 1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_maps_in_place_and_apart(dtype):
    a, b, gamma, beta = arrays(dtype)
    tolerance = 2e-6 if dtype == "float32" else 1e-14  # the compiled ones fuse a product and a sum
    for count in LENGTHS:
        for function, given, rest in [
            (elements, [a], (gamma, beta, 2, 5, count)),
            (block_gradient, [a, b], (2, count)),
            (element_gradient, [a, b], (gamma, np.zeros(120), np.zeros(120), 2, 5, count)),
        ]:
            apart, twin = np.full_like(a, 7), np.full_like(a, 7)
            function(apart, *given, *rest)
            plain(function)(twin, *given, *rest)
            np.testing.assert_allclose(apart, twin, atol=tolerance)
            np.testing.assert_array_equal(np.delete(apart, slice(2, 2 + count)), 7)
            for k in range(len(given)):
                over = [x.copy() for x in given]
                function(over[k], *over, *rest)
                np.testing.assert_array_equal(over[k][2 : 2 + count], apart[2 : 2 + count])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_adds_to_sums(dtype):
    dy, x, gamma, target = arrays(dtype)
    for count in LENGTHS:
        for function in (element_gradient, plain(element_gradient)):
            to_gamma, to_beta = np.ones(120), np.full(120, 2.0)
            function(target, dy, x, gamma, to_gamma, to_beta, 2, 5, count)
            flow, part = dy[2 : 2 + count].astype(np.float64), slice(6, 6 + count)
            np.testing.assert_array_equal(to_beta[part], 2 + flow)
            np.testing.assert_allclose(to_gamma[part], 1 + flow * (x[2 : 2 + count] - MEAN) * 1.7, atol=2e-6)
            np.testing.assert_array_equal(np.delete(to_gamma, part), 1)
            np.testing.assert_array_equal(np.delete(to_beta, part), 2)
