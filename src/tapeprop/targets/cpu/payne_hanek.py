"""Reduction of a large argument modulo pi/2: Payne and Hanek, *Radian reduction for trigonometric functions* (1983)."""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir

from tapeprop.targets.cpu.polynomials import HALF_PI, two_over_pi

__all__ = ["payne_hanek"]

# A 53-bit mantissa times 254 bits of 2/pi from the place where the quadrant begins. The lowest 60 bits are cut short
# and up to 61 leading ones cancel (no double is nearer to a multiple of pi/2: Muller, table 11.1): over 120 are good.
TABLE_BITS = 1280
WINDOW = 256
NAME = "payne_hanek"


def payne_hanek(module: ir.Module) -> ir.Function:
    """The module's own function double x >= 1e5 -> {i64 n, double r} with x = n pi/2 + r (n modulo 4), |r| <= pi/4.

    inf, NaN and x below 1e5 run through it with a meaningless result; memory is read within the table for any input.
    """
    if NAME in module.globals:
        return module.globals[NAME]
    i1, i8, i64, wide, double = ir.IntType(1), ir.IntType(8), ir.IntType(64), ir.IntType(WINDOW), ir.DoubleType()
    table = ir.GlobalVariable(module, ir.ArrayType(i8, TABLE_BITS // 8 + WINDOW // 8), "two_over_pi")
    table.linkage, table.global_constant = "internal", True
    table.initializer = ir.Constant(table.value_type, bytearray(two_over_pi(TABLE_BITS).to_bytes(192, "little")))
    function = ir.Function(module, ir.FunctionType(ir.LiteralStructType([i64, double]), [double]), NAME)
    function.linkage = "internal"
    function.attributes.add("noinline")
    b = ir.IRBuilder(function.append_basic_block())

    # x = mantissa 2^exponent; the window of the table starts where the product's bits of weight 2 and 1 begin.
    bits = b.bitcast(function.args[0], i64)
    exponent = b.sub(b.lshr(bits, i64(52)), i64(1075))
    mantissa = b.or_(b.and_(bits, i64((1 << 52) - 1)), i64(1 << 52))
    skip = b.sub(i64(TABLE_BITS - 254), exponent)  # low bits of the table that are not needed
    byte = b.lshr(b.add(skip, i64(7)), i64(3))
    left = b.sub(b.shl(byte, i64(3)), skip)
    last = i64(TABLE_BITS // 8)
    byte = b.select(b.icmp_unsigned("<", byte, last), byte, last)  # small x would read past the table
    window = b.load(b.gep(table, [i64(0), byte]), align=1, typ=wide)
    product = b.mul(b.zext(b.shl(mantissa, left), wide), window)  # 2 integer bits, the quadrant, and 254 of fraction
    quadrant = b.trunc(b.lshr(b.add(product, wide(1 << 253)), wide(254)), i64)
    fraction = b.ashr(b.shl(product, wide(2)), wide(2))
    negative = b.icmp_signed("<", fraction, wide(0))

    # The fraction in quarter turns as high + low, 53 bits each after the leading one, then times pi/2.
    size = b.select(negative, b.neg(fraction), fraction)
    ctlz = ir.Function(module, ir.FunctionType(wide, [wide, i1]), f"llvm.ctlz.i{WINDOW}")
    zeros = b.and_(b.call(ctlz, [size, i1(0)]), wide(WINDOW - 1))  # a shift by 256, where a small x gives 0, is poison
    size = b.shl(size, zeros)
    zeros = b.trunc(zeros, i64)
    high = b.uitofp(b.trunc(b.lshr(size, wide(WINDOW - 53)), i64), double)
    low = b.uitofp(b.and_(b.trunc(b.lshr(size, wide(WINDOW - 106)), i64), i64((1 << 53) - 1)), double)
    scale = b.bitcast(b.shl(b.sub(i64(1023 - 51), zeros), i64(52)), double)
    high, low = b.fmul(high, scale), b.fmul(b.fmul(low, scale), double(2.0**-53))
    return _finish(b, function, quadrant, negative, high, low)


def _finish(b: ir.IRBuilder, function: ir.Function, quadrant: Any, negative: Any, high: Any, low: Any) -> ir.Function:
    """Returns (quadrant, +-(high + low) pi/2) from `function`, the product in double-double, rounded once."""
    module, double = b.module, ir.DoubleType()
    fma = module.globals.get("llvm.fma.f64")
    if fma is None:
        fma = ir.Function(module, ir.FunctionType(double, [double] * 3), "llvm.fma.f64")
    pi_high, pi_low = double(HALF_PI[64][0]), double(HALF_PI[64][1])
    top = b.fmul(high, pi_high)
    rest = b.call(fma, [high, pi_high, b.fneg(top)])
    rest = b.call(fma, [high, pi_low, b.call(fma, [low, pi_high, rest])])
    r = b.fadd(top, rest)
    r = b.select(negative, b.fneg(r), r)
    pair = ir.Constant(function.return_value.type, ir.Undefined)
    b.ret(b.insert_value(b.insert_value(pair, quadrant, 0), r, 1))
    return function
