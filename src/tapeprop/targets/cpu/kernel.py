"""Kernels of the CPU: a body written for arrays inside a thin shim that reads a tape row, or LLVM IR as it is.

A builder, named by `tapeprop.ir.kernels.Kernel`, returns a `NumbaKernel` or an `AssemblyKernel`; `compile_to_object`
makes machine code of either: an object file that a process without numba can link. Importing this module loads neither
numba nor llvmlite.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop.errors import CompileError, GraphError
from tapeprop.ir.kernels import FIRST_FIELD, Kernel, row_words
from tapeprop.targets.cpu.plain import plain, twin

if TYPE_CHECKING:
    from tapeprop.targets.cpu.object_code import ObjectCode

__all__ = [
    "BODY_OPTIONS",
    "CONTROL_WORDS",
    "RAISED",
    "AssemblyKernel",
    "NumbaKernel",
    "build",
    "compile_to_object",
    "plain",
    "run_body",
    "run_plain",
    "twin",
]

#: Words of a control block: 0 the status, 8-31 the barrier, 32 the step, 40-63 free (see `tapeprop.runtime.executor`).
CONTROL_WORDS = 64
#: The code in the status word when a body raised an exception; kernels report codes from 1 up to below this.
RAISED = 0xFFFF

DTYPES = ("float32", "float64", "int64", "int32", "uint8")

# `contract` only: reassociation and its kin make (inf + 1) - inf = 1, undo Kahan sums, and let every fused kernel
# choose an order of its own.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}, "boundscheck": False}
# Nobody calls the body from Python: leaving its wrappers out takes a sixth off the compile time (numba 0.68).
BODY_OPTIONS = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


class NumbaKernel:
    """A kernel with a body for Numba: `body(*arrays, *integers, worker, workers)`, plain Python on arrays.

    arrays: (name, dtype, ndim) or (dtype, ndim) each, dtype one of "float32", "float64", "int64", "int32", "uint8".
    The row holds, from word 4 on, each array's address and its ndim sizes (C-contiguous). ndim 0 is a single element:
    no size word, the body gets shape (1,).
    integers: names, an int64 word each, after the arrays.
    scratch: a dtype; then one more array follows the others, (workers, n), of which the body uses scratch[worker].
    reports: the body gets two more arguments before `worker`, for `intrinsics.report(control, number, code)`: control,
    an int64 view (64,) of the control block (word 32 is the step of the run), and the row's number.

    The body must not allocate, reshape, print or touch Python objects, nor assign one array slice to another (Numba
    would bring the text of the shape error): all that is refused at compile time. Slices to loop over and scalars
    assigned to slices are fine. Should the body raise, the run stops with code `RAISED`. It must not capture arrays of
    1 MB and more, nor ctypes functions: they are addresses of one process.
    TypeError or ValueError for a declaration that is none of the above.
    """

    words = staticmethod(row_words)

    def __init__(
        self,
        body: Callable,
        arrays: Sequence[tuple],
        integers: Sequence[str] = (),
        *,
        scratch: str | None = None,
        reports: bool = False,
    ):
        if not callable(body):
            raise TypeError(f"body: expected a function, got {body!r}")
        named = [item if len(item) == 3 else (f"array{i}", *item) for i, item in enumerate(arrays)]
        if scratch is not None:
            named.append(("scratch", scratch, 2))
        for name, dtype, ndim in named:
            if dtype not in DTYPES or type(ndim) is not int or ndim < 0:
                raise ValueError(
                    f"array {name!r}: expected (name, dtype, ndim) with dtype in {', '.join(DTYPES)} and ndim >= 0, "
                    f"got dtype {dtype!r}, ndim {ndim!r}"
                )
        if isinstance(integers, str):
            raise TypeError(f"integers: expected a tuple of names, got the string {integers!r}")
        self.body = body
        self.arrays: tuple[tuple[str, str, int], ...] = tuple(named)
        self.integers = tuple(integers)
        self.reports = reports

    @property
    def field_count(self) -> int:
        """How many words of a row its fields take."""
        return sum(1 + ndim for _, _, ndim in self.arrays) + len(self.integers)


@dataclass(frozen=True)
class AssemblyKernel:
    """A kernel as LLVM IR text with one function `void symbol(i64 row address, i64 worker, i64 workers)`.

    Whatever else the text defines becomes private to it, so names need not be unique. LLVM optimises it at level 2,
    without vectorising or unrolling loops.
    """

    text: str
    symbol: str


def build(kernel: Kernel) -> NumbaKernel | AssemblyKernel:
    """What the kernel's builder returns. CompileError, naming the kernel, where it raises or returns something else."""
    try:
        builder: Any = importlib.import_module(kernel.module)
        for name in kernel.builder.partition(":")[2].split("."):
            builder = getattr(builder, name)
        built = builder(**dict(kernel.parameters))
    except CompileError:  # the builder has told it in full
        raise
    except GraphError as error:
        raise CompileError(f"kernel {kernel.label}: {error}") from error
    except Exception as error:
        raise CompileError(f"kernel {kernel.label}: {kernel.builder} raised {type(error).__name__}: {error}") from error
    if not isinstance(built, NumbaKernel | AssemblyKernel):
        raise CompileError(
            f"kernel {kernel.label}: {kernel.builder} returned {built!r:.80}, no NumbaKernel or AssemblyKernel"
        )
    return built


