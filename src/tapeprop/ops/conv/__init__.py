"""Convolution (cross-correlation, as PyTorch's) over images of one to three axes, and the two linear maps that are its gradients.

    y  = conv2d(x, w):              y[n, o, i, j] = sum of w[o, c, a, b] xp[n, c, i sh + a dh, j sw + b dw] over c, a, b
    dx = conv2d_input_grad(dy, w):  its transpose in x
    dw = conv2d_weight_grad(x, dy): its transpose in w

xp is x with `padding` zeros around it; so in 3-D, and 1-D is 2-D with a single row. Each is linear in both operands, and the
gradients of each are the other two. Padding counts as zeros: an infinite weight on a padded pixel gives NaN, as 0 * inf does.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Size, Tensor
from tapeprop.ir.dims import same, text
from tapeprop.ops.conv import rules
from tapeprop.ops.op import ArrayType, Call, Device, Launch, Op, record, register, same_dtype
from tapeprop.ops.reduce import sum as sum_over

__all__ = [
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d",
    "conv3d_input_grad",
    "conv3d_weight_grad",
]

Pair = tuple[int, int]
Triple = tuple[int, int, int]


def _flops(w: ArrayType, y: ArrayType) -> int:
    """A multiplication and an addition for every output pixel and every weight of its filter."""
    return 2 * y.size * prod(w.shape[1:])


# ---- the ops


class Convolution(Op):
    """y = conv(x, w) + b, of images with `rank` axes."""

    rank: ClassVar[int]
    onnx = ("Conv",)

    def infer(self, operands, attributes):
        x, w = operands[:2]
        dtype = same_dtype(self.name, operands)
        rules.check_images(self.name, self.rank, x)
        rules.check_filters(self.name, self.rank, w)
        rules.check_channels(x.shape[1], w.shape, attributes)
        if len(operands) == 3:
            b = operands[2]
            if b.ndim != 1 or not same(b.shape[0], w.shape[0]):
                raise ShapeError(
                    f"{self.name}: expected a bias of shape ({w.shape[0]},), got {text(b.shape)}; reshape it"
                )
        return [((x.shape[0], w.shape[0], *rules.output_size(x.shape[2:], w.shape[2:], attributes)), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x, w) = gradients, call.operands[:2]
        if g is None:
            return [None] * len(call.operands)
        found = [
            _record(f"{self.name}_input_grad", g, w, size=x.shape[2:], **call.attributes) if wanted[0] else None,
            _record(f"{self.name}_weight_grad", x, g, kernel=w.shape[2:], **call.attributes) if wanted[1] else None,
        ]
        if len(call.operands) == 3:
            found.append(sum_over(g, (0, *range(2, g.ndim))) if wanted[2] else None)
        return found

    def reference(self, call: Call, *arrays: np.ndarray):
        x, w = arrays[:2]
        windows, w = rules.windows(x, w.shape[2:], call.attributes), rules.grouped(w, 0, call["groups"])
        axes, taps = "xyz"[: self.rank], "uvw"[: self.rank]
        y = np.einsum(f"ngc{axes}{taps},goc{taps}->ngo{axes}", windows, w, optimize=True)
        y = y.reshape(call.results[0].shape)
        return [y + arrays[2].reshape(-1, *[1] * self.rank) if len(arrays) == 3 else y]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.conv.cpu import forward_launch

        rules.check_result(*call.operands[:2], call.results[0], call.attributes)
        return forward_launch(call)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        from tapeprop.ops.conv.launches import forward_launches

        rules.check_result(*call.operands[:2], call.results[0], call.attributes)
        return forward_launches(call, device)

    def flops(self, call: Call) -> int:
        return _flops(call.operands[1], call.results[0])

    def samples(self):
        biased = rules.samples(self.rank, lambda x, w, y: ([x, w, (w[0],)], {}, prod(w[1:]) + 1, (0, 1, 2)))
        plain = list(rules.samples(self.rank, lambda x, w, y: ([x, w], {}, prod(w[1:]), (0, 1))))
        return [*biased, *plain[:2]]


class ConvolutionInputGrad(Op):
    """dx = the transpose of a convolution in x, applied to dy."""

    rank: ClassVar[int]
    onnx = ("ConvTranspose",)

    def infer(self, operands, attributes):
        dy, w = operands
        dtype = same_dtype(self.name, operands)
        rules.check_images(self.name, self.rank, dy, "filters", out=True)
        rules.check_filters(self.name, self.rank, w)
        channels, size = w.shape[1] * attributes["groups"], attributes["size"]
        rules.check_channels(channels, w.shape, attributes)
        rules.check_gradient(dy, (dy.shape[0], w.shape[0], *rules.output_size(size, w.shape[2:], attributes)))
        return [((dy.shape[0], channels, *size), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (dy, w) = gradients, call.operands
        if g is None:
            return [None, None]
        geometry = {name: value for name, value in call.attributes.items() if name != "size"}
        conv = f"conv{self.rank}d"
        return [
            _record(conv, g, w, **geometry) if wanted[0] else None,
            _record(f"{conv}_weight_grad", g, dy, kernel=w.shape[2:], **geometry) if wanted[1] else None,
        ]

    def reference(self, call: Call, *arrays: np.ndarray):
        return [rules.by_taps(*arrays, call.results[0].shape[2:], call.attributes)]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.conv.cpu import input_grad_launch

        return input_grad_launch(call)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        from tapeprop.ops.conv.launches import input_grad_launches

        return input_grad_launches(call, device)

    def flops(self, call: Call) -> int:
        return _flops(call.operands[1], call.operands[0])

    def samples(self):
        return list(rules.samples(self.rank, lambda x, w, y: ([y, w], {"size": x[2:]}, w[0] * prod(w[2:]), (0, 1))))


class ConvolutionWeightGrad(Op):
    """dw = the transpose of a convolution in w, applied to dy."""

    rank: ClassVar[int]

    def infer(self, operands, attributes):
        x, dy = operands
        dtype = same_dtype(self.name, operands)
        rules.check_images(self.name, self.rank, x)
        rules.check_images(self.name, self.rank, dy, "filters", out=True)
        kernel = attributes["kernel"]
        shape = (dy.shape[1], x.shape[1] // attributes["groups"], *kernel)
        rules.check_channels(x.shape[1], shape, attributes)
        rules.check_gradient(dy, (x.shape[0], dy.shape[1], *rules.output_size(x.shape[2:], kernel, attributes)))
        return [(shape, dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x, dy) = gradients, call.operands
        if g is None:
            return [None, None]
        geometry = {name: value for name, value in call.attributes.items() if name != "kernel"}
        conv = f"conv{self.rank}d"
        return [
            _record(f"{conv}_input_grad", dy, g, size=x.shape[2:], **geometry) if wanted[0] else None,
            _record(conv, x, g, **geometry) if wanted[1] else None,
        ]

    def reference(self, call: Call, *arrays: np.ndarray):
        x, dy = arrays
        windows, dy = rules.windows(x, call["kernel"], call.attributes), rules.grouped(dy, 1, call["groups"])
        axes, taps = "xyz"[: self.rank], "uvw"[: self.rank]
        dw = np.einsum(f"ngc{axes}{taps},ngo{axes}->goc{taps}", windows, dy, optimize=True)
        return [dw.reshape(call.results[0].shape)]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.conv.cpu import weight_grad_launch

        return weight_grad_launch(call)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        from tapeprop.ops.conv.launches import weight_grad_launches

        return weight_grad_launches(call, device)

    def flops(self, call: Call) -> int:
        return _flops(call.results[0], call.operands[1])

    def samples(self):
        depth = lambda y: y[0] * prod(y[2:])  # noqa: E731
        return list(rules.samples(self.rank, lambda x, w, y: ([x, y], {"kernel": w[2:]}, depth(y), (0, 1))))


@register
class Conv2D(Convolution):
    """y = conv2d(x, w) + b."""

    name, rank = "conv2d", 2


@register
class Conv2DInputGrad(ConvolutionInputGrad):
    """dx of conv2d from dy, w."""

    name, rank = "conv2d_input_grad", 2


@register
class Conv2DWeightGrad(ConvolutionWeightGrad):
    """dw of conv2d from x, dy."""

    name, rank = "conv2d_weight_grad", 2


@register
class Conv3D(Convolution):
    """y = conv3d(x, w) + b."""

    name, rank = "conv3d", 3


@register
class Conv3DInputGrad(ConvolutionInputGrad):
    """dx of conv3d from dy, w."""

    name, rank = "conv3d_input_grad", 3


@register
class Conv3DWeightGrad(ConvolutionWeightGrad):
    """dw of conv3d from x, dy."""

    name, rank = "conv3d_weight_grad", 3


# ---- what layers call


def _record(name: str, *operands: Any, **attributes: Any) -> Tensor:
    return record(name, operands, attributes)[0]


def conv2d(
    x: Any,
    w: Any,
    b: Any = None,
    stride: int | Pair = (1, 1),
    padding: Any = ((0, 0), (0, 0)),
    dilation: int | Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of x (N, C, H, W) with w (O, C / groups, KH, KW), plus b (O,) or None -> (N, O, OH, OW).

    OH = (H + top + bottom - (KH - 1) * dilation - 1) // stride + 1. stride, dilation: an int or (vertical, horizontal).
    padding: ((top, bottom), (left, right)), (vertical, horizontal) or an int; zeros. groups: channel blocks that do not mix.
    Tensors, parameters or arrays of one floating dtype. ShapeError where shapes do not fit, DTypeError for other dtypes,
    GraphError for attributes out of range.
    """
    operands = [x, w] if b is None else [x, w, b]
    return _record("conv2d", *operands, **rules.plain_attributes(2, stride, padding, dilation, groups))


