"""Rows of a convolution whose vector lanes are images of a batch, for Numba bodies (the layout is that of `targets.cpu.lanes`).

`correlate_row` makes one row of outputs for a few output channels, in tiles of channels x pixels whose sums stay in registers. Where a
tile reaches beyond the image its loads are masked: padding costs no copy and nothing is known of it when the code is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapeprop.targets.cpu.emission import I64, call_function, literals, pointer
from tapeprop.targets.cpu.lanes import LaneEmitter, pixels_of
from tapeprop.targets.cpu.machine import vector_registers
from tapeprop.targets.cpu.plain import twin

__all__ = ["BIAS", "NOTHING", "RESULT", "correlate_row"]

Value = Any  # an llvmlite.ir value

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
