"""One row of pooling windows at a time, for Numba bodies: the mean and its transpose, and the places of the maxima.

A row of `count` windows slides over `rows` image rows of `width` elements, the first at element `start` of the image:
window o covers columns o stride - left to o stride - left + size. Outputs lie along the lanes; columns outside the
image and the outputs beyond the last are masked, so padding and tails need no code of their own and nothing outside
is read. The stride is a literal: 1 and 2 load whole vectors, the others gather. For the maxima the rows are copied first, with
their padding, as comparing without masks is several times as fast.

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

__all__ = ["padded_row", "window_mean", "window_places", "window_spread"]

INT64, INT32 = ir.IntType(64), ir.IntType(32)
LANE_BITS = 512
GEOMETRY = (types.int64,) * 6  # start, rows, width, left, size, count


# ---- emission


class _Row:
    """The loops over the windows of one row: `lanes` outputs, then image rows, then columns of the window."""

    def __init__(self, context: Any, builder: Any, kind: Any, image: Any, stride: int, geometry: Any) -> None:
        self.builder, self.stride = builder, stride
        self.math = VectorArithmetic(builder, kind.dtype.bitwidth, LANE_BITS // kind.dtype.bitwidth)
        self.start, self.rows, self.width, self.left, self.size, self.count = geometry
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
                column = b.add(origin, tap_number.index)
                valid = b.and_(outputs, self.inside(column, self.stride))
                tap(b.mul(row.index, self.width), column, valid)
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


@intrinsic
def padded_row(typing, image, start, width, work, at):
    """work[at], work[at + 1], ... = the bits of image[start : start + width], and of -inf to the end of the last vector.

    work: int32 for a float32 image, int64 for float64.
    """

    def generate(context, builder, signature, args):
        bits = image.dtype.bitwidth
        b, math = builder, VectorArithmetic(builder, bits, LANE_BITS // bits)
        with cgutils.for_range_slice(b, INT64(0), args[2], INT64(math.lanes), INT64) as (first, _):
            inside = math.lane_mask(b.sub(args[2], first))
            found = math.load(element_pointer(context, b, image, args[0], b.add(args[1], first)), inside)
            place = element_pointer(context, b, work, args[3], b.add(args[4], first))
            math.store(math.select(inside, found, -np.inf), place)
        return context.get_dummy_value()

    return types.void(image, types.int64, types.int64, work, types.int64), generate


@intrinsic(prefer_literal=True)
def window_places(typing, stride, work, at, span, rows, pitch, left, size, dilation, count, room):
    """work[room + o] = the place of the first maximum of window o, or of its first NaN, counted from the first row's start.

    work: the bits of the padded rows, `span` apart from element `at` on (`padded_row`); from 0 on the place of each window's
    first element within the image, which stands where there is nothing but -inf. pitch: of rows in the image. Rows and
    places have room for whole vectors.
    """
    step = _literal(stride)
    if step is None:
        return None

    def generate(context, builder, signature, args):
        at, span, rows, pitch, left, size, dilation, count, room = args[2:]
        bits = work.dtype.bitwidth
        b, math = builder, VectorArithmetic(builder, bits, LANE_BITS // bits)
        best, places = cgutils.alloca_once(b, math.float), cgutils.alloca_once(b, math.int)
        steps = ir.Constant(math.int, [step * i for i in range(math.lanes)])

        def element(index):
            return element_pointer(context, b, work, args[1], index)

        def load(index):
            if step == 1:
                return math.load(element(index))
            if step == 2:
                low, high = math.load(element(index)), math.load(element(b.add(index, INT64(math.lanes))))
                even = ir.Constant(ir.VectorType(INT32, math.lanes), list(range(0, 2 * math.lanes, 2)))
                return b.shuffle_vector(low, high, even)
            return math.gather(element(index), INT64(step))

        with cgutils.for_range_slice(b, INT64(0), count, INT64(math.lanes), INT64) as (first, _):
            b.store(math.value(-np.inf), best)
            b.store(b.load(element(first), typ=math.int, align=bits // 8), places)
            origin = b.mul(first, INT64(step))
            with (
                cgutils.for_range(b, rows, intp=INT64) as row,
                cgutils.for_range(b, size, intp=INT64) as tap,
            ):
                column = b.add(origin, b.mul(tap.index, dilation))
                value = load(b.add(at, b.add(b.mul(row.index, span), column)))
                before, found = b.load(best, typ=math.float), b.load(places, typ=math.int)
                # greater, or the first NaN
                taken = b.and_(b.fcmp_unordered(">", value, before), math.compare("==", before, before))
                here = b.sub(b.add(b.mul(row.index, pitch), column), left)
                here = math.broadcast(b.trunc(here, math.int_scalar) if bits == 32 else here)
                b.store(math.select(taken, value, before), best)
                b.store(b.select(taken, b.add(here, steps), found), places)
            b.store(b.load(places, typ=math.int), element(b.add(room, first)), align=bits // 8)
        return context.get_dummy_value()

    return types.void(stride, work, *(types.int64,) * 9), generate


@intrinsic(prefer_literal=True)
def window_mean(typing, stride, image, start, rows, width, left, size, count, target, target_start, divisor):
    """target[target_start + o] = the sum of window o / divisor; divisor 0: the number of its elements in the image."""
    step = _literal(stride)
    if step is None:
        return None

    def generate(context, builder, signature, args):
        row = _Row(context, builder, image, args[1], step, args[2:8])
        math = row.math
        total = cgutils.alloca_once(builder, math.float)

        def tap(offset, column, valid):
            before = builder.load(total, typ=math.float)
            after = math.add(before, row.load(offset, column, valid))
            builder.store(math.select(valid, after, before), total)

        def end(first, outputs):
            place = element_pointer(context, builder, target, args[8], builder.add(args[9], first))
            mean = math.div(builder.load(total, typ=math.float), row.divisors(first, args[10]))
            math.store(mean, place, outputs)

        row.run(lambda first, outputs: builder.store(math.value(0.0), total), tap, end)
        return context.get_dummy_value()

    return types.void(stride, image, *GEOMETRY, target, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def window_spread(typing, stride, image, start, rows, width, left, size, count, source, source_start, divisor):
    """Adds source[source_start + o] / divisor to every element of window o; divisor 0: the number of its elements in
    the image.
    """
    step = _literal(stride)
    if step is None:
        return None

    def generate(context, builder, signature, args):
        row = _Row(context, builder, image, args[1], step, args[2:8])
        math = row.math
        share = cgutils.alloca_once(builder, math.float)

        def begin(first, outputs):
            place = element_pointer(context, builder, source, args[8], builder.add(args[9], first))
            builder.store(math.div(math.load(place, outputs), row.divisors(first, args[10])), share)

        def tap(offset, column, valid):
            row.add(offset, column, valid, builder.load(share, typ=math.float))

        row.run(begin, tap, lambda first, outputs: None)
        return context.get_dummy_value()

    return types.void(stride, image, *GEOMETRY, source, types.int64, types.int64), generate


# ---- twins


def _taps(
    stride: int, start: int, rows: int, width: int, left: int, size: int, count: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(window, the elements of the image that it covers, in row-major order) of each window of a row."""
    for o in range(count):
        first = o * stride - left
        columns = np.arange(max(first, 0), min(first + size, width))
        yield o, (start + np.arange(rows)[:, None] * width + columns).reshape(-1)


