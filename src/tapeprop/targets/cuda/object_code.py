"""Machine code of CUDA kernels, made and inspected without a GPU or a driver.

numba.cuda makes LTO IR of a kernel, NVIDIA's linker a cubin of that. The same road serves a machine with a GPU, the cache on
disk and the compile gate. On it lies PTX, the last text before machine code, which can be read and run by tests.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from tapeprop.errors import CompileError, DeviceError
from tapeprop.ir.kernels import Kernel
from tapeprop.targets.cuda.kernel import build, shim
from tapeprop.targets.cuda.library import numba_cuda

__all__ = ["Capability", "Cubin", "Usage", "compile_to_cubin", "compile_to_ptx"]

#: The section of a cubin that holds the parameters of a kernel, and of nothing but kernels.
_ENTRY = re.compile(rb"\.nv\.constant0\.([\w$.]+)\x00")
#: Compute capability, as (9, 0) or (9, 0, "a").
Capability = tuple
#: What kernels are compiled for where the machine is newer. Code is chosen and optimised for the machine when the intermediate
#: code is linked, so one serves all of them, and kernels use nothing that only newer ones have.
_BASE: Capability = (8, 0)
_pretending: Any = threading.RLock()  # see `_pretended`


def _after_fork() -> None:
    global _pretending
    _pretending = threading.RLock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class Usage:
    """What a kernel takes of a GPU. registers: per thread; stack, spills: bytes per thread; shared: bytes per block."""

    registers: int
    stack: int
    spills: int
    shared: int


@dataclass(frozen=True)
class Cubin:
    """A kernel's machine code for one compute capability; symbol: its entry. usage: None where it was not asked for."""

    symbol: str
    code: bytes
    usage: Usage | None = None


def compile_to_cubin(kernel: Kernel, capability: Capability, *, report: bool = False) -> Cubin:
    """The machine code of a kernel for a compute capability. report: whether `Cubin.usage` is wanted.

    CompileError, naming the kernel, where numba.cuda, NVVM or the linker refuse it.
    """
    with _told(kernel, capability):
        return _linked(_intermediate(kernel, min(capability[:2], _BASE)), capability, report)


def compile_to_ptx(kernel: Kernel, capability: Capability) -> str:
    """The PTX that `compile_to_cubin` makes machine code of, for the same compute capability.

    CompileError, naming the kernel, where numba.cuda, NVVM or the linker refuse it.
    """
    with _told(kernel, capability):
        linker = _linker(_intermediate(kernel, min(capability[:2], _BASE)), capability, ptx=True)
        return bytes(linker.link("ptx").code).rstrip(b"\0").decode()


@contextlib.contextmanager
def _told(kernel: Kernel, capability: Capability) -> Iterator[None]:
    """What a compiler raises becomes a CompileError that names the kernel."""
    try:
        yield
    except (DeviceError, CompileError):
        raise
    except Exception as error:  # Numba, NVVM and the linker have many kinds
        explain = build(kernel).explain
        if explain is not None:
            raise CompileError(explain(error)) from error
        raise CompileError(
            f"kernel {kernel.label}: cannot be compiled for sm_{_arch(capability)}: {error}; build the graph with device='cpu'"
        ) from error


@lru_cache(maxsize=1)
def _intermediate(kernel: Kernel, capability: Capability) -> bytes:
    """LTO IR."""
    cuda = numba_cuda()
    built = build(kernel)
    from numba.cuda import types

    with _pretended(capability):
        code, _ = cuda.compile(
            shim(kernel, built),
            types.void(types.int64, types.int64),
            device=False,
            abi="numba",
            output="ltoir",
            cc=capability,
            launch_bounds=built.bounds,
        )
    return code


def _arch(capability: Capability) -> str:
    return "".join(map(str, capability))


def _linker(intermediate: bytes, capability: Capability, **options: Any) -> Any:
    from cuda.core import Linker, LinkerOptions, ObjectCode

    chosen = LinkerOptions(arch=f"sm_{_arch(capability)}", link_time_optimization=True, **options)
    return Linker(ObjectCode.from_ltoir(intermediate), options=chosen)


def _linked(intermediate: bytes, capability: Capability, report: bool) -> Cubin:
    more: dict[str, Any] = {"ptxas_options": ["-v"]} if report else {}
    linker = _linker(intermediate, capability, **more)
    code = bytes(linker.link("cubin").code)
    found = set(_ENTRY.findall(code))
    if len(found) != 1:
        raise ValueError(
            f"expected machine code with one kernel, got {len(found)}; this toolkit is not one tapeprop knows"
        )
    return Cubin(found.pop().decode(), code, _usage(linker.get_info_log()) if report else None)


def _usage(log: str) -> Usage:
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    shared = [int(n) for n in re.findall(r"(\d+) bytes smem", log)]
    return Usage(
        max(int(n) for n in re.findall(r"Used (\d+) registers", log)),
        max(int(stack) for stack, _, _ in frames),
        max(int(stores) + int(loads) for _, stores, loads in frames),
        max(shared, default=0),
    )


@contextlib.contextmanager
def _pretended(capability: Capability) -> Iterator[None]:
    """numba-cuda 0.30 asks the current device for its capability where a kernel calls a device function: it is told this one.

    The whole process is told: one thread of ours at a time is inside, and kernels of others that numba.cuda compiles in another thread
    at that moment are compiled for this capability too (which newer GPUs run).
    """
    from numba.cuda import dispatcher
    from numba.cuda.codegen import CUDACodeLibrary

    with _pretending:
        saved = dispatcher.get_current_device, CUDACodeLibrary._ensure_cc
        dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
        CUDACodeLibrary._ensure_cc = lambda self, asked: capability if asked is None else asked
        try:
            yield
        finally:
            dispatcher.get_current_device, CUDACodeLibrary._ensure_cc = saved
