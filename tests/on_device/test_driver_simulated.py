"""The driver of Numba's simulator."""

import threading

import numpy as np
import pytest
from on_device.memory_for_tests import on, read, row_of

from tapeprop.errors import CompileError
from tapeprop.ir.device import SIMULATED_DEVICE
from tapeprop.ir.kernels import Kernel
from tapeprop.targets.cuda.driver import open_driver, use_driver
from tapeprop.targets.cuda.library import SIMULATED
from tapeprop.targets.cuda.simulated import SimulatedDriver

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not SIMULATED, reason="is about the simulator, not a GPU")]
HERE = "on_device.kernels_for_tests"  # not imported: it needs numba-cuda
ONE = ((1, 1, 1), (1, 1, 1))


@pytest.fixture
def driver():
    return SimulatedDriver()


def test_the_process_runs_in_the_simulator():
    with use_driver(None):
        driver = open_driver("build")
        assert isinstance(driver, SimulatedDriver)
        assert open_driver("build") is driver
    assert driver.simulated
    assert not driver.captures
    assert driver.limits == SIMULATED_DEVICE
    assert driver.describe()["device"] == driver.name


def test_infinite_results_raise_no_warning(driver):
    """With warnings as errors, as in these tests."""
    values = on(driver, np.array([0, 1, -1, 0.001] * 5, np.float32))
    row = row_of(driver, values.address, 20)
    kernel = Kernel.of(f"{HERE}:grow")
    driver.launch(driver.load([kernel])[kernel], (2, 1, 1), (4, 1, 1), row.address, 0)
    np.testing.assert_allclose(read(driver, values, "float32"), [0, np.inf, 0, np.e] * 5, rtol=1e-6)


@pytest.mark.parametrize("barrier", [True, False])
@pytest.mark.parametrize("step", [1, -1])
def test_a_missing_barrier_is_seen(driver, step, barrier):
    """The order of the threads turns at each barrier, so in one of two rounds they read what is written already."""
    numbers = np.arange(1, 9)
    expected = numbers
    for _ in range(2):
        expected = expected + np.pad(expected, 1)[1 + step : 9 + step]
    values = on(driver, numbers)
    kernel = Kernel.of(f"{HERE}:passed_on", step=step, barrier=barrier)
    driver.launch(driver.load([kernel])[kernel], (1, 1, 1), (8, 1, 1), row_of(driver, values.address, 8).address, 0)
    assert np.array_equal(read(driver, values, "int64"), expected) == barrier


def test_what_a_thread_raises_ends_the_launch_and_the_next_runs(driver):
    number, control = on(driver, np.zeros(1, np.int64)), driver.allocate(8)
    row = row_of(driver, number.address, 1)
    bad, good = Kernel.of(f"{HERE}:out_of_bounds"), Kernel.of(f"{HERE}:count")
    handles = driver.load([bad, good])
    with pytest.raises(IndexError, match="index 5 is out of bounds"):
        driver.launch(handles[bad], (1, 1, 1), (4, 1, 1), row.address, control.address)
    assert read(driver, number, "int64") == 0
    driver.launch(handles[good], (1, 1, 1), (4, 1, 1), row.address, control.address)
    assert read(driver, number, "int64") == 1


def test_the_simulator_is_as_it_was_after_a_launch(driver):
    from numba.cuda.simulator import kernel as simulator

    before = simulator.BlockManager
    number = on(driver, np.zeros(1, np.int64))
    kernel = Kernel.of(f"{HERE}:count")
    driver.launch(driver.load([kernel])[kernel], *ONE, row_of(driver, number.address, 1).address, 0)
    assert simulator.BlockManager is before


def test_a_captured_graph_runs_again_and_again(driver):
    number, control = on(driver, np.zeros(1, np.int64)), driver.allocate(8)
    row = row_of(driver, number.address, 1)
    kernel = Kernel.of(f"{HERE}:count")
    handle = driver.load([kernel])[kernel]
    copy = driver.allocate(8)
    with driver.capture() as captured:
        driver.launch(handle, *ONE, row.address, control.address)
        driver.copy(copy.address, number.address, 8)
    assert captured.graph.nodes == 2
    assert read(driver, number, "int64") == 0
    captured.graph.launch()
    captured.graph.launch()
    assert read(driver, copy, "int64") == 2
    captured.graph.launch()
    assert read(driver, control, "int64") & 0xFFFF == 5
    captured.graph.launch()  # does nothing after a report
    assert read(driver, copy, "int64") == 3


def test_threads_share_the_simulator(driver):
    """Of several drivers too: the simulator runs one kernel at a time in the whole process."""
    kernel = Kernel.of(f"{HERE}:count")
    handle = driver.load([kernel])[kernel]
    owners = [driver, driver, SimulatedDriver(), SimulatedDriver()]
    numbers = [on(owner, np.zeros(1, np.int64)) for owner in owners]
    rows = [row_of(owner, number.address, 1) for owner, number in zip(owners, numbers)]
    controls = [owner.allocate(8) for owner in owners]

    def work(i):
        for _ in range(5):
            owners[i].launch(handle, *ONE, rows[i].address, controls[i].address)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(read(o, number, "int64")[0]) for o, number in zip(owners, numbers)] == [3] * 4
    assert [int(read(o, control, "int64")[0]) & 0xFFFF for o, control in zip(owners, controls)] == [5] * 4


def test_a_builder_that_fails_is_named(driver):
    with pytest.raises(CompileError, match=r"failing\(\).*no such tile"):
        driver.load([Kernel.of(f"{HERE}:failing")])


def test_kernels_are_kept(driver):
    kernel = Kernel.of(f"{HERE}:grow")
    assert driver.load([kernel, kernel]) == driver.load([kernel])


def test_numpy_shares_the_results(driver):
    values = on(driver, np.arange(4, dtype=np.float32))
    shared = np.from_dlpack(driver.export(values, (2, 2), "float32"))
    assert shared.ctypes.data == values.address
    assert driver.external(driver.export(values, (4,), "float32")).address == values.address
