"""A sparse linear map along one axis, and what is written in it: resizing, and padding with elements of the operand.

The map is a table of constants (`tables.Table`), made when the op is recorded; so the axis has to have a known size. The gradient
is the same op with the table transposed, in which each element of the operand adds up what it went into, in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.ir import Dim, Tensor, UndecidedError
from tapeprop.ir.dims import same, text
from tapeprop.ops.op import (
    NARROW,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    as_tensor,
    cuda_launch,
    inverse,
    launch,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.resample import tables
from tapeprop.ops.resample.tables import Table
from tapeprop.ops.shape.rules import normalise_axes, refuse_empty

__all__ = ["resize"]

COLUMNS = 2048  # of the axes behind that a worker does at a time
ROW = 512  # results along the axis itself that a worker does at a time, where there is nothing behind

MODES = {"nearest": "nearest", "nearest-exact": "nearest"}
MODES |= dict.fromkeys(("linear", "bilinear", "trilinear"), "linear") | dict.fromkeys(("cubic", "bicubic"), "cubic")


@register
class Resample(Op):
    """y[..., i, ...] = sum of weights[t] x[..., sources[t], ...] over offsets[i] <= t < offsets[i + 1], along `axis`.

    Operands: x floating; places (O + 1 + T,) int64, the offsets and behind them the sources; weights (T,); places and weights
    of the transposed map, which are for the gradient alone. length: of x along the axis. taps: the number of terms of every
    output, 0 where they differ; taps_back: that of the transposed map.
    """

    name = "resample"
    onnx = ("Resize", "Upsample")

    def infer(self, operands, attributes):
        x, places, weights, back, weights_back = operands
        axis, length, outputs = attributes["axis"], attributes["length"], attributes["outputs"]
        dtype = same_dtype("resample", [x, weights, weights_back])
        refuse_empty("resample", x.shape, (outputs,))
        if any(table.dtype != "int64" for table in (places, back)):
            raise DTypeError(f"resample: expected places of dtype int64, got {places.dtype} and {back.dtype}")
        terms = weights.shape[0]
        if not (
            0 <= axis < x.ndim
            and same(x.shape[axis], length)
            and same(places.shape[0], outputs + 1 + terms)
            and same(back.shape[0], length + 1 + terms)
        ):
            raise ShapeError(
                f"resample: expected axis {axis} of {length} elements and tables for {outputs} results, got "
                f"x {text(x.shape)}, places {text(places.shape)}, weights {text(weights.shape)}"
            )
        return [((*x.shape[:axis], outputs, *x.shape[axis + 1 :]), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (_, places, weights, back, weights_back), at = gradients, call.operands, call.attributes
        if any(wanted[1:]):
            raise GraphError("resample: its table is constant and has no gradient; stop_gradient() what it is made of")
        if g is None:
            return [None] * 5
        attributes = {
            "axis": at["axis"],
            "length": at["outputs"],
            "outputs": at["length"],
            "taps": at["taps_back"],
            "taps_back": at["taps"],
        }
        return [record("resample", [g, back, weights_back, places, weights], attributes)[0], None, None, None, None]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        x, places, weights = arrays[:3]
        outputs, axis = call["outputs"], call["axis"]
        offsets, sources = places[: outputs + 1], places[outputs + 1 :]
        x = np.moveaxis(x, axis, 0)
        y = np.zeros((outputs, *x.shape[1:]), x.dtype)
        for i in range(outputs):
            for t in range(offsets[i], offsets[i + 1]):
                y[i] += weights[t] * x[sources[t]]
        return [np.ascontiguousarray(np.moveaxis(y, 0, axis))]

    def cpu(self, call: Call) -> Launch:
        arrays, integers = self._plan(call)
        return launch("tapeprop.ops.resample.cpu:resample", call, arrays, integers, dtype=call.results[0].dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        arrays, (*_, outputs, inner, _) = self._plan(call)
        y = call.results[0]
        grid, block = device.spread(y.size)
        return cuda_launch(
            "tapeprop.ops.resample.cuda:resample",
            arrays,
            [call["length"], outputs, inner, inverse(outputs), inverse(inner)],
            grid=grid,
            block=block,
            dtype=y.dtype,
            wide=y.size >= NARROW,
        )

    def _plan(self, call: Call) -> tuple[list[tuple[Ref, tuple[int, ...]]], list[int]]:
        """(every array flat; outer, length, outputs, inner, taps)."""
        x, places, weights = call.operands[:3]
        y, axis = call.results[0], call["axis"]
        arrays: list[tuple[Ref, tuple[int, ...]]] = [
            (Ref("result"), (y.size,)),
            *((Ref("operand", i), (a.size,)) for i, a in enumerate((x, places, weights))),
        ]
        outer, inner = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
        return arrays, [outer, call["length"], call["outputs"], inner, call["taps"]]

    def flops(self, call: Call) -> int:
        return 2 * call.operands[2].size * (call.results[0].size // call["outputs"])

    def traffic(self, call: Call) -> int:
        return call.results[0].nbytes + sum(a.nbytes for a in call.operands[:3])

    def samples(self):
        half = tables.coordinates
        cases = [
            ((2, 3, 5), 2, tables.nearest(5, half(5, 10, None, "asymmetric"), "floor")),
            ((2, 7, 3), 1, tables.nearest(7, half(7, 4, None, "half_pixel"), "round_prefer_floor")),
            ((3, 4, 37), 1, tables.linear(4, half(4, 9, None, "half_pixel"))),
            ((2, 9), 1, tables.linear(9, half(9, 1200, None, "align_corners"))),
            ((5, 2), 0, tables.cubic(5, half(5, 3, None, "half_pixel"), tables.CUBIC_COEFF_A)),
            ((2, 6), 1, tables.cubic(6, half(6, 13, 2.2, "half_pixel"), tables.CUBIC_COEFF_A)),
            ((3, 7, 2), 1, tables.adaptive(7, 3)),
            ((2, 5), 1, tables.adaptive(7, 5).transposed),
            ((1, 3, 2100), 1, tables.circular(3, 2, 1)),
            ((1,), 0, tables.replicating(1, 2, 0)),
        ]
        return [_sample(shape, axis, table) for shape, axis, table in cases]


def _sample(shape: tuple[int, ...], axis: int, table: Table) -> Sample:
    def operands(r):
        return [r.standard_normal(shape), *_constants(table)]

    depth = int(max(np.diff(table.offsets).max(), np.diff(table.transposed.offsets).max()))
    return Sample(operands, {"axis": axis, **_sizes(table)}, depth=depth)


def _constants(table: Table) -> list[np.ndarray]:
    back = table.transposed
    return [
        np.concatenate([table.offsets, table.sources]),
        table.weights,
        np.concatenate([back.offsets, back.sources]),
        back.weights,
    ]


def _sizes(table: Table) -> dict[str, int]:
    back = table.transposed
    return {"length": table.length, "outputs": table.outputs, "taps": _taps(table), "taps_back": _taps(back)}


def _taps(table: Table) -> int:
    counts = np.diff(table.offsets)
    return int(counts[0]) if (counts == counts[0]).all() else 0


def resample(x: Any, table: Table, axis: int) -> Tensor:
    """x with the table's map applied along `axis`: a size `table.length` there becomes `table.outputs`. ShapeError."""
    x = as_tensor(x)
    (axis,) = normalise_axes("resample", axis, x.ndim)
    return record("resample", [x, *_constants(table)], {"axis": axis, **_sizes(table)})[0]


