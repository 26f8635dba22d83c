"""A buffer and its copy on a device: whoever asks finds what was written last, wherever that was."""

import gc

import numpy as np
import pytest

from tapeprop.errors import DeviceError, DeviceMemoryError
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.mirror import DeviceArena, DeviceInput, DeviceView, PinnedInput, mirror_of
from tapeprop.targets.cuda.dry import Downloaded, DryDriver, Uploaded


def on_device(driver, mirror, count):
    found = np.empty(count, np.float32)
    driver.download(found, mirror.address)
    return found


@pytest.fixture
def driver():
    return DryDriver()


@pytest.fixture
def buffer():
    made = Buffer("values.", 5, "float32")
    made.array[:] = np.arange(5)
    yield made
    made.come_home()


def transfers(driver, kind):
    return sum(isinstance(record, kind) for record in driver.log)


def test_the_device_takes_over_what_the_host_has_written(driver, buffer):
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    np.testing.assert_array_equal(on_device(driver, mirror, 5), np.arange(5))
    mirror.bring()
    assert transfers(driver, Uploaded) == 1  # nothing new
    buffer.array[2] = 9
    mirror.bring()
    assert on_device(driver, mirror, 5)[2] == 9


def test_the_host_takes_over_what_the_device_has_written(driver, buffer):
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    driver.upload(mirror.address, np.full(5, 7, np.float32))  # as a kernel would
    mirror.written()
    before = transfers(driver, Downloaded)
    np.testing.assert_array_equal(buffer.read(), np.full(5, 7))
    np.testing.assert_array_equal(buffer.read(), np.full(5, 7))
    assert transfers(driver, Downloaded) == before + 1
    assert not mirror.stale  # reading is not writing


def test_a_stretch_travels_alone_and_loses_nothing_beside_it(driver, buffer):
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    driver.upload(mirror.address, np.full(5, 7, np.float32))
    mirror.written()
    buffer.put(1, np.array([1, 2], np.float32))
    assert driver.log[-1].nbytes == 8
    np.testing.assert_array_equal(buffer.read(), [7, 1, 2, 7, 7])
    np.testing.assert_array_equal(on_device(driver, mirror, 5), [7, 1, 2, 7, 7])


def test_a_stretch_of_a_buffer_that_the_host_has_written_waits(driver, buffer):
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    buffer.array[0] = 5
    buffer.put(1, np.array([8], np.float32))
    assert mirror.stale
    mirror.bring()
    np.testing.assert_array_equal(on_device(driver, mirror, 5), [5, 8, 2, 3, 4])


def test_a_view_is_live_wherever_a_run_is(driver, buffer):
    before = buffer.lend(1, (2,))
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    before[0] = 8
    mirror.bring()  # as before every run
    np.testing.assert_array_equal(on_device(driver, mirror, 5), [0, 8, 2, 3, 4])
    driver.upload(mirror.address, np.full(5, 7, np.float32))  # as a kernel would
    mirror.written()
    mirror.follow()
    np.testing.assert_array_equal(before, [7, 7])
    after = buffer.lend(0, (5,))
    after *= 2
    mirror.bring()
    np.testing.assert_array_equal(on_device(driver, mirror, 5), np.full(5, 14))
    buffer.come_home()
    after[1] = 3
    assert before[0] == 3
    assert buffer not in Buffer.mirrored


def test_a_view_that_nobody_holds_costs_nothing(driver, buffer):
    mirror = mirror_of(buffer, driver)
    buffer.lend(0, (5,))[0] = 9
    mirror.bring()
    assert on_device(driver, mirror, 5)[0] == 9
    before = len(driver.log)
    for _ in range(3):
        mirror.bring()
        mirror.written()
        mirror.follow()
    assert len(driver.log) == before


def test_a_view_taken_while_a_run_is_on_its_way_does_not_undo_it(driver, buffer):
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    buffer.lend(0, (5,))  # read by another thread, and dropped
    driver.upload(mirror.address, np.full(5, 7, np.float32))
    mirror.written()
    mirror.bring()
    np.testing.assert_array_equal(on_device(driver, mirror, 5), np.full(5, 7))


def test_a_run_that_ends_while_the_host_is_brought_up_to_date_is_not_forgotten(driver, buffer, monkeypatch):
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    mirror.written()
    download = driver.download

    def slow(array, address):
        download(array, address)
        monkeypatch.setattr(driver, "download", download)
        driver.upload(mirror.address, np.full(5, 7, np.float32))
        mirror.written()

    monkeypatch.setattr(driver, "download", slow)
    np.testing.assert_array_equal(buffer.read(), np.arange(5))
    np.testing.assert_array_equal(buffer.read(), np.full(5, 7))


