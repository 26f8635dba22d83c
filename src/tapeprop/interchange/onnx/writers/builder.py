"""`Builder`: nodes and initialisers of a model while it is written, and sizes that are known when the model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.interchange.onnx.writers.steps import Settings, Step, exact
from tapeprop.ir import Constant, Parameter, Shape, Size, Tensor
from tapeprop.ir.dims import Dim, product, text

__all__ = ["Builder", "NewNode"]

#: What stands for "to the end" in a Slice, as in the operator's own description.
END = 2**63 - 1
BEFORE_THE_START = -(2**63) + 1
#: Bytes of a node's own numbers: a model's nodes have to fit in 2 GiB, whatever its weights take.
LARGEST_NODE = 2**24


@dataclass
class NewNode:
    """A node of the model to be."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)


class Builder:
    """What writers write to.

    inputs: {name: tensor}. keys: {parameter: the name of its initialiser}. taken: names that no value made here may have. Values
    bear the name of their node, `<graph node>/<operator>`.
    """

    def __init__(
        self,
        settings: Settings,
        inputs: Mapping[str, Tensor],
        keys: Mapping[Parameter, str],
        taken: Sequence[str] = (),
    ):
        self.settings = settings
        self.opset, self.dtype = settings.opset, settings.dtype
        self.nodes: list[NewNode] = []
        self.initializers: dict[str, np.ndarray] = {}
        self.values: dict[Tensor, str] = {}
        ends = {*inputs, *taken}
        self._keys = {parameter: key for parameter, key in keys.items() if key not in ends}
        self._names = {*ends, *self._keys.values()}
        self._constants: dict[tuple[Any, ...], str] = {}
        self._sizes: dict[Dim, str] = {}
        self._symbols: dict[str, tuple[str, int]] = {}
        self._prefix = ""
        for name, tensor in inputs.items():
            self.values[tensor] = name
            for axis, size in enumerate(tensor.shape):
                if isinstance(size, Dim):
                    self._symbols.setdefault(str(size), (name, axis))

    def begin(self, step: Step) -> None:
        """What follows belongs to this step, and has the dtype of its result."""
        self._prefix = step.node
        self.dtype = step.results[0].dtype

    def exact(self, value: float) -> bool:
        """Whether an attribute holds a number as well as the step's dtype does: see `steps.exact`."""
        return exact(value, self.dtype)

    # ---- names

    def unique(self, name: str) -> str:
        """The name, or with a number behind it where it is taken."""
        found, number = name, 0
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found

    def _inside(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    # ---- values

    def value(self, tensor: Tensor) -> str:
        """The name of a tensor; leaves become initialisers when they are first read. GraphError for a result that was not written."""
        if tensor not in self.values:
            source = tensor.source
            if isinstance(source, Parameter):
                self.values[tensor] = self._parameter(source, tensor.dtype)
            elif isinstance(source, Constant):
                self.values[tensor] = self.constant(source.array)
            else:
                raise self._unwritten(tensor)
        return self.values[tensor]

    def _unwritten(self, tensor: Tensor) -> GraphError:
        call = tensor.producer
        assert call is not None, tensor
        return GraphError(
            f"{where(call.node, call.op.name)}: expected results that ONNX has, got result {tensor.index}, which is for a gradient; "
            "export the formula without it"
        )

    def _parameter(self, parameter: Parameter, dtype: str) -> str:
        name = self._keys.get(parameter)
        if name is None or name in self.initializers:  # that of an input, or of another variable
            name = self.unique(name or parameter.name)
        self.initializers[name] = np.array(parameter.value, dtype).reshape(parameter.shape)
        return name

    def constant(self, value: Any, dtype: str | None = None) -> str:
        """Numbers that nobody trains, once for all that are alike.

        Floating ones are nodes: a floating initialiser is a weight to whoever reads the model. Those too large for that, as weights in
        a file of their own are, are initialisers all the same.
        """
        array = np.asarray(value, dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = self.unique(self._inside("constant"))
            if array.dtype.kind == "f" and array.nbytes <= LARGEST_NODE:
                self.nodes.append(NewNode("Constant", name, [], [name], {"value": array.copy()}))
            else:
                self.initializers[name] = array.copy()
        return self._constants[key]

    def number(self, value: float, dtype: str | None = None) -> str:
        """A number of shape (), of the program's dtype or another."""
        return self.constant(value, dtype or self.dtype)

    def ints(self, values: Sequence[int]) -> str:
        """Whole numbers, int64."""
        return self.constant(list(values), "int64")

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node of one output and gives its name. Inputs at the end that are "" are left out."""
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        name = self.unique(self._inside(op))
        self.nodes.append(NewNode(op, name, given, [name], attributes))
        return name

    # ---- shapes

    def sizes(self, sizes: Sequence[Size]) -> str:
        """Sizes as int64 (n,): a constant, or what is computed from the shapes of the inputs where one is open."""
        parts: list[str] = []
        known: list[int] = []
        for size in sizes:
            if isinstance(size, Dim):
                if known:
                    parts.append(self.ints(known))
                    known = []
                parts.append(self._open(size))
            else:
                known.append(int(size))
        if known or not parts:
            parts.append(self.ints(known))
        return parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=0)

    def _open(self, size: Dim) -> str:
        """An open size as int64 (1,)."""
        if size not in self._sizes:
            self._sizes[size] = self._computed(size)
        return self._sizes[size]

    def _computed(self, size: Dim) -> str:
        if str(size) in self._symbols:
            name, axis = self._symbols[str(size)]
            return self.node("Shape", [name], start=axis, end=axis + 1)
        total: str | None = None
        for monomial, count in size.terms:
            factors = [self._atom(atom) for atom in monomial]
            if count != 1 or not factors:
                factors.append(self.ints([count]))
            term = factors[0]
            for factor in factors[1:]:
                term = self.node("Mul", [term, factor])
            total = term if total is None else self.node("Add", [total, term])
        assert total is not None
        return total

    def _atom(self, atom: tuple[Any, ...]) -> str:
        if atom[0] == "symbol":
            if atom[1] not in self._symbols:
                raise GraphError(
                    f"export: expected open sizes of inputs, got {atom[1]}, which no input has; give input_shape"
                )
            return self._open(Dim.symbol(atom[1]))
        _, inner, divisor = atom  # the canonical form leaves no negative number to divide
        top = self._open(inner) if isinstance(inner, Dim) else self.ints([inner])
        return self.node("Div", [top, self.ints([divisor])])

    def number_of(self, size: Size, dtype: str | None = None) -> str:
        """A size as a floating number that broadcasts."""
        if not isinstance(size, Dim):
            return self.number(float(size), dtype)
        scalar = self.node("Reshape", [self._open(size), self.ints([])])
        return self.cast(scalar, dtype or self.dtype)

    def reshape(self, name: str, source: Shape, shape: Shape) -> str:
        """A value of shape `source` under another shape; the value itself where it has it."""
        if tuple(source) == tuple(shape):
            return name
        if not shape:
            return self.node("Reshape", [name, self.ints([])])
        kept = [i < len(source) and source[i] == size for i, size in enumerate(shape)]
        plain = [0 if same and isinstance(n, Dim) else -1 if isinstance(n, Dim) else n for n, same in zip(shape, kept)]
        if plain.count(-1) <= 1:  # ONNX: 0 is the operand's own size there, -1 what is left
            return self.node("Reshape", [name, self.ints(plain)])
        return self.node("Reshape", [name, self.sizes(shape)])

    def expand(self, name: str, source: Shape, shape: Shape) -> str:
        """A value of shape `source` repeated to another; the value itself where it has that."""
        if tuple(source) == tuple(shape):
            return name
        lead = len(shape) - len(source)
        # 1 leaves what the operand has, so that only sizes that change have to be known
        wanted = [1 if i >= lead and source[i - lead] == size else size for i, size in enumerate(shape)]
        return self.node("Expand", [name, self.sizes(wanted)])

    def vector(self, tensor: Tensor, shape: Shape) -> str:
        """A tensor under another shape: what a reshape was made of, where that has it. Constants need no node, those of one number
        repeated may be of another size.
        """
        made = tensor.producer
        if made is not None and made.op.name == "reshape" and made.operands[0].shape == tuple(shape):
            tensor = made.operands[0]
        if isinstance(tensor.source, Constant):
            array, wanted = tensor.source.array, tuple(int(n) for n in shape)  # type: ignore[arg-type]
            alike = array.size > 0 and (array == array.flat[0]).all()
            return self.constant(np.full(wanted, array.flat[0], array.dtype) if alike else array.reshape(wanted))
        return self.reshape(self.value(tensor), tensor.shape, shape)

    def cast(self, name: str, dtype: str) -> str:
        """A value in another dtype."""
        return self.node("Cast", [name], to=ELEMENT_TYPES[dtype])

    def count(self, shape: Shape) -> Size:
        """The number of elements."""
        return product(shape)


#: onnx.TensorProto's numbers of the dtypes; they are part of the format.
ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int32": 6, "int64": 7, "bool": 9, "float64": 11}


def where(node: str, op: str) -> str:
    """What errors begin with."""
    return f"export: node {node!r} (op {op})" if node else f"export: op {op}"


def unwritable(step: Step, expected: str, received: Any, remedy: str) -> GraphError:
    """The error that names a step that has no counterpart. received: shown as it is, a shape as users see it."""
    shown = text(received) if isinstance(received, tuple) else received
    return GraphError(f"{where(step.node, step.op)}: expected {expected}, got {shown}: {remedy}")
