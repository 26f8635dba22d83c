"""Arithmetic over contiguous stretches of an array, for Numba bodies: exp and log in place, sums of fixed order.

Numba calls the scalar libm for exp, and LLVM may not reorder a sum; these emit explicit vectors. Sums run in float64,
in 4 vectors of 8 lanes, merged in one fixed tree, so their bits depend on neither the machine's vector width nor the
number of workers.

An array may have any rank; `start` counts elements from its first, in row-major order. Nothing is checked: the
caller's stretch has to lie inside the array. Each function has a twin in NumPy for bodies that run as plain Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapeprop.targets.cpu.emission import pointer
from tapeprop.targets.cpu.machine import lanes
from tapeprop.targets.cpu.plain import twin
from tapeprop.targets.cpu.vector_math import VectorMath

__all__ = [
    "dot_rows",
    "element_pointer",
    "exp_block",
    "exp_sum",
    "from_bits",
    "log_block",
    "log_of",
    "max_block",
    "normalise_block",
    "normalise_grad_block",
    "spread_rows",
    "sum_rows",
]

LANES, VECTORS = 8, 4  # of a sum: float64 lanes in a vector, vectors side by side
CHUNK = LANES * VECTORS
INT64 = ir.IntType(64)


# ---- emission


def element_pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """The address of element `index` of an array in row-major order."""
    base = pointer(context, builder, kind, array)
    return builder.gep(base, [index], source_etype=context.get_value_type(kind.dtype))


def _emit_map(context: Any, builder: Any, signature: Any, args: Any, function: str) -> Any:
    """array[start : start + count] = function(the same), whole vectors and one masked one, the body emitted once."""
    kind = signature.args[0]
    array, start, count = args
    math = VectorMath(builder, kind.dtype.bitwidth, lanes(kind.dtype.name))
    with cgutils.for_range_slice(builder, INT64(0), count, INT64(math.lanes), INT64) as (i, _):
        place = element_pointer(context, builder, kind, array, builder.add(start, i))
        mask = math.lane_mask(builder.sub(count, i))
        math.store(getattr(math, function)(math.load(place, mask)), place, mask)
    return context.get_dummy_value()


def _emit_sum(
    context: Any, builder: Any, kinds: Any, arrays: Any, rows: Any, term: Callable[..., Any], function: str = ""
) -> Any:
    """The float64 sum of term(math, elements of each array, as float64 vectors) over `rows` (start, rows, stride,
    count).

    function: applied to the elements before they are widened, in their own precision; "" for none.
    """
    start, row_count, stride, count = rows
    math = VectorMath(builder, 64, LANES)
    narrow = [VectorMath(builder, kind.dtype.bitwidth, LANES) for kind in kinds]
    sums = [cgutils.alloca_once_value(builder, math.value(0.0)) for _ in range(VECTORS)]

    def add_up(place: Any, number: int, mask: Any = None) -> None:
        values = []
        for kind, array, reader in zip(kinds, arrays, narrow):
            value = reader.load(element_pointer(context, builder, kind, array, place), mask)
            if function:
                value = getattr(reader, function)(value)
            values.append(value if reader.bits == 64 else builder.fpext(value, math.float))
        added = term(math, *values)
        if mask is not None:
            added = math.select(mask, added, 0.0)
        builder.store(math.add(builder.load(sums[number], typ=math.float), added), sums[number])

    whole = builder.mul(builder.sdiv(count, INT64(CHUNK)), INT64(CHUNK))
    with cgutils.for_range(builder, row_count, intp=INT64) as row:
        first = builder.add(start, builder.mul(row.index, stride))
        with cgutils.for_range_slice(builder, INT64(0), whole, INT64(CHUNK), INT64) as (i, _):
            for number in range(VECTORS):
                add_up(builder.add(first, builder.add(i, INT64(number * LANES))), number)
        with cgutils.for_range_slice(builder, whole, count, INT64(LANES), INT64) as (i, _):
            add_up(builder.add(first, i), 0, math.lane_mask(builder.sub(count, i)))
    a, b, c, d = (builder.load(place, typ=math.float) for place in sums)
    return merged(builder, math.add(math.add(a, b), math.add(c, d)), LANES, builder.fadd)


def merged(builder: Any, vector: Any, count: int, merge: Callable[[Any, Any], Any]) -> Any:
    """One scalar: lane i with lane i + count / 2, and so on."""
    index = ir.IntType(32)
    scalars = [builder.extract_element(vector, index(i)) for i in range(count)]
    while len(scalars) > 1:
        half = len(scalars) // 2
        scalars = [merge(a, b) for a, b in zip(scalars[:half], scalars[half:])]
    return scalars[0]


# ---- maps


@intrinsic
def exp_block(typing, array, start, count):
    """exp of array[start : start + count], in place."""

    def generate(context, builder, signature, args):
        return _emit_map(context, builder, signature, args, "exp")

    return types.void(array, types.int64, types.int64), generate


@intrinsic
def log_block(typing, array, start, count):
    """log of array[start : start + count], in place."""

    def generate(context, builder, signature, args):
        return _emit_map(context, builder, signature, args, "log")

    return types.void(array, types.int64, types.int64), generate


@intrinsic
def log_of(typing, x):
    """log of one float64."""

    def generate(context, builder, signature, args):
        return VectorMath(builder, 64, 1).log(args[0])

    return types.float64(types.float64), generate


@intrinsic
def from_bits(typing, bits):
    """The float64 whose bits an int64 holds: how a float comes in a row of integers."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), generate


