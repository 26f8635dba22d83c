"""Arrays handed to and taken from other libraries: on the host by NumPy, on a CUDA device by a stand-in for its driver."""

import gc
import weakref

import numpy as np
import pytest
from targets.fake_cuda import FakeCuda

from tapeprop.errors import DeviceError, DTypeError, ShapeError
from tapeprop.targets.cuda import dlpack
from tapeprop.targets.cuda.dry import DryDriver
from tapeprop.targets.cuda.nvidia import NvidiaDriver


@pytest.fixture
def host():
    return DryDriver()


@pytest.fixture
def fake():
    return FakeCuda()


@pytest.fixture
def gpu(fake):
    return NvidiaDriver(fake)


def on(driver, array):
    """A DeviceArray with the values of `array`."""
    allocation = driver.allocate(array.nbytes)
    driver.upload(allocation.address, array)
    return driver.export(allocation, array.shape, array.dtype.name)


class Lender:
    """Another library's array: a NumPy array that passes for one on `device`."""

    def __init__(self, array, device=(1, 0), old=False):
        self.array, self.device, self.old = array, device, old
        self.streams = []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        if self.old and "max_version" in options:
            raise TypeError("unexpected keyword argument 'max_version'")
        self.streams.append(options.pop("stream", None))
        if self.device == (1, 0):
            return self.array.__dlpack__(**options)
        address = self.array.ctypes.data
        return dlpack.make(
            address, self.array.shape, self.array.dtype.name, self.device, self.array, versioned=not self.old
        )


class Interfaced:
    """Another library's array with no more than __cuda_array_interface__."""

    def __init__(self, address, shape, typestr="<f4", **more):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "data": (address, False), "version": 3, "stream": None, **more,
        }  # fmt: skip


# ---- made here


def test_a_device_array_is_like_an_array(host):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    array = on(host, values)
    assert (array.shape, array.dtype, array.ndim, array.size, array.nbytes) == ((3, 4), np.float32, 2, 12, 48)
    assert len(array) == 3
    assert repr(array) == f"DeviceArray(shape=(3, 4), dtype=float32, on {host.name})"
    np.testing.assert_array_equal(array.numpy(), values)
    np.testing.assert_array_equal(np.asarray(array, np.float64), values)
    np.testing.assert_array_equal(values + array, 2 * values)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(array, copy=False)
    with pytest.raises(TypeError, match="one element"):
        float(array)
    assert float(on(host, np.array([[2.5]]))) == 2.5
    with pytest.raises(TypeError, match="without axes"):
        len(on(host, np.array(1.0)))
    with pytest.raises(ShapeError, match="takes 16 bytes, got 8"):
        host.export(host.allocate(8), (2,), "float64")
    assert not hasattr(array, "__cuda_array_interface__")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 2), (1,), (2, 1, 3)])
def test_numpy_shares_the_memory(host, dtype, shape):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    array = on(host, values)
    shared = np.from_dlpack(array)
    np.testing.assert_array_equal(shared, values)
    assert shared.dtype == values.dtype
    if values.size:
        assert shared.ctypes.data == array.address
        shared[...] = 1
        assert (array.numpy() == 1).all()


def test_memory_lives_as_long_as_who_has_it(host):
    array = on(host, np.arange(4.0))
    address = array.address
    shared = np.from_dlpack(array)[1:]
    del array
    gc.collect()
    assert host.allocation_of(address) is not None
    np.testing.assert_array_equal(shared, [1, 2, 3])
    del shared
    gc.collect()
    assert host.allocation_of(address) is None


@pytest.mark.parametrize("options", [{}, {"max_version": (1, 0)}, {"max_version": (0, 8)}])
def test_a_capsule_that_nobody_takes_ends_by_itself(host, options):
    array = on(host, np.arange(4.0))
    address, capsule = array.address, array.__dlpack__(**options)
    del array
    assert host.allocation_of(address) is not None
    del capsule
    assert host.allocation_of(address) is None
    array = on(host, np.arange(4.0))
    address, taken = array.address, dlpack.take(array.__dlpack__(**options))
    del array
    assert (taken.address, taken.shape, taken.dtype, taken.device) == (address, (4,), "float64", (1, 0))
    assert host.allocation_of(address) is not None
    del taken
    assert host.allocation_of(address) is None


@pytest.mark.parametrize("take", [lambda array: array.__dlpack__(), np.from_dlpack, np.asarray])
def test_an_error_on_its_way_is_not_lost_with_what_it_drops(host, take):
    def fail():
        raise KeyError("the error")

    with pytest.raises(KeyError, match="the error"):
        [take(on(host, np.arange(4.0))), fail()]
    gc.collect()
    assert host.used == 0


def test_a_copy_says_so_to_askers_of_version_1(host):
    capsule = on(host, np.arange(4.0)).__dlpack__(max_version=(1, 0), copy=True)
    managed = dlpack._Versioned.from_address(dlpack._pointer(capsule, b"dltensor_versioned"))
    assert (managed.major, managed.flags) == (1, dlpack.FLAG_COPIED)