def compile_to_object(kernel: Kernel) -> ObjectCode:
    """(symbols, code, needs): an object file that defines `kernel.symbol`, and what it needs from the process.

    CompileError, naming the kernel, where its builder or its compilation fails.
    """
    from tapeprop.targets.cpu.object_code import assemble

    built = build(kernel)
    label = f"kernel {kernel.label}"
    if isinstance(built, AssemblyKernel):
        return assemble([built.text], {built.symbol: kernel.symbol}, label=label)
    text, function = _numba_ir(built, label)
    wrapper = _wrapper_text(kernel.symbol, function)
    return assemble([text, wrapper], {kernel.symbol: kernel.symbol}, label=label, inline=function, optimize=False)


def shim_source(kernel: NumbaKernel) -> str:
    """Source of `shim(row, worker, workers)`, which reads the row's words and calls `body`."""
    lines = ["def shim(row, worker, workers):", "    words = words_at(row)"]
    word = FIRST_FIELD
    arguments = []
    for i, (_, dtype, ndim) in enumerate(kernel.arrays):
        sizes = "".join(f"words[{word + 1 + axis}], " for axis in range(ndim)) or "1, "
        lines.append(f"    array{i} = carray({dtype}_at(words[{word}]), ({sizes.rstrip()}))")
        arguments.append(f"array{i}")
        word += 1 + ndim
    arguments += [f"words[{word + i}]" for i in range(len(kernel.integers))]
    if kernel.reports:
        lines.append(f"    control = carray(int64_at(words[2]), ({CONTROL_WORDS},))")
        arguments += ["control", "words[3]"]
    lines.append(f"    body({', '.join([*arguments, 'worker', 'workers'])})")
    return "\n".join(lines) + "\n"


def _numba_ir(kernel: NumbaKernel, label: str) -> tuple[str, str]:
    """(LLVM IR text, name of the shim's function in it). CompileError where Numba refuses the body."""
    numba: Any = importlib.import_module("numba")  # its stubs are too narrow for options in a dict
    from numba.core.errors import NumbaError

    from tapeprop.targets.cpu import intrinsics

    if numba.config.DISABLE_JIT:
        raise CompileError(f"{label}: NUMBA_DISABLE_JIT is set, which disables intrinsics and cfuncs too; unset it")
    body = kernel.body if hasattr(kernel.body, "overloads") else numba.njit(**BODY_OPTIONS)(kernel.body)
    scope = {**vars(intrinsics), "carray": numba.carray, "body": body}
    exec(compile(shim_source(kernel), f"<shim of {label}>", "exec"), scope)
    signature = numba.types.void(numba.int64, numba.int64, numba.int64)
    try:
        compiled = numba.cfunc(signature, **_OPTIONS)(scope["shim"])
    except NumbaError as error:
        raise CompileError(f"{label}: Numba cannot compile the body: {error}") from error
    return _ir_of(compiled, label)


def _ir_of(compiled: Any, label: str) -> tuple[str, str]:
    """(IR text, symbol of the native function) of a cfunc: the one place that leans on how Numba names things.

    Checked with numba 0.68: `cfunc.<symbol>` wraps the function <symbol>, an `i32 (return slot, exception slot,
    arguments...)` that returns 0 or -2 unless it raised. We wrap it anew, as Numba's wrapper takes the GIL to print
    the exception.
    """
    name = compiled.native_name
    symbol = name.removeprefix("cfunc.")
    text = compiled.inspect_llvm()
    if symbol == name or f"@{symbol}(" not in text:
        raise CompileError(
            f"{label}: cannot find the native function of {name!r}; this numba is not one tapeprop knows"
        )
    if getattr(compiled._library, "has_dynamic_globals", False):
        raise CompileError(
            f"{label}: the body captures something by its address in this process (an array of 1 MB or more, a ctypes "
            "function); pass it as an array of the row"
        )
    return text, symbol


