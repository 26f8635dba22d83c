"""CUDA kernels of the reductions: specials, accuracy, any axes, terms in parts."""

import numpy as np
import pytest
from on_device.launches import DEVICE, run_launches

from tapeprop.ops import registry
from tapeprop.ops.op import ArrayType, Call, Device
from tapeprop.ops.reduce import kept_shape

pytestmark = pytest.mark.cuda

MODES = ("sum", "mean", "max", "min")


def reduced(x, mode, axes, device=DEVICE):
    axes = (axes,) if isinstance(axes, int) else axes
    kinds = [ArrayType(shape, str(x.dtype)) for shape in (x.shape, kept_shape(x.shape, axes, False))]
    call = Call(tuple(kinds[:1]), tuple(kinds[1:]), {"mode": mode, "axes": axes, "keepdims": False})
    launches = registry["reduce"].cuda_rows(call, device)
    return run_launches(launches, call, [x])[0], len(launches)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("place", [0, 3, 17, 170])
def test_nan_and_infinities_propagate(dtype, mode, axis, place):
    """29 terms take one launch; 171 have parts, and those are joined."""
    length = 171 if place > 28 else 29
    x = np.random.default_rng(0).standard_normal((length, 3)).astype(dtype)
    x[place, 0] = np.nan
    x[0 if place else 1, 0] = np.inf  # a NaN wins over what comes before and after it
    x[place, 1], x[(place + 9) % length, 1] = np.inf, -np.inf
    found, launches = reduced(np.ascontiguousarray(x if axis == 0 else x.T), mode, axis, Device(4, 16))
    assert launches == (2 if place > 28 else 1)
    assert np.isnan(found[0])
    if mode in ("max", "min"):
        assert found[1] == (np.inf if mode == "max" else -np.inf)
    else:
        assert np.isnan(found[1])
    assert np.isfinite(found[2])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_extremes_of_infinities_alone(mode, value):
    x = np.full((2, 150), value)
    for axis, count in ((1, 2), (0, 150)):
        np.testing.assert_array_equal(reduced(x, mode, axis)[0], [value] * count)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("columns", [1, 3, 9])
def test_float32_sums_are_rounded_once(axis, columns):
    # adding the small numbers one by one in float32 would leave 1
    x = np.full((1 << 10, columns), 2.0**-24, np.float32)
    x[0] = 1.0
    exact = np.float32(1.0 + 1023 * 2.0**-24)
    np.testing.assert_array_equal(
        reduced(np.ascontiguousarray(x if axis == 0 else x.T), "sum", axis)[0], [exact] * columns
    )


def test_float32_sum_beyond_the_range_of_its_parts():
    x = np.array([3e38, 3e38, -3e38], np.float32)
    assert reduced(x, "sum", 0)[0] == x[0]


SHAPES = [
    ((), ()),
    ((5,), (0,)),
    ((0, 4), (1,)),
    ((3, 7, 2), (0, 1, 2)),
    ((3, 7, 2), (1,)),
    ((4, 3, 6), (0, 2)),
    ((2, 3, 4, 1, 5), (1, 4)),
    ((2, 3, 2, 3, 2, 3), (0, 2, 4)),
    ((2, 3, 2, 3, 2, 3), (1, 3, 5)),
    ((600,), (0,)),
    ((2, 300), (1,)),
    ((300, 2), (0,)),
    ((40, 2, 15), (0, 2)),
]
DEVICES = [DEVICE, Device(2, 5), Device(16, 8)]


@pytest.mark.parametrize(("shape", "axes"), SHAPES)
@pytest.mark.parametrize("device", DEVICES, ids=lambda device: f"{device.block}x{device.blocks}")
def test_any_axes_on_any_device(shape, axes, device):
    x = np.random.default_rng(0).standard_normal(shape)
    for mode in ("mean", "min"):
        found, launches = reduced(x, mode, axes, device)
        np.testing.assert_allclose(found, getattr(np, mode)(x, axis=axes), rtol=1e-13, atol=1e-14)
        assert launches == 1 or x.size > 500


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 8193])
def test_square_sums_of_a_last_chunk_that_is_short(dtype, size):
    x = np.random.default_rng(size).standard_normal(size).astype(dtype)
    call = Call((ArrayType(x.shape, dtype),), (ArrayType((-(-size // 8192),), "float64"),), {})
    (found,) = run_launches(registry["square_sums"].cuda_rows(call, Device(16, 8)), call, [x])
    (expected,) = registry["square_sums"].reference(call, x)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
