"""Accuracy, special values and lane independence of the emitted elementary functions, against NumPy in a wider type."""

from __future__ import annotations

import ctypes
import math

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np
import pytest

from tapeprop.targets.cpu.vector_math import VectorMath

UNARY = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos")
LANES = {32: (16, 8, 1), 64: (8, 4, 1)}
KIND = {32: np.float32, 64: np.float64}
ULP_BOUND = {32: 2.0, 64: 2.5}  # measured: 1.72 and 1.95; the samples here are few, so the bound has some room
WIDE_ENOUGH = np.finfo(np.longdouble).nmant >= 63
INF, NAN = math.inf, math.nan


def emit_loop(module, name, bits, lanes, operands, body):
    """void name(x_0, ..., y, i64 n): y[i] = body(math, [x_0[i], ...]) by whole vectors and one masked one."""
    pointer, i64 = ir.PointerType(), ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer] * (operands + 1) + [i64]), name)
    *pointers, count = function.args
    entry, loop, end = (function.append_basic_block(label) for label in ("entry", "loop", "end"))
    b = ir.IRBuilder(entry)
    b.cbranch(b.icmp_signed(">", count, i64(0)), loop, end)
    b.position_at_end(loop)
    i = b.phi(i64)
    i.add_incoming(i64(0), entry)
    vector = VectorMath(b, bits, lanes)
    places = [b.gep(p, [i], source_etype=vector.float_scalar) for p in pointers]
    mask = vector.lane_mask(b.sub(count, i))
    vector.store(body(vector, [vector.load(p, mask) for p in places[:-1]]), places[-1], mask)
    following = b.add(i, i64(lanes))
    i.add_incoming(following, b.block)
    b.cbranch(b.icmp_signed("<", following, count), loop, end)
    ir.IRBuilder(end).ret_void()


def compile_module(text):
    """(engine to keep alive, address of a function by name)."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=1, jit=True
    )
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine, engine.get_function_address


BINARY = {"pow": "pow", "maximum": "maximum", "minimum": "minimum"}


@pytest.fixture(scope="module")
def functions():
    """{(function, bits, lanes): callable(x, ...) -> y} of everything in UNARY and BINARY."""
    module, operands = ir.Module(), {}
    for bits, counts in LANES.items():
        for lanes in counts:
            for name in (*UNARY, *BINARY):
                operands[name, bits, lanes] = 1 if name in UNARY else 2
                emit_loop(
                    module,
                    f"{name}_{bits}_{lanes}",
                    bits,
                    lanes,
                    operands[name, bits, lanes],
                    lambda vector, xs, name=name: getattr(vector, name)(*xs),
                )
    engine, address = compile_module(str(module))

    def caller(key):
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (operands[key] + 1), ctypes.c_int64)
        run = kind(address("_".join(map(str, key))))

        def call(*xs, keep=engine):
            xs = [np.ascontiguousarray(x, KIND[key[1]]) for x in np.broadcast_arrays(*xs)]
            y = np.empty_like(xs[0])
            run(*(x.ctypes.data for x in xs), y.ctypes.data, y.size)
            return y

        return call

    return {key: caller(key) for key in operands}


# ---- references in a wider type


def wide_erf(x):
    """erf in long double: 2/sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!, whose terms all have one sign."""
    x = np.clip(x, -12, 12)
    term, total = x.copy(), x.copy()
    for n in range(1, 400):
        term = term * (2 * x * x / (2 * n + 1))
        total += term
    two_over_root_pi = np.longdouble(2) / np.sqrt(4 * np.arctan(np.longdouble(1)))
    return two_over_root_pi * np.exp(-x * x) * total


def truth(name, *xs):
    """The function in higher precision: float64 for float32, long double for float64."""
    with np.errstate(all="ignore"):
        wide = [x.astype(np.float64 if x.dtype == np.float32 else np.longdouble) for x in xs]
        if name == "sigmoid":
            e = np.exp(-np.abs(wide[0]))
            return np.where(wide[0] < 0, e, 1) / (1 + e)
        if name == "erf":
            if wide[0].dtype == np.float64:
                return np.array([math.erf(v) for v in wide[0]])
            exact = wide_erf(wide[0])
            return np.where(wide[0] == 0, wide[0], exact)
        return getattr(np, {"pow": "power"}.get(name, name))(*wide)


def ulp_error(result, exact):
    """Largest error in units in the last place and its index; inf where NaN, infinity or the sign of zero differ."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(result.dtype)
        error = np.abs(result.astype(exact.dtype) - exact) / np.spacing(np.abs(rounded)).astype(exact.dtype)
        same = (result == rounded) | np.isnan(result) & np.isnan(rounded)
        sign = np.isnan(exact) | (np.signbit(result) == np.signbit(exact))
        finite = np.isfinite(result) & np.isfinite(rounded)
        edge = np.isinf(result) ^ np.isinf(rounded)  # one ulp below overflow is an honest neighbour of inf
        edge &= np.abs(np.where(np.isinf(result), rounded, result)) == np.finfo(result.dtype).max
        error = np.where(finite, error, np.where(same | edge, 0, np.inf))
        error = np.where(sign, error, np.inf)
    worst = int(np.argmax(error))
    return float(error[worst]), worst


