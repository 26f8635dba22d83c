"""Runs one launch on arrays, outside any graph."""

from collections.abc import Sequence

import numpy as np

from tapeprop.ir.kernels import FIRST_FIELD
from tapeprop.ops.op import Call, Launch, Ref
from tapeprop.runtime.linker import load
from tapeprop.runtime.memory import address_of, aligned


def run_launch(launch: Launch, call: Call, arrays, workers: int, run=None):
    """The results of a call whose op takes one row: see `run_rows`."""
    return run_rows([launch], call, arrays, workers, run)


def run_rows(launches: Sequence[Launch], call: Call, arrays, workers: int, run=None):
    """The results of launches one after another, one worker after another: kernels have no barrier inside.

    Results start as NaN or -1.
    """
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
    for launch in launches:
        _run(launch, {"operand": copies, "result": results}, workers, run)
    for copy, array in zip(copies, arrays, strict=True):
        np.testing.assert_array_equal(copy, array, err_msg="a kernel wrote to an operand")
    return results


def _run(launch: Launch, places: dict, workers: int, run) -> None:
    stride = 0
    if launch.scratch:
        count, dtype = launch.scratch
        stride = -(-count * np.dtype(dtype).itemsize // 64) * 64 + 64  # more than asked for, as beside a hungrier row
    scratch = aligned(stride * workers)

    def word(item):
        if not isinstance(item, Ref):
            return item
        if item.kind == "stride":
            return stride // item.index
        return address_of(scratch if item.kind == "scratch" else places[item.kind][item.index]) + item.offset

    words = [word(item) for item in launch.fields]
    control = aligned(64, "int64")
    row = aligned(-(-(FIRST_FIELD + len(words)) // 8) * 8, "int64")
    row[FIRST_FIELD : FIRST_FIELD + len(words)] = words
    row[2] = address_of(control)
    if run is None:
        import ctypes

        kernel = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(
            load([launch.kernel])[launch.kernel]
        )
        for worker in range(workers):
            kernel(address_of(row), worker, workers)
    else:
        run(launch.kernel, row, 0, 1)
    assert control[0] == 0, f"the kernel reported {control[0] & 0xFFFF}"
