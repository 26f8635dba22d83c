"""Laying out the operands of a matrix product: panels transposed, planes staged, phases woven. This module imports numba."""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from tapeprop.targets.cpu.emission import I64, Emitter, Loop, call_function, literals, pointer
from tapeprop.targets.cpu.plain import twin

__all__ = ["stage_plane", "transpose_panel", "weave_row"]

Value = Any  # an llvmlite.ir value


@intrinsic(prefer_literal=True)
def transpose_panel(typing_context, lanes, x, x_start, x_step, rows, count, y, y_start, y_step):
    """y[y_start + s * y_step + i] = x[x_start + i * x_step + s] for i < rows <= lanes, s < count; rows >= 1.

    lanes: a literal int, the elements in a vector. Rows of y are written as whole vectors: what lies beyond `rows` up to
    `lanes` is overwritten. Blocks of lanes x lanes are transposed in registers.
    """
    literal = literals([lanes])
    if literal is None:
        return None
    signature = types.void(lanes, x, *[types.intp] * 4, y, types.intp, types.intp)

    def codegen(context, builder, _signature, args):
        values = [pointer(context, builder, x, args[1]), *args[2:6], pointer(context, builder, y, args[6]), *args[7:]]
        bits = x.dtype.bitwidth
        emit = lambda inner, parameters: _emit_transposition(Emitter(inner, bits, literal[0]), *parameters)  # noqa: E731
        call_function(builder, f"transpose_panel_{bits}_{literal[0]}", values, emit)
        return context.get_dummy_value()

    return signature, codegen


def _emit_transposition(e: Emitter, x, x_start, x_step, rows, count, y, y_start, y_step) -> None:
    """Blocks of lanes x lanes one after another; the last row stands in for those that are missing."""
    b, lines = e.builder, []
    for i in range(e.lanes):
        row = b.select(b.icmp_signed("<", I64(i), rows), I64(i), b.sub(rows, I64(1)))
        lines.append(b.mul(row, x_step))
    loop = Loop(b, "transpose", I64(0), e.move(x, x_start), e.move(y, y_start))
    done, source, target = loop.values
    loop.test(b.icmp_signed("<", done, count))
    rest = b.sub(count, done)
    mask = e.lane_mask(rest)
    block = _transposed(e, [e.load(e.move(source, line), mask) for line in lines])
    for s, row in enumerate(block):
        with b.if_then(b.icmp_signed("<", I64(s), rest), likely=True):
            e.store(row, e.move(target, b.mul(y_step, I64(s))))
    loop.close(b.add(done, I64(e.lanes)), e.move(source, e.lanes), e.move(target, b.mul(y_step, I64(e.lanes))))


def _transposed(e: Emitter, block: list[Value]) -> list[Value]:
    """The transpose of a square block of vectors: halves, quarters, ... trade places across the diagonal."""
    block, distance = list(block), e.lanes // 2
    while distance:
        low = [i if not i & distance else e.lanes + i - distance for i in range(e.lanes)]
        high = [i + distance if not i & distance else e.lanes + i for i in range(e.lanes)]
        for i in range(e.lanes):
            if not i & distance:
                pair = block[i], block[i + distance]
                block[i], block[i + distance] = (
                    e.builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), e.lanes), order))
                    for order in (low, high)
                )
        distance //= 2
    return block


@twin(transpose_panel)
def _transpose_panel(lanes, x, x_start, x_step, rows, count, y, y_start, y_step):
    x, y = x.reshape(-1), y.reshape(-1)
    for s in range(count):
        line = y_start + s * y_step
        y[line : line + lanes] = x[x_start + np.minimum(np.arange(lanes), rows - 1) * x_step + s]


