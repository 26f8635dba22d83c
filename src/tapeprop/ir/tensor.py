"""The intermediate representation: `Tensor`s (SSA values) made by `Instruction`s, and the `Program` that holds them.

A tensor without a producer is a leaf and has a `source`, which says where its numbers come from: an input of the call,
a parameter, a gradient, a constant, or a region of storage that the runtime names.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tapeprop.ir.dims import Shape, text
from tapeprop.ir.parameter import Parameter

_serial = itertools.count()


def mark() -> int:
    """A serial number between those of what was recorded before and after."""
    return next(_serial)


@dataclass(frozen=True)
class Input:
    """The `index`-th array that a caller feeds."""

    index: int
    name: str = "input"


@dataclass(frozen=True)
class Gradient:
    """The gradient buffer of a parameter."""

    parameter: Parameter


@dataclass(frozen=True, eq=False)
class Constant:
    """An array known when the program is made; never written."""

    array: np.ndarray


@dataclass(frozen=True)
class Region:
    """A stretch of storage that the runtime keeps: `size` elements from element `start` of `array`."""

    array: Any
    start: int
    size: int


@dataclass(frozen=True, eq=False)
class Placeholder:
    """What callers of a formula feed; a replay puts an `Input` in its place."""

    name: str


Source = Input | Parameter | Gradient | Constant | Region | Placeholder


class Tensor:
    """A symbolic array: the result of an instruction, or a leaf.

    shape: ints and `Dim`s; dtype: "float32", "float64", "int64" or "int32". Arithmetic operators and NumPy's broadcasting
    work as on arrays and record instructions (`tapeprop.ops` installs them).
    """

    __slots__ = ("__weakref__", "dtype", "index", "name", "producer", "serial", "shape", "source")
    __array_priority__ = 1000.0
    __array_ufunc__ = None  # array * tensor goes to Tensor.__rmul__

    def __init__(
        self,
        shape: Shape,
        dtype: str,
        *,
        producer: Instruction | None = None,
        index: int = 0,
        source: Source | None = None,
        name: str | None = None,
    ):
        self.shape = tuple(shape)
        self.dtype = dtype
        self.producer = producer
        self.index = index
        self.source = source
        self.name = name
        self.serial = next(_serial)

    if TYPE_CHECKING:  # installed by tapeprop.ops, which stands above this module

        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __getitem__(self, key: Any) -> Tensor: ...

    @property
    def ndim(self) -> int:
        """The rank."""
        return len(self.shape)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"the truth of {self!r} is not known before it is computed; choose with ops.where(condition, a, b)"
        )

    def __repr__(self) -> str:
        origin = self.producer.op.name if self.producer else type(self.source).__name__.lower()
        return f"Tensor({self.name or origin}, {text(self.shape)}, {self.dtype})"


class Instruction:
    """One application of an op.

    op: a `tapeprop.ops.op.Op`. operands, results: tensors. attributes: {name: int, float, str, bool, None, Dim, tuple of such, Scalar}.
    node: the name of the graph node it belongs to, or "".
    """

    __slots__ = ("attributes", "node", "op", "operands", "results", "serial")

    def __init__(self, op: Any, operands: Sequence[Tensor], attributes: Mapping[str, Any], node: str = ""):
        self.op = op
        self.operands = tuple(operands)
        self.attributes = dict(attributes)
        self.node = node
        self.serial = next(_serial)
        self.results: tuple[Tensor, ...] = ()

    def __repr__(self) -> str:
        return f"Instruction({self.op.name}, node={self.node!r})"


@dataclass(frozen=True)
class Store:
    """A state effect: when its span has run, `target` (a leaf with storage) holds `value`."""

    value: Tensor
    target: Tensor


@dataclass
class Span:
    """Instructions that run one after another, in order, and the state effects they end with. Passes never move work between spans."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)


@dataclass
class Program:
    """Spans in the order in which they run, the tensors a caller feeds, and those a caller reads afterwards.

    in_lanes: {output in the batch-lane layout: the plain tensor it stands for}; see `compiler.layout`.
    """

    spans: list[Span]
    inputs: list[Tensor]
    outputs: list[Tensor]
    in_lanes: dict[Tensor, Tensor] = field(default_factory=dict)

    @property
    def instructions(self) -> list[Instruction]:
        """All instructions in order."""
        return [instruction for span in self.spans for instruction in span.instructions]

    def span(self, name: str) -> Span:
        """The span called `name`; KeyError where there is none."""
        for span in self.spans:
            if span.name == name:
                return span
        raise KeyError(name)


def reachable(roots: Iterable[Tensor], known: Iterable[Tensor] = ()) -> list[Instruction]:
    """The instructions that `roots` depend on, in the order in which they were recorded, stopping at `known` tensors."""
    done: set[Instruction] = set()
    stop, stack = set(known), list(roots)
    while stack:
        tensor = stack.pop()
        producer = tensor.producer
        if producer is not None and tensor not in stop and producer not in done:
            done.add(producer)
            stack.extend(producer.operands)
    return sorted(done, key=lambda instruction: instruction.serial)
