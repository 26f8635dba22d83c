"""Resize: a sparse linear map along one axis after the other, whose weights follow from the attributes.

As in onnx.reference.ops.op_resize, the axes are independent of each other: an element of the result is a sum over the elements
around the place in x on which it lies. Where onnxruntime differs, in align_corners with scales that leave a fraction of an element,
this follows ONNX' own cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeprop import ops
from tapeprop.interchange.onnx.converters.registry import converter
from tapeprop.interchange.onnx.converters.support import check_table
from tapeprop.interchange.onnx.converters.windows import known_size
from tapeprop.interchange.onnx.model import Node
from tapeprop.ir import Dim, Size, Tensor
from tapeprop.ir.dims import text
from tapeprop.ops.resample import resample
from tapeprop.ops.resample.tables import COORDINATES, CUBIC_COEFF_A, NEAREST_MODES, Table, nearest

CROP = "tf_crop_and_resize"
#: {attribute: (default, allowed)}
CHOICES = {
    "mode": ("nearest", ("nearest", "linear", "cubic")),
    "coordinate_transformation_mode": ("half_pixel", (*COORDINATES, CROP)),
    "nearest_mode": ("round_prefer_floor", NEAREST_MODES),
    "keep_aspect_ratio_policy": ("stretch", ("stretch", "not_larger", "not_smaller")),
}
#: The radius of each filter.
RADIUS = {"linear": 1, "cubic": 2}


@dataclass(frozen=True)
class _Change:
    """An axis that changes: its size, the size of the result, and the scale; roi: the part of it, for tf_crop_and_resize."""

    axis: int
    length: int
    outputs: int
    scale: float
    roi: tuple[float, float]

    @property
    def exact(self) -> bool:
        """Whether the scale is the quotient of the sizes, which is then divided by once."""
        return self.scale == self.outputs / self.length


@converter("Resize", known=[1, 2, 3])
def resize(node, x, roi=None, scales=None, sizes=None):
    """x with axes of other sizes. These have to be known, as have those of x along the axes that change."""
    chosen = {name: _choice(node, name) for name in CHOICES}
    for name in ("cubic_coeff_a", "exclude_outside"):
        node.get(name)  # of some modes alone
    if node.get("antialias", 0) and chosen["mode"] == "nearest":
        raise node.fail("antialias with linear or cubic", "mode 'nearest'")
    changes = _changes(node, x, roi, scales, sizes, chosen)
    outside = []
    # what shrinks comes first: the least work
    for change in sorted(changes, key=lambda change: (change.outputs > change.length, -change.axis)):
        check_table(node, max(change.length, change.outputs))
        places = _places(change, chosen["coordinate_transformation_mode"])
        if chosen["coordinate_transformation_mode"] == CROP:
            outside.append((change.axis, (places < 0) | (places > change.length - 1)))
        if chosen["mode"] == "nearest":
            table = nearest(change.length, places, chosen["nearest_mode"])
        else:
            table = _filtered(node, change, places, chosen["mode"])
        x = resample(x, table, change.axis)
    return _extrapolated(x, outside, node.get("extrapolation_value", 0.0))


def _choice(node: Node, name: str) -> str:
    default, allowed = CHOICES[name]
    given = node.get(name, default)
    if given not in allowed:
        raise node.fail(f"{name} to be one of {', '.join(allowed)}", repr(given))
    return given


# ---- which axes change


def _changes(node: Node, x: Tensor, roi: Any, scales: Any, sizes: Any, chosen: dict[str, str]) -> list[_Change]:
    """GraphError for inputs that do not fit."""
    axes = [axis + x.ndim if axis < 0 else axis for axis in node.get("axes", range(x.ndim))]
    if len(set(axes)) != len(axes) or not all(0 <= axis < x.ndim for axis in axes):
        raise node.fail(f"axes of a tensor of shape {text(x.shape)}, each once", list(node.get("axes")))
    given = {name: list(v) for name, v in (("scales", scales), ("sizes", sizes)) if v is not None and np.size(v)}
    if len(given) != 1:
        raise node.fail("either scales or sizes", " and ".join(given) or "neither")
    ((name, values),) = given.items()
    if len(values) != len(axes):
        raise node.fail(f"{name} for {len(axes)} axes", values)
    parts = [(0.0, 1.0)] * len(axes)
    if chosen["coordinate_transformation_mode"] == CROP:
        if np.size(roi) != 2 * len(axes):
            raise node.fail(f"a roi of {2 * len(axes)} numbers for {CROP}", roi)
        parts = [(float(a), float(b)) for a, b in zip(roi[: len(axes)], roi[len(axes) :])]
    if name == "sizes" and chosen["keep_aspect_ratio_policy"] != "stretch":
        resized = _of_one_scale(node, x, axes, values, chosen["keep_aspect_ratio_policy"])
    else:
        find = _by_size if name == "sizes" else _by_scale
        resized = [
            None if part == (0, 1) and _stays(x.shape[axis], value, name) else find(node, x, axis, value)
            for axis, value, part in zip(axes, values, parts)
        ]
    return [
        _Change(axis, found[0], found[1], found[2], part)
        for axis, found, part in zip(axes, resized, parts)
        if found is not None
    ]


def _stays(size: Size, value: Any, name: str) -> bool:
    """Whether an axis, which may be open, keeps its size."""
    return value == 1 if name == "scales" else size == value


def _by_size(node, x, axis, size):
    """(length, outputs, scale)."""
    if isinstance(size, Dim) or size < 1:
        raise node.fail("sizes that are known and >= 1", size)
    length = known_size(node, x, axis)
    return length, int(size), int(size) / length


def _by_scale(node, x, axis, scale):
    """(length, outputs, scale); outputs in float32, as ONNX' shape inference has it."""
    if not 0 < scale < float("inf"):
        raise node.fail("scales > 0", scale)
    length = known_size(node, x, axis)
    outputs = int(np.floor(np.float32(length) * np.float32(scale)))
    if outputs < 1:
        raise node.fail(f"scales that leave at least one element of {text(x.shape)}", scale)
    return length, outputs, float(scale)


