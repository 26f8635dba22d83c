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


def _kernel(node, w):
    """The sizes of the filters w. GraphError where the node says others, or they are open."""
    sizes = [known_size(node, w, axis) for axis in range(2, w.ndim)]
    given = node.get("kernel_shape")
    if given is not None and list(given) != sizes:
        raise node.fail(f"weights of kernel_shape {list(given)}", f"shape {text(w.shape)}")
    return sizes