@twin(padded_row)
def _padded_row(image, start, width, work, at):
    lanes = LANE_BITS // 8 // image.itemsize
    target = work.view(image.dtype)
    target[at : at + -(-width // lanes) * lanes] = -np.inf
    target[at : at + width] = image[start : start + width]


@twin(window_places)
def _window_places(stride, work, at, span, rows, pitch, left, size, dilation, count, room):
    values = work.view(f"float{8 * work.itemsize}")
    row, tap = (part.reshape(-1) for part in np.divmod(np.arange(rows * size), size))
    for o in range(count):
        columns = o * stride + tap * dilation
        found = values[at + row * span + columns]
        best = np.argmax(found)  # the first NaN or maximum
        work[room + o] = work[o] if found[best] == -np.inf else row[best] * pitch + columns[best] - left


@twin(window_mean)
def _window_mean(stride, image, start, rows, width, left, size, count, target, target_start, divisor):
    flat = image.reshape(-1)
    for o, places in _taps(stride, start, rows, width, left, size, count):
        target.reshape(-1)[target_start + o] = flat[places].sum() / image.dtype.type(divisor or places.size)


@twin(window_spread)
def _window_spread(stride, image, start, rows, width, left, size, count, source, source_start, divisor):
    flat = image.reshape(-1)
    for o, places in _taps(stride, start, rows, width, left, size, count):
        flat[places] += source.reshape(-1)[source_start + o] / image.dtype.type(divisor or places.size)
