"""Normalisation: by the batch, by groups of channels, over the last axes, and by neighbouring channels."""

from __future__ import annotations

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.interchange.onnx.model import Node
from tapeprop.ir import Parameter, Shape, Tensor
from tapeprop.ir.dims import product, same, text
from tapeprop.ops.expression import power

FLOAT = 1  # TensorProto.FLOAT


@converter("BatchNormalization")
def batch_normalization(node, x, scale, bias, mean, var):
    """The running statistics are state: no gradient trains them, also where they are initialisers."""
    for statistic in (mean, var):
        if isinstance(statistic.source, Parameter):
            statistic.source.trainable = False
    epsilon, momentum = node.get("epsilon", 1e-5), node.get("momentum", 0.9)
    if not node.get("training_mode", 0):
        if any(node.outputs[1:]):
            raise node.fail("one output outside training_mode", f"{len(node.outputs)}")
        return ops.batch_norm_inference(x, scale, bias, mean, var, epsilon)
    y, _, _, new_mean, new_var = ops.batch_norm(x, scale, bias, mean, var, momentum, epsilon)
    return y, new_mean, new_var


@converter("InstanceNormalization")
def instance_normalization(node, x, scale, bias):
    return ops.instance_norm(x, scale, bias, node.get("epsilon", 1e-5))


@converter("GroupNormalization")
def group_normalization(node, x, scale, bias):
    """Up to opset 20 scale and bias have one number for each group, from 21 on one for each channel."""
    _check_stash_type(node)
    groups = node.get("num_groups")
    if groups is None or groups < 1:
        raise node.fail("the attribute num_groups >= 1", groups)
    if node.opset < 21:
        scale, bias = (_to_channels(node, vector, groups, x.shape[1]) for vector in (scale, bias))
    return ops.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


def _to_channels(node, vector, groups, channels):
    if vector.ndim != 1 or not same(vector.shape[0], groups):
        raise node.fail(f"a scale and a bias of shape ({groups},)", text(vector.shape))
    return ops.reshape(ops.expand(ops.reshape(vector, (groups, 1)), (groups, channels // groups)), (channels,))


@converter("LayerNormalization")
def layer_normalization(node, x, scale, bias=None):
    _check_stash_type(node)
    shape, axes = _normalized(node, x)
    epsilon = node.get("epsilon", 1e-5)
    if scale.shape == shape and (bias is None or bias.shape == shape):
        y = ops.layer_norm(x, shape, scale, bias, epsilon)
    else:  # they broadcast
        y = ops.layer_norm(x, shape, None, None, epsilon) * scale
        y = y if bias is None else y + bias
    if not any(node.outputs[1:]):
        return y
    mean = ops.mean(x, axes, keepdims=True)
    centred = x - mean
    inverse_std = 1.0 / ops.sqrt(ops.mean(centred * centred, axes, keepdims=True) + epsilon)
    return y, ops.cast(mean, "float32"), ops.cast(inverse_std, "float32")


@converter("RMSNormalization")
def rms_normalization(node, x, scale):
    _check_stash_type(node)
    shape, _ = _normalized(node, x)
    epsilon = node.get("epsilon", 1e-5)
    if scale.shape == shape:
        return ops.rms_norm(x, shape, scale, epsilon)
    return ops.rms_norm(x, shape, None, epsilon) * scale


@converter("LRN")
def local_response_normalization(node, x):
    """x / (bias + alpha mean(x^2))^beta over floor((size - 1) / 2) channels before and ceil((size - 1) / 2) after.

    For an even size that is another window than torch's.
    """
    size = node.get("size")
    if size is None or size < 1 or x.ndim < 2:
        raise node.fail("the attribute size >= 1 and x of shape (N, C, ...)", f"size {size} and {text(x.shape)}")
    alpha, beta, bias = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    planes = (x.shape[0], 1, x.shape[1], product(x.shape[2:]))
    sides = ((size - 1) // 2, size // 2)
    means = ops.avg_pool2d(ops.reshape(x * x, planes), (size, 1), 1, (sides, (0, 0)))
    return ops.compute(lambda a, m: a * power(bias + alpha * m, -beta), x, ops.reshape(means, x.shape))[0]


def _normalized(node: Node, x: Tensor) -> tuple[Shape, tuple[int, ...]]:
    """(the shape, the axes) from the attribute axis on. GraphError for one that x does not have."""
    axis = node.get("axis", -1)
    if not -x.ndim <= axis < x.ndim:
        raise node.fail(f"an axis from {-x.ndim} to {x.ndim - 1}", axis)
    axes = tuple(range(axis % x.ndim, x.ndim))
    return x.shape[axes[0] :], axes


def _check_stash_type(node: Node) -> None:
    """GraphError unless statistics are to be float32. Ours are float64 inside, whatever the dtype of x: closer, not other."""
    if node.get("stash_type", FLOAT) != FLOAT:
        raise node.fail("stash_type 1 (float32)", node.get("stash_type"))
