"""Runs launches of CUDA kernels outside any graph, on the driver at hand: Numba's simulator, or a GPU."""

from collections.abc import Sequence

import numpy as np

from tapeprop.ir.device import SIMULATED_DEVICE, Device
from tapeprop.ir.kernels import FIRST_FIELD
from tapeprop.ops.op import Call, Launch, Ref
from tapeprop.runtime.cuda_cache import open_device
from tapeprop.targets.cuda.driver import Driver
from tapeprop.targets.cuda.library import SIMULATED

#: What launches are cut to on the driver at hand.
DEVICE = SIMULATED_DEVICE if SIMULATED else Device()


def driver() -> Driver:
    """The driver at hand."""
    return open_device("tests")


def run_launches(launches: Sequence[Launch], call: Call, arrays):
    """The results of launches one after another. Results start as NaN or -1, and so does scratch."""
    operands = [np.array(array, order="C") for array in arrays]
    results = []
    for kind in call.results:
        made = np.empty(kind.shape, kind.dtype)
        made.fill({"f": np.nan, "u": 255}.get(made.dtype.kind, -1))
        results.append(made)
    scratch = np.full(max(_scratch_bytes(launch) for launch in launches), 255, np.uint8)
    code = run_on({"operand": operands, "result": results, "scratch": [scratch]}, launches)
    for operand, array in zip(operands, arrays, strict=True):
        np.testing.assert_array_equal(operand, array, err_msg="a kernel wrote to an operand")
    assert code == 0, f"the kernel reported {code}"
    return results


def run_on(places: dict, launches: Sequence[Launch]) -> int:
    """Runs launches on arrays that lie where `places` says; the code that was reported, or 0.

    places: {kind of a Ref: arrays, C-contiguous}. One array in two places is one stretch of memory. They hold what the launches
    have left there afterwards.
    """
    device = driver()
    arrays = {id(array): array for group in places.values() for array in group}
    memory = {key: device.allocate(max(array.nbytes, 1)) for key, array in arrays.items()}
    for key, array in arrays.items():
        if array.size:
            device.upload(memory[key].address, array)
    handles = device.load(launch.kernel for launch in launches)
    control = device.allocate(64)
    for number, launch in enumerate(launches):
        words = [
            memory[id(places[item.kind][item.index])].address + item.offset if isinstance(item, Ref) else item
            for item in launch.fields
        ]
        row = np.array([0, 0, 0, number, *words], np.int64)
        assert FIRST_FIELD == 4
        where = device.allocate(row.nbytes)
        device.upload(where.address, row)
        device.launch(handles[launch.kernel], launch.grid, launch.block, where.address, control.address)
    status = np.zeros(1, np.int64)
    device.download(status, control.address)
    for key, array in arrays.items():
        if array.size:
            device.download(array, memory[key].address)
    return int(status[0]) & 0xFFFF


def _scratch_bytes(launch: Launch) -> int:
    if launch.scratch is None:
        return 64
    count, dtype = launch.scratch
    return count * np.dtype(dtype).itemsize