@intrinsic(prefer_literal=True)
def stage_plane(
    typing_context, lanes, x, x_start, x_row, x_step, top, bottom, low, high, y, y_start, rows, count
):  # fmt: skip
    """y[y_start + u * count + j] = x[x_start + u * x_row + j * x_step] where top <= u < bottom and low <= j < high, else 0.

    For u < rows, j < count. lanes: a literal int, the elements in a vector. x_step 1 and 2 are fast.
    """
    literal = literals([lanes])
    if literal is None:
        return None
    signature = types.void(lanes, x, *[types.intp] * 7, y, *[types.intp] * 3)

    def codegen(context, builder, _signature, args):
        values = [
            pointer(context, builder, x, args[1]),
            *args[2:9],
            pointer(context, builder, y, args[9]),
            *args[10:],
        ]
        bits = x.dtype.bitwidth
        emit = lambda inner, parameters: _emit_staging(Emitter(inner, bits, literal[0]), *parameters)  # noqa: E731
        call_function(builder, f"stage_plane_{bits}_{literal[0]}", values, emit)
        return context.get_dummy_value()

    return signature, codegen


def _emit_staging(e, x, x_start, x_row, x_step, top, bottom, low, high, y, y_start, rows, count) -> None:
    """Vectors of columns one after another, so that their masks are made once, and down the rows of each."""
    b, zero, full = e.builder, I64(0), I64(e.lanes)

    def smaller(value, other):
        return b.select(b.icmp_signed("<", value, other), value, other)

    def larger(value, other):
        return b.select(b.icmp_signed(">", value, other), value, other)

    high = smaller(high, count)
    top = smaller(larger(top, zero), rows)
    bottom = smaller(larger(bottom, top), rows)
    columns = Loop(b, "columns", zero, e.move(x, x_start), e.move(y, y_start))
    j, x_top, y_top = columns.values
    columns.test(b.icmp_signed("<", j, count))
    first, end = b.sub(low, j), b.sub(high, j)
    written = e.lane_mask(b.sub(count, j))

    def down(loaded, stored):
        """Zeros above the image, its rows as `loaded(place)` has them, zeros below; `stored` is the mask of what is written."""
        u, target = zero, y_top
        for name, stop in (("above", top), ("rows", bottom), ("below", rows)):
            source = e.move(x_top, b.mul(u, x_row))
            loop = Loop(b, name, u, source, target)
            u, source, target = loop.values
            loop.test(b.icmp_signed("<", u, stop))
            e.store(loaded(source) if name == "rows" else e.value(0.0), target, stored)
            loop.close(b.add(u, I64(1)), e.move(source, x_row), e.move(target, count))

    def alternate():
        """Every other element: those wanted of two vectors, of which the last reaches no further than its last wanted one."""
        first_pair, end_pair = b.mul(first, I64(2)), b.sub(b.mul(end, I64(2)), I64(1))
        masks = e.window(first_pair, end_pair), e.window(b.sub(first_pair, full), b.sub(end_pair, full))
        even = ir.Constant(ir.VectorType(ir.IntType(32), e.lanes), list(range(0, 2 * e.lanes, 2)))

        def loaded(place):
            halves = [e.load(e.move(place, half * e.lanes), mask) for half, mask in enumerate(masks)]
            return b.shuffle_vector(*halves, even)

        down(loaded, written)

    whole = b.and_(b.icmp_signed("<=", first, zero), b.icmp_signed(">=", end, full))
    with b.if_else(b.icmp_signed("==", x_step, I64(1))) as (adjacent, apart):
        with adjacent, b.if_else(whole) as (inside, edge):
            with inside:
                down(e.load, None)
            with edge:
                wanted = e.window(first, end)
                down(lambda place: e.load(place, wanted), written)
        with apart, b.if_else(b.icmp_signed("==", x_step, I64(2))) as (two, more):
            with two:
                alternate()
            with more:
                gathered = e.window(first, end)
                down(lambda place: e.gather(place, x_step, gathered), written)
    columns.close(b.add(j, full), e.move(x_top, b.mul(full, x_step)), e.move(y_top, full))