def known(name: str, x: Tensor, axis: int) -> int:
    """The size of an axis. UndecidedError where it is open: the program is then recorded again with that of the call."""
    size = x.shape[axis]
    if isinstance(size, Dim):
        raise UndecidedError(f"the size {size} of axis {axis} for {name}")
    return size


def resize(
    x: Any,
    size: int | Sequence[int | None] | None = None,
    scale: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool = False,
    *,
    axes: Sequence[int] | None = None,
    coordinates: str | None = None,
    nearest_mode: str = "floor",
    cubic_coeff_a: float = tables.CUBIC_COEFF_A,
) -> Tensor:
    """x (N, C, *spatial) with its spatial axes interpolated to other sizes, as torch.nn.functional.interpolate.

    size or scale: one for all spatial axes, or one per axis; by a scale a size becomes floor(size * scale). mode: "nearest",
    "linear" (also "bilinear", "trilinear") or "cubic" ("bicubic"), each for any number of axes, without antialiasing;
    "nearest-exact" is "nearest" at pixel centres. align_corners: the first and last elements lie on each other.

    What ONNX' Resize has beside: axes, those to resize, all but the first two by default; coordinates,
    "half_pixel" (the default but for nearest), "asymmetric" (that of nearest), "align_corners", "pytorch_half_pixel" or
    "half_pixel_symmetric"; nearest_mode, "floor", "ceil", "round_prefer_floor" or "round_prefer_ceil"; cubic_coeff_a.
    Elements beyond the ends are those at the ends.

    ShapeError for arguments that do not fit; UndecidedError for open sizes of these axes.
    """
    x = as_tensor(x)
    if mode not in MODES:
        raise ShapeError(f"resize: expected mode to be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "nearest-exact":
        coordinates, nearest_mode = coordinates or "half_pixel", "round_prefer_ceil"
    if align_corners:
        if MODES[mode] == "nearest":
            raise ShapeError(f"resize: expected align_corners for linear or cubic, got mode {mode!r}; leave it out")
        coordinates = "align_corners"
    coordinates = coordinates or ("asymmetric" if MODES[mode] == "nearest" else "half_pixel")
    found = tuple(range(2, x.ndim)) if axes is None else normalise_axes("resize", axes, x.ndim)
    wanted = _wanted(x, found, size, scale)
    maps: list[tuple[int, Table]] = []
    for axis, (outputs, factor) in zip(found, wanted):
        length = known("resize", x, axis)
        if outputs == length and (factor is None or factor == 1):
            continue  # every way puts each element on itself
        places = tables.coordinates(length, outputs, factor, coordinates)
        if MODES[mode] == "nearest":
            maps.append((axis, tables.nearest(length, places, nearest_mode)))
        elif MODES[mode] == "linear":
            maps.append((axis, tables.linear(length, places)))
        else:
            maps.append((axis, tables.cubic(length, places, cubic_coeff_a)))
    # What shrinks comes first, and what grows does so from the last axis on, where rows are shortest: the least work.
    maps.sort(key=lambda item: (item[1].outputs > item[1].length, -item[0]))
    for axis, table in maps:
        x = resample(x, table, axis)
    return x


def _wanted(x: Tensor, axes: tuple[int, ...], size: Any, scale: Any) -> list[tuple[int, float | None]]:
    """(size, scale or None) of each axis."""
    if (size is None) == (scale is None) or not axes:
        raise ShapeError(
            f"resize: expected axes to resize of {text(x.shape)}, and a size or a scale, got {size} and {scale}"
        )
    given = size if scale is None else scale
    values = list(given) if isinstance(given, Sequence | np.ndarray) else [given] * len(axes)
    if len(values) != len(axes):
        raise ShapeError(f"resize: expected one value for all or one for each of {len(axes)} axes, got {given}")
    if scale is None:
        if any(not isinstance(n, int | np.integer) or n < 1 for n in values):
            raise ShapeError(f"resize: expected sizes >= 1, got {size}")
        return [(int(n), None) for n in values]
    found: list[tuple[int, float | None]] = []
    for axis, factor in zip(axes, values):
        outputs = math.floor(known("resize", x, axis) * float(factor)) if 0 < factor < math.inf else 0
        if outputs < 1:
            raise ShapeError(f"resize: expected scales that leave at least one element of {text(x.shape)}, got {scale}")
        found.append((outputs, float(factor)))
    return found
