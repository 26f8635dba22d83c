"""Normalisation by a sample's own elements: layer, group, instance and RMS norm, from one op.

x is read as (samples, period, segments, inner): a row is all of one (sample, period), segments * inner elements that lie side by
side, and gamma and beta have an element for each (period, segment). LayerNorm (Ba, Kiros and Hinton 2016) has period 1 and inner 1,
GroupNorm (Wu and He 2018) a period for each group and the spatial size inside, InstanceNorm (Ulyanov et al. 2016) one for each
channel. RMSNorm (Zhang and Sennrich 2019) leaves out the mean. In torch and here the variance is the biased one.

Means and squares are summed in float64 about each chunk's own mean and merged by Chan, Golub and LeVeque (1979), and both statistics
stay float64: rounded to float32, a mean of 1e4 would be off by 5e-4.

The gradient, with x^ = (x - mean) / std and g = gamma dy: dx = (g - mean g - x^ mean(g x^)) / std over each row, dbeta = sum dy and
dgamma = sum dy x^ over samples and `inner`. These two sums are long, so samples are dealt out to `chunks` in turns of `turn` samples,
sample s to chunk s // turn % chunks: each chunk's sums are done where its dx is, while dy and x are at hand, by one worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import GraphError, ShapeError
from tapeprop.ir import Dim, Shape, Size, Tensor, UndecidedError
from tapeprop.ir.dims import product, same, text
from tapeprop.ops.op import as_tensor, record, same_dtype
from tapeprop.ops.row_norm import spec as spec  # registers the ops
from tapeprop.ops.shape import reshape

__all__ = ["group_norm", "instance_norm", "layer_norm", "rms_norm"]


def layer_norm(
    x: Any, normalized_shape: Size | Sequence[Size], gamma: Any = None, beta: Any = None, epsilon: float = 1e-5
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) gamma + beta over the last axes of x, which have the shape `normalized_shape`.

    gamma, beta: of that shape, or None. Of x's shape and floating dtype. ShapeError where they do not fit.
    """
    x = as_tensor(x)
    given, shape = _over_last_axes("layer_norm", x, normalized_shape)
    gamma, beta = _expect_vectors("layer_norm", given, {"gamma": gamma, "beta": beta})
    return _row_norm(x, shape, gamma, beta, epsilon)


def rms_norm(
    x: Any, normalized_shape: Size | Sequence[Size], gamma: Any = None, epsilon: float | None = None
) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) gamma over the last axes of x, which have the shape `normalized_shape`.

    gamma: of that shape, or None. epsilon: None for the machine epsilon of x's dtype, as in torch. Of x's shape and floating dtype.
    ShapeError where they do not fit.
    """
    x = as_tensor(x)
    given, shape = _over_last_axes("rms_norm", x, normalized_shape)
    (gamma,) = _expect_vectors("rms_norm", given, {"gamma": gamma})
    least = float(np.finfo(same_dtype("rms_norm", [x])).eps) if epsilon is None else epsilon
    return _row_norm(x, shape, gamma, None, least, center=False)


def group_norm(x: Any, groups: int, gamma: Any = None, beta: Any = None, epsilon: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) gamma + beta, the statistics of each sample's channels in `groups` equal groups.

    x: (N, C, ...). gamma, beta: (C,), or None. Of x's shape and floating dtype. ShapeError where they do not fit.
    """
    x = as_tensor(x)
    if x.ndim < 2:
        raise ShapeError(f"group_norm: expected x of shape (N, C) or (N, C, ...), got {text(x.shape)}")
    channels = x.shape[1]
    if groups < 1:
        raise GraphError(f"group_norm: expected groups >= 1, got {groups}")
    if not same(channels // groups * groups, channels):
        raise ShapeError(f"group_norm: expected channels in {groups} equal groups, got {channels} in {text(x.shape)}")
    gamma, beta = _expect_vectors("group_norm", (channels,), {"gamma": gamma, "beta": beta})
    return _row_norm(x, (x.shape[0], groups, channels // groups, product(x.shape[2:])), gamma, beta, epsilon)


def instance_norm(x: Any, gamma: Any = None, beta: Any = None, epsilon: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) gamma + beta, the statistics of each channel of each sample.

    x: (N, C, ...). gamma, beta: (C,), or None. Of x's shape and floating dtype. ShapeError where they do not fit.
    """
    x = as_tensor(x)
    if x.ndim < 3:
        raise ShapeError(f"instance_norm: expected x of shape (N, C, ...), got {text(x.shape)}")
    gamma, beta = _expect_vectors("instance_norm", (x.shape[1],), {"gamma": gamma, "beta": beta})
    return _row_norm(x, (x.shape[0], x.shape[1], 1, product(x.shape[2:])), gamma, beta, epsilon)


def _row_norm(x: Tensor, shape: Shape, gamma: Any, beta: Any, epsilon: float, center: bool = True) -> Tensor:
    """x normalised as `shape`, (samples, period, segments, inner), in x's own shape. gamma, beta: None for ones and zeros."""
    samples, period, segments, inner = shape
    if gamma is None and beta is None:  # one factor for a whole row
        shape = (samples * period, 1, 1, segments * inner)
    vector = shape[1:3]
    gamma, beta = (
        _filled(vector, number) if given is None else reshape(given, vector)
        for given, number in ((gamma, 1.0), (beta, 0.0))
    )
    attributes = {"epsilon": float(epsilon), "center": center}
    return reshape(record("row_norm", [reshape(x, shape), gamma, beta], attributes)[0], x.shape)


def _filled(shape: Shape, number: float) -> np.ndarray:
    sizes = [size for size in shape if isinstance(size, int)]
    if len(sizes) < len(shape):
        raise UndecidedError(f"gamma and beta are {text(shape)}")
    return np.full(sizes, number)


def _expect_vectors(name: str, shape: Shape, vectors: dict[str, Any]) -> list[Tensor | None]:
    """The vectors as tensors. ShapeError unless each that there is has the shape."""
    found = [None if v is None else as_tensor(v) for v in vectors.values()]
    for what, vector in zip(vectors, found):
        if vector is not None and (
            vector.ndim != len(shape) or not all(same(a, b) for a, b in zip(vector.shape, shape))
        ):
            raise ShapeError(f"{name}: expected {what} of shape {text(shape)}, got {text(vector.shape)}")
    return found


def _over_last_axes(name: str, x: Tensor, normalized_shape: Size | Sequence[Size]) -> tuple[Shape, Shape]:
    """(normalized_shape, x's shape as (samples, 1, elements, 1)). ShapeError unless x ends with normalized_shape."""
    given: Shape = (normalized_shape,) if isinstance(normalized_shape, int | Dim) else tuple(normalized_shape)
    rank = len(given)
    if not 1 <= rank <= x.ndim or not all(same(a, b) for a, b in zip(x.shape[x.ndim - rank :], given)):
        raise ShapeError(f"{name}: expected x to end with the axes {text(given)}, got {text(x.shape)}")
    return given, (product(x.shape[: x.ndim - rank]), 1, product(given), 1)