def arguments(bits, count=20_000):
    """All exponents and both signs (random bit patterns), the ranges where the functions live, multiples of pi/2."""
    rng, kind = np.random.default_rng(1), KIND[bits]
    patterns = rng.integers(0, 2**bits, count, dtype=np.uint32 if bits == 32 else np.uint64).view(kind)
    spans = [rng.uniform(-span, span, count) for span in (1, 10, 110 if bits == 32 else 750)]
    near_one = 1 + rng.uniform(-1e-3, 1e-3, count)
    turns = rng.integers(1, 10**5, count) * (np.pi / 2)
    special = [0.0, -0.0, 1, -1, 1000, -1000, INF, -INF, NAN, 5e-324, -5e-324, 1e-45, -1e-45, 1e-40, 1e-310, 89, -104]
    with np.errstate(over="ignore"):
        return np.concatenate([patterns, *(np.asarray(v, kind) for v in (*spans, near_one, turns, special))])


def sample_pairs(bits):
    """Operands of pow: where the result is finite, and where it is at its ends; bases near one with huge exponents."""
    rng, kind = np.random.default_rng(2), KIND[bits]
    count, top = 20_000, 128 if bits == 32 else 1024
    base = np.exp2(rng.uniform(-top * 0.99, top * 0.99, count))
    exponent = rng.uniform(-1, 1, count) * (top * 1.05) / np.abs(np.log2(base))
    close = 1 + rng.uniform(-1e-4, 1e-4, count)
    steep = rng.uniform(-1, 1, count) * (top * 1.05) / np.abs(np.log2(close))
    tiny = np.exp2(rng.uniform(-1.17, -1, count) * top) if bits == 32 else np.exp2(rng.uniform(-1074, -1022, count))
    mild, whole = rng.uniform(-3, 3, count), rng.integers(-30, 30, count)
    pairs = [(base, exponent), (close, steep), (tiny, rng.uniform(-1, 1, count)), (rng.uniform(0, 4, count), mild)]
    pairs += [(rng.uniform(-4, 4, count), whole)]
    with np.errstate(over="ignore"):
        return [np.concatenate(v).astype(kind) for v in zip(*pairs, strict=True)]


# ---- accuracy


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", UNARY)
def test_error_is_bounded(functions, name, bits):
    if bits == 64 and not WIDE_ENOUGH:
        pytest.skip("float64 errors need an 80-bit or wider long double")
    x = arguments(bits, 2_000 if name == "erf" else 20_000)
    error, worst = ulp_error(functions[name, bits, LANES[bits][0]](x), truth(name, x))
    assert error <= ULP_BOUND[bits], f"{name}({x[worst]!r})"


