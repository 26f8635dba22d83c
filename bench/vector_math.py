"""Accuracy and speed of the emitted elementary functions: python bench/vector_math.py

For each function and precision: the largest error in ulp and where, whether every lane count gives the same bits, and
ns per element for the widest vectors, half of them, and NumPy. float32 is measured against NumPy's float64, float64
against long double (80 bits on x86; where it is no wider than double the error column is left out). Minima of
alternating calls on 16384 elements, 64-byte aligned. Takes about ten seconds.
"""

from __future__ import annotations

import ctypes
import functools
import math
import time

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np

from tapeprop.targets.cpu.vector_math import VectorMath

UNARY = ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf", "sin", "cos")
FUNCTIONS = (*UNARY, "pow")
LANES = {32: (16, 8, 1), 64: (8, 4, 1)}
KIND = {32: np.float32, 64: np.float64}
ELEMENTS = 16384


def emit_loop(module, name, bits, lanes, operands, method):
    """void name(x_0, ..., y, i64 n), n a multiple of `lanes` or the last vector masked."""
    i64 = ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType()] * (operands + 1) + [i64]), name)
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
    vector.store(getattr(vector, method)(*(vector.load(p, mask) for p in places[:-1])), places[-1], mask)
    following = b.add(i, i64(lanes))
    i.add_incoming(following, b.block)
    b.cbranch(b.icmp_signed("<", following, count), loop, end)
    ir.IRBuilder(end).ret_void()


def compile_functions():
    """{(function, bits, lanes): bind(x_0, ..., y) -> callable()}."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = ir.Module()
    keys = [(name, bits, lanes) for name in FUNCTIONS for bits in LANES for lanes in LANES[bits]]
    for name, bits, lanes in keys:
        emit_loop(module, f"{name}_{bits}_{lanes}", bits, lanes, 2 if name == "pow" else 1, name)
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2, jit=True
    )
    parsed = llvm.parse_assembly(str(module))
    parsed.triple, parsed.data_layout = machine.triple, str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()

    def binder(key):
        operands = 3 if key[0] == "pow" else 2
        run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * operands, ctypes.c_int64)(
            engine.get_function_address("_".join(map(str, key)))
        )
        run.engine = engine
        # x.ctypes.data alone takes 2 us, so addresses are taken once.
        return lambda *arrays: functools.partial(run, *(a.ctypes.data for a in arrays), arrays[0].size)

    return {key: binder(key) for key in keys}


def numpy_function(name):
    """NumPy's counterpart for the timing; None where it has none."""
    if name == "sigmoid":
        return lambda x, out: np.divide(1, np.add(1, np.exp(np.negative(x, out=out), out=out), out=out), out=out)
    return getattr(np, {"pow": "power"}.get(name, name), None)


def wide_erf(x):
    """erf in x's type by 2/sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!, all terms of one sign."""
    sign, x = np.sign(x), np.minimum(np.abs(x), 10)
    term, total = x.copy(), x.copy()
    for n in range(1, 330):
        term = term * (2 * x * x / (2 * n + 1))
        total += term
    return sign * 2 / np.sqrt(4 * np.arctan(np.ones(1, x.dtype))) * np.exp(-x * x) * total


def truth(name, *xs):
    """The function in the next wider type."""
    with np.errstate(all="ignore"):
        wide = [x.astype(np.float64 if x.dtype == np.float32 else np.longdouble) for x in xs]
        if name == "sigmoid":
            e = np.exp(-np.abs(wide[0]))
            return np.where(wide[0] < 0, e, 1) / (1 + e)
        if name == "erf" and wide[0].dtype == np.float64:
            return np.array([math.erf(v) for v in wide[0]])
        if name == "erf":
            return np.where(wide[0] == 0, wide[0], wide_erf(wide[0]))
        return getattr(np, {"pow": "power"}.get(name, name))(*wide)


