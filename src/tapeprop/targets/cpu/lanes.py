"""Rows of a convolution whose vector lanes are images of a batch, for Numba bodies.

An activation is (N / L, C, H, W, L): every pixel is one vector of L images, 64 bytes wide on every machine (LLVM splits it
where registers are narrower). So each lane works at any width, channel count and stride, a weight is one number for the
whole vector, and no pixel is ever gathered. Offsets of activations count vectors, those of weights elements.

`correlate_row` makes one row of outputs for a few output channels: tiles of channels x pixels with their sums in registers.
`weight_row` adds a row of pixels to the gradients of a few weights, lane by lane. Both walk the row in tiles; where a tile
reaches beyond the image, its loads are masked, so that padding costs no copy and needs no code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapeprop.targets.cpu.plain import twin
from tapeprop.targets.cpu.vector_arithmetic import VectorArithmetic

__all__ = ["LANE_BYTES", "correlate_row"]

Value = Any  # an llvmlite.ir value
INT64, INT32 = ir.IntType(64), ir.IntType(32)
LANE_BYTES = 64  # of a pixel


class _Emitter(VectorArithmetic):
    """Arithmetic on pixels, with pointers that move by elements or by vectors."""

    def __init__(self, builder: ir.IRBuilder, bits: int) -> None:
        super().__init__(builder, bits, 8 * LANE_BYTES // bits)

    def count(self, n: Value | int) -> Value:
        return INT64(n) if isinstance(n, int) else n

    def move(self, place: Value, *elements: Value | int) -> Value:
        """`place` plus offsets in elements."""
        for offset in elements:
            place = self.builder.gep(place, [self.count(offset)], source_etype=self.float_scalar)
        return place

    def step(self, place: Value, *vectors: Value | int) -> Value:
        """`place` plus offsets in vectors."""
        for offset in vectors:
            place = self.builder.gep(place, [self.count(offset)], source_etype=self.float)
        return place

    def scalar(self, place: Value) -> Value:
        """The element at `place` in every lane."""
        return self.broadcast(self.builder.load(place, typ=self.float_scalar, align=self.bits // 8))

    def slots(self, count: int, initial: Value | None = None) -> list[Value]:
        """Places on the stack for vectors, zero at first; LLVM keeps them in registers."""
        return [cgutils.alloca_once_value(self.builder, self.value(0.0)) for _ in range(count)]

    def get(self, slot: Value) -> Value:
        return self.builder.load(slot, typ=self.float)

    def prefetch(self, place: Value, level: int) -> None:
        """Asks for the cache line at `place`: level 3 into the first cache, 2 into the second."""
        module, name = self.builder.module, "llvm.prefetch.p0"
        function = module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), INT32, INT32, INT32])
            function = ir.Function(module, kind, name)
        self.builder.call(function, [place, INT32(0), INT32(level), INT32(1)])


def _literals(kinds: Sequence[Any]) -> list[int] | None:
    """The values of integer literal types, or None where one is none; a body passes ints from its closure."""
    if not all(isinstance(kind, types.IntegerLiteral) for kind in kinds):
        return None
    return [kind.literal_value for kind in kinds]


def _pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: Value) -> Value:
    """The address of an array's first element as an opaque pointer (llvmlite's bitcast would leave Numba's typed one)."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.inttoptr(builder.ptrtoint(data, INT64), ir.PointerType())


