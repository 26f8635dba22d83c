"""What instructions of PTX give, by themselves and in kernels."""

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
def test_floats_become_integers(how, found):
    x = np.array([2.5, -1e30, 1e30, np.nan, np.inf])
    expected = [found, -(2**31), 2**31 - 1, 0, 2**31 - 1]
    np.testing.assert_array_equal(arithmetic.to_integer(x, np.int32, how), expected)


def test_a_fused_sum_is_rounded_once_and_others_as_asked():
    a, c = np.float32(1 + 2**-12), np.float32(-1)
    assert arithmetic.fused(a, a, c) == np.float32(2**-11 + 2**-24)
    assert a * a + c == np.float32(2**-11)
    exact = np.array([1 + 2**-30, -1 - 2**-30])
    one, above = np.float32(1), np.nextafter(np.float32(1), np.float32(2))
    assert arithmetic.toward("rm", exact, np.float32).tolist() == [one, -above]
    assert arithmetic.toward("rp", exact, np.float32).tolist() == [above, -one]
    assert arithmetic.toward("rz", exact, np.float32).tolist() == [one, -one]


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
    (found,) = run(
        arena,
        "cvt.u64.u32 %rd5, %r1;\nadd.s64 %rd5, %rd5, 100;\natom.global.cas.b64 %rd6, [%rd0], 0, %rd5;",
        np.array([first]),
        blocks=2,
    )
    assert found[0] == (first or 100)
