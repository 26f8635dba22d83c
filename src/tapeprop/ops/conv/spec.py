"""The convolutions' ops: one of each kind for images of two axes and of three."""

from __future__ import annotations

from math import prod
from types import ModuleType
from typing import ClassVar

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir.dims import same, text
from tapeprop.ops.conv import rules
from tapeprop.ops.conv.geometry import depthwise
from tapeprop.ops.op import ArrayType, Call, Device, Launch, Op, record, register, same_dtype
from tapeprop.ops.reduce import sum as sum_over


def _flops(w: ArrayType, y: ArrayType) -> int:
    """A multiplication and an addition for every output pixel and every weight of its filter."""
    return 2 * y.size * prod(w.shape[1:])


def _walks(w: ArrayType, call: Call) -> ModuleType:
    """The module of the CPU kernels for weights w."""
    from tapeprop.ops.conv import cpu
    from tapeprop.ops.conv.cpu import depthwise as channel_by_channel

    return channel_by_channel if depthwise(w.shape, call["groups"]) else cpu


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
            record(f"{self.name}_input_grad", [g, w], call.attributes | {"size": x.shape[2:]})[0]
            if wanted[0]
            else None,
            record(f"{self.name}_weight_grad", [x, g], call.attributes | {"kernel": w.shape[2:]})[0]
            if wanted[1]
            else None,
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
        rules.check_result(call)
        return _walks(call.operands[1], call).forward_launch(call)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        from tapeprop.ops.conv.launches import forward_launches

        rules.check_result(call)
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
            record(conv, [g, w], geometry)[0] if wanted[0] else None,
            record(f"{conv}_weight_grad", [g, dy], geometry | {"kernel": w.shape[2:]})[0] if wanted[1] else None,
        ]

    def reference(self, call: Call, *arrays: np.ndarray):
        dy, w = arrays
        return [rules.by_taps(dy, w, call.results[0].shape[2:], call.attributes)]

    def cpu(self, call: Call) -> Launch:
        return _walks(call.operands[1], call).input_grad_launch(call)

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
            record(f"{conv}_input_grad", [dy, g], geometry | {"size": x.shape[2:]})[0] if wanted[0] else None,
            record(conv, [x, g], geometry)[0] if wanted[1] else None,
        ]

    def reference(self, call: Call, *arrays: np.ndarray):
        x, dy = arrays
        windows, dy = rules.windows(x, call["kernel"], call.attributes), rules.grouped(dy, 1, call["groups"])
        axes, taps = "xyz"[: self.rank], "uvw"[: self.rank]
        dw = np.einsum(f"ngc{axes}{taps},ngo{axes}->goc{taps}", windows, dy, optimize=True)
        return [dw.reshape(call.results[0].shape)]

    def cpu(self, call: Call) -> Launch:
        return _walks(call.results[0], call).weight_grad_launch(call)

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
