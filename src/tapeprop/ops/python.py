"""Python called from the tape: what a `PythonLayer` is made of. An opaque instruction between two stretches of native rows.

`python` and its gradient share a `Site`, one for each place in a recorded program, so that no two calls are ever taken for one and what
forward leaves for backward belongs to that place alone. The gradient reads a mark that forward writes, which keeps their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.ir import Instruction, Shape, Tensor
from tapeprop.ops.op import ArrayType, Call, Launch, Op, Sample, record, register

__all__: list[str] = []


class Site(Protocol):
    """One call site. node: its name, label: what is called, both for texts.

    forward(x) gives y. backward(d_out) gives the gradient of x and that of each parameter, None for zeros. The arrays are copies, the
    callee's to keep or to change.
    """

    node: str
    label: str

    def forward(self, x: np.ndarray) -> Any: ...
    def backward(self, d_out: np.ndarray) -> Sequence[Any]: ...


class _InPython(Op):
    """What both have in common: no kernel, no cost that the tape would know."""

    in_python = True

    def cpu_rows(self, call: Call) -> list[Launch]:
        return [Launch(None, ())]

    def flops(self, call: Call) -> int:
        return 0


@register
class Python(_InPython):
    """(x, *parameters) -> (y, a mark): y = site.forward(x). shape: y's; its dtype is x's.

    The parameters are operands since gradients flow to them; their values the callee finds where they are stored.
    """

    name = "python"

    def infer(self, operands, attributes):
        return [(attributes["shape"], operands[0].dtype), ((1,), "int64")]

    def vjp(self, call, gradients, wanted):
        if gradients[0] is None:
            return [None] * len(call.operands)
        types = tuple((tensor.shape, tensor.dtype) for tensor in call.operands)
        attributes = {"site": call.attributes["site"], "types": types}
        return record("python_grad", [gradients[0], call.results[1]], attributes)

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        site = call["site"]
        remedy = "build() the graph again if out_shape() changed"
        y = _checked(site.forward(arrays[0].copy()), call.results[0], site, "forward()", remedy)
        return [y, np.ones(1, np.int64)]

    def why_in_python(self, call: Instruction) -> str:
        return f"forward() of {call.attributes['site'].label} is Python"

    def samples(self) -> list[Sample]:
        return [
            Sample(lambda r: [r.standard_normal((3, 4))], {"site": _Cube(), "shape": (3, 4)}),
            Sample(lambda r: [r.standard_normal(5)], {"site": _Cube(), "shape": (5,)}),
        ]


@register
class PythonGrad(_InPython):
    """(d_out, mark) -> the gradient of each operand of forward: site.backward(d_out). types: their shapes and dtypes."""

    name = "python_grad"

    def infer(self, operands, attributes):
        return list(attributes["types"])

    def vjp(self, call, gradients, wanted):
        site = call.attributes["site"]
        raise GraphError(f"{site.label}: backward() is Python, which has no gradient; write the layer in tapeprop.ops")

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        site = call["site"]
        found = site.backward(arrays[0].copy())
        remedy = "the gradient of an array has its shape and dtype"
        return [
            np.zeros(kind.shape, kind.dtype) if d is None else _checked(d, kind, site, "backward()", remedy)
            for d, kind in zip(found, call.results, strict=True)
        ]

    def why_in_python(self, call: Instruction) -> str:
        return f"backward() of {call.attributes['site'].label} is Python"

    def samples(self) -> list[Sample]:
        types: tuple[tuple[Shape, str], ...] = (((3, 4), "float64"),)
        given = {"site": _Cube(np.full((3, 4), 0.5)), "types": types}
        return [Sample(lambda r: [r.standard_normal((3, 4)), np.ones(1, np.int64)], given, gradient=())]


def call_python(x: Tensor, parameters: Sequence[Any], site: Site, shape: Shape) -> Tensor:
    """y of this shape and of x's dtype, computed by `site.forward`."""
    return record("python", [x, *parameters], {"site": site, "shape": tuple(shape)})[0]


def _checked(value: Any, kind: ArrayType, site: Site, what: str, remedy: str) -> np.ndarray:
    """`value` if it is an array of that kind. DTypeError, ShapeError."""
    where = f"node {site.node!r} ({site.label}): {what}"
    if not isinstance(value, np.ndarray | np.generic):
        raise DTypeError(
            f"{where}: expected a NumPy array of shape {kind.shape} and dtype {kind.dtype}, got {type(value).__name__}; "
            "return an array"
        )
    if value.dtype != kind.dtype:
        raise DTypeError(
            f"{where}: expected dtype {kind.dtype}, got {value.dtype}; return array.astype({kind.dtype!r}), or compute "
            f"in that dtype"
        )
    if value.shape != kind.shape:
        raise ShapeError(f"{where}: expected shape {kind.shape}, got {value.shape}; {remedy}")
    return np.asarray(value)


class _Cube:
    """y = x ** 3, for the generic tests."""

    node, label = "cube", "Cube"

    def __init__(self, x: np.ndarray | None = None):
        self.x = x

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return x**3

    def backward(self, d_out: np.ndarray) -> list[np.ndarray]:
        assert self.x is not None
        return [3 * self.x.astype(d_out.dtype) ** 2 * d_out]
