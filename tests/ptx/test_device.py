"""Kernels that Numba compiles for a GPU, on the device that runs their PTX: right ones run, and wrong ones are found out."""

import numpy as np
import pytest
from on_device.memory_for_tests import on, read, row_of
from ptx.device import open_ptx_device
from ptx.memory import Fault
from ptx.traffic import Traffic

from tapeprop.errors import DeviceError, DeviceMemoryError
from tapeprop.ir.kernels import FIRST_FIELD, Kernel
from tapeprop.targets.cuda.library import SIMULATED, missing_parts
from tapeprop.targets.cuda.nvidia import NvidiaDriver

pytestmark = pytest.mark.skipif(SIMULATED or bool(missing_parts()), reason="needs the extra cuda, and no simulator")

HERE = "on_device.kernels_for_tests"
ONE = ((1, 1, 1), (32, 1, 1))


@pytest.fixture
def driver():
    return open_ptx_device(1 << 26)


def test_it_is_the_driver_of_a_gpu(driver):
    assert isinstance(driver, NvidiaDriver)
    assert not driver.simulated
    assert driver.captures
    with pytest.raises(DeviceMemoryError, match="needed"):
        driver.allocate(1 << 27)


def test_exponentials_of_many_threads(driver):
    numbers = np.array([0, 1, -1, 0.001] * 500, np.float32)
    values = on(driver, numbers)
    kernel = Kernel.of(f"{HERE}:grow")
    row = row_of(driver, values.address, numbers.size)
    driver.launch(driver.load([kernel])[kernel], (3, 1, 1), (64, 1, 1), row.address, 0)
    np.testing.assert_allclose(read(driver, values, "float32"), [0, np.inf, 0, np.e] * 500, rtol=1e-6)


def test_a_warp_moves_what_it_asks_for(driver):
    """A kernel whose threads stride side by side, over an array of whole sectors."""
    driver._calls.bindings.machine.traffic = traffic = Traffic()
    values = on(driver, np.ones(1 << 12, np.float32))
    kernel = Kernel.of(f"{HERE}:scaled", factor=2.0)
    row = row_of(driver, values.address, 1 << 12)
    driver.launch(driver.load([kernel])[kernel], (4, 1, 1), (128, 1, 1), row.address, 0)
    driver.synchronize()
    (label,) = {label for label, _ in traffic.moved}
    assert "scaled" in label
    floats = sum(counts for (_, what), counts in traffic.moved.items() if ".f32" in what)
    assert tuple(floats) == (2 * (1 << 12) * 4 // 32,) * 2  # each read once and written once


@pytest.mark.parametrize(("grid", "block"), [((1, 1, 1), (1025, 1, 1)), ((1, 65536, 1), (32, 1, 1))])
def test_launches_that_no_gpu_takes_are_refused(driver, grid, block):
    kernel = Kernel.of(f"{HERE}:scaled", factor=2.0)
    with pytest.raises(DeviceError, match="INVALID_VALUE"):
        driver.launch(driver.load([kernel])[kernel], grid, block, driver.allocate(64).address, 0)


@pytest.mark.parametrize("step", [1, -1])
def test_a_missing_barrier_is_a_race(driver, step):
    numbers = np.arange(1, 65)
    expected = numbers
    for _ in range(2):
        expected = expected + np.pad(expected, 1)[1 + step : 65 + step]
    for barrier in (True, False):
        values, control = on(driver, numbers), driver.allocate(8)
        kernel = Kernel.of(f"{HERE}:passed_on", step=step, barrier=barrier)
        row = row_of(driver, values.address, 64)
        driver.launch(driver.load([kernel])[kernel], (1, 1, 1), (64, 1, 1), row.address, control.address)
        if barrier:
            np.testing.assert_array_equal(read(driver, values, "int64"), expected)
        else:
            with pytest.raises(Fault, match=r"passed_on.*global.*in no order"):
                driver.synchronize()


def test_an_index_past_shared_memory_is_told(driver):
    number, control = on(driver, np.zeros(1, np.int64)), driver.allocate(8)
    kernel = Kernel.of(f"{HERE}:out_of_bounds")
    row = row_of(driver, number.address, 1)
    driver.launch(driver.load([kernel])[kernel], (1, 1, 1), (4, 1, 1), row.address, control.address)
    with pytest.raises(Fault, match=r"out_of_bounds.*st.shared.*no live memory"):
        driver.synchronize()


def test_a_row_of_memory_that_was_freed_is_told(driver):
    values = on(driver, np.ones(4, np.float32))
    kernel = Kernel.of(f"{HERE}:scaled", factor=2.0)
    handle, row = driver.load([kernel])[kernel], row_of(driver, values.address, 4)
    driver.synchronize()
    values.free()
    driver.launch(handle, *ONE, row.address, 0)
    with pytest.raises(Fault, match=r"scaled.*ld.global.f32.*no live memory"):
        driver.synchronize()


def test_a_captured_graph_reads_its_row_anew_and_stops_after_a_report(driver):
    numbers = [on(driver, np.zeros(1, np.int64)) for _ in range(2)]
    control, row = driver.allocate(8), row_of(driver, numbers[0].address, 1)
    kernel = Kernel.of(f"{HERE}:count")
    handle = driver.load([kernel])[kernel]
    with driver.capture() as captured:
        driver.launch(handle, *ONE, row.address, control.address)
    assert captured.graph.nodes == 1
    captured.graph.launch()
    driver.upload(row.address + 8 * FIRST_FIELD, np.array([numbers[1].address]))
    for _ in range(5):
        captured.graph.launch()
    assert [int(read(driver, number, "int64")[0]) for number in numbers] == [1, 3]
    assert read(driver, control, "int64")[0] & 0xFFFF == 5
