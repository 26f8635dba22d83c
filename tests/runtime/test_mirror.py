"""A buffer and its copy on a device: whoever asks finds what was written last, wherever that was."""

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
    mirror.ahead = True
    before = transfers(driver, Downloaded)
    np.testing.assert_array_equal(buffer.read(), np.full(5, 7))
    np.testing.assert_array_equal(buffer.read(), np.full(5, 7))
    assert transfers(driver, Downloaded) == before + 1
    assert not mirror.stale  # reading is not writing


def test_a_stretch_travels_alone_and_loses_nothing_beside_it(driver, buffer):
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    driver.upload(mirror.address, np.full(5, 7, np.float32))
    mirror.ahead = True
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


def test_views_are_read_only_copies_while_a_device_has_the_elements(driver, buffer):
    live = buffer.lend(0, (5,))
    live[0] = 4
    assert buffer.read()[0] == 4
    mirror_of(buffer, driver)
    copy = buffer.lend(0, (5,))
    with pytest.raises(ValueError, match="read-only"):
        copy[0] = 1
    buffer.come_home()
    assert buffer.lend(0, (5,)).flags.writeable
    assert buffer not in Buffer.mirrored


def test_coming_home_brings_what_the_device_has(driver, buffer):
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    driver.upload(mirror.address, np.full(5, 3, np.float32))
    mirror.ahead = True
    buffer.come_home()
    np.testing.assert_array_equal(buffer.array, np.full(5, 3))
    assert driver.used == 0


def test_a_lost_device_leaves_what_the_host_last_saw(driver, buffer, monkeypatch):
    mirror = mirror_of(buffer, driver)
    mirror.bring()
    mirror.ahead = True

    def lost(*_):
        raise DeviceError("the device was lost")

    monkeypatch.setattr(driver, "download", lost)
    with pytest.raises(DeviceError, match="lost"):
        buffer.read()
    buffer.come_home()
    np.testing.assert_array_equal(buffer.array, np.arange(5))


def test_another_driver_gets_a_copy_of_its_own(driver, buffer):
    first = mirror_of(buffer, driver)
    first.bring()
    driver.upload(first.address, np.full(5, 3, np.float32))
    first.ahead = True
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