def _call(builder: ir.IRBuilder, name: str, values: Sequence[Value], emit: Callable[[ir.IRBuilder, Any], None]) -> None:
    """Calls function `name` of the module, which `emit(builder, parameters)` fills at the first call.

    A function of its own, never inlined, optimised for size: LLVM would copy the tiles for every condition around them
    that a loop does not change, and compile for thrice as long (numba 0.68).
    """
    module = builder.module
    function = module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        function = ir.Function(module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        function.attributes.add("optsize")
        inner = ir.IRBuilder(function.append_basic_block("entry"))
        emit(inner, function.args)
        inner.ret_void()
    builder.call(function, values)


# ---- the correlation


_ROW = (
    "x x_start x_channel x_row columns first w w_start w_m w_channel w_row depth rows "
    "bias bias_start has_bias floor y y_start y_channel y_step count "
    "ahead ahead_channel ahead_channels ahead_row ahead_rows"
).split()
_ARRAYS = ("x", "w", "bias", "y")


@intrinsic(prefer_literal=True)
def correlate_row(
    typing_context, outs, pixels, taps, stride, w_tap,
    x, x_start, x_channel, x_row, columns, first, w, w_start, w_m, w_channel, w_row, depth, rows,
    bias, bias_start, has_bias, floor, y, y_start, y_channel, y_step, count, ahead, ahead_channel, ahead_channels, ahead_row, ahead_rows,
):  # fmt: skip
    """y[m, q] = bias[m] + the sum over channel, row, tap of x[channel, row, first + q stride + tap] w[m, channel, row, tap].

    For `outs` output channels m and `count` pixels q of one row. The first five arguments are literal ints: the tile (outs x
    pixels), the taps of a row of the filter, the stride, and how far the weights of two taps are apart.

    x: pixels at x_start + channel x_channel + row x_row + column in vectors, `depth` channels, `rows` rows; columns outside
    0 <= column < columns count as zero. w: at w_start + m w_m + channel w_channel + row w_row + tap w_tap in elements.
    bias: at bias_start + m, none where has_bias is 0. floor: where not 0, negative results become 0. y: at y_start
    + m y_channel + q y_step in vectors. Sums run over channels, rows and taps in rising order, taps of one phase of the
    stride together, whatever the tile.
    """
    literal = _literals([outs, pixels, taps, stride, w_tap])
    if literal is None:
        return None
    kinds = {"x": x, "w": w, "bias": bias, "y": y}
    signature = types.void(outs, pixels, taps, stride, w_tap, *[kinds.get(name, types.intp) for name in _ROW])

    def codegen(context, builder, _signature, args):
        values = [
            _pointer(context, builder, kinds[name], value) if name in kinds else value
            for name, value in zip(_ROW, args[5:])
        ]

        def emit(inner, parameters):
            _Correlation(_Emitter(inner, x.dtype.bitwidth), dict(zip(_ROW, parameters)), *literal).emit()

        _call(builder, f"correlate_row_{x.dtype.bitwidth}_{'_'.join(map(str, literal))}", values, emit)
        return context.get_dummy_value()

    return signature, codegen


class _Correlation:
    """The code of one `correlate_row`."""

    def __init__(
        self, e: _Emitter, given: dict[str, Value], outs: int, pixels: int, taps: int, stride: int, w_tap: int
    ) -> None:
        self.e, self.given, self.outs, self.pixels = e, given, outs, pixels
        self.stride, self.w_tap = stride, w_tap
        # the taps of one phase meet the same columns: one after another, they share what is loaded
        self.taps = sorted(range(taps), key=lambda tap: (tap % stride, tap))
        self.window = (pixels - 1) * stride + taps

    def emit(self) -> None:
        """The tiles of the row, those that lie inside the image and the row without masks."""
        e, b, given = self.e, self.e.builder, self.given
        x = e.step(given["x"], given["x_start"])
        y = e.step(given["y"], given["y_start"])
        w = e.move(given["w"], given["w_start"])
        has_bias = b.icmp_signed("!=", given["has_bias"], INT64(0))
        bias = b.select(has_bias, e.move(given["bias"], given["bias_start"]), w)
        self.starts = []
        for m in range(self.outs):
            value = b.load(e.move(bias, b.select(has_bias, INT64(m), INT64(0))), typ=e.float_scalar)
            slot = cgutils.alloca_once_value(b, b.select(has_bias, value, e.float_scalar(0.0)))
            self.starts.append(slot)
        low = b.select(b.icmp_signed("!=", given["floor"], INT64(0)), e.float_scalar(0.0), e.float_scalar(float("-inf")))
        self.floor = cgutils.alloca_once_value(b, low)
        with cgutils.for_range_slice(b, INT64(0), given["count"], INT64(self.pixels), INT64) as (q, _):
            column = b.add(given["first"], b.mul(q, INT64(self.stride)))
            end = b.add(column, INT64(self.window))
            inside = b.and_(
                b.icmp_signed(">=", column, INT64(0)),
                b.and_(
                    b.icmp_signed("<=", end, given["columns"]),
                    b.icmp_signed("<=", b.add(q, INT64(self.pixels)), given["count"]),
                ),
            )
            place, target = e.step(x, column), e.step(y, b.mul(q, given["y_step"]))
            with b.if_else(inside) as (middle, edge):
                with middle:
                    self.tile(place, w, target, None, None)
                with edge:
                    self.tile(place, w, target, column, b.sub(given["count"], q))

    def tile(self, x: Value, w: Value, y: Value, column: Value | None, left: Value | None) -> None:
        """One tile. column: that of x, left: the pixels left in the row; None where all of the tile lies inside."""
        e, b, given = self.e, self.e.builder, self.given
        sums = {}
        for m in range(self.outs):
            start = e.broadcast(b.load(self.starts[m], typ=e.float_scalar))
            for p in range(self.pixels):
                sums[m, p] = cgutils.alloca_once(b, e.float)
                b.store(start, sums[m, p])
        masks: list[Value] = [None] * self.window
        if column is not None:
            for j in range(self.window):
                here = b.icmp_unsigned("<", b.add(column, INT64(j)), given["columns"])  # negative ones are large
                masks[j] = e.broadcast(here)
        with cgutils.for_range(b, given["depth"], intp=INT64) as channel:
            x_channel = e.step(x, b.mul(channel.index, given["x_channel"]))
            w_channel = e.move(w, b.mul(channel.index, given["w_channel"]))
            with cgutils.for_range(b, given["rows"], intp=INT64) as row:
                x_row = e.step(x_channel, b.mul(row.index, given["x_row"]))
                w_row = e.move(w_channel, b.mul(row.index, given["w_row"]))
                near = [
                    b.icmp_unsigned("<", b.sub(index, given[f"ahead_{name}"]), given[f"ahead_{name}s"])
                    for name, index in (("channel", channel.index), ("row", row.index))
                ]
                wanted = b.and_(*near)
                with b.if_then(wanted):
                    line = e.step(x_row, given["ahead"])
                    for j in sorted({p * self.stride + k for p in range(self.pixels) for k in range(min(self.stride, len(self.taps)))}):
                        e.prefetch(e.step(line, j), 2)
                self.products(sums, x_row, w_row, masks)
        for p in range(self.pixels):
            if left is None:
                self.store(sums, y, p)
            else:
                with b.if_then(b.icmp_signed(">", left, INT64(p))):
                    self.store(sums, y, p)

    def products(self, sums: dict[tuple[int, int], Value], x: Value, w: Value, masks: list[Value]) -> None:
        """Adds one row of taps of one channel."""
        e, b, loaded = self.e, self.e.builder, {}
        # x86 addresses reach w + step and w + 2 step: one pointer for three rows
        rows = [e.move(w, b.mul(self.given["w_m"], INT64(m - m % 3))) for m in range(0, self.outs, 3)]
        twice = b.mul(self.given["w_m"], INT64(2))
        for tap in self.taps:
            for p in range(self.pixels):
                j = p * self.stride + tap
                if j not in loaded:
                    loaded[j] = e.load(e.step(x, j), masks[j])
            for m in range(self.outs):
                place = e.move(rows[m // 3], *([], [self.given["w_m"]], [twice])[m % 3], tap * self.w_tap)
                weight = e.scalar(place)
                for p in range(self.pixels):
                    value = loaded[p * self.stride + tap]
                    b.store(e.fma(weight, value, b.load(sums[m, p], typ=e.float)), sums[m, p])

    def store(self, sums: dict[tuple[int, int], Value], y: Value, p: int) -> None:
        """Writes the results of pixel p."""
        e, b = self.e, self.e.builder
        floor = e.broadcast(b.load(self.floor, typ=e.float_scalar))
        place = e.step(y, b.mul(self.given["y_step"], INT64(p)))
        for m in range(self.outs):
            value = b.load(sums[m, p], typ=e.float)
            # a NaN compares false and stays
            e.store(e.select(e.compare("<", value, floor), floor, value), place)
            place = e.step(place, self.given["y_channel"])


@twin(correlate_row)
def _correlate_row(
    outs, pixels, taps, stride, w_tap,
    x, x_start, x_channel, x_row, columns, first, w, w_start, w_m, w_channel, w_row, depth, rows,
    bias, bias_start, has_bias, floor, y, y_start, y_channel, y_step, count, ahead, ahead_channel, ahead_channels, ahead_row, ahead_rows,
):  # fmt: skip
    lanes = LANE_BYTES // x.itemsize
    x, y, w = x.reshape(-1, lanes), y.reshape(-1, lanes), w.reshape(-1)
    q, outputs, channels = np.arange(count), np.arange(outs), np.arange(depth)
    sums = np.zeros((outs, count, lanes), y.dtype)
    if has_bias:
        sums += bias.reshape(-1)[bias_start : bias_start + outs, None, None]
    for row in range(rows):
        for tap in range(taps):
            column = first + q * stride + tap
            seen = q[(column >= 0) & (column < columns)]
            place = x_start + channels[:, None] * x_channel + row * x_row + first + seen * stride + tap
            weights = w[w_start + outputs[:, None] * w_m + channels * w_channel + row * w_row + tap * w_tap]
            sums[:, seen] += np.tensordot(weights, x[place], 1)
    y[y_start + outputs[:, None] * y_channel + q * y_step] = np.where(sums < 0, 0, sums) if floor else sums
