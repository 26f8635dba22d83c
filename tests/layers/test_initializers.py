"""Initializers: moments against their papers' formulas, structure, and what is refused."""

import functools
import math

import numpy as np
import pytest

from tapeprop.errors import GraphError, ShapeError
from tapeprop.layers import Conv2D, Dense, initializers

SHAPE = (40, 30, 3, 3)  # fan_in 270, fan_out 360
FAN_IN, BOTH_FANS = 270, 630
WITHIN = math.erf(math.sqrt(0.5))  # of a normal, the share of values within a standard deviation
# a normal cut at two of its standard deviations: its own one, and the share of values within that
CUT_STD = 0.8796256610342398
WITHIN_CUT = math.erf(CUT_STD * math.sqrt(0.5)) / math.erf(math.sqrt(2))


def drawn(name: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return initializers.draw(name, shape, np.random.Generator(np.random.PCG64(5)))


def many(initializer: str | initializers.Initializer, count: int = 40) -> np.ndarray:
    """Draws of SHAPE by seeds of their own, (count, *SHAPE)."""
    generators = [np.random.Generator(np.random.PCG64(seed)) for seed in range(count)]
    return np.stack([initializers.draw(initializer, SHAPE, generator) for generator in generators])


@pytest.mark.parametrize(
    ("initializer", "mean", "std", "bound", "within"),
    [
        ("he", 0, math.sqrt(2 / FAN_IN), None, WITHIN),
        ("he_uniform", 0, math.sqrt(2 / FAN_IN), math.sqrt(6 / FAN_IN), math.sqrt(1 / 3)),
        ("glorot", 0, math.sqrt(2 / BOTH_FANS), math.sqrt(6 / BOTH_FANS), math.sqrt(1 / 3)),
        ("glorot_normal", 0, math.sqrt(2 / BOTH_FANS), None, WITHIN),
        ("lecun_normal", 0, math.sqrt(1 / FAN_IN), None, WITHIN),
        ("lecun_uniform", 0, math.sqrt(1 / FAN_IN), math.sqrt(3 / FAN_IN), math.sqrt(1 / 3)),
        ("uniform", 0, 0.05 / math.sqrt(3), 0.05, math.sqrt(1 / 3)),
        ("normal", 0, 0.05, None, WITHIN),
        ("truncated_normal", 0, 0.05 * CUT_STD, 0.1, WITHIN_CUT),
        (functools.partial(initializers.uniform, low=1.0, high=4.0), 2.5, math.sqrt(0.75), 1.5, math.sqrt(1 / 3)),
        (functools.partial(initializers.normal, mean=3.0, std=2.0), 3, 2, None, WITHIN),
        (functools.partial(initializers.truncated_normal, mean=-1.0, std=0.5), -1, 0.5 * CUT_STD, 1.0, WITHIN_CUT),
    ],
)
def test_moments(
    initializer: str | initializers.Initializer, mean: float, std: float, bound: float | None, within: float
) -> None:
    values = many(initializer)
    assert values.dtype == np.float64
    apart = values - mean
    # four standard deviations of each estimate: of the mean, of the standard deviation (at most a normal's), of a share
    margin = 4 / math.sqrt(values.size)
    assert abs(apart.mean()) < margin * std
    assert abs(values.std() / std - 1) < margin / math.sqrt(2)
    assert abs((np.abs(apart) < std).mean() - within) < margin * math.sqrt(within * (1 - within))
    if bound is None:
        assert np.abs(apart).max() > 4 * std
    else:
        assert 0.999 * bound < np.abs(apart).max() <= bound
    # and each draw is one of its own
    assert len(np.unique(values[:, 0, 0, 0, 0])) == len(values)


def test_constants() -> None:
    assert not drawn("zeros").any()
    assert (drawn("ones") == 1).all()


@pytest.mark.parametrize("gain", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (5, 5), (4, 2, 3, 3), (30, 2, 3, 3)])
def test_orthogonal(shape: tuple[int, ...], gain: float) -> None:
    values = initializers.orthogonal(shape, np.random.Generator(np.random.PCG64(5)), gain)
    matrix = values.reshape(shape[0], -1) / gain
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(small, np.eye(len(small)), atol=1e-12)


def test_orthogonal_matrices_are_spread_uniformly() -> None:
    # an element of a uniform orthogonal n x n matrix has variance 1 / n, and a determinant of either sign is as likely
    drawn_ones = [initializers.orthogonal((4, 4), np.random.Generator(np.random.PCG64(seed))) for seed in range(2000)]
    first = np.array([matrix[0, 0] for matrix in drawn_ones])
    assert abs(first.mean()) < 4 * 0.5 / math.sqrt(2000)
    assert abs(first.var() - 0.25) < 4 * 0.25 * math.sqrt(2 / 2000)
    assert abs((np.linalg.det(drawn_ones) > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)


def test_orthogonal_needs_two_axes() -> None:
    with pytest.raises(ShapeError, match="two axes"):
        drawn("orthogonal", (3,))


def test_names() -> None:
    for other, name in [
        ("xavier", "glorot"),
        ("xavier_uniform", "glorot"),
        ("glorot_uniform", "glorot"),
        ("xavier_normal", "glorot_normal"),
        ("he_normal", "he"),
        ("kaiming_normal", "he"),
        ("kaiming_uniform", "he_uniform"),
    ]:
        np.testing.assert_array_equal(drawn(other), drawn(name))
    assert set(initializers.NAMED) == set(initializers.__all__) - {"fans"}
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
