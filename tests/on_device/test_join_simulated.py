"""CUDA kernels of concat, slice and place: many operands, integers, fills that are not finite, wide indices."""

import numpy as np
import pytest
from on_device.calls import on_cuda

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_concat_of_any_number(dtype, count):
    parts = [(100 * k + np.arange(6 * (k % 3 + 1))).reshape(2, k % 3 + 1, 3).astype(dtype) for k in range(count)]
    np.testing.assert_array_equal(on_cuda("concat", *parts, axis=1)[0], np.concatenate(parts, 1))


@pytest.mark.parametrize("value", [0.0, -0.0, -np.inf, np.nan, 1e-300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_place_fills_with_any_number(value, dtype):
    x = np.arange(6.0).reshape(2, 3).astype(dtype)
    found = on_cuda("place", x, shape=(4, 6), starts=(1, 5), steps=(1, -2), value=value)[0]
    wanted = np.full((4, 6), value, dtype)
    wanted[1:3, 5::-2] = x
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(wanted))


def test_integers_are_cut():
    x = np.arange(40).reshape(5, 8)
    found = on_cuda("slice", x, starts=(4, 1), sizes=(3, 3), steps=(-2, 2))[0]
    np.testing.assert_array_equal(found, x[4::-2, 1:7:2])


def test_indices_of_2_to_the_31_and_more_are_divided(monkeypatch):
    for module in ("join.parts", "join.regions", "shape.strides"):
        monkeypatch.setattr(f"tapeprop.ops.{module}.NARROW", 0)
    x = np.arange(24.0).reshape(4, 6)
    np.testing.assert_array_equal(on_cuda("concat", x, x, axis=1)[0], np.concatenate([x, x], 1))
    found = on_cuda("slice", x, starts=(1, 1), sizes=(2, 5), steps=(1, 1))[0]
    np.testing.assert_array_equal(found, x[1:3, 1:])
    found = on_cuda("place", found, shape=(4, 6), starts=(1, 1), steps=(1, 1), value=0.0)[0]
    np.testing.assert_array_equal(found, np.pad(x[1:3, 1:], ((1, 1), (1, 0))))
