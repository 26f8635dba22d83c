"""Layers that rename elements without arithmetic."""

from __future__ import annotations

import math
from typing import Any

from tapeprop import ops
from tapeprop.errors import GraphError
from tapeprop.ir import Size, Tensor
from tapeprop.ir.dims import product, same, text
from tapeprop.layers import arguments
from tapeprop.layers.layer import Layer, misfit


class Identity(Layer):
    """x itself."""

    keeps_shape = True

    def trace(self, x: Tensor) -> Tensor:
        """x: any shape. Gives x."""
        return x


class Flatten(Layer):
    """(N, ...) -> (N, product of the rest)."""

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, ...). ShapeError for a scalar."""
        if x.ndim == 0:
            raise misfit("Flatten expects (N, ...), got a scalar: give the input a batch axis")
        return ops.flatten(x)


class Reshape(Layer):
    """Each sample under another shape: (N, ...) -> (N, *shape).

    shape: sizes >= 1, as arguments or as one tuple; one of them may be -1, to be computed. GraphError for others;
    ShapeError, in trace, where the numbers of elements differ.
    """

    def __init__(self, *shape: Any):
        given = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        self.shape = tuple(-1 if size == -1 else arguments.whole("Reshape", "every size", size) for size in given)
        if self.shape.count(-1) > 1:
            raise GraphError(f"Reshape: expected at most one size of -1, got {self.shape}")

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, ...). Gives (N, *shape)."""
        if x.ndim == 0:
            raise misfit(f"{self!r} expects (N, ...), got a scalar: give the input a batch axis")
        elements, known = product(x.shape[1:]), math.prod(size for size in self.shape if size != -1)
        free: Size = elements // known if -1 in self.shape else 1
        if not same(known * free, elements):
            raise misfit(
                f"{self!r} expects samples of {'a multiple of ' if -1 in self.shape else ''}{known} elements, "
                f"got {text(x.shape)} with {elements}: choose sizes that multiply to it"
            )
        return ops.reshape(x, (x.shape[0], *(free if size == -1 else size for size in self.shape)))

    def __repr__(self) -> str:
        return f"Reshape({', '.join(map(str, self.shape))})"
