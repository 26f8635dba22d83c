"""The memory planner: gives every tensor of a program a place, so that values whose lifetimes do not meet share memory.

Steps: follow aliases (a reshape is its operand's memory); decide which state effects are computed straight into their target;
find lifetimes; hand out offsets of one arena in program order, best fit first, freed blocks merged. `share=False` is the off
switch: every value gets memory of its own. Planned and unplanned runs give the same bits (a test).
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tapeprop.compiler.interpret import Types
from tapeprop.ir import Instruction, Program, Store, Tensor
from tapeprop.ops.op import ArrayType, Call, registry

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True)
class Place:
    """A stretch of a buffer: its name and an offset in bytes."""

    buffer: str
    offset: int


@dataclass
class Step:
    """An instruction with its concrete call and its span."""

    instruction: Instruction
    call: Call
    span: str


@dataclass
class Plan:
    """Where everything lies.

    steps: in order, copies for state effects included. places: {tensor: Place}. types: {tensor: ArrayType}.
    arena_bytes: the size of the arena; unshared_bytes: what it would be without sharing. lifetimes: {arena tensor: (first, last)}.
    """

    steps: list[Step]
    places: dict[Tensor, Place]
    types: dict[Tensor, ArrayType]
    arena_bytes: int = 0
    unshared_bytes: int = 0
    lifetimes: dict[Tensor, tuple[int, int]] = field(default_factory=dict)


def plan(
    program: Program,
    sizes: Mapping[str, int],
    locate: Callable[[Tensor], Place],
    *,
    retain: Iterable[Tensor] = (),
    arena: str = "arena",
    share: bool = True,
) -> Plan:
    """Places for every tensor of `program`.

    sizes: {symbol: int}. locate: the place of a leaf (its storage). retain: tensors that stay readable to the end; the program's
    outputs always do. arena: the name of the buffer that the rest shares.
    """
    types = Types(sizes)
    steps, direct = _steps(program, types)
    roots = _alias_roots(steps)
    last = _last_uses(steps, roots)
    for tensor in (*program.outputs, *retain):
        last[roots.get(tensor, tensor)] = len(steps)
    result = Plan(steps, {}, types)
    allocator = _Allocator()
    ending: dict[int, list[tuple[int, int]]] = {}  # step -> (offset, bytes) to free after it
    held: dict[Tensor, tuple[int, int]] = {}  # arena tensors whose memory may be handed on: offset, bytes

    def place(tensor: Tensor) -> Place:
        root = roots.get(tensor, tensor)
        found = result.places.get(root)
        if found is None:
            found = result.places[root] = locate(root)
        result.places[tensor] = found
        return found

    for i, step in enumerate(steps):
        for operand in step.instruction.operands:
            place(operand)
        if step.instruction.op.alias:
            place(step.instruction.results[0])
            continue
        inherited = _inherit(step, i, roots, last, held) if share else {}
        for j, tensor in enumerate(step.instruction.results):
            nbytes = -(-max(types[tensor].nbytes, 1) // ALIGNMENT) * ALIGNMENT
            end = last.get(tensor, i)
            if tensor in direct:
                result.places[tensor] = place(direct[tensor])
                continue
            result.unshared_bytes += nbytes
            if j in inherited:
                offset, nbytes = held.pop(inherited[j])
                old_end = last[inherited[j]]
                ending[old_end].remove((offset, nbytes))
            else:
                offset = allocator.take(nbytes)
            result.places[tensor] = Place(arena, offset)
            result.lifetimes[tensor] = (i, end)
            held[tensor] = (offset, nbytes)
            if share:
                ending.setdefault(end, []).append((offset, nbytes))
        for offset, nbytes in ending.pop(i, ()):
            allocator.give(offset, nbytes)
    for tensor in program.outputs:
        types.of(tensor)
        place(tensor)
    result.arena_bytes = allocator.peak
    return result


def _steps(program: Program, types: Types) -> tuple[list[Step], dict[Tensor, Tensor]]:
    """(the steps with a copy for every state effect that needs one, {value: target leaf} of those computed in place)."""
    steps: list[Step] = []
    direct: dict[Tensor, Tensor] = {}
    later_use = _uses_in_later_spans(program)
    outputs = set(program.outputs)
    for span in program.spans:
        stores = list({store.target: store for store in span.stores}.values())  # the last store to a target counts
        times = Counter(store.value for store in stores)
        uses = _Uses(span.instructions)
        for store in stores:
            if (
                times[store.value] == 1
                and store.value not in later_use[span.name]
                and store.value not in outputs
                and _writes_in_place(store, uses)
            ):
                direct[store.value] = store.target
        steps += [Step(call, types.call(call), span.name) for call in span.instructions]
        for store in stores:
            if store.value not in direct and store.value is not store.target:
                copy = Instruction(registry["copy"], [store.value], {}, "")
                result = Tensor(store.target.shape, store.target.dtype, producer=copy)
                copy.results = (result,)
                direct[result] = store.target
                steps.append(Step(copy, types.call(copy), span.name))
    return steps, direct


def _uses_in_later_spans(program: Program) -> dict[str, set[Tensor]]:
    found: dict[str, set[Tensor]] = {}
    seen: set[Tensor] = set()
    for span in reversed(program.spans):
        found[span.name] = set(seen)
        for instruction in span.instructions:
            seen.update(instruction.operands)
        seen.update(store.value for store in span.stores)
    return found


class _Uses:
    """Where the tensors of a span are made and read, by position: made[result], last[operand], aliased[operand] (the first)."""

    def __init__(self, instructions: list[Instruction]):
        self.made: dict[Tensor, tuple[int, Instruction]] = {}
        self.last: dict[Tensor, int] = {}
        self.aliased: dict[Tensor, int] = {}
        for i, call in enumerate(instructions):
            self.made.update(dict.fromkeys(call.results, (i, call)))
            self.last.update(dict.fromkeys(call.operands, i))
            if call.op.alias:
                for operand in call.operands:
                    self.aliased.setdefault(operand, i)


def _writes_in_place(store: Store, uses: _Uses) -> bool:
    """Whether the value may be computed straight into the target: nobody reads the target's old value after (or while) it is written."""
    position, producer = uses.made.get(store.value, (-1, None))
    if producer is None or producer.op.alias:
        return False
    if uses.last.get(store.target, -1) > position:
        return False
    if uses.aliased.get(store.target, position) < position:
        return False  # the old value may be read later under another shape
    if store.value.shape != store.target.shape or store.value.dtype != store.target.dtype:
        return False
    j = producer.results.index(store.value)
    return all(
        (j, k) in producer.op.inplace_pairs(producer)
        for k, operand in enumerate(producer.operands)
        if operand is store.target
    )


