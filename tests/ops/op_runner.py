"""Expressions of ops on arrays: by the NumPy references, and by the compiled kernels one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ops.kernel_harness import run_rows

from tapeprop.compiler.gradient import gradients
from tapeprop.compiler.interpret import call_of, interpret
from tapeprop.ir import Constant, Input, Program, Span, Tensor, Trace, reachable, recording


def trace(function: Callable, arrays: Sequence[np.ndarray]) -> tuple[list[Tensor], list[Tensor]]:
    """(inputs, outputs) of a function of tensors, recorded for arrays in their own dtypes."""
    kinds = {str(a.dtype) for a in arrays if a.dtype.kind == "f"}
    with recording(Trace("float32" if kinds == {"float32"} else "float64", True)):
        inputs = [Tensor(a.shape, str(a.dtype), source=Input(i)) for i, a in enumerate(arrays)]
        found = function(*inputs)
    return inputs, list(found) if isinstance(found, tuple | list) else [found]


def run(function: Callable, *arrays: np.ndarray, workers: int = 1) -> np.ndarray:
    """The one result of a function of tensors, computed by the kernels, `workers` taking turns."""
    inputs, (output,) = trace(function, arrays)
    values = dict(zip(inputs, arrays, strict=True))
    for instruction in reachable([output]):
        call = call_of(instruction, {})
        operands = [t.source.array if isinstance(t.source, Constant) else values[t] for t in instruction.operands]
        if instruction.op.alias:
            results = instruction.op.reference(call, *operands)
        else:
            results = run_rows(instruction.op.cpu_rows(call), call, operands, workers)
        values.update(zip(instruction.results, results, strict=True))
    return values[output]


def gradient(function: Callable, *arrays: np.ndarray, flow: np.ndarray | float = 1.0) -> list[np.ndarray]:
    """The gradient of each array of a function with one result into which `flow` flows, by the references."""
    inputs, (output,) = trace(function, arrays)
    with recording(Trace(output.dtype, True)):
        seed = Tensor(output.shape, output.dtype, source=Input(len(arrays)))
        found = gradients({output: seed}, inputs)
    wanted = [found[x] for x in inputs if x in found]
    feeds = dict(zip(inputs, arrays, strict=True))
    feeds[seed] = np.broadcast_to(np.asarray(flow, output.dtype), output.shape)
    values, _ = interpret(Program([Span("all", reachable(wanted))], [], wanted), feeds)
    known = dict(zip((x for x in inputs if x in found), values, strict=True))
    return [known.get(x, np.zeros(a.shape)) for x, a in zip(inputs, arrays, strict=True)]
