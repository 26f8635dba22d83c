"""Activations: Activation.ReLU() and its kin. Each is one op of `tapeprop.ops` as a layer; all keep the shape."""

from __future__ import annotations

from tapeprop import ops
from tapeprop.ir import Tensor
from tapeprop.ir.dims import text
from tapeprop.layers import arguments
from tapeprop.layers.layer import Layer, misfit


class Activation:
    """The activation layers by name. At a kink the derivative is 0 (ReLU, ReLU6) or that of the side towards 0."""

    class Linear(Layer):
        """x itself."""

        def trace(self, x: Tensor) -> Tensor:
            return x

    class ReLU(Layer):
        """max(x, 0)."""

        def trace(self, x: Tensor) -> Tensor:
            return ops.relu(x)

    class ReLU6(Layer):
        """min(max(x, 0), 6)."""

        def trace(self, x: Tensor) -> Tensor:
            return ops.relu6(x)

    class Sigmoid(Layer):
        """1 / (1 + exp(-x))."""

        def trace(self, x: Tensor) -> Tensor:
            return ops.sigmoid(x)

    class Tanh(Layer):
        """tanh(x)."""

        def trace(self, x: Tensor) -> Tensor:
            return ops.tanh(x)

    class LeakyReLU(Layer):
        """x where x > 0, else alpha * x."""

        def __init__(self, alpha: float = 0.01):
            self.alpha = arguments.number("LeakyReLU", "alpha", alpha)

        def trace(self, x: Tensor) -> Tensor:
            return ops.leaky_relu(x, self.alpha)

    class Softmax(Layer):
        """exp(x) / sum(exp(x)) along axis `dim`. ShapeError, in trace, where x has no such axis."""

        def __init__(self, dim: int = -1):
            self.dim = arguments.whole("Softmax", "dim", dim, least=-32)

        def trace(self, x: Tensor) -> Tensor:
            if not -x.ndim <= self.dim < x.ndim:
                raise misfit(
                    f"Softmax expects an axis dim={self.dim}, got {text(x.shape)}: choose one of its {x.ndim} axes"
                )
            return ops.softmax(x, axis=self.dim)  # type: ignore[operator]  # the function hides the module

    class ELU(Layer):
        """x where x > 0, else alpha * (exp(x) - 1) (Clevert et al. 2016)."""

        def __init__(self, alpha: float = 1.0):
            self.alpha = arguments.number("ELU", "alpha", alpha)

        def trace(self, x: Tensor) -> Tensor:
            return ops.elu(x, self.alpha)

    class SELU(Layer):
        """scale * elu(x, alpha) with the two constants of self-normalising networks (Klambauer et al. 2017)."""

        def trace(self, x: Tensor) -> Tensor:
            return ops.selu(x)

    class Softplus(Layer):
        """log(1 + exp(x))."""

        def trace(self, x: Tensor) -> Tensor:
            return ops.softplus(x)

    class Swish(Layer):
        """x * sigmoid(x), also called SiLU (Ramachandran et al. 2017)."""

        def trace(self, x: Tensor) -> Tensor:
            return ops.swish(x)

    class HardSwish(Layer):
        """x * relu6(x + 3) / 6 (Howard et al. 2019)."""

        def trace(self, x: Tensor) -> Tensor:
            return ops.hard_swish(x)

    class GELU(Layer):
        """x * Phi(x); approximate: by tanh (Hendrycks and Gimpel 2016)."""

        def __init__(self, approximate: bool = False):
            self.approximate = bool(approximate)

        def trace(self, x: Tensor) -> Tensor:
            return ops.gelu(x, self.approximate)

    class Mish(Layer):
        """x * tanh(softplus(x)) (Misra 2019)."""

        def trace(self, x: Tensor) -> Tensor:
            return ops.mish(x)
