"""CPU kernels of the convolutions: three walks around one microkernel, without a column matrix.

A band of rows of the image is staged in the worker's scratch as planes: one for each column of the filter's taps, shifted by it,
zero-padded, strided, and as wide as the result. Pixels are numbered along a plane, so that a vector of neighbouring pixels is
a vector of memory, and a tap in another row of the filter lies whole rows further on; the product's table of distances is the
only trace of the filter's shape. Of im2col, which copies every pixel for each tap, this keeps the copies across a row only.

In 3-D each depth of the result is an image, whose channels are the pairs of a channel and a tap in depth, in just the order in which
the weights lie: (O, (C KD), KH, KW). Their planes come from other depths of x, or are zero; all else is as in 2-D, which is depth 1.
"""

from tapeprop.ops.conv.cpu.forward import forward_launch
from tapeprop.ops.conv.cpu.input_grad import input_grad_launch
from tapeprop.ops.conv.cpu.weight_grad import weight_grad_launch

__all__ = ["forward_launch", "input_grad_launch", "weight_grad_launch"]
