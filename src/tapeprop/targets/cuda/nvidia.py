"""An NVIDIA GPU by way of the CUDA driver API (`cuda.bindings.driver`).

The device's primary context, as other libraries of the process use it, and one stream of its own that does not wait for
the default stream. What a kernel does wrong shows at a later call; then the context is corrupt, and the driver is lost: every
further call says so. The garbage collector only notes what to free, since it comes at any time, in a capture as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DeviceError, DeviceMemoryError
from tapeprop.ir.device import Device
from tapeprop.ir.kernels import Kernel
from tapeprop.targets.cuda import dlpack, library
from tapeprop.targets.cuda.driver import ALIGNMENT, Allocation, Dim3, Driver, Graph, byte_view
from tapeprop.targets.cuda.nvidia_calls import Calls, Turn, kernel_module, load_bindings, open_device
from tapeprop.targets.cuda.staging import SLOT_BYTES, SLOTS, Staging

__all__ = ["NvidiaDriver", "compile_in_place"]


def compile_in_place(kernels: Sequence[Kernel], capability: tuple) -> Mapping[Kernel, Any]:
    """{kernel: Cubin}, compiled here and now, kept nowhere."""
    from tapeprop.targets.cuda.object_code import compile_to_cubin

    return {kernel: compile_to_cubin(kernel, capability) for kernel in kernels}


class NvidiaDriver(Driver):
    """A GPU.

    bindings: a module like cuda.bindings.driver. cubins: called with kernels and the capability to compile for, as
    (9, 0, "a"), gives {kernel: what has a symbol and code, as `Cubin` does}. ordinal: which of the GPUs that CUDA shows.
    DeviceError, saying what to do, where there is no GPU or no driver for it.
    """

    simulated = False
    captures = True
    limits = Device()

    def __init__(
        self,
        bindings: Any = None,
        cubins: Callable[[Sequence[Kernel], tuple], Mapping[Kernel, Any]] | None = None,
        ordinal: int = 0,
    ):
        self._calls = Calls(load_bindings() if bindings is None else bindings)
        self._opened = open_device(self._calls, ordinal)
        self.name = self._opened.name
        self.capability = self._opened.capability
        self.dlpack_device = (dlpack.CUDA, ordinal)
        self._cubins = cubins or compile_in_place
        self._process = os.getpid()
        self._turn = Turn(self._calls, self._opened.context)
        self._capturing = False
        self._dead: deque[tuple[str, Any]] = deque()  # (function that frees it, handle), from the garbage collector
        self._handles: dict[Kernel, Any] = {}
        self._modules: list[Any] = []
        self._staging: Staging | None = None
        self._arguments = (ctypes.c_int64 * 2)()
        first = ctypes.addressof(self._arguments)
        self._pointers = (ctypes.c_void_p * 2)(first, first + 8)
        self._pointers_at = ctypes.addressof(self._pointers)
        flags = self._calls.bindings.CUstream_flags.CU_STREAM_NON_BLOCKING
        with self._turn:
            self._stream = self._calls("cuStreamCreate", int(flags))

    @property
    def compiles_for(self) -> tuple:
        """The capability that kernels are compiled for: with all that the device has, as (9, 0, "a")."""
        return (*self.capability, "a") if self.capability >= (9, 0) else self.capability

    # ---- what there is

    def check(self) -> None:
        """See `Driver`."""
        with self._turn:
            pass

    def describe(self) -> dict[str, Any]:
        """For reports."""
        attribute = self._calls.bindings.CUdevice_attribute
        with self._turn:
            multiprocessors = self._calls(
                "cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, self._opened.device
            )
            total = self._calls("cuDeviceTotalMem", self._opened.device)
        offered = "CUDA {}.{}".format(*self._opened.driver_version)
        version = self._calls.bindings.CUDA_VERSION
        return {
            "device": self.name,
            "capability": list(self.capability),
            "memory_bytes": int(total),
            "multiprocessors": multiprocessors,
            "driver": f"{kernel_module()} ({offered})" if kernel_module() else offered,
            "runtime": f"CUDA {version // 1000}.{version % 1000 // 10}",
            "libraries": library.versions(),
        }

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device, other processes counted in."""
        with self._turn:
            self._refuse_in_capture("memory")
            self._sweep()
            free, total = self._calls("cuMemGetInfo")
        return int(free), int(total)

    # ---- memory

    def allocate(self, nbytes: int) -> Allocation:
        """See `Driver`."""
        with self._turn:
            self._refuse_in_capture("allocate")
            self._sweep()
            size = -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
            address = int(self._with_room(f"{nbytes:,} bytes", "cuMemAlloc", size))
            made = Allocation(address, nbytes, self._release, self._note("cuMemFree"))
            self._calls("cuMemsetD8Async", address, 0, size, self._stream)
        return made

    def _with_room(self, what: str, name: str, *arguments: Any) -> Any:
        """A call that takes memory; once more after what has been dropped is freed. what: is needed, for the error."""
        try:
            return self._calls(name, *arguments)
        except DeviceMemoryError:
            gc.collect()
            self._sweep()
        try:
            return self._calls(name, *arguments)
        except DeviceMemoryError:
            free, total = self._calls("cuMemGetInfo")
            raise DeviceMemoryError(
                f"{self.name}: needed {what}, {int(free):,} of {int(total):,} bytes are free; "
                "nvidia-smi shows what other processes take"
            ) from None

    def _note(self, function: str) -> Callable[[Any], None]:
        """What the garbage collector calls with a handle."""
        dead = self._dead
        return lambda handle: dead.append((function, handle))

    def _release(self, address: int) -> None:
        if self._calls.lost is not None or os.getpid() != self._process:
            return
        self._dead.append(("cuMemFree", address))
        with contextlib.suppress(DeviceError), self._turn:  # what is lost now is told by the next call
            if not self._capturing:
                self._sweep()

    def _sweep(self) -> None:
        """Frees what has been dropped."""
        if not self._dead:
            return
        self._calls("cuStreamSynchronize", self._stream)  # work on its way may use it
        while self._dead:
            try:
                self._calls(*self._dead.popleft())
            except DeviceError:
                if self._calls.lost is not None:
                    raise

    def pinned(self, nbytes: int) -> np.ndarray:
        """See `Driver`."""
        if nbytes <= 0:
            return np.empty(0, np.uint8)
        flags = self._calls.bindings
        with self._turn:
            self._refuse_in_capture("pinned")
            self._sweep()
            try:
                address = self._calls(
                    "cuMemHostAlloc", nbytes, flags.CU_MEMHOSTALLOC_PORTABLE | flags.CU_MEMHOSTALLOC_DEVICEMAP
                )
            except DeviceMemoryError:
                raise DeviceMemoryError(
                    f"the host gives no {nbytes:,} bytes of page-locked memory; see `free -h` and the limits of the container"
                ) from None
            memory = np.asarray(_Pinned(int(address), nbytes, self._note("cuMemFreeHost")))
            seen = int(self._calls("cuMemHostGetDevicePointer", address, 0))
        if seen != int(address):
            raise DeviceError(f"{self.name}: has no common addresses with the host, which tapeprop needs")
        return memory

    def upload(self, address: int, array: np.ndarray) -> None:
        """See `Driver`."""
        content = byte_view(array)
        with self._turn:
            self._refuse_in_capture("upload")
            if self._staging is None:
                self._staging = Staging(self._calls, self._stream, self.pinned(SLOTS * SLOT_BYTES))
            self._staging.send(address, content)

    def download(self, array: np.ndarray, address: int) -> None:
        """See `Driver`."""
        content = byte_view(array, write=True)
        with self._turn:
            self._refuse_in_capture("download")
            if content.nbytes:
                place = content.__array_interface__["data"][0]
                self._calls("cuMemcpyDtoHAsync", place, address, content.nbytes, self._stream)
            self._calls("cuStreamSynchronize", self._stream)

    def copy(self, destination: int, source: int, nbytes: int) -> None:
        """See `Driver`."""
        if nbytes:
            with self._turn:
                self._calls("cuMemcpyDtoDAsync", destination, source, nbytes, self._stream)

    # ---- kernels

    def load(self, kernels: Iterable[Kernel]) -> dict[Kernel, Any]:
        """See `Driver`."""
        wanted = list(dict.fromkeys(kernels))
        missing = [kernel for kernel in wanted if kernel not in self._handles]
        if missing:
            with self._turn:
                self._refuse_in_capture("load")
            cubins = self._cubins(missing, self.compiles_for)  # others may use the driver meanwhile
            with self._turn:
                for kernel in missing:
                    if kernel not in self._handles:
                        self._handles[kernel] = self._load_cubin(kernel, cubins[kernel])
        return {kernel: self._handles[kernel] for kernel in wanted}

    def _load_cubin(self, kernel: Kernel, cubin: Any) -> Any:
        try:
            module = self._calls("cuModuleLoadData", cubin.code)
            self._modules.append(module)
            function = self._calls("cuModuleGetFunction", module, cubin.symbol.encode())
            if self._opened.driver_version >= (12, 4):
                # Now, not at the first launch: that may be inside a capture, where nothing may be loaded.
                self._calls("cuFuncLoad", function)
        except DeviceError as error:
            if self._calls.lost is not None:
                raise
            raise type(error)(
                f"kernel {kernel.label}: its machine code cannot be loaded: {error}; "
                "if it came from the cache, call tapeprop.runtime.kernel_cache.clear()"
            ) from None
        return function

    def launch(self, handle: Any, grid: Dim3, block: Dim3, row_address: int, control_address: int) -> None:
        """See `Driver`."""
        with self._turn:
            self._arguments[0] = row_address
            self._arguments[1] = control_address
            self._calls("cuLaunchKernel", handle, *grid, *block, 0, self._stream, self._pointers_at, 0)

    def _begin_capture(self) -> None:
        self._turn.__enter__()
        try:
            self._refuse_in_capture("capture")
            mode = self._calls.bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
            self._calls("cuStreamBeginCapture", self._stream, mode)
            self._capturing = True
        except BaseException:
            self._turn.__exit__()
            raise

    def _end_capture(self, keep: bool) -> Graph | None:
        try:
            self._capturing = False
            if not keep:
                with contextlib.suppress(DeviceError):  # the block's own error is the one to tell
                    self._calls("cuGraphDestroy", self._calls("cuStreamEndCapture", self._stream))
                return None
            captured = self._calls("cuStreamEndCapture", self._stream)
            try:
                _, nodes = self._calls("cuGraphGetNodes", captured, 0)
                runnable = self._with_room("room for a graph", "cuGraphInstantiate", captured, 0)
            finally:
                self._calls("cuGraphDestroy", captured)
            graph = _NvidiaGraph(self, runnable, int(nodes))
            self._calls("cuGraphUpload", runnable, self._stream)
            return graph
        finally:
            self._turn.__exit__()

    def _launch_graph(self, runnable: Any) -> None:
        with self._turn:
            self._refuse_in_capture("launch of a graph")
            self._calls("cuGraphLaunch", runnable, self._stream)

    def _refuse_in_capture(self, what: str) -> None:
        if self._capturing:
            raise DeviceError(f"{what}: not while a graph is captured; do it before or after that block")

    def synchronize(self) -> None:
        """See `Driver`."""
        with self._turn:
            self._refuse_in_capture("synchronize")
            self._calls("cuStreamSynchronize", self._stream)
            self._sweep()

    def timed(self, functions: Sequence[Callable[[], Any]]) -> list[float]:
        """Seconds between events before and after each. A device that waits for the host counts that in."""
        calls = self._calls
        with self._turn:
            self._refuse_in_capture("timed")
            events: list[Any] = []
            try:
                for function in (None, *functions):
                    if function is not None:
                        function()
                    events.append(calls("cuEventCreate", int(calls.bindings.CUevent_flags.CU_EVENT_DEFAULT)))
                    calls("cuEventRecord", events[-1], self._stream)
                calls("cuEventSynchronize", events[-1])
                pairs = itertools.pairwise(events)
                return [calls("cuEventElapsedTime", begin, end) / 1e3 for begin, end in pairs]
            finally:
                if calls.lost is None:
                    for event in events:
                        calls("cuEventDestroy", event)

    # ---- streams of others

    def stream_number(self) -> int | None:
        """The handle of the driver's stream."""
        return int(self._stream)

    def wait_for(self, stream: int | None) -> None:
        """See `Driver`."""
        with self._turn:
            self._refuse_in_capture("external array")
            if stream is None:
                self._calls("cuCtxSynchronize")
            else:
                self._order(stream, self._stream)

    def handed_to(self, stream: int | None) -> None:
        """See `Driver`."""
        with self._turn:
            self._refuse_in_capture("export")
            if stream is None:
                self._calls("cuStreamSynchronize", self._stream)
            else:
                self._order(self._stream, stream)

    def _order(self, first: Any, second: Any) -> None:
        """What is to come on one stream waits for what is on its way on another."""
        event = self._calls("cuEventCreate", int(self._calls.bindings.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        try:
            self._calls("cuEventRecord", event, first)
            self._calls("cuStreamWaitEvent", second, event, 0)
        finally:
            if self._calls.lost is None:
                self._calls("cuEventDestroy", event)

    def ordinal_of(self, address: int) -> int | None:
        """See `Driver`."""
        bindings = self._calls.bindings
        which = bindings.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        with self._turn:
            status, ordinal = bindings.cuPointerGetAttribute(which, address)
        return int(ordinal) if status == 0 else None


class _NvidiaGraph(Graph):
    def __init__(self, driver: NvidiaDriver, runnable: Any, nodes: int):
        self.nodes = nodes
        self._driver = driver
        self._runnable = runnable
        weakref.finalize(self, driver._note("cuGraphExecDestroy"), runnable).atexit = False

    def launch(self) -> None:
        self._driver._launch_graph(self._runnable)


class _Pinned:
    """The base of arrays in page-locked memory."""

    def __init__(self, address: int, nbytes: int, collected: Callable[[Any], None]):
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}
        weakref.finalize(self, collected, address).atexit = False
