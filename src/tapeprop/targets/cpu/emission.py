"""Pieces for intrinsics that write their own loops in LLVM IR: vectors with moving pointers, loops of phis, functions.

Numba's own vocabulary for this (`cgutils`) keeps loop values on the stack until a pass promotes them. This module imports numba.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir
from numba import types

from tapeprop.targets.cpu.vector_arithmetic import VectorArithmetic

__all__ = ["I64", "Emitter", "Loop", "call_function", "literals", "pointer"]

Value = Any  # an llvmlite.ir value
I64 = ir.IntType(64)
POINTER = ir.PointerType()


class Emitter(VectorArithmetic):
    """Vector arithmetic with pointers that move by elements."""

    def move(self, place: Value, *offsets: Value | int) -> Value:
        """`place` plus offsets in elements."""
        for offset in offsets:
            index = I64(offset) if isinstance(offset, int) else offset
            place = self.builder.gep(place, [index], source_etype=self.float_scalar)
        return place

    def scalar(self, place: Value) -> Value:
        """The element at `place` in every lane."""
        return self.broadcast(self.builder.load(place, typ=self.float_scalar, align=self.bits // 8))

    def window(self, low: Value, high: Value) -> Value:
        """Lanes of i1: low <= lane number < high."""
        return self.builder.and_(self.lane_mask(high), self.builder.not_(self.lane_mask(low)))

    def word(self, table: Value, index: Value | int) -> Value:
        """table[index] of an int64 table."""
        index = I64(index) if isinstance(index, int) else index
        return self.builder.load(self.builder.gep(table, [index], source_etype=I64), typ=I64)


class Loop:
    """A loop whose values live in phis: `values` holds them, `test` opens the body, `close` gives their next values.

    After `close` the builder stands behind the loop, where `values` are those of the last test.
    """

    def __init__(self, builder: ir.IRBuilder, name: str, *initial: Value) -> None:
        self.builder, self.name = builder, name
        before = builder.block
        self.head = builder.append_basic_block(name)
        builder.branch(self.head)
        builder.position_at_end(self.head)
        self.values = [builder.phi(value.type) for value in initial]
        for phi, value in zip(self.values, initial):
            phi.add_incoming(value, before)

    def test(self, condition: Value) -> None:
        body, self.end = (self.builder.append_basic_block(f"{self.name}.{part}") for part in ("body", "end"))
        self.builder.cbranch(condition, body, self.end)
        self.builder.position_at_end(body)

    def close(self, *following: Value) -> None:
        for phi, value in zip(self.values, following, strict=True):
            phi.add_incoming(value, self.builder.block)
        self.builder.branch(self.head)
        self.builder.position_at_end(self.end)


def literals(kinds: Sequence[Any]) -> list[int] | None:
    """The values of integer literal types, or None where one is none; a body passes ints from its closure."""
    if not all(isinstance(kind, types.IntegerLiteral) for kind in kinds):
        return None
    return [kind.literal_value for kind in kinds]


def pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: Value) -> Value:
    """The address of an array's first element as an opaque pointer (llvmlite's bitcast would leave Numba's typed one)."""
    return builder.inttoptr(builder.ptrtoint(context.make_array(kind)(context, builder, array).data, I64), POINTER)


def call_function(
    builder: ir.IRBuilder, name: str, values: Sequence[Value], emit: Callable[[ir.IRBuilder, Any], None]
) -> None:
    """Calls function `name` of the module, which `emit(builder, parameters)` fills at the first call.

    A function of its own, never inlined: LLVM would copy the tiles for every condition around them that a loop does not
    change, and compile for thrice as long (numba 0.68.1).
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
