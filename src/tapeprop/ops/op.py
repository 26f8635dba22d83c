"""What an op is, and how one is recorded.

ONE OP = ONE PLACE. A module under `tapeprop.ops` (or a user's own) holds a subclass of `Op` decorated with `@register`, and
the public function that records it. The op gives its shape rule, its gradient in terms of other ops, a NumPy reference
that is the oracle for ever, the launch of its CPU kernel, and samples from which the tests are generated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from tapeprop.errors import DeviceError, DTypeError, GraphError, ShapeError
from tapeprop.ir import Constant, Instruction, Parameter, Shape, Tensor, current
from tapeprop.ir.device import SIMULATED_DEVICE as SIMULATED_DEVICE
from tapeprop.ir.device import Device as Device
from tapeprop.ir.device import Tile as Tile
from tapeprop.ir.kernels import Kernel
from tapeprop.ops.scalar import Scalar

Attributes = Mapping[str, Any]
registry: dict[str, Op] = {}

FLOATS = ("float32", "float64")
#: Indices below it are divided by multiplication on a GPU: see `inverse`.
NARROW = 2**31
ITEM_BYTES = {"float32": 4, "float64": 8, "int64": 8, "int32": 4, "uint8": 1}

_failures: dict[int, tuple[str, str]] = {}


#: What the executor's shim reports for a kernel that raised, which none should.
RAISED = 0xFFFF
_failures[RAISED] = ("unknown", "the kernel raised an exception; this is a bug of the kernel")


def failure(code: int, kind: str, message: str) -> int:
    """Declares a code (1 to 65535, fixed for ever: it stands in compiled kernels) that kernels may report through the status word.

    kind: "label", "numerics" or "index", which chooses the error class; message: what the user reads. Gives the code.
    """
    if _failures.setdefault(code, (kind, message)) != (kind, message):
        raise GraphError(f"failure code {code} is taken: {_failures[code][1]!r}; choose another")
    return code


def failure_text(code: int) -> tuple[str, str]:
    """(kind, message) of a code."""
    return _failures.get(code, ("unknown", f"a kernel reported code {code}"))


@dataclass(frozen=True)
class ArrayType:
    """The concrete shape and dtype of an operand or result."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """The number of elements."""
        total = 1
        for n in self.shape:
            total *= n
        return total

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.size * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Call:
    """An instruction with every size known: what references and kernels are chosen by."""

    operands: tuple[ArrayType, ...]
    results: tuple[ArrayType, ...]
    attributes: Attributes

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name]


@dataclass(frozen=True)
class Ref:
    """A field of a row that becomes an address: that of an operand, of a result, or of the workers' scratch.

    "stride": the distance from one worker's scratch to the next, in elements of `index` bytes. It is one for a whole tape: were
    it each row's own, rows that run without a barrier between them would meet in each other's scratch.
    offset: bytes from the start of the operand or result.
    """

    kind: Literal["operand", "result", "scratch", "stride"]
    index: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Launch:
    """One row of the tape before places are known.

    kernel: the machine code to call; None where Python computes the row (`Op.in_python`). fields: the row's words from word 4 on, a
    Ref where an address belongs.
    partition: how the work is cut. None: one worker reads what another wrote, or wrote what another will read; equal keys on
    two rows: each worker touches only its own part of what both rows share, so no barrier is needed between them.
    scratch: (elements per worker, dtype), or None; on a GPU all threads share it. grid, block: of a launch on a GPU.
    label, flops, traffic: what this row does, where an instruction takes several; None: as the op says of the call.
    """

    kernel: Kernel | None
    fields: tuple[int | Ref, ...]
    partition: tuple | None = None
    scratch: tuple[int, str] | None = None
    label: str | None = None
    flops: int | None = None
    traffic: int | None = None
    grid: tuple[int, int, int] = (1, 1, 1)
    block: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True)
class Sample:
    """A case for the generated tests.

    operands: makes the operand arrays, floating ones in float64, from a seeded generator. attributes: as the op takes them.
    depth: the length of the longest sum behind one result element (the error bound grows with its square root).
    gradient: the operands whose gradient is checked; () for none.
    """

    operands: Callable[[np.random.Generator], Sequence[np.ndarray]]
    attributes: dict[str, Any] = field(default_factory=dict)
    depth: int = 1
    gradient: tuple[int, ...] = (0,)


class Op:
    """The description of an op. Subclasses fill in what is listed; `register` checks that nothing is missing."""

    name: ClassVar[str]
    #: (result, operand) pairs that may share memory: the kernel reads each element of the operand before it writes the result's.
    inplace: ClassVar[tuple[tuple[int, int], ...]] = ()
    #: Operands that are float64 whatever the dtype of the others: accumulators.
    fixed_float64: ClassVar[tuple[int, ...]] = ()
    #: Whether result 0 is operand 0's memory under another shape; such an op has no kernel.
    alias: ClassVar[bool] = False
    #: Whether Python computes it, by `reference`, between two stretches of native rows; such an op has no kernel.
    in_python: ClassVar[bool] = False
    #: Whether it exists for the vectors of a CPU alone: a layout, which no other target's programs use.
    cpu_only: ClassVar[bool] = False
    #: The ONNX operators that this op covers.
    onnx: ClassVar[tuple[str, ...]] = ()

    def infer(self, operands: Sequence[Tensor], attributes: Attributes) -> list[tuple[Shape, str]]:
        """(shape, dtype) of each result. ShapeError or DTypeError where the operands do not fit; shapes may be open."""
        raise NotImplementedError

    def vjp(
        self, call: Instruction, gradients: Sequence[Tensor | None], wanted: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """The gradient of each operand, given that of each result (None: zero). Need not fill those not wanted."""
        raise GraphError(f"{self.name} has no gradient; stop_gradient() its result, or write the formula in other ops")

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        """The results in plain NumPy. Slow and clear: the text a learner reads first, and the oracle."""
        raise NotImplementedError

    def cpu(self, call: Call) -> Launch:
        """The row that computes this call on a CPU."""
        raise NotImplementedError

    def cpu_rows(self, call: Call) -> Sequence[Launch]:
        """The rows that compute this call on a CPU, one after another; most ops take one."""
        return [self.cpu(call)]

    def cuda(self, call: Call, device: Device) -> Launch:
        """The launch that computes this call on a GPU."""
        raise DeviceError(
            f"{self.name}: has no CUDA kernel; give the op a method cuda(call, device), or build the graph with device='cpu'"
        )

    def cuda_rows(self, call: Call, device: Device) -> Sequence[Launch]:
        """The launches that compute this call on a GPU, one after another; most ops take one."""
        return [self.cuda(call, device)]

    def why_in_python(self, call: Instruction) -> str:
        """What Python has to do there, for an op that it computes: see `diagnose()`."""
        return ""

    def operands_for(self, call: Instruction, wanted: Sequence[bool]) -> Sequence[Tensor]:
        """The operands with which to compute the wanted results again, where nobody reads the others.

        An operand on which no wanted result depends may be replaced by any tensor of its shape and dtype among the others: so old
        state need not be kept. Each wanted result has a say of its own: what one depends on stays, whatever else is wanted.
        """
        return call.operands

    def inplace_pairs(self, call: Instruction) -> tuple[tuple[int, int], ...]:
        """(result, operand) pairs of this instruction that may share memory; the class's `inplace` by default."""
        return self.inplace

    def flops(self, call: Call) -> int:
        """Floating point operations of a call; a multiply-add counts as two."""
        return sum(result.size for result in call.results)

    def parts(self, call: Call) -> int | None:
        """How many workers can share a call, where that is few: 1 where one does it alone. None: as many as there are."""
        return None

    def traffic(self, call: Call) -> int:
        """Bytes that a call must at least read and write."""
        return 0 if self.alias else sum(a.nbytes for a in (*call.operands, *call.results))

    def samples(self) -> list[Sample]:
        """The cases of the generated tests; at least one."""
        raise NotImplementedError


