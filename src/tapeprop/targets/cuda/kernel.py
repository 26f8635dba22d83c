"""CUDA kernels: a body written for arrays inside a thin shim that reads a tape row.

A builder, named by `tapeprop.ir.kernels.Kernel`, returns a `CudaKernel`. The kernel that is launched takes two addresses,
`(row, control)`: that of the row's words in device memory, laid out as on the CPU, and that of the status word, which is
0 where no row of the tape reports anything. So a launch never changes, and what is bound to it does, in the row.
Importing this module loads neither numba nor llvmlite.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from tapeprop.errors import CompileError, GraphError
from tapeprop.ir.kernels import FIRST_FIELD, Kernel

__all__ = ["CudaKernel", "build", "shim", "shim_source"]

DTYPES = ("float32", "float64", "int64", "int32", "uint8")


class CudaKernel:
    """A kernel with a body for numba.cuda: `body(*arrays, *integers)`, which every thread runs.

    arrays: (name, dtype, ndim) or (dtype, ndim) each, dtype one of "float32", "float64", "int64", "int32", "uint8".
    The row holds, from word 4 on, each array's address and its ndim sizes (C-contiguous). ndim 0 is a single element:
    no size word, the body gets shape (1,). integers: names, an int64 word each, after the arrays.
    reports: the body gets two more arguments, for `language.report(control, number, code)`. operands: so many arrays at the front
    may only be read, which is checked. explain: gives the message of the CompileError where numba.cuda refuses the body.
    bounds: (most threads of a block, blocks that have to fit into a multiprocessor), which limits registers; None: no limit.

    The body is plain Python whose module has `cuda` from `language` as a global. It must give the same bits whenever it
    is launched alike: no atomics on floats, every sum in an order that the shapes decide. It writes every element of
    every result. ValueError for a declaration that is none of the above.
    """

    def __init__(
        self,
        body: Callable,
        arrays: Sequence[tuple],
        integers: Sequence[str] = (),
        *,
        reports: bool = False,
        operands: int = 0,
        explain: Callable[[Exception], str] | None = None,
        bounds: tuple[int, int] | None = None,
    ):
        named = [item if len(item) == 3 else (f"array{i}", *item) for i, item in enumerate(arrays)]
        for name, dtype, ndim in named:
            if dtype not in DTYPES or type(ndim) is not int or ndim < 0:
                raise ValueError(
                    f"array {name!r}: expected (name, dtype, ndim) with dtype in {', '.join(DTYPES)} and ndim >= 0, "
                    f"got dtype {dtype!r}, ndim {ndim!r}"
                )
        self.body = body
        self.arrays: tuple[tuple[str, str, int], ...] = tuple(named)
        self.integers = tuple(integers)
        self.reports = reports
        self.operands = operands
        self.explain = explain
        self.bounds = bounds

    @property
    def field_count(self) -> int:
        """How many words of a row its fields take."""
        return sum(1 + ndim for _, _, ndim in self.arrays) + len(self.integers)


def build(kernel: Kernel) -> CudaKernel:
    """What the kernel's builder returns. CompileError, naming the kernel, where it raises or returns something else."""
    try:
        builder: Any = importlib.import_module(kernel.module)
        for name in kernel.builder.partition(":")[2].split("."):
            builder = getattr(builder, name)
        built = builder(**dict(kernel.parameters))
    except CompileError:
        raise
    except GraphError as error:
        raise CompileError(f"kernel {kernel.label}: {error}") from error
    except Exception as error:
        raise CompileError(f"kernel {kernel.label}: {kernel.builder} raised {type(error).__name__}: {error}") from error
    if not isinstance(built, CudaKernel):
        raise CompileError(f"kernel {kernel.label}: {kernel.builder} returned {built!r:.80}, no CudaKernel")
    return built


def shim_source(kernel: CudaKernel, name: str = "shim") -> str:
    """Source of `name(row, control)`, which reads the row's words and calls `body`.

    Where the body itself may report, the threads of a block agree on whether they run: it may need all of them at a barrier.
    """
    lines = [
        f"def {name}(row, control):",
        "    if control != 0:",
        "        failed = 1 if int64_at(control, (1,))[0] != 0 else 0",
        *(["        failed = cuda.syncthreads_or(failed)"] if kernel.reports else []),
        "        if failed != 0:",
        "            return  # a row before has failed",
        f"    words = int64_at(row, ({FIRST_FIELD + kernel.field_count},))",
    ]
    word = FIRST_FIELD
    arguments = []
    for i, (_, dtype, ndim) in enumerate(kernel.arrays):
        sizes = "".join(f"words[{word + 1 + axis}], " for axis in range(ndim)) or "1, "
        at = f"{dtype}_read_at" if i < kernel.operands else f"{dtype}_at"
        lines.append(f"    array{i} = {at}(words[{word}], ({sizes.rstrip()}))")
        arguments.append(f"array{i}")
        word += 1 + ndim
    arguments += [f"words[{word + i}]" for i in range(len(kernel.integers))]
    if kernel.reports:
        arguments += ["int64_at(control, (1,))", "words[3]"]
    lines.append(f"    body({', '.join(arguments)})")
    return "\n".join(lines) + "\n"


def shim(kernel: Kernel, built: CudaKernel | None = None) -> Callable:
    """The Python function of a kernel, its body a device function of numba.cuda. CompileError where its builder fails.

    built: what `build` gave for it, where the caller has that already. It bears the builder's name, which tools such as Nsight show.
    """
    from tapeprop.targets.cuda import addresses
    from tapeprop.targets.cuda.library import numba_cuda

    built = built or build(kernel)
    scope = {**addresses.functions(), "cuda": numba_cuda(), "body": numba_cuda().jit(device=True)(built.body)}
    name = f"tapeprop_{kernel.builder.rpartition(':')[2].replace('.', '_')}"
    exec(compile(shim_source(built, name), f"<shim of {kernel.label}>", "exec"), scope)
    return scope[name]
