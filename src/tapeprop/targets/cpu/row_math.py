"""Normalisation of a row, for Numba bodies: the row itself, its gradient, and the two sums behind that.

As in `block_math`, `start` counts elements from the first of the arrays of x's shape, sums run in float64 in a fixed order of
8 lanes, and each function has a twin in NumPy. `place` counts elements in gamma, beta and the sums of their gradients. A mean comes as
a float64; it is taken off in two steps, the second of which takes what rounding the first one to the dtype left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapeprop.targets.cpu.block_math import INT64, LANES, element_pointer, merged
from tapeprop.targets.cpu.machine import lanes
from tapeprop.targets.cpu.plain import twin
from tapeprop.targets.cpu.vector_math import VectorMath

__all__ = ["flow_sums", "grad_block", "grad_elements", "normalise_elements", "weighted_flow_sums"]

VECTORS = 2  # of each of the two sums, side by side
DOUBLE = types.float64
INDEX = types.int64


class _Mean:
    """A float64 mean in every lane, in two parts of the arrays' dtype."""

    def __init__(self, math: VectorMath, mean: Any):
        builder = math.builder
        self.math = math
        self.high = math.from_double(mean)
        if math.bits == 64:
            self.low = None
        else:
            rounded = builder.fpext(builder.fptrunc(mean, ir.FloatType()), ir.DoubleType())
            self.low = math.from_double(builder.fsub(mean, rounded))

    def off(self, x: Any) -> Any:
        """x - mean."""
        apart = self.math.sub(x, self.high)
        return apart if self.low is None else self.math.sub(apart, self.low)


def _emit_rows(builder: Any, math: VectorMath, count: Any, step: Callable[[Any, Any], None]) -> None:
    """step(first element, mask or None) over `count` elements, a vector at a time; the last one masked."""
    width = math.lanes
    whole = builder.sub(count, builder.srem(count, INT64(width)))
    with cgutils.for_range_slice(builder, INT64(0), whole, INT64(width), INT64) as (i, _):
        step(i, None)
    with builder.if_then(builder.icmp_signed("<", whole, count)):
        step(whole, math.lane_mask(builder.sub(count, whole)))


