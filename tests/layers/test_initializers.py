"""Initializers: moments against their papers' formulas, structure, and what is refused."""

import functools
import math

import numpy as np
import pytest

from tapeprop.errors import GraphError, ShapeError
from tapeprop.layers import Conv2D, Dense, initializers

SHAPE = (40, 30, 3, 3)  # fan_in 270, fan_out 360


def drawn(name: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return initializers.draw(name, shape, np.random.Generator(np.random.PCG64(5)))


@pytest.mark.parametrize(
    ("name", "std", "bound"),
    [
        ("he", math.sqrt(2 / 270), None),
        ("glorot", math.sqrt(2 / 630), math.sqrt(6 / 630)),
        ("uniform", 0.05 / math.sqrt(3), 0.05),
        ("normal", 0.05, None),
        # the standard deviation of a normal cut at two of its own
        ("truncated_normal", 0.05 * 0.8796256610342398, 0.1),
    ],
)
def test_moments(name: str, std: float, bound: float | None) -> None:
    values = drawn(name)
    assert values.dtype == np.float64
    assert values.shape == SHAPE
    # 10,800 draws: the mean is known to 1 % of a standard deviation, that to 1 %; four of those
    assert abs(values.mean()) < 0.04 * std
    assert abs(values.std() / std - 1) < 0.04
    if bound is not None:
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.98 * bound


def test_constants() -> None:
    assert not drawn("zeros").any()
    assert (drawn("ones") == 1).all()


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (5, 5), (4, 2, 3, 3), (30, 2, 3, 3)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    matrix = drawn("orthogonal", shape).reshape(shape[0], -1)
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(small, np.eye(len(small)), atol=1e-13)
    with pytest.raises(ShapeError, match="two axes"):
        drawn("orthogonal", (3,))


def test_names() -> None:
    np.testing.assert_array_equal(drawn("xavier"), drawn("glorot"))
    assert initializers.fans((4,)) == (4, 4)
    assert initializers.fans((4, 3)) == (3, 4)
    assert initializers.fans((4, 3, 2, 2)) == (12, 16)


def test_functions_and_options() -> None:
    layer = Dense(50, 60, initializer=functools.partial(initializers.normal, std=3.0), random_state=0)
    assert 2.8 < layer.weight.value.std() < 3.2
    mine = Conv2D(3, 4, 3, initializer=lambda shape, generator: np.full(shape, 7))
    assert (mine.weight.value == 7).all()
    with pytest.raises(ShapeError, match=r"expected an array of shape \(4, 3\), got \(2,\)"):
        Dense(3, 4, initializer=lambda shape, generator: np.zeros(2)).weight.value  # noqa: B018
    with pytest.raises(GraphError, match="truncated_normal"):
        Dense(3, 4, initializer=3)
