"""CUDA kernels that move elements: every order of axes, tiles cut at their edges, indices of 2^31 and more."""

import itertools

import numpy as np
import pytest
from on_device.calls import on_cuda
from on_device.launches import DEVICE

from tapeprop.ops.op import inverse
from tapeprop.ops.shape.strides import cuda_copy_launch

pytestmark = pytest.mark.cuda

STRIDES = "tapeprop.ops.shape.strides"


@pytest.mark.parametrize("axes", list(itertools.permutations(range(4))), ids=str)
def test_every_order_of_four_axes(axes):
    x = np.arange(2 * 3 * 5 * 4).reshape(2, 3, 5, 4)
    np.testing.assert_array_equal(on_cuda("transpose", x, axes=axes)[0], x.transpose(axes))


#: The side of a tile on the device at hand: four elements for each thread.
SIDE = 1 << ((4 * DEVICE.block).bit_length() - 1) // 2
EDGES = [(9, 7), (4, 4), (1, 9), (9, 1), (2, 2), (8, 13), (SIDE, SIDE), (SIDE + 1, 2 * SIDE - 1), (SIDE // 2, 3 * SIDE)]


@pytest.mark.parametrize("shape", EDGES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_tiles_at_their_edges(shape, dtype):
    x = np.arange(shape[0] * shape[1]).reshape(shape).astype(dtype)
    np.testing.assert_array_equal(on_cuda("transpose", x, axes=(1, 0))[0], x.T)


def test_tiles_are_taken_where_neighbours_lie_below_each_other():
    from on_device.calls import make_call

    def builder(axes, *shape):
        call = make_call("transpose", [np.zeros(shape)], {"axes": axes})
        strides = [int(np.prod(shape[axis + 1 :])) for axis in axes]
        return cuda_copy_launch(call, DEVICE, strides).kernel.builder.partition(":")[2]

    high, wide = 2 * SIDE + 1, 2 * SIDE - 1
    assert builder((1, 0), high, wide) == "turned"
    assert builder((0, 2, 1), 3, high, wide) == "turned"
    assert builder((2, 0, 3, 1), 2, high, 3, wide) == "turned"
    assert builder((1, 0, 2), 3, 9, 7) == "strided"  # rows stay rows
    assert builder((1, 0), 9, 1) == "strided"


def test_indices_of_2_to_the_31_and_more_are_divided(monkeypatch):
    monkeypatch.setattr(f"{STRIDES}.NARROW", 0)
    x = np.arange(60.0).reshape(3, 4, 5)
    np.testing.assert_array_equal(on_cuda("transpose", x, axes=(1, 0, 2))[0], x.transpose(1, 0, 2))
    found = on_cuda("expand", x[:, :1], shape=(2, 3, 4, 5), mean=True)[0]
    np.testing.assert_array_equal(found, np.broadcast_to(x[:, :1], (2, 3, 4, 5)) / 8)


def test_division_by_multiplication():
    random = np.random.default_rng(0)
    sizes = {1, 2, 3, 5, 7, 641, 2**16, 2**30, 2**31 - 1, 2**31, *map(int, 2 ** random.uniform(0, 31, 200))}
    for size in sizes:
        factor, shift = inverse(size) >> 6, inverse(size) & 63
        multiples = [k * size + d for k in (1, 2, (2**31 - 1) // size) for d in (-1, 0)]
        for n in (0, 2**31 - 1, *map(int, random.integers(0, 2**31, 20)), *multiples):
            if 0 <= n < 2**31:
                assert n * factor < 2**63
                assert (n * factor) >> shift == n // size
    assert inverse(2**31 + 1) == 0


@pytest.mark.parametrize("dtype", ["float64", "int64", "int32", "uint8"])
def test_casts_round_as_numpy_does(dtype):
    x = np.array([0.0, 1, 2, 3]) if dtype != "float64" else np.array([0.1, 1e300, -np.inf, np.nan, -0.0, 2**24 + 1])
    x = x.astype(dtype)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(on_cuda("cast", x, dtype="float32")[0], x.astype("float32"))


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_integers_are_copied_and_repeated(dtype):
    x = np.array([[3], [200]]).astype(dtype)
    np.testing.assert_array_equal(on_cuda("copy", x)[0], x)
    np.testing.assert_array_equal(on_cuda("expand", x, shape=(2, 3), mean=False)[0], np.repeat(x, 3, 1))
