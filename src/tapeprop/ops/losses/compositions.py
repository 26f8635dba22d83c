"""Losses without ops of their own: means of a formula of prediction and truth, of which the compiler makes fused kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Tensor
from tapeprop.ir.dims import same, text
from tapeprop.ops import elementwise, scalar
from tapeprop.ops.losses.labels import known
from tapeprop.ops.op import as_tensor, check_rank, constant_tensor
from tapeprop.ops.reduce import mean
from tapeprop.ops.reduce import sum as reduce_sum
from tapeprop.ops.scalar import Scalar


def _expect_same_shape(name: str, y_pred: Tensor, y_true: Tensor) -> None:
    """ShapeError unless the shapes agree: (N,) beside (N, 1) would broadcast to (N, N) and train on nonsense."""
    if y_pred.ndim != y_true.ndim or not all(same(a, b) for a, b in zip(y_pred.shape, y_true.shape)):
        raise ShapeError(
            f"{name}: expected y_true of y_pred's shape {text(y_pred.shape)}, got {text(y_true.shape)}; "
            "reshape one of them"
        )


def _mean_of(name: str, term: Callable[[Scalar, Scalar], Scalar], y_pred: Any, y_true: Any) -> Tensor:
    """The mean over all elements of term(prediction, truth)."""
    y_pred, y_true = as_tensor(y_pred), as_tensor(y_true)
    _expect_same_shape(name, y_pred, y_true)
    return mean(elementwise.compute(term, y_pred, y_true, label=name)[0])


def mse(y_pred: Any, y_true: Any) -> Tensor:
    """The mean over all elements of (y_pred - y_true)^2; both of one shape and floating dtype. ShapeError,
    DTypeError.
    """
    return _mean_of("mse", lambda p, t: (p - t) * (p - t), y_pred, y_true)


def mae(y_pred: Any, y_true: Any) -> Tensor:
    """The mean over all elements of |y_pred - y_true|, whose derivative at 0 is 0; operands as for `mse`."""
    return _mean_of("mae", lambda p, t: scalar.absolute(p - t), y_pred, y_true)


def hinge(y_pred: Any, y_true: Any) -> Tensor:
    """The mean over all elements of max(1 - y_true y_pred, 0), truth being -1 or 1; its derivative at the kink is 0."""

    def term(p: Scalar, t: Scalar) -> Scalar:
        margin = 1 - t * p
        return scalar.where(margin <= 0, 0.0, margin)  # a NaN is not <= 0 and stays

    return _mean_of("hinge", term, y_pred, y_true)


def huber(y_pred: Any, y_true: Any, delta: float = 1.0) -> Tensor:
    """The mean over all elements of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2) (Huber 1964).

    e = y_pred - y_true; operands as for `mse`.
    """

    def term(p: Scalar, t: Scalar) -> Scalar:
        size = scalar.absolute(p - t)
        near = scalar.minimum(size, float(delta))
        return near * (size - 0.5 * near)

    return _mean_of("huber", term, y_pred, y_true)


def binary_cross_entropy(logits: Any, y_true: Any, pos_weight: Any = None) -> Tensor:
    """The mean over all elements of -w t log s - (1 - t) log(1 - s), s = sigmoid(logit) and t in [0, 1] the truth.

    w: pos_weight, one number or one for each place along axis 1; 1 where None. ShapeError where these are not as many.
    Computed as max(x, 0) - x t + log(1 + e^-|x|), which neither overflows nor rounds a small loss away, and with a
    weight as (1 - t) x + (1 + (w - 1) t) (max(-x, 0) + log(1 + e^-|x|)).
    """

    def term(x: Scalar, t: Scalar) -> Scalar:
        return (scalar.maximum(x, 0.0) - x * t) + scalar.log1p(scalar.exp(-scalar.absolute(x)))

    def weighted(x: Scalar, t: Scalar, w: Scalar | float) -> Scalar:
        cost = scalar.maximum(-x, 0.0) + scalar.log1p(scalar.exp(-scalar.absolute(x)))
        return (1 - t) * x + (1 + (w - 1) * t) * cost

    if pos_weight is None:
        return _mean_of("binary_cross_entropy", term, logits, y_true)
    logits = as_tensor(logits)
    weights = np.asarray(pos_weight, np.float64)
    if weights.ndim == 0:
        return _mean_of("binary_cross_entropy", lambda x, t: weighted(x, t, float(weights)), logits, y_true)
    y_true = as_tensor(y_true)
    _expect_same_shape("binary_cross_entropy", logits, y_true)
    if logits.ndim < 2 or weights.shape != (known(logits.shape[1]),):
        raise ShapeError(
            f"binary_cross_entropy: expected pos_weight as one number, or one for each place along axis 1 of "
            f"{text(logits.shape)}, got shape {weights.shape}"
        )
    each = constant_tensor(weights.reshape(-1, *[1] * (logits.ndim - 2)), logits.dtype)
    return mean(elementwise.compute(weighted, logits, y_true, each, label="binary_cross_entropy")[0])


def kl_divergence(y_pred: Any, y_true: Any, log_predictions: bool = False) -> Tensor:
    """The mean over samples of the sum over classes of p log(p / q), p = y_true and q = y_pred, both (N, C).

    A class with p = 0 adds 0. log_predictions: y_pred holds log q instead. ShapeError, DTypeError.
    """
    y_pred, y_true = as_tensor(y_pred), as_tensor(y_true)
    check_rank("kl_divergence", y_pred, 2, "(N, C)")
    _expect_same_shape("kl_divergence", y_pred, y_true)

    def term(q: Scalar, p: Scalar) -> Scalar:
        cost = p * (scalar.log(p) - (q if log_predictions else scalar.log(q)))
        return scalar.where(scalar.equal(p, 0.0), 0.0, cost)

    return mean(reduce_sum(elementwise.compute(term, y_pred, y_true, label="kl_divergence")[0], 1))
