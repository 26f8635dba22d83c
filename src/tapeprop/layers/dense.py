"""Fully connected layers: Dense on rows, DenseND along any axis."""

from __future__ import annotations

from tapeprop import ops
from tapeprop.ir import Tensor
from tapeprop.ir.dims import product, same, text
from tapeprop.layers import arguments
from tapeprop.layers.initializers import Initializer
from tapeprop.layers.layer import Layer, misfit


class Dense(Layer):
    """y = x W^T + b: (N, in_features) -> (N, out_features).

    weight: (out_features, in_features); bias: (out_features,), zeros at first, or None. GraphError for arguments out of
    range; ShapeError, in trace, for an x that is not (N, in_features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        initializer: str | Initializer = "he",
        random_state: int | None = None,
    ):
        self.in_features = arguments.whole("Dense", "in_features", in_features)
        self.out_features = arguments.whole("Dense", "out_features", out_features)
        self.initializer = initializer
        self.random_state = arguments.seed("Dense", "random_state", random_state)
        self.weight = self.parameter((self.out_features, self.in_features), initializer, name="weight")
        self.bias = self.parameter((self.out_features,), name="bias") if bias else None

    def expected_input(self) -> tuple[int | None, ...]:
        """(N, in_features)."""
        return None, self.in_features

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, in_features). Gives (N, out_features)."""
        if x.ndim != 2 or not same(x.shape[1], self.in_features):
            raise misfit(
                f"Dense expects (N, in_features={self.in_features}), got {text(x.shape)}: {self._remedy(x)}",
            )
        return ops.dense(x, self.weight, self.bias)

    def _remedy(self, x: Tensor) -> str:
        if x.ndim < 2:
            return "add a batch axis to the input"
        features = product(x.shape[1:])
        steps = ["put Flatten() before it"] if x.ndim > 2 else []
        if not isinstance(features, int):
            steps.append(f"set in_features to what {features} will be")
        elif features != self.in_features:
            steps.append(f"write {self.written(in_features=features)}")
        return " and ".join(steps)


class DenseND(Layer):
    """y = x W^T + b along one axis: in_features there become out_features, and the other axes stay (torch.nn.Linear).

    axis: negative ones count from the end. weight: (out_features, in_features); bias: (out_features,), zeros at first, or None.
    GraphError for arguments out of range; ShapeError, in trace, for an x without that axis or of another size there.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axis: int = -1,
        bias: bool = True,
        initializer: str | Initializer = "he",
        random_state: int | None = None,
    ):
        self.in_features = arguments.whole("DenseND", "in_features", in_features)
        self.out_features = arguments.whole("DenseND", "out_features", out_features)
        self.axis = arguments.whole("DenseND", "axis", axis, -64)
        self.initializer = initializer
        self.random_state = arguments.seed("DenseND", "random_state", random_state)
        self.weight = self.parameter((self.out_features, self.in_features), initializer, name="weight")
        self.bias = self.parameter((self.out_features,), name="bias") if bias else None

    def trace(self, x: Tensor) -> Tensor:
        """x: in_features along `axis`. Gives out_features there. No element moves: see the formulas."""
        axis = self.axis + x.ndim if self.axis < 0 else self.axis
        if not 0 <= axis < x.ndim:
            raise misfit(f"{self!r} expects an axis {self.axis}, got {text(x.shape)}: choose another axis")
        if not same(x.shape[axis], self.in_features):
            found = x.shape[axis]
            remedy = f"write {self.written(in_features=found)}" if isinstance(found, int) else f"give {found} that size"
            raise misfit(
                f"DenseND expects in_features={self.in_features} on axis {self.axis}, got {found} in {text(x.shape)}: "
                f"{remedy}"
            )
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        if axis == x.ndim - 1:
            y = ops.dense(ops.reshape(x, (product(before), self.in_features)), self.weight, self.bias)
        else:  # a filter of one pixel: its products run along the axes behind, as they lie
            weight = ops.reshape(self.weight, (self.out_features, self.in_features, 1, 1))
            pixels = ops.reshape(x, (product(before), self.in_features, 1, product(after)))
            y = ops.conv2d(pixels, weight, self.bias)
        return ops.reshape(y, (*before, self.out_features, *after))
