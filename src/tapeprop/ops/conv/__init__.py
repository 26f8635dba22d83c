"""Convolution (cross-correlation, as PyTorch's) over (N, C, H, W), and the two linear maps that are its gradients.

    y  = conv2d(x, w):              y[n, o, i, j] = sum of w[o, c, a, b] xp[n, c, i sh + a dh, j sw + b dw] over c, a, b
    dx = conv2d_input_grad(dy, w):  its transpose in x
    dw = conv2d_weight_grad(x, dy): its transpose in w

xp is x with `padding` zeros around it. Each is linear in both operands, and the gradients of each are the other two.
Padding counts as zeros: an infinite weight on a padded pixel gives NaN, as 0 * inf does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import GraphError, ShapeError
from tapeprop.ir import Shape, Size, Tensor, UndecidedError
from tapeprop.ir.dims import at_least, same, text
from tapeprop.ops.op import (
    ArrayType,
    Attributes,
    Call,
    Device,
    Launch,
    Op,
    Sample,
    check_rank,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.reduce import sum as sum_over

__all__ = ["conv2d", "conv2d_input_grad", "conv2d_weight_grad"]

Pair = tuple[int, int]


# ---- geometry


def _pair(what: str, given: int | Sequence[int], least: int) -> Pair:
    found = (given, given) if isinstance(given, (int, np.integer)) else tuple(given)
    if len(found) != 2 or not all(isinstance(n, (int, np.integer)) and n >= least for n in found):
        raise GraphError(f"conv2d: expected {what} as an int or two ints, each at least {least}, got {given!r}")
    return int(found[0]), int(found[1])


def _attributes(stride: Any, padding: Any, dilation: Any, groups: int) -> dict[str, Any]:
    """The attributes of all three ops in plain form. GraphError where one makes no sense."""
    sides = (padding, padding) if isinstance(padding, (int, np.integer)) else tuple(padding)
    if len(sides) != 2:
        raise GraphError(f"conv2d: expected padding ((top, bottom), (left, right)), a pair or an int, got {padding!r}")
    if not isinstance(groups, (int, np.integer)) or groups < 1:
        raise GraphError(f"conv2d: expected groups as an int of at least 1, got {groups!r}")
    return {
        "stride": _pair("stride", stride, 1),
        "padding": (_pair("padding", sides[0], 0), _pair("padding", sides[1], 0)),
        "dilation": _pair("dilation", dilation, 1),
        "groups": int(groups),
    }


def _output_size(size: Sequence[Size], kernel: Sequence[Size], attributes: Attributes) -> tuple[Size, Size]:
    """(OH, OW). ShapeError where the filter is known to be larger than the padded image."""
    found = []
    for n, taps, stride, (before, after), step in zip(
        size, kernel, attributes["stride"], attributes["padding"], attributes["dilation"]
    ):
        room = n + before + after - (taps - 1) * step
        try:
            fits = at_least(room, 1)
        except UndecidedError:  # `cpu` looks again, at the sizes of the call
            fits = True
        if not fits:
            raise ShapeError(_too_small(size, kernel, attributes))
        found.append((room - 1) // stride + 1)
    return found[0], found[1]


def _too_small(size: Sequence[Size], kernel: Sequence[Size], attributes: Attributes) -> str:
    return (
        f"conv2d: expected an image of at least the filter, {kernel[0]} x {kernel[1]} with dilation {attributes['dilation']}, "
        f"got {size[0]} x {size[1]} with padding {attributes['padding']}; use a smaller filter or more padding"
    )


def _check_channels(channels: Size, w: Shape, attributes: Attributes) -> None:
    """ShapeError unless images of `channels` channels and weights of shape w go together."""
    groups = attributes["groups"]
    if not same(channels, w[1] * groups):
        raise ShapeError(
            f"conv2d: expected {w[1] * groups} channels for weights {text(w)} in {groups} group(s), got {channels}; "
            "change the weights' input channels"
        )
    if isinstance(w[0], int) and w[0] % groups:
        raise ShapeError(f"conv2d: expected a number of filters that {groups} groups divide, got {w[0]} in {text(w)}")


def _check_gradient(dy: Tensor, expected: Shape) -> None:
    if not all(same(a, b) for a, b in zip(dy.shape, expected)):
        raise ShapeError(
            f"conv2d: expected a gradient of shape {text(expected)}, got {text(dy.shape)}; check size and stride"
        )


def _windows(x: np.ndarray, kernel: Sequence[int], attributes: Attributes) -> np.ndarray:
    """(N, groups, C / groups, OH, OW, KH, KW): what each tap of each output pixel sees of x (N, C, H, W)."""
    (kh, kw), (sh, sw), (dh, dw) = kernel, attributes["stride"], attributes["dilation"]
    padded = np.pad(x, ((0, 0), (0, 0), *attributes["padding"]))
    view = np.lib.stride_tricks.sliding_window_view(padded, ((kh - 1) * dh + 1, (kw - 1) * dw + 1), (2, 3))
    view = view[:, :, ::sh, ::sw, ::dh, ::dw]
    return view.reshape(x.shape[0], attributes["groups"], -1, *view.shape[2:])


def _grouped(array: np.ndarray, axis: int, groups: int) -> np.ndarray:
    """`array` with `axis` cut into (groups, the rest)."""
    return array.reshape(*array.shape[:axis], groups, -1, *array.shape[axis + 1 :])


def _flops(w: ArrayType, y: ArrayType) -> int:
    """A multiplication and an addition for every output pixel and every weight of its filter."""
    return 2 * y.size * w.shape[1] * w.shape[2] * w.shape[3]


def _samples(make: Any) -> list[Sample]:
    """A sample for each geometry: make(x, w, y, attributes) gives (operand shapes, attributes of its own, depth, gradients)."""
    samples = []
    for x, w, stride, padding, dilation, groups in (
        ((1, 1, 1, 1), (1, 1, 1, 1), 1, 0, 1, 1),
        ((2, 3, 8, 8), (6, 3, 3, 3), 1, 1, 1, 1),
        ((1, 2, 5, 7), (3, 2, 3, 3), 1, 0, 1, 1),  # read in place
        ((2, 3, 9, 7), (5, 3, 3, 3), 2, 1, 1, 1),
        ((1, 4, 11, 6), (4, 4, 1, 1), 2, 0, 1, 1),  # pixels that no tap reaches
        ((2, 2, 7, 8), (3, 2, 2, 4), (3, 2), ((1, 0), (2, 3)), 1, 1),
        ((1, 2, 12, 11), (2, 2, 3, 3), 1, 2, (2, 3), 1),
        ((1, 2, 13, 12), (2, 2, 3, 2), (2, 4), (1, 0), (3, 2), 1),
        ((2, 4, 6, 5), (6, 2, 3, 3), 1, 1, 1, 2),
        ((1, 3, 6, 6), (3, 1, 3, 3), 2, 1, 1, 3),  # depthwise
        ((1, 17, 4, 40), (18, 17, 1, 3), 1, (0, 1), 1, 1),  # panels of odd widths
        ((3, 2, 4, 4), (40, 2, 4, 4), 1, 0, 1, 1),  # one pixel left
    ):
        attributes = _attributes(stride, padding, dilation, groups)
        y = (x[0], w[0], *_output_size(x[2:], w[2:], attributes))
        shapes, own, depth, gradient = make(x, w, y)

        def operands(rng: np.random.Generator, shapes: Sequence[tuple[int, ...]] = shapes) -> list[np.ndarray]:
            return [rng.standard_normal(shape) for shape in shapes]

        samples.append(Sample(operands, attributes | own, depth=depth, gradient=gradient))
    return samples


# ---- the ops


@register
class Conv2D(Op):
    """y = conv2d(x, w) + b."""

    name = "conv2d"
    onnx = ("Conv",)

    def infer(self, operands, attributes):
        x, w = operands[:2]
        dtype = same_dtype("conv2d", operands)
        check_rank("conv2d", x, 4, "(N, C, H, W)")
        check_rank("conv2d", w, 4, "(filters, C / groups, KH, KW)")
        _check_channels(x.shape[1], w.shape, attributes)
        if len(operands) == 3:
            b = operands[2]
            if b.ndim != 1 or not same(b.shape[0], w.shape[0]):
                raise ShapeError(f"conv2d: expected a bias of shape ({w.shape[0]},), got {text(b.shape)}; reshape it")
        return [((x.shape[0], w.shape[0], *_output_size(x.shape[2:], w.shape[2:], attributes)), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x, w) = gradients, call.operands[:2]
        if g is None:
            return [None] * len(call.operands)
        found = [
            conv2d_input_grad(g, w, x.shape[2:], **call.attributes) if wanted[0] else None,
            conv2d_weight_grad(x, g, w.shape[2:], **call.attributes) if wanted[1] else None,
        ]
        if len(call.operands) == 3:
            found.append(sum_over(g, (0, 2, 3)) if wanted[2] else None)
        return found

    def reference(self, call: Call, *arrays: np.ndarray):
        x, w = arrays[:2]
        windows = _windows(x, w.shape[2:], call.attributes)
        y = np.einsum("ngcijab,gocab->ngoij", windows, _grouped(w, 0, call["groups"]), optimize=True)
        y = y.reshape(call.results[0].shape)
        return [y + arrays[2][:, None, None] if len(arrays) == 3 else y]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.conv.cpu import forward_launch

        x, w = call.operands[:2]
        if min(call.results[0].shape[2:]) < 1:
            raise ShapeError(_too_small(x.shape[2:], w.shape[2:], call.attributes))
        return forward_launch(call)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        from tapeprop.ops.conv.launches import forward_launches

        x, w = call.operands[:2]
        if min(call.results[0].shape[2:]) < 1:
            raise ShapeError(_too_small(x.shape[2:], w.shape[2:], call.attributes))
        return forward_launches(call, device)

    def flops(self, call: Call) -> int:
        return _flops(call.operands[1], call.results[0])

    def samples(self):
        biased = _samples(lambda x, w, y: ([x, w, (w[0],)], {}, w[1] * w[2] * w[3] + 1, (0, 1, 2)))
        return biased + _samples(lambda x, w, y: ([x, w], {}, w[1] * w[2] * w[3], (0, 1)))[:2]


@register
class Conv2DInputGrad(Op):
    """dx = the transpose of conv2d in x, applied to dy."""

    name = "conv2d_input_grad"
    onnx = ("ConvTranspose",)

    def infer(self, operands, attributes):
        dy, w = operands
        dtype = same_dtype("conv2d_input_grad", operands)
        check_rank("conv2d_input_grad", dy, 4, "(N, filters, OH, OW)")
        check_rank("conv2d_input_grad", w, 4, "(filters, C / groups, KH, KW)")
        channels = w.shape[1] * attributes["groups"]
        _check_channels(channels, w.shape, attributes)
        _check_gradient(dy, (dy.shape[0], w.shape[0], *_output_size(attributes["size"], w.shape[2:], attributes)))
        return [((dy.shape[0], channels, *attributes["size"]), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (dy, w) = gradients, call.operands
        if g is None:
            return [None, None]
        geometry = {name: value for name, value in call.attributes.items() if name != "size"}
        return [
            conv2d(g, w, **geometry) if wanted[0] else None,
            conv2d_weight_grad(g, dy, w.shape[2:], **geometry) if wanted[1] else None,
        ]

    def reference(self, call: Call, *arrays: np.ndarray):
        dy, w = arrays
        groups, (sh, sw), (dh, dw) = call["groups"], call["stride"], call["dilation"]
        ((top, bottom), (left, right)), (height, width) = call["padding"], call.results[0].shape[2:]
        dy, w = _grouped(dy, 1, groups), _grouped(w, 0, groups)
        dx = np.zeros((dy.shape[0], groups, w.shape[2], height + top + bottom, width + left + right), dy.dtype)
        (oh, ow), (kh, kw) = dy.shape[3:], w.shape[3:]
        for a in range(kh):
            for b in range(kw):
                rows = slice(a * dh, a * dh + (oh - 1) * sh + 1, sh)
                columns = slice(b * dw, b * dw + (ow - 1) * sw + 1, sw)
                dx[..., rows, columns] += np.einsum("ngoij,goc->ngcij", dy, w[..., a, b])
        return [dx[..., top : top + height, left : left + width].reshape(call.results[0].shape)]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.conv.cpu import input_grad_launch

        return input_grad_launch(call)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        from tapeprop.ops.conv.launches import input_grad_launches

        return input_grad_launches(call, device)

    def flops(self, call: Call) -> int:
        return _flops(call.operands[1], call.operands[0])

    def samples(self):
        return _samples(lambda x, w, y: ([y, w], {"size": x[2:]}, w[0] * w[2] * w[3], (0, 1)))


@register
class Conv2DWeightGrad(Op):
    """dw = the transpose of conv2d in w, applied to dy."""

    name = "conv2d_weight_grad"

    def infer(self, operands, attributes):
        x, dy = operands
        dtype = same_dtype("conv2d_weight_grad", operands)
        check_rank("conv2d_weight_grad", x, 4, "(N, C, H, W)")
        check_rank("conv2d_weight_grad", dy, 4, "(N, filters, OH, OW)")
        shape = (dy.shape[1], x.shape[1] // attributes["groups"], *attributes["kernel"])
        _check_channels(x.shape[1], shape, attributes)
        _check_gradient(dy, (x.shape[0], dy.shape[1], *_output_size(x.shape[2:], attributes["kernel"], attributes)))
        return [(shape, dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x, dy) = gradients, call.operands
        if g is None:
            return [None, None]
        geometry = {name: value for name, value in call.attributes.items() if name != "kernel"}
        return [
            conv2d_input_grad(dy, g, x.shape[2:], **geometry) if wanted[0] else None,
            conv2d(x, g, **geometry) if wanted[1] else None,
        ]

    def reference(self, call: Call, *arrays: np.ndarray):
        x, dy = arrays
        windows = _windows(x, call["kernel"], call.attributes)
        dw = np.einsum("ngcijab,ngoij->gocab", windows, _grouped(dy, 1, call["groups"]), optimize=True)
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
        return _samples(lambda x, w, y: ([x, y], {"kernel": w[2:]}, y[0] * y[2] * y[3], (0, 1)))


# ---- what layers call


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
    return record("conv2d", operands, _attributes(stride, padding, dilation, groups))[0]


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
    attributes = _attributes(stride, padding, dilation, groups) | {"size": tuple(size)}
    return record("conv2d_input_grad", [dy, w], attributes)[0]


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
    attributes = _attributes(stride, padding, dilation, groups) | {"kernel": tuple(kernel)}
    return record("conv2d_weight_grad", [x, dy], attributes)[0]
