"""A GPU that is not there: `NvidiaDriver` on a stand-in for CUDA whose kernels are PTX, run by `Machine` on memory of the host.

Kernels are those of a real GPU, with its tiles, warps and shared memory; streams are late and captured graphs are replayed. What
a kernel does wrong raises `Fault`, with the instruction, from the call that waits for it. `TAPEPROP_TEST_PTX=1` makes this the
device of tests.
"""

from __future__ import annotations

import ctypes
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ptx.machine import Machine
from ptx.memory import Arena, Fault
from ptx.program import read
from ptx.translate import Code
from targets.fake_cuda import CUresult, FakeCuda

from tapeprop.ir.kernels import Kernel
from tapeprop.runtime import kernel_cache
from tapeprop.targets.cuda.nvidia import NvidiaDriver

__all__ = ["CAPABILITY", "PtxCuda", "open_ptx_device", "ptx_of"]

CAPABILITY = (9, 0, "a")
ARENA_BYTES = 1 << 28
#: Of a block; of a grid along y and z; bytes of a block that a kernel may declare.
MOST_THREADS, MOST_BLOCKS, MOST_SHARED = 1024, 65535, 48 << 10


def ptx_of(kernel: Kernel) -> str:
    """The PTX of a kernel, from the cache of kernels where it is there."""
    cache = kernel_cache.default_cache()
    key = kernel_cache.entry_key(kernel, (*CAPABILITY, "ptx"))
    found = cache.load(key)
    if found is None:
        from tapeprop.targets.cpu.object_code import ObjectCode
        from tapeprop.targets.cuda.object_code import compile_to_ptx

        found = ObjectCode((kernel.label,), compile_to_ptx(kernel, CAPABILITY).encode(), ())
        cache.store(key, found)
    return found.code.decode()


class _Text(NamedTuple):
    """PTX in the place of a cubin."""

    symbol: str
    code: bytes


def _texts(kernels: Sequence[Kernel], capability: tuple) -> dict[Kernel, _Text]:
    assert capability == CAPABILITY
    return {kernel: _Text(kernel.label, ptx_of(kernel).encode()) for kernel in kernels}


def open_ptx_device(nbytes: int = ARENA_BYTES) -> NvidiaDriver:
    """The driver, on a device with so many bytes of memory."""
    return NvidiaDriver(PtxCuda(nbytes), _texts)


class PtxCuda(FakeCuda):
    """The stand-in, with memory from an arena that knows what may be touched; a module's image is PTX."""

    def __init__(self, nbytes: int = ARENA_BYTES):
        super().__init__(total=nbytes)
        self.arena = Arena(nbytes)
        self.machine = Machine(self.arena)
        self.log: Any = deque(maxlen=100)
        self.codes: dict[int, tuple[str, Code]] = {}  # {function: (name of the kernel, its code)}

    def _take(self, nbytes: int, into: dict) -> int | None:
        try:
            address = self.arena.allocate(nbytes)
        except MemoryError:
            return None
        into[address] = np.frombuffer(memoryview((ctypes.c_uint8 * nbytes).from_address(address)), np.uint8)
        into[address].fill(0xFF)  # memory is not zero by itself: NaN, or -1
        return address

    def cuMemAlloc(self, bytesize):
        address = self._take(bytesize, self.allocated)
        return (CUresult.CUDA_ERROR_OUT_OF_MEMORY, None) if address is None else (CUresult.CUDA_SUCCESS, address)

    def cuMemFree(self, dptr):
        status = super().cuMemFree(dptr)
        self.arena.release(dptr)
        return status

    def cuMemHostAlloc(self, bytesize, Flags):
        address = self._take(bytesize, self.pinned)
        return (CUresult.CUDA_ERROR_OUT_OF_MEMORY, None) if address is None else (CUresult.CUDA_SUCCESS, address)

    def cuMemFreeHost(self, p):
        status = super().cuMemFreeHost(p)
        self.arena.release(p)
        return status

    def cuModuleGetFunction(self, hmod, name):
        number = self._new()
        self.codes[number] = (name.decode(), Code(read(self.modules[hmod].decode())))
        return CUresult.CUDA_SUCCESS, number

    def _work_of(self, f, grid, block, row, control):
        name, code = self.codes[f]
        shared = sum(symbol.nbytes for symbol in code.program.shared.values())
        if math.prod(block) > MOST_THREADS or max(grid[1:]) > MOST_BLOCKS or shared > MOST_SHARED:
            return None

        def work():
            self.clock += 1.0
            if self.machine.traffic is not None:
                self.machine.traffic.kernel = name
            try:
                self.machine.run(code, grid, block, (row, control))
            except Fault as fault:
                raise Fault(f"kernel {name}: {fault}") from None

        return work