def test_what_is_written_while_the_device_takes_over_is_taken_over_next(driver, buffer, monkeypatch):
    mirror = mirror_of(buffer, driver)
    upload = driver.upload

    def slow(address, array):
        upload(address, array)
        monkeypatch.setattr(driver, "upload", upload)
        buffer.array[0] = 9

    monkeypatch.setattr(driver, "upload", slow)
    mirror.bring()
    mirror.bring()
    assert on_device(driver, mirror, 5)[0] == 9


def test_an_upload_that_fails_is_made_up_for(driver, buffer, monkeypatch):
    mirror = mirror_of(buffer, driver)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(driver, "upload", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mirror.bring()
    mirror.bring()
    np.testing.assert_array_equal(on_device(driver, mirror, 5), np.arange(5))


def test_a_buffer_ends_without_the_garbage_collector(driver):
    made = Buffer("values.", 5, "float32")
    mirror_of(made, driver).bring()
    gc.disable()
    try:
        del made
        assert driver.used == 0
    finally:
        gc.enable()


def test_coming_home_brings_what_the_device_has(driver, buffer):
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    driver.upload(mirror.address, np.full(5, 3, np.float32))
    mirror.written()
    assert buffer.come_home() is None
    np.testing.assert_array_equal(buffer.array, np.full(5, 3))
    assert driver.used == 0


def test_a_lost_device_leaves_what_the_host_last_saw(driver, buffer, monkeypatch):
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    mirror.written()

    def lost(*_):
        raise DeviceError("the device was lost")

    monkeypatch.setattr(driver, "download", lost)
    with pytest.raises(DeviceError, match="lost"):
        buffer.read()
    assert buffer.come_home() == "the device was lost"
    np.testing.assert_array_equal(buffer.array, np.arange(5))


def test_another_driver_gets_a_copy_of_its_own(driver, buffer):
    first = mirror_of(buffer, driver)
    first.bring()
    driver.upload(first.address, np.full(5, 3, np.float32))
    first.written()
    other = DryDriver()
    second = mirror_of(buffer, other)
    second.bring()
    np.testing.assert_array_equal(on_device(other, second, 5), np.full(5, 3))
    assert mirror_of(buffer, other) is second


def test_an_arena_is_taken_when_its_address_is_asked_for():
    driver = DryDriver(capacity=10_000)
    arena = DeviceArena(driver)
    assert arena.address == 0
    arena.ensure(1000)
    assert arena.nbytes == 1000
    assert driver.used == 0
    first, generation = arena.address, arena.generation
    arena.ensure(500)
    assert (arena.address, arena.generation) == (first, generation)
    arena.ensure(9_000)  # the first is given back before: both together have no room
    assert arena.generation > generation
    assert driver.used == 0
    assert arena.address
    assert driver.used == 9_000
    arena.ensure(20_000)
    with pytest.raises(DeviceMemoryError, match="20,000 bytes"):
        arena.address  # noqa: B018


def test_inputs_hold_arrays_of_the_host_and_of_the_device(driver):
    given = np.arange(6, dtype=np.float64).reshape(2, 3)
    held = DeviceInput(driver, given.shape, given.dtype)
    held.write(given)
    np.testing.assert_array_equal(held.read(), given)
    other = DeviceInput(driver, given.shape, given.dtype)
    other.write(DeviceView(driver, held.address, held.shape, held.dtype, held))
    np.testing.assert_array_equal(other.read(), given)
    pinned = PinnedInput(driver, given)
    given[0, 0] = 5
    assert pinned.read()[0, 0] == 0


def test_rows_are_cut_out_of_an_array_on_the_device(driver):
    given = np.arange(12, dtype=np.float32).reshape(4, 3)
    held = DeviceInput(driver, given.shape, given.dtype)
    held.write(given)
    view = DeviceView(driver, held.address, held.shape, held.dtype, held)
    assert (len(view), view.ndim, view.size, view.nbytes) == (4, 2, 12, 48)
    np.testing.assert_array_equal(view[1:3].read(), given[1:3])
    np.testing.assert_array_equal(np.asarray(view[-1:]), given[-1:])
    np.testing.assert_array_equal(view.reshape((2, 6)).read(), given.reshape(2, 6))
    assert view[3:9].shape == (1, 3)
    with pytest.raises(IndexError, match="side by side"):
        view[::2]
