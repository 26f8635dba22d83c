"""Encoding: a plan becomes portable rows, which can be printed, verified, compared and bound to addresses.

A barrier stands after a row where a later row of the same stretch touches what an earlier one wrote (or writes what it read), unless
all of them cut their work alike, so that every worker meets only its own part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tapeprop.compiler.plan import ALIGNMENT, Place, Plan, Step
from tapeprop.errors import CompileError, DeviceError, GraphError
from tapeprop.ir.kernels import Kernel
from tapeprop.ops.op import ITEM_BYTES, Device, Launch, Ref

GROUP_LIMIT = 48  # rows without a barrier between them: keeps the search for conflicts linear in the tape


@dataclass(frozen=True)
class Extent:
    """The bytes that an operand or result occupies."""

    place: Place
    nbytes: int

    def meets(self, other: Extent) -> bool:
        """Whether the two share a byte."""
        a, b = self.place, other.place
        return a.buffer == b.buffer and a.offset < b.offset + other.nbytes and b.offset < a.offset + self.nbytes


@dataclass
class Row:
    """One portable row: what runs, on what, where.

    fields: the words from word 4 on; a Place stands for an address. reads, writes: the extents, in the order of operands and results.
    launch: what the op asked for.
    """

    step: Step
    launch: Launch
    fields: tuple[int | Place, ...]
    reads: tuple[Extent, ...]
    writes: tuple[Extent, ...]
    barrier: bool = False

    @property
    def kernel(self) -> Kernel | None:
        """The machine code; None where Python computes the row (`Op.in_python`)."""
        return self.launch.kernel

    @property
    def label(self) -> str:
        """What the row computes: the op's name, or a more telling one where the op gives it."""
        instruction = self.step.instruction
        return self.launch.label or str(instruction.attributes.get("label", instruction.op.name))

    @property
    def flops(self) -> int:
        """Floating point operations."""
        found = self.launch.flops
        return self.step.instruction.op.flops(self.step.call) if found is None else found

    @property
    def traffic(self) -> int:
        """Bytes that it must at least read and write."""
        found = self.launch.traffic
        return self.step.instruction.op.traffic(self.step.call) if found is None else found


@dataclass
class Tape:
    """The rows of a plan.

    spans: {name: (first row, one past the last)}. scratch_bytes: per worker, the most that a row wants. arena: name and bytes of the
    buffer that the plan shares out.
    """

    rows: list[Row]
    spans: dict[str, tuple[int, int]]
    scratch_bytes: int
    arena: str
    arena_bytes: int
    plan: Plan = field(repr=False)

    @property
    def kernels(self) -> list[Kernel]:
        """What the rows call, row by row; nothing for those of Python."""
        return [row.kernel for row in self.rows if row.kernel is not None]


def encode(plan: Plan, span_names: Iterable[str], arena: str = "arena", device: Device | None = None) -> Tape:
    """The portable rows of a plan: for the CPU, or for a device, where every row waits for the one before it.

    GraphError or DeviceError, naming the node, where an op refuses the concrete sizes or has no kernel.
    """
    rows: list[Row] = []
    spans = {name: [len(plan.steps), 0] for name in span_names}
    launches = [(step, row) for step in plan.steps if not step.instruction.op.alias for row in _launches(step, device)]
    scratch_bytes = max((_scratch_bytes(launched) for _, launched in launches), default=0)
    for step, launched in launches:
        instruction = step.instruction
        operands = [plan.places[t] for t in instruction.operands]
        results = [plan.places[t] for t in instruction.results]
        row = Row(
            step,
            launched,
            tuple(_field(item, operands, results, scratch_bytes) for item in launched.fields),
            tuple(Extent(p, t.nbytes) for p, t in zip(operands, step.call.operands, strict=True)),
            tuple(Extent(p, t.nbytes) for p, t in zip(results, step.call.results, strict=True)),
        )
        bounds = spans[step.span]
        bounds[0], bounds[1] = min(bounds[0], len(rows)), len(rows) + 1
        rows.append(row)
    if device is None:
        _set_barriers(rows, {last - 1 for first, last in spans.values() if last})
    found = {name: (first, last) if last else (0, 0) for name, (first, last) in spans.items()}
    return Tape(rows, found, scratch_bytes, arena, plan.arena_bytes, plan)


def _launches(step: Step, device: Device | None) -> Sequence[Launch]:
    op = step.instruction.op
    try:
        return op.cpu_rows(step.call) if device is None or op.in_python else op.cuda_rows(step.call, device)
    except CompileError:
        raise
    except (GraphError, DeviceError) as error:
        node = step.instruction.node
        if node and repr(node) not in str(error):
            raise type(error)(f"node {node!r}: {error}") from None
        raise


def _scratch_bytes(launched: Launch) -> int:
    if launched.scratch is None:
        return 0
    count, dtype = launched.scratch
    return -(-count * ITEM_BYTES[dtype] // ALIGNMENT) * ALIGNMENT


def _field(item: int | Ref, operands: list[Place], results: list[Place], scratch_bytes: int) -> int | Place:
    if not isinstance(item, Ref):
        return item
    if item.kind == "scratch":
        return Place("scratch", item.offset)
    if item.kind == "stride":
        return scratch_bytes // item.index
    place = (operands if item.kind == "operand" else results)[item.index]
    return Place(place.buffer, place.offset + item.offset) if item.offset else place


def _set_barriers(rows: list[Row], span_ends: set[int]) -> None:
    """A barrier before each row that conflicts with a row since the last barrier, and at the end of every span.

    A stretch of native rows that ends before one of Python ends by itself: no worker is left in it.
    """
    group: list[Row] = []
    for i, row in enumerate(rows):
        if row.kernel is None:
            row.barrier, group = False, []
            continue
        if len(group) >= GROUP_LIMIT or any(_conflict(earlier, row) for earlier in group):
            rows[i - 1].barrier = True
            group = []
        row.barrier = i in span_ends
        if row.barrier:
            group = []
        else:
            group.append(row)


def _conflict(earlier: Row, later: Row) -> bool:
    alike = earlier.launch.partition is not None and earlier.launch.partition == later.launch.partition
    for written, touched in (
        *((w, t) for w in earlier.writes for t in (*later.reads, *later.writes)),
        *((w, r) for w in later.writes for r in earlier.reads),
    ):
        # cut alike, two rows meet no one else's part, provided that what they share lies at one place in both
        if written.meets(touched) and not (alike and written == touched):
            return True
    return False
