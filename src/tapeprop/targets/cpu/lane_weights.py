"""Gradients of a convolution's weights where vector lanes are images of a batch (the layout is that of `targets.cpu.lanes`).

`weight_rows` adds rows of pixels to the gradients of a few weights, lane by lane; `lanes.lane_sums` makes numbers of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapeprop.targets.cpu.emission import I64, call_function, literals, pointer
from tapeprop.targets.cpu.lanes import LaneEmitter, pixels_of
from tapeprop.targets.cpu.machine import vector_registers
from tapeprop.targets.cpu.plain import twin

__all__ = ["weight_rows"]

Value = Any  # an llvmlite.ir value

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
    `lane_correlation`; what pixels before <= q < inside see has to lie inside the image. sums: the vector at sums_start
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