@pytest.mark.parametrize("bits", [32, 64])
def test_pow_error_is_bounded(functions, bits):
    if bits == 64 and not WIDE_ENOUGH:
        pytest.skip("float64 errors need an 80-bit or wider long double")
    x, y = sample_pairs(bits)
    error, worst = ulp_error(functions["pow", bits, LANES[bits][0]](x, y), truth("pow", x, y))
    assert error <= ULP_BOUND[bits], f"pow({x[worst]!r}, {y[worst]!r})"


@pytest.mark.parametrize("bits", [32, 64])
def test_large_angles(functions, bits):
    """Exact reduction, where a plain multiplication by 2/pi would leave no digit; values from 50-digit arithmetic."""
    cases = [(2.0**120, 0.37782010936075202, -0.92587902285483787)]
    if bits == 64:
        cases += [(1e22, -0.85220084976718880, 0.52321478539513895)]
    for x, sine, cosine in cases:
        for name, value in (("sin", sine), ("cos", cosine)):
            found = float(functions[name, bits, 1]([x])[0])
            assert found == pytest.approx(value, rel=float(2 * np.finfo(KIND[bits]).eps), abs=0)


# ---- special values

# Pairs (argument, value): as dict keys 0.0 and -0.0 would be one.
SPECIAL = {
    "exp": [(0.0, 1), (-0.0, 1), (INF, INF), (-INF, 0), (1000, INF), (-1000, 0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1), (1000, INF), (-1000, -1)],
    "log": [(0.0, -INF), (-0.0, -INF), (1, 0.0), (INF, INF), (-INF, NAN), (-1, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1, -INF), (INF, INF), (-INF, NAN), (-1.5, NAN)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1), (1000, 1), (-1000, -1)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (INF, 1), (-INF, 0), (1000, 1), (-1000, 0)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1), (1000, 1), (-1000, -1)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "cos": [(0.0, 1), (-0.0, 1), (INF, NAN), (-INF, NAN)],
}
# ISO C, F.10.4.5: the special values of pow.
POW_SPECIAL = [
    (0.0, -3, INF), (-0.0, -3, -INF), (0.0, -2, INF), (-0.0, -2, INF), (-0.0, -2.5, INF), (0.0, -INF, INF),
    (-0.0, -INF, INF), (0.0, 3, 0.0), (-0.0, 3, -0.0), (0.0, 2, 0.0), (-0.0, 2, 0.0), (-0.0, 0.5, 0.0), (0.0, INF, 0.0),
    (-1, INF, 1), (-1, -INF, 1), (1, NAN, 1), (1, INF, 1), (NAN, 0.0, 1), (NAN, -0.0, 1), (INF, 0.0, 1), (0.0, 0.0, 1),
    (-2, 0.5, NAN), (-2, -1.5, NAN), (0.5, -INF, INF), (-0.5, -INF, INF), (2, -INF, 0.0), (-2, -INF, 0.0),
    (0.5, INF, 0.0), (-0.5, INF, 0.0), (2, INF, INF), (-2, INF, INF),
    (-INF, -3, -0.0), (-INF, -2, 0.0), (-INF, -0.5, 0.0), (-INF, 3, -INF), (-INF, 2, INF), (-INF, 0.5, INF),
    (INF, -0.5, 0.0), (INF, 2.5, INF), (-INF, INF, INF), (-INF, -INF, 0.0), (INF, -INF, 0.0),
    (NAN, 2, NAN), (2, NAN, NAN), (-1, NAN, NAN), (0.0, NAN, NAN), (INF, NAN, NAN), (NAN, NAN, NAN),
    (-2, 3, -8), (-2, 2, 4), (2, -1, 0.5), (-3, 1, -3), (9, 0.5, 3), (-1, 1e30, 1), (-1, 16777215, -1),
]  # fmt: skip