def test_a_capsule_is_taken_once(host):
    capsule = on(host, np.arange(4.0)).__dlpack__()
    taken = dlpack.take(capsule)
    with pytest.raises(DeviceError, match="nobody has taken"):
        dlpack.take(capsule)
    with pytest.raises(DeviceError, match="nobody has taken"):
        dlpack.take("a string")
    assert taken.shape == (4,)


def test_a_copy_is_one(host):
    array = on(host, np.arange(4.0))
    copy = np.from_dlpack(array, copy=True)
    copy[0] = 7
    np.testing.assert_array_equal(array.numpy(), [0, 1, 2, 3])
    with pytest.raises(BufferError, match="rocm:0"):
        array.__dlpack__(dl_device=(10, 0))


# ---- made here, on a CUDA device


def test_the_array_interface(fake, gpu):
    array = on(gpu, np.arange(6, dtype=np.float32).reshape(2, 3))
    fake.log.clear()
    interface = array.__cuda_array_interface__
    assert "cuStreamSynchronize" in fake.names()
    assert interface == {
        "shape": (2, 3), "typestr": "<f4", "data": (array.address, False), "strides": None, "version": 3, "stream": None,
    }  # fmt: skip
    assert gpu.export(gpu.allocate(0), (0,), "int64").__cuda_array_interface__["data"] == (0, False)


@pytest.mark.parametrize(("stream", "waits"), [(None, 1), (1, 1), (2, 2), (4711, 4711), (-1, None)])
def test_the_askers_stream_waits(fake, gpu, stream, waits):
    array = on(gpu, np.arange(4.0))
    fake.log.clear()
    taken = dlpack.take(array.__dlpack__(stream=stream))
    assert (taken.address, taken.device) == (array.address, (2, 0))
    if waits is None:
        assert fake.names() == []
        return
    (event,) = [arguments[1] for arguments in fake.called("cuStreamWaitEvent")]
    assert fake.called("cuEventRecord") == [(event, gpu._stream)]
    assert fake.called("cuStreamWaitEvent") == [(waits, event, 0)]
    assert fake.events[event]["destroyed"]


def test_what_else_an_asker_may_want(gpu):
    array = on(gpu, np.arange(4.0))
    with pytest.raises(ValueError, match="stream=0"):
        array.__dlpack__(stream=0)
    with pytest.raises(BufferError, match="without a copy"):
        array.__dlpack__(dl_device=(1, 0), copy=False)
    assert array.__dlpack_device__() == (2, 0)
    host = dlpack.take(array.__dlpack__(dl_device=(1, 0)))
    assert host.device == (1, 0)
    np.testing.assert_array_equal(np.from_dlpack(array, device="cpu"), np.arange(4.0))
    fresh = dlpack.take(array.__dlpack__(copy=True))
    assert fresh.address != array.address
    gpu.synchronize()
    found = np.empty(4)
    gpu.download(found, fresh.address)
    np.testing.assert_array_equal(found, np.arange(4.0))


# ---- made elsewhere


def test_arrays_of_the_host_are_not_of_the_device(host, gpu):
    for array in (np.arange(3), np.float32(1), [1, 2], 3, None, "text"):
        assert host.external(array) is None
        assert gpu.external(array) is None
    assert gpu.external(Lender(np.arange(3.0))) is None
    assert gpu.external(Lender(np.arange(3.0), (3, 0))) is None  # page-locked


def test_what_numpy_can_read_is_of_the_host_also_where_that_plays_the_device(host):
    class Tensor(Lender):
        def __array__(self, dtype=None, copy=None):
            return self.array

    assert host.external(Tensor(np.arange(3.0))) is None


def test_our_own_arrays_are_taken_as_they_are(host):
    array = on(host, np.arange(6.0).reshape(2, 3))
    assert host.external(array) == (array.address, (2, 3), "float64", None, array)
    other = DryDriver().external(array)  # of the same device, by way of DLPack
    assert other[:4] == (array.address, (2, 3), "float64", None)


@pytest.mark.parametrize("old", [False, True])
def test_arrays_by_dlpack(host, old):
    values = np.arange(24.0).reshape(4, 6)
    found = host.external(Lender(values, old=old))
    assert found[:4] == (values.ctypes.data, (4, 6), "float64", None)
    assert host.external(Lender(values[1:, ::2], old=old))[:4] == (values.ctypes.data + 48, (3, 3), "float64", (48, 16))
    assert host.external(Lender(values.T, old=old)).strides == (8, 48)
    assert host.external(Lender(values[:1].T, old=old)).strides is None  # axes of size 1 have any
    assert host.external(Lender(np.zeros((0, 3)), old=old)).strides is None
    assert host.external(Lender(np.array([True]), old=old)).dtype == "bool"


def test_read_only_arrays_may_be_read(host):
    values = np.arange(3.0)
    values.flags.writeable = False
    assert host.external(Lender(values)).address == values.ctypes.data


