"""Dropout, of elements, of whole channels and of whole samples."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from tapeprop import ops
from tapeprop.ir import Parameter, Tensor
from tapeprop.ir.dims import text
from tapeprop.layers import arguments
from tapeprop.layers.layer import Layer, misfit, tracing
from tapeprop.ops.op import record


class Dropout(Layer):
    """In training, each element becomes 0 with probability `dropout_rate` and is scaled by 1 / (1 - rate) otherwise.

    Outside of training, x itself (Srivastava et al. 2014, in the inverted form). Every training call has a new mask,
    and its backward the same. The sequence of masks follows from the graph's seed; with `random_state` from that alone,
    whatever else the graph draws. GraphError unless 0 <= dropout_rate <= 1.
    """

    #: The axes along which all elements share one draw.
    shared_axes: ClassVar[tuple[int, ...]] = ()

    keeps_shape = True

    def __init__(self, dropout_rate: float = 0.5, random_state: int | None = None):
        name = type(self).__name__
        self.dropout_rate = arguments.fraction(name, "dropout_rate", dropout_rate)
        self.random_state = arguments.seed(name, "random_state", random_state)
        #: (seed, calls so far), where the layer has a seed of its own.
        self.counter: Parameter | None = None
        if self.random_state is not None:
            first = np.array([self.random_state, 0], np.int64)
            self.counter = Parameter((2,), first, trainable=False, dtype="int64", name=f"{name}.counter")

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, ...), (N, C, ...) of the layer's rank where channels are dropped. Gives the same shape."""
        rate = arguments.fraction(type(self).__name__, "dropout_rate", self.dropout_rate)
        return self.drop(x, rate, self.shared(x))

    def shared(self, x: Tensor) -> tuple[int, ...]:
        """The axes of x along which all elements share one draw. ShapeError for an x of another rank than the layer's."""
        if self.shared_axes and x.ndim != len(self.shared_axes) + 2:
            raise misfit(
                f"{type(self).__name__} expects rank {len(self.shared_axes) + 2}, got {text(x.shape)}: "
                "use the Dropout of that rank"
            )
        return self.shared_axes

    def drop(self, x: Tensor, rate: float, shared: tuple[int, ...] = ()) -> Tensor:
        """`ops.dropout` of x with a new mask, from the layer's own seed where it has one."""
        trace = tracing()
        if self.counter is None or not trace.training or rate == 0:
            return ops.dropout(x, rate, shared)
        (counter,) = record("next_random", [trace.latest(self.counter)])
        trace.store(self.counter, counter)
        return record("dropout", [x, counter], {"rate": rate, "site": 0, "shared_axes": shared})[0]


class Dropout1D(Dropout):
    """Dropout of whole channels of (N, C, L) (Tompson et al. 2015)."""

    shared_axes: ClassVar = (2,)


class Dropout2D(Dropout):
    """Dropout of whole channels of (N, C, H, W) (Tompson et al. 2015)."""

    shared_axes: ClassVar = (2, 3)


class Dropout3D(Dropout):
    """Dropout of whole channels of (N, C, D, H, W) (Tompson et al. 2015)."""

    shared_axes: ClassVar = (2, 3, 4)


class StochasticDepth(Dropout):
    """Dropout of whole samples: in a residual branch, it leaves the block out for them (Huang et al. 2016, section 3)."""

    def shared(self, x: Tensor) -> tuple[int, ...]:
        """All axes of x but the first. ShapeError for a scalar."""
        if x.ndim == 0:
            raise misfit("StochasticDepth expects (N, ...), got a scalar: give the input a batch axis")
        return tuple(range(1, x.ndim))
