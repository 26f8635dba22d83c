"""`raised(function, arguments)`, inside kernels: calls a device function and tells whether it has raised an exception.

Without it a GPU would say nothing: numba.cuda lets a thread that raises end there, its part of the results unwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tapeprop.targets.cuda.library import SIMULATED, numba_cuda

__all__ = ["raised_function"]


@cache
def raised_function() -> Callable:
    """(device function, tuple of its arguments) -> whether it has raised; its result is dropped."""
    return _simulated if SIMULATED else _intrinsic()


def _simulated(function: Callable, arguments: tuple) -> bool:
    try:
        function(*arguments)
    except Exception:  # as on a GPU, only that it was one is told
        return True
    return False


def _intrinsic() -> Callable:
    numba_cuda()
    from numba.cuda import cgutils, types
    from numba.cuda.extending import intrinsic

    @intrinsic
    def raised(typing_context, function, arguments):
        def generate(context, builder, signature, given):
            compiled: Any = function.dispatcher.compile_device(tuple(arguments))
            context.active_code_library.add_linking_library(compiled.library)
            status, _ = context.call_internal_no_propagate(
                builder, compiled.fndesc, compiled.signature, cgutils.unpack_tuple(builder, given[1])
            )
            return status.is_error

        return types.boolean(function, arguments), generate

    return raised
