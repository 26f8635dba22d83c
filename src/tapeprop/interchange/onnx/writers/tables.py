"""A table of weights along an axis: as the Resize or the Pad that it was made for, where that can be told, else as a gather or a matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapeprop.interchange.onnx.writers.builder import Builder
from tapeprop.interchange.onnx.writers.registry import writer
from tapeprop.interchange.onnx.writers.steps import Step, exact, producer
from tapeprop.ir import Constant, Instruction, Tensor
from tapeprop.ops.resample import tables

#: {mode of Pad: (its table, the first opset that has it)}.
_BORDERS = {"reflect": (tables.reflecting, 1), "edge": (tables.replicating, 1), "wrap": (tables.circular, 19)}

Resampled = Step | Instruction


@writer("resample")
def resample(b: Builder, step: Step, x: str, *_: str) -> str:
    """One operator for what was done to other axes before as well, if that was of the same kind."""
    resized = _as_resize(step)
    if resized is not None:
        return _resize(b, *_run(step, lambda call: _as_resize(call) == resized), resized)
    mode = _as_border(step, b.opset)[0]
    if mode:
        source, calls = _run(step, lambda call: _as_border(call, b.opset)[0] == mode)
        widths = [0] * (2 * source.ndim)
        for call in calls:
            axis = call.attributes["axis"]
            widths[axis], widths[source.ndim + axis] = _as_border(call, b.opset)[1:]
        return b.node("Pad", [b.value(source), b.ints(widths)], mode=mode)
    return _by_table(b, step, x)


def _run(step: Step, alike: Callable[[Resampled], bool]) -> tuple[Tensor, list[Resampled]]:
    """(what it starts from, the calls): those that lead to this one, each along an axis of its own, if they are alike."""
    source, axes = step.operands[0], {step["axis"]}
    found: list[Resampled] = [step]
    while (
        (before := producer(source, "resample")) is not None and before.attributes["axis"] not in axes and alike(before)
    ):
        axes.add(before.attributes["axis"])
        found.append(before)
        source = before.operands[0]
    return source, found


def _resize(b: Builder, source: Tensor, calls: Sequence[Resampled], settings: dict[str, Any]) -> str:
    """By scales where float32, which they are, holds them; else by sizes, from which others may take the scale as exactly as they like."""
    ratios = {call.attributes["axis"]: call.attributes["outputs"] / call.attributes["length"] for call in calls}
    sizes = {call.attributes["axis"]: call.attributes["outputs"] for call in calls}
    if all(float(np.float32(ratio)) == ratio for ratio in ratios.values()):
        scales = [ratios.get(axis, 1.0) for axis in range(source.ndim)]
        return b.node("Resize", [b.value(source), "", b.constant(scales, "float32")], **settings)
    if b.opset >= 18:
        axes = sorted(sizes)
        wanted = b.ints([sizes[axis] for axis in axes])
        return b.node("Resize", [b.value(source), "", "", wanted], **settings, axes=axes)
    wanted = b.sizes([sizes.get(axis, size) for axis, size in enumerate(source.shape)])
    return b.node("Resize", [b.value(source), "", "", wanted], **settings)


def _by_table(b: Builder, step: Step, x: str) -> str:
    """Elements gathered where each result is one of them, else the product with the table as a matrix."""
    offsets, sources, weights = _table(step)
    axis, rank = step["axis"], step.operands[0].ndim
    if len(sources) == step["outputs"] and (weights == 1).all():
        return b.node("Gather", [x, b.ints(sources.tolist())], axis=axis)
    matrix = np.zeros((step["outputs"], step["length"]), step.results[0].dtype)
    np.add.at(matrix, (np.repeat(np.arange(step["outputs"]), np.diff(offsets)), sources), weights)
    if axis == rank - 1:
        return b.node("MatMul", [x, b.constant(matrix.T)])
    if axis == rank - 2:
        return b.node("MatMul", [b.constant(matrix), x])
    order = [*(i for i in range(rank) if i != axis), axis]
    turned = b.node("MatMul", [b.node("Transpose", [x], perm=order), b.constant(matrix.T)])
    return b.node("Transpose", [turned], perm=[order.index(i) for i in range(rank)])


def _table(call: Resampled) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(offsets, sources, weights) of the map."""
    places, weights = (t.source for t in call.operands[1:3])
    assert isinstance(places, Constant)
    assert isinstance(weights, Constant)
    count = call.attributes["outputs"] + 1
    return places.array[:count], places.array[count:], weights.array


def _as_resize(call: Resampled) -> dict[str, Any] | None:
    """The attributes of the Resize that has this table; None where there is none, or where its scale, a float32, would change it."""
    length, outputs = call.attributes["length"], call.attributes["outputs"]
    scale = np.float32(outputs / length)
    if not exact(outputs / length, call.results[0].dtype) or np.floor(scale * np.float32(length)) != outputs:
        return None
    table = _table(call)
    for way in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
        places = tables.coordinates(length, outputs, None, way)
        for mode, made in (
            ("linear", tables.linear(length, places)),
            ("cubic", tables.cubic(length, places, tables.CUBIC_COEFF_A)),
        ):
            if _equal(made, *table):
                return {"mode": mode, "coordinate_transformation_mode": way}
        for rounding in tables.NEAREST_MODES if way in ("half_pixel", "asymmetric") else ():
            rounded = tables.nearest(length, tables.coordinates(length, outputs, float(scale), way), rounding)
            if _equal(tables.nearest(length, places, rounding), *table) and _equal(rounded, *table):
                return {"mode": "nearest", "coordinate_transformation_mode": way, "nearest_mode": rounding}
    return None


def _as_border(call: Resampled, opset: int) -> tuple[str, int, int]:
    """(mode, before, after) of the Pad that has this table; ("", 0, 0) where there is none."""
    length, more = call.attributes["length"], call.attributes["outputs"] - call.attributes["length"]
    _, sources, weights = _table(call)
    if more < 1 or len(sources) != length + more or (weights != 1).any():
        return "", 0, 0
    for mode, (made, since) in _BORDERS.items():
        most = {"reflect": length - 1, "wrap": length}.get(mode, more)
        for before in range(max(0, more - most), min(more, most) + 1) if opset >= since else ():
            if np.array_equal(made(length, before, more - before).sources, sources):
                return mode, before, more - before
    return "", 0, 0


def _equal(made: tables.Table, offsets: np.ndarray, sources: np.ndarray, weights: np.ndarray) -> bool:
    return (
        np.array_equal(made.offsets, offsets)
        and np.array_equal(made.sources, sources)
        and np.array_equal(made.weights.astype(weights.dtype), weights)
    )
