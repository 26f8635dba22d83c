"""What kernel bodies need beyond Numba's own vocabulary: addresses as arrays, atomics, a pause, a cycle counter.

Each intrinsic is made once, at module level, and has a plain Python twin where a body may use it, for the mode in which
bodies run as plain Python (`tapeprop.targets.cpu.kernel.run_plain`). This module imports numba.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tapeprop.targets.cpu.machine import is_arm, is_x86
from tapeprop.targets.cpu.plain import twin

__all__ = [
    "address_of",
    "call_kernel",
    "compare_exchange",
    "cycles",
    "fetch_add",
    "float32_at",
    "float64_at",
    "int32_at",
    "int64_at",
    "load_acquire",
    "pause",
    "report",
    "store_release",
    "uint8_at",
    "words_at",
]

# numba 0.68 asks pointers for their element type when it indexes them, so LLVM's opaque pointers will not do here.
_I64 = ir.IntType(64)


def _pointer_from_address(element: Any, llvm_type: ir.Type) -> Any:
    """Codegen of address -> pointer to `element`."""
    signature = types.CPointer(element)(types.intp)
    return signature, lambda context, builder, sig, args: builder.inttoptr(args[0], llvm_type.as_pointer())


@intrinsic
def words_at(typing_context, address):
    """A pointer to the int64 words at an address: words_at(row)[4]."""
    return _pointer_from_address(types.int64, _I64)


int64_at = words_at


@intrinsic
def int32_at(typing_context, address):
    """A pointer to int32, for `carray`."""
    return _pointer_from_address(types.int32, ir.IntType(32))


@intrinsic
def uint8_at(typing_context, address):
    """A pointer to uint8, for `carray`."""
    return _pointer_from_address(types.uint8, ir.IntType(8))


@intrinsic
def float32_at(typing_context, address):
    """A pointer to float32, for `carray`."""
    return _pointer_from_address(types.float32, ir.FloatType())


@intrinsic
def float64_at(typing_context, address):
    """A pointer to float64, for `carray`."""
    return _pointer_from_address(types.float64, ir.DoubleType())


@twin(words_at)
def _words_at(address: int) -> Any:
    return ctypes.cast(int(address), ctypes.POINTER(ctypes.c_int64))


@twin(int32_at)
def _int32_at(address: int) -> Any:
    return ctypes.cast(int(address), ctypes.POINTER(ctypes.c_int32))


@twin(uint8_at)
def _uint8_at(address: int) -> Any:
    return ctypes.cast(int(address), ctypes.POINTER(ctypes.c_uint8))


@twin(float32_at)
def _float32_at(address: int) -> Any:
    return ctypes.cast(int(address), ctypes.POINTER(ctypes.c_float))


@twin(float64_at)
def _float64_at(address: int) -> Any:
    return ctypes.cast(int(address), ctypes.POINTER(ctypes.c_double))


@njit(nogil=True)
def address_of(array):
    """The address of an array's first element."""
    return array.ctypes.data


# ---- atomics on the int64 word at an address


@intrinsic
def fetch_add(typing_context, address, value):
    """Adds to the word at `address`, sequentially consistent; gives what it held."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.intp, types.int64), codegen


@intrinsic
def load_acquire(typing_context, address):
    """The word at `address`; what its writer did before `store_release` is visible after it."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), "acquire", 8)

    return types.int64(types.intp), codegen


@intrinsic
def store_release(typing_context, address, value):
    """Writes the word at `address` after everything this worker wrote before."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], _I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), codegen


@intrinsic
def compare_exchange(typing_context, address, expected, value):
    """Writes `value` to the word at `address` if it holds `expected`; gives what it held."""

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], _I64.as_pointer())
        pair = builder.cmpxchg(place, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 0)

    return types.int64(types.intp, types.int64, types.int64), codegen


# The twins are not atomic: plain bodies run one worker after another.


@twin(fetch_add)
def _fetch_add(address: int, value: int) -> int:
    word = _words_at(address)
    before = word[0]
    word[0] = before + int(value)
    return before


@twin(load_acquire)
def _load_acquire(address: int) -> int:
    return _words_at(address)[0]


@twin(store_release)
def _store_release(address: int, value: int) -> None:
    _words_at(address)[0] = int(value)


@twin(compare_exchange)
def _compare_exchange(address: int, expected: int, value: int) -> int:
    word = _words_at(address)
    before = word[0]
    if before == expected:
        word[0] = int(value)
    return before


# ---- the machine


@intrinsic
def pause(typing_context):
    """Tells the core that this is a spin loop."""

    def codegen(context, builder, signature, args):
        if is_x86():
            name, operands, values = "llvm.x86.sse2.pause", [], []
        elif is_arm():
            name, operands, values = "llvm.aarch64.hint", [ir.IntType(32)], [ir.IntType(32)(1)]
        else:
            return context.get_dummy_value()
        kind = ir.FunctionType(ir.VoidType(), operands)
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def cycles(typing_context):
    """The cycle counter of the core (9 ns on x86)."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(_I64, [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), [])

    return types.int64(), codegen


@intrinsic
def call_kernel(typing_context, kernel, row, worker, workers):
    """Calls the machine code at address `kernel` as a kernel."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.int64, types.int64), codegen


@twin(pause)
def _pause() -> None:
    time.sleep(0)


@twin(cycles)
def _cycles() -> int:
    return time.perf_counter_ns()


@twin(call_kernel)
def _call_kernel(kernel: int, row: int, worker: int, workers: int) -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(kernel)(row, worker, workers)


# ---- failures


@njit(nogil=True)
def report(control, number, code):
    """Reports failure `code` (1 to 65535) of row `number` in the status word; the first report of a run stands.

    control: int64 view of the control block, number: the row's number, as a body with reports=True receives them. The
    kernel may return at once or finish; the executor stops at the next barrier.
    """
    compare_exchange(address_of(control), 0, ((np.int64(number) + 1) << 16) | np.int64(code))