class _Stretch:
    """Arrays of one call, read and written at element `i` of a stretch."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any, math: VectorMath):
        self.context, self.builder, self.signature, self.args, self.math = context, builder, signature, args, math

    def place(self, number: int, start: Any, i: Any) -> Any:
        """The address of element start + i of argument `number`."""
        kind = self.signature.args[number]
        return element_pointer(self.context, self.builder, kind, self.args[number], self.builder.add(start, i))

    def load(self, number: int, start: Any, i: Any, mask: Any, math: VectorMath | None = None) -> Any:
        """A vector of argument `number`."""
        return (math or self.math).load(self.place(number, start, i), mask)


def _emit_flow_sums(context: Any, builder: Any, signature: Any, args: Any, weighted: bool) -> Any:
    """(sum of f, sum of f (x - mean)) over a stretch, f = dy or, weighted, dy gamma."""
    start, count, mean = args[-3:] if not weighted else (args[3], args[5], args[6])
    bits = signature.args[0].dtype.bitwidth
    narrow, wide = VectorMath(builder, bits, LANES), VectorMath(builder, 64, LANES)
    arrays, center = _Stretch(context, builder, signature, args, narrow), _Mean(narrow, mean)
    sums = [[cgutils.alloca_once_value(builder, wide.value(0.0)) for _ in range(VECTORS)] for _ in range(2)]

    def widened(value: Any) -> Any:
        return value if bits == 64 else builder.fpext(value, wide.float)

    def add_up(i: Any, number: int, mask: Any = None) -> None:
        flow, apart = arrays.load(0, start, i, mask), center.off(arrays.load(1, start, i, mask))
        if weighted:
            flow = narrow.mul(flow, arrays.load(2, args[4], i, mask))
        flow, apart = widened(flow), widened(apart)
        for place, added in ((sums[0][number], flow), (sums[1][number], wide.mul(flow, apart))):
            if mask is not None:
                added = wide.select(mask, added, 0.0)
            builder.store(wide.add(builder.load(place, typ=wide.float), added), place)

    chunk = LANES * VECTORS
    whole = builder.mul(builder.sdiv(count, INT64(chunk)), INT64(chunk))
    with cgutils.for_range_slice(builder, INT64(0), whole, INT64(chunk), INT64) as (i, _):
        for number in range(VECTORS):
            add_up(builder.add(i, INT64(number * LANES)), number)
    with cgutils.for_range_slice(builder, whole, count, INT64(LANES), INT64) as (i, _):
        add_up(i, 0, wide.lane_mask(builder.sub(count, i)))
    found = []
    for places in sums:
        a, b = (builder.load(place, typ=wide.float) for place in places)
        found.append(merged(builder, wide.add(a, b), LANES, builder.fadd))
    return context.make_tuple(builder, signature.return_type, found)


@intrinsic
def flow_sums(typing, dy, x, start, count, mean):
    """(sum of dy, sum of dy (x - mean)) over a stretch, in float64."""

    def generate(context, builder, signature, args):
        return _emit_flow_sums(context, builder, signature, args, weighted=False)

    return types.UniTuple(DOUBLE, 2)(dy, x, INDEX, INDEX, DOUBLE), generate


@intrinsic
def weighted_flow_sums(typing, dy, x, gamma, start, place, count, mean):
    """(sum of g, sum of g (x - mean)) over a stretch, in float64, with g = dy gamma."""

    def generate(context, builder, signature, args):
        return _emit_flow_sums(context, builder, signature, args, weighted=True)

    return types.UniTuple(DOUBLE, 2)(dy, x, gamma, INDEX, INDEX, INDEX, DOUBLE), generate


@intrinsic
def normalise_elements(typing, target, x, gamma, beta, start, place, count, mean, inverse):
    """target = (x - mean) inverse gamma + beta over a stretch, an element of gamma and beta for each of x."""

    def generate(context, builder, signature, args):
        kind = signature.args[1].dtype
        math = VectorMath(builder, kind.bitwidth, lanes(kind.name))
        arrays, center = _Stretch(context, builder, signature, args, math), _Mean(math, args[7])
        start, place, count = args[4:7]
        factor = math.from_double(args[8])

        def step(i, mask):
            normal = math.mul(center.off(arrays.load(1, start, i, mask)), factor)
            scale, shift = arrays.load(2, place, i, mask), arrays.load(3, place, i, mask)
            math.store(math.fma(normal, scale, shift), arrays.place(0, start, i), mask)

        _emit_rows(builder, math, count, step)
        return context.get_dummy_value()

    return types.void(target, x, gamma, beta, *(INDEX,) * 3, DOUBLE, DOUBLE), generate


@intrinsic
def grad_block(typing, target, dy, x, start, count, mean, scale, slope, shift):
    """target = dy scale - ((x - mean) slope + shift) over a stretch; the scalars are rounded to the dtype."""

    def generate(context, builder, signature, args):
        kind = signature.args[1].dtype
        math = VectorMath(builder, kind.bitwidth, lanes(kind.name))
        arrays, center = _Stretch(context, builder, signature, args, math), _Mean(math, args[5])
        scale, slope, shift = (math.from_double(scalar) for scalar in args[6:])

        def step(i, mask):
            apart = center.off(arrays.load(2, args[3], i, mask))
            flow = arrays.load(1, args[3], i, mask)
            made = math.fma(flow, scale, math.neg(math.fma(apart, slope, shift)))
            math.store(made, arrays.place(0, args[3], i), mask)

        _emit_rows(builder, math, args[4], step)
        return context.get_dummy_value()

    return types.void(target, dy, x, INDEX, INDEX, *(DOUBLE,) * 4), generate


@intrinsic
def grad_elements(
    typing, target, dy, x, gamma, to_gamma, to_beta, start, place, place_sums, count, mean, inverse, slope, shift
):
    """target = dy gamma inverse - ((x - mean) slope + shift) over a stretch, and what it adds to the sums behind gamma and beta.

    to_gamma, to_beta: float64; dy (x - mean) inverse and dy are added to them from `place_sums` on.
    """

    def generate(context, builder, signature, args):
        kind = signature.args[1].dtype
        math = VectorMath(builder, kind.bitwidth, lanes(kind.name))
        wide = VectorMath(builder, 64, math.lanes)
        arrays, center = _Stretch(context, builder, signature, args, math), _Mean(math, args[10])
        start, place, place_sums, count = args[6:10]
        inverse, slope, shift = (math.from_double(scalar) for scalar in args[11:])

        def step(i, mask):
            apart = center.off(arrays.load(2, start, i, mask))
            flow = arrays.load(1, start, i, mask)
            scaled = math.mul(flow, inverse)
            for number, added in ((4, math.mul(apart, scaled)), (5, flow)):
                sums = arrays.place(number, place_sums, i)
                added = added if math.bits == 64 else builder.fpext(added, wide.float)
                wide.store(wide.add(wide.load(sums, mask), added), sums, mask)
            weighted = math.mul(scaled, arrays.load(3, place, i, mask))
            made = math.sub(weighted, math.fma(apart, slope, shift))
            math.store(made, arrays.place(0, start, i), mask)

        _emit_rows(builder, math, count, step)
        return context.get_dummy_value()

    return types.void(target, dy, x, gamma, to_gamma, to_beta, *(INDEX,) * 4, *(DOUBLE,) * 4), generate


# ---- twins


def _flat(array: np.ndarray, start: int, count: int) -> np.ndarray:
    return array.reshape(-1)[start : start + count]


def _off(x: np.ndarray, mean: float) -> np.ndarray:
    kind: Any = x.dtype.type
    high = kind(mean)
    return (x - high) - kind(mean - float(high))


def _pair(flow: np.ndarray, apart: np.ndarray) -> tuple[float, float]:
    """The sums of flow and of flow * apart, in the order of the compiled ones."""
    flow, apart = flow.astype(np.float64), apart.astype(np.float64)
    return _in_order(flow), _in_order(flow * apart)


def _in_order(terms: np.ndarray) -> float:
    chunk = LANES * VECTORS
    sums, whole = np.zeros((VECTORS, LANES)), terms.size // chunk * chunk
    with np.errstate(all="ignore"):
        for i in range(0, whole, chunk):
            sums += terms[i : i + chunk].reshape(VECTORS, LANES)
        for i in range(whole, terms.size, LANES):
            rest = terms[i : i + LANES]
            sums[0, : rest.size] += rest
        found = sums[0] + sums[1]
        while found.size > 1:
            half = found.size // 2
            found = found[:half] + found[half:]
    return float(found[0])


@twin(flow_sums)
def _flow_sums(dy, x, start, count, mean):
    return _pair(_flat(dy, start, count), _off(_flat(x, start, count), mean))


@twin(weighted_flow_sums)
def _weighted_flow_sums(dy, x, gamma, start, place, count, mean):
    return _pair(_flat(dy, start, count) * _flat(gamma, place, count), _off(_flat(x, start, count), mean))


@twin(normalise_elements)
def _normalise_elements(target, x, gamma, beta, start, place, count, mean, inverse):
    normal = _off(_flat(x, start, count), mean) * x.dtype.type(inverse)
    _flat(target, start, count)[:] = normal * _flat(gamma, place, count) + _flat(beta, place, count)


@twin(grad_block)
def _grad_block(target, dy, x, start, count, mean, scale, slope, shift):
    kind = x.dtype.type
    apart = _off(_flat(x, start, count), mean)
    _flat(target, start, count)[:] = _flat(dy, start, count) * kind(scale) - (apart * kind(slope) + kind(shift))


@twin(grad_elements)
def _grad_elements(
    target, dy, x, gamma, to_gamma, to_beta, start, place, place_sums, count, mean, inverse, slope, shift
):
    kind = x.dtype.type
    flow, apart = _flat(dy, start, count), _off(_flat(x, start, count), mean)
    scaled = flow * kind(inverse)
    _flat(to_gamma, place_sums, count)[:] += apart * scaled
    _flat(to_beta, place_sums, count)[:] += flow
    _flat(target, start, count)[:] = scaled * _flat(gamma, place, count) - (apart * kind(slope) + kind(shift))
