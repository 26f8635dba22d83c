"""A stand-in for `cuda.bindings.driver` without a GPU: memory of the host, a log of calls, failures on demand.

Work on streams is really late: it waits in one queue, for all streams in the order it came, until something synchronizes.
So a test sees what is read too early or written too soon. Each function takes the arguments that the real one takes;
`test_cuda_bindings` compares the two.
"""

import ctypes
import os
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

PAGE = 256


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_DEVICE_UNAVAILABLE = 46
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_ECC_UNCORRECTABLE = 214
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_SYSTEM_DRIVER_MISMATCH = 803
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901
    CUDA_ERROR_UNKNOWN = 999


class CUdevice_attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstream_flags(IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class CUevent_flags(IntEnum):
    CU_EVENT_DEFAULT = 0
    CU_EVENT_DISABLE_TIMING = 2


class CUstreamCaptureMode(IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class CUpointer_attribute(IntEnum):
    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9


def _host(address: int, nbytes: int) -> np.ndarray:
    return np.frombuffer(memoryview((ctypes.c_uint8 * nbytes).from_address(address)), np.uint8)


class FakeCuda:
    """One GPU of `total` bytes, compute capability 9.0, under a driver of CUDA 13.0.

    log: (function, arguments) of every call. failures: {function: status}, in place of doing it. kernels: {symbol: function
    (row, control)} that a launch calls. broken: a status that every call gives once the queue has met a kernel named
    "broken". ordinals: {address: device} of memory that is not the first device's.
    """

    CUresult = CUresult
    CUdevice_attribute = CUdevice_attribute
    CUstream_flags = CUstream_flags
    CUevent_flags = CUevent_flags
    CUstreamCaptureMode = CUstreamCaptureMode
    CUpointer_attribute = CUpointer_attribute
    CU_MEMHOSTALLOC_PORTABLE = 1
    CU_MEMHOSTALLOC_DEVICEMAP = 2
    CUDA_VERSION = 13000

    def __init__(
        self, total: int = 1 << 26, capability: tuple[int, int] = (9, 0), version: int = 13000, count: int = 1
    ):
        self.total, self.capability, self.version, self.count = total, capability, version, count
        self.log: list[tuple] = []
        self.failures: dict[str, int] = {}
        self.kernels: dict[str, Callable[[int, int], Any]] = {}
        self.ordinals: dict[int, int] = {}
        self.allocated: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.broken: int | None = None
        self.queue: list[Callable[[], Any]] = []
        self.capturing: dict[int, list] = {}
        self.graphs: dict[int, list] = {}
        self.events: dict[int, dict] = {}
        self.contexts: list[int] = []  # the current one last
        self.modules: dict[int, bytes] = {}
        self.functions: dict[int, str] = {}
        self.clock = 0.0
        self.process = os.getpid()
        self._number = 1000

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return _logged(self, name, found) if name.startswith("cu") else found

    def names(self) -> list[str]:
        """The functions that were called."""
        return [name for name, _ in self.log]

    def called(self, name: str) -> list[tuple]:
        """The arguments of each call of a function."""
        return [arguments for called, arguments in self.log if called == name]

    def _new(self) -> int:
        self._number += 8
        return self._number

    def _later(self, stream: Any, work: Callable[[], Any]) -> tuple:
        recorded = self.capturing.get(int(stream))
        (self.queue if recorded is None else recorded).append(work)
        return (CUresult.CUDA_SUCCESS,)

    def drain(self) -> None:
        """The device does all that waits."""
        while self.queue and self.broken is None:
            self.queue.pop(0)()

    # ---- the device

    def cuInit(self, Flags):
        return (CUresult.CUDA_SUCCESS,)

    def cuDriverGetVersion(self):
        return CUresult.CUDA_SUCCESS, self.version

    def cuDeviceGetCount(self):
        return CUresult.CUDA_SUCCESS, self.count

    def cuDeviceGet(self, ordinal):
        return CUresult.CUDA_SUCCESS, ordinal

    def cuDeviceGetName(self, length, dev):
        return CUresult.CUDA_SUCCESS, b"Fake GPU" + b"\0" * (length - 8)

    def cuDeviceGetAttribute(self, attrib, dev):
        return CUresult.CUDA_SUCCESS, {75: self.capability[0], 76: self.capability[1], 16: 132}[int(attrib)]

    def cuDeviceTotalMem(self, dev):
        return CUresult.CUDA_SUCCESS, self.total

    def cuDevicePrimaryCtxRetain(self, dev):
        return CUresult.CUDA_SUCCESS, 7

    def cuCtxGetCurrent(self):
        return CUresult.CUDA_SUCCESS, self.contexts[-1] if self.contexts else 0

    def cuCtxSetCurrent(self, ctx):
        self.contexts[-1:] = [ctx]
        return (CUresult.CUDA_SUCCESS,)

    def cuCtxPushCurrent(self, ctx):
        self.contexts.append(ctx)
        return (CUresult.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self):
        return CUresult.CUDA_SUCCESS, self.contexts.pop()

    def cuCtxSynchronize(self):
        return self._synchronized()

    def cuGetErrorString(self, error):
        return CUresult.CUDA_SUCCESS, CUresult(error).name.lower().replace("cuda_error_", "").replace("_", " ").encode()

    # ---- memory

    def _used(self) -> int:
        return sum(array.nbytes for array in self.allocated.values())

    def cuMemGetInfo(self):
        return CUresult.CUDA_SUCCESS, self.total - self._used(), self.total

    def _aligned(self, nbytes: int) -> np.ndarray:
        raw = np.full(nbytes + PAGE, 0xFF, np.uint8)  # memory is not zero by itself: NaN, or -1
        start = -raw.ctypes.data % PAGE
        return raw[start : start + nbytes]

    def cuMemAlloc(self, bytesize):
        if bytesize > self.total - self._used():
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        array = self._aligned(bytesize)
        self.allocated[array.ctypes.data] = array
        return CUresult.CUDA_SUCCESS, array.ctypes.data

    def cuMemFree(self, dptr):
        assert not self.queue, "memory is freed while work waits"
        if dptr not in self.allocated:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        self.allocated.pop(dptr).fill(0xEE)
        return (CUresult.CUDA_SUCCESS,)

    def cuMemHostAlloc(self, bytesize, Flags):
        assert Flags == 3
        array = self._aligned(bytesize)
        self.pinned[array.ctypes.data] = array
        return CUresult.CUDA_SUCCESS, array.ctypes.data

    def cuMemFreeHost(self, p):
        self.pinned.pop(p).fill(0xEE)
        return (CUresult.CUDA_SUCCESS,)

    def cuMemHostGetDevicePointer(self, p, Flags):
        return CUresult.CUDA_SUCCESS, p

    def cuPointerGetAttribute(self, attribute, ptr):
        if ptr in self.ordinals:
            return CUresult.CUDA_SUCCESS, self.ordinals[ptr]
        inside = any(begin <= ptr < begin + array.nbytes for begin, array in self.allocated.items())
        return (CUresult.CUDA_SUCCESS, 0) if inside else (CUresult.CUDA_ERROR_INVALID_VALUE, None)

    def cuMemsetD8Async(self, dstDevice, uc, N, hStream):
        def work():
            _host(dstDevice, N)[:] = uc

        return self._later(hStream, work)

    def _copied(self, to: int, source: int, nbytes: int, stream: Any) -> tuple:
        def work():
            _host(to, nbytes)[:] = _host(source, nbytes)

        return self._later(stream, work)

    def cuMemcpyHtoDAsync(self, dstDevice, srcHost, ByteCount, hStream):
        assert any(p <= srcHost and srcHost + ByteCount <= p + a.nbytes for p, a in self.pinned.items()), (
            "not page-locked"
        )
        return self._copied(dstDevice, srcHost, ByteCount, hStream)

    def cuMemcpyDtoHAsync(self, dstHost, srcDevice, ByteCount, hStream):
        return self._copied(dstHost, srcDevice, ByteCount, hStream)

    def cuMemcpyDtoDAsync(self, dstDevice, srcDevice, ByteCount, hStream):
        return self._copied(dstDevice, srcDevice, ByteCount, hStream)

    # ---- kernels

    def cuModuleLoadData(self, image):
        number = self._new()
        self.modules[number] = image
        return CUresult.CUDA_SUCCESS, number

    def cuModuleGetFunction(self, hmod, name):
        number = self._new()
        self.functions[number] = name.decode()
        return CUresult.CUDA_SUCCESS, number

    def cuFuncLoad(self, function):
        return (CUresult.CUDA_SUCCESS,)

    def cuLaunchKernel(
        self,
        f,
        gridDimX,
        gridDimY,
        gridDimZ,
        blockDimX,
        blockDimY,
        blockDimZ,
        sharedMemBytes,
        hStream,
        kernelParams,
        extra,
    ):
        pointers = (ctypes.c_void_p * 2).from_address(kernelParams)
        row, control = (ctypes.c_int64.from_address(pointer).value for pointer in pointers)  # copied now, as CUDA does
        grid, block = (gridDimX, gridDimY, gridDimZ), (blockDimX, blockDimY, blockDimZ)
        work = self._work_of(f, grid, block, row, control)
        return (CUresult.CUDA_ERROR_INVALID_VALUE,) if work is None else self._later(hStream, work)

    def _work_of(self, f: int, grid: tuple, block: tuple, row: int, control: int) -> Callable[[], Any] | None:
        """What a launch does once its turn comes; None where it is refused."""
        symbol = self.functions[f]

        def work():
            self.clock += 1.0
            if symbol == "broken":
                self.broken = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
            elif symbol in self.kernels:
                self.kernels[symbol](row, control)

        return work

    # ---- streams, events, graphs

    def cuStreamCreate(self, Flags):
        return CUresult.CUDA_SUCCESS, self._new()

    def _synchronized(self) -> tuple:
        if self.capturing:
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        self.drain()
        return (CUresult(self.broken or 0),)

    def cuStreamSynchronize(self, hStream):
        return self._synchronized()

    def cuStreamWaitEvent(self, hStream, hEvent, Flags):
        return self._later(hStream, lambda: None)

    def cuEventCreate(self, Flags):
        number = self._new()
        self.events[number] = {"done": True, "timed": Flags != 2}
        return CUresult.CUDA_SUCCESS, number

    def cuEventRecord(self, hEvent, hStream):
        self.events[hEvent]["done"] = False

        def work():
            self.events[hEvent] |= {"done": True, "time": self.clock}

        return self._later(hStream, work)

    def cuEventSynchronize(self, hEvent):
        while not self.events[hEvent]["done"] and self.broken is None:
            self.queue.pop(0)()
        return (CUresult(self.broken or 0),)

    def cuEventElapsedTime(self, hStart, hEnd):
        assert self.events[hStart]["timed"]
        assert self.events[hEnd]["timed"]
        return CUresult.CUDA_SUCCESS, self.events[hEnd]["time"] - self.events[hStart]["time"]

    def cuEventDestroy(self, hEvent):
        self.events[hEvent]["destroyed"] = True
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamBeginCapture(self, hStream, mode):
        self.capturing[int(hStream)] = []
        return (CUresult.CUDA_SUCCESS,)

    def cuStreamEndCapture(self, hStream):
        number = self._new()
        self.graphs[number] = self.capturing.pop(int(hStream))
        return CUresult.CUDA_SUCCESS, number

    def cuGraphGetNodes(self, hGraph, numNodes=0):
        return CUresult.CUDA_SUCCESS, [], len(self.graphs[hGraph])

    def cuGraphInstantiate(self, hGraph, flags):
        number = self._new()
        self.graphs[number] = list(self.graphs[hGraph])
        return CUresult.CUDA_SUCCESS, number

    def cuGraphDestroy(self, hGraph):
        del self.graphs[hGraph]
        return (CUresult.CUDA_SUCCESS,)

    def cuGraphUpload(self, hGraphExec, hStream):
        return (CUresult.CUDA_SUCCESS,)

    def cuGraphLaunch(self, hGraphExec, hStream):
        for work in self.graphs[hGraphExec]:
            self._later(hStream, work)
        return (CUresult.CUDA_SUCCESS,)

    def cuGraphExecDestroy(self, hGraphExec):
        del self.graphs[hGraphExec]
        return (CUresult.CUDA_SUCCESS,)


def _logged(fake: FakeCuda, name: str, function: Callable) -> Callable:
    def call(*arguments):
        assert os.getpid() == fake.process, "a forked child calls CUDA"
        fake.log.append((name, arguments))
        status = fake.failures.get(name) or fake.broken
        if status and name != "cuGetErrorString":
            return CUresult(status), None, None
        return function(*arguments)

    return call
