"""Runs launches of CUDA kernels in Numba's simulator, outside any graph."""

import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np

from tapeprop.ir.kernels import FIRST_FIELD, Kernel
from tapeprop.ops.op import Call, Launch, Ref
from tapeprop.runtime.memory import address_of, aligned


def run_launches(launches: Sequence[Launch], call: Call, arrays):
    """The results of launches one after another. Results start as NaN or -1, and so does scratch."""
    copies = []
    for array in arrays:
        copy = aligned(array.size, array.dtype).reshape(array.shape)
        copy[...] = array
        copies.append(copy)
    results = []
    for kind in call.results:
        made = aligned(kind.size, kind.dtype).reshape(kind.shape)
        made.fill({"f": np.nan, "u": 255}.get(made.dtype.kind, -1))
        results.append(made)
    scratch = aligned(max([_scratch_bytes(launch) for launch in launches]))
    scratch.fill(255)
    code = run_on({"operand": copies, "result": results, "scratch": [scratch]}, launches)
    for copy, array in zip(copies, arrays, strict=True):
        np.testing.assert_array_equal(copy, array, err_msg="a kernel wrote to an operand")
    assert code == 0, f"the kernel reported {code}"
    return results


def run_on(places: dict, launches: Sequence[Launch]) -> int:
    """Runs launches on arrays that lie where `places` says; the code that was reported, or 0."""
    control = aligned(64, "int64")
    for number, launch in enumerate(launches):
        words = [
            address_of(places[item.kind][item.index]) + item.offset if isinstance(item, Ref) else item
            for item in launch.fields
        ]
        row = aligned(FIRST_FIELD + len(words), "int64")
        row[3], row[FIRST_FIELD:] = number, words
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of what is inf or NaN as it should be
            simulated(launch.kernel)[launch.grid, launch.block](address_of(row), address_of(control))
    return int(control[0]) & 0xFFFF


@cache
def simulated(kernel: Kernel):
    """The kernel in the simulator."""
    from tapeprop.targets.cuda.kernel import shim
    from tapeprop.targets.cuda.library import numba_cuda

    return numba_cuda().jit(shim(kernel))


def _scratch_bytes(launch: Launch) -> int:
    if launch.scratch is None:
        return 64
    count, dtype = launch.scratch
    return count * np.dtype(dtype).itemsize