def test_the_owner_keeps_the_memory(host):
    import weakref

    class Array(np.ndarray):
        pass

    values = np.arange(3.0).view(Array)
    watched = weakref.ref(values)
    found = host.external(Lender(values))
    del values
    gc.collect()
    assert watched() is not None
    del found
    gc.collect()
    assert watched() is None


def test_the_driver_stream_is_handed_over(gpu):
    lender = Lender(np.arange(3, dtype=np.float32), (2, 0))
    found = gpu.external(lender)
    assert found[:4] == (lender.array.ctypes.data, (3,), "float32", None)
    assert lender.streams == [int(gpu._stream)]
    assert gpu.external(Lender(np.arange(3.0), (13, 0))).dtype == "float64"  # managed memory


@pytest.mark.parametrize(
    ("device", "where"), [((2, 1), "cuda:1"), ((10, 0), "rocm:0"), ((8, 0), "metal:0"), ((99, 2), "DLPack device 99:2")]
)
def test_arrays_of_another_device_are_refused(gpu, device, where):
    with pytest.raises(DeviceError, match=rf"Lender: lies on {where}, and the graph on cuda:0 \(Fake GPU\)"):
        gpu.external(Lender(np.arange(3.0), device))


def test_a_host_takes_no_arrays_of_a_gpu(host):
    with pytest.raises(DeviceError, match="lies on cuda:0, and the graph on cpu"):
        host.external(Lender(np.arange(3.0), (2, 0)))
    with pytest.raises(DeviceError, match="lies on a CUDA device, and the graph on cpu"):
        host.external(Interfaced(256, (3,)))


def test_dtypes_that_numpy_lacks_are_refused(host):
    class Brain(Lender):
        def __dlpack__(self, **options):
            capsule = dlpack.make(self.array.ctypes.data, (2,), "int16", (1, 0), self.array)
            managed = dlpack._Managed.from_address(dlpack._pointer(capsule, b"dltensor"))
            managed.tensor.dtype.code = 4
            return capsule

    array = np.zeros(2, np.int16)
    given = weakref.ref(array)
    with pytest.raises(DTypeError, match=r"Brain: .*bfloat16; cast it to float32"):
        host.external(Brain(array))
    del array
    gc.collect()
    assert given() is None  # it was given back


def test_what_an_array_refuses_is_told(host, gpu):
    class Learning(Lender):
        def __dlpack__(self, **options):
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    class Older:
        @property
        def __cuda_array_interface__(self):
            raise RuntimeError("use tensor.detach()")

    class Nowhere:
        def __dlpack_device__(self):
            raise ValueError("Unknown device type meta for Dlpack")

    with pytest.raises(DeviceError, match=r"Nowhere: cannot be shared: Unknown device type meta"):
        gpu.external(Nowhere())
    with pytest.raises(DeviceError, match=r"Learning: cannot be shared: .*detach"):
        host.external(Learning(np.zeros(2)))
    with pytest.raises(DeviceError, match=r"Older: cannot be shared: .*detach"):
        gpu.external(Older())


def test_arrays_by_the_array_interface(fake, gpu):
    memory = gpu.allocate(96)
    array = Interfaced(memory.address, (4, 6))
    assert gpu.external(array) == (memory.address, (4, 6), "float32", None, array)
    assert gpu.external(Interfaced(memory.address, (2, 3), strides=(48, 8))).strides == (48, 8)
    assert gpu.external(Interfaced(memory.address, (2, 3), strides=(12, 4))).strides is None
    assert gpu.external(Interfaced(memory.address, (2,), "|b1")).dtype == "bool"
    assert gpu.external(Interfaced(0, (0, 3))).shape == (0, 3)
    fake.ordinals[512] = 1
    with pytest.raises(DeviceError, match=r"lies on cuda:1, and the graph on cuda:0"):
        gpu.external(Interfaced(512, (3,)))
    with pytest.raises(DeviceError, match="lies on no CUDA device"):
        gpu.external(Interfaced(1 << 20, (3,)))
    with pytest.raises(DeviceError, match="mask"):
        gpu.external(Interfaced(memory.address, (3,), mask=array))
    for typestr in (">f4", "|O8", "<M8[s]", "nonsense"):
        with pytest.raises(DTypeError, match="native byte order"):
            gpu.external(Interfaced(memory.address, (3,), typestr))


def test_the_makers_stream_is_waited_for(fake, gpu):
    memory = gpu.allocate(96)

    def waits(**more):
        fake.log.clear()
        gpu.external(Interfaced(memory.address, (3,), **more))
        return fake.called("cuEventRecord"), fake.called("cuStreamWaitEvent"), len(fake.called("cuCtxSynchronize"))

    assert waits() == ([], [], 0)  # stream None: there is nothing to wait for
    for stream in (1, 2, 4711):
        ((event, first),), ((second, same, _),), _ = waits(stream=stream)
        assert (first, second, same) == (stream, gpu._stream, event)
    assert waits(version=2) == ([], [], 1)  # says nothing of streams: all are waited for
    with pytest.raises(DeviceError, match="stream 0"):
        waits(stream=0)
