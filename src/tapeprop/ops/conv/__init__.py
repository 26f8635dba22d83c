"""Convolution (cross-correlation, as PyTorch's) over images of one to three axes, and the two linear maps that are its gradients.

    y  = conv2d(x, w):              y[n, o, i, j] = sum of w[o, c, a, b] xp[n, c, i sh + a dh, j sw + b dw] over c, a, b
    dx = conv2d_input_grad(dy, w):  its transpose in x
    dw = conv2d_weight_grad(x, dy): its transpose in w

xp is x with `padding` zeros around it; so in 3-D, and 1-D is 2-D with a single row. Each is linear in both operands, and the
gradients of each are the other two. Padding counts as zeros: an infinite weight on a padded pixel gives NaN, as 0 * inf does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tapeprop.errors import ShapeError
from tapeprop.ir import Size, Tensor
from tapeprop.ir.dims import same, text
from tapeprop.ops.conv import rules
from tapeprop.ops.conv import spec as spec  # registers the ops
from tapeprop.ops.elementwise import add
from tapeprop.ops.join import pad
from tapeprop.ops.op import as_tensor, record
from tapeprop.ops.shape import reshape

__all__ = [
    "conv1d",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_weight_grad",
    "conv3d",
    "conv3d_input_grad",
    "conv3d_weight_grad",
    "conv_transpose",
]

Pair = tuple[int, int]
Triple = tuple[int, int, int]


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


def conv1d(
    x: Any,
    w: Any,
    b: Any = None,
    stride: int = 1,
    padding: int | Pair = (0, 0),
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of x (N, C, L) with w (O, C / groups, K), plus b (O,) or None -> (N, O, OL).

    OL = (L + left + right - (K - 1) * dilation - 1) // stride + 1. padding: (left, right) or an int. The rest as for `conv2d`, which
    it is, of images with a single row.
    """
    x, w = as_tensor(x), as_tensor(w)
    rules.check_images("conv1d", 1, x)
    rules.check_filters("conv1d", 1, w)
    at = rules.plain_attributes(1, stride, rules.as_sides(padding), dilation, groups)
    rules.check_channels(x.shape[1], w.shape, at)
    rules.output_size(x.shape[2:], w.shape[2:], at)
    y = conv2d(rules.with_row(x), rules.with_row(w), b, **rules.in_rows(at))
    return rules.without_row(y)


def conv_transpose(
    x: Any,
    w: Any,
    b: Any = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """The transposed convolution of x (N, C, ...) of one to three axes with w (C, O / groups, ...) + b (O,) -> (N, O, ...).

    The result's size is (n - 1) stride - before - after + (taps - 1) dilation + output_padding + 1 along each axis, and what it is the
    gradient of is the convolution with this stride, padding and dilation. output_padding: smaller than stride or dilation, as
    torch.nn.ConvTranspose2d has it; it lets the result reach further, to pixels of which the convolution has left out some.
    Numbers are one for all axes or one for each, padding also a pair for each. GraphError for attributes out of range; ShapeError where
    shapes do not fit or nothing is left.
    """
    x, w = as_tensor(x), as_tensor(w)
    rank = rules.transposed_rank(x, w)
    sides = rules.as_sides(padding) if rank == 1 else padding
    at = rules.plain_attributes(rank, stride, sides, dilation, groups)
    size, sides, missing = rules.transposed_size(x.shape[2:], w.shape[2:], at, output_padding)
    at["padding"] = sides
    rules.check_transposed_channels(x, w, at)
    if rank == 1:
        rows = rules.in_rows(at)
        y = rules.without_row(conv2d_input_grad(rules.with_row(x), rules.with_row(w), (1, *size), **rows))
    else:
        y = (conv2d_input_grad if rank == 2 else conv3d_input_grad)(x, w, size, **at)
    if any(missing):
        y = pad(y, [(0, 0), (0, 0), *((0, n) for n in missing)])
    if b is None:
        return y
    b = as_tensor(b)
    if b.ndim != 1 or not same(b.shape[0], y.shape[1]):
        raise ShapeError(f"conv_transpose: expected a bias of shape ({y.shape[1]},), got {text(b.shape)}; reshape it")
    return add(y, reshape(b, (-1, *[1] * rank)))
