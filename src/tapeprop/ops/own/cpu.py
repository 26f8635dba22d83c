"""The CPU kernel of an op that a user wrote: a body around the user's function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import CompileError
from tapeprop.ops.own import live
from tapeprop.targets.cpu.kernel import BODY_OPTIONS, NumbaKernel, plain


def build(op, digest, operands, types, attributes, shared):
    """The user's function on arrays of these types, (dtype, rank) each, with attributes as constants.

    shared: whether it takes worker and workers; if not, worker 0 runs it. CompileError with Numba's reason where that refuses it.
    """
    function = live.get(digest)
    if function is None:
        raise CompileError(f"op {op!r}: its class is not defined in this process; import the module that defines it")
    compiled = _compiled(function, op, operands, types, attributes, shared)
    arrays = [f"array{i}" for i in range(len(types))]
    constants = [f"constant{i}" for i in range(len(attributes))]
    scope: dict[str, Any] = {"function": compiled, **dict(zip(constants, attributes))}
    call = f"function({', '.join([*arrays, *(['worker', 'workers'] if shared else []), *constants])})"
    lines = [f"def body({', '.join([*arrays, 'worker', 'workers'])}):"]
    lines += [f"    {call}"] if shared else ["    if worker == 0:", f"        {call}"]
    exec(compile("\n".join(lines), f"<body of {op}>", "exec"), scope)
    return NumbaKernel(scope["body"], arrays=tuple(types))


def _compiled(function, op, operands, types, attributes, shared):
    """The function compiled for just these arguments; it cannot write to an operand."""
    import numba
    from numba.core.errors import NumbaError

    arguments: list[Any] = [
        numba.types.Array(numba.from_dtype(np.dtype(dtype)), max(rank, 1), "C", readonly=i < operands)
        for i, (dtype, rank) in enumerate(types)
    ]
    arguments += [numba.int64, numba.int64] if shared else []
    arguments += [numba.typeof(value) for value in attributes]
    try:
        return numba.njit([tuple(arguments)], **BODY_OPTIONS)(function)
    except NumbaError as error:
        raise CompileError(f"op {op!r}: Numba cannot compile kernel(): {reason(error)}") from error


def reason(error: Exception) -> str:
    """What Numba found, without which of its steps found it, and where it looked."""
    lines = [line.strip() for line in str(error).splitlines()]
    if "setitem" in str(error) and "readonly" in str(error):
        lines.insert(0, "it writes to an operand, which it may only read")
    found = next((line for line in lines if line and not line.startswith("Failed in ")), "it gives no reason")
    where = next((line for line in lines if line.startswith("File ")), "")
    return f"{found} ({where.rstrip(':')})" if where else found


def run_as_python(function: Callable, arrays: Sequence[np.ndarray], attributes: Sequence[Any], shared: bool) -> None:
    """The user's function as plain Python, by one worker."""
    plain(function)(*arrays, *((0, 1) if shared else ()), *attributes)
