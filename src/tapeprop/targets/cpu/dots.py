"""Products of a few rows with the rows of a matrix, vector lanes along the sums: where nothing is worth laying out anew.

A matrix product whose left side has a row or two reads each weight once or twice; turning the weights round first, as `gemm_panel`
needs it, would take longer than the product. This module imports numba.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from tapeprop.targets.cpu.emission import I64, Emitter, Loop, call_function, literals, pointer
from tapeprop.targets.cpu.plain import twin

__all__ = ["row_dots"]

Value = Any  # an llvmlite.ir value
I32 = ir.IntType(32)

_DOTS = "a a_start w w_start k bias bias_start has_bias y y_start".split()
BLOCK = 4096  # elements that are summed lane by lane, before they join the sum of those before: a long sum loses less
PAIR = 2  # vectors of a sum side by side, so that additions do not wait for each other


@intrinsic(prefer_literal=True)
def row_dots(typing_context, lanes, columns, a, a_start, w, w_start, k, bias, bias_start, has_bias, y, y_start):
    """y[y_start + j] = the sum over s < k of a[a_start + s] w[w_start + j k + s], plus bias[bias_start + j], for j < columns.

    lanes, columns: literal ints; elements in a vector. bias: none where has_bias is 0. Arrays are of one floating dtype. Element s
    of a block adds to lane s % lanes of vector s // lanes % 2; the vectors are added first, then the halves of what they give, and
    the blocks in order.
    """
    literal = literals([lanes, columns])
    if literal is None:
        return None
    kinds = {"a": a, "w": w, "bias": bias, "y": y}
    bits = a.dtype.bitwidth

    def emit(builder, parameters):
        _emit_dots(Emitter(builder, bits, literal[0]), dict(zip(_DOTS, parameters)), literal[1])

    def codegen(context, builder, _signature, args):
        values = [
            pointer(context, builder, kinds[name], value) if name in kinds else value
            for name, value in zip(_DOTS, args[2:])
        ]
        call_function(builder, f"row_dots_{bits}_{'_'.join(map(str, literal))}", values, emit)
        return context.get_dummy_value()

    return types.void(lanes, columns, *[kinds.get(name, types.intp) for name in _DOTS]), codegen


def _emit_dots(e: Emitter, given: dict[str, Value], columns: int) -> None:
    b, k = e.builder, given["k"]
    a = e.move(given["a"], given["a_start"])
    rows = [e.move(given["w"], given["w_start"], b.mul(k, I64(j))) for j in range(columns)]

    def added(s: Value, sums: list[Value], vectors: int, masked: bool) -> list[Value]:
        """The sums after `vectors` more vectors from element s on."""
        found = list(sums)
        for part in range(vectors):
            place = b.add(s, I64(part * e.lanes))
            mask = e.lane_mask(b.sub(k, place)) if masked else None
            left = e.load(e.move(a, place), mask)
            for j, row in enumerate(rows):
                number = PAIR * j + part
                found[number] = e.intrinsic("fmuladd", left, e.load(e.move(row, place), mask), sums[number])
        return found

    step = I64(PAIR * e.lanes)
    blocks = Loop(b, "blocks", I64(0), *[e.float_scalar(0.0)] * columns)
    start, *totals = blocks.values
    blocks.test(b.icmp_signed("<", start, k))
    end = b.add(start, I64(BLOCK))
    end = b.select(b.icmp_signed("<", end, k), end, k)
    loop = Loop(b, "pairs", start, *[e.value(0.0)] * (PAIR * columns))
    s, *sums = loop.values
    following = b.add(s, step)
    loop.test(b.icmp_signed("<=", following, end))
    loop.close(following, *added(s, sums, PAIR, False))
    rest = Loop(b, "rest", s, *sums)
    s, *sums = rest.values
    rest.test(b.icmp_signed("<", s, end))
    rest.close(b.add(s, step), *added(s, sums, PAIR, True))
    found = [_merged(e, sums[PAIR * j : PAIR * (j + 1)]) for j in range(columns)]
    blocks.close(end, *[b.fadd(total, value) for total, value in zip(totals, found)])
    has_bias = b.icmp_signed("!=", given["has_bias"], I64(0))
    for j, total in enumerate(totals):
        place = e.move(given["bias"], b.select(has_bias, b.add(given["bias_start"], I64(j)), I64(0)))
        shift = b.load(place, typ=e.float_scalar, align=e.bits // 8)
        total = b.select(has_bias, b.fadd(total, shift), total)
        b.store(total, e.move(given["y"], given["y_start"], j), align=e.bits // 8)


def _merged(e: Emitter, vectors: list[Value]) -> Value:
    """The sum of all lanes of two vectors."""
    value, half = e.add(*vectors), e.lanes // 2
    while half:
        order = ir.Constant(ir.VectorType(I32, e.lanes), [i ^ half for i in range(e.lanes)])
        value, half = e.add(value, e.builder.shuffle_vector(value, value, order)), half // 2
    return e.builder.extract_element(value, I32(0)) if e.lanes > 1 else value


@twin(row_dots)
def _row_dots(lanes, columns, a, a_start, w, w_start, k, bias, bias_start, has_bias, y, y_start):
    a, w, bias, y = (array.reshape(-1) for array in (a, w, bias, y))
    made = w[w_start : w_start + columns * k].reshape(columns, k) @ a[a_start : a_start + k]
    y[y_start : y_start + columns] = made + bias[bias_start : bias_start + columns] if has_bias else made
