"""Normalisation by a sample's own elements: LayerNorm, RMSNorm, GroupNorm and InstanceNorm.

They keep no running statistics and do in training what they do outside of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tapeprop import ops
from tapeprop.errors import GraphError
from tapeprop.ir import Tensor
from tapeprop.ir.dims import product, same, text
from tapeprop.layers import arguments
from tapeprop.layers.layer import Layer, misfit


class _SampleNorm(Layer):
    keeps_shape = True

    def is_bias(self, name: str) -> bool:
        """False: scale and shift both count as weights, as BatchNorm's do."""
        return False


def _expect_last_axes(layer: Layer, x: Tensor, expected: tuple[int, ...]) -> None:
    """ShapeError unless x ends with the axes."""
    last = x.shape[-len(expected) :]
    if len(last) == len(expected) and all(same(a, b) for a, b in zip(last, expected)):
        return
    shown = ", ".join(map(str, expected))
    remedy = "give it more axes"
    if len(last) == len(expected) and all(isinstance(size, int) for size in last):
        remedy = f"write {layer.written(normalized_shape=last if len(last) > 1 else last[0])}"
    raise misfit(f"{type(layer).__name__} expects (..., {shown}), got {text(x.shape)}: {remedy}")


def _expect_channels(layer: Layer, x: Tensor, in_features: int, least: int) -> None:
    """ShapeError unless x is (N, in_features, ...) of at least that rank."""
    name = type(layer).__name__
    if x.ndim < least:
        raise misfit(f"{name} expects (N, {in_features}, ...) of rank {least} or more, got {text(x.shape)}")
    if not same(x.shape[1], in_features):
        raise misfit(
            f"{name} expects {in_features} channels on axis 1, got {x.shape[1]} in {text(x.shape)}: "
            f"write {layer.written(in_features=x.shape[1])}"
        )


class LayerNorm(_SampleNorm):
    """y = weight * (x - mean) / sqrt(variance + epsilon) + bias over the last axes (Ba, Kiros and Hinton 2016), as torch.nn.LayerNorm.

    x: (..., *normalized_shape), of any rank; the variance is the biased one. normalized_shape: an int or a sequence of ints.

    weight, bias: of normalized_shape, ones and zeros at first; None without elementwise_affine, the bias also with bias=False.
    GraphError for arguments out of range; ShapeError, in trace, for an x that ends with other axes.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        epsilon: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ):
        self.normalized_shape = arguments.sizes("LayerNorm", "normalized_shape", normalized_shape)
        self.epsilon = arguments.number("LayerNorm", "epsilon", epsilon, least=0.0)
        self.elementwise_affine = bool(elementwise_affine)
        shape = self.normalized_shape
        self.weight = self.parameter(shape, "ones", name="weight") if elementwise_affine else None
        self.bias = self.parameter(shape, name="bias") if elementwise_affine and bias else None

    def trace(self, x: Tensor) -> Tensor:
        """x: (..., *normalized_shape). Gives the same shape."""
        _expect_last_axes(self, x, self.normalized_shape)
        return ops.layer_norm(x, self.normalized_shape, self.weight, self.bias, epsilon=self.epsilon)


class RMSNorm(_SampleNorm):
    """y = weight * x / sqrt(mean(x^2) + epsilon) over the last axes (Zhang and Sennrich 2019), as torch.nn.RMSNorm.

    x: (..., *normalized_shape), of any rank. normalized_shape: an int or a sequence of ints. epsilon: None for the machine epsilon of
    the graph's dtype, 1.2e-7 in float32 and 2.2e-16 in float64, as in torch (ONNX has 1e-5).

    weight: of normalized_shape, ones at first; None without elementwise_affine. GraphError for arguments out of range; ShapeError, in
    trace, for an x that ends with other axes.
    """

    def __init__(
        self, normalized_shape: int | Sequence[int], epsilon: float | None = None, elementwise_affine: bool = True
    ):
        self.normalized_shape = arguments.sizes("RMSNorm", "normalized_shape", normalized_shape)
        self.epsilon = None if epsilon is None else arguments.number("RMSNorm", "epsilon", epsilon, least=0.0)
        self.elementwise_affine = bool(elementwise_affine)
        self.weight = self.parameter(self.normalized_shape, "ones", name="weight") if elementwise_affine else None

    def trace(self, x: Tensor) -> Tensor:
        """x: (..., *normalized_shape). Gives the same shape."""
        _expect_last_axes(self, x, self.normalized_shape)
        return ops.rms_norm(x, self.normalized_shape, self.weight, epsilon=self.epsilon)


class GroupNorm(_SampleNorm):
    """y = weight * (x - mean) / sqrt(variance + epsilon) + bias, mean and variance of a group of channels (Wu and He 2018).

    As torch.nn.GroupNorm. x: (N, in_features, ...); each sample's channels form `groups` equal groups of neighbours, and the
    variance is the biased one.

    weight, bias: (in_features,), ones and zeros at first; None without affine. GraphError for arguments out of range or channels that
    do not divide; ShapeError, in trace, for an x of another channel count.
    """

    def __init__(self, groups: int, in_features: int, epsilon: float = 1e-5, affine: bool = True):
        self.groups = arguments.whole("GroupNorm", "groups", groups)
        self.in_features = arguments.whole("GroupNorm", "in_features", in_features)
        if self.in_features % self.groups:
            raise GraphError(
                f"GroupNorm: expected in_features to be a multiple of groups={groups}, got {in_features}: "
                f"write GroupNorm({math.gcd(self.groups, self.in_features)}, {in_features})"
            )
        self.epsilon = arguments.number("GroupNorm", "epsilon", epsilon, least=0.0)
        self.affine = bool(affine)
        shape = (self.in_features,)
        self.weight = self.parameter(shape, "ones", name="weight") if affine else None
        self.bias = self.parameter(shape, name="bias") if affine else None

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, in_features, ...). Gives the same shape."""
        _expect_channels(self, x, self.in_features, 2)
        return ops.group_norm(x, self.groups, self.weight, self.bias, epsilon=self.epsilon)


class InstanceNorm(_SampleNorm):
    """y = (x - mean) / sqrt(variance + epsilon), mean and variance of each channel of each sample (Ulyanov et al. 2016).

    As torch.nn.InstanceNorm1d/2d/3d without running statistics. x: (N, in_features, L), (N, in_features, H, W) and so on; the
    variance is the biased one. affine: times weight plus bias.

    weight, bias: (in_features,), ones and zeros at first; None without affine. GraphError for arguments out of range; ShapeError, in
    trace, for an x of rank 2, of another channel count, or with a single value per channel.
    """

    def __init__(self, in_features: int, epsilon: float = 1e-5, affine: bool = False):
        self.in_features = arguments.whole("InstanceNorm", "in_features", in_features)
        self.epsilon = arguments.number("InstanceNorm", "epsilon", epsilon, least=0.0)
        self.affine = bool(affine)
        shape = (self.in_features,)
        self.weight = self.parameter(shape, "ones", name="weight") if affine else None
        self.bias = self.parameter(shape, name="bias") if affine else None

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, in_features, ...). Gives the same shape."""
        _expect_channels(self, x, self.in_features, 3)
        if product(x.shape[2:]) == 1:  # open sizes are checked again when the call's are known
            raise misfit(
                f"InstanceNorm expects more than one value per channel of a sample, got {text(x.shape)}: all would become 0; "
                "use LayerNorm or BatchNorm"
            )
        return ops.instance_norm(x, self.weight, self.bias, epsilon=self.epsilon)