def register(cls: type[Op]) -> type[Op]:
    """Class decorator: makes one instance of an op known under its name. GraphError where a part is missing or the name is taken."""
    required = ["infer", "reference", "samples"]
    missing = [part for part in required if getattr(cls, part) is getattr(Op, part)]
    if not cls.alias and cls.cpu is Op.cpu and cls.cpu_rows is Op.cpu_rows:
        missing.append("cpu")
    if missing or not getattr(cls, "name", ""):
        raise GraphError(f"op {cls.__name__}: missing {', '.join(missing or ['name'])}")
    known = registry.get(cls.name)
    if known is not None and (type(known).__module__, type(known).__qualname__) != (cls.__module__, cls.__qualname__):
        raise GraphError(f"op {cls.name!r} is registered by {type(known).__module__} already; choose another name")
    registry[cls.name] = cls()
    return cls


def as_tensor(value: Tensor | Parameter | np.ndarray | float | int) -> Tensor:
    """A tensor as it is, the leaf of a parameter, or a constant. DTypeError for what is none of these."""
    if isinstance(value, Tensor):
        if type(value.source) is Parameter and (trace := current()) is not None:
            return trace.parameter(value.source)  # a variable in a layer: one leaf in every trace
        return value
    trace = current()
    if isinstance(value, Parameter):
        if trace is None:
            raise GraphError(
                f"{value!r} is used outside a graph: put its layer into a LayerNode of a LayerGraph and call that; "
                "its array is parameter.value"
            )
        return trace.parameter(value)
    if isinstance(value, Scalar):
        raise DTypeError("expected a tensor, got a Scalar, which is one element: only elementwise ops take those")
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise DTypeError(f"expected a tensor, a parameter or real numbers, got {type(value).__name__} ({array.dtype})")
    if trace is not None:
        return trace.constant(array)
    return constant_tensor(
        array, {"f": "float32" if array.dtype == np.float32 else "float64"}.get(array.dtype.kind, "int64")
    )


