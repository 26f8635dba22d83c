"""Pooling over batch lanes: `tapeprop.ops.pool` in another layout, activations (N / L, C, H, W, L).

The gradient of the maximum is given the maxima as well, so that it need not look for them: the first pixel of a window that
equals its maximum takes the gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.ir import Tensor
from tapeprop.ops.lanes.layout import (
    check_shape,
    from_lanes,
    image_tensor,
    lane_shape,
    rectified_gradient,
    reference_on_images,
    to_lanes,
)
from tapeprop.ops.op import ArrayType, Attributes, Call, Launch, Op, Sample, record, register, registry
from tapeprop.ops.pool.geometry import pool_attributes, pooled_shape

Shape5 = tuple[int, ...]


def _window(attributes: Attributes) -> dict[str, Any]:
    return {name: attributes[name] for name in ("size", "stride", "padding")}


def _check_fit(name: str, x: ArrayType, attributes: Attributes) -> None:
    """ShapeError where a window is larger than the padded image: sizes may have been open when the call was recorded."""
    pooled_shape(name, x.shape[:4], attributes)


def _cases(**more: Any) -> list[tuple[Shape5, Shape5, dict[str, Any]]]:
    """(shape of x, shape of y, attributes): both strides, overlap, gaps, padding on one side, a window as large as the image."""
    cases: list[tuple[Shape5, Shape5, dict[str, Any]]] = []
    for x, *window in (
        ((2, 3, 8, 8, 16), 2, 2, 0),
        ((1, 2, 9, 7, 16), 3, 2, 1),
        ((1, 1, 7, 10, 8), (3, 2), 1, ((1, 0), (0, 1))),
        ((1, 1, 5, 5, 8), 5, 1, 0),
        ((1, 2, 6, 11, 8), (1, 3), (3, 4), ((0, 0), (1, 1))),
        ((1, 1, 1, 1, 16), 1, 1, 0),
        ((1, 2, 7, 9, 16), 2, 2, 0),
    ):
        attributes = pool_attributes("pool", *window)
        y = tuple(map(int, pooled_shape("pool", x[:4], attributes))) + x[4:]  # type: ignore[arg-type]
        cases.append((x, y, attributes | more))
    return cases


def _taps(attributes: Attributes) -> int:
    return attributes["size"][0] * attributes["size"][1]


# ---- maximum


@register
class MaxPool2DLanes(Op):
    """y = activation(max_pool2d(x))."""

    name = "max_pool2d_lanes"
    cpu_only = True

    def infer(self, operands, attributes):
        (x,) = operands
        if attributes["activation"] not in (None, "relu"):
            raise GraphError(f"{self.name}: expected activation None or 'relu', got {attributes['activation']!r}")
        ((shape, dtype),) = registry["max_pool2d"].infer([image_tensor(self.name, x)], attributes)
        return [(lane_shape(shape, x), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x,), (y,) = gradients, call.operands, call.results
        if g is None:
            return [None]
        g = rectified_gradient(call, g)
        return [record("max_pool2d_lanes_grad", [x, y, g], _window(call.attributes))[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        (y,) = reference_on_images("max_pool2d", call, call.attributes, arrays)
        return [np.where(y < 0, 0, y) if call["activation"] == "relu" else y]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.lanes.cpu.pool import pool_launch

        x, y = call.operands[0], call.results[0]
        _check_fit(self.name, x, call.attributes)
        return pool_launch("max_pool", call, x, y, int(call["activation"] == "relu"))

    def flops(self, call: Call) -> int:
        return call.results[0].size * _taps(call.attributes)

    def samples(self):
        cases = _cases(activation=None) + _cases(activation="relu")[:2]
        return [Sample(lambda r, s=x: [r.standard_normal(s)], attributes) for x, _, attributes in cases]


@register
class MaxPool2DLanesGrad(Op):
    """(x, y = max_pool2d(x), dy) -> dx: dy added up at the first maxima of the windows. Linear in dy.

    Where y is rectified, dy has to be 0 at the windows whose maximum is below 0.
    """

    name = "max_pool2d_lanes_grad"
    cpu_only = True

    def infer(self, operands, attributes):
        x, y, dy = operands
        plain = [image_tensor(self.name, x), image_tensor(self.name, dy)]
        check_shape(self.name, y, dy.shape, "y")
        registry["max_pool2d_grad"].infer(plain, attributes)
        return [(x.shape, x.dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x, _, dy) = gradients, call.operands
        if g is None:
            return [None, None, None]
        batch = x.shape[0] * x.shape[4]
        picked = record("max_pool2d_pick", [from_lanes(x, batch), from_lanes(g, batch)], call.attributes)[0]
        return [None, None, to_lanes(picked, dy.shape[4])]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        x, _, dy = arrays
        pair = Call((call.operands[0], call.operands[2]), call.results, call.attributes)
        return reference_on_images("max_pool2d_grad", pair, call.attributes, (x, dy))

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.lanes.cpu.pool import pool_launch

        x, y = call.operands[:2]
        _check_fit(self.name, x, call.attributes)
        return pool_launch("max_pool_grad", call, x, y, grad=True)

    def flops(self, call: Call) -> int:
        return call.operands[1].size * _taps(call.attributes)

    def samples(self):
        def operands(r, x, y, attributes):
            values = r.standard_normal(x)
            call = Call((ArrayType(x, "float64"),), (ArrayType(y, "float64"),), attributes)
            # in float32 as well the maxima have to be elements of x: few bits, and then ties too
            values = np.round(values * 16) / 16
            return [values, *reference_on_images("max_pool2d", call, attributes, [values]), r.standard_normal(y)]

        return [
            Sample(lambda r, c=case: operands(r, *c), case[2], depth=_taps(case[2]), gradient=(2,)) for case in _cases()
        ]


def max_pool2d_lanes(
    x: Any, size: Any, stride: Any = None, padding: Any = ((0, 0), (0, 0)), activation: str | None = None
) -> Tensor:
    """`max_pool2d` of x (G, C, H, W, L), G groups of L images -> (G, C, H', W', L).

    activation: "relu" makes negative results 0; None. The rest as for `max_pool2d`.
    """
    attributes = pool_attributes("max_pool2d_lanes", size, stride, padding)
    return record("max_pool2d_lanes", [x], {**attributes, "activation": activation})[0]


# ---- mean


def _divisor(attributes: Attributes) -> int:
    """What the kernels divide by; 0 stands for the number of pixels that a window has."""
    return _taps(attributes) if attributes["count_include_pad"] else 0


@register
class AvgPool2DLanes(Op):
    """y = avg_pool2d(x)."""

    name = "avg_pool2d_lanes"
    cpu_only = True

    def infer(self, operands, attributes):
        (x,) = operands
        ((shape, dtype),) = registry["avg_pool2d"].infer([image_tensor(self.name, x)], attributes)
        return [(lane_shape(shape, x), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x,) = gradients, call.operands
        attributes = {**call.attributes, "height": x.shape[2], "width": x.shape[3]}
        return [None if g is None else record("avg_pool2d_lanes_grad", [g], attributes)[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        return reference_on_images("avg_pool2d", call, call.attributes, arrays)

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.lanes.cpu.pool import pool_launch

        x, y = call.operands[0], call.results[0]
        _check_fit(self.name, x, call.attributes)
        return pool_launch("avg_pool", call, x, y, _divisor(call.attributes))

    def flops(self, call: Call) -> int:
        return call.results[0].size * _taps(call.attributes)

    def samples(self):
        return [
            Sample(
                lambda r, s=x: [r.standard_normal(s)],
                {**attributes, "count_include_pad": i % 2 == 0},
                _taps(attributes),
            )
            for i, (x, _, attributes) in enumerate(_cases())
        ]


@register
class AvgPool2DLanesGrad(Op):
    """dy -> dx (G, C, height, width, L): dy / (pixels of its window), added up over the windows."""

    name = "avg_pool2d_lanes_grad"
    cpu_only = True

    def infer(self, operands, attributes):
        (dy,) = operands
        ((shape, dtype),) = registry["avg_pool2d_grad"].infer([image_tensor(self.name, dy)], attributes)
        return [(lane_shape(shape, dy), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        attributes = _window(call.attributes) | {"count_include_pad": call.attributes["count_include_pad"]}
        return [None if g is None else record("avg_pool2d_lanes", [g], attributes)[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        return reference_on_images("avg_pool2d_grad", call, call.attributes, arrays)

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.lanes.cpu.pool import pool_launch

        dy, dx = call.operands[0], call.results[0]
        _check_fit(self.name, dx, call.attributes)
        return pool_launch("avg_pool_grad", call, dx, dy, _divisor(call.attributes), grad=True)

    def flops(self, call: Call) -> int:
        return call.operands[0].size * _taps(call.attributes)

    def samples(self):
        return [
            Sample(
                lambda r, s=y: [r.standard_normal(s)],
                {**attributes, "height": x[2], "width": x[3], "count_include_pad": i % 2 == 0},
                depth=_taps(attributes),
            )
            for i, (x, y, attributes) in enumerate(_cases())
        ]


def avg_pool2d_lanes(
    x: Any, size: Any, stride: Any = None, padding: Any = ((0, 0), (0, 0)), count_include_pad: bool = True
) -> Tensor:
    """`avg_pool2d` of x (G, C, H, W, L), G groups of L images -> (G, C, H', W', L)."""
    attributes = pool_attributes("avg_pool2d_lanes", size, stride, padding)
    return record("avg_pool2d_lanes", [x], {**attributes, "count_include_pad": bool(count_include_pad)})[0]