def _wrapper_text(symbol: str, function: str) -> str:
    """IR of the kernel around Numba's native function: an exception becomes code `RAISED` in the status word."""
    return f"""
declare i32 @"{function}"(ptr, ptr, i64, i64, i64)

; arrays made from addresses own nothing, so Numba's reference counts on them free nothing
define void @NRT_MemInfo_call_dtor(ptr %0) {{
  ret void
}}

define void @"{symbol}"(i64 %row, i64 %worker, i64 %workers) {{
  %result = alloca ptr
  %exception = alloca ptr
  %status = call i32 @"{function}"(ptr %result, ptr %exception, i64 %row, i64 %worker, i64 %workers)
  switch i32 %status, label %raised [ i32 0, label %done
                                      i32 -2, label %done ]
raised:
  %words = inttoptr i64 %row to ptr
  %control.place = getelementptr i64, ptr %words, i64 2
  %control = load ptr, ptr %control.place
  %number.place = getelementptr i64, ptr %words, i64 3
  %number = load i64, ptr %number.place
  %following = add i64 %number, 1
  %shifted = shl i64 %following, 16
  %failure = or i64 %shifted, {RAISED}
  %old = cmpxchg ptr %control, i64 0, i64 %failure seq_cst seq_cst
  br label %done
done:
  ret void
}}
"""


def run_plain(kernel: Kernel | NumbaKernel, row: np.ndarray, worker: int = 0, workers: int = 1) -> None:
    """Runs a kernel on a tape row, its body as plain Python: what `kernel(row address, worker, workers)` does compiled.

    row: int64, 1-D; the fields from word 4 on, and words 2 and 3 where the body reports.
    TypeError where the kernel is assembly, which has no body.
    """
    built = _numba_kernel(kernel)
    words = [int(word) for word in row[FIRST_FIELD : FIRST_FIELD + built.field_count]]
    arrays = []
    for _, dtype, ndim in built.arrays:
        address, *shape = words[: 1 + ndim]
        arrays.append(_array_at(address, dtype, tuple(shape)))
        words = words[1 + ndim :]
    control = _array_at(int(row[2]), "int64", (CONTROL_WORDS,)) if built.reports else None
    run_body(built, arrays, words, worker, workers, control=control, number=int(row[3]))


def run_body(
    kernel: Kernel | NumbaKernel,
    arrays: Sequence[np.ndarray],
    integers: Sequence[int] = (),
    worker: int = 0,
    workers: int = 1,
    *,
    control: np.ndarray | None = None,
    number: int = 0,
) -> None:
    """Runs a kernel's body as plain Python on arrays of the declared dtypes and ranks, written in place.

    control (int64, (64,)) and number: what a body with reports=True gets; a fresh block by default.
    TypeError where an array or the count of arguments does not fit the declaration, or the kernel is assembly.
    """
    built = _numba_kernel(kernel)
    if len(arrays) != len(built.arrays) or len(integers) != len(built.integers):
        raise TypeError(
            f"expected {len(built.arrays)} arrays and {len(built.integers)} integers, "
            f"got {len(arrays)} and {len(integers)}"
        )
    arguments: list[Any] = []
    for array, (name, dtype, ndim) in zip(arrays, built.arrays):
        if array.dtype != dtype or (array.ndim != ndim and not (ndim == 0 and array.shape == (1,))):
            raise TypeError(
                f"array {name!r}: expected {dtype} of rank {ndim}, got {array.dtype} of shape {array.shape}"
            )
        arguments.append(array.reshape(1) if ndim == 0 else array)
    arguments += [int(value) for value in integers]
    if built.reports:
        arguments += [np.zeros(CONTROL_WORDS, np.int64) if control is None else control, number]
    plain(built.body)(*arguments, worker, workers)


def _numba_kernel(kernel: Kernel | NumbaKernel) -> NumbaKernel:
    built = build(kernel) if isinstance(kernel, Kernel) else kernel
    if not isinstance(built, NumbaKernel):
        raise TypeError(f"expected a NumbaKernel, got {built!r:.80}; assembly has no Python body")
    return built


def _array_at(address: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A view of memory that the caller keeps alive; () gives shape (1,)."""
    shape = shape or (1,)
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if nbytes == 0:
        return np.zeros(shape, dtype)
    memory: Any = (ctypes.c_uint8 * nbytes).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)
