"""A formula outside any graph: values and gradients by a compiled tape, one plan per shapes and dtype."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from tapeprop.compiler.gradient import FLOATS, gradients
from tapeprop.compiler.interpret import array_type
from tapeprop.compiler.passes import optimize
from tapeprop.ir import Program, Span, Tensor, Trace, reachable, recording
from tapeprop.runtime.executable import Executable
from tapeprop.runtime.memory import Arena

PLANS_KEPT = 8


class Formula:
    """A function of tensors made callable on arrays. function(*inputs) -> a tensor or a list of them records it by ops.

    The gradient is that of the sum of the outputs: every output is seeded with ones. name: what profiles call its tapes.
    """

    def __init__(self, function: Callable[..., Tensor | list[Tensor]], name: str = "formula"):
        self.function = function
        self.name = name
        self._plans: dict[tuple, tuple[Executable, list[Tensor], dict[int, Tensor], list[Tensor]]] = {}
        self._arena = Arena()
        self._lock = threading.Lock()

    def value_and_gradient(
        self, arrays: Sequence[np.ndarray], dtype: str, wanted: Sequence[int] = (0,)
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """(copies of the outputs, the gradients of the inputs in `wanted`). Floating arrays are cast to dtype, others to int64."""
        given = [
            np.ascontiguousarray(a, dtype=dtype if a.dtype.kind == "f" else "int64").reshape(a.shape) for a in arrays
        ]
        key = (tuple([(a.shape, a.dtype) for a in given]), dtype, tuple(wanted))
        with self._lock:
            if key not in self._plans:
                if len(self._plans) >= PLANS_KEPT:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[key] = self._make(given, dtype, wanted)
            executable, outputs, found, inputs = self._plans[key]
            for tensor, array in zip(inputs, given, strict=True):
                executable.bind(tensor, array)
            executable.run()
            values = [self._read(executable, t, given) for t in outputs]
            grads = [
                self._read(executable, found[i], given) if i in found else np.zeros(given[i].shape, given[i].dtype)
                for i in wanted
            ]
            return values, grads

    @staticmethod
    def _read(executable: Executable, tensor: Tensor, given: Sequence[np.ndarray]) -> np.ndarray:
        index = executable.is_input(tensor)
        if index is None:
            return executable.view(tensor).copy()
        return given[index].reshape(executable.plan.types[tensor].shape).copy()

    def _make(self, arrays: Sequence[np.ndarray], dtype: str, wanted: Sequence[int]):
        trace = Trace(dtype, False)
        with recording(trace):
            inputs = [trace.input(i, a.shape, str(a.dtype)) for i, a in enumerate(arrays)]
            made = self.function(*inputs)
            outputs = [made] if isinstance(made, Tensor) else list(made)
            seeds = {t: trace.constant(np.ones(array_type(t, {}).shape, dtype)) for t in outputs if t.dtype in FLOATS}
            results = gradients(seeds, [inputs[i] for i in wanted])
        kept = [results[inputs[i]] for i in wanted if inputs[i] in results]
        span = Span("formula", reachable([*outputs, *kept]))
        program = optimize(Program([span], inputs, [*outputs, *kept]))
        executable = Executable(program, {}, self._arena, name=self.name)
        found = dict(zip([i for i in wanted if inputs[i] in results], program.outputs[len(outputs) :], strict=True))
        return executable, program.outputs[: len(outputs)], found, inputs