def sweep(name, bits):
    """Operands: random bit patterns (every exponent, both signs, NaN) and the ranges where the function lives."""
    rng, kind = np.random.default_rng(1), KIND[bits]
    count = 40_000 if name == "erf" else 400_000
    top = 128 if bits == 32 else 1024
    with np.errstate(over="ignore", divide="ignore"):
        if name == "pow":
            base = np.exp2(rng.uniform(-1, 1, count) * top)
            close = 1 + rng.uniform(-1e-3, 1e-3, count)
            x = np.concatenate([base, close, rng.uniform(0, 4, count)]).astype(kind)
            reach = rng.uniform(-1.1, 1.1, 2 * count) * top / np.abs(np.log2(x[: 2 * count].astype(np.float64)))
            return x, np.concatenate([reach, rng.uniform(-8, 8, count)]).astype(kind)
        patterns = rng.integers(0, 2**bits, count, dtype=np.uint32 if bits == 32 else np.uint64).view(kind)
        spans = [rng.uniform(-span, span, count) for span in (1, 10, 110 if bits == 32 else 750)]
        near = 1 + rng.uniform(-1e-3, 1e-3, count)
        turns = rng.integers(1, 10**5, count) * (np.pi / 2)
        return (np.concatenate([patterns, *(v.astype(kind) for v in (*spans, near, turns))]),)


def ulp_error(result, exact):
    """(largest error in units in the last place, its index); inf where NaN or infinity differ."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(result.dtype)
        error = np.abs(result.astype(exact.dtype) - exact) / np.spacing(np.abs(rounded)).astype(exact.dtype)
        same = (result == rounded) | np.isnan(result) & np.isnan(rounded)
        finite = np.isfinite(result) & np.isfinite(rounded)
        near_overflow = np.abs(exact) >= np.finfo(result.dtype).max  # inf or the largest number, both within an ulp
        error = np.where(finite, error, np.where(same | near_overflow, 0, np.inf))
    worst = int(np.argmax(error))
    return float(error[worst]), worst


def aligned(values):
    """A copy on a 64-byte boundary; NumPy promises 16 bytes, and then every 64-byte access would straddle two lines."""
    raw = np.empty(values.size + 64 // values.itemsize, values.dtype)
    copy = raw[-raw.ctypes.data % 64 // values.itemsize :][: values.size]
    copy[:] = values
    return copy


def nanoseconds(size, calls, repeats=15):
    """ns per element of each call, minima of alternating calls; nan for a missing one."""
    best = [math.nan if call is None else math.inf for call in calls]
    for _ in range(repeats):
        for k, call in enumerate(calls):
            if call is not None:
                start = time.perf_counter()
                call()
                best[k] = min(best[k], time.perf_counter() - start)
    return [seconds / size * 1e9 for seconds in best]


def main():
    start = time.perf_counter()
    bind = compile_functions()
    print(f"{len(bind)} kernels compiled in {time.perf_counter() - start:.2f} s on {llvm.get_host_cpu_name()}")
    print("function bits | max ulp at                                   | same bits | ns/element: widest, half, NumPy")
    wide_enough = np.finfo(np.longdouble).nmant >= 63
    for bits, (widest, half, _) in LANES.items():
        for name in FUNCTIONS:
            xs = sweep(name, bits)
            results = []
            for lanes in LANES[bits]:
                results.append(np.empty_like(xs[0]))
                bind[name, bits, lanes](*xs, results[-1])()
            same = all(np.array_equal(r.view(f"u{bits // 8}"), results[0].view(f"u{bits // 8}")) for r in results)
            where = "(no wider type here)"
            if bits == 32 or wide_enough:
                error, worst = ulp_error(results[0], truth(name, *xs))
                where = f"{error:5.2f} {', '.join(f'{x[worst]:.9g}' for x in xs)}"
            low = 0.1 if name in ("log", "pow") else -0.9 if name == "log1p" else -4
            rng = np.random.default_rng(0)
            xs = [aligned(rng.uniform(low, 4, ELEMENTS).astype(KIND[bits])) for _ in xs]
            y, peer = aligned(xs[0]), numpy_function(name)
            calls = [bind[name, bits, widest](*xs, y), bind[name, bits, half](*xs, y)]
            calls.append(peer and functools.partial(peer, *xs, out=y))
            times = " ".join(f"{v:6.2f}" for v in nanoseconds(ELEMENTS, calls))
            print(f"{name:8s}   {bits} | {where:44s} | {same!s:9s} | {times}", flush=True)


if __name__ == "__main__":
    main()
