"""The launches of the convolutions on a GPU."""

from __future__ import annotations

from math import gcd

from tapeprop.ops.conv.geometry import Geometry
from tapeprop.ops.op import Call, Device, Launch
from tapeprop.ops.tiling import Bias, cut, launches

HERE = "tapeprop.ops.conv.cuda"


def forward_launches(call: Call, device: Device) -> list[Launch]:
    """y = conv(x, w) + b."""
    (x, w), y = call.operands[:2], call.results[0]
    g = Geometry.of(x, w, y, call.attributes)
    pixels = g.height_out * g.width_out
    found = cut(g.filters, g.images * pixels, g.channels * g.taps, g.groups, y.dtype, device)
    bias = Bias(2, group=g.filters, row=1, inner=pixels) if len(call.operands) == 3 else None
    return launches(call, device, found, f"{HERE}:forward", 1, 0, bias, g.integers)


def weight_grad_launches(call: Call, device: Device) -> list[Launch]:
    """dw from x, dy."""
    (x, dy), dw = call.operands, call.results[0]
    g = Geometry.of(x, dw, dy, call.attributes)
    depth = g.images * g.height_out * g.width_out
    found = cut(g.filters, g.channels * g.taps, depth, g.groups, dw.dtype, device)
    return launches(call, device, found, f"{HERE}:weight_grad", 1, 0, None, g.integers)


def input_grad_launches(call: Call, device: Device) -> list[Launch]:
    """dx from dy, w."""
    (dy, w), dx = call.operands, call.results[0]
    g = Geometry.of(dx, w, dy, call.attributes)
    phases = g.stride_h * g.stride_w
    first_u, first_v = g.top // g.stride_h, g.left // g.stride_w
    count_u = (g.height_in - 1 + g.top) // g.stride_h - first_u + 1
    count_v = (g.width_in - 1 + g.left) // g.stride_w - first_v + 1
    periods = g.stride_h // gcd(g.stride_h, g.step_h), g.stride_w // gcd(g.stride_w, g.step_w)
    depth = -(-g.filters * g.taps // phases)
    found = cut(g.channels, g.images * count_u * count_v, depth, g.groups * phases, dx.dtype, device)
    integers = [*g.integers, first_u, count_u, first_v, count_v, *periods]
    return launches(call, device, found, f"{HERE}:input_grad", 1, 0, None, integers, single=g.taps == 1)
