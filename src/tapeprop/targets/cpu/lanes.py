"""Rows of a convolution whose vector lanes are images of a batch, for Numba bodies.

An activation is (N / L, C, H, W, L): the L images of a pixel lie side by side and fill whole vectors. So the lanes work at any
width, channel count and stride, a weight is one number for the whole vector, and no pixel is ever gathered. Offsets of activations
count pixels, those of weights elements.

`correlate_row` makes one row of outputs for a few output channels, in tiles of channels x pixels whose sums stay in registers.
`weight_rows` adds rows of pixels to the gradients of a few weights, lane by lane. Where a tile reaches beyond the image its loads
are masked: padding costs no copy and nothing is known of it when the code is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapeprop.targets.cpu.emission import I64, POINTER, Emitter, call_function, literals, pointer
from tapeprop.targets.cpu.machine import vector_registers
from tapeprop.targets.cpu.plain import twin

__all__ = [
    "BIAS",
    "NOTHING",
    "RESULT",
    "LaneEmitter",
    "copy_rows",
    "correlate_row",
    "lane_sums",
    "pixels_of",
    "weight_rows",
]

Value = Any  # an llvmlite.ir value
I32 = ir.IntType(32)


class LaneEmitter(Emitter):
    """Arithmetic on vectors of `lanes` elements, and pointers to pixels of `width` elements, a multiple of the lanes."""

    def __init__(self, builder: ir.IRBuilder, bits: int, lanes: int, width: int) -> None:
        super().__init__(builder, bits, lanes)
        self.parts = width // lanes
        self.pixel = ir.ArrayType(self.float_scalar, width)

    def step(self, place: Value, *pixels: Value | int) -> Value:
        """`place` plus offsets in pixels."""
        for offset in pixels:
            index = I64(offset) if isinstance(offset, int) else offset
            place = self.builder.gep(place, [index], source_etype=self.pixel)
        return place

    def beside(self, place: Value, base: Value, other: Value) -> Value:
        """What lies as far behind `other` as `place` behind `base`."""
        b = self.builder
        distance = b.sub(b.ptrtoint(place, I64), b.ptrtoint(base, I64))
        return b.inttoptr(b.add(b.ptrtoint(other, I64), distance), POINTER)

    def slot(self) -> Value:
        """A place on the stack for a vector, zero at first; LLVM keeps it in a register."""
        return cgutils.alloca_once_value(self.builder, self.value(0.0))

    def get(self, slot: Value) -> Value:
        return self.builder.load(slot, typ=self.float)

    def column_mask(self, column: Value, columns: Value) -> Value:
        """Every lane true if 0 <= column < columns: a negative column is a large unsigned number."""
        return self.broadcast(self.builder.icmp_unsigned("<", column, columns))

    def keep_order(self) -> None:
        """A fence for the compiler alone: no load moves across it, and it is no instruction.

        With 16 registers LLVM's scheduler moves the loads of later taps up until sums are spilled (llvmlite 0.50): an input gradient
        ran at 77 % of the peak with a spill in its loop and at 94 % without.
        """
        self.builder.fence("seq_cst", "singlethread")

    def prefetch(self, place: Value) -> None:
        """Asks for the cache line at `place` in the second-level cache."""
        module, name = self.builder.module, "llvm.prefetch.p0"
        function = module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
            function = ir.Function(module, kind, name)
        self.builder.call(function, [place, I32(0), I32(2), I32(1)])


def pixels_of(array: np.ndarray, width: int) -> np.ndarray:
    """A view of whole pixels, for the twins; scratch may end with a part of one."""
    return array.reshape(-1)[: array.size // width * width].reshape(-1, width)


# ---- the correlation

#: What a sum of `correlate_row` begins with.
NOTHING, BIAS, RESULT = 0, 1, 2

_ROW = (
    "x x_start x_channel x_row columns first w w_start w_m w_channel w_row depth rows "
    "bias bias_start begin floor y y_start y_channel y_step count "
    "ahead ahead_channel ahead_channels ahead_row ahead_rows"
).split()


@intrinsic(prefer_literal=True)
def correlate_row(
    typing_context, lanes, width, outs, fewer_outs, pixels, taps, fewer_taps, stride, w_tap, use_outs, use_taps,
    x, x_start, x_channel, x_row, columns, first, w, w_start, w_m, w_channel, w_row, depth, rows,
    bias, bias_start, begin, floor, y, y_start, y_channel, y_step, count,
    ahead, ahead_channel, ahead_channels, ahead_row, ahead_rows,
):  # fmt: skip
    """y[m, q] = a beginning + the sum over channel, row, tap of x[channel, row, first + q stride + tap] w[m, channel, row, tap].

    For `use_outs` output channels m, `count` pixels q of one row and `use_taps` taps. The arguments before those two are literal
    ints: elements of a vector and of a pixel; the tile, outs x pixels, and the taps of a row of the filter, with the two values that
    use_outs and use_taps may have; the stride; how far the weights of two taps are apart.

    x: the pixel at x_start + channel x_channel + row x_row + column, of `depth` channels and `rows` rows; columns outside
    0 <= column < columns count as zero. w: the element at w_start + m w_m + channel w_channel + row w_row + tap w_tap.
    y: the pixel at y_start + m y_channel + q y_step. begin: what a sum begins with, `NOTHING`, `BIAS` (at bias_start + m) or `RESULT`,
    which y holds already. floor: where not 0, negative results become 0. A sum runs over channels, rows and taps in rising order,
    the taps of one phase of the stride one after another, whatever the tile.

    What lies `ahead` pixels behind x is asked for meanwhile, of the `ahead_channels` channels from `ahead_channel` on and the
    `ahead_rows` rows from `ahead_row` on.
    """
    literal = literals([lanes, width, outs, fewer_outs, pixels, taps, fewer_taps, stride, w_tap])
    if literal is None:
        return None
    kinds = {"x": x, "w": w, "bias": bias, "y": y}
    fixed = (lanes, width, outs, fewer_outs, pixels, taps, fewer_taps, stride, w_tap)
    signature = types.void(*fixed, *[types.intp] * 2, *[kinds.get(name, types.intp) for name in _ROW])
    lanes_, width_, outs_, fewer_outs_, pixels_, taps_, fewer_taps_, stride_, w_tap_ = literal
    bits = x.dtype.bitwidth

    def codegen(context, builder, _signature, args):
        values = [
            pointer(context, builder, kinds[name], value) if name in kinds else value
            for name, value in zip(_ROW, args[11:])
        ]
        variants = sorted({(m, k) for m in (outs_, fewer_outs_) for k in (taps_, fewer_taps_)})
        for m, k in variants:
            tile = (m, pixels_, k, stride_, w_tap_)

            def emit(inner, parameters, tile=tile):
                _Correlation(LaneEmitter(inner, bits, lanes_, width_), dict(zip(_ROW, parameters)), *tile).emit()

            name = f"correlate_row_{bits}_{'_'.join(map(str, (lanes_, width_, *tile)))}"
            wanted = builder.and_(
                builder.icmp_signed("==", args[9], I64(m)), builder.icmp_signed("==", args[10], I64(k))
            )
            with builder.if_then(wanted):
                call_function(builder, name, values, emit)
        return context.get_dummy_value()

    return signature, codegen


class _Correlation:
    """The code of `correlate_row` for one tile."""

    def __init__(
        self, e: LaneEmitter, given: dict[str, Value], outs: int, pixels: int, taps: int, stride: int, w_tap: int
    ) -> None:
        self.e, self.given, self.outs, self.pixels = e, given, outs, pixels
        self.stride, self.w_tap = stride, w_tap
        # the taps of one phase meet the same columns: one after another, they share what is loaded
        self.taps = sorted(range(taps), key=lambda tap: (tap % stride, tap))
        self.window = (pixels - 1) * stride + taps
        self.in_order = vector_registers() < 32

    def emit(self) -> None:
        """The tiles of the row; those that lie inside the image and the row need no masks."""
        e, b, given = self.e, self.e.builder, self.given
        x, y = e.step(given["x"], given["x_start"]), e.step(given["y"], given["y_start"])
        w = e.move(given["w"], given["w_start"])
        has_bias = b.icmp_signed("==", given["begin"], I64(BIAS))
        bias = b.select(has_bias, e.move(given["bias"], given["bias_start"]), w)
        self.starts = []
        for m in range(self.outs):
            value = b.load(e.move(bias, b.select(has_bias, I64(m), I64(0))), typ=e.float_scalar)
            self.starts.append(b.select(has_bias, value, e.float_scalar(0.0)))
        is_floor = b.icmp_signed("!=", given["floor"], I64(0))
        self.floor = b.select(is_floor, e.float_scalar(0.0), e.float_scalar(float("-inf")))
        with cgutils.for_range_slice(b, I64(0), given["count"], I64(self.pixels), I64) as (q, _):
            column = b.add(given["first"], b.mul(q, I64(self.stride)))
            left = b.sub(given["count"], q)
            seen = b.icmp_signed("<=", b.add(column, I64(self.window)), given["columns"])
            inside = b.and_(b.icmp_signed(">=", column, I64(0)), seen)
            inside = b.and_(inside, b.icmp_signed("<=", I64(self.pixels), left))
            source, target = e.step(x, column), e.step(y, b.mul(q, given["y_step"]))
            with b.if_else(inside) as (middle, edge):
                with middle:
                    self.tile(source, w, target, None, None)
                with edge:
                    self.tile(source, w, target, column, left)

    def tile(self, x: Value, w: Value, y: Value, column: Value | None, left: Value | None) -> None:
        """One tile. column: that of x; left: the pixels left in the row; None where all of the tile lies inside."""
        e, b, given = self.e, self.e.builder, self.given
        sums = [[[e.slot() for _ in range(e.parts)] for _ in range(self.pixels)] for _ in range(self.outs)]
        with b.if_else(b.icmp_signed("==", given["begin"], I64(RESULT))) as (resumed, begun):
            with resumed:
                for p in range(self.pixels):
                    if left is None:
                        self.resume(sums, y, p)
                    else:
                        with b.if_then(b.icmp_signed(">", left, I64(p))):
                            self.resume(sums, y, p)
            with begun:
                for start, row in zip(self.starts, sums):
                    for slot in chain.from_iterable(row):
                        b.store(e.broadcast(start), slot)
        masks: list[Value] = [None] * self.window
        met: list[Value] = [None] * len(self.taps)
        if column is not None:
            columns = [b.add(column, I64(j)) for j in range(self.window)]
            if self.pixels > 1:
                masks = [e.column_mask(j, given["columns"]) for j in columns]
            for tap in self.taps:
                last = columns[tap + (self.pixels - 1) * self.stride]
                below = b.icmp_signed("<", columns[tap], given["columns"])
                met[tap] = b.and_(below, b.icmp_signed(">=", last, I64(0)))
        with cgutils.for_range(b, given["depth"], intp=I64) as channel:
            x_channel = e.step(x, b.mul(channel.index, given["x_channel"]))
            w_channel = e.move(w, b.mul(channel.index, given["w_channel"]))
            with cgutils.for_range(b, given["rows"], intp=I64) as row:
                x_row = e.step(x_channel, b.mul(row.index, given["x_row"]))
                self.look_ahead(x_row, channel.index, row.index)
                self.products(sums, x_row, e.move(w_channel, b.mul(row.index, given["w_row"])), masks, met)
        floor = e.broadcast(self.floor)
        for p in range(self.pixels):
            if left is None:
                self.store(sums, y, p, floor)
            else:
                with b.if_then(b.icmp_signed(">", left, I64(p))):
                    self.store(sums, y, p, floor)

    def look_ahead(self, x_row: Value, channel: Value, row: Value) -> None:
        """Asks for the pixels of a later row that only this tile's place in it will read first."""
        e, b, given = self.e, self.e.builder, self.given
        wanted = [
            b.icmp_unsigned("<", b.sub(index, given[f"ahead_{name}"]), given[f"ahead_{name}s"])
            for name, index in (("channel", channel), ("row", row))
        ]
        with b.if_then(b.and_(*wanted)):
            line, reach = e.step(x_row, given["ahead"]), range(min(self.stride, len(self.taps)))
            for j in sorted({p * self.stride + tap for p in range(self.pixels) for tap in reach}):
                e.prefetch(e.step(line, j))

    def products(self, sums: list[list[list[Value]]], x: Value, w: Value, masks: list[Value], met: list[Value]) -> None:
        """Adds one row of taps of one channel. met: whether a tap meets the image at all; None for certainly."""
        e, b = self.e, self.e.builder
        w_m, twice = self.given["w_m"], b.mul(self.given["w_m"], I64(2))
        # one pointer for three rows: x86 addresses reach w, w + step and w + 2 step
        thirds = [e.move(w, b.mul(w_m, I64(m))) for m in range(0, self.outs, 3)]
        loaded: dict[int, list[Value]] = {}

        def add(tap: int, loaded: dict[int, list[Value]]) -> None:
            for j in range(tap, self.window, self.stride)[: self.pixels]:
                if j not in loaded:
                    loaded[j] = [e.load(e.move(e.step(x, j), i * e.lanes), masks[j]) for i in range(e.parts)]
            for m, row in enumerate(sums):
                weight = e.scalar(e.move(thirds[m // 3], *([], [w_m], [twice])[m % 3], tap * self.w_tap))
                for p, slots in enumerate(row):
                    for slot, value in zip(slots, loaded[p * self.stride + tap]):
                        b.store(e.fma(weight, value, e.get(slot)), slot)

        for tap in self.taps:
            if self.in_order:
                e.keep_order()
            if met[tap] is None:
                add(tap, loaded)
            else:
                with b.if_then(met[tap]):
                    add(tap, {})

    def resume(self, sums: list[list[list[Value]]], y: Value, p: int) -> None:
        """Reads the sums of pixel p back."""
        for slot, place in self.places(sums, y, p):
            self.e.builder.store(self.e.load(place), slot)

    def store(self, sums: list[list[list[Value]]], y: Value, p: int, floor: Value) -> None:
        """Writes the results of pixel p."""
        e = self.e
        for slot, place in self.places(sums, y, p):
            value = e.get(slot)
            e.store(e.select(e.compare("<", value, floor), floor, value), place)  # a NaN compares false and stays

    def places(self, sums: list[list[list[Value]]], y: Value, p: int) -> Iterator[tuple[Value, Value]]:
        """(sum, its place in y) for the vectors of pixel p."""
        e, b = self.e, self.e.builder
        place = e.step(y, b.mul(self.given["y_step"], I64(p)))
        for row in sums:
            for i, slot in enumerate(row[p]):
                yield slot, e.move(place, i * e.lanes)
            place = e.step(place, self.given["y_channel"])


@twin(correlate_row)
def _correlate_row(
    lanes, width, outs, fewer_outs, pixels, taps, fewer_taps, stride, w_tap, use_outs, use_taps,
    x, x_start, x_channel, x_row, columns, first, w, w_start, w_m, w_channel, w_row, depth, rows,
    bias, bias_start, begin, floor, y, y_start, y_channel, y_step, count,
    ahead, ahead_channel, ahead_channels, ahead_row, ahead_rows,
):  # fmt: skip
    x, y, w = pixels_of(x, width), pixels_of(y, width), w.reshape(-1)
    q, m, channels = np.arange(count), np.arange(use_outs)[:, None], np.arange(depth)
    sums = np.zeros((use_outs, count, width), y.dtype)
    if begin == RESULT:
        sums += y[y_start + m * y_channel + q * y_step]
    elif begin == BIAS:
        sums += bias.reshape(-1)[bias_start : bias_start + use_outs, None, None]
    for row in range(rows):
        for tap in range(use_taps):
            column = first + q * stride + tap
            seen = q[(column >= 0) & (column < columns)]
            places = x_start + channels[:, None] * x_channel + row * x_row + first + seen * stride + tap
            weights = w[w_start + m * w_m + channels * w_channel + row * w_row + tap * w_tap]
            sums[:, seen] += np.tensordot(weights, x[places], 1)
    y[y_start + m * y_channel + q * y_step] = np.where(sums < 0, 0, sums) if floor else sums


# ---- panels


@intrinsic(prefer_literal=True)
def copy_rows(typing_context, lanes, width, x, x_start, x_row, rows, count, y, y_start, y_row):
    """y[y_start + row y_row + q] = x[x_start + row x_row + q] for `rows` rows of `count` pixels; places as in `correlate_row`."""
    literal = literals([lanes, width])
    if literal is None:
        return None
    bits = x.dtype.bitwidth

    def emit(builder, parameters):
        e = LaneEmitter(builder, bits, *literal)
        source, target = e.step(parameters[0], parameters[1]), e.step(parameters[5], parameters[6])
        with cgutils.for_range(builder, parameters[3], intp=I64) as row:
            from_row = e.step(source, builder.mul(row.index, parameters[2]))
            to_row = e.step(target, builder.mul(row.index, parameters[7]))
            with cgutils.for_range(builder, parameters[4], intp=I64) as q:
                for part in range(e.parts):
                    value = e.load(e.move(e.step(from_row, q.index), part * e.lanes))
                    e.store(value, e.move(e.step(to_row, q.index), part * e.lanes))

    def codegen(context, builder, _signature, args):
        x_place, y_place = pointer(context, builder, x, args[2]), pointer(context, builder, y, args[7])
        values = [x_place, *args[3:7], y_place, *args[8:]]
        call_function(builder, f"copy_rows_{bits}_{'_'.join(map(str, literal))}", values, emit)
        return context.get_dummy_value()

    return types.void(lanes, width, x, *[types.intp] * 4, y, types.intp, types.intp), codegen


@twin(copy_rows)
def _copy_rows(lanes, width, x, x_start, x_row, rows, count, y, y_start, y_row):
    row, q = np.arange(rows)[:, None], np.arange(count)
    pixels_of(y, width)[y_start + row * y_row + q] = pixels_of(x, width)[x_start + row * x_row + q]


# ---- the gradient of the weights


_GRADIENT = (
    "x x_start x_channel x_row columns first dy dy_start dy_channel dy_row before inside count rows tiles fresh "
    "sums sums_start"
).split()


@intrinsic(prefer_literal=True)
def weight_rows(
    typing_context, lanes, width, outs, fewer_outs, ins, taps, stride, use_outs,
    x, x_start, x_channel, x_row, columns, first, dy, dy_start, dy_channel, dy_row, before, inside, count, rows, tiles,
    fresh, sums, sums_start,
):  # fmt: skip
    """sums[t, m, c, tap] += the sum over row, q, part of x[t ins + c, row, first + q stride + tap, part] dy[m, row, q, part].

    For `tiles` tiles t of `ins` input channels c with `use_outs` output channels m, and `count` pixels q of `rows` rows; the parts
    of a pixel are its vectors, so that a sum is one vector. The arguments before use_outs are literal ints: elements of a vector
    and of a pixel; the tile, outs x ins x taps, with the two values that use_outs may have; the stride. Places in x and dy as in
    `correlate_row`; what pixels before <= q < inside see has to lie inside the image. sums: the vector at sums_start
    + ((t use_outs + m) ins + c) taps + tap; where fresh is not 0 they are written over. What is added is summed over rows, pixels
    and parts in rising order first.
    """
    literal = literals([lanes, width, outs, fewer_outs, ins, taps, stride])
    if literal is None:
        return None
    kinds = {"x": x, "dy": dy, "sums": sums}
    fixed = (lanes, width, outs, fewer_outs, ins, taps, stride)
    signature = types.void(*fixed, types.intp, *[kinds.get(name, types.intp) for name in _GRADIENT])
    lanes_, width_, outs_, fewer_outs_, ins_, taps_, stride_ = literal
    bits = x.dtype.bitwidth

    def codegen(context, builder, _signature, args):
        values = [
            pointer(context, builder, kinds[name], value) if name in kinds else value
            for name, value in zip(_GRADIENT, args[8:])
        ]
        for m in sorted({outs_, fewer_outs_}):
            tile = (m, ins_, taps_, stride_)

            def emit(inner, parameters, tile=tile):
                given = dict(zip(_GRADIENT, parameters))
                _WeightGradient(LaneEmitter(inner, bits, lanes_, width_), given, *tile).emit()

            name = f"weight_rows_{bits}_{'_'.join(map(str, (lanes_, width_, *tile)))}"
            with builder.if_then(builder.icmp_signed("==", args[7], I64(m))):
                call_function(builder, name, values, emit)
        return context.get_dummy_value()

    return signature, codegen


class _WeightGradient:
    """The code of `weight_rows` for one tile."""

    def __init__(self, e: LaneEmitter, given: dict[str, Value], outs: int, ins: int, taps: int, stride: int) -> None:
        self.e, self.given, self.outs, self.ins, self.taps, self.stride = e, given, outs, ins, taps, stride

    def emit(self) -> None:
        """The pixels of each row one by one; those at its ends meet only some taps."""
        e, b, given = self.e, self.e.builder, self.given
        x, dy = e.step(given["x"], given["x_start"]), e.step(given["dy"], given["dy_start"])
        sums = e.move(given["sums"], b.mul(given["sums_start"], I64(e.lanes)))
        size = self.outs * self.ins * self.taps
        with cgutils.for_range(b, given["tiles"], intp=I64) as tile:
            x_tile = e.step(x, b.mul(tile.index, b.mul(given["x_channel"], I64(self.ins))))
            target = e.move(sums, b.mul(tile.index, I64(size * e.lanes)))
            self.sums = [e.slot() for _ in range(size)]
            for slot in self.sums:
                b.store(e.value(0.0), slot)
            with cgutils.for_range(b, given["rows"], intp=I64) as row:
                self.row(
                    e.step(x_tile, b.mul(row.index, given["x_row"])), e.step(dy, b.mul(row.index, given["dy_row"]))
                )
            fresh = b.icmp_signed("!=", given["fresh"], I64(0))
            for i, slot in enumerate(self.sums):
                place = e.move(target, i * e.lanes)
                e.store(e.add(b.select(fresh, e.value(0.0), e.load(place)), e.get(slot)), place)

    def row(self, x: Value, dy: Value) -> None:
        """Adds the products of a row: the pixels at its left end, those inside, those at its right end."""
        b, given = self.e.builder, self.given
        for begin, end, edge in (
            (I64(0), given["before"], True),
            (given["before"], given["inside"], False),
            (given["inside"], given["count"], True),
        ):
            with cgutils.for_range_slice(b, begin, end, I64(1), I64) as (q, _):
                self.add(x, dy, q, edge)

    def add(self, x: Value, dy: Value, q: Value, edge: bool) -> None:
        """Adds the products of pixel q."""
        e, b, given = self.e, self.e.builder, self.given
        column = b.add(b.mul(q, I64(self.stride)), given["first"])
        lines = [e.step(x, column, b.mul(given["x_channel"], I64(c))) for c in range(self.ins)]
        pixels = [e.step(dy, q, b.mul(given["dy_channel"], I64(m))) for m in range(self.outs)]
        if not edge:
            for part in range(e.parts):
                self.products(lines, pixels, range(self.taps), part)
            return
        for tap in range(self.taps):
            met = b.icmp_unsigned("<", b.add(column, I64(tap)), given["columns"])
            with b.if_then(met):
                for part in range(e.parts):
                    self.products(lines, pixels, [tap], part)

    def products(self, lines: list[Value], pixels: list[Value], taps: Iterable[int], part: int) -> None:
        """Adds the products of one vector of a pixel and of the columns that `taps` meet."""
        e = self.e
        if vector_registers() < 32:
            e.keep_order()
        gradients = [e.load(e.move(pixel, part * e.lanes)) for pixel in pixels]
        for c, line in enumerate(lines):
            for tap in taps:
                value = e.load(e.move(e.step(line, tap), part * e.lanes))
                for m, gradient in enumerate(gradients):
                    slot = self.sums[(m * self.ins + c) * self.taps + tap]
                    e.builder.store(e.fma(value, gradient, e.get(slot)), slot)


@twin(weight_rows)
def _weight_rows(
    lanes, width, outs, fewer_outs, ins, taps, stride, use_outs,
    x, x_start, x_channel, x_row, columns, first, dy, dy_start, dy_channel, dy_row, before, inside, count, rows, tiles,
    fresh, sums, sums_start,
):  # fmt: skip
    x, dy, sums = pixels_of(x, width), pixels_of(dy, width), pixels_of(sums, lanes)
    row, q, m, c = np.arange(rows)[:, None], np.arange(count), np.arange(use_outs)[:, None], np.arange(ins)
    for tile in range(tiles):
        for tap in range(taps):
            column = first + q * stride + tap
            seen = q[(column >= 0) & (column < columns)]
            channels = (tile * ins + c)[:, None, None] * x_channel
            values = x[x_start + channels + row * x_row + first + seen * stride + tap]
            gradients = dy[dy_start + m[:, :, None] * dy_channel + row * dy_row + seen]
            parts = (width // lanes, lanes)
            found = np.einsum(
                "crqpl,mrqpl->mcl",
                values.reshape(*values.shape[:-1], *parts),
                gradients.reshape(*gradients.shape[:-1], *parts),
            )
            places = sums_start + ((tile * use_outs + m) * ins + c) * taps + tap
            sums[places] = found if fresh else sums[places] + found


@intrinsic(prefer_literal=True)
def lane_sums(typing_context, width, array, start, count, y, y_start):
    """y[y_start + i] = the sum of the elements of pixel start + i of an array, added in halves, for i < count.

    width: a literal int, the elements of a pixel.
    """
    literal = literals([width])
    if literal is None:
        return None
    bits = array.dtype.bitwidth

    def emit(builder, parameters):
        e = LaneEmitter(builder, bits, literal[0], literal[0])
        source, target = e.step(parameters[0], parameters[1]), e.move(parameters[3], parameters[4])
        with cgutils.for_range(builder, parameters[2], intp=I64) as loop:
            value, half = e.load(e.step(source, loop.index)), e.lanes // 2
            while half:
                order = ir.Constant(ir.VectorType(I32, e.lanes), [i ^ half for i in range(e.lanes)])
                value, half = e.add(value, builder.shuffle_vector(value, value, order)), half // 2
            builder.store(builder.extract_element(value, I32(0)), e.move(target, loop.index), align=bits // 8)

    def codegen(context, builder, _signature, args):
        values = [pointer(context, builder, array, args[1]), *args[2:4], pointer(context, builder, y, args[4]), args[5]]
        call_function(builder, f"lane_sums_{bits}_{literal[0]}", values, emit)
        return context.get_dummy_value()

    return types.void(width, array, types.intp, types.intp, y, types.intp), codegen


@twin(lane_sums)
def _lane_sums(width, array, start, count, y, y_start):
    values = pixels_of(array, width)[start : start + count]
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    y.reshape(-1)[y_start : y_start + count] = values[:, 0]
