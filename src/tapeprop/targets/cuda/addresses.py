"""Arrays from addresses, inside kernels: `float32_at(address, shape)` and its likes, C-contiguous.

They are writable; those of `float32_read_at` and its likes are not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tapeprop.targets.cuda.library import SIMULATED, numba_cuda

DTYPES = ("float32", "float64", "int64", "int32", "uint8")


@cache
def functions() -> dict[str, Callable]:
    """{"float32_at": ...}: as intrinsics of numba.cuda, or in the simulator as views of host memory."""
    make = _view_maker if SIMULATED else _intrinsic
    return {
        f"{dtype}_{'read_' if readonly else ''}at": make(dtype, readonly)
        for dtype in DTYPES
        for readonly in (False, True)
    }


def _view_maker(dtype: str, readonly: bool) -> Callable:
    kind = np.dtype(dtype)

    def array_at(address: int, shape: tuple[int, ...]) -> Any:
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray, FakeWithinKernelCUDAArray

        shape = tuple(int(size) for size in shape)
        count = int(np.prod(shape, dtype=np.int64))
        memory: Any = (ctypes.c_uint8 * (count * kind.itemsize)).from_address(int(address))
        array = np.frombuffer(memory, kind).reshape(shape) if count else np.zeros(shape, kind)
        if readonly:
            array = array.view()
            array.setflags(write=False)
        return FakeWithinKernelCUDAArray(FakeCUDAArray(array))  # as arguments of simulated kernels are

    return array_at


def _intrinsic(dtype: str, readonly: bool) -> Callable:
    numba_cuda()
    from numba.cuda import cgutils, types
    from numba.cuda.extending import intrinsic
    from numba.cuda.np.arrayobj import make_array, populate_array

    element = getattr(types, dtype)

    @intrinsic
    def array_at(typing_context, address, shape):
        kind = types.Array(element, len(shape), "C", readonly=readonly)

        def generate(context, builder, signature, arguments):
            where, sizes = arguments
            storage = context.get_data_type(element)
            item = context.get_constant(types.intp, context.get_abi_sizeof(storage))
            sizes = cgutils.unpack_tuple(builder, sizes)
            strides: list[Any] = []
            step = item
            for size in reversed(sizes):
                strides.insert(0, step)
                step = builder.mul(step, size)
            array = make_array(kind)(context, builder)
            # by way of the global address space: so NVVM knows that no thread's own memory is meant (ld.global instead of ld)
            data = builder.addrspacecast(builder.inttoptr(where, storage.as_pointer(1)), storage.as_pointer())
            populate_array(array, data=data, shape=sizes, strides=strides, itemsize=item, meminfo=None)
            return array._getvalue()

        return kind(address, shape), generate

    return array_at
