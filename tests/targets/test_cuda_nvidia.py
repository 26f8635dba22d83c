"""The logic of NvidiaDriver on a stand-in for the CUDA driver, whose streams are really late."""

import gc
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from patience import HANG_SECONDS, WantedLock, wait_until
from targets.fake_cuda import CUresult, FakeCuda

from tapeprop.errors import DeviceError, DeviceMemoryError
from tapeprop.ir.device import Device
from tapeprop.ir.kernels import Kernel
from tapeprop.targets.cuda import nvidia_calls, staging
from tapeprop.targets.cuda.host import memory_at
from tapeprop.targets.cuda.nvidia import NvidiaDriver

DOUBLE, BROKEN = Kernel.of("a:double"), Kernel.of("a:broken")


def cubins(kernels, capability):
    return {kernel: SimpleNamespace(symbol=kernel.label.removesuffix("()"), code=b"code") for kernel in kernels}


@pytest.fixture
def fake():
    return FakeCuda()


@pytest.fixture
def driver(fake):
    return NvidiaDriver(fake, cubins)


def double(row, control):
    """Doubles the float32 at the address in the row's first word."""
    place = int(memory_at(row, 8).view(np.int64)[0])
    memory_at(place, 4).view(np.float32)[0] *= 2


def a_row(driver, value):
    """(the number's memory, the row's) of a kernel that doubles a number."""
    number, row = driver.allocate(4), driver.allocate(8)
    driver.upload(number.address, np.array([value], np.float32))
    driver.upload(row.address, np.array([number.address]))
    return number, row


def downloaded(driver, allocation, dtype="float32"):
    found = np.empty(allocation.nbytes // np.dtype(dtype).itemsize, dtype)
    driver.download(found, allocation.address)
    return found


# ---- what there is


def test_what_it_tells(fake, driver):
    told = driver.describe()
    assert (told["device"], told["capability"], told["memory_bytes"]) == ("Fake GPU", [9, 0], fake.total)
    assert "CUDA 13.0" in told["driver"]
    assert told["runtime"] == "CUDA 13.0"
    assert "numba" in told["libraries"]
    assert (driver.name, driver.capability, driver.simulated, driver.captures) == ("Fake GPU", (9, 0), False, True)
    assert driver.compiles_for == (9, 0, "a")
    assert driver.limits == Device()
    assert NvidiaDriver(FakeCuda(capability=(8, 6))).compiles_for == (8, 6)


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("cuInit", CUresult.CUDA_ERROR_NO_DEVICE, "no NVIDIA GPU"),
        ("cuInit", CUresult.CUDA_ERROR_NOT_INITIALIZED, "spawn"),
        ("cuInit", CUresult.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "restart the machine"),
        ("cuInit", CUresult.CUDA_ERROR_UNKNOWN, "nvidia-smi"),
        ("cuDevicePrimaryCtxRetain", CUresult.CUDA_ERROR_DEVICE_UNAVAILABLE, "in use by another process"),
        ("cuDevicePrimaryCtxRetain", CUresult.CUDA_ERROR_OUT_OF_MEMORY, "no memory left"),
        ("cuDeviceGetCount", CUresult.CUDA_ERROR_INVALID_VALUE, "CUDA cannot be used"),
    ],
)
def test_why_it_cannot_be_opened(fake, name, status, told):
    fake.failures[name] = status
    with pytest.raises(DeviceError, match=told) as caught:
        NvidiaDriver(fake)
    assert CUresult(status).name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_library_no_device_and_old_ones_are_told():
    class Absent(FakeCuda):
        def cuInit(self, Flags):
            raise RuntimeError("libcuda.so.1 cannot be opened\nand more")

    with pytest.raises(
        DeviceError, match=r"NVIDIA's driver was not found \(libcuda.so.1 cannot be opened\); install it"
    ):
        NvidiaDriver(Absent())
    with pytest.raises(DeviceError, match="no NVIDIA GPU, or CUDA_VISIBLE_DEVICES hides it"):
        NvidiaDriver(FakeCuda(count=0))
    with pytest.raises(
        DeviceError, match=r"offers CUDA 12.4.*for CUDA 13; update the driver, or build with device='cpu'"
    ):
        NvidiaDriver(FakeCuda(version=12040))
    with pytest.raises(DeviceError, match=r"7\.0.*no longer serves; use a newer GPU"):
        NvidiaDriver(FakeCuda(capability=(7, 0)))


