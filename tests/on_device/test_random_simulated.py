"""CUDA kernels of dropout: the CPU's bits, for any seed and call, with and without shared axes."""

import numpy as np
import pytest
from on_device.calls import on_cpu, on_cuda, reported

pytestmark = pytest.mark.cuda

COUNTERS = [(0, 0), (-1, 2**63 - 1), (2**62 + 12345, 2**32 + 7), (-(2**40), 5)]


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "shared"), [((3, 67), ()), ((2, 33, 1, 3), (2, 3)), ((2, 3, 5, 3, 4), (0, 2, 4))])
def test_the_bits_are_the_cpus(counter, dtype, shape, shared):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    attributes = {"rate": 0.3, "site": 200, "shared_axes": shared}
    found = on_cuda("dropout", x, np.array(counter), **attributes)[0]
    np.testing.assert_array_equal(found, on_cpu("dropout", x, np.array(counter), **attributes)[0])
    if not shared:
        assert 0.15 < np.mean(found == 0) < 0.45


@pytest.mark.parametrize("shared", [(), (1,)])
def test_the_result_may_take_the_operands_place(shared):
    x, counter = np.arange(1.0, 211).reshape(3, 70), np.array([5, 6])
    x[1, 3] = np.nan  # times 0 it stays
    attributes = {"rate": 0.5, "site": 0, "shared_axes": shared}
    (found,), _ = reported("dropout", x, counter, inplace=[(0, 0)], **attributes)
    np.testing.assert_array_equal(found, on_cuda("dropout", x, counter, **attributes)[0])
    assert np.isnan(found).sum() == 1


def test_indices_of_2_to_the_31_and_more_are_divided(monkeypatch):
    x, counter = np.ones((2, 7, 3, 2)), np.array([9, 1])
    attributes = {"rate": 0.5, "site": 1, "shared_axes": (2,)}
    narrow = on_cuda("dropout", x, counter, **attributes)[0]
    monkeypatch.setattr("tapeprop.ops.random.NARROW", 0)
    np.testing.assert_array_equal(on_cuda("dropout", x, counter, **attributes)[0], narrow)
