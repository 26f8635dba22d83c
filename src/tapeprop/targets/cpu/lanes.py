"""Pixels whose vector lanes are images of a batch, for Numba bodies: the layout, and what moves and sums them.

An activation is (N / L, C, H, W, L): the L images of a pixel lie side by side and fill whole vectors. So the lanes work at any
width, channel count and stride, a weight is one number for the whole vector, and no pixel is ever gathered. Offsets of activations
count pixels, those of weights elements.

The microkernels of convolutions stand in `lane_correlation` and `lane_weights`, those of pools in `lane_windows`.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapeprop.targets.cpu.emission import I64, POINTER, Emitter, call_function, literals, pointer
from tapeprop.targets.cpu.plain import twin

__all__ = ["LaneEmitter", "copy_rows", "lane_sums", "pixels_of"]

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


@intrinsic(prefer_literal=True)
def copy_rows(typing_context, lanes, width, x, x_start, x_row, rows, count, y, y_start, y_row):
    """y[y_start + row y_row + q] = x[x_start + row x_row + q] for `rows` rows of `count` pixels; places as in `lane_correlation`."""
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
