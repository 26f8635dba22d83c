"""Machine code for GPUs from the kernel cache, compiled where it is not there: what a driver loads."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tapeprop.ir.kernels import Kernel
from tapeprop.runtime.compiling import obtain
from tapeprop.runtime.kernel_cache import Capability

if TYPE_CHECKING:
    from tapeprop.targets.cpu.object_code import ObjectCode
    from tapeprop.targets.cuda.driver import Driver
    from tapeprop.targets.cuda.object_code import Cubin

__all__ = ["cubins", "open_device"]

_lock: Any = threading.RLock()  # compiling in place changes numba.cuda for a moment


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def cubins(kernels: Sequence[Kernel], capability: Capability) -> dict[Kernel, Cubin]:
    """{kernel: machine code for a compute capability}, with a line to stderr before and after something is compiled.

    CompileError, naming the kernel, where a builder or a compilation fails; what was compiled before that is kept.
    """
    from tapeprop.targets.cuda.object_code import Cubin

    entries: dict[Kernel, ObjectCode] = {}
    with _lock:
        obtain(entries, kernels, capability)
    return {kernel: Cubin(entries[kernel].symbols[0], entries[kernel].code) for kernel in kernels}


def open_device(what: str) -> Driver:
    """The process's driver (`targets.cuda.driver.open_driver`), whose machine code comes from the cache."""
    from tapeprop.targets.cuda.driver import open_driver

    return open_driver(what, cubins)
