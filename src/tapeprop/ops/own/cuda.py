"""The CUDA kernel of an op that a user wrote: the function of the CPU, each thread a worker.

What the function does for `worker` of `workers` a thread does here, so work that is cut among workers is cut among
threads; a function that takes neither is run by a single thread. An exception is told by the status word, as on the CPU.
"""

from __future__ import annotations

from typing import Any

from tapeprop.errors import CompileError
from tapeprop.ops.op import RAISED
from tapeprop.ops.own import live
from tapeprop.ops.own.cpu import reason
from tapeprop.targets.cpu.plain import plain
from tapeprop.targets.cuda.exceptions import raised_function
from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.language import cuda, report
from tapeprop.targets.cuda.library import SIMULATED

#: What numba.cuda says where a function makes an array, which a GPU's threads have no memory for.
ALLOCATES = ("NRT required", "Only accept returning of array passed into the function")


def build(op, digest, operands, types, attributes, shared):
    """The user's function on arrays of these types, (dtype, rank) each, with attributes as constants; see `cpu.build`."""
    function = live.get(digest)
    if function is None:
        raise CompileError(f"op {op!r}: its class is not defined in this process; import the module that defines it")
    if SIMULATED:
        function = plain(function)  # njit helpers cannot take the simulator's arrays
    arrays = [f"array{i}" for i in range(len(types))]
    constants = [f"constant{i}" for i in range(len(attributes))]
    scope: dict[str, Any] = {
        "function": cuda.jit(device=True)(function),
        "cuda": cuda,
        "raised": raised_function(),
        "report": report,
        **dict(zip(constants, attributes)),
    }
    taken = [*arrays, *(["worker", "workers"] if shared else [])]
    given = [*arrays, *(["cuda.grid(1)", "cuda.gridsize(1)"] if shared else [])]
    _define(f"def work({', '.join(taken)}):\n    function({', '.join([*taken, *constants])})\n", op, scope)
    scope["work"] = cuda.jit(device=True)(scope["work"])
    _define(
        f"def body({', '.join(arrays)}, control, number):\n"
        f"    if {'' if shared else 'cuda.grid(1) == 0 and '}raised(work, ({', '.join(given)})):\n"
        f"        report(control, number, {RAISED})\n",
        op,
        scope,
    )

    def explain(error: Exception) -> str:
        return f"op {op!r}: numba.cuda cannot compile kernel(): {_reason(error)}; mend it, or build the graph with device='cpu'"

    return CudaKernel(scope["body"], arrays=tuple(types), reports=True, operands=operands, explain=explain)


def _define(source: str, op: str, scope: dict[str, Any]) -> None:
    exec(compile(source, f"<body of {op}>", "exec"), scope)


def _reason(error: Exception) -> str:
    if any(text in str(error) for text in ALLOCATES):
        return "it allocates memory, by np.zeros, np.exp of an array and the like"
    return reason(error)