@twin(stage_plane)
def _stage_plane(lanes, x, x_start, x_row, x_step, top, bottom, low, high, y, y_start, rows, count):
    x, plane = x.reshape(-1), y.reshape(-1)[y_start : y_start + rows * count].reshape(rows, count)
    plane[...] = 0
    columns = np.arange(max(low, 0), min(high, count))
    for u in range(max(top, 0), min(bottom, rows)):
        plane[u, columns] = x[x_start + u * x_row + columns * x_step]


@intrinsic(prefer_literal=True)
def weave_row(typing_context, lanes, x, x_start, x_step, phases, low, high, y, y_start):
    """y[y_start + e] = x[x_start + e % phases * x_step + e // phases] for 0 <= low <= e < high: phases side by side.

    lanes: a literal int, the elements in a vector. One and two phases are fast.
    """
    literal = literals([lanes])
    if literal is None:
        return None
    signature = types.void(lanes, x, *[types.intp] * 5, y, types.intp)

    def codegen(context, builder, _signature, args):
        values = [pointer(context, builder, x, args[1]), *args[2:7], pointer(context, builder, y, args[7]), args[8]]
        bits = x.dtype.bitwidth
        emit = lambda inner, parameters: _emit_weaving(Emitter(inner, bits, literal[0]), *parameters)  # noqa: E731
        call_function(builder, f"weave_row_{bits}_{literal[0]}", values, emit)
        return context.get_dummy_value()

    return signature, codegen


def _emit_weaving(e: Emitter, x, x_start, x_step, phases, low, high, y, y_start) -> None:
    b, zero, full = e.builder, I64(0), I64(e.lanes)
    x, y = e.move(x, x_start), e.move(y, y_start)
    numbers = range(2 * e.lanes)
    zipped = [n // 2 + (e.lanes if n % 2 else 0) for n in numbers]
    with b.if_else(b.icmp_signed("==", phases, I64(2))) as (two, other):
        with two:
            loop = Loop(b, "zip", zero)
            (j,) = loop.values
            at = b.mul(j, I64(2))
            loop.test(b.icmp_signed("<", at, high))
            mask = e.lane_mask(b.sub(b.sdiv(b.add(high, I64(1)), I64(2)), j))
            pair = [e.load(e.move(x, j), mask), e.load(e.move(x, x_step, j), mask)]
            for half in range(2):
                order = zipped[half * e.lanes : (half + 1) * e.lanes]
                value = b.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), e.lanes), order))
                start = b.add(at, I64(half * e.lanes))
                e.store(value, e.move(y, start), e.window(b.sub(low, start), b.sub(high, start)))
            loop.close(b.add(j, full))
        with other:
            outer = Loop(b, "phases", zero)
            (phase,) = outer.values
            outer.test(b.icmp_signed("<", phase, phases))
            last = b.sub(phases, I64(1))
            first, end = (b.sdiv(b.add(b.sub(edge, phase), last), phases) for edge in (low, high))
            loop = Loop(b, "spread", zero)
            (j,) = loop.values
            loop.test(b.icmp_signed("<", j, end))
            mask = e.window(b.sub(first, j), b.sub(end, j))
            value = e.load(e.move(x, b.mul(phase, x_step), j), mask)
            target = e.move(y, phase, b.mul(j, phases))
            with b.if_else(b.icmp_signed("==", phases, I64(1))) as (single, several):
                with single:
                    e.store(value, target, mask)
                with several:
                    e.scatter(value, target, phases, mask)
            loop.close(b.add(j, full))
            outer.close(b.add(phase, I64(1)))


@twin(weave_row)
def _weave_row(lanes, x, x_start, x_step, phases, low, high, y, y_start):
    places = np.arange(low, high)
    y.reshape(-1)[y_start + places] = x.reshape(-1)[x_start + places % phases * x_step + places // phases]
