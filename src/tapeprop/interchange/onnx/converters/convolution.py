"""Conv and ConvTranspose, of images with one to three axes."""

from __future__ import annotations

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.interchange.onnx.converters.windows import (
    auto_pad,
    given_pads,
    known_size,
    numbers,
    spatial_axes,
    windows,
)
from tapeprop.ir.dims import text

_CONVOLUTIONS = {1: ops.conv1d, 2: ops.conv2d, 3: ops.conv3d}


@converter("Conv")
def conv(node, x, w, b=None):
    at = windows(node, x, _kernel(node, w))
    bare = at.rank == 1  # of one axis the functions take a number
    plain = [part[0] if bare else part for part in (at.strides, at.pads, at.dilations)]
    return _CONVOLUTIONS[at.rank](x, w, b, *plain, groups=node.get("group", 1))


@converter("ConvTranspose")
def conv_transpose(node, x, w, b=None):
    """The result's size is (n - 1) stride + extent + output_padding - pads, unless output_shape or auto_pad say it.

    Where the size that is asked for is larger than what the filters reach, zeros follow, and the bias is added to them as well.
    """
    rank = spatial_axes(node, x)
    kernel = _kernel(node, w)
    strides = numbers(node, "strides", node.get("strides"), rank, 1)
    steps = numbers(node, "dilations", node.get("dilations"), rank, 1)
    extra = numbers(node, "output_padding", node.get("output_padding", [0] * rank), rank, 0)
    sides, more = given_pads(node, rank), [0] * rank
    auto, wanted = auto_pad(node), node.get("output_shape")
    if wanted is not None or auto.startswith("SAME"):
        if wanted is not None:
            wanted = numbers(node, "output_shape", wanted, rank, 1)
        found = []
        for axis in range(rank):
            extent = (kernel[axis] - 1) * steps[axis] + 1
            if wanted is None:  # size * stride pixels, however many there are
                total = extent + extra[axis] - strides[axis]
            else:
                whole = (known_size(node, x, axis + 2) - 1) * strides[axis] + extent + extra[axis]
                total = whole - wanted[axis]
            more[axis] = max(-total, 0)
            less, rest = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
            found.append((less, rest) if auto == "SAME_UPPER" else (rest, less))
        sides = tuple(found)
    y = ops.conv_transpose(
        x,
        w,
        None if any(more) else b,
        strides,
        sides,
        output_padding=extra,
        dilation=steps,
        groups=node.get("group", 1),
    )
    if not any(more):
        return y
    y = ops.pad(y, [(0, 0), (0, 0), *((0, n) for n in more)])
    return y if b is None else y + ops.reshape(b, (-1, *[1] * rank))


@converter("CausalConvWithState")
def causal_conv_with_state(node, x, w, b=None, past=None):
    """(the convolution of each channel with what came before, (N, C, L); its last k - 1 inputs, for the next call)."""
    if x.ndim != 3 or w.ndim != 3:
        raise node.fail("tensors (N, C, L) and (C, 1, k)", f"{text(x.shape)} and {text(w.shape)}")
    activation = node.get("activation", "none")
    if activation not in ("none", "silu", "swish"):
        raise node.fail("activation to be none, silu or swish", repr(activation))
    channels, before = known_size(node, w, 0), known_size(node, w, 2) - 1
    if before == 0 and any(node.outputs[1:]):
        raise node.fail("a kernel of at least 2 elements", "1", "its state would hold nothing")
    if past is not None:
        x = ops.concat([past, x], 2)
    elif before:
        x = ops.pad(x, [(0, 0), (0, 0), (before, 0)])
    y = ops.conv1d(x, w, b, groups=channels)
    y = y if activation == "none" else ops.swish(y)
    return (y, x[:, :, -before:]) if any(node.outputs[1:]) else y


def _kernel(node, w):
    """The sizes of the filters w. GraphError where the node says others, or they are open."""
    sizes = [known_size(node, w, axis) for axis in range(2, w.ndim)]
    given = node.get("kernel_shape")
    if given is not None and list(given) != sizes:
        raise node.fail(f"weights of kernel_shape {list(given)}", f"shape {text(w.shape)}")
    return sizes
