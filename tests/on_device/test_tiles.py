"""The tiles of a real device, in whole and over their edges. In the simulator the samples are cut to far smaller ones."""

import dataclasses

import numpy as np
import pytest
from on_device.calls import on_cuda
from ops.test_catalogue import compare

from tapeprop.ops.op import ITEM_BYTES, Device

pytestmark = pytest.mark.cuda
TILES = Device().tiles


def of_one(tile):
    """A device that cuts every product to this tile, and no sum into parts."""
    return dataclasses.replace(Device(), tiles=(tile,), multiprocessors=1)


@pytest.mark.parametrize("turned", [False, True], ids=["by-rows", "by-columns"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.m}x{tile.n}")
def test_a_tile_and_its_edges(tile, dtype, turned):
    """A row more than the tile, or a column; a term more than are fetched at a time. Operands both ways round in memory."""
    k = tile.k * 4 // ITEM_BYTES[dtype] + 1
    m, n = (tile.m, tile.n + 1) if turned else (tile.m + 1, tile.n)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    operands = [np.ascontiguousarray(x.T if turned else x) for x in (a, b)]
    (y,) = on_cuda("matmul", *operands, device=of_one(tile), transpose_a=turned, transpose_b=turned)
    compare(y, a.astype(np.float64) @ b, operands, dtype, k, dtype)


def test_a_table_of_terms_is_filled_again():
    """It holds two chunks of as many terms as a block has threads: here come three, the last one ragged."""
    tile = min(TILES, key=lambda tile: tile.threads)
    height, width = 17, tile.threads * 2 // 17 + 2
    assert height * width > 2 * tile.threads
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 1, 2, height, width))
    attributes = {"kernel": (3, 3), "stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
    (dw,) = on_cuda("conv2d_weight_grad", x[:, :1].copy(), dy, device=of_one(tile), **attributes)
    wide = np.pad(x[0, 0], 1)
    expected = [
        [[[(wide[i : i + height, j : j + width] * g).sum() for j in range(3)] for i in range(3)]] for g in dy[0]
    ]
    compare(dw, np.array(expected), [x, dy], "float64", height * width, "float64")
