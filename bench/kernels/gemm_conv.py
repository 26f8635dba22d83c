"""Speed of matrix products and convolutions on one core, beside the fastest this core can multiply and add.

    python bench/kernels/gemm_conv.py [float32 | float64]

The peak is measured in the same run, by a loop of fma on registers alone. Each figure is the least of alternating calls; a call
of a small product includes about half a microsecond of ctypes. Takes about 15 seconds when the kernels are cached.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np

import tapeprop.ops
from tapeprop.ir import Input, Tensor, Trace, recording
from tapeprop.ir.kernels import FIRST_FIELD
from tapeprop.ops.op import ArrayType, Call, Ref
from tapeprop.runtime.linker import load
from tapeprop.runtime.memory import address_of, aligned
from tapeprop.targets.cpu.machine import lanes, target_machine, vector_registers

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
SUMS, ROUNDS = (24 if vector_registers() >= 32 else 12), 200_000


def fma_peak(dtype: str) -> tuple[Callable[[], None], int]:
    """(a function that does nothing but fma, how many floating point operations a call makes)."""
    scalar = ir.FloatType() if dtype == "float32" else ir.DoubleType()
    vector, i64 = ir.VectorType(scalar, lanes(dtype)), ir.IntType(64)
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [i64] * 3), "peak")
    fma = ir.Function(
        module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes(dtype)}f{scalar.intrinsic_name[1:]}"
    )
    entry, loop, end = (function.append_basic_block(name) for name in ("entry", "loop", "end"))
    b = ir.IRBuilder(entry)
    place = b.inttoptr(function.args[0], ir.PointerType())
    factor = b.load(place, typ=vector)
    b.branch(loop)
    b.position_at_end(loop)
    count, *sums = [b.phi(kind) for kind in (i64, *[vector] * SUMS)]
    following = b.add(count, i64(1))
    results = [b.call(fma, [factor, factor, x]) for x in sums]
    count.add_incoming(i64(0), entry)
    count.add_incoming(following, loop)
    for phi, result in zip(sums, results):
        phi.add_incoming(factor, entry)
        phi.add_incoming(result, loop)
    b.cbranch(b.icmp_signed("<", following, i64(ROUNDS)), loop, end)
    b.position_at_end(end)
    total = results[0]
    for result in results[1:]:
        total = b.fadd(total, result)
    b.store(total, place)
    b.ret_void()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), target_machine())
    engine.finalize_object()
    values = aligned(64, dtype)
    values[:] = 1e-3
    kernel = KERNEL(engine.get_function_address("peak"))

    def run(keep: object = engine) -> None:
        kernel(address_of(values), 0, 1)

    return run, 2 * lanes(dtype) * SUMS * ROUNDS


def prepared(
    name: str, shapes: list[tuple[int, ...]], dtype: str, **attributes: object
) -> tuple[Callable[[], None], int]:
    """(a call of an op's kernel on random operands, its floating point operations)."""
    op = tapeprop.ops.registry[name]
    rng = np.random.default_rng(0)
    arrays = []
    for shape in shapes:
        array = aligned(int(np.prod(shape)), dtype).reshape(shape)
        array[...] = rng.standard_normal(shape)
        arrays.append(array)
    with recording(Trace(dtype, True)):
        tensors = [Tensor(shape, dtype, source=Input(i)) for i, shape in enumerate(shapes)]
        results = tapeprop.ops.record(op, tensors, attributes)
    call = Call(
        tuple(ArrayType(shape, dtype) for shape in shapes),
        tuple(ArrayType(tuple(map(int, r.shape)), dtype) for r in results),
        attributes,
    )
    arrays += [aligned(r.size, dtype) for r in call.results]
    launch = op.cpu(call)
    count, kind = launch.scratch or (0, "uint8")
    scratch = aligned(count, kind)
    row = aligned(FIRST_FIELD + len(launch.fields), "int64")
    for i, field in enumerate(launch.fields, FIRST_FIELD):
        if not isinstance(field, Ref):
            row[i] = field
        elif field.kind == "stride":
            row[i] = scratch.nbytes // field.index
        else:
            place = {"operand": arrays, "result": arrays[len(shapes) :], "scratch": [scratch]}[field.kind]
            row[i] = address_of(place[field.index])
    kernel = KERNEL(load([launch.kernel])[launch.kernel])
    address = address_of(row)

    def run(keep: object = (arrays, scratch, row)) -> None:
        kernel(address, 0, 1)

    return run, op.flops(call)


def best_seconds(calls: list[Callable[[], None]], seconds: float) -> list[float]:
    """The least time of each call; they alternate for about `seconds`. Time of this thread: the machine may be busy otherwise."""
    best = [float("inf")] * len(calls)
    stop = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < stop:
        rounds += 1
        for i, call in enumerate(calls):
            start = time.thread_time()
            call()
            best[i] = min(best[i], time.thread_time() - start)
    return best


PRODUCTS = [
    (8, 16, 16),
    (64, 84, 10),
    (64, 784, 256),
    (64, 256, 128),
    (1, 784, 256),
    (256, 256, 256),
    (512, 1024, 1024),
]  # rows, terms, columns
CONVOLUTIONS = [
    (64, 3, 16, 32, 3, 1),
    (64, 16, 16, 32, 3, 1),
    (64, 32, 32, 16, 3, 1),
    (64, 64, 64, 8, 3, 1),
    (64, 16, 32, 32, 3, 2),
    (64, 32, 64, 16, 1, 2),
    (16, 64, 64, 28, 3, 1),
    (64, 1, 6, 28, 5, 1),
    (64, 6, 16, 12, 5, 1),
    (1, 64, 64, 8, 3, 1),
]  # images, channels, filters, size, taps, stride


def main() -> None:
    dtype = sys.argv[1] if len(sys.argv) > 1 else "float32"
    peak, peak_flops = fma_peak(dtype)
    reached: list[float] = []

    def report(label: str, cases: list[tuple[Callable[[], None], int]]) -> None:
        top, *times = best_seconds([peak, *(run for run, _ in cases)], 0.4)
        limit = peak_flops / top / 1e9
        reached.append(limit)
        parts = [
            f"{1e6 * t:9.1f} us {flops / t / 1e9:5.0f} ({flops / t / 1e9 / limit:4.0%})"
            for t, (_, flops) in zip(times, cases)
        ]
        print(f"{label:28s} | {limit:4.0f} | {' | '.join(parts)}", flush=True)

    print(f"{dtype}; GFLOP/s and share of the fma peak, one core")
    print("rows, terms, columns         | peak | a b | a b^T | a^T b")
    for m, k, n in PRODUCTS:
        report(
            str((m, k, n)),
            [
                prepared("matmul", [(m, k), (k, n)], dtype, transpose_a=False, transpose_b=False),
                prepared("matmul", [(m, k), (n, k)], dtype, transpose_a=False, transpose_b=True),
                prepared("matmul", [(k, m), (k, n)], dtype, transpose_a=True, transpose_b=False),
            ],
        )
    print("images, channels, filters, size, taps, stride | peak | forward | input gradient | weight gradient")
    for n, c, o, size, taps, stride in CONVOLUTIONS:
        pad = taps // 2
        out = (size + 2 * pad - taps) // stride + 1
        x, w, y = (n, c, size, size), (o, c, taps, taps), (n, o, out, out)
        geometry = {"stride": (stride,) * 2, "padding": ((pad, pad),) * 2, "dilation": (1, 1), "groups": 1}
        report(
            str((n, c, o, size, taps, stride)),
            [
                prepared("conv2d", [x, w], dtype, **geometry),
                prepared("conv2d_input_grad", [y, w], dtype, size=(size, size), **geometry),
                prepared("conv2d_weight_grad", [x, y], dtype, kernel=(taps, taps), **geometry),
            ],
        )


if __name__ == "__main__":
    main()
