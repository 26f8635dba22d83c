"""Which layer of `tapeprop.layers` does what an ONNX node does, exactly.

    @equivalent("Elu", becomes="`Activation.ELU`")
    def elu(node, x, y):
        return Activation.ELU(node.get("alpha", 1.0)), {}

A function gets the node, the tensors of its first input and first output, whose shapes are known as far as the model gives them, and
the arrays of its other inputs, initialisers all, None for an omitted one. It gives the layer and {name of a parameter: array}; or None
where no layer does exactly that, and the node stays an operator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.graph import MergeMode
from tapeprop.interchange.onnx.converters.windows import auto_pad, windows
from tapeprop.interchange.onnx.model import Node
from tapeprop.ir import Tensor, UndecidedError
from tapeprop.layers import (
    Activation,
    AvgPool1D,
    AvgPool2D,
    AvgPool3D,
    BatchNorm1D,
    BatchNorm2D,
    BatchNorm3D,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose1D,
    ConvTranspose2D,
    ConvTranspose3D,
    Dense,
    DenseND,
    DepthConv1D,
    DepthConv2D,
    DepthConv3D,
    Dropout,
    Embedding,
    Flatten,
    GlobalAvgPool1D,
    GlobalAvgPool2D,
    GlobalAvgPool3D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    GlobalMaxPool3D,
    GroupNorm,
    Identity,
    InstanceNorm,
    Layer,
    LayerNorm,
    LocalResponseNorm,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
    Reshape,
    RMSNorm,
    Transpose,
)

__all__ = ["BECOMES", "MERGES", "dense", "embedding", "equivalent_of", "merge_of"]

Found = tuple[Layer, Mapping[str, np.ndarray]] | None

#: {operator: merge} of operators all of whose inputs are data.
MERGES = {
    "Add": MergeMode.SUM,
    "Sum": MergeMode.SUM,
    "Mul": MergeMode.HADAMARD,
    "Sub": MergeMode.SUB,
    "Max": MergeMode.MAX,
    "Min": MergeMode.MIN,
    "Mean": MergeMode.AVG,
    "MatMul": MergeMode.DOT,
}

_EQUIVALENTS: dict[str, Callable[..., Found]] = {}


#: {operator: the layers that it can become, in Markdown}.
BECOMES: dict[str, str] = {}


def equivalent(*names: str, becomes: str | tuple[str, ...]) -> Callable[[Callable[..., Found]], Callable[..., Found]]:
    """Decorator: the function finds a layer for these operators. becomes: which each, for docs/onnx.md."""

    def registered(function: Callable[..., Found]) -> Callable[..., Found]:
        _EQUIVALENTS.update(dict.fromkeys(names, function))
        BECOMES.update(zip(names, (becomes,) if isinstance(becomes, str) else becomes))
        return function

    return registered


def equivalent_of(node: Node, x: Tensor, y: Tensor, arrays: list[np.ndarray | None]) -> Found:
    """The layer that does what a node does, and what its parameters are; None where there is none."""
    find = _EQUIVALENTS.get(node.op)
    if find is None:
        return None
    try:
        found = find(node, x, y, *arrays)
    except (GraphError, UndecidedError):  # arguments that no layer takes, or that depend on open sizes
        return None
    if found is not None:
        own = dict(found[0].members())
        if any(own[name].shape != array.shape for name, array in found[1].items()):  # type: ignore[union-attr]
            return None
    return found


def merge_of(node: Node, tensors: list[Tensor]) -> MergeMode | None:
    """The merge that does what a node does with its inputs."""
    if node.op == "Concat":
        axis = node.get("axis")
        return MergeMode.CHCAT if tensors[0].ndim > 1 and axis % tensors[0].ndim == 1 else None
    if node.op == "MatMul" and min(tensor.ndim for tensor in tensors) < 2:
        return None
    return MERGES.get(node.op)


def _known(**arrays: np.ndarray | None) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if array is not None}


# ---- products


@equivalent("Conv", becomes="`Conv1D/2D/3D`, `DepthConv1D/2D/3D`")
def _conv(node: Node, x: Tensor, y: Tensor, w: np.ndarray, b: np.ndarray | None = None) -> Found:
    at = _windows(node, x, w.shape[2:])
    if at is None:
        return None
    groups = node.get("group", 1)
    sizes: dict[str, Any] = {
        "filter_size": _short(at.kernel),
        "stride": _short(at.strides),
        "padding": _short(at.pads),
        "dilation": _short(at.dilations),
    }
    channels, out = w.shape[1] * groups, w.shape[0]
    layer: Layer
    if groups > 1 and groups == channels:
        depthwise = (DepthConv1D, DepthConv2D, DepthConv3D)[at.rank - 1]
        layer = depthwise(channels, **sizes, bias=b is not None, multiplier=out // channels)
    else:
        layer = (Conv1D, Conv2D, Conv3D)[at.rank - 1](channels, out, **sizes, groups=groups, bias=b is not None)
    return layer, _known(weight=w, bias=b)


@equivalent("ConvTranspose", becomes="`ConvTranspose1D/2D/3D`")
def _conv_transpose(node: Node, x: Tensor, y: Tensor, w: np.ndarray, b: np.ndarray | None = None) -> Found:
    if auto_pad(node) != "NOTSET" or "output_shape" in node.attributes:
        return None
    at = _windows(node, x, w.shape[2:])
    if at is None:
        return None
    groups = node.get("group", 1)
    layer = (ConvTranspose1D, ConvTranspose2D, ConvTranspose3D)[at.rank - 1](
        w.shape[0],
        w.shape[1] * groups,
        _short(at.kernel),
        _short(at.strides),
        _short(at.pads),
        _short(tuple(node.get("output_padding", [0] * at.rank))),
        groups,
        _short(at.dilations),
        bias=b is not None,
    )
    return layer, _known(weight=w, bias=b)


def _windows(node: Node, x: Tensor, kernel: Any) -> Any:
    """The windows of a node, None where they depend on the size of x."""
    if auto_pad(node).startswith("SAME") and any(step > 1 for step in node.get("strides", ())):
        return None
    return windows(node, x, kernel)


def _short(given: Any) -> Any:
    """One number for all axes and sides, where they have the same."""
    found = given
    while isinstance(found, tuple) and len(set(found)) == 1:
        found = found[0]
    return given if isinstance(found, tuple) else found  # (0, 1) for each axis is not 0 and 1 for two


@equivalent("Gemm", becomes="`Dense`")
def _gemm(node: Node, x: Tensor, y: Tensor, w: np.ndarray, b: np.ndarray | None = None) -> Found:
    if node.get("alpha", 1.0) != 1 or node.get("beta", 1.0) != 1 or node.get("transA", 0):
        return None
    return dense(x, w if node.get("transB", 0) else w.T, b)


@equivalent("MatMul", becomes="`Dense`, `DenseND`")
def _matmul(node: Node, x: Tensor, y: Tensor, w: np.ndarray) -> Found:
    return dense(x, w.T, None) if w.ndim == 2 else None


def dense(x: Tensor, w: np.ndarray, b: np.ndarray | None) -> Found:
    """The layer x w^T + b along the last axis."""
    if x.ndim < 2 or (b is not None and b.shape != w.shape[:1]):
        return None
    layer = (Dense if x.ndim == 2 else DenseND)(w.shape[1], w.shape[0], bias=b is not None)
    return layer, _known(weight=w, bias=b)


def embedding(weight: np.ndarray) -> Found:
    """The layer that takes rows of a matrix."""
    return Embedding(*weight.shape), _known(weight=weight)


# ---- norms


@equivalent("BatchNormalization", becomes="`BatchNorm1D/2D/3D`")
def _batch_norm(node: Node, x: Tensor, y: Tensor, *arrays: np.ndarray) -> Found:
    if node.get("training_mode", 0) or not 2 <= x.ndim <= 5:
        return None
    kind = (BatchNorm1D, BatchNorm1D, BatchNorm2D, BatchNorm3D)[x.ndim - 2]
    layer = kind(len(arrays[0]), node.get("momentum", 0.9), node.get("epsilon", 1e-5))
    return layer, dict(zip(("weight", "bias", "running_mean", "running_var"), arrays))


@equivalent("LayerNormalization", "RMSNormalization", becomes=("`LayerNorm`", "`RMSNorm`"))
def _layer_norm(node: Node, x: Tensor, y: Tensor, w: np.ndarray, b: np.ndarray | None = None) -> Found:
    shape: Any = x.shape[node.get("axis", -1) :]
    epsilon = node.get("epsilon", 1e-5)
    if node.get("stash_type", 1) != 1 or w.shape != shape or (b is not None and b.shape != shape):
        return None
    layer = RMSNorm(shape, epsilon) if node.op == "RMSNormalization" else LayerNorm(shape, epsilon, bias=b is not None)
    return layer, _known(weight=w, bias=b)


@equivalent("InstanceNormalization", becomes="`InstanceNorm`")
def _instance_norm(node: Node, x: Tensor, y: Tensor, w: np.ndarray, b: np.ndarray) -> Found:
    return InstanceNorm(len(w), node.get("epsilon", 1e-5), affine=True), _known(weight=w, bias=b)


@equivalent("GroupNormalization", becomes="`GroupNorm`")
def _group_norm(node: Node, x: Tensor, y: Tensor, w: np.ndarray, b: np.ndarray) -> Found:
    if node.opset < 21 or node.get("stash_type", 1) != 1:
        return None
    return GroupNorm(node.get("num_groups"), len(w), node.get("epsilon", 1e-5)), _known(weight=w, bias=b)


@equivalent("LRN", becomes="`LocalResponseNorm`")
def _lrn(node: Node, x: Tensor, y: Tensor) -> Found:
    size = node.get("size")
    if size % 2 == 0:  # an even window leans to the other side
        return None
    return LocalResponseNorm(size, node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)), {}


# ---- pools


@equivalent("MaxPool", "AveragePool", becomes=("`MaxPool1D/2D/3D`", "`AvgPool1D/2D/3D`"))
def _pool(node: Node, x: Tensor, y: Tensor) -> Found:
    at = _windows(node, x, node.get("kernel_shape"))
    if at is None:
        return None
    window = _short(at.kernel), _short(at.strides), _short(at.pads)
    if node.op == "MaxPool":
        kinds = (MaxPool1D, MaxPool2D, MaxPool3D)
        return kinds[at.rank - 1](*window, _short(at.dilations), at.ceil_mode), {}
    if set(at.dilations) != {1}:
        return None
    counted = bool(node.get("count_include_pad", 0))
    return (AvgPool1D, AvgPool2D, AvgPool3D)[at.rank - 1](*window, counted, at.ceil_mode), {}


@equivalent("GlobalAveragePool", "GlobalMaxPool", becomes=("`GlobalAvgPool1D/2D/3D`", "`GlobalMaxPool1D/2D/3D`"))
def _global_pool(node: Node, x: Tensor, y: Tensor) -> Found:
    means, maxima = (
        (GlobalAvgPool1D, GlobalAvgPool2D, GlobalAvgPool3D),
        (GlobalMaxPool1D, GlobalMaxPool2D, GlobalMaxPool3D),
    )
    return (means if node.op == "GlobalAveragePool" else maxima)[x.ndim - 3](), {}


# ---- activations

SELU = (1.6732632423543772, 1.0507009873554805)  # alpha and scale, Klambauer et al. 2017

_PLAIN: dict[str, type[Layer]] = {
    "HardSwish": Activation.HardSwish,
    "Identity": Identity,
    "Mish": Activation.Mish,
    "Relu": Activation.ReLU,
    "Sigmoid": Activation.Sigmoid,
    "Softplus": Activation.Softplus,
    "Tanh": Activation.Tanh,
}


@equivalent(*_PLAIN, becomes=tuple(f"`{layer.__qualname__}`" for layer in _PLAIN.values()))
def _plain(node: Node, x: Tensor, y: Tensor) -> Found:
    return _PLAIN[node.op](), {}


BECOMES["Gather"] = "`Embedding`"  # see `embedding`


@equivalent("LeakyRelu", becomes="`Activation.LeakyReLU`")
def _leaky_relu(node: Node, x: Tensor, y: Tensor) -> Found:
    return Activation.LeakyReLU(node.get("alpha", 0.01)), {}


@equivalent("Elu", becomes="`Activation.ELU`")
def _elu(node: Node, x: Tensor, y: Tensor) -> Found:
    return Activation.ELU(node.get("alpha", 1.0)), {}


@equivalent("Selu", becomes="`Activation.SELU`")
def _selu(node: Node, x: Tensor, y: Tensor) -> Found:
    constants = node.get("alpha", SELU[0]), node.get("gamma", SELU[1])
    return (Activation.SELU(), {}) if np.allclose(constants, SELU, rtol=1e-6, atol=0) else None


@equivalent("Swish", becomes="`Activation.Swish`")
def _swish(node: Node, x: Tensor, y: Tensor) -> Found:
    return (Activation.Swish(), {}) if node.get("alpha", 1.0) == 1 else None


@equivalent("Gelu", becomes="`Activation.GELU`")
def _gelu(node: Node, x: Tensor, y: Tensor) -> Found:
    return Activation.GELU(node.get("approximate", "none") == "tanh"), {}


@equivalent("Softmax", becomes="`Activation.Softmax`")
def _softmax(node: Node, x: Tensor, y: Tensor) -> Found:
    return Activation.Softmax(node.get("axis", -1)), {}


@equivalent("Clip", becomes="`Activation.ReLU6`")
def _clip(node: Node, x: Tensor, y: Tensor, least: np.ndarray | None = None, most: np.ndarray | None = None) -> Found:
    if least is None or most is None or (float(least), float(most)) != (0.0, 6.0):
        return None
    return Activation.ReLU6(), {}


# ---- shapes


@equivalent("Dropout", becomes="`Dropout`")
def _dropout(node: Node, x: Tensor, y: Tensor, ratio: Any = None, training_mode: Any = None) -> Found:
    """It drops in training, as it did in the model's own."""
    return Dropout(0.5 if ratio is None else float(ratio)), {}


@equivalent("Transpose", becomes="`Transpose`")
def _transpose(node: Node, x: Tensor, y: Tensor) -> Found:
    return Transpose(tuple(node.get("perm", range(x.ndim - 1, -1, -1)))), {}


@equivalent("Flatten", "Reshape", becomes=("`Flatten`", "`Flatten`, `Reshape`"))
def _reshape(node: Node, x: Tensor, y: Tensor, *shape: Any) -> Found:
    """Where each sample keeps its elements. An open batch tells: with a size that is known, another rule could give the same."""
    if not x.ndim or y.ndim < 2 or isinstance(x.shape[0], int) or x.shape[0] != y.shape[0]:
        return None
    if y.ndim == 2:
        return Flatten(), {}
    if not all(isinstance(size, int) for size in y.shape[1:]):
        return None
    return Reshape(*y.shape[1:]), {}