def constant_tensor(array: np.ndarray, dtype: str) -> Tensor:
    """A leaf that holds a copy of `array` in `dtype`."""
    copy = array.astype(dtype)
    copy.setflags(write=False)
    return Tensor(copy.shape, dtype, source=Constant(copy), name="constant")


def alike(tensors: Sequence[Tensor], kinds: str = "f") -> list[Tensor]:
    """The tensors, constants among them cast to the one floating dtype of the others: numbers take the dtype around them.

    kinds: of NumPy dtypes that are cast; "f" leaves integers, which may be indices.
    """
    for tensor in tensors:
        if type(tensor.source) is Constant:
            break
    else:
        return list(tensors)  # as nearly always
    around = {t.dtype for t in tensors if t.dtype in FLOATS and not isinstance(t.source, Constant)}
    if len(around) != 1:
        return list(tensors)
    (dtype,) = around
    return [
        constant_tensor(t.source.array, dtype)
        if isinstance(t.source, Constant) and t.dtype != dtype and t.source.array.dtype.kind in kinds
        else t
        for t in tensors
    ]


def record(op: Op | str, operands: Sequence[Any], attributes: Attributes | None = None) -> tuple[Tensor, ...]:
    """Records an instruction and gives its results. An error of the shape rule is told with the node's name."""
    op = registry[op] if isinstance(op, str) else op
    attributes = dict(attributes or {})
    tensors = alike([as_tensor(operand) for operand in operands])
    trace = current()
    node = trace.node if trace else ""
    try:
        results = op.infer(tensors, attributes)
    except GraphError as error:
        if node and repr(node) not in str(error):
            raise type(error)(f"node {node!r}: {error}") from None
        raise
    instruction = Instruction(op, tensors, attributes, node)
    instruction.results = tuple(
        Tensor(shape, dtype, producer=instruction, index=i) for i, (shape, dtype) in enumerate(results)
    )
    return instruction.results


class Later(Op):
    """A call that depends on the trace, recorded outside of one: a replay makes it with `function` of the operands.

    attributes: function(*tensors) -> tensor; kind, the (shape, dtype) of the result; name, for errors.
    """

    name = "later"

    def infer(self, operands, attributes):
        return [attributes["kind"]]

    def vjp(self, call, gradients, wanted):
        raise GraphError(
            f"{call.attributes['name']}: has no gradient before it stands in a function: differentiate by "
            "tapeprop.function(...).value_and_grad, or call it inside a layer"
        )


