"""One row of pooling windows at a time, for Numba bodies: the place of the maximum, the mean, and the mean's transpose.

A row of `count` windows slides over `rows` image rows of `width` elements, `pitch` apart, the first at element `start` of the
image: window o covers the `size` columns o stride - left, o stride - left + dilation and so on. Outputs lie along the lanes;
columns outside the image and the outputs beyond the last are masked, so padding and tails need no code of their own and nothing
outside is read. The stride is a literal: 1 and 2 load whole vectors, the others gather.

Lanes are 512 bits on every machine (LLVM splits them), so that the order of the transposed sums does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapeprop.targets.cpu.block_math import element_pointer
from tapeprop.targets.cpu.plain import twin
from tapeprop.targets.cpu.vector_arithmetic import VectorArithmetic

__all__ = ["window_mean", "window_places", "window_spread"]

INT64, INT32 = ir.IntType(64), ir.IntType(32)
LANE_BITS = 512
GEOMETRY = (types.int64,) * 8  # start, rows, pitch, width, left, size, dilation, count


# ---- emission


class _Row:
    """The loops over the windows of one row: `lanes` outputs, then image rows, then columns of the window."""

    def __init__(self, context: Any, builder: Any, kind: Any, image: Any, stride: int, geometry: Any) -> None:
        self.builder, self.stride = builder, stride
        self.math = VectorArithmetic(builder, kind.dtype.bitwidth, LANE_BITS // kind.dtype.bitwidth)
        self.start, self.rows, self.pitch, self.width, self.left, self.size, self.dilation, self.count = geometry
        self.image = lambda index: element_pointer(context, builder, kind, image, index)

    def run(
        self, begin: Callable[[Any, Any], None], tap: Callable[[Any, Any, Any], None], end: Callable[[Any, Any], None]
    ) -> None:
        """begin(first output, its lanes) before a block of windows, end(the same) after it; between them tap(row
        offset, first column, valid lanes) for each element of the windows, in row-major order.
        """
        b, math = self.builder, self.math
        with cgutils.for_range_slice(b, INT64(0), self.count, INT64(math.lanes), INT64) as (first, _):
            outputs = math.lane_mask(b.sub(self.count, first))
            begin(first, outputs)
            origin = b.sub(b.mul(first, INT64(self.stride)), self.left)
            with (
                cgutils.for_range(b, self.rows, intp=INT64) as row,
                cgutils.for_range(b, self.size, intp=INT64) as tap_number,
            ):
                column = b.add(origin, b.mul(tap_number.index, self.dilation))
                valid = b.and_(outputs, self.inside(column, self.stride))
                tap(b.mul(row.index, self.pitch), column, valid)
            end(first, outputs)

    def columns(self, column: Any, step: int) -> Any:
        """column, column + step, ... as int32 lanes."""
        math = self.math
        steps = ir.Constant(ir.VectorType(INT32, math.lanes), [step * i for i in range(math.lanes)])
        return self.builder.add(math.broadcast(self.builder.trunc(column, INT32)), steps)

    def inside(self, column: Any, step: int) -> Any:
        """Which of the columns column, column + step, ... lie in the image. Unsigned, a negative one is large."""
        width = self.math.broadcast(self.builder.trunc(self.width, INT32))
        return self.builder.icmp_unsigned("<", self.columns(column, step), width)

    def place(self, offset: Any, column: Any) -> Any:
        return self.image(self.builder.add(self.start, self.builder.add(offset, column)))

    def load(self, offset: Any, column: Any, valid: Any) -> Any:
        """The elements of one tap; what is not valid may be anything."""
        math, b = self.math, self.builder
        place = self.place(offset, column)
        if self.stride == 1:
            return math.load(place, valid)
        if self.stride == 2:
            following = b.add(column, INT64(math.lanes))
            low = math.load(place, self.inside(column, 1))
            high = math.load(self.place(offset, following), self.inside(following, 1))
            return b.shuffle_vector(
                low, high, ir.Constant(ir.VectorType(INT32, math.lanes), list(range(0, 2 * math.lanes, 2)))
            )
        return math.gather(place, INT64(self.stride), valid)

    def add(self, offset: Any, column: Any, valid: Any, value: Any) -> None:
        """Adds to the elements of one tap."""
        math, b = self.math, self.builder
        place = self.place(offset, column)
        if self.stride == 1:
            math.store(math.add(math.load(place, valid), value), place, valid)
        elif self.stride == 2:
            even = ir.Constant(ir.VectorType(ir.IntType(1), math.lanes), [i % 2 == 0 for i in range(math.lanes)])
            for half in range(2):  # every output twice, the odd copy masked
                twice = [(half * math.lanes + i) // 2 for i in range(math.lanes)]
                order = ir.Constant(ir.VectorType(INT32, math.lanes), twice)
                mask = b.and_(b.shuffle_vector(valid, valid, order), even)
                here = self.place(offset, b.add(column, INT64(half * math.lanes)))
                math.store(math.add(math.load(here, mask), b.shuffle_vector(value, value, order)), here, mask)
        else:
            stride = INT64(self.stride)
            math.scatter(math.add(math.gather(place, stride, valid), value), place, stride, valid)

    def divisors(self, first: Any, divisor: Any) -> Any:
        """What windows from `first` on divide by: `divisor`; where it is 0, the number of their real elements."""
        b, math = self.builder, self.math
        zero = math.constant(INT32, 0)
        origin = b.sub(b.mul(first, INT64(self.stride)), self.left)
        low, high = self.columns(origin, self.stride), self.columns(b.add(origin, self.size), self.stride)
        width = math.broadcast(b.trunc(self.width, INT32))
        low = b.select(b.icmp_signed("<", low, zero), zero, low)
        high = b.select(b.icmp_signed("<", width, high), width, high)
        inside = b.mul(b.sub(high, low), math.broadcast(b.trunc(self.rows, INT32)))
        given = math.broadcast(b.trunc(divisor, INT32))
        return b.sitofp(b.select(b.icmp_signed("==", given, zero), inside, given), math.float)


def _literal(kind: Any) -> int | None:
    return kind.literal_value if isinstance(kind, types.IntegerLiteral) else None


@intrinsic(prefer_literal=True)
def window_places(typing, stride, image, start, rows, pitch, width, left, size, dilation, count, target):
    """target[o] = the element, counted from `start`, of the first maximum of window o, or of its first NaN.

    target: int32 for a float32 image, int64 for float64.
    """
    step = _literal(stride)
    if step is None:
        return None

    def generate(context, builder, signature, args):
        row = _Row(context, builder, image, args[1], step, args[2:10])
        math = row.math
        best, places = cgutils.alloca_once(builder, math.float), cgutils.alloca_once(builder, math.int)

        def begin(first, outputs):
            builder.store(math.value(-np.inf), best)
            builder.store(math.integer(-1), places)

        def tap(offset, column, valid):
            value, before = row.load(offset, column, valid), builder.load(best, typ=math.float)
            found = builder.load(places, typ=math.int)
            is_nan, was_nan = math.compare("!=", value, value), math.compare("!=", before, before)
            better = builder.or_(math.compare(">", value, before), builder.and_(is_nan, builder.not_(was_nan)))
            none_yet = builder.icmp_signed(
                "<", found, math.integer(0)
            )  # a first element of -inf is no better than the start
            taken = builder.and_(valid, builder.or_(better, none_yet))
            here = row.columns(builder.add(offset, column), row.stride)
            here = here if math.bits == 32 else builder.sext(here, math.int)
            builder.store(math.select(taken, value, before), best)
            builder.store(math.select(taken, here, found), places)

        def end(first, outputs):
            # the masked store takes floats: these are the bits of integers
            place = element_pointer(context, builder, target, args[10], first)
            math.store(math.as_float(builder.load(places, typ=math.int)), place, outputs)

        row.run(begin, tap, end)
        return context.get_dummy_value()

    return types.void(stride, image, *GEOMETRY, target), generate


@intrinsic(prefer_literal=True)
def window_mean(
    typing, stride, image, start, rows, pitch, width, left, size, dilation, count, target, target_start, divisor
):
    """target[target_start + o] = the sum of window o / divisor; divisor 0: the number of its elements in the image."""
    step = _literal(stride)
    if step is None:
        return None

    def generate(context, builder, signature, args):
        row = _Row(context, builder, image, args[1], step, args[2:10])
        math = row.math
        total = cgutils.alloca_once(builder, math.float)

        def tap(offset, column, valid):
            before = builder.load(total, typ=math.float)
            after = math.add(before, row.load(offset, column, valid))
            builder.store(math.select(valid, after, before), total)

        def end(first, outputs):
            place = element_pointer(context, builder, target, args[10], builder.add(args[11], first))
            mean = math.div(builder.load(total, typ=math.float), row.divisors(first, args[12]))
            math.store(mean, place, outputs)

        row.run(lambda first, outputs: builder.store(math.value(0.0), total), tap, end)
        return context.get_dummy_value()

    return types.void(stride, image, *GEOMETRY, target, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def window_spread(
    typing, stride, image, start, rows, pitch, width, left, size, dilation, count, source, source_start, divisor
):
    """Adds source[source_start + o] / divisor to every element of window o; divisor 0: the number of its elements in
    the image.
    """
    step = _literal(stride)
    if step is None:
        return None

    def generate(context, builder, signature, args):
        row = _Row(context, builder, image, args[1], step, args[2:10])
        math = row.math
        share = cgutils.alloca_once(builder, math.float)

        def begin(first, outputs):
            place = element_pointer(context, builder, source, args[10], builder.add(args[11], first))
            builder.store(math.div(math.load(place, outputs), row.divisors(first, args[12])), share)

        def tap(offset, column, valid):
            row.add(offset, column, valid, builder.load(share, typ=math.float))

        row.run(begin, tap, lambda first, outputs: None)
        return context.get_dummy_value()

    return types.void(stride, image, *GEOMETRY, source, types.int64, types.int64), generate


# ---- twins


def _taps(
    stride: int, start: int, rows: int, pitch: int, width: int, left: int, size: int, dilation: int, count: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(window, the elements of the image that it covers, in row-major order) of each window of a row."""
    for o in range(count):
        columns = o * stride - left + np.arange(size) * dilation
        columns = columns[(columns >= 0) & (columns < width)]
        yield o, (start + np.arange(rows)[:, None] * pitch + columns).reshape(-1)


@twin(window_places)
def _window_places(stride, image, start, rows, pitch, width, left, size, dilation, count, target):
    flat = image.reshape(-1)
    for o, places in _taps(stride, start, rows, pitch, width, left, size, dilation, count):
        target[o] = places[np.argmax(flat[places])] - start  # argmax gives the first NaN or maximum


@twin(window_mean)
def _window_mean(stride, image, start, rows, pitch, width, left, size, dilation, count, target, target_start, divisor):
    flat = image.reshape(-1)
    for o, places in _taps(stride, start, rows, pitch, width, left, size, dilation, count):
        target.reshape(-1)[target_start + o] = flat[places].sum() / image.dtype.type(divisor or places.size)


@twin(window_spread)
def _window_spread(
    stride, image, start, rows, pitch, width, left, size, dilation, count, source, source_start, divisor
):
    flat = image.reshape(-1)
    for o, places in _taps(stride, start, rows, pitch, width, left, size, dilation, count):
        flat[places] += source.reshape(-1)[source_start + o] / image.dtype.type(divisor or places.size)