def test_packages_whose_compiler_would_never_end_are_refused():
    class Old(FakeCuda):
        CUDA_VERSION = 12090

    with pytest.raises(DeviceError, match=r"are for CUDA 12, .*tapeprop\[cuda\].*driver of CUDA 13, or build"):
        NvidiaDriver(Old())


def test_absent_bindings_are_told(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(DeviceError, match=r"tapeprop\[cuda\]"):
        nvidia_calls.load_bindings()


# ---- memory


def test_memory_is_zeroed_and_given_back(fake, driver):
    made = [driver.allocate(n) for n in (1, 1000, 0)]
    assert all(m.address % 256 == 0 for m in made)
    assert not downloaded(driver, made[1], "uint8").any()
    assert len(fake.allocated) == 3
    made[0].free()
    made[0].free()
    assert len(fake.allocated) == 2
    del made
    gc.collect()
    assert len(fake.allocated) == 2  # noted, and freed with the next call that may
    free, total = driver.memory()
    assert (free, total, len(fake.allocated)) == (fake.total, fake.total, 0)


def test_collected_memory_makes_room_before_an_error(fake, driver):
    half = fake.total // 2 + 1
    circle = [driver.allocate(half)]
    circle.append(circle)
    del circle
    kept = driver.allocate(half)
    with pytest.raises(DeviceMemoryError) as caught:
        driver.allocate(half)
    assert f"needed {half:,} bytes" in str(caught.value)
    assert f"{driver.memory()[0]:,} of {fake.total:,} bytes are free" in str(caught.value)
    assert kept.nbytes == half


def test_uploads_leave_the_array_to_the_caller(driver):
    """Many small ones and large ones, each changed as soon as the call returns; slots are used again and again."""
    rng = np.random.default_rng(0)
    sizes = [3, 100_000, staging.SLOT_BYTES, 7, 3 * staging.SLOT_BYTES + 5, 1] + [50_000] * 100
    target = driver.allocate(sum(sizes))
    expected, at = [], 0
    for size in sizes:
        array = rng.integers(0, 256, size, np.uint8)
        expected.append(array.copy())
        driver.upload(target.address + at, array)
        array.fill(0)
        at += size
    np.testing.assert_array_equal(downloaded(driver, target, "uint8"), np.concatenate(expected))


def test_uploads_that_fit_do_not_wait(fake, driver):
    target = driver.allocate(4)
    driver.upload(target.address, np.ones(1, np.float32))  # makes the staging memory
    fake.log.clear()
    for _ in range(1000):
        driver.upload(target.address, np.ones(1, np.float32))
    assert "cuEventSynchronize" not in fake.names()
    assert "cuStreamSynchronize" not in fake.names()


def test_shapes_of_copied_arrays(driver):
    target = driver.allocate(64)
    driver.upload(target.address, np.array(2.5))
    found = np.empty(())
    driver.download(found, target.address)
    assert found == 2.5
    driver.upload(target.address, np.empty((0, 3)))
    with pytest.raises(ValueError, match="C-contiguous"):
        driver.upload(target.address, np.ones((2, 4))[:, ::2])
    found.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        driver.download(found, target.address)


def test_pinned_memory_lives_as_long_as_its_views(fake, driver):
    array = driver.pinned(100)
    assert (array.dtype, array.shape, array.flags.writeable) == (np.uint8, (100,), True)
    view = array[12:].view(np.float32)[3:]
    view[...] = 1
    del array
    gc.collect()
    driver.synchronize()
    assert len(fake.pinned) == 1
    del view
    gc.collect()
    driver.synchronize()
    assert len(fake.pinned) == 0
    assert driver.pinned(0).size == 0
    fake.failures["cuMemHostAlloc"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(DeviceMemoryError, match="page-locked"):
        driver.pinned(100)


# ---- kernels and graphs


def test_launches_take_their_arguments_along(fake, driver):
    fake.kernels["double"] = double
    handle = driver.load([DOUBLE])[DOUBLE]
    pairs = [a_row(driver, float(i)) for i in range(5)]
    for _, row in pairs:
        driver.launch(handle, (2, 3, 4), (32, 2, 1), row.address, 0)
    assert [downloaded(driver, number)[0] for number, _ in pairs] == [0, 2, 4, 6, 8]
    assert fake.called("cuLaunchKernel")[0][1:8] == (2, 3, 4, 32, 2, 1, 0)


def test_kernels_are_loaded_once(fake, driver):
    asked = []
    driver._cubins = lambda kernels, capability: asked.append((kernels, capability)) or cubins(kernels, capability)
    first = driver.load([DOUBLE, BROKEN, DOUBLE])
    assert driver.load([BROKEN]) == {BROKEN: first[BROKEN]}
    assert asked == [([DOUBLE, BROKEN], (9, 0, "a"))]
    assert len(fake.called("cuFuncLoad")) == 2


def test_refused_machine_code_names_the_kernel(fake, driver):
    fake.failures["cuModuleLoadData"] = CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU
    with pytest.raises(DeviceError, match=r"kernel double\(\).*NO_BINARY_FOR_GPU.*kernel_cache.clear"):
        driver.load([DOUBLE])
    del fake.failures["cuModuleLoadData"]
    assert DOUBLE in driver.load([DOUBLE])


def test_captured_work_runs_when_its_graph_does(fake, driver):
    fake.kernels["double"] = double
    handle = driver.load([DOUBLE])[DOUBLE]
    number, row = a_row(driver, 1.0)
    copy = driver.allocate(4)
    with driver.capture() as captured:
        driver.launch(handle, (1, 1, 1), (1, 1, 1), row.address, 0)
        driver.launch(handle, (1, 1, 1), (1, 1, 1), row.address, 0)
        driver.copy(copy.address, number.address, 4)
    assert captured.graph.nodes == 3
    assert downloaded(driver, number)[0] == 1
    captured.graph.launch()
    captured.graph.launch()
    assert downloaded(driver, copy)[0] == 16
    assert fake.called("cuStreamBeginCapture")[0][1] == fake.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    assert len(fake.graphs) == 1  # the runnable one
    del captured
    gc.collect()
    driver.synchronize()
    assert not fake.graphs


def test_nothing_else_in_a_capture(driver):
    word, array = driver.allocate(8), np.zeros(1)
    refused = {
        "allocate": lambda: driver.allocate(1),
        "pinned": lambda: driver.pinned(1),
        "upload": lambda: driver.upload(word.address, array),
        "download": lambda: driver.download(array, word.address),
        "load": lambda: driver.load([DOUBLE]),
        "capture": lambda: driver.capture().__enter__(),
        "synchronize": driver.synchronize,
        "timed": lambda: driver.timed([]),
        "memory": driver.memory,
    }
    with driver.capture() as captured:
        for name, call in refused.items():
            with pytest.raises(DeviceError, match=f"{name}: not while a graph is captured"):
                call()
    assert captured.graph.nodes == 0
    driver.synchronize()


def test_an_error_in_the_block_ends_the_capture(fake, driver):
    with pytest.raises(KeyError, match="mine"), driver.capture() as captured:
        raise KeyError("mine")
    assert captured.graph is None
    assert not fake.capturing
    assert not fake.graphs
    driver.synchronize()


@pytest.mark.parametrize("name", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphUpload"])
def test_a_capture_that_fails_leaves_the_driver_usable(fake, driver, name):
    fake.failures[name] = CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    with pytest.raises(DeviceError, match="STREAM_CAPTURE_INVALIDATED"), driver.capture():
        pass
    fake.failures.clear()
    fake.capturing.clear()
    gc.collect()
    driver.synchronize()
    with driver.capture() as captured:
        pass
    captured.graph.launch()


def test_memory_dropped_in_a_capture_is_freed_after_it(fake, driver):
    dropped, freed = driver.allocate(8), driver.allocate(8)
    with driver.capture():
        del dropped
        gc.collect()
        freed.free()
        assert len(fake.allocated) == 2
    driver.synchronize()
    assert not fake.allocated


def test_other_threads_wait_for_the_end_of_a_capture(fake, driver):
    lock = driver._turn._lock = WantedLock(driver._turn._lock)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (driver.allocate(8), done.set()), daemon=True)
    with driver.capture() as captured:
        thread.start()
        wait_until(lambda: lock.wanted.is_set() or done.is_set(), "the other thread wants the driver")
        assert not done.is_set()
    thread.join(HANG_SECONDS)
    assert done.is_set()
    assert captured.graph.nodes == 0


def test_times_are_those_of_events(fake, driver):
    handle = driver.load([DOUBLE])[DOUBLE]

    def launches(count):
        return lambda: [driver.launch(handle, (1, 1, 1), (1, 1, 1), 0, 0) for _ in range(count)]

    assert driver.timed([launches(1), launches(3), launches(0)]) == [1e-3, 3e-3, 0.0]
    assert driver.timed([]) == []
    assert all(event.get("destroyed") for event in fake.events.values() if event["timed"])


# ---- what goes wrong


def lose(driver):
    handle = driver.load([BROKEN])[BROKEN]
    driver.launch(handle, (1, 1, 1), (1, 1, 1), 0, 0)


def test_a_lost_device_says_so_ever_after(fake, driver):
    kept, dropped = driver.allocate(8), driver.allocate(8)
    with driver.capture() as captured:
        pass
    lose(driver)
    with pytest.raises(DeviceError, match=r"the device was lost .*ILLEGAL_ADDRESS.*graph.to\('cpu'\)"):
        driver.synchronize()
    calls = len(fake.log)
    for call in (
        driver.check,
        driver.synchronize,
        driver.memory,
        lambda: driver.allocate(8),
        lambda: driver.upload(kept.address, np.zeros(1)),
        lambda: driver.download(np.zeros(1), kept.address),
        lambda: driver.load([DOUBLE]),
        lambda: driver.timed([]),
        captured.graph.launch,
        lambda: driver.capture().__enter__(),
    ):
        with pytest.raises(DeviceError, match="the device was lost"):
            call()
    kept.free()
    del dropped, captured
    gc.collect()
    assert len(fake.log) == calls  # nothing more is asked of it


def test_a_loss_met_while_freeing_is_told_by_the_next_call(driver):
    kept = driver.allocate(8)
    lose(driver)
    kept.free()
    with pytest.raises(DeviceError, match="lost"):
        driver.synchronize()


@pytest.mark.parametrize("status", [CUresult.CUDA_ERROR_ECC_UNCORRECTABLE, CUresult.CUDA_ERROR_LAUNCH_FAILED])
def test_other_ways_to_be_lost(fake, driver, status):
    fake.failures["cuStreamSynchronize"] = status
    with pytest.raises(DeviceError, match="lost"):
        driver.synchronize()
    fake.failures.clear()
    with pytest.raises(DeviceError, match=status.name):
        driver.synchronize()


def test_an_error_that_is_none_of_the_device_leaves_it_usable(fake, driver):
    fake.failures["cuMemcpyDtoDAsync"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with pytest.raises(DeviceError, match="cuMemcpyDtoDAsync: CUDA_ERROR_INVALID_VALUE"):
        driver.copy(1, 2, 3)
    driver.synchronize()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_is_refused_and_ends_in_peace(driver):
    kept = driver.allocate(8)
    with driver._turn:  # as another thread of the parent might be inside
        child = os.fork()
        if child == 0:
            status = 1
            try:
                driver.check()
            except DeviceError as error:
                status = 0 if "spawn" in str(error) else 2
            kept.free()
            del kept
            gc.collect()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    driver.check()
    driver.synchronize()


def test_the_threads_own_context_comes_back(fake, driver):
    fake.contexts[:] = [99]  # another library's, on another device
    driver.allocate(8)
    with driver.capture():
        assert fake.contexts[-1] == 7
    assert fake.contexts == [99]
    fake.contexts.clear()
    driver.synchronize()
    assert fake.contexts == [7]
    fake.log.clear()
    driver.synchronize()
    assert fake.names() == ["cuCtxGetCurrent", "cuStreamSynchronize"]
