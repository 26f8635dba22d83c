"""A device without a GPU: kernels run in Numba's simulator, on memory of the host. For tests; thousands of times slower."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable
from typing import Any

from tapeprop.errors import DeviceError
from tapeprop.ir.device import SIMULATED_DEVICE
from tapeprop.ir.kernels import Kernel
from tapeprop.targets.cuda.driver import Dim3
from tapeprop.targets.cuda.host import HostDriver
from tapeprop.targets.cuda.library import SIMULATED
from tapeprop.targets.cuda.turns import taking_turns

__all__ = ["SimulatedDriver"]

# The simulator swaps the global `cuda` of the kernels' modules while one runs: one at a time in the whole process.
_running: Any = threading.RLock()


def _after_fork() -> None:
    global _running
    _running = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class SimulatedDriver(HostDriver):
    """Kernels in Numba's simulator. DeviceError unless NUMBA_ENABLE_CUDASIM=1 was set before the first import of numba."""

    name = "Numba's CUDA simulator"
    capability = (9, 0)
    simulated = True
    captures = False
    limits = SIMULATED_DEVICE

    def __init__(self, capacity: int | None = None):
        if not SIMULATED:  # Numba would launch the kernels on a GPU, with addresses of the host
            raise DeviceError("the simulator: set NUMBA_ENABLE_CUDASIM=1 before tapeprop is imported")
        super().__init__(capacity)
        self._handles: dict[Kernel, Any] = {}

    def load(self, kernels: Iterable[Kernel]) -> dict[Kernel, Any]:
        """The simulator's functions. CompileError where a builder fails."""
        from tapeprop.targets.cuda.kernel import shim
        from tapeprop.targets.cuda.library import numba_cuda

        self._refuse_in_capture("load")
        wanted = list(kernels)
        with self._lock:
            for kernel in wanted:
                if kernel not in self._handles:
                    self._handles[kernel] = numba_cuda().jit(shim(kernel))
            return {kernel: self._handles[kernel] for kernel in wanted}

    def _run(self, handle: Any, grid: Dim3, block: Dim3, row_address: int, control_address: int) -> None:
        with _running, warnings.catch_warnings(), taking_turns():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of what is inf or NaN as it should be
            handle[grid, block](row_address, control_address)