LATER = Later()


def same_dtype(name: str, operands: Sequence[Tensor]) -> str:
    """The floating dtype that all operands share. DTypeError naming the op."""
    found = {operand.dtype for operand in operands}
    if len(found) != 1 or not found <= {"float32", "float64"}:
        raise DTypeError(
            f"{name}: expected operands of one floating dtype, got {', '.join(sorted(found))}; cast one of them"
        )
    return found.pop()


def check_rank(name: str, operand: Tensor, rank: int, what: str) -> None:
    """ShapeError unless `operand` has the rank; `what` names its axes: "(N, C, H, W)"."""
    if operand.ndim != rank:
        from tapeprop.ir.dims import text

        raise ShapeError(f"{name}: expected a tensor of rank {rank} {what}, got shape {text(operand.shape)}")


def launch(
    builder: str,
    call: Call,
    arrays: Sequence[tuple[Ref, tuple[int, ...]]],
    integers: Sequence[int] = (),
    *,
    partition: tuple | None = None,
    scratch: tuple[int, str] | None = None,
    **parameters: Any,
) -> Launch:
    """The launch of a `NumbaKernel`: each array as its address and sizes, then the integers.

    arrays: (ref, shape as the kernel's body sees it; () for a single element). Scratch is an array (workers, n) of which a body uses
    scratch[worker] and at most its own n elements. builder: "module:function"; parameters: its keyword arguments, literals only.
    """
    fields: list[int | Ref] = []
    for ref, shape in arrays:
        if ref.kind == "scratch":
            if scratch is None or len(shape) != 2:
                raise GraphError(f"{builder}: scratch has to be an array (workers, n), got shape {tuple(shape)}")
            count, dtype = scratch
            fields += [ref, shape[0], Ref("stride", count * ITEM_BYTES[dtype] // shape[1])]
            continue
        fields += [ref, *map(int, shape)]
    fields += [int(n) for n in integers]
    return Launch(Kernel.of(builder, **parameters), tuple(fields), partition, scratch)


def operand(index: int, call: Call) -> tuple[Ref, tuple[int, ...]]:
    """The `arrays` entry of an operand in its own shape."""
    return Ref("operand", index), call.operands[index].shape


def result(index: int, call: Call) -> tuple[Ref, tuple[int, ...]]:
    """The `arrays` entry of a result in its own shape."""
    return Ref("result", index), call.results[index].shape


def float_bits(value: float) -> int:
    """The int64 with the bits of a float64: how a float comes in a row of integers."""
    return int(np.float64(value).view(np.int64))


def inverse(size: int) -> int:
    """What `targets.cuda.language.divider` divides by `size` with: n // size = n * (it >> 6) >> (it & 63), 0 <= n < 2^31.

    Rounded up to 32 bits (Granlund and Montgomery, "Division by invariant integers using multiplication", 1994); 0 for a size
    above 2^31, by which only the wide form divides.
    """
    if size > NARROW:
        return 0
    shift = 31 + (size - 1).bit_length()
    return (((1 << shift) // size + 1) << 6) | shift


def cuda_launch(
    builder: str,
    arrays: Sequence[tuple[Ref, tuple[int, ...]]],
    integers: Sequence[int] = (),
    *,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    scratch: tuple[int, str] | None = None,
    label: str | None = None,
    flops: int | None = None,
    traffic: int | None = None,
    **parameters: Any,
) -> Launch:
    """The launch of a `CudaKernel` (`targets.cuda.kernel`): each array as its address and sizes, then the integers.

    arrays: (ref, shape as the kernel's body sees it; () for a single element). scratch: (elements, dtype) of the memory that
    Ref("scratch") names; what an earlier launch of the same call left there is found by the next. builder: "module:function";
    parameters: its keyword arguments, literals only.
    """
    fields: list[int | Ref] = []
    for ref, shape in arrays:
        fields += [ref, *map(int, shape)]
    fields += [int(n) for n in integers]
    kernel = Kernel.of(builder, **parameters)
    return Launch(
        kernel, tuple(fields), None, scratch, label=label, flops=flops, traffic=traffic, grid=grid, block=block
    )
