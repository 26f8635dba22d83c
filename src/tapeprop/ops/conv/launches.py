"""The launches of the convolutions on a GPU."""

from __future__ import annotations

from math import gcd, prod

from tapeprop.errors import ShapeError
from tapeprop.ops.conv.geometry import Geometry, packed
from tapeprop.ops.op import Call, Device, Launch
from tapeprop.ops.tiling import LARGEST, Bias, cut, launches

HERE = "tapeprop.ops.conv.cuda"


def forward_launches(call: Call, device: Device) -> list[Launch]:
    """y = conv(x, w) + b."""
    (x, w), y = call.operands[:2], call.results[0]
    g = Geometry.of(x, w, y, call.attributes)
    padded = prod(size + sum(sides) for size, sides in zip(x.shape[2:], call["padding"], strict=True))
    _refuse_far("an image of x and its padding", w.shape[1] * padded)
    pixels = g.height_out * g.width_out
    found = cut(g.filters, g.images * pixels, g.channels * g.taps, g.groups * g.depth_out, y.dtype, device)
    bias = None
    if len(call.operands) == 3:
        bias = Bias(2, group=g.filters, row=1, inner=g.depth_out * pixels, alike=g.depth_out)
    return launches(call, device, found, f"{HERE}:forward", 1, 0, bias, _integers(g))


def weight_grad_launches(call: Call, device: Device) -> list[Launch]:
    """dw from x, dy."""
    (x, dy), dw = call.operands, call.results[0]
    g = Geometry.of(x, dw, dy, call.attributes)
    bits = (g.depth_in - 1).bit_length()
    _refuse_far("the images of a batch, a depth of them at a time", g.images << bits)
    _refuse_far("an image of dy, of one filter", dy.size // (dy.shape[0] * dy.shape[1]))
    padded = prod(size + sum(sides) for size, sides in zip(x.shape[2:], call["padding"], strict=True))
    _refuse_far("an image of x and its padding, of one channel", padded)
    depth = g.images * g.depth_out * g.height_out * g.width_out
    found = cut(g.filters, g.channels * g.taps_h * g.taps_w, depth, g.groups * g.taps_d, dw.dtype, device)
    integers = [*_integers(g), bits]
    return launches(call, device, found, f"{HERE}:weight_grad", 1, 0, None, integers)


def input_grad_launches(call: Call, device: Device) -> list[Launch]:
    """dx from dy, w."""
    (dy, w), dx = call.operands, call.results[0]
    g = Geometry.of(dx, w, dy, call.attributes)
    if g.taps > 1:
        _refuse_far("the weights", w.size // g.groups)
        _refuse_far("an image of dy", dy.size // (dy.shape[0] * g.groups))
    phases = g.stride_h * g.stride_w
    first_u, first_v = g.top // g.stride_h, g.left // g.stride_w
    count_u = (g.height_in - 1 + g.top) // g.stride_h - first_u + 1
    count_v = (g.width_in - 1 + g.left) // g.stride_w - first_v + 1
    pairs = (g.stride_d, g.step_d), (g.stride_h, g.step_h), (g.stride_w, g.step_w)
    periods = [stride // gcd(stride, step) for stride, step in pairs]
    hops = [step // gcd(stride, step) for stride, step in pairs]
    depth = -(-g.filters * g.taps // (phases * g.stride_d))
    found = cut(g.channels, g.images * count_u * count_v, depth, g.groups * phases * g.depth_in, dx.dtype, device)
    integers = [*_integers(g), first_u, count_u, first_v, count_v, packed(*periods), *hops]
    integers += [
        periods[0] * g.taps_h * g.taps_w,
        periods[1] * g.taps_w,
        periods[2],
        hops[0] * g.height_out * g.width_out,
    ]
    integers += [g.channels * g.taps, g.depth_out * g.height_out * g.width_out]
    return launches(call, device, found, f"{HERE}:input_grad", 1, 0, None, integers, single=g.taps == 1)


def _refuse_far(what: str, elements: int) -> None:
    """ShapeError where a number in a table of terms may be 2^31 or more, as the distance between two taps: they hold 32 bits."""
    if elements > LARGEST:
        raise ShapeError(
            f"a convolution on a GPU: expected at most {LARGEST} elements of each group in {what}, got {elements}; "
            "cut the images into pieces, or use more groups"
        )


def _integers(g: Geometry) -> list[int]:
    """The kernels' first integers: see `cuda.FIELDS`."""
    return [
        *(g.images, g.groups, g.channels, g.depth_in, g.height_in, g.width_in, g.filters),
        packed(g.taps_d, g.taps_h, g.taps_w),
        packed(g.stride_d, g.stride_h, g.stride_w),
        packed(g.front, g.top, g.left),
        packed(g.step_d, g.step_h, g.step_w),
        *(g.depth_out, g.height_out, g.width_out),
    ]
