"""What PTX instructions compute, on arrays of NumPy with an element for each lane."""

from __future__ import annotations

import numpy as np

__all__ = ["SCOPE", "fused"]

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64
s8, s16, s32, s64 = np.int8, np.int16, np.int32, np.int64
f32, f64, pred = np.float32, np.float64, np.bool_
_BELOW = {f32: np.finfo(f32).tiny, f64: np.finfo(f64).tiny}


def _fused():
    """a * b + c rounded once, as a ufunc of float32 and float64: by the processor, which NumPy does not ask."""
    from llvmlite import ir
    from numba import types, vectorize
    from numba.extending import intrinsic

    @intrinsic
    def fma(typing_context, a, b, c):
        def generate(context, builder, signature, arguments):
            kind = arguments[0].type
            name = f"llvm.fma.{ {'float': 'f32', 'double': 'f64'}[str(kind)] }"
            function = builder.module.globals.get(name) or ir.Function(
                builder.module, ir.FunctionType(kind, [kind] * 3), name
            )
            return builder.call(function, arguments)

        return a(a, b, c), generate

    @vectorize([types.float32(*[types.float32] * 3), types.float64(*[types.float64] * 3)])
    def fused(a, b, c):
        return fma(a, b, c)

    return fused


fused = _fused()


def toward(how: str, a, b):
    """a + b of float64 as float32, rounded down, up or to zero: rm, rp, rz. What the sum in float64 loses has its say, by TwoSum."""
    total = a + b
    part = total - a
    lost = (a - (total - part)) + (b - part)
    exact = np.where(lost == 0, total, np.nextafter(total, np.copysign(np.inf, lost)))
    near = exact.astype(f32)
    back = near.astype(f64)
    if how == "rm":
        return np.where(back > exact, np.nextafter(near, f32(-np.inf)), near)
    if how == "rp":
        return np.where(back < exact, np.nextafter(near, f32(np.inf)), near)
    return np.where(np.abs(back) > np.abs(exact), np.nextafter(near, f32(0)), near)


def flushed(x):
    """Denormals become zeros of their sign."""
    return np.where(np.abs(x) < _BELOW[x.dtype.type], np.copysign(x.dtype.type(0), x), x)


def saturated(x):
    """To [0, 1]; NaN becomes 0."""
    return np.fmin(np.fmax(x, x.dtype.type(0)), x.dtype.type(1))


def smallest(a, b):
    """The smaller; the number where one is NaN; -0 before 0."""
    return np.where(a == b, np.where(np.signbit(a), a, b), np.fmin(a, b))


def largest(a, b):
    """The larger; the number where one is NaN; 0 before -0."""
    return np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b))


def quotient(a, b):
    """Of integers, toward zero. For b = 0, which PTX leaves open, all bits are 1."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        return np.where(b == 0, ~b.dtype.type(0), a // safe)
    whole = a // safe
    whole = whole + ((whole < 0) & (whole * safe != a))
    return np.where(b == 0, a.dtype.type(-1), whole).astype(a.dtype)


def remainder(a, b):
    """a - quotient(a, b) * b."""
    return np.where(b == 0, a, a - quotient(a, b) * b).astype(a.dtype)


def to_integer(x, kind, how: str):
    """A float as an integer: rni to the nearest, rzi toward zero, rmi down, rpi up; out of range the nearest.

    Of NaN 0, but where 64 bits come in or go out the highest bit alone.
    """
    whole = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[how](x)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    inside = np.where((whole >= float(low)) & (whole < float(high)), whole, 0).astype(kind)
    found = np.where(whole >= float(high), kind(high), np.where(whole < float(low), kind(low), inside))
    bits = 8 * np.dtype(kind).itemsize
    nothing = (1 << bits - 1 if low == 0 else low) if bits == 64 or x.dtype == np.float64 else 0
    return np.where(np.isnan(x), kind(nothing), found)


def high_product(a, b):
    """The upper half of a product of 64-bit numbers without sign."""
    mask, half = u64(0xFFFFFFFF), u64(32)
    al, ah, bl, bh = a & mask, a >> half, b & mask, b >> half
    low, first, second = al * bl, ah * bl, al * bh
    carry = ((low >> half) + (first & mask) + (second & mask)) >> half
    return ah * bh + (first >> half) + (second >> half) + carry


def shifted_left(a, count):
    """a << count, 0 where count is past the width."""
    width = u32(a.dtype.itemsize * 8)
    return np.where(count >= width, a.dtype.type(0), a << np.minimum(count, width - u32(1)).astype(a.dtype))


def shifted_right(a, count):
    """a >> count; where count is past the width, as many times the sign (0 without one)."""
    width = u32(a.dtype.itemsize * 8)
    moved = a >> np.minimum(count, width - u32(1)).astype(a.dtype)
    return np.where(count >= width, a.dtype.type(0), moved) if a.dtype.kind == "u" else moved


def leading_zeros(a):
    """Bits above the highest that is 1, as u32."""
    width = a.dtype.itemsize * 8
    found, rest = np.full(np.shape(a), width, u32), a
    for step in (32, 16, 8, 4, 2, 1):
        if step < width:
            more = (rest >> a.dtype.type(step)) != 0
            found = np.where(more, found - u32(step), found)
            rest = np.where(more, rest >> a.dtype.type(step), rest)
    return np.where(rest != 0, found - u32(1), found).astype(u32)


def set_bits(a):
    """How many bits are 1, as u32."""
    return np.bitwise_count(a).astype(u32)


def inserted(a, b, start, length):
    """b with `length` bits from `start` on replaced by the lowest of a."""
    one = b.dtype.type(1)
    mask = (shifted_left(one + 0 * b, u32(length)) - one) << b.dtype.type(start)
    return (b & ~mask) | ((a << b.dtype.type(start)) & mask)


def upper_half(x):
    """A float64 of which only the upper 32 bits are there: what rcp.approx.ftz.f64 gives."""
    return (x.view(u64) & u64(0xFFFFFFFF00000000)).view(f64)


def approximate(function, x):
    """A function of float32, computed in float64."""
    return function(x.astype(f64)).astype(f32)


SCOPE = {
    name: value
    for name, value in globals().items()
    if not name.startswith("_") and name not in ("annotations", "SCOPE")
}