# ---- normalisation: whole vectors are read before they are written, so the target may be an operand


def _emit_zip(
    context: Any,
    builder: Any,
    kinds: Any,
    arrays: Any,
    starts: Any,
    count: Any,
    scalars: Any,
    formula: Callable[..., Any],
) -> Any:
    """target[...] = formula(math, elements of the other arrays, the scalars in every lane); the target comes first."""
    bits, name = kinds[0].dtype.bitwidth, kinds[0].dtype.name
    math = VectorMath(builder, bits, lanes(name))
    wide = [math.from_double(scalar) for scalar in scalars]
    whole = builder.sub(count, builder.srem(count, INT64(math.lanes)))

    def vector(i: Any, mask: Any) -> None:
        target, *places = (
            element_pointer(context, builder, kind, array, builder.add(start, i))
            for kind, array, start in zip(kinds, arrays, starts)
        )
        math.store(formula(math, *(math.load(place, mask) for place in places), *wide), target, mask)

    with cgutils.for_range_slice(builder, INT64(0), whole, INT64(math.lanes), INT64) as (i, _):
        vector(i, None)
    with builder.if_then(builder.icmp_signed("<", whole, count)):
        vector(whole, math.lane_mask(builder.sub(count, whole)))
    return context.get_dummy_value()


@intrinsic
def normalise_block(typing, target, array, start, count, mean, rest, scale, shift):
    """target = ((array - mean) - rest) scale + shift over a stretch of both; float64 scalars, rounded to the arrays'
    dtype.

    rest: what rounding took from the mean, so that a mean far larger than the deviation costs no digits.
    """

    def generate(context, builder, signature, args):
        def formula(math, x, mean, rest, scale, shift):
            return math.fma(math.sub(math.sub(x, mean), rest), scale, shift)

        starts = (args[2], args[2])
        return _emit_zip(context, builder, signature.args[:2], args[:2], starts, args[3], args[4:], formula)

    return types.void(target, array, types.int64, types.int64, *(types.float64,) * 4), generate


@intrinsic
def normalise_grad_block(typing, target, flowing, array, start, count, center, scale, mean, slope):
    """target = (flowing - center) scale - (array - mean) slope over a stretch of all; float64 scalars, rounded to the
    dtype.
    """

    def generate(context, builder, signature, args):
        def formula(math, dy, x, center, scale, mean, slope):
            return math.fma(math.sub(dy, center), scale, math.neg(math.mul(math.sub(x, mean), slope)))

        starts = (args[3],) * 3
        return _emit_zip(context, builder, signature.args[:3], args[:3], starts, args[4], args[5:], formula)

    return types.void(target, flowing, array, types.int64, types.int64, *(types.float64,) * 4), generate


# ---- sums over a region: `count` elements from `start` on, and `rows` times, each `stride` elements further

ROWS = (types.int64,) * 4


@intrinsic
def sum_rows(typing, array, start, rows, stride, count):
    """The sum of a region, in float64."""

    def generate(context, builder, signature, args):
        return _emit_sum(context, builder, signature.args[:1], args[:1], args[1:], lambda math, x: x)

    return types.float64(array, *ROWS), generate


@intrinsic
def exp_sum(typing, array, start, count):
    """The sum of exp(array[start : start + count]), in float64; exp in the array's own precision."""

    def generate(context, builder, signature, args):
        rows = args[1], INT64(1), INT64(0), args[2]
        return _emit_sum(context, builder, signature.args[:1], args[:1], rows, lambda math, x: x, "exp")

    return types.float64(array, types.int64, types.int64), generate


@intrinsic
def spread_rows(typing, array, center, start, rows, stride, count):
    """The sum of (x - center)^2 over a region, in float64."""

    def generate(context, builder, signature, args):
        def term(math, x):
            distance = math.sub(x, center_lanes)
            return math.mul(distance, distance)

        center_lanes = VectorMath(builder, 64, LANES).broadcast(args[1])
        return _emit_sum(context, builder, signature.args[:1], args[:1], args[2:], term)

    return types.float64(array, types.float64, *ROWS), generate


