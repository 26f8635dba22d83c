"""A device whose kernels are PTX, as the compiler makes it for a GPU, run by `Machine` on memory of the host.

Kernels are those of a GPU, with its tiles, warps and shared memory; what they do wrong is a DeviceError that tells the instruction.
`TAPEPROP_TEST_PTX=1` makes it the process's driver in tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from ptx.machine import Machine
from ptx.memory import Arena, Fault
from ptx.program import read
from ptx.translate import Code, translate

from tapeprop.errors import DeviceError, DeviceMemoryError
from tapeprop.ir.device import Device
from tapeprop.ir.kernels import Kernel
from tapeprop.runtime import kernel_cache
from tapeprop.targets.cuda.driver import Allocation, Dim3
from tapeprop.targets.cuda.host import HostDriver

__all__ = ["CAPABILITY", "PtxDriver", "ptx_of"]

CAPABILITY = (9, 0, "a")


def ptx_of(kernel: Kernel) -> str:
    """The PTX of a kernel, from the cache of kernels where it is there."""
    cache = kernel_cache.default_cache()
    key = kernel_cache.entry_key(kernel, (*CAPABILITY, "ptx"))
    found = cache.load(key)
    if found is None:
        from tapeprop.targets.cpu.object_code import ObjectCode
        from tapeprop.targets.cuda.object_code import compile_to_ptx

        found = ObjectCode(("ptx",), compile_to_ptx(kernel, CAPABILITY).encode(), ())
        cache.store(key, found)
    return found.code.decode()


class PtxDriver(HostDriver):
    """A made-up GPU. capacity: bytes of its memory."""

    name = "PTX on the host"
    capability = CAPABILITY[:2]
    simulated = False
    captures = True
    limits = Device()

    def __init__(self, capacity: int = 1 << 28):
        super().__init__(capacity)
        self._arena = Arena(capacity)
        self._machine = Machine(self._arena)
        self._codes: dict[Kernel, Code] = {}

    # ---- memory: the arena's

    @property
    def used(self) -> int:
        """Bytes allocated now."""
        return sum(self._arena.sizes.copy().values())

    def allocate(self, nbytes: int) -> Allocation:
        """Zeroed memory of the arena. DeviceMemoryError where there is no room."""
        self._refuse_in_capture("allocate")
        with self._lock:
            address = self._take(nbytes)
        return Allocation(address, nbytes, self._release, self._arena.dropped.append)

    def _take(self, nbytes: int) -> int:
        try:
            return self._arena.allocate(nbytes)
        except MemoryError:
            free = self.memory()[0]
            raise DeviceMemoryError(f"{self.name}: needed {nbytes:,} bytes, {free:,} are free") from None

    def _release(self, address: int) -> None:
        self._arena.release(address)

    def allocation_of(self, address: int) -> tuple[int, int] | None:
        """(address, bytes) of the live allocation that holds an address, or None."""
        for begin, nbytes in self._arena.sizes.copy().items():
            if begin <= address < begin + max(nbytes, 1):
                return begin, nbytes
        return None

    def pinned(self, nbytes: int) -> np.ndarray:
        """Host memory that the device can read: of the arena as well."""
        self._refuse_in_capture("pinned")
        if nbytes <= 0:
            return np.empty(0, np.uint8)
        with self._lock:
            try:
                return self._arena.array(nbytes)
            except MemoryError:
                raise DeviceMemoryError(f"{self.name}: no {nbytes:,} bytes of page-locked memory") from None

    # ---- kernels

    def load(self, kernels: Iterable[Kernel]) -> dict[Kernel, Any]:
        """The kernels as functions of Python. CompileError where one cannot be compiled for a GPU."""
        self._refuse_in_capture("load")
        wanted = list(kernels)
        with self._lock:
            for kernel in wanted:
                if kernel not in self._codes:
                    self._codes[kernel] = translate(read(ptx_of(kernel)))
                    self._codes[kernel].label = kernel.label
            return {kernel: self._codes[kernel] for kernel in wanted}

    def _run(self, handle: Any, grid: Dim3, block: Dim3, row_address: int, control_address: int) -> None:
        try:
            self._machine.run(handle, grid, block, (row_address, control_address))
        except Fault as fault:
            raise DeviceError(f"kernel {handle.label}: {fault}") from fault