def _alias_roots(steps: list[Step]) -> dict[Tensor, Tensor]:
    roots: dict[Tensor, Tensor] = {}
    for step in steps:
        if step.instruction.op.alias:
            operand = step.instruction.operands[0]
            roots[step.instruction.results[0]] = roots.get(operand, operand)
    return roots


def _last_uses(steps: list[Step], roots: Mapping[Tensor, Tensor]) -> dict[Tensor, int]:
    last: dict[Tensor, int] = {}
    for i, step in enumerate(steps):
        for operand in step.instruction.operands:
            last[roots.get(operand, operand)] = i
    return last


def _inherit(step: Step, i: int, roots, last, held) -> dict[int, Tensor]:
    """{result index: tensor whose memory it takes over}: an operand that dies here, of the same size, that the op may overwrite."""
    taken: dict[int, Tensor] = {}
    for j, k in step.instruction.op.inplace_pairs(step.instruction):
        operand = step.instruction.operands[k]
        root = roots.get(operand, operand)
        if (
            j not in taken
            and root in held
            and root not in taken.values()
            and last.get(root) == i
            and step.call.operands[k].nbytes == step.call.results[j].nbytes
            # another operand that shares the memory would be overwritten while it is still read
            and sum(roots.get(o, o) is root for o in step.instruction.operands) == 1
        ):
            taken[j] = root
    return taken


class _Allocator:
    """Offsets of an arena of unbounded size: best fit among freed blocks, which merge with their neighbours."""

    def __init__(self) -> None:
        self.peak = 0
        self.top = 0  # everything from here on is free
        self.starts: list[int] = []  # free blocks below `top`, by offset
        self.sizes: dict[int, int] = {}

    def take(self, nbytes: int) -> int:
        fitting = [start for start in self.starts if self.sizes[start] >= nbytes]
        if fitting:
            start = min(fitting, key=lambda s: (self.sizes[s], s))
            rest = self.sizes.pop(start) - nbytes
            self.starts.remove(start)
            if rest:
                self._insert(start + nbytes, rest)
            return start
        start = self.top
        if self.starts and self.starts[-1] + self.sizes[self.starts[-1]] == self.top:  # grow the last free block
            start = self.starts.pop()
            del self.sizes[start]
        self.top = start + nbytes
        self.peak = max(self.peak, self.top)
        return start

    def give(self, start: int, nbytes: int) -> None:
        i = bisect.bisect(self.starts, start)
        if i < len(self.starts) and start + nbytes == self.starts[i]:
            nbytes += self.sizes.pop(self.starts.pop(i))
        if i and self.starts[i - 1] + self.sizes[self.starts[i - 1]] == start:
            i -= 1
            previous = self.starts.pop(i)
            start, nbytes = previous, nbytes + self.sizes.pop(previous)
        if start + nbytes == self.top:
            self.top = start
        else:
            self._insert(start, nbytes)

    def _insert(self, start: int, nbytes: int) -> None:
        bisect.insort(self.starts, start)
        self.sizes[start] = nbytes