@intrinsic
def dot_rows(typing, left, right, center, start, rows, stride, count):
    """The sum of left (right - center) over a region of both, in float64."""

    def generate(context, builder, signature, args):
        center_lanes = VectorMath(builder, 64, LANES).broadcast(args[2])
        return _emit_sum(
            context,
            builder,
            signature.args[:2],
            args[:2],
            args[3:],
            lambda math, x, y: math.mul(x, math.sub(y, center_lanes)),
        )

    return types.float64(left, right, types.float64, *ROWS), generate


@intrinsic
def max_block(typing, array, start, count):
    """The maximum of array[start : start + count], of its dtype; NaN where one is among them, -inf where count is 0."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        values, first, size = args
        math = VectorMath(builder, kind.dtype.bitwidth, lanes(kind.dtype.name))
        top = cgutils.alloca_once_value(builder, math.value(float("-inf")))
        with cgutils.for_range_slice(builder, INT64(0), size, INT64(math.lanes), INT64) as (i, _):
            mask = math.lane_mask(builder.sub(size, i))
            value = math.load(element_pointer(context, builder, kind, values, builder.add(first, i)), mask)
            before = builder.load(top, typ=math.float)
            larger = math.maximum(before, value)
            builder.store(larger if mask is None else math.select(mask, larger, before), top)
        one = VectorMath(builder, kind.dtype.bitwidth, 1)
        last = builder.load(top, typ=math.float)
        return last if math.lanes == 1 else merged(builder, last, math.lanes, one.maximum)

    return array.dtype(array, types.int64, types.int64), generate


# ---- twins


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1)


def _map(function: Callable[..., Any], array: np.ndarray, start: int, count: int) -> None:
    stretch = _flat(array)[start : start + count]
    with np.errstate(all="ignore"):
        function(stretch, out=stretch)


@twin(exp_block)
def _exp_block(array: np.ndarray, start: int, count: int) -> None:
    _map(np.exp, array, start, count)


@twin(log_block)
def _log_block(array: np.ndarray, start: int, count: int) -> None:
    _map(np.log, array, start, count)


@twin(log_of)
def _log_of(x: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.log(np.float64(x)))


@twin(from_bits)
def _from_bits(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))


@twin(normalise_block)
def _normalise_block(target, array, start, count, mean, rest, scale, shift):
    kind, part = array.dtype.type, slice(start, start + count)
    values = ((_flat(array)[part] - kind(mean)) - kind(rest)) * kind(scale) + kind(shift)
    _flat(target)[part] = values


@twin(normalise_grad_block)
def _normalise_grad_block(target, flowing, array, start, count, center, scale, mean, slope):
    kind, part = array.dtype.type, slice(start, start + count)
    values = (_flat(flowing)[part] - kind(center)) * kind(scale) - (_flat(array)[part] - kind(mean)) * kind(slope)
    _flat(target)[part] = values


@twin(sum_rows)
def _sum_rows(array: np.ndarray, start: int, rows: int, stride: int, count: int) -> float:
    return _sum(start, rows, stride, count, lambda part: _wide(array, part))


@twin(exp_sum)
def _exp_sum(array: np.ndarray, start: int, count: int) -> float:
    return _sum(start, 1, 0, count, lambda part: np.exp(_flat(array)[part]).astype(np.float64))


@twin(spread_rows)
def _spread_rows(array: np.ndarray, center: float, start: int, rows: int, stride: int, count: int) -> float:
    return _sum(start, rows, stride, count, lambda part: np.square(_wide(array, part) - center))


@twin(dot_rows)
def _dot_rows(
    left: np.ndarray, right: np.ndarray, center: float, start: int, rows: int, stride: int, count: int
) -> float:
    return _sum(start, rows, stride, count, lambda part: _wide(left, part) * (_wide(right, part) - center))


@twin(max_block)
def _max_block(array: np.ndarray, start: int, count: int) -> Any:
    return _flat(array)[start : start + count].max(initial=array.dtype.type(-np.inf))


def _wide(array: np.ndarray, part: slice) -> np.ndarray:
    return _flat(array)[part].astype(np.float64)


def _sum(start: int, rows: int, stride: int, count: int, term: Callable[[slice], np.ndarray]) -> float:
    """What `_emit_sum` computes, in the same order; term: a stretch -> its float64 terms."""
    sums = np.zeros((VECTORS, LANES))
    whole = count // CHUNK * CHUNK
    with np.errstate(all="ignore"):
        for row in range(rows):
            first = start + row * stride
            terms = term(slice(first, first + count))
            for i in range(0, whole, CHUNK):
                sums += terms[i : i + CHUNK].reshape(VECTORS, LANES)
            for i in range(whole, count, LANES):
                rest = terms[i : i + LANES]
                sums[0, : rest.size] += rest
        merged = (sums[0] + sums[1]) + (sums[2] + sums[3])
        while merged.size > 1:
            half = merged.size // 2
            merged = merged[:half] + merged[half:]
    return float(merged[0])
