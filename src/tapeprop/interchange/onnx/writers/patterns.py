"""Instructions that are one operator of ONNX together: what is recorded in simpler ops, or by way of another shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.interchange.onnx.writers.steps import Pattern, Settings, exact, formula_of, producer, renamed
from tapeprop.ir import Constant, Instruction, Tensor

__all__ = ["PATTERNS"]

Found = tuple[str, Sequence[Tensor], Mapping[str, Any]] | None


# ---- batch norm: (x - mean) * (gamma / sqrt(variance + epsilon)) + beta, see `ops.norm.batch_norm_inference`


def batch_norm(call: Instruction, settings: Settings) -> Found:
    """("batch_norm_inference", [x, gamma, beta, mean, variance], {"epsilon"})."""
    (y,) = call.results
    scaled, beta = _pair(formula_of(y, "add"))
    centred, scale = _pair(formula_of(scaled, "multiply"))
    x, mean = _pair(formula_of(centred, "subtract"))
    if x is None or x.shape != y.shape or x.ndim < 2:
        return None
    column = (x.shape[1], *[1] * (x.ndim - 2))
    gamma, deviation = _pair(formula_of(_vector(scale, column), "divide"))
    variance, epsilon = _operands(formula_of(_only(formula_of(deviation, "sqrt")), "add"))
    if not isinstance(epsilon, float) or not exact(epsilon, y.dtype):
        return None
    vectors = [_vector(beta, column), _vector(mean, column), gamma, variance]
    if not all(isinstance(v, Tensor) and v.shape == x.shape[1:2] for v in vectors):
        return None
    beta, mean, gamma, variance = vectors
    return "batch_norm_inference", [x, gamma, beta, mean, variance], {"epsilon": epsilon}


def _operands(found: list[Tensor | float] | None) -> tuple[Any, Any]:
    return (found[0], found[1]) if found is not None else (None, None)


def _pair(found: list[Tensor | float] | None) -> tuple[Any, Any]:
    """Two operands that are tensors."""
    a, b = _operands(found)
    return (a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else (None, None)


def _only(found: list[Tensor | float] | None) -> Any:
    return None if found is None else found[0]


def _vector(tensor: Any, column: tuple[Any, ...]) -> Any:
    """The vector of channels that stands in the shape in which it broadcasts; None where this is no such column."""
    if not isinstance(tensor, Tensor) or tensor.shape != column:
        return None
    return tensor if len(column) == 1 else renamed(tensor)


# ---- layer, group, instance and RMS norm: a row norm between two reshapes, see `ops.row_norm`


def row_norm(call: Instruction, settings: Settings) -> Found:
    """("layer_norm", "group_norm", "instance_norm" or "rms_norm", [x, gamma, beta], attributes).

    layer_norm, rms_norm: axis, the first of those that are normalised. group_norm: groups.
    """
    y = call.results[0]
    norm = call if call.op.name == "row_norm" else producer(call.operands[0], "row_norm")
    if norm is None:
        return None
    rows, gamma, beta = norm.operands
    samples, period, segments, inner = rows.shape
    x = renamed(rows)
    if x.shape != y.shape:
        if rows.shape != y.shape:
            return None
        x = rows
    epsilon, center = norm.attributes["epsilon"], norm.attributes["center"]
    if not exact(epsilon, y.dtype):
        return None
    attributes: dict[str, Any] = {"epsilon": epsilon}
    if period == segments == 1 and filled_with(gamma, 1.0) and filled_with(beta, 0.0):  # a row may be anything then
        groups = _groups(x, samples) if center else None
        if groups is not None:
            kind = "instance_norm" if groups == x.shape[1] else "group_norm"
            return kind, [x, gamma, beta], {**attributes, "groups": groups}
        segments, inner = inner, 1
    if period == 1 and inner == 1:
        axis = _first_axis(x, samples, segments)
        known = axis is not None and all(isinstance(size, int) for size in x.shape[axis:])
        if not known or (not center and settings.opset < 23):
            return None
        return "layer_norm" if center else "rms_norm", [x, gamma, beta], {**attributes, "axis": axis}
    if not center or x.ndim < 3 or x.shape[:1] != (samples,) or x.shape[1] != period * segments:
        return None
    if segments == 1:
        return "instance_norm", [x, gamma, beta], attributes
    return "group_norm", [x, gamma, beta], {**attributes, "groups": period}


def _groups(x: Tensor, samples: Any) -> int | None:
    """The number of groups of channels, more than one, if x (N, C, ...) has so many rows; None where last axes are the rows."""
    if x.ndim < 3 or not isinstance(x.shape[1], int):
        return None
    channels = x.shape[1]
    most = channels if x.ndim > 3 else channels - 1  # of three axes, the last one is what others call a layer norm
    return next((n for n in range(2, most + 1) if channels % n == 0 and x.shape[0] * n == samples), None)


def _first_axis(x: Tensor, samples: Any, elements: Any) -> int | None:
    """The axis from which on x has so many elements, and before it so many samples."""
    behind: Any = 1
    for axis in range(x.ndim - 1, -1, -1):
        behind = behind * x.shape[axis]
        before: Any = 1
        for size in x.shape[:axis]:
            before = before * size
        if behind == elements and before == samples:
            return axis
    return None


# ---- convolutions and pools of one axis are images with a single row; pools of three are two of images


def convolution_of_rows(call: Instruction, settings: Settings) -> Found:
    """("conv2d" or "conv2d_input_grad", [x, w, b], attributes) with one axis less in all of them."""
    (y,) = call.results
    for op in ("conv2d", "conv2d_input_grad"):
        made = producer(call.operands[0], op)
        if made is None or y.ndim != 3 or made.results[0].shape != _with_row(y):
            continue
        x, w = (renamed(operand) for operand in made.operands[:2])
        if x.ndim == w.ndim == 3 and [_with_row(x), _with_row(w)] == [t.shape for t in made.operands[:2]]:
            return op, [x, w, *made.operands[2:]], _last_axis(made.attributes)
    return None


def transposed_with_bias(call: Instruction, settings: Settings) -> Found:
    """("conv2d_input_grad" or "conv3d_input_grad", [x, w, b], attributes): a bias that was added, see `ops.conv_transpose`."""
    (y,) = call.results
    product, bias = _pair(formula_of(y, "add"))
    if product is None or product.shape != y.shape or product.producer is None or y.ndim < 3:
        return None
    vector = _vector(bias, (y.shape[1], *[1] * (y.ndim - 2)))
    if vector is None or vector.ndim != 1:
        return None
    made = product.producer
    if made.op.name in ("conv2d_input_grad", "conv3d_input_grad"):
        return made.op.name, [*made.operands, vector], made.attributes
    found = convolution_of_rows(made, settings) if made.op.name == "reshape" else None
    return None if found is None or found[0] != "conv2d_input_grad" else (found[0], [*found[1], vector], found[2])


def pool_of_rows(call: Instruction, settings: Settings) -> Found:
    """("max_pool2d" or "avg_pool2d", [x], attributes) with one axis less."""
    (y,) = call.results
    for op in ("max_pool2d", "avg_pool2d"):
        made = producer(call.operands[0], op)
        if made is None or y.ndim != 3 or made.results[0].shape != _with_row(y):
            continue
        x = renamed(made.operands[0])
        if x.ndim == 3 and made.operands[0].shape == _with_row(x):
            return op, [x], _last_axis(made.attributes)
    return None


def pool_of_volumes(call: Instruction, settings: Settings) -> Found:
    """("max_pool2d" or "avg_pool2d", [x], attributes) with one axis more: see `ops.pool.functions`."""
    (y,) = call.results
    for op in ("max_pool2d", "avg_pool2d"):
        deep = producer(call.operands[0], op)
        images = None if deep is None or y.ndim != 5 else producer(renamed(deep.operands[0]), op)
        if deep is None or images is None:
            continue
        x = renamed(images.operands[0])
        if x.ndim != 5 or y.shape[:2] != x.shape[:2]:
            continue
        n, c, depth, height, width = x.shape
        high, wide = images.results[0].shape[2:]
        shapes = (images.operands[0].shape, deep.operands[0].shape, deep.results[0].shape)
        expected = ((n, c * depth, height, width), (n, c, depth, high * wide), (n, c, y.shape[2], high * wide))
        alone = all(values[1] == ((0, 0) if name == "padding" else 1) for name, values in _per_axis(deep.attributes))
        if shapes != expected or y.shape[3:] != (high, wide) or not alone:
            continue
        default = {"dilation": (1, 1)} if "dilation" in deep.attributes or "dilation" in images.attributes else {}
        first, second = {**default, **deep.attributes}, {**default, **images.attributes}
        joined = {name: (values[0], *second[name]) for name, values in _per_axis(first)}
        return op, [x], {**second, **joined}
    return None


def _per_axis(attributes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The attributes that have a value for each axis."""
    return [(name, value) for name, value in attributes.items() if isinstance(value, tuple)]


def _with_row(tensor: Tensor) -> tuple[Any, ...]:
    return (*tensor.shape[:2], 1, *tensor.shape[2:])


def _last_axis(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value[1:] if isinstance(value, tuple) else value for name, value in attributes.items()}


# ---- constants


def filled_with(tensor: Tensor, number: float) -> bool:
    """Whether a tensor is a constant, under any shape, that holds this number alone."""
    tensor = renamed(tensor)
    return isinstance(tensor.source, Constant) and bool(np.all(tensor.source.array == number))


#: By the op of the last instruction.
PATTERNS: dict[str, list[Pattern]] = {
    "elementwise": [batch_norm, transposed_with_bias],
    "reshape": [row_norm, convolution_of_rows, pool_of_rows, pool_of_volumes],
    "row_norm": [row_norm],
}
