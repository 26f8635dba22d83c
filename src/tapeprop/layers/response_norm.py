"""Normalisation of channels by one another: LocalResponseNorm and GlobalResponseNorm."""

from __future__ import annotations

from tapeprop import ops
from tapeprop.ir import Tensor
from tapeprop.ir.dims import product, same, text
from tapeprop.layers import arguments
from tapeprop.layers.layer import Layer, misfit
from tapeprop.ops.elementwise import compute
from tapeprop.ops.scalar import power


class LocalResponseNorm(Layer):
    """y = x / (k + alpha * mean(x^2))^beta, the mean over `size` neighbouring channels (Krizhevsky et al. 2012, section 3.3).

    As torch.nn.LocalResponseNorm: size // 2 channels before and (size - 1) // 2 after, beyond the first and the last of which zeros
    count. x: (N, C, ...) of rank 2 or more. GraphError for arguments out of range; ShapeError, in trace, for an x of rank 1 or less.
    """

    keeps_shape = True

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0):
        self.size = arguments.whole("LocalResponseNorm", "size", size)
        self.alpha = arguments.number("LocalResponseNorm", "alpha", alpha)
        self.beta = arguments.number("LocalResponseNorm", "beta", beta)
        self.k = arguments.number("LocalResponseNorm", "k", k)

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, ...). Gives the same shape."""
        if x.ndim < 2:
            raise misfit(f"LocalResponseNorm expects (N, C, ...), got {text(x.shape)}: add a batch axis")
        alpha, beta, k = self.alpha, self.beta, self.k
        planes = (x.shape[0], 1, x.shape[1], product(x.shape[2:]))
        sides = (self.size // 2, (self.size - 1) // 2)
        means = ops.avg_pool2d(ops.reshape(x * x, planes), (self.size, 1), 1, (sides, (0, 0)))
        (y,) = compute(
            lambda a, m: a * power(k + alpha * m, -beta), x, ops.reshape(means, x.shape), label="response_norm"
        )
        return y


class GlobalResponseNorm(Layer):
    """y = weight * x * n + bias + x, where n is a channel's norm over the mean of its sample's (Woo et al. 2023, section 3).

    ConvNeXt V2's layer with channels on axis 1. x: (N, in_features, ...) of rank 3 or more; g = sqrt(sum(x^2)) over axes 2 and up,
    n = g / (mean of g over the channels + epsilon).

    weight, bias: (in_features,), zeros at first, so that the layer begins as x itself. GraphError for arguments out of range;
    ShapeError, in trace, for an x of another rank or channel count.
    """

    keeps_shape = True

    def __init__(self, in_features: int, epsilon: float = 1e-6):
        self.in_features = arguments.whole("GlobalResponseNorm", "in_features", in_features)
        self.epsilon = arguments.number("GlobalResponseNorm", "epsilon", epsilon, least=0.0)
        self.weight = self.parameter((self.in_features,), name="weight")
        self.bias = self.parameter((self.in_features,), name="bias")

    def is_bias(self, name: str) -> bool:
        """False: scale and shift both count as weights, as BatchNorm's do."""
        return False

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, in_features, ...). Gives the same shape."""
        if x.ndim < 3:
            raise misfit(
                f"GlobalResponseNorm expects (N, {self.in_features}, ...) of rank 3 or more, got {text(x.shape)}"
            )
        if not same(x.shape[1], self.in_features):
            raise misfit(
                f"GlobalResponseNorm expects {self.in_features} channels on axis 1, got {x.shape[1]} in {text(x.shape)}: "
                f"write {self.written(in_features=x.shape[1])}"
            )
        column = (self.in_features, *[1] * (x.ndim - 2))
        norms = ops.l2norm(x, tuple(range(2, x.ndim)), keepdims=True)
        share = norms / (ops.mean(norms, axis=1, keepdims=True) + self.epsilon)
        return x * (ops.reshape(self.weight, column) * share + 1.0) + ops.reshape(self.bias, column)
