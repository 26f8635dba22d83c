"""Ops that users write as one class around a Numba kernel: `@tapeprop.ops.kernel`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.ir import Dim, Instruction, Shape, Tensor
from tapeprop.ir.dims import text
from tapeprop.ops.op import Call, Device, Launch, Op, Ref, Sample, as_tensor, cuda_launch, launch, record
from tapeprop.ops.own.fingerprint import fingerprint
from tapeprop.ops.shape import expand

__all__ = ["kernel"]

FLOATS = ("float32", "float64")
WORKERS = ("worker", "workers")
#: {digest of a kernel's code: the code}. What is named there can be compiled in this process alone.
live: dict[str, FunctionType] = {}


def kernel(cls: type) -> OwnOp:
    """Class decorator: makes an op of a Numba kernel. The op is called on tensors and runs inside the tape, natively.

        @tp.ops.kernel
        class Cube:
            "y = x ** 3, element by element."
            flat = True

            def kernel(x, y):
                for i in range(x.size):
                    y[i] = x[i] * x[i] * x[i]

            def gradient(x, y, dy):
                return 3.0 * x * x * dy

        y = Cube(x)

    The functions take what they name, and no self:

    * `kernel(operands, results[, worker, workers], attributes)`, for Numba in nopython mode: reads the operands, writes every
      element of the results, C-contiguous arrays. It must not allocate, print or write to an operand. Parameters with a default are
      attributes: numbers, strings, bools or tuples, given by keyword as in `Cube(x, power=2.0)`, constants for Numba. One worker runs
      it alone, unless it takes `worker` and `workers`: then each of them does its share of the work, cut by shape alone.
    * `gradient(...)`: one tensor for each operand, in a tuple where there are several, None for no gradient, written in `tapeprop.ops`
      from the operands, the results, `d<result>` and the attributes. Without it the op cannot be differentiated.
    * `shape(...)`: the results' shape, or a tuple of shapes, from the operands (tensors; sizes may be open) and the attributes. The
      first operand's by default.
    * `reference(...)`: the results in NumPy, from operands and attributes: what tests compare with. The kernel as plain Python by default.
    * `samples()`: a list of `tapeprop.ops.Sample`, for generic tests.

    results = ("y", "z") names several results; the last array is the only one by default. flat = True gives the kernel every array as a
    vector. Results have the floating dtype that the operands share; integer operands may stand beside them. Machine code is cached on
    disk by what the kernel's code says and reads, wherever the class stands: in a module, a script, a test or a session. On a GPU the
    same function runs, each thread a worker, or one thread alone where it takes no worker.

    GraphError where the class does not fit this form. CompileError, when a tape is first run, where Numba refuses the kernel.
    """
    return OwnOp(cls)


class OwnOp(Op):
    """What `kernel` makes of a class; see there."""

    def __init__(self, cls: type):
        if not isinstance(cls, type):
            raise GraphError(f"kernel: expected a class, got {cls!r}; write @kernel above one")
        self.name = cls.__name__
        self.__name__, self.__qualname__ = cls.__name__, cls.__qualname__
        self.__module__, self.__doc__ = cls.__module__, cls.__doc__
        self.flat = bool(getattr(cls, "flat", False))
        self._parts = {part: _function(cls, part) for part in ("kernel", "gradient", "shape", "reference", "samples")}
        if self._parts["kernel"] is None:
            raise GraphError(f"kernel {self.name}: expected a function kernel(x, y), got none; define it in the class")
        self._read_signature(self._parts["kernel"], getattr(cls, "results", None))
        operands, attributes = [*self.operands], [*self.attributes]
        for part, known in (
            ("gradient", [*operands, *self.results, *(f"d{name}" for name in self.results), *attributes]),
            ("shape", [*operands, *attributes]),
            ("reference", [*operands, *attributes]),
            ("samples", []),
        ):
            self._check_names(part, known)

    def __reduce__(self) -> str:
        return self.__qualname__  # copied and pickled by name, as a function is

    def __repr__(self) -> str:
        return f"<op {self.__module__}.{self.__qualname__}>"

    def __call__(self, *operands: Any, **attributes: Any) -> Any:
        """The result for these operands, a tuple where there are several results."""
        unknown = [name for name in attributes if name not in self.attributes]
        if unknown:
            known = ", ".join(self.attributes) or "none"
            raise GraphError(f"{self.name}: expected the attributes {known}, got {', '.join(unknown)}")
        if len(operands) != len(self.operands):
            raise GraphError(
                f"{self.name}: expected {len(self.operands)} operands, {', '.join(self.operands)}, got {len(operands)}"
            )
        given = {name: _literal(value, f"{self.name}, {name}") for name, value in attributes.items()}
        found = record(self, [as_tensor(x) for x in operands], {**self.attributes, **given})
        return found[0] if len(found) == 1 else found

    # ---- reading the class

    def _read_signature(self, function: FunctionType, results: Any) -> None:
        parameters = inspect.signature(function).parameters
        self.attributes = {
            name: _literal(p.default, f"kernel {self.name}, {name}")
            for name, p in parameters.items()
            if p.default is not p.empty and name not in WORKERS
        }
        arrays = [name for name in parameters if name not in self.attributes and name not in WORKERS]
        self.results = tuple(arrays[-1:] if results is None else results)
        self.operands = tuple(arrays[: len(arrays) - len(self.results)])
        self.shared = all(name in parameters for name in WORKERS)
        expected = [*self.operands, *self.results, *(WORKERS if self.shared else ()), *self.attributes]
        plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())
        if isinstance(results, str) or not self.operands or list(parameters) != expected or not plain:
            raise GraphError(
                f"kernel {self.name}: expected kernel(operands, results, worker, workers, attributes with defaults), the two "
                f"of the workers or neither, got kernel{inspect.signature(function)} with the results {self.results}; mend it"
            )
        if "self" in parameters:
            raise GraphError(f"kernel {self.name}: expected kernel() to take arrays, got self; leave it out")

    def _check_names(self, part: str, known: Sequence[str]) -> None:
        function = self._parts[part]
        unknown = [name for name in inspect.signature(function).parameters if name not in known] if function else []
        if unknown:
            raise GraphError(
                f"kernel {self.name}: expected {part}() to take some of {', '.join(known) or 'nothing'}, got "
                f"{', '.join(unknown)}; name what it needs"
            )

    def _call(self, part: str, known: Mapping[str, Any]) -> Any:
        function = self._parts[part]
        assert function is not None
        return function(*(known[name] for name in inspect.signature(function).parameters))

    # ---- what an op says

    def infer(self, operands: Sequence[Tensor], attributes: Mapping[str, Any]) -> list[tuple[Shape, str]]:
        dtypes = {x.dtype for x in operands if x.dtype in FLOATS}
        if len(dtypes) != 1:
            got = ", ".join(x.dtype for x in operands)
            raise DTypeError(f"{self.name}: expected operands of one floating dtype, got {got}; cast one of them")
        shapes: Any = [operands[0].shape] * len(self.results)
        if self._parts["shape"] is not None:
            found = self._call("shape", {**dict(zip(self.operands, operands)), **attributes})
            shapes = [found] if len(self.results) == 1 else found
        if not isinstance(shapes, tuple | list) or len(shapes) != len(self.results) or not all(map(_is_shape, shapes)):
            wanted = "a tuple of sizes >= 1" if len(self.results) == 1 else f"{len(self.results)} tuples of sizes >= 1"
            raise ShapeError(f"{self.name}: expected shape() to give {wanted}, got {shapes!r}; mend it")
        return [(tuple(shape), *dtypes) for shape in shapes]

    def vjp(self, call: Instruction, gradients: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
        where = f"node {call.node!r}: {self.name}" if call.node else self.name
        flows = [f"d{name}" for name in self.results]
        if self._parts["gradient"] is None:
            raise GraphError(
                f"{where} has no gradient; define gradient({', '.join([*self.operands, *self.results, *flows])}) in the "
                "class, or stop_gradient() its result"
            )
        known = dict(zip((*self.operands, *self.results), (*call.operands, *call.results)))
        for name, result, gradient in zip(flows, call.results, gradients):
            known[name] = _zeros(result) if gradient is None else gradient
        found = self._call("gradient", {**known, **call.attributes})
        listed = list(found) if isinstance(found, tuple | list) else [found]
        if len(listed) != len(self.operands):
            raise GraphError(
                f"{where}: expected gradient() to give one tensor for each of {', '.join(self.operands)}, got "
                f"{len(listed)}; None stands for no gradient"
            )
        return [
            _checked(g, x, f"{where}: gradient()", name) if need and g is not None and x.dtype in FLOATS else None
            for g, x, name, need in zip(listed, call.operands, self.operands, wanted)
        ]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        if self._parts["reference"] is not None:
            found = self._call("reference", {**dict(zip(self.operands, arrays)), **call.attributes})
            return list(found) if isinstance(found, tuple | list) else [found]
        from tapeprop.ops.own.cpu import run_as_python

        results = [np.empty(kind.shape, kind.dtype) for kind in call.results]
        given = [array.reshape(-1) if self.flat else np.atleast_1d(array) for array in (*arrays, *results)]
        assert self._parts["kernel"] is not None
        run_as_python(self._parts["kernel"], given, [call[name] for name in self.attributes], self.shared)
        return results

    def cpu(self, call: Call) -> Launch:
        arrays, parameters = self._launched(call)
        return launch("tapeprop.ops.own.cpu:build", call, arrays, **parameters)

    def cuda(self, call: Call, device: Device) -> Launch:
        """Each thread a worker; of a kernel that is not shared one thread does all."""
        arrays, parameters = self._launched(call)
        most = max(kind.size for kind in (*call.operands, *call.results))
        grid, block = device.spread(most) if self.shared else ((1, 1, 1), (1, 1, 1))
        return cuda_launch("tapeprop.ops.own.cuda:build", arrays, grid=grid, block=block, **parameters)

    def _launched(self, call: Call) -> tuple[list[tuple[Ref, tuple[int, ...]]], dict[str, Any]]:
        """(the arrays of a row, the parameters of its builder)."""
        function = self._parts["kernel"]
        assert function is not None
        digest = fingerprint(
            function, f"kernel {self.name}"
        )  # taken anew each time: what it reads may have been edited
        live[digest] = function
        kinds = (*call.operands, *call.results)
        shapes = [(kind.size,) if self.flat else kind.shape for kind in kinds]
        refs = [Ref("operand", i) for i in range(len(call.operands))] + [
            Ref("result", i) for i in range(len(call.results))
        ]
        return list(zip(refs, shapes)), {
            "op": self.name,
            "digest": digest,
            "operands": len(call.operands),
            "types": tuple((kind.dtype, len(shape)) for kind, shape in zip(kinds, shapes)),
            "attributes": tuple(call[name] for name in self.attributes),
            "shared": self.shared,
        }

    def parts(self, call: Call) -> int | None:
        return None if self.shared else 1

    def samples(self) -> list[Sample]:
        return self._call("samples", {}) if self._parts["samples"] is not None else []


def _function(cls: type, part: str) -> FunctionType | None:
    """A function of the class's body, out of what staticmethod and njit have wrapped it in."""
    found = inspect.getattr_static(cls, part, None)
    found = getattr(found, "__func__", found)
    found = getattr(found, "py_func", found)
    if found is not None and not isinstance(found, FunctionType):
        raise GraphError(
            f"kernel {cls.__name__}: expected {part} to be a function, got {found!r}; write def {part}(...)"
        )
    return found


def _literal(value: Any, where: str) -> Any:
    """An attribute as Python has it. GraphError where it is no number, string, bool, None or tuple of these."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple | list):
        return tuple(_literal(item, where) for item in value)
    if value is None or type(value) in (int, float, bool, str):
        return value
    raise GraphError(
        f"{where}: expected a number, string, bool, None or a tuple, got {value!r}; pass arrays as operands"
    )


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple | list) and all(
        isinstance(size, Dim) or (isinstance(size, int | np.integer) and size >= 1) for size in shape
    )


def _zeros(like: Tensor) -> Tensor:
    return expand(as_tensor(np.zeros((), like.dtype)), like.shape)


def _checked(gradient: Any, operand: Tensor, where: str, name: str) -> Tensor:
    found = as_tensor(gradient)
    if found.shape != operand.shape:
        raise ShapeError(
            f"{where}: expected shape {text(operand.shape)} for operand {name!r}, got {text(found.shape)}; sum over the "
            "axes that were broadcast, or reshape it"
        )
    if found.dtype != operand.dtype:
        raise DTypeError(f"{where}: expected {operand.dtype} for operand {name!r}, got {found.dtype}; cast it")
    return found