def conv2d_input_grad(
    dy: Any,
    w: Any,
    size: Sequence[Size],
    stride: int | Pair = (1, 1),
    padding: Any = ((0, 0), (0, 0)),
    dilation: int | Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """The gradient of conv2d(x, w) in x, of shape (N, C, *size), from dy (N, O, OH, OW) and w (O, C / groups, KH, KW).

    Also the transposed convolution of dy. size: (H, W) of x, which may be open. The rest as for `conv2d`.
    """
    attributes = rules.plain_attributes(2, stride, padding, dilation, groups)
    return _record("conv2d_input_grad", dy, w, **attributes, size=tuple(size))


def conv2d_weight_grad(
    x: Any,
    dy: Any,
    kernel: Sequence[int],
    stride: int | Pair = (1, 1),
    padding: Any = ((0, 0), (0, 0)),
    dilation: int | Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """The gradient of conv2d(x, w) in w, of shape (O, C / groups, *kernel), from x (N, C, H, W) and dy (N, O, OH, OW).

    kernel: (KH, KW). The rest as for `conv2d`.
    """
    attributes = rules.plain_attributes(2, stride, padding, dilation, groups)
    return _record("conv2d_weight_grad", x, dy, **attributes, kernel=tuple(kernel))


def conv3d(
    x: Any,
    w: Any,
    b: Any = None,
    stride: int | Triple = (1, 1, 1),
    padding: Any = ((0, 0), (0, 0), (0, 0)),
    dilation: int | Triple = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of x (N, C, D, H, W) with w (O, C / groups, KD, KH, KW), plus b (O,) or None -> (N, O, OD, OH, OW).

    stride, dilation: an int or three, of depth, height and width. padding: ((front, back), (top, bottom), (left, right)), three ints
    or one. The rest as for `conv2d`.
    """
    operands = [x, w] if b is None else [x, w, b]
    return _record("conv3d", *operands, **rules.plain_attributes(3, stride, padding, dilation, groups))


def conv3d_input_grad(
    dy: Any,
    w: Any,
    size: Sequence[Size],
    stride: int | Triple = (1, 1, 1),
    padding: Any = ((0, 0), (0, 0), (0, 0)),
    dilation: int | Triple = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """The gradient of conv3d(x, w) in x, (N, C, *size), from dy (N, O, OD, OH, OW) and w (O, C / groups, KD, KH, KW).

    size: (D, H, W) of x, which may be open. The rest as for `conv3d`.
    """
    attributes = rules.plain_attributes(3, stride, padding, dilation, groups)
    return _record("conv3d_input_grad", dy, w, **attributes, size=tuple(size))


def conv3d_weight_grad(
    x: Any,
    dy: Any,
    kernel: Sequence[int],
    stride: int | Triple = (1, 1, 1),
    padding: Any = ((0, 0), (0, 0), (0, 0)),
    dilation: int | Triple = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """The gradient of conv3d(x, w) in w, (O, C / groups, *kernel), from x (N, C, D, H, W) and dy (N, O, OD, OH, OW).

    kernel: (KD, KH, KW). The rest as for `conv3d`.
    """
    attributes = rules.plain_attributes(3, stride, padding, dilation, groups)
    return _record("conv3d_weight_grad", x, dy, **attributes, kernel=tuple(kernel))
