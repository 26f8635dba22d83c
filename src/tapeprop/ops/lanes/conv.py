"""Convolution over batch lanes, and the two linear maps that are its gradients: `tapeprop.ops.conv` in another layout.

Activations are (N / L, C, H, W, L), weights (O, C, KH, KW) as ever. Dilation and groups are 1. Padding adds nothing to a sum; kernels
leave out most products with it, so an infinite weight that meets nothing but padding gives NaN in the op on images and need not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import GraphError, ShapeError
from tapeprop.ir import Shape, Size, Tensor
from tapeprop.ir.dims import same, text
from tapeprop.ops.lanes.layout import (
    image_call,
    image_tensor,
    lane_shape,
    rectified_gradient,
    reference_on_images,
)
from tapeprop.ops.op import Attributes, Call, Launch, Op, Sample, record, register, registry
from tapeprop.ops.reduce import sum as sum_over
from tapeprop.ops.shape.rules import drawn

Pair = tuple[int, int]
ACTIVATIONS = (None, "relu")


def _pair(what: str, given: Any, least: int) -> Pair:
    found = (given, given) if isinstance(given, int | np.integer) else tuple(given)
    if len(found) != 2 or not all(isinstance(n, int | np.integer) and n >= least for n in found):
        raise GraphError(f"conv2d_lanes: expected {what} as an int or two ints >= {least}, got {given!r}")
    return int(found[0]), int(found[1])


def _geometry(stride: Any, padding: Any) -> dict[str, Any]:
    """stride (vertical, horizontal), padding ((top, bottom), (left, right)). GraphError where they make no sense."""
    sides = (padding, padding) if isinstance(padding, int | np.integer) else tuple(padding)
    if len(sides) != 2:
        raise GraphError(
            f"conv2d_lanes: expected padding ((top, bottom), (left, right)), a pair or an int, got {padding!r}"
        )
    return {
        "stride": _pair("stride", stride, 1),
        "padding": (_pair("padding", sides[0], 0), _pair("padding", sides[1], 0)),
    }


def _on_images(attributes: Attributes) -> dict[str, Any]:
    """The attributes of the op on images."""
    rest = {name: value for name, value in attributes.items() if name != "activation"}
    return rest | {"dilation": (1, 1), "groups": 1}


def _check_fit(call: Call, image: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    """ShapeError where the filter is larger than the padded image: sizes may have been open when the call was recorded."""
    for n, taps, sides in zip(image[2:4], kernel, call["padding"]):
        if n + sum(sides) < taps:
            raise ShapeError(
                f"conv2d_lanes: expected an image of at least the filter, {kernel[0]} x {kernel[1]}, got {image[2]} x "
                f"{image[3]} with padding {call['padding']}; use a smaller filter or more padding"
            )


def _samples(make: Any) -> list[Sample]:
    """A sample for each geometry: make(x, w, y) gives (operand shapes, attributes of its own, depth, gradients)."""
    samples = []
    for x, w, stride, padding in (
        ((1, 1, 1, 1, 16), (1, 1, 1, 1), 1, 0),
        ((2, 3, 8, 8, 16), (6, 3, 3, 3), 1, 1),
        ((1, 7, 6, 9, 8), (16, 7, 5, 5), 1, ((0, 1), (2, 0))),
        ((1, 3, 9, 7, 16), (5, 3, 3, 3), 2, 1),
        ((1, 4, 11, 6, 8), (7, 4, 1, 1), 2, 0),  # pixels that no tap reaches
        ((1, 2, 7, 8, 16), (3, 2, 2, 4), (3, 2), ((1, 0), (2, 3))),
        ((1, 6, 4, 21, 8), (13, 6, 1, 3), 1, (0, 1)),  # blocks of unequal size
        ((1, 2, 2, 17, 8), (2, 2, 1, 13), 1, (0, 6)),  # a filter longer than a tile
        ((1, 1, 3, 3, 8), (2, 1, 3, 3), 1, 3),  # rows and columns of padding alone
        ((1, 9, 8, 8, 8), (20, 9, 2, 2), 3, 0),  # gaps between the windows
    ):
        geometry = _geometry(stride, padding)
        size = [(n + sum(s) - k) // step + 1 for n, k, step, s in zip(x[2:4], w[2:], *geometry.values())]
        shapes, own, depth, gradient = make(x, w, (x[0], w[0], *size, x[4]))
        samples.append(Sample(drawn(*shapes), geometry | own, depth=depth, gradient=gradient))
    return samples


# ---- the ops


@register
class Conv2DLanes(Op):
    """y = activation(conv2d(x, w) + b)."""

    name = "conv2d_lanes"
    cpu_only = True

    def infer(self, operands, attributes):
        x = operands[0]
        if attributes["activation"] not in ACTIVATIONS:
            raise GraphError(f"conv2d_lanes: expected activation None or 'relu', got {attributes['activation']!r}")
        plain = [image_tensor(self.name, x), *operands[1:]]
        ((shape, dtype),) = registry["conv2d"].infer(plain, _on_images(attributes))
        return [(lane_shape(shape, x), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x, w) = gradients, call.operands[:2]
        if g is None:
            return [None] * len(call.operands)
        g = rectified_gradient(call, g)
        geometry = {name: call.attributes[name] for name in ("stride", "padding")}
        found = [
            conv2d_lanes_input_grad(g, w, x.shape[2:4], **geometry) if wanted[0] else None,
            conv2d_lanes_weight_grad(x, g, w.shape[2:], **geometry) if wanted[1] else None,
        ]
        if len(call.operands) == 3:
            found.append(sum_over(g, (0, 2, 3, 4)) if wanted[2] else None)
        return found

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        (y,) = reference_on_images("conv2d", call, _on_images(call.attributes), arrays)
        return [np.where(y < 0, 0, y) if call["activation"] == "relu" else y]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.lanes.cpu.conv import forward_launch

        _check_fit(call, call.operands[0].shape, call.operands[1].shape[2:])
        return forward_launch(call)

    def flops(self, call: Call) -> int:
        return registry["conv2d"].flops(image_call(call, _on_images(call.attributes)))

    def samples(self):
        def biased(x, w, y, activation=None):
            return [x, w, (w[0],)], {"activation": activation}, w[1] * w[2] * w[3] + 1, (0, 1, 2)

        def rectified(x, w, y):
            return biased(x, w, y, "relu")

        def plain(x, w, y):
            return [x, w], {"activation": None}, w[1] * w[2] * w[3], (0, 1)

        return _samples(biased) + _samples(rectified)[1:3] + _samples(plain)[1:3]


@register
class Conv2DLanesInputGrad(Op):
    """dx = the transpose of conv2d in x, applied to dy."""

    name = "conv2d_lanes_input_grad"
    cpu_only = True

    def infer(self, operands, attributes):
        dy, w = operands
        plain = [image_tensor(self.name, dy), w]
        ((shape, dtype),) = registry["conv2d_input_grad"].infer(plain, _on_images(attributes))
        return [(lane_shape(shape, dy), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (dy, w) = gradients, call.operands
        if g is None:
            return [None, None]
        geometry = {name: call.attributes[name] for name in ("stride", "padding")}
        return [
            conv2d_lanes(g, w, **geometry) if wanted[0] else None,
            conv2d_lanes_weight_grad(g, dy, w.shape[2:], **geometry) if wanted[1] else None,
        ]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        return reference_on_images("conv2d_input_grad", call, _on_images(call.attributes), arrays)

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.lanes.cpu.conv import input_grad_launch

        _check_fit(call, call.results[0].shape, call.operands[1].shape[2:])
        return input_grad_launch(call)

    def flops(self, call: Call) -> int:
        return registry["conv2d_input_grad"].flops(image_call(call, _on_images(call.attributes)))

    def samples(self):
        return _samples(lambda x, w, y: ([y, w], {"size": x[2:4]}, w[0] * w[2] * w[3], (0, 1)))


@register
class Conv2DLanesWeightGrad(Op):
    """dw = the transpose of conv2d in w, applied to dy."""

    name = "conv2d_lanes_weight_grad"
    cpu_only = True

    def infer(self, operands, attributes):
        x, dy = operands
        plain = [image_tensor(self.name, x), image_tensor(self.name, dy)]
        if not same(x.shape[4], dy.shape[4]):
            raise ShapeError(f"{self.name}: expected equal lanes, got {text(x.shape)} and {text(dy.shape)}")
        return registry["conv2d_weight_grad"].infer(plain, _on_images(attributes))

    def vjp(self, call, gradients, wanted):
        (g,), (x, dy) = gradients, call.operands
        if g is None:
            return [None, None]
        geometry = {name: call.attributes[name] for name in ("stride", "padding")}
        return [
            conv2d_lanes_input_grad(dy, g, x.shape[2:4], **geometry) if wanted[0] else None,
            conv2d_lanes(x, g, **geometry) if wanted[1] else None,
        ]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        return reference_on_images("conv2d_weight_grad", call, _on_images(call.attributes), arrays)

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.lanes.cpu.conv import weight_grad_launch

        _check_fit(call, call.operands[0].shape, call["kernel"])
        return weight_grad_launch(call)

    def flops(self, call: Call) -> int:
        return registry["conv2d_weight_grad"].flops(image_call(call, _on_images(call.attributes)))

    def samples(self):
        return _samples(
            lambda x, w, y: ([x, y], {"kernel": w[2:]}, x[0] * x[4] * y[2] * y[3], (0, 1)),
        )


# ---- what the compiler's pass calls


def conv2d_lanes(
    x: Any,
    w: Any,
    b: Any = None,
    stride: int | Pair = (1, 1),
    padding: Any = ((0, 0), (0, 0)),
    activation: str | None = None,
) -> Tensor:
    """`conv2d` of x (G, C, H, W, L), G groups of L images, with w (O, C, KH, KW), plus b (O,) or None -> (G, O, OH, OW, L).

    activation: "relu" makes negative results 0; None. stride, padding, sizes, dtypes and errors as for `conv2d`; dilation and
    groups are 1.
    """
    operands = [x, w] if b is None else [x, w, b]
    return record("conv2d_lanes", operands, _geometry(stride, padding) | {"activation": activation})[0]


def conv2d_lanes_input_grad(
    dy: Any, w: Any, size: Sequence[Size], stride: int | Pair = (1, 1), padding: Any = ((0, 0), (0, 0))
) -> Tensor:
    """The gradient of conv2d_lanes(x, w) in x, (G, C, *size, L), from dy (G, O, OH, OW, L) and w (O, C, KH, KW).

    size: (H, W) of x, which may be open.
    """
    attributes = _geometry(stride, padding) | {"size": tuple(size)}
    return record("conv2d_lanes_input_grad", [dy, w], attributes)[0]


def conv2d_lanes_weight_grad(
    x: Any, dy: Any, kernel: Shape, stride: int | Pair = (1, 1), padding: Any = ((0, 0), (0, 0))
) -> Tensor:
    """The gradient of conv2d_lanes(x, w) in w, (O, C, *kernel), from x (G, C, H, W, L) and dy (G, O, OH, OW, L)."""
    attributes = _geometry(stride, padding) | {"kernel": tuple(kernel)}
    return record("conv2d_lanes_weight_grad", [x, dy], attributes)[0]
