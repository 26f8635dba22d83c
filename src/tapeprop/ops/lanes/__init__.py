"""Convolution and pooling with vector lanes along the batch: activations (N / L, C, H, W, L), L images side by side.

A pixel is then whole vectors whatever the number of channels, the width or the stride: nothing is packed, gathered or
masked, and padding costs nothing. To everything that does not care what an axis means (elementwise ops, concat along axis
1, reductions) such an activation is an array of rank 5 like any other; the ops here are those that need kernels of their
own, and the conversions to and from images. Each is the op on images of the same name, in another layout, which is also
what its reference says.
"""

from tapeprop.ops.lanes.conv import conv2d_lanes, conv2d_lanes_input_grad, conv2d_lanes_weight_grad
from tapeprop.ops.lanes.layout import from_lanes, to_lanes
from tapeprop.ops.lanes.pool import avg_pool2d_lanes, max_pool2d_lanes
from tapeprop.ops.lanes.winograd import conv2d_winograd, winograd_filters

__all__ = [
    "avg_pool2d_lanes",
    "conv2d_lanes",
    "conv2d_lanes_input_grad",
    "conv2d_lanes_weight_grad",
    "conv2d_winograd",
    "from_lanes",
    "max_pool2d_lanes",
    "to_lanes",
    "winograd_filters",
]
