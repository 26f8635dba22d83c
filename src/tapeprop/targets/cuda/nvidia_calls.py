"""Calls of NVIDIA's driver library (`cuda.bindings.driver`), with what they report turned into errors; its opening, and turns in it."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

from tapeprop.errors import DeviceError, DeviceMemoryError
from tapeprop.targets.cuda.library import REMEDY

__all__ = ["Calls", "Opened", "Turn", "kernel_module", "load_bindings", "open_device"]

_OUT_OF_MEMORY = 2

#: Statuses after which a process can do nothing more with the device: its context is corrupt or gone.
_LOST = {
    4,  # deinitialized: the process ends
    201,  # invalid context
    214,  # ECC uncorrectable
    220,  # NVLink uncorrectable
    226,  # contained
    700,  # illegal address
    702,  # launch timeout
    709,  # context is destroyed
    710,  # assert
    714,  # hardware stack error
    715,  # illegal instruction
    716,  # misaligned address
    717,  # invalid address space
    718,  # invalid program counter
    719,  # launch failed
    721,  # tensor memory leak
    806,  # MPS: remote procedure call failed
    810,  # MPS: client terminated
    911,  # external device
    999,  # unknown
}

_OLD = "NVIDIA's driver is too old for the installed CUDA packages; update it, or install others"
#: Why a device could not be opened, by status.
_CLOSED = {
    3: "CUDA cannot be initialized in this process; if it was forked from one that uses the GPU, start it with "
    'multiprocessing.get_context("spawn")',
    34: "libcuda.so.1 is a stub without a driver behind it; install NVIDIA's driver and take the stub off the library path",
    35: _OLD,
    36: _OLD,
    46: "the GPU is in use by another process alone (nvidia-smi shows which, and its compute mode); wait for its end",
    100: "there is no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it; nvidia-smi lists those that the driver sees",
    101: "CUDA_VISIBLE_DEVICES names a GPU that does not exist; nvidia-smi lists those that the driver sees",
    802: "the GPU is not ready; see whether nvidia-fabricmanager runs",
    803: "NVIDIA's driver and its libraries are of different versions, as after an update; restart the machine",
    804: "NVIDIA's driver is too old for the CUDA compatibility libraries that are installed; update the driver or remove those",
    999: "the driver does not answer; see nvidia-smi, and reload nvidia_uvm or restart the machine",
}
_INSTEAD = "or build with device='cpu'"
_FORKED = (
    "the GPU was opened before os.fork(), which a CUDA context does not survive; start child processes with "
    'multiprocessing.get_context("spawn"), or open the GPU in the child alone'
)
_VERSION_FILE = Path("/proc/driver/nvidia/version")


class Calls:
    """The functions of a module like cuda.bindings.driver: `calls("cuMemGetInfo")` gives what it returns after the status.

    lost: why the device can no longer be used, once a call has reported that.
    """

    def __init__(self, bindings: Any):
        self.bindings = bindings
        self.lost: str | None = None

    def __call__(self, name: str, *arguments: Any) -> Any:
        """The value, None or a tuple of several. DeviceError, or DeviceMemoryError, where the status is not success."""
        status, *values = getattr(self.bindings, name)(*arguments)
        if status != 0:
            self.fail(name, status)
        return values[0] if len(values) == 1 else tuple(values) or None

    def fail(self, name: str, status: Any) -> None:
        """Raises what a status means."""
        text = self.text(status)
        if int(status) in _LOST:
            self.lost = (
                f"the device was lost ({name}: {text}); parameters as last read are on the host: graph.to('cpu'); "
                "only a new process can use the GPU again"
            )
            raise DeviceError(self.lost)
        if int(status) == _OUT_OF_MEMORY:
            raise DeviceMemoryError(f"{name}: {text}")
        raise DeviceError(f"{name}: {text}")

    def text(self, status: Any) -> str:
        """Name and meaning of a status."""
        name = getattr(status, "name", None) or f"status {int(status)}"
        try:
            failed, meaning = self.bindings.cuGetErrorString(status)
        except Exception:  # a status that these bindings do not know
            return name
        return name if failed != 0 or not meaning else f"{name}: {meaning.decode()}"


def load_bindings() -> Any:
    """The module cuda.bindings.driver. DeviceError where it cannot be imported."""
    try:
        from cuda.bindings import driver
    except Exception as error:  # an ImportError, or what broken libraries raise
        raise DeviceError(f"cuda.bindings cannot be imported ({_first_line(error)}); {REMEDY}") from error
    return driver


class Opened:
    """A device with its primary context. capability: as (9, 0); context: its handle; driver_version: as (13, 0)."""

    def __init__(
        self, device: Any, context: Any, name: str, capability: tuple[int, int], driver_version: tuple[int, int]
    ):
        self.device = device
        self.context = context
        self.name = name
        self.capability = capability
        self.driver_version = driver_version


def open_device(calls: Calls, ordinal: int) -> Opened:
    """Initializes CUDA and retains a device's primary context. DeviceError, saying what to do, where that cannot be."""
    bindings = calls.bindings
    try:
        _check(calls, bindings.cuInit(0))
    except DeviceError:
        raise
    except Exception as error:  # the bindings find no libcuda; they say so by various classes
        raise DeviceError(f"NVIDIA's driver was not found ({_first_line(error)}); install it, {_INSTEAD}") from error
    version = _value(calls, bindings.cuDriverGetVersion())
    running = (version // 1000, version % 1000 // 10)
    wanted = bindings.CUDA_VERSION // 1000
    if running[0] < wanted:
        raise DeviceError(
            f"NVIDIA's driver offers CUDA {running[0]}.{running[1]}, and the installed packages are for CUDA {wanted}; "
            f"update the driver, {_INSTEAD}"
        )
    if wanted < 13:
        raise DeviceError(
            f"the installed packages are for CUDA {wanted}, whose compiler does not come to an end with products of matrices "
            f'(12.6, 12.8 and 12.9 were tried); pip install "tapeprop[cuda]" with a driver of CUDA 13, {_INSTEAD}'
        )
    count = _value(calls, bindings.cuDeviceGetCount())
    if count <= ordinal:
        raise DeviceError(f"{_CLOSED[100]}; {_INSTEAD}")
    device = _value(calls, bindings.cuDeviceGet(ordinal))
    attribute = bindings.CUdevice_attribute
    major, minor = (
        _value(calls, bindings.cuDeviceGetAttribute(which, device))
        for which in (
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    name = _value(calls, bindings.cuDeviceGetName(256, device)).split(b"\0")[0].decode(errors="replace")
    if wanted >= 13 and (major, minor) < (7, 5):
        raise DeviceError(
            f"{name} has compute capability {major}.{minor}, which CUDA 13 no longer serves; use a newer GPU, {_INSTEAD}"
        )
    context = _value(calls, bindings.cuDevicePrimaryCtxRetain(device))
    return Opened(device, context, name, (major, minor), running)


class Turn:
    """One thread at a time, with the device's context current; the thread's own context comes back afterwards.

    May be entered again by who is inside. DeviceError where the device is lost, or was opened before a fork.
    """

    def __init__(self, calls: Calls, context: Any):
        self._calls = calls
        self._context = context
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._depth = 0
        self._pushed = False

    def __enter__(self) -> None:
        if os.getpid() != self._process:
            raise DeviceError(_FORKED)  # before the lock, which a thread of the parent may have held
        self._lock.acquire()
        try:
            if self._calls.lost is not None:
                raise DeviceError(self._calls.lost)
            if self._depth == 0:
                current = int(self._calls("cuCtxGetCurrent") or 0)
                if current == 0:
                    self._calls("cuCtxSetCurrent", self._context)
                elif current != int(self._context):
                    self._calls("cuCtxPushCurrent", self._context)
                    self._pushed = True
            self._depth += 1
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        try:
            if self._depth == 0 and self._pushed:
                self._pushed = False
                self._calls.bindings.cuCtxPopCurrent()
        finally:
            self._lock.release()


def kernel_module() -> str | None:
    """The version of NVIDIA's kernel module, as "580.82.07"; None where it does not tell."""
    try:
        found = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", _VERSION_FILE.read_text())
    except OSError:
        return None
    return found[1] if found else None


def _value(calls: Calls, result: tuple) -> Any:
    _check(calls, result)
    return result[1]


def _check(calls: Calls, result: tuple) -> None:
    status = result[0]
    if status == 0:
        return
    text = calls.text(status)
    if int(status) == _OUT_OF_MEMORY:
        raise DeviceMemoryError(f"the GPU has no memory left to begin with ({text}); nvidia-smi shows who has it")
    why = _CLOSED.get(int(status), "CUDA cannot be used")
    raise DeviceError(f"{why} ({text}); {_INSTEAD}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
