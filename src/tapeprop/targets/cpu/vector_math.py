"""exp, expm1, log, log1p, pow, tanh, sigmoid, erf, sin and cos as LLVM IR, for any lane count, in float32 and float64.

Error bounds: 2 ulp in both precisions (`bench/vector_math.py` prints the measured ones); NaN, infinities, signed zeros,
denormals and overflow follow C's Annex F; sin and cos reduce any finite argument. Only IEEE operations, so the result
of a lane does not depend on how many lanes there are.

Sources: Muller, *Elementary Functions*, 3rd ed. (argument reductions, double-double arithmetic); fdlibm (log, log1p);
Payne and Hanek 1983 (`payne_hanek`).
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir

from tapeprop.targets.cpu.payne_hanek import payne_hanek
from tapeprop.targets.cpu.polynomials import HALF_PI, LN2, LOG2_E, POLYNOMIALS, THIRD, TWO_OVER_PI
from tapeprop.targets.cpu.vector_arithmetic import Operand, Value, VectorArithmetic

__all__ = ["VectorMath"]

# Up to here n is so short that x - n * (first part of pi/2) is exact: the three-part reduction loses nothing.
LARGE_ANGLE = {32: 1e5, 64: 1e9}


class VectorMath(VectorArithmetic):
    """Elementary functions on vectors of `lanes` floats of `bits` bits; operands may be Python numbers."""

    def __init__(self, builder: ir.IRBuilder, bits: int, lanes: int) -> None:
        super().__init__(builder, bits, lanes)
        # (what, operand) -> value: sin and cos of one argument share its magnitude and its reduction.
        self._shared: dict[tuple[str, Value], Any] = {}

    # ---- building blocks

    def polynomial(self, name: str, x: Value) -> Value:
        """The polynomial `name` of `polynomials.POLYNOMIALS` at x."""
        return self._pairwise(POLYNOMIALS[name, self.bits], x)

    def _pairwise(self, coefficients: tuple[float, ...], x: Value) -> Value:
        """Horner to degree 6; above, even + x * odd powers: half the latency for two more multiplications."""
        if len(coefficients) > 7:
            square = self.mul(x, x)
            return self.fma(self._pairwise(coefficients[1::2], square), x, self._pairwise(coefficients[::2], square))
        result = self.value(coefficients[-1])
        for c in coefficients[-2::-1]:
            result = self.fma(result, x, c)
        return result

    def _round(self, x: Value) -> tuple[Value, Value]:
        """(x rounded to the nearest integer, that integer as integer lanes) for |x| < 2^(fraction - 2)."""
        magic = 1.5 * 2.0**self.fraction  # adding it leaves no bits for a fraction
        shifted = self.add(x, magic)
        return self.sub(shifted, magic), self.builder.sub(self.as_int(shifted), self.as_int(self.value(magic)))

    def _power_of_two(self, n: Value) -> Value:
        """2^n for integer lanes n, a normal number."""
        exponent = self.builder.add(n, self.integer(self.bias))
        return self.as_float(self.builder.shl(exponent, self.integer(self.fraction)))

    def _scaled(self, x: Value, n: Value) -> Value:
        """x 2^n for x in [1/2, 2] and any n of `exp`: in two factors, so that a denormal or an overflow rounds once."""
        half = self.builder.ashr(n, self.integer(1))
        return self.mul(self.mul(x, self._power_of_two(half)), self._power_of_two(self.builder.sub(n, half)))

    def _quotient(self, top: Value, a: Operand, b: Operand) -> Value:
        """top / (a + b) where the sum's rounding error is put right: three plain roundings would exceed 2 ulp."""
        bottom = self.add(a, b)
        b_back = self.sub(bottom, a)
        lost = self.add(self.sub(a, self.sub(bottom, b_back)), self.sub(b, b_back))  # Knuth's two-sum
        inverse = self.div(1, bottom)
        first = self.mul(top, inverse)
        minus = self.neg(first)
        return self.fma(self.fma(minus, lost, self.fma(minus, bottom, top)), inverse, first)

    # ---- exponentials

    def _exp_parts(self, x: Value) -> tuple[Value, Value]:
        """(n, q) with exp(x) = 2^n (1 + q), |x - n ln 2| <= ln 2 / 2, q = expm1 of that rest."""
        rounded, n = self._round(self.mul(x, LOG2_E))
        high, low = LN2[self.bits]
        r = self.fma(rounded, -low, self.fma(rounded, -high, x))
        return n, self.fma(self.mul(r, r), self.polynomial("exp", r), r)

    def exp(self, x: Operand) -> Value:
        """e^x; 0 and inf beyond the range."""
        x = self.clamp(self.value(x), *((-104, 89) if self.bits == 32 else (-746, 710)))
        n, q = self._exp_parts(x)
        return self._scaled(self.add(q, 1), n)

    def _exp_negative(self, x: Value, low: float) -> Value:
        """exp(x) for x <= 0 or NaN, held at exp(low), which must be a normal number: one factor is enough."""
        n, q = self._exp_parts(self.select(self.compare("<", x, low), low, x))
        power = self._power_of_two(n)
        return self.fma(q, power, power)

    def _expm1_normal(self, x: Value) -> Value:
        """expm1(x) where 2^n is a normal number: |x| <= 87 (float32), 708 (float64)."""
        n, q = self._exp_parts(x)
        power = self._power_of_two(n)
        return self.fma(q, power, self.sub(power, 1))

    def expm1(self, x: Operand) -> Value:
        """e^x - 1, without cancellation near 0; expm1(-0) = -0."""
        x = self.value(x)
        clamped = self.clamp(x, *((-20, 89) if self.bits == 32 else (-40, 710)))
        n, q = self._exp_parts(clamped)
        power = self._power_of_two(self.builder.sub(n, self.integer(1)))  # 2^n itself overflows before expm1 does
        half = self.fma(q, power, self.sub(power, 0.5))
        return self.with_sign(self.add(half, half), self.sign_bit(x))

    def sigmoid(self, x: Operand) -> Value:
        """1 / (1 + e^-x), its far negative tail kept down to denormals (1 / (1 + inf) would flush it)."""
        x = self.value(x)
        e = self.exp(self.neg(self.abs(x)))
        return self._quotient(self.select(self.compare("<", x, 0), e, 1.0), e, 1)

    def tanh(self, x: Operand) -> Value:
        """expm1(2|x|) / (expm1(2|x|) + 2) with the sign of x; +-1 where it rounds to that."""
        x = self.value(x)
        magnitude = self.abs(x)
        limit = 10 if self.bits == 32 else 20
        magnitude = self.select(self.compare(">", magnitude, limit), limit, magnitude)
        e = self._expm1_normal(self.add(magnitude, magnitude))
        return self.with_sign(self._quotient(e, e, 2), self.sign_bit(x))

    # ---- logarithms

    def _split(self, x: Value) -> tuple[Value, Value]:
        """(k, m) with x = 2^k m, sqrt(1/2) <= m < sqrt(2), for positive normal x."""
        root = self.as_int(self.value(0.7071067811865476))
        k = self.builder.ashr(self.builder.sub(self.as_int(x), root), self.integer(self.fraction))
        return k, self.as_float(self.builder.sub(self.as_int(x), self.builder.shl(k, self.integer(self.fraction))))

    def _split_any(self, x: Value) -> tuple[Value, Value]:
        """`_split` for denormals too."""
        tiny = self.compare("<", x, 2.0 ** (1 - self.bias))
        k, m = self._split(self.select(tiny, self.mul(x, 2.0**self.fraction), x))
        lost = self.builder.select(tiny, self.integer(self.fraction), self.integer(0))
        return self.builder.sub(k, lost), m

    def _log_of(self, k: Value, f: Value, correction: Value) -> Value:
        """k ln 2 + log(1 + f) + correction / (1 + f), or without the last, for sqrt(1/2) <= 1 + f < sqrt(2).

        As fdlibm's e_log.c.
        """
        k = self.builder.sitofp(k, self.float)
        s = self.div(f, self.add(f, 2))
        z = self.mul(s, s)
        rest = self.mul(z, self.polynomial("log", z))
        half_square = self.mul(self.mul(f, 0.5), f)
        high, low = LN2[self.bits]
        tail = self.fma(k, low, self.mul(s, self.add(half_square, rest)))
        if correction is not None:  # 1 / (1 + f) = 1 - 2s + 2s^2 - ...: a few bits are enough
            tail = self.fma(correction, self.fma(s, self.fma(s, 2, -2), 1), tail)
        return self.fma(k, high, self.sub(f, self.sub(half_square, tail)))

    def _log_ends(self, x: Value, at_zero: float, result: Value) -> Value:
        """`result`, but NaN below at_zero, -inf there, inf at inf, NaN at NaN."""
        result = self.select(self.compare("==", x, at_zero), float("-inf"), result)
        result = self.select(self.builder.fcmp_unordered("<", x, self.value(at_zero)), float("nan"), result)
        return self.select(self.compare("==", x, float("inf")), x, result)

    def log(self, x: Operand) -> Value:
        """The natural logarithm; -inf at +-0, NaN below."""
        x = self.value(x)
        k, m = self._split_any(x)
        return self._log_ends(x, 0, self._log_of(k, self.sub(m, 1), None))

    def log1p(self, x: Operand) -> Value:
        """log(1 + x), right for tiny x; log1p(-0) = -0, -inf at -1, NaN below."""
        x = self.value(x)
        u = self.add(x, 1)
        back = self.sub(u, 1)
        lost = self.add(self.sub(1, self.sub(u, back)), self.sub(x, back))  # 1 + x = u + lost, exactly
        k, m = self._split(u)
        near = self.builder.icmp_signed("==", k, self.integer(0))
        f = self.select(near, x, self.sub(m, 1))
        huge = self.builder.icmp_signed(">", k, self.integer(self.bias - 1))  # there 2^-k is no normal number
        small = self._power_of_two(self.builder.select(huge, self.integer(1 - self.bias), self.builder.neg(k)))
        result = self._log_of(k, f, self.select(near, 0, self.mul(lost, small)))
        return self.with_sign(self._log_ends(x, -1, result), self.sign_bit(x))

    # ---- powers

    def pow(self, x: Operand, y: Operand) -> Value:
        """x^y with C's special values: pow(x, 0) = pow(1, y) = 1, even of NaN; NaN for negative x and fractional y.

        float32 goes through float64 and is correctly rounded but for rare near-ties.
        """
        x, y = self.value(x), self.value(y)
        if self.bits == 64:
            return self._pow(x, y)
        wide = VectorMath(self.builder, 64, self.lanes)
        x, y = (self.builder.fpext(v, wide.float) for v in (x, y))
        return self.builder.fptrunc(wide._pow(x, y, narrow=True), self.float)

    def _pow(self, x: Value, y: Value, narrow: bool = False) -> Value:
        """float64 x^y; `narrow`: to float32's accuracy."""
        magnitude = self.abs(x)
        # 2^70 times the smallest log that is not 0, 2^-53, already over- or underflows; and 0 times it is no NaN.
        bounded = self.clamp(y, -(2.0**70), 2.0**70)
        if narrow:
            k, m = self._split_any(magnitude)
            result = self.exp(self.mul(bounded, self._log_of(k, self.sub(m, 1), None)))
        else:
            result = self._exp_sum(*self._product(bounded, *self._log_sum(magnitude)))
        # The ends of |x|, where the logarithm above means nothing.
        zero, endless = self.compare("==", magnitude, 0), self.compare("==", magnitude, float("inf"))
        grows = self.builder.xor(self.compare("<", y, 0), endless)
        end = self.select(grows, float("inf"), 0.0)
        result = self.select(self.builder.or_(zero, endless), end, result)
        # Negative x: the sign of an odd power, NaN for a fraction. An infinite y is an even integer.
        whole = self.compare("==", self.floor(y), y)
        half = self.mul(y, 0.5)
        odd = self.builder.and_(whole, self.compare("!=", self.floor(half), half))
        sign = self.builder.select(odd, self.sign_bit(x), self.integer(0))
        result = self.with_sign(result, sign)
        negative = self.builder.and_(self.compare("<", x, 0), self.compare(">", x, float("-inf")))
        fraction = self.builder.and_(negative, self.builder.not_(whole))
        undefined = self.builder.or_(fraction, self.builder.fcmp_unordered("uno", x, y))
        result = self.select(undefined, float("nan"), result)
        return self.select(self.builder.or_(self.compare("==", x, 1), self.compare("==", y, 0)), 1.0, result)

    def _log_sum(self, x: Value) -> tuple[Value, Value]:
        """log(x) as an unevaluated sum high + low, relative error < 2^-65, for positive finite float64 x.

        2 atanh(s) = 2s (1 + z/3 + z^2 Q(z)), s = f / (2 + f), z = s^2, with s, z and z/3 in double-double.
        """
        k, m = self._split_any(x)
        f = self.sub(m, 1)
        bottom = self.add(f, 2)
        bottom_low = self.sub(f, self.sub(bottom, 2))
        s = self.div(f, bottom)
        minus = self.neg(s)
        s_low = self.div(self.fma(minus, bottom_low, self.fma(minus, bottom, f)), bottom)
        z = self.mul(s, s)
        twice, twice_low = self.add(s, s), self.add(s_low, s_low)
        z_low = self.fma(twice, s_low, self.fma(s, s, self.neg(z)))
        a = self.mul(z, THIRD[0])
        a_low = self.fma(z, THIRD[1], self.fma(z, THIRD[0], self.neg(a)))
        a_low = self.fma(self.mul(z, z), self.polynomial("log_tail", z), self.fma(z_low, THIRD[0], a_low))
        a, a_low = self._fast_sum(a, a_low)
        rest = self.mul(twice, a)
        rest_low = self.fma(twice, a, self.neg(rest))
        rest_low = self.fma(twice, a_low, self.fma(twice_low, a, rest_low))
        high, low = self._fast_sum(twice, rest)
        low = self.add(low, self.add(rest_low, twice_low))
        exponent = self.builder.sitofp(k, self.float)
        # The product is exact, and either 0 or the larger one.
        high, lost = self._fast_sum(self.mul(exponent, LN2[64][0]), high)
        return self._fast_sum(high, self.add(lost, self.fma(exponent, LN2[64][1], low)))

    def _fast_sum(self, a: Value, b: Value) -> tuple[Value, Value]:
        """(s, e) with s + e = a + b exactly, for |a| >= |b| or a = 0 (Dekker 1971)."""
        total = self.add(a, b)
        return total, self.sub(b, self.sub(total, a))

    def _product(self, y: Value, high: Value, low: Value) -> tuple[Value, Value]:
        """y (high + low) as such a sum; where it exceeds the range of exp, (the bound, 0)."""
        product = self.mul(y, high)
        rest = self.fma(y, low, self.fma(y, high, self.neg(product)))
        outside = self.compare(">", self.abs(product), 800)
        return self.clamp(product, -746, 710), self.select(outside, 0, rest)

    def _exp_sum(self, high: Value, low: Value) -> Value:
        """exp(high + low) for float64 |low| << 1 and high within the range of exp."""
        rounded, n = self._round(self.mul(high, LOG2_E))
        coarse = self.fma(rounded, -LN2[64][0], high)
        r = self.fma(rounded, -LN2[64][1], coarse)
        low = self.add(low, self.fma(rounded, -LN2[64][1], self.sub(coarse, r)))  # what rounding r lost
        q = self.fma(self.mul(r, r), self.polynomial("exp", r), r)
        return self._scaled(self.add(self.fma(self.add(q, 1), low, q), 1), n)

    # ---- erf

    def erf(self, x: Operand) -> Value:
        """The error function: x (1 + P(x^2)) to |x| = 1, then 1 - exp(-Q(|x|)) with Q = -log(erfc)."""
        x = self.value(x)
        magnitude = self.abs(x)
        inner = self.fma(x, self.polynomial("erf_small", self.mul(x, x)), x)
        limit = 4 if self.bits == 32 else 6
        outer = self.select(self.compare(">", magnitude, limit), limit, magnitude)
        outer = self._exp_negative(self.neg(self.polynomial("erf_large", outer)), -80)
        outer = self.with_sign(self.sub(1, outer), self.sign_bit(x))
        return self.select(self.compare(">", magnitude, 1), outer, inner)

    # ---- sine and cosine

    def sin(self, x: Operand) -> Value:
        """sin(x) for any finite x; NaN at infinities; sin(-0) = -0."""
        x = self.value(x)
        return self.as_float(self.builder.xor(self.as_int(self._turned(self._magnitude(x), 0)), self.sign_bit(x)))

    def cos(self, x: Operand) -> Value:
        """cos(x) for any finite x; NaN at infinities."""
        return self._turned(self._magnitude(self.value(x)), 1)

    def _magnitude(self, x: Value) -> Value:
        if ("abs", x) not in self._shared:
            self._shared["abs", x] = self.abs(x)
        return self._shared["abs", x]

    def _turned(self, magnitude: Value, quarters: int) -> Value:
        """sin(magnitude + quarters pi/2)."""
        b = self.builder
        if ("reduction", magnitude) not in self._shared:
            self._shared["reduction", magnitude] = self._reduction(magnitude)
        n, r = self._shared["reduction", magnitude]
        n = b.add(n, self.integer(quarters)) if quarters else n
        z = self.mul(r, r)
        sine = self.fma(self.mul(r, z), self.polynomial("sin", z), r)
        half = self.mul(z, 0.5)
        w = self.sub(1, half)
        cosine = self.fma(self.mul(z, z), self.polynomial("cos", z), self.sub(self.sub(1, w), half))
        cosine = self.add(w, cosine)
        odd = b.icmp_signed("!=", b.and_(n, self.integer(1)), self.integer(0))
        flip = b.shl(b.and_(n, self.integer(2)), self.integer(self.bits - 2))
        return self.as_float(b.xor(self.as_int(self.select(odd, cosine, sine)), flip))

    def _reduction(self, magnitude: Value) -> tuple[Value, Value]:
        """(n, r) with magnitude = n pi/2 + r, |r| <= pi/4: three fused steps, lane by lane where a lane is large."""
        rounded, n = self._round(self.mul(magnitude, TWO_OVER_PI))
        r = magnitude
        for part in HALF_PI[self.bits]:
            r = self.fma(rounded, -part, r)
        large = self.compare(">", magnitude, LARGE_ANGLE[self.bits])
        b = self.builder
        before = b.block
        with b.if_then(self.any_lane(large), likely=False):
            n_large, r_large = self._large_reduction(magnitude)
            n_slow, r_slow = b.select(large, n_large, n), b.select(large, r_large, r)
            after = b.block
        merged = []
        for fast, slow in ((n, n_slow), (r, r_slow)):
            phi = b.phi(fast.type)
            phi.add_incoming(fast, before)
            phi.add_incoming(slow, after)
            merged.append(phi)
        return merged[0], merged[1]

    def _large_reduction(self, magnitude: Value) -> tuple[Value, Value]:
        """The reduction by Payne and Hanek, one call per lane; NaN at inf. Lanes below 1e5 hold nothing meaningful."""
        b, function = self.builder, payne_hanek(self.builder.module)
        n, r = ir.Constant(self.int, ir.Undefined), ir.Constant(self.float, ir.Undefined)
        for lane in range(self.lanes):
            at = ir.Constant(ir.IntType(32), lane)
            x = b.extract_element(magnitude, at) if self.lanes > 1 else magnitude
            found = b.call(function, [x if self.bits == 64 else b.fpext(x, ir.DoubleType())])
            quadrant, rest = b.extract_value(found, 0), b.extract_value(found, 1)
            if self.bits == 32:
                quadrant, rest = b.trunc(quadrant, self.int_scalar), b.fptrunc(rest, self.float_scalar)
            n = b.insert_element(n, quadrant, at) if self.lanes > 1 else quadrant
            r = b.insert_element(r, rest, at) if self.lanes > 1 else rest
        return n, self.select(self.compare("==", magnitude, float("inf")), float("nan"), r)
