"""First values of weights: `initializer(shape, generator) -> array`, drawn in float64.

Layers take one by name (`initializer="he"`) or as a function of that signature; `functools.partial(normal, std=0.01)`
sets an option. Fans are counted in PyTorch's weight layouts: shape[0] outputs, shape[1] inputs, the rest a filter's
extent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tapeprop.errors import GraphError, ShapeError

__all__ = [
    "fans",
    "glorot",
    "glorot_normal",
    "glorot_uniform",
    "he",
    "he_normal",
    "he_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "orthogonal",
    "standard_normal",
    "truncated_normal",
    "uniform",
    "xavier",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

Shape = tuple[int, ...]
Initializer = Callable[[Shape, np.random.Generator], np.ndarray]


def fans(shape: Shape) -> tuple[int, int]:
    """(fan_in, fan_out): how many inputs one output sees, and how many outputs one input reaches."""
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    extent = math.prod(shape[2:])
    return shape[1] * extent, shape[0] * extent


def he(shape: Shape, generator: np.random.Generator) -> np.ndarray:
    """Normal with variance 2 / fan_in (He et al. 2015, Delving Deep into Rectifiers, eq. 10).

    As torch's kaiming_normal_; Keras cuts its he_normal at two standard deviations and keeps the variance.
    """
    return _normal(shape, generator, 2.0 / fans(shape)[0])


def he_uniform(shape: Shape, generator: np.random.Generator) -> np.ndarray:
    """Uniform with variance 2 / fan_in (He et al. 2015)."""
    return _uniform(shape, generator, 2.0 / fans(shape)[0])


def glorot(shape: Shape, generator: np.random.Generator) -> np.ndarray:
    """Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 16)."""
    return _uniform(shape, generator, 2.0 / sum(fans(shape)))


def glorot_normal(shape: Shape, generator: np.random.Generator) -> np.ndarray:
    """Normal with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 12)."""
    return _normal(shape, generator, 2.0 / sum(fans(shape)))


def lecun_normal(shape: Shape, generator: np.random.Generator) -> np.ndarray:
    """Normal with variance 1 / fan_in (LeCun et al. 1998, Efficient BackProp, eq. 16), which SELU asks for."""
    return _normal(shape, generator, 1.0 / fans(shape)[0])


def lecun_uniform(shape: Shape, generator: np.random.Generator) -> np.ndarray:
    """Uniform with variance 1 / fan_in (LeCun et al. 1998)."""
    return _uniform(shape, generator, 1.0 / fans(shape)[0])


# what torch and Keras call them
he_normal = kaiming_normal = he
kaiming_uniform = he_uniform
glorot_uniform = xavier = xavier_uniform = glorot
xavier_normal = glorot_normal


def _normal(shape: Shape, generator: np.random.Generator, variance: float) -> np.ndarray:
    return generator.normal(0.0, math.sqrt(variance), shape)


def _uniform(shape: Shape, generator: np.random.Generator, variance: float) -> np.ndarray:
    bound = math.sqrt(3.0 * variance)
    return generator.uniform(-bound, bound, shape)


def uniform(shape: Shape, generator: np.random.Generator, low: float = -0.05, high: float = 0.05) -> np.ndarray:
    """Uniform on [low, high)."""
    return generator.uniform(low, high, shape)


def normal(shape: Shape, generator: np.random.Generator, mean: float = 0.0, std: float = 0.05) -> np.ndarray:
    """Normal."""
    return generator.normal(mean, std, shape)


def standard_normal(shape: Shape, generator: np.random.Generator) -> np.ndarray:
    """Normal with variance 1, as torch.nn.Embedding."""
    return generator.standard_normal(shape)


def truncated_normal(shape: Shape, generator: np.random.Generator, mean: float = 0.0, std: float = 0.05) -> np.ndarray:
    """Normal, where values further than two `std` from the mean are drawn again (Keras' TruncatedNormal)."""
    values = generator.standard_normal(shape)
    while (far := np.abs(values) > 2.0).any():
        values[far] = generator.standard_normal(int(far.sum()))
    return mean + std * values


def orthogonal(shape: Shape, generator: np.random.Generator, gain: float = 1.0) -> np.ndarray:
    """Orthonormal rows or columns, whichever are fewer, of the weight as a (shape[0], rest) matrix (Saxe et al. 2014).

    ShapeError for fewer than two axes.
    """
    if len(shape) < 2:
        raise ShapeError(
            f"orthogonal: expected a weight of at least two axes, got shape {shape}; use another initializer"
        )
    rows, columns = shape[0], math.prod(shape[1:])
    q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
    # QR leaves the signs to the library; with R's diagonal positive the result is distributed uniformly
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return gain * (q.T if rows < columns else q).reshape(shape)


def zeros(shape: Shape, generator: np.random.Generator) -> np.ndarray:
    """Zeros; draws nothing."""
    return np.zeros(shape)


def ones(shape: Shape, generator: np.random.Generator) -> np.ndarray:
    """Ones; draws nothing."""
    return np.ones(shape)


NAMED: dict[str, Initializer] = {
    "glorot": glorot,
    "glorot_normal": glorot_normal,
    "glorot_uniform": glorot_uniform,
    "he": he,
    "he_normal": he_normal,
    "he_uniform": he_uniform,
    "kaiming_normal": kaiming_normal,
    "kaiming_uniform": kaiming_uniform,
    "lecun_normal": lecun_normal,
    "lecun_uniform": lecun_uniform,
    "normal": normal,
    "ones": ones,
    "orthogonal": orthogonal,
    "standard_normal": standard_normal,
    "truncated_normal": truncated_normal,
    "uniform": uniform,
    "xavier": xavier,
    "xavier_normal": xavier_normal,
    "xavier_uniform": xavier_uniform,
    "zeros": zeros,
}


def find(initializer: str | Initializer) -> Initializer:
    """The function of a name, or the function given. GraphError for any other."""
    if callable(initializer):
        return initializer
    if isinstance(initializer, str) and initializer in NAMED:
        return NAMED[initializer]
    raise GraphError(
        f"expected an initializer, one of {', '.join(NAMED)}, or a function of (shape, generator), got {initializer!r}"
    )


def draw(initializer: str | Initializer, shape: Shape, generator: np.random.Generator) -> np.ndarray:
    """The values of a weight, float64. ShapeError where a user's function gives another shape."""
    values = np.asarray(find(initializer)(shape, generator), dtype=np.float64)
    if values.shape != shape:
        name = getattr(initializer, "__name__", initializer)
        raise ShapeError(f"initializer {name}: expected an array of shape {shape}, got {values.shape}")
    return values
