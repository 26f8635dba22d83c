"""DropBlock: blocks are blocks, as many as asked for, the same in backward and for any number of workers."""

import math

import numpy as np
import pytest
from traced import run

import tapeprop as tp
from tapeprop.errors import GraphError, ShapeError
from tapeprop.layers import DropBlock1D, DropBlock2D, DropBlock3D, Sequential

CASES = [
    (DropBlock1D, (40, 8, 50), 7),
    (DropBlock2D, (20, 8, 20, 17), 4),
    (DropBlock2D, (60, 8, 9, 3), 6),  # blocks as wide as the image
    (DropBlock3D, (6, 6, 9, 10, 8), 3),
]


def kept(layer, shape, **options) -> np.ndarray:
    return run(layer, [np.ones(shape)], training=True, **options).outputs[0] != 0


def chance(shape: tuple[int, ...], block: int, rate: float) -> tuple[float, list[int]]:
    """(the probability of a seed, the extents of a block), by eq. 1 of Ghiasi et al."""
    extents = [min(block, n) for n in shape[2:]]
    places = [n - b + 1 for n, b in zip(shape[2:], extents)]
    return rate * math.prod(shape[2:]) / (math.prod(extents) * math.prod(places)), extents


@pytest.mark.parametrize(("cls", "shape", "block"), CASES)
@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_as_many_are_dropped_as_asked_for(cls, shape, block, rate) -> None:
    gamma, extents = chance(shape, block, rate)
    # an element stays where no block begins at the places that cover it, which are fewer at the rim
    covering = np.ones(())
    for n, b in zip(shape[2:], extents):
        i = np.arange(n)
        places = np.minimum(i, n - b) - np.maximum(i - b + 1, 0) + 1
        covering = np.multiply.outer(covering, places)
    stays = (1 - gamma) ** covering
    mask = kept(cls(rate, block), shape, seed=4)
    # one channel of one sample is independent of the others: four standard deviations of the mean of those
    shares = mask.mean(tuple(range(2, len(shape)))).reshape(-1)
    assert abs(shares.mean() - stays.mean()) < 4 * shares.std() / math.sqrt(shares.size)
    if rate == 0.1:
        assert abs((1 - mask.mean()) - rate) < 0.03  # the approximation of eq. 1


@pytest.mark.parametrize(("cls", "shape", "block"), CASES)
def test_blocks_are_blocks(cls, shape, block) -> None:
    """Each dropped element lies in a whole block of dropped ones: opening the set by the block changes nothing."""
    dropped = ~kept(cls(0.3, block), shape, seed=2)
    extents = [min(block, n) for n in shape[2:]]
    axes = tuple(range(2, len(shape)))
    windows = np.lib.stride_tricks.sliding_window_view(dropped, extents, axes)
    begins = windows.all(tuple(range(len(shape), windows.ndim)))
    opened = np.zeros_like(dropped)
    for offsets in np.ndindex(*extents):
        opened[(..., *(slice(o, o + n) for o, n in zip(offsets, begins.shape[2:])))] |= begins
    np.testing.assert_array_equal(opened, dropped)
    assert dropped.any()
    assert not dropped.all()


def test_one_block_at_a_time() -> None:
    """So rare that blocks stand alone: each has the block's size and lies inside the image."""
    mask = kept(DropBlock2D(0.002, (block := 3)), (400, 1, 12, 10), seed=1)
    sizes = (~mask).sum((1, 2, 3))
    assert set(np.unique(sizes)) <= {0, *range(block * block, 4 * block * block + 1)}
    assert (sizes == block * block).sum() > 5


def test_what_stays_is_scaled_and_backward_has_the_same_mask() -> None:
    x = np.random.default_rng(0).uniform(1, 2, (5, 3, 8, 9))
    flow = np.random.default_rng(1).standard_normal(x.shape)
    found = run(DropBlock2D(0.3, 3), [x], [flow], training=True, seed=3)
    mask = found.outputs[0] != 0
    np.testing.assert_allclose(found.outputs[0], x * mask / mask.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.inputs[0], flow * mask / mask.mean(), rtol=1e-12)
    np.testing.assert_array_equal(run(DropBlock2D(0.3, 3), [x]).outputs[0], x)
    np.testing.assert_array_equal(run(DropBlock2D(0.0, 3), [x], training=True).outputs[0], x)
    np.testing.assert_array_equal(
        run(DropBlock2D(1.0, 9), [x], training=True).outputs[0], 0
    )  # nothing stays, nothing is NaN


def test_by_the_kernels_for_any_number_of_workers() -> None:
    x = np.ones((3, 4, 10, 12), np.float32)
    runs = []
    for workers in (1, 2, 3):
        node = tp.LayerNode(DropBlock2D(0.2, 3))
        graph = tp.LayerGraph({node: []}, node, node, seed=5).build((None, 4, None, None), workers=workers)
        first, second = graph(x, True), graph(x, True)
        assert (first != second).any()
        np.testing.assert_array_equal(graph.backward(np.ones_like(x)), second)
        np.testing.assert_array_equal(graph(x), x)
        runs.append((first, second))
    for first, second in runs[1:]:
        np.testing.assert_array_equal(first, runs[0][0])
        np.testing.assert_array_equal(second, runs[0][1])


def test_a_seed_of_its_own() -> None:
    layer, shape = DropBlock1D(0.3, 3, random_state=11), (4, 5, 30)
    alone = kept(layer, shape, seed=1)
    np.testing.assert_array_equal(kept(layer, shape, seed=2), alone)
    assert (kept(DropBlock1D(0.3, 3, random_state=12), shape, seed=1) != alone).any()
    twice = run(Sequential(layer, layer), [np.ones(shape)], training=True)
    assert (twice.outputs[0] != 0).sum() < alone.sum()
    assert twice.states[layer.counter].tolist() == [11, 2]


def test_what_is_refused() -> None:
    with pytest.raises(GraphError, match="DropBlock2D: expected block_size to be an int >= 1, got 0"):
        DropBlock2D(0.1, 0)
    with pytest.raises(GraphError, match="dropout_rate"):
        DropBlock2D(1.5)
    for layer, shape in ((DropBlock1D(), (2, 3)), (DropBlock2D(), (2, 3, 4)), (DropBlock3D(), (2, 3, 4, 5))):
        with pytest.raises(ShapeError, match=f"{type(layer).__name__} expects .* use the DropBlock of that rank"):
            layer.out_shape(shape)
