"""What instructions of PTX give, by themselves and in kernels."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptx import arithmetic
from ptx.machine import LANES
from ptx.programs_for_tests import run

U32 = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1]))
U64 = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1]))


@given(U64, U64)
def test_products_quotients_and_remainders_of_64_bits(a, b):
    x, y = np.array([a], np.uint64), np.array([b], np.uint64)
    assert int(arithmetic.high_product(x, y)[0]) == a * b >> 64
    sx, sy = x.view(np.int64), y.view(np.int64)
    if b:
        assert (int(arithmetic.quotient(x, y)[0]), int(arithmetic.remainder(x, y)[0])) == divmod(a, b)
        p, q = int(sx[0]), int(sy[0])
        whole = abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)
        if whole < 2**63:
            assert int(arithmetic.quotient(sx, sy)[0]) == whole
            assert int(arithmetic.remainder(sx, sy)[0]) == p - whole * q


@given(U32, st.integers(0, 80))
def test_shifts_past_the_width(a, count):
    x, n = np.array([a], np.uint32), np.array([count], np.uint32)
    assert int(arithmetic.shifted_left(x, n)[0]) == (a << count) % 2**32
    assert int(arithmetic.shifted_right(x, n)[0]) == a >> count
    assert int(arithmetic.shifted_right(x.view(np.int32), n)[0]) == int(x.view(np.int32)[0]) >> count


@given(U64, U64, st.integers(0, 31), st.integers(0, 32))
def test_bits(a, b, start, length):
    x, y = np.array([a], np.uint64), np.array([b], np.uint64)
    assert int(arithmetic.leading_zeros(x)[0]) == 64 - a.bit_length()
    assert int(arithmetic.set_bits(x)[0]) == a.bit_count()
    mask = (1 << length) - 1
    assert int(arithmetic.inserted(x, y, start, length)[0]) == b & ~(mask << start) | (a & mask) << start


@given(st.floats(width=32), st.floats(width=32))
def test_the_smaller_and_the_larger(a, b):
    x, y = np.array([a], np.float32), np.array([b], np.float32)
    low, high = float(arithmetic.smallest(x, y)[0]), float(arithmetic.largest(x, y)[0])
    numbers = sorted((v for v in (a, b) if v == v), key=lambda v: (v, np.copysign(1, v)))
    assert repr(low) == repr(float(numbers[0]) if numbers else float("nan"))
    assert repr(high) == repr(float(numbers[-1]) if numbers else float("nan"))


@pytest.mark.parametrize(("how", "found"), [("rni", 2), ("rzi", 2), ("rmi", 2), ("rpi", 3)])
@pytest.mark.parametrize(("source", "kind", "nothing"), [
    ("f4", np.int32, 0), ("f8", np.int32, -(2**31)), ("f4", np.int64, -(2**63)), ("f4", np.uint32, 0), ("f8", np.uint64, 2**63),
])  # fmt: skip
def test_floats_become_integers(how, found, source, kind, nothing):
    x = np.array([2.5, -1e30, 1e30, np.nan, np.inf], source)
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    np.testing.assert_array_equal(
        arithmetic.to_integer(x, kind, how), np.array([found, low, high, nothing, high], kind)
    )


def test_a_fused_sum_is_rounded_once():
    a, c = np.float32(1 + 2**-12), np.float32(-1)
    assert arithmetic.fused(a, a, c) == np.float32(2**-11 + 2**-24)
    assert a * a + c == np.float32(2**-11)


@pytest.mark.parametrize("small", [2.0**-30, 2.0**-80])  # seen in a sum of float64, and lost there
def test_sums_are_rounded_as_asked(small):
    a, b = np.array([1.0, -1.0, 1.0, -1.0, 1.0]), np.array([small, -small, -small, small, 1.0])
    one, above, below = (
        np.float32(1),
        np.nextafter(np.float32(1), np.float32(2)),
        np.nextafter(np.float32(1), np.float32(0)),
    )
    assert arithmetic.toward("rm", a, b).tolist() == [one, -above, below, -one, 2]
    assert arithmetic.toward("rp", a, b).tolist() == [above, -one, one, -below, 2]
    assert arithmetic.toward("rz", a, b).tolist() == [one, -one, below, -below, 2]


NAN, INF, DENORMAL, TINY = float("nan"), float("inf"), 1.5 * 2.0**-127, 2.0**-149
#: (an instruction, the values of its operands, what it gives). Registers: %p, %r, %rd, %f, %fd.
GIVES = [
    # comparisons of what has no order
    *((f"setp.{how}.f32 %p0, %f1, %f2", (NAN, 1.0), how in ("ltu", "geu", "equ", "neu", "nan"))
      for how in ("lt", "ge", "eq", "ne", "ltu", "geu", "equ", "neu", "num", "nan")),
    *((f"setp.{how}.f64 %p0, %fd1, %fd2", (1.0, 2.0), how in ("lt", "ne", "ltu", "neu", "num"))
      for how in ("lt", "ge", "eq", "ne", "ltu", "geu", "equ", "neu", "num", "nan")),
    ("setp.lt.s32 %p0, %r1, %r2", (2**32 - 1, 1), True),
    ("setp.lt.u32 %p0, %r1, %r2", (2**32 - 1, 1), False),
    # floats at their edges
    ("copysign.f32 %f0, %f1, %f2", (-0.0, 2.0), -2.0),
    ("abs.f64 %fd0, %fd1", (-0.0,), 0.0),
    ("neg.f32 %f0, %f1", (0.0,), -0.0),
    ("min.f32 %f0, %f1, %f2", (NAN, -0.0), -0.0),
    ("max.f64 %fd0, %fd1, %fd2", (-0.0, 0.0), 0.0),
    ("add.f32 %f0, %f1, %f2", (DENORMAL, DENORMAL), 2 * DENORMAL),
    ("add.ftz.f32 %f0, %f1, %f2", (DENORMAL, DENORMAL), 0.0),
    ("add.ftz.f32 %f0, %f1, %f2", (3 * 2.0**-126, -2.5 * 2.0**-126), 0.0),
    ("mul.ftz.f32 %f0, %f1, %f2", (2.0**-130, 2.0**100), 0.0),
    ("mul.f32 %f0, %f1, %f2", (2.0**-130, 2.0**100), 2.0**-30),
    ("rcp.approx.ftz.f32 %f0, %f1", (DENORMAL,), INF),
    ("rcp.rn.f32 %f0, %f1", (DENORMAL,), float(np.float32(1 / DENORMAL))),
    ("rcp.approx.ftz.f64 %fd0, %fd1", (3.0,), float.fromhex("0x1.55555p-2")),  # without its lower half
    ("ex2.approx.ftz.f32 %f0, %f1", (-127.0,), 0.0),
    ("ex2.approx.f32 %f0, %f1", (-127.0,), 2.0**-127),
    ("lg2.approx.f32 %f0, %f1", (8.0,), 3.0),
    ("add.sat.f32 %f0, %f1, %f2", (NAN, 1.0), 0.0),
    ("cvt.sat.f32.f32 %f0, %f1", (1.5,), 1.0),
    ("cvt.rn.ftz.f32.f64 %f0, %fd1", (2.0**-130,), 0.0),
    ("cvt.rn.f32.f64 %f0, %fd1", (2.0**-130,), 2.0**-130),
    ("cvt.f64.f32 %fd0, %f1", (TINY,), TINY),
    ("cvt.rn.f32.s64 %f0, %rd1", (2**64 - 3,), -3.0),
    ("cvt.rmi.f32.f32 %f0, %f1", (-0.5,), -1.0),
    ("sqrt.rn.f64 %fd0, %fd1", (-1.0,), NAN),
    # integers
    ("cvt.s64.s32 %rd0, %r1", (2**32 - 2,), 2**64 - 2),
    ("cvt.u64.u32 %rd0, %r1", (2**32 - 2,), 2**32 - 2),
    ("cvt.u32.u64 %r0, %rd1", (2**40 + 7,), 7),
    ("mul.hi.u32 %r0, %r1, %r2", (2**31, 6), 3),
    ("mul.wide.s32 %rd0, %r1, %r2", (2**32 - 1, 5), 2**64 - 5),
    ("mad.lo.s32 %r0, %r1, %r2, %r3", (7, 6, 2**32 - 2), 40),
    ("shr.s64 %rd0, %rd1, %r2", (2**63, 63), 2**64 - 1),
    ("max.s32 %r0, %r1, %r2", (2**32 - 1, 1), 1),
    ("min.s64 %rd0, %rd1, %rd2", (2**64 - 1, 1), 2**64 - 1),
    ("div.s64 %rd0, %rd1, %rd2", (2**64 - 7, 2), 2**64 - 3),
    ("rem.s64 %rd0, %rd1, %rd2", (2**64 - 7, 2), 2**64 - 1),
    ("bfi.b32 %r0, %r1, %r2, 4, 8", (0x5A5, 0xFFFFFFFF), 0xFFFFFA5F),
    ("clz.b64 %r0, %rd1", (1,), 63),
    ("selp.b32 %r0, %r1, %r2, %p3", (4, 5, False), 5),
    ("mov.b32 %r0, %f1", (-0.0,), 2**31),
    ("sub.cc.u32 %r3, %r1, %r2;\nsubc.u32 %r0, %r1, %r2", (1, 2), 2**32 - 2),
    ("sub.cc.u32 %r3, %r2, %r1;\nsubc.u32 %r0, %r1, %r2", (1, 2), 2**32 - 1),
    ("mad.lo.cc.u32 %r3, %r1, %r2, %r1;\nmadc.hi.u32 %r0, %r1, %r2, %r1", (2**32 - 1, 1), 2**32 - 1 + 1 - 2**32),
    ("add.cc.u32 %r3, %r1, %r1;\naddc.u32 %r0, %r2, %r2", (2**31, 5), 11),
]  # fmt: skip
_REGISTERS = {"f": ("f32", "%f"), "fd": ("f64", "%fd"), "r": ("u32", "%r"), "rd": ("u64", "%rd"), "p": ("pred", "%p")}


@pytest.mark.parametrize(("line", "values", "expected"), GIVES, ids=lambda item: item if isinstance(item, str) else "")
def test_what_an_instruction_gives(arena, line, values, expected):
    """Registers 1, 2 and 3 hold the values, number 0 of its kind takes the result."""
    text = re.sub(r"%(fd|f|rd|r|p)([0-3])\b", lambda m: f"%{m[1]}{int(m[2]) + 5}", line)  # beside those that `run` uses
    named = [name for name in re.findall(r"%(?:fd|f|rd|r|p)[5-8]\b", text) if name[-1] != "5"]
    for name in sorted(set(named), key=lambda name: name[-1])[: len(values)][::-1]:
        value, stem = values[int(name[-1]) - 6], name[1:-1]
        kind = _REGISTERS[stem][0]
        bits = {
            "f32": lambda v: f"0f{np.float32(v).view(np.uint32):08X}",
            "f64": lambda v: f"0d{np.float64(v).view(np.uint64):016X}",
        }
        text = f"mov.{kind} {name}, {bits.get(kind, lambda v: int(v))(value)};\n{text}"
    stem = re.search(r"%(fd|f|rd|r|p)5\b", text)[1]
    store = {
        "p": "selp.u64 %rd9, 1, 0, %p5", "r": "cvt.u64.u32 %rd9, %r5", "rd": "mov.u64 %rd9, %rd5",
        "f": "cvt.f64.f32 %fd9, %f5;\nmov.b64 %rd9, %fd9", "fd": "mov.b64 %rd9, %fd5",
    }[stem]  # fmt: skip
    (found,) = run(arena, f"{text};\n{store};\nst.global.u64 [%rd3], %rd9;", np.zeros(1, np.uint64), threads=1)
    if stem in ("f", "fd"):
        assert repr(float(found.view(np.float64)[0])) == repr(float(expected))
    else:
        assert int(found[0]) == int(expected)


@pytest.mark.parametrize(("kind", "expected"), [("s8", 2**64 - 2), ("u8", 254), ("s32", 2**64 - 2), ("u32", 2**32 - 2)])
def test_loads_fill_a_wider_register_by_their_sign(arena, kind, expected):
    register = "%h0" if kind in ("u8", "s8") else "%rd9"
    wide = f"cvt.{kind[0]}64.{kind[0]}16 %rd9, %h0;\n" if register == "%h0" else ""
    body = f"ld.global.{kind} {register}, [%rd3];\n{wide}st.global.u64 [%rd3], %rd9;"
    (found,) = run(arena, body, np.array([-2]), threads=1)
    assert int(found.view(np.uint64)[0]) == expected


def test_threads_that_take_different_ways(arena):
    """How many steps of Collatz lead to 1: each thread leaves its loop when it is through."""
    start = np.arange(1, 97, dtype=np.uint64)

    def steps(n):
        count = 0
        while n != 1:
            n, count = (n // 2, count + 1) if n % 2 == 0 else (3 * n + 1, count + 1)
        return count

    (found,) = run(
        arena,
        """
        ld.global.u64 %rd5, [%rd3];
        mov.u64 %rd6, 0;
    $again:
        setp.eq.s64 %p0, %rd5, 1;
        @%p0 bra $done;
        add.s64 %rd6, %rd6, 1;
        and.b64 %rd7, %rd5, 1;
        setp.eq.b64 %p1, %rd7, 0;
        @!%p1 bra $odd;
        shr.u64 %rd5, %rd5, 1;
        bra.uni $again;
    $odd:
        mad.lo.s64 %rd5, %rd5, 3, 1;
        bra.uni $again;
    $done:
        st.global.u64 [%rd3], %rd6;
        """,
        start,
        blocks=3,
    )
    assert found.tolist() == [steps(n) for n in range(1, 97)]


def test_more_threads_than_run_side_by_side(arena):
    count = LANES * 2 + 64
    (found,) = run(arena, "cvt.u64.u32 %rd5, %r1;\nst.global.u64 [%rd3], %rd5;", np.zeros(count), blocks=count // 32)
    np.testing.assert_array_equal(found.view(np.uint64), np.arange(count))


def test_carries_and_numbers_in_parts(arena):
    """A sum of 64 bits from halves, in a scope of its own, as inline assembly does it."""
    random = np.random.default_rng(0).integers(0, 2**64, (2, 32), np.uint64)
    found, _ = run(
        arena,
        """
        ld.global.u64 %rd5, [%rd3];
        ld.global.u64 %rd6, [%rd4];
        {
        .reg .u32 low, high, a, b, c, d;
        mov.b64 {a, b}, %rd5;
        mov.b64 {c, d}, %rd6;
        add.cc.u32 low, a, c;
        addc.u32 high, b, d;
        mov.b64 %rd7, {low, high};
        }
        st.global.u64 [%rd3], %rd7;
        """,
        *random,
    )
    np.testing.assert_array_equal(found, random[0] + random[1])


def test_functions_constants_and_a_threads_own_memory(arena):
    """y = table[x] + x squared, by a function that is called twice; by way of local memory."""
    x = np.arange(32) % 4 * np.ones(32, np.int64)
    (found,) = run(
        arena,
        """
        .local .align 8 .b8 own[16];
        ld.global.u64 %rd5, [%rd3];
        mov.u64 %rd6, own;
        st.local.u64 [%rd6+8], %rd5;
        ld.local.u64 %rd7, [own+8];
        {
        .param .b64 given; .param .b64 back;
        st.param.b64 [given+0], %rd7;
        call.uni (back), square, (given);
        ld.param.b64 %rd8, [back+0];
        }
        {
        .param .b64 given; .param .b64 back;
        st.param.b64 [given+0], 1;
        call.uni (back), square, (given);
        ld.param.b64 %rd9, [back+0];
        }
        mul.lo.s64 %rd8, %rd8, %rd9;
        mov.u64 %rd10, table;
        add.s64 %rd10, %rd10, %rd5;
        ld.global.nc.u8 %h0, [%rd10];
        cvt.u64.u16 %rd11, %h0;
        add.s64 %rd8, %rd8, %rd11;
        st.global.u64 [%rd3], %rd8;
        """,
        x,
        outside="""
        .global .align 1 .b8 table[4] = {7, 5, 3, 1};
        .func (.param .b64 result) square(.param .b64 number)
        {
            .reg .b64 %rd<3>; .reg .pred %p<2>;
            ld.param.u64 %rd0, [number];
            setp.eq.s64 %p0, %rd0, 0;
            @%p0 bra $zero;
            mul.lo.s64 %rd1, %rd0, %rd0;
            st.param.b64 [result+0], %rd1;
            ret;
        $zero:
            st.param.b64 [result+0], 0;
            ret;
        }
        """,
    )
    np.testing.assert_array_equal(found, np.array([7, 5, 3, 1])[x] + x**2)


def test_loads_and_stores_of_several_elements(arena):
    x = np.arange(32.0, dtype=np.float32)
    (found,) = run(
        arena,
        """
        mul.wide.u32 %rd5, %r0, 16;
        add.s64 %rd5, %rd0, %rd5;
        ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%rd5];
        st.global.v2.f32 [%rd5], {%f3, %f2};
        st.global.v2.f32 [%rd5+8], {%f1, %f0};
        """,
        x,
        threads=8,
    )
    np.testing.assert_array_equal(found, x.reshape(8, 4)[:, ::-1].reshape(-1))


@pytest.mark.parametrize("first", [0, 5])
def test_one_thread_swaps(arena, first):
    """Each thread gets what it met: the first what was there, all others what it left."""
    found, met = run(
        arena,
        """
        cvt.u64.u32 %rd5, %r1;
        add.s64 %rd5, %rd5, 100;
        atom.global.cas.b64 %rd6, [%rd0], 0, %rd5;
        st.global.u64 [%rd4], %rd6;
        """,
        np.array([first]),
        np.zeros(64, np.int64),
        blocks=2,
    )
    assert found[0] == (first or 100)
    assert met.tolist() == [first] + [first or 100] * 63


def test_a_register_that_was_copied_keeps_its_value_where_the_copy_changes_for_some(arena):
    (found,) = run(
        arena,
        """
        cvt.u64.u32 %rd5, %r0;
        mov.u64 %rd6, %rd5;
        setp.gt.u32 %p0, %r0, 3;
        @%p0 bra $after;
        mov.u64 %rd6, 100;
    $after:
        mad.lo.s64 %rd7, %rd5, 1000, %rd6;
        st.global.u64 [%rd3], %rd7;
        """,
        np.zeros(32, np.int64),
    )
    thread = np.arange(32)
    np.testing.assert_array_equal(found, 1000 * thread + np.where(thread > 3, thread, 100))