def assert_same(found, expected, label):
    """Equal, NaN and the sign of zero included."""
    expected = np.asarray(expected, found.dtype)
    same = (found == expected) & (np.signbit(found) == np.signbit(expected)) | np.isnan(found) & np.isnan(expected)
    assert same.all(), [(label(i), found[i], expected[i]) for i in np.flatnonzero(~same)]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", UNARY)
def test_special_values(functions, name, bits):
    x, expected = zip(*SPECIAL[name], (NAN, NAN), strict=True)
    for lanes in LANES[bits]:
        assert_same(functions[name, bits, lanes](x), expected, lambda i: x[i])


@pytest.mark.parametrize("bits", [32, 64])
def test_pow_special_values(functions, bits):
    x, y, expected = zip(*POW_SPECIAL, strict=True)
    for lanes in LANES[bits]:
        assert_same(functions["pow", bits, lanes](x, y), expected, lambda i: (x[i], y[i]))


@pytest.mark.parametrize("bits", [32, 64])
def test_maximum_and_minimum_propagate_nan(functions, bits):
    x, y = [NAN, 1, NAN, 1, 2, -INF], [1, NAN, NAN, 2, 1, INF]
    assert_same(functions["maximum", bits, LANES[bits][0]](x, y), [NAN, NAN, NAN, 2, 2, INF], lambda i: (x[i], y[i]))
    assert_same(functions["minimum", bits, LANES[bits][0]](x, y), [NAN, NAN, NAN, 1, 1, -INF], lambda i: (x[i], y[i]))


# ---- the same bits in every lane count and every tail


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", [*UNARY, "pow"])
def test_same_bits_for_any_lane_count_and_tail(functions, name, bits):
    operands = sample_pairs(bits) if name == "pow" else [arguments(bits, 3_000)]
    whole, *others = (functions[name, bits, lanes](*operands) for lanes in LANES[bits])
    for other in others:
        np.testing.assert_array_equal(whole.view(f"u{bits // 8}"), other.view(f"u{bits // 8}"))
    for length in (1, 7, 15, 17, 33):
        tail = functions[name, bits, LANES[bits][0]](*(x[-length:] for x in operands))
        np.testing.assert_array_equal(whole[-length:].view(f"u{bits // 8}"), tail.view(f"u{bits // 8}"))


# ---- memory and constants


@pytest.mark.parametrize("lanes", [1, 8])
def test_strided_and_masked_memory(lanes):
    """gather and scatter reach every stride-th element and leave the others, and the masked tail, alone."""
    module, i64 = ir.Module(), ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType()] * 2 + [i64] * 3), "copy")
    vector = VectorMath(ir.IRBuilder(function.append_basic_block()), 32, lanes)
    source, target, source_stride, target_stride, count = function.args
    mask = vector.lane_mask(count)
    vector.scatter(vector.add(vector.gather(source, source_stride, mask), 1), target, target_stride, mask)
    vector.builder.ret_void()
    engine, address = compile_module(str(module))
    assert engine is not None
    copy = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3)(address("copy"))
    count = min(lanes, 5)
    x, y = np.arange(40, dtype=np.float32), np.full(40, -1, np.float32)
    copy(x.ctypes.data + 4 * 39, y.ctypes.data, -3, 2, count)
    expected = np.full(40, -1, np.float32)
    expected[: 2 * count : 2] = x[39 : 39 - 3 * count : -3] + 1
    np.testing.assert_array_equal(y, expected)


def test_constants_beyond_float32_become_infinite():
    vector = VectorMath(ir.IRBuilder(), 32, 4)
    assert str(vector.value(1e300)) == str(vector.value(INF))
    assert "splat" in str(vector.value(1.5))


def test_refuses_other_widths():
    with pytest.raises(ValueError, match="32 or 64 bits, not 16"):
        VectorMath(ir.IRBuilder(), 16, 8)
    with pytest.raises(ValueError, match="at least one lane, got 0"):
        VectorMath(ir.IRBuilder(), 32, 0)
