"""The CUDA kernel of an op that a user wrote: the function of the CPU, each thread a worker.

What the function does for `worker` of `workers` a thread does here, so work that is cut among workers is cut among
threads; a function that takes neither is run by a single thread.
"""

from __future__ import annotations

from typing import Any

from tapeprop.errors import CompileError
from tapeprop.ops.own import live
from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import cuda


def build(op, digest, operands, types, attributes, shared):
    """The user's function on arrays of these types, (dtype, rank) each, with attributes as constants; see `cpu.build`."""
    function = live.get(digest)
    if function is None:
        raise CompileError(f"op {op!r}: its class is not defined in this process; import the module that defines it")
    arrays = [f"array{i}" for i in range(len(types))]
    constants = [f"constant{i}" for i in range(len(attributes))]
    scope: dict[str, Any] = {
        "function": cuda.jit(device=True)(function),
        "cuda": cuda,
        **dict(zip(constants, attributes)),
    }
    workers = ["cuda.grid(1)", "cuda.gridsize(1)"] if shared else []
    call = f"function({', '.join([*arrays, *workers, *constants])})"
    lines = [f"def body({', '.join(arrays)}):"]
    lines += [f"    {call}"] if shared else ["    if cuda.grid(1) == 0:", f"        {call}"]
    exec(compile("\n".join(lines), f"<body of {op}>", "exec"), scope)
    return CudaKernel(scope["body"], arrays=tuple(types), operands=operands)
