"""Sums, means, maxima and minima over axes, and the sum of squares.

Float32 sums run in float64 and are rounded once, so their error is one rounding whatever the length; float64 sums run
in 32 lanes or one lane per column. The order of a sum depends on the shape alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Shape, Tensor
from tapeprop.ir.dims import product
from tapeprop.ops.op import Call, Device, Launch, Op, Ref, Sample, as_tensor, launch, record, register, same_dtype
from tapeprop.ops.reduce.tiling import Place, tiled
from tapeprop.ops.scalar import equal, sqrt, where
from tapeprop.ops.shape import cast, expand, reshape
from tapeprop.ops.shape.rules import broadcast_axes, drawn, normalise_axes, refuse_empty
from tapeprop.ops.shape.strides import padded

__all__ = ["l2norm", "max", "mean", "min", "reduce", "square_sum", "sum", "sum_to"]

HERE = "tapeprop.ops.reduce.cpu"
MODES = ("sum", "mean", "max", "min")
REDUCED_GROUPS = 3  # runs of reduced axes that the kernels take
CHUNK = 8192  # elements of one partial sum of squares
BLOCK = 64  # elements of the workers' scratch: columns, or lanes of a run, that are reduced side by side


def groups(shape: Shape, axes: Sequence[int]) -> list[list]:
    """[[size, reduced], ...]: the axes of `shape` but those of size 1, with neighbours of one kind merged."""
    found: list[list] = []
    for axis, size in enumerate(shape):
        if isinstance(size, int) and size == 1:
            continue
        if found and found[-1][1] == (axis in axes):
            found[-1][0] = found[-1][0] * size
        else:
            found.append([size, axis in axes])
    return found


def kept_shape(shape: Shape, axes: Sequence[int], keepdims: bool) -> Shape:
    """`shape` with `axes` dropped, or of size 1."""
    if keepdims:
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _groups_of(call: Call) -> tuple[list[int], list[int], int]:
    """(kept sizes, reduced sizes, inner): how the kernels read the operand, (k0, r0, k1, r1, k2, r2, inner)."""
    shape = call.operands[0].shape
    merged = groups(shape, normalise_axes("reduce", call["axes"], len(shape)))
    inner = merged.pop()[0] if merged and not merged[-1][1] else 1
    kept = padded([size for size, is_reduced in merged if not is_reduced], REDUCED_GROUPS, 1)
    reduced = padded([size for size, is_reduced in merged if is_reduced], REDUCED_GROUPS, 1)
    return kept, reduced, inner


@register
class Reduce(Op):
    """y = sum, mean, max or min of x over axes. A NaN among the elements gives NaN, in every mode."""

    name = "reduce"
    onnx = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool", "GlobalMaxPool")

    def infer(self, operands, attributes):
        (x,), mode = operands, attributes["mode"]
        if mode not in MODES:
            raise ShapeError(f"reduce: expected a mode among {', '.join(MODES)}, got {mode!r}")
        refuse_empty(mode, x.shape)
        axes = normalise_axes(mode, attributes["axes"], x.ndim)
        return [(kept_shape(x.shape, axes, attributes["keepdims"]), same_dtype(mode, operands))]

    def vjp(self, call, gradients, wanted):
        (g,), (x,), mode = gradients, call.operands, call.attributes["mode"]
        if g is None:
            return [None]
        axes = normalise_axes("reduce", call.attributes["axes"], x.ndim)
        shape = kept_shape(x.shape, axes, True)
        g = reshape(g, shape)
        if mode in ("sum", "mean"):
            return [expand(g, x.shape, mean=mode == "mean")]
        from tapeprop.ops import elementwise

        # Elements that tie share the gradient equally: 1 where x is the extreme, over the number of those.
        tied = elementwise.comparisons["equal"](x, reshape(call.results[0], shape))
        share = elementwise.apply("divide", g, reduce(tied, "sum", axes, keepdims=True))
        return [elementwise.apply("multiply", tied, share)]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        function: Any = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}[call["mode"]]
        axes = normalise_axes("reduce", call["axes"], arrays[0].ndim)
        return [np.asarray(function(arrays[0], axis=axes, keepdims=call["keepdims"]))]

    def cpu(self, call: Call) -> Launch:
        x, y, mode = call.operands[0], call.results[0], call["mode"]
        kept, reduced, inner = _groups_of(call)
        form = "runs" if inner == 1 else "columns"
        integers = [*(n for pair in zip(kept, reduced) for n in pair), *([inner] if form == "columns" else [])]
        arrays: list[tuple[Ref, tuple[int, ...]]] = [(Ref("result"), (y.size,)), (Ref("operand"), (x.size,))]
        kind, parameters = "total", {}
        if mode in ("sum", "mean"):
            integers.append(int(np.prod(reduced, dtype=np.int64)) if mode == "mean" else 1)
        else:
            kind, parameters = "extreme", {"largest": mode == "max"}
        if (kind, form) == ("total", "runs"):
            return launch(f"{HERE}:total_runs", call, arrays, integers, dtype=x.dtype)
        arrays.append((Ref("scratch"), (1, BLOCK)))
        scratch = (BLOCK, "float64" if kind == "total" else x.dtype)
        return launch(f"{HERE}:{kind}_{form}", call, arrays, integers, scratch=scratch, dtype=x.dtype, **parameters)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        kept, reduced, inner = _groups_of(call)
        mode = call["mode"] if call["mode"] in ("max", "min") else "total"
        divisor = int(np.prod(reduced, dtype=np.int64)) if call["mode"] == "mean" else 1
        return tiled(mode, *_places(call), kept, reduced, inner, device, divisor=divisor)

    def parts(self, call: Call) -> int:
        return call.results[0].size

    def flops(self, call: Call) -> int:
        return call.operands[0].size

    def samples(self):
        cases: list[tuple[tuple[int, ...], tuple[int, ...], int]] = [
            ((7, 13), (0,), 7),
            ((7, 13), (1,), 13),
            ((37, 133), (0, 1), 37 * 133),
            ((5, 6, 35), (0, 2), 175),
            ((5, 3, 7), (1,), 3),
            ((2, 3, 4, 5), (0, 2), 8),
            ((2, 3, 2, 3, 2, 5), (0, 2, 4), 8),
            ((2, 3, 2, 3, 2, 5), (1, 3, 5), 45),
            ((4, 1, 3), (1,), 1),
            ((1, 1), (0, 1), 1),
            ((1, 9), (0,), 1),
            ((20011,), (0,), 20011),
            ((3001, 3), (0,), 3001),
        ]
        result = [
            Sample(drawn(shape), {"mode": mode, "axes": axes, "keepdims": False}, depth)
            for shape, axes, depth in cases
            for mode in MODES
        ]
        keeping = {"mode": "mean", "axes": (1,), "keepdims": True}
        return [*result, Sample(drawn((3, 40, 2)), keeping, 40)]


def _places(call: Call) -> tuple[Place, Place]:
    """Where a launch on a GPU reads and writes."""
    x, y = call.operands[0], call.results[0]
    return Place(Ref("operand"), x.size, x.dtype), Place(Ref("result"), y.size, y.dtype)


def reduce(x: Any, mode: str, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """x reduced over `axes` (None: all) by mode "sum", "mean", "max" or "min"; the axes go, or stay with size 1.

    ShapeError for an axis that is absent or given twice.
    """
    x = as_tensor(x)
    found = normalise_axes(mode, axes, x.ndim)
    if all(isinstance(x.shape[axis], int) and x.shape[axis] == 1 for axis in found):
        same_dtype(mode, [x])
        return reshape(x, kept_shape(x.shape, found, keepdims))
    runs = [size for size, is_reduced in groups(x.shape, found) if is_reduced]
    if len(runs) > REDUCED_GROUPS:  # the last axis first, which leaves one run less or a shorter one
        first = reduce(x, mode, found[-1], keepdims=True)
        result = reduce(first, mode, found[:-1], keepdims=True)
        return reshape(result, kept_shape(x.shape, found, keepdims))
    return record("reduce", [x], {"mode": mode, "axes": found, "keepdims": bool(keepdims)})[0]


def sum_to(x: Any, shape: Shape) -> Tensor:
    """x summed over the axes along which an array of `shape` would be repeated: the transpose of broadcasting.

    x itself where the shapes agree. shape may hold open sizes. ShapeError where it does not broadcast to that of x.
    """
    x = as_tensor(x)
    if tuple(shape) == x.shape:
        return x
    return reshape(reduce(x, "sum", broadcast_axes("sum_to", shape, x.shape)), shape)


# ---- the sum of squares, for the norm of a gradient


@register
class SquareSums(Op):
    """(ceil(size / 8192),) float64: the sum of squares of each chunk of 8192 elements of x, in row-major order."""

    name = "square_sums"

    def infer(self, operands, attributes):
        same_dtype("square_sum", operands)
        refuse_empty("square_sum", operands[0].shape)
        return [(((product(operands[0].shape) + (CHUNK - 1)) // CHUNK,), "float64")]

    def vjp(self, call, gradients, wanted):
        from tapeprop.ops import elementwise, join

        (g,), (x,) = gradients, call.operands
        if g is None:
            return [None]
        chunks = g.shape[0]
        g = cast(g, x.dtype)
        if chunks == 1:
            g = reshape(g, (1,) * x.ndim)
        else:  # each element of x times the gradient of its chunk
            repeated = reshape(expand(reshape(g, (chunks, 1)), (chunks, CHUNK)), (chunks * CHUNK,))
            g = reshape(join.slice(repeated, [0], [product(x.shape)]), x.shape)
        return [elementwise.compute(lambda a, b: a * b * 2.0, x, g, label="square_sums'")[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        flat = arrays[0].reshape(-1).astype(np.float64)
        return [np.array([np.sum(np.square(flat[i : i + CHUNK])) for i in range(0, flat.size, CHUNK)])]

    def cpu(self, call: Call) -> Launch:
        arrays = [(Ref("result"), call.results[0].shape), (Ref("operand"), (call.operands[0].size,))]
        return launch(f"{HERE}:square_sums", call, arrays, [CHUNK], dtype=call.operands[0].dtype)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        return tiled("squares", *_places(call), (1, 1, call.results[0].size), (1, 1, CHUNK), 1, device)

    def flops(self, call: Call) -> int:
        return 2 * call.operands[0].size

    def samples(self):
        return [Sample(drawn(shape), depth=CHUNK) for shape in ((), (5,), (3, 61), (CHUNK,), (3, CHUNK - 7))]


def square_sum(x: Any) -> Tensor:
    """() float64: the sum of the squares of all elements of x, float32 or float64 of any shape."""
    (partial,) = record("square_sums", [x])
    return reduce(partial, "sum")


# ---- the public names, last because they hide Python's own in what follows


def sum(x: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (an int, several, or None for all); float32 sums are taken in float64 and rounded once."""
    return reduce(x, "sum", axis, keepdims)


def mean(x: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` (an int, several, or None for all)."""
    return reduce(x, "mean", axis, keepdims)


def max(x: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis`; NaN where there is a NaN. Elements that tie share the gradient equally."""
    return reduce(x, "max", axis, keepdims)


def min(x: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """The smallest element over `axis`; NaN where there is a NaN. Elements that tie share the gradient equally."""
    return reduce(x, "min", axis, keepdims)


def l2norm(x: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """The root of the sum of squares over `axis` (an int, several, or None for all). Its gradient at 0 is 0, as torch's."""
    from tapeprop.ops.elementwise import compute

    squares = reduce(compute(lambda a: a * a, as_tensor(x), label="square")[0], "sum", axis, keepdims)
    return compute(lambda s: where(equal(s, 0.0), s, sqrt(s)), squares, label="l2norm")[0]