def _of_one_scale(node, x, axes, sizes, policy):
    """[(length, outputs, scale)]: one scale for all axes, so that none becomes larger (smaller) than its size says."""
    found = [_by_size(node, x, axis, size) for axis, size in zip(axes, sizes)]
    scale = (min if policy == "not_larger" else max)(scale for _, _, scale in found)
    return [(length, int(scale * length + 0.5), scale) for length, _, _ in found]


# ---- where elements lie, and what they are made of


def _places(change: _Change, how: str) -> np.ndarray:
    """Where in x each element of the result lies. Where a formula has the result's size, it is length * scale, fractions included."""
    i, length = np.arange(change.outputs, dtype=np.float64), change.length
    whole = change.outputs if change.exact else change.scale * length

    def shrunk(places):
        return places * length / whole if change.exact else places / change.scale

    if how == "asymmetric":
        return shrunk(i)
    if how == "align_corners":
        return np.zeros_like(i) if whole == 1 else i * (length - 1) / (whole - 1)
    if how == CROP:
        first, last = change.roi
        inner = (last - first) * (length - 1)
        return first * (length - 1) + (np.full_like(i, inner / 2) if whole == 1 else i * inner / (whole - 1))
    if how == "pytorch_half_pixel" and whole == 1:
        return np.full_like(i, -0.5)
    centred = shrunk(i + 0.5) - 0.5
    return centred + length / 2 * (1 - change.outputs / whole) if how == "half_pixel_symmetric" else centred


def _filtered(node: Node, change: _Change, places: np.ndarray, mode: str) -> Table:
    """Sums over the elements around each place, weighted by their distance; elements beyond the ends are those at the ends.

    With antialias the filter is as many times as wide as the result is smaller; exclude_outside leaves out what lies beyond the ends.
    """
    a = node.get("cubic_coeff_a", CUBIC_COEFF_A)
    narrow = min(change.scale, 1.0) if node.get("antialias", 0) else 1.0
    reach = int(np.ceil(RADIUS[mode] / narrow))
    sources = np.floor(places)[:, None] + np.arange(1 - reach, 1 + reach)
    distances = np.abs(sources - places[:, None]) * narrow
    weights = np.maximum(1 - distances, 0) if mode == "linear" else _cubic(distances, a)
    if node.get("exclude_outside", 0):
        weights = np.where((sources < 0) | (sources >= change.length), 0, weights)
    weights = weights / weights.sum(1, keepdims=True)
    used = weights != 0  # so that an infinite neighbour of weight 0 does no harm
    offsets = np.concatenate([[0], np.cumsum(used.sum(1))]).astype(np.int64)
    inside = np.clip(sources, 0, change.length - 1).astype(np.int64)
    return Table(change.length, offsets, inside[used], weights[used])


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """Keys 1981, eq. 4 with cubic_coeff_a for -1/2; t >= 0."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _extrapolated(x: Tensor, outside: list[tuple[int, np.ndarray]], value: float) -> Tensor:
    """x with the value where an element lies outside along any axis."""
    beyond = np.zeros((1,) * x.ndim, bool)
    for axis, found in outside:
        beyond = beyond | found.reshape([-1 if place == axis else 1 for place in range(x.ndim)])
    if not beyond.any():
        return x
    return ops.where(beyond.astype(np.int64), np.float32(value), x)
