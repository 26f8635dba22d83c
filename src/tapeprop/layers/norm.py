"""Batch normalisation over the channel axis."""

from __future__ import annotations

from typing import ClassVar

from tapeprop import ops
from tapeprop.ir import Tensor
from tapeprop.ir.dims import product, same, text
from tapeprop.layers import arguments
from tapeprop.layers.layer import Layer, misfit, tracing


class BatchNorm(Layer):
    """y = weight * (x - mean) / sqrt(variance + epsilon) + bias, per channel (Ioffe and Szegedy 2015).

    In training, mean and (biased) variance are the batch's, over all axes but 1, and the running ones advance: running
    = momentum * running + (1 - momentum) * batch. Otherwise the running ones are used. The running variance is the
    biased one, as in Keras and ONNX; `momentum` is the fraction KEPT.

    weight, bias: (in_features,), ones and zeros at first; running_mean, running_var: the same, zeros and ones, not
    trained. GraphError for arguments out of range; ShapeError for an x of another rank or channel count, or with a
    single value per channel in training.
    """

    #: Ranks taken, and how the shapes are written.
    ranks: ClassVar[dict[int, str]]

    def __init__(self, in_features: int, momentum: float = 0.9, epsilon: float = 1e-5):
        name = type(self).__name__
        self.in_features = arguments.whole(name, "in_features", in_features)
        self.momentum = arguments.fraction(name, "momentum", momentum)
        self.epsilon = arguments.number(name, "epsilon", epsilon, least=0.0)
        shape = (self.in_features,)
        self.weight = self.parameter(shape, "ones", name="weight")
        self.bias = self.parameter(shape, "zeros", name="bias")
        self.running_mean = self.parameter(shape, "zeros", name="running_mean", trainable=False)
        self.running_var = self.parameter(shape, "ones", name="running_var", trainable=False)

    def is_bias(self, name: str) -> bool:
        """False: scale and shift both count as weights, 2 * in_features in all."""
        return False

    def expected_input(self) -> tuple[int | None, ...]:
        """(N, in_features, ...), of the smallest rank that the layer takes."""
        return None, self.in_features, *[None] * (min(self.ranks) - 2)

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, in_features, ...). Gives the same shape."""
        name, trace = type(self).__name__, tracing()
        if x.ndim not in self.ranks:
            expected = " or ".join(shape.format(self.in_features) for shape in self.ranks.values())
            raise misfit(f"{name} expects {expected}, got {text(x.shape)}: use the BatchNorm of that rank")
        if not same(x.shape[1], self.in_features):
            raise misfit(
                f"{name} expects {self.in_features} channels on axis 1, got {x.shape[1]} in {text(x.shape)}: "
                f"write {self.written(in_features=x.shape[1])}"
            )
        mean, variance = trace.latest(self.running_mean), trace.latest(self.running_var)
        if not trace.training:
            return ops.batch_norm_inference(x, self.weight, self.bias, mean, variance, epsilon=self.epsilon)
        if product((x.shape[0], *x.shape[2:])) == 1:  # an open batch size is checked again when the call's is known
            raise misfit(
                f"{name} expects more than one value per channel in training, got {text(x.shape)}: use a larger batch"
            )
        y, _, _, new_mean, new_variance = ops.batch_norm(
            x, self.weight, self.bias, mean, variance, momentum=self.momentum, epsilon=self.epsilon
        )
        trace.store(self.running_mean, new_mean)
        trace.store(self.running_var, new_variance)
        return y


class BatchNorm1D(BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L)."""

    ranks: ClassVar = {2: "(N, {})", 3: "(N, {}, L)"}


class BatchNorm2D(BatchNorm):
    """Batch normalisation of (N, C, H, W)."""

    ranks: ClassVar = {4: "(N, {}, H, W)"}


class BatchNorm3D(BatchNorm):
    """Batch normalisation of (N, C, D, H, W)."""

    ranks: ClassVar = {5: "(N, {}, D, H, W)"}
