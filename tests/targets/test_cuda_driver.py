"""The drivers without a GPU, and how a process gets its driver. Needs neither numba-cuda nor a GPU."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from patience import HANG_SECONDS, WantedLock, wait_until

from tapeprop.errors import DeviceError, DeviceMemoryError
from tapeprop.ir.device import Device
from tapeprop.ir.kernels import Kernel
from tapeprop.targets.cuda import dry, library, simulated
from tapeprop.targets.cuda.driver import byte_view, open_driver, use_driver
from tapeprop.targets.cuda.dry import DryDriver

KERNEL = Kernel.of("a:b")
ONE = ((1, 1, 1), (4, 1, 1))


@pytest.fixture
def driver():
    return DryDriver()


# ---- a device without kernels


def test_what_it_tells(driver):
    told = driver.describe()
    assert set(told) == {"device", "capability", "memory_bytes", "driver", "runtime", "libraries"}
    assert told["memory_bytes"] == driver.memory()[1] > 0
    assert driver.simulated
    assert driver.captures
    assert driver.limits == Device()
    assert DryDriver(limits=Device(8, 2)).limits.block == 8


def test_memory_is_aligned_zeroed_and_freed():
    driver = DryDriver(capacity=1 << 12)
    made = [driver.allocate(n) for n in (1, 100, 0)]
    assert all(m.address % 256 == 0 for m in made)
    assert len({m.address for m in made}) == 3
    found = np.ones(100, np.uint8)
    driver.download(found, made[1].address)
    assert not found.any()
    with pytest.raises(DeviceMemoryError, match=r"needed 4,096 bytes, 3,994 are free"):
        driver.allocate(1 << 12)
    made[1].free()
    made[1].free()
    del made
    assert driver.memory() == (1 << 12, 1 << 12)


def test_copies(driver):
    a, b = driver.allocate(80), driver.allocate(80)
    array = np.arange(10.0)
    driver.upload(a.address, array)
    array.fill(0)
    driver.copy(b.address, a.address + 40, 40)
    found = np.empty(10)
    driver.download(found, b.address)
    np.testing.assert_array_equal(found, [5, 6, 7, 8, 9, 0, 0, 0, 0, 0])
    assert driver.pinned(7).shape == (7,)


def test_writes_stay_inside_one_allocation(driver):
    a = driver.allocate(80)
    for write in (
        lambda: driver.upload(a.address + 8, np.zeros(10)),
        lambda: driver.copy(a.address + 80, a.address, 8),
        lambda: driver.copy(0, a.address, 8),
    ):
        with pytest.raises(DeviceError, match="not inside one allocation"):
            write()
    driver.upload(a.address + 80, np.zeros(0))
    with pytest.raises(ValueError, match="C-contiguous"):
        driver.upload(a.address, np.zeros((2, 4)).T)


def test_everything_is_written_down(driver):
    a = driver.allocate(80)
    driver.upload(a.address, np.arange(10))
    handle = driver.load([KERNEL])[KERNEL]
    driver.launch(handle, *ONE, a.address, 0)
    with driver.capture() as captured:
        driver.launch(handle, *ONE, a.address, 8)
        driver.copy(a.address, a.address + 40, 40)
    np.testing.assert_array_equal(driver.words(a.address, 2), [0, 1])
    captured.graph.launch()
    np.testing.assert_array_equal(driver.words(a.address, 2), [5, 6])
    driver.download(np.empty(1), a.address)
    address = a.address
    del a
    launched = dry.Launched(KERNEL, *ONE, address, 8)
    copied = dry.Copied(address, address + 40, 40)
    assert driver.log == [
        dry.Allocated(address, 80),
        dry.Uploaded(address, 80),
        dry.Launched(KERNEL, *ONE, address, 0),
        dry.CaptureBegun(0),
        launched,
        copied,
        dry.CaptureEnded(0, 2),
        dry.GraphLaunched(0),
        dry.Downloaded(address, 8),
        dry.Freed(address),
    ]
    assert driver.graphs == [[launched, copied]]
    assert captured.graph.nodes == 2
    with pytest.raises(ValueError, match="not inside one allocation"):
        driver.words(address, 1)


def test_nothing_else_in_a_capture(driver):
    a = driver.allocate(8)
    with driver.capture() as captured:
        for call in (
            lambda: driver.allocate(1),
            lambda: driver.pinned(1),
            lambda: driver.upload(a.address, np.zeros(1)),
            lambda: driver.download(np.zeros(1), a.address),
            lambda: driver.load([KERNEL]),
            lambda: driver.capture().__enter__(),
            lambda: driver.timed([]),
            driver.synchronize,
        ):
            with pytest.raises(DeviceError, match="captured"):
                call()
    assert captured.graph.nodes == 0
    with pytest.raises(KeyError), driver.capture() as captured:
        raise KeyError
    assert captured.graph is None
    assert driver.log[-1] == dry.CaptureEnded(1, None)
    driver.synchronize()


def test_other_threads_wait_for_the_end_of_a_capture(driver):
    driver._lock, done = WantedLock(driver._lock), threading.Event()
    thread = threading.Thread(target=lambda: (driver.allocate(8), done.set()), daemon=True)
    with driver.capture() as captured:
        thread.start()
        wait_until(lambda: driver._lock.wanted.is_set() or done.is_set(), "the other thread wants the driver")
        assert not done.is_set()
    thread.join(HANG_SECONDS)
    assert done.is_set()
    assert captured.graph.nodes == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_may_use_it(driver):
    """While a thread of the parent is inside."""
    with driver.capture():
        child = os.fork()
        if child == 0:
            driver.allocate(8).free()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_times(driver):
    calls = []
    seconds = driver.timed([lambda: calls.append(1), lambda: calls.append(2)])
    assert calls == [1, 2]
    assert len(seconds) == 2
    assert min(seconds) >= 0


def test_bytes_of_arrays():
    assert byte_view(np.array(1.0)).shape == (8,)
    assert byte_view(np.zeros((0, 3))).shape == (0,)


# ---- the process's driver


def test_a_driver_for_the_process(driver):
    other = DryDriver()
    with use_driver(driver):
        assert open_driver("build") is driver
        with use_driver(other):
            assert open_driver("build") is other
        assert open_driver("build") is driver


def test_missing_packages_are_told(monkeypatch):
    monkeypatch.setattr(library, "missing_parts", lambda: ["numba-cuda", "cuda-core"])
    with (
        use_driver(None),
        pytest.raises(DeviceError, match=r"build: .*numba-cuda, cuda-core.*pip install \"tapeprop\[cuda\]\""),
    ):
        open_driver("build")


def test_a_missing_gpu_is_told_with_who_asks(monkeypatch):
    from tapeprop.targets.cuda import nvidia

    class Absent:
        def __init__(self, cubins):
            raise DeviceMemoryError("there is no GPU; buy one")

    monkeypatch.setattr(library, "require", lambda what: None)
    monkeypatch.setattr(library, "SIMULATED", False)
    monkeypatch.setattr(nvidia, "NvidiaDriver", Absent)
    with use_driver(None), pytest.raises(DeviceMemoryError, match="build: there is no GPU; buy one"):
        open_driver("build")


def test_the_simulator_is_refused_where_its_kernels_would_run_on_a_gpu(monkeypatch):
    """These would take the host's addresses for the device's."""
    monkeypatch.setattr(simulated, "SIMULATED", False)
    with pytest.raises(DeviceError, match="NUMBA_ENABLE_CUDASIM=1"):
        simulated.SimulatedDriver()


def test_a_driver_that_was_lost_is_told_with_who_asks():
    class Lost(DryDriver):
        def check(self):
            raise DeviceError("the device was lost")

    with use_driver(Lost()), pytest.raises(DeviceError, match=r"^build: the device was lost$"):
        open_driver("build")


def test_importing_the_interface_loads_no_compiler():
    program = "import sys, tapeprop.targets.cuda.driver, tapeprop.targets.cuda.dry; print(*sys.modules)"
    path = str(Path(library.__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert not {"numba", "llvmlite", "numba_cuda", "cuda", "cuda.bindings"} & {*run.stdout.split()}


def test_memory_that_the_collector_frees_does_not_disturb_a_look_at_it():
    import gc

    driver = DryDriver()
    kept = [driver.allocate(64) for _ in range(50)]
    thresholds = gc.get_threshold()
    gc.freeze()  # what tests before have left would be looked through each time
    try:
        for threshold in range(1, 60):  # a collection after so many new objects: one of them falls into the look
            gc.collect()
            cycle: list = [driver.allocate(8)]
            cycle.append(cycle)
            gc.set_threshold(threshold)
            del cycle
            assert driver.allocation_of(kept[-1].address) == (kept[-1].address, 64)
            assert driver.used >= 64
            gc.set_threshold(*thresholds)
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
