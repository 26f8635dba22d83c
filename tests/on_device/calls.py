"""One call of an op on arrays: by its CUDA kernels in the simulator, and by its CPU kernels as plain Python."""

from collections.abc import Sequence

import numpy as np
from on_device.launches import DEVICE, run_launches, run_on
from ops.kernel_harness import run_rows

from tapeprop.compiler.interpret import call_of
from tapeprop.ir import Input, Tensor, Trace, recording
from tapeprop.ops import registry
from tapeprop.ops.op import Call, record
from tapeprop.runtime.memory import aligned
from tapeprop.targets.cpu.kernel import run_plain


def make_call(name: str, arrays: Sequence[np.ndarray], attributes: dict) -> Call:
    """The call of an op on operands of these shapes and dtypes."""
    with recording(Trace("float64", True)):
        tensors = [Tensor(a.shape, str(a.dtype), source=Input(i)) for i, a in enumerate(arrays)]
        return call_of(record(name, tensors, attributes)[0].producer, {})


def on_cuda(name: str, *arrays: np.ndarray, device=DEVICE, **attributes) -> list[np.ndarray]:
    """The results; asserts that no operand is written and nothing is reported."""
    call = make_call(name, arrays, attributes)
    return run_launches(registry[name].cuda_rows(call, device), call, arrays)


def on_cpu(name: str, *arrays: np.ndarray, **attributes) -> list[np.ndarray]:
    """The results of the CPU kernel's body, not compiled."""
    call = make_call(name, arrays, attributes)
    with np.errstate(all="ignore"):
        return run_rows(registry[name].cpu_rows(call), call, arrays, 1, run=run_plain)


def reported(
    name: str, *arrays: np.ndarray, inplace: Sequence[tuple[int, int]] = (), device=DEVICE, **attributes
) -> tuple[list[np.ndarray], int]:
    """(results, the code that was reported, or 0). inplace: (result, operand) pairs that share memory; operands are copied."""
    call = make_call(name, arrays, attributes)
    operands = [aligned(a.size, a.dtype) for a in arrays]
    for place, array in zip(operands, arrays, strict=True):
        place[:] = array.reshape(-1)
    results = [aligned(kind.size, kind.dtype) for kind in call.results]
    for result, operand in inplace:
        results[result] = operands[operand]
    scratch = aligned(1 << 16)
    scratch.fill(255)
    places = {"operand": operands, "result": results, "scratch": [scratch]}
    code = run_on(places, registry[name].cuda_rows(call, device))
    return [made.reshape(kind.shape) for made, kind in zip(results, call.results, strict=True)], code
