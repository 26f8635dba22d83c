"""Passes: pure functions Program -> Program. None moves work from one span to another.

`optimize` runs them in order; `check(name, program)` is called after each, which is how the tests compare every pass with the
oracle and learn which one broke.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from tapeprop.compiler.epilogue import fuse_epilogues
from tapeprop.compiler.fold import Storage, fold_affine
from tapeprop.compiler.fuse import fuse_elementwise
from tapeprop.compiler.layout import use_lanes
from tapeprop.compiler.winograd import use_winograd
from tapeprop.ir import Instruction, Program, Size, Span, Store, Tensor


@dataclass(frozen=True)
class Lanes:
    """How the layout pass is to be used: see `layout.use_lanes`. winograd: whether `use_winograd` follows it."""

    batch: Size
    lanes: int
    flexible: int = 0
    known: Mapping[Tensor, Tensor] = field(default_factory=dict)
    made: set[Tensor] = field(default_factory=set)
    winograd: bool = False


def optimize(
    program: Program,
    check: Callable[[str, Program], None] | None = None,
    lanes: Lanes | None = None,
    fuse: bool = True,
    storage: Storage | None = None,
) -> Program:
    """The program after every pass.

    lanes: None where the batch does not fill vectors, so that no layout is changed. fuse: False keeps every op an instruction.
    storage: where `fold_affine` keeps what it folds; None where it is not to run.
    """
    for run in PASSES:
        if run in FUSIONS and not fuse:
            continue
        if run is use_winograd and not (lanes and lanes.winograd):
            continue
        if run is fold_affine:
            program = program if storage is None else fold_affine(program, storage)
        elif run is not use_lanes:
            program = run(program)
        elif lanes is not None:
            program = use_lanes(
                program, lanes.batch, lanes.lanes, lanes.made, flexible=lanes.flexible, known=lanes.known
            )
        if check:
            check(run.__name__, program)
    return program


def remove_dead(program: Program) -> Program:
    """Drops instructions that no output and no store depends on."""
    live: set[Tensor] = set(program.outputs)
    spans = []
    for span in reversed(program.spans):
        live.update(store.value for store in span.stores)
        kept = []
        for instruction in reversed(span.instructions):
            if any(result in live for result in instruction.results):
                live.update(instruction.operands)
                kept.append(instruction)
        spans.append(Span(span.name, kept[::-1], list(span.stores)))
    return Program(spans[::-1], program.inputs, program.outputs, program.in_lanes)


def merge_equal(program: Program) -> Program:
    """Computes once what a span computes twice: the same op on the same operands with the same attributes.

    Every op is a pure function of its operands (random numbers come from a counter operand), so this is always right. A result
    of an earlier span is not reused: that would keep it alive across the spans between.
    """
    renamed: dict[Tensor, Tensor] = {}
    spans = []
    for span in program.spans:
        known: dict[Hashable, Instruction] = {}
        kept = []
        for instruction in span.instructions:
            instruction = substitute(instruction, renamed)
            key = (instruction.op, instruction.operands, tuple(sorted(instruction.attributes.items(), key=_first)))
            twin = known.setdefault(key, instruction)
            if twin is instruction:
                kept.append(instruction)
            else:
                renamed.update(zip(instruction.results, twin.results, strict=True))
        spans.append(Span(span.name, kept, [Store(renamed.get(s.value, s.value), s.target) for s in span.stores]))
    return Program(spans, program.inputs, [renamed.get(t, t) for t in program.outputs])


def _first(item: tuple) -> str:
    return item[0]


def substitute(instruction: Instruction, renamed: dict[Tensor, Tensor]) -> Instruction:
    """The instruction with operands replaced by `renamed`; itself where none is. It keeps its results."""
    if not any(operand in renamed for operand in instruction.operands):
        return instruction
    operands = [renamed.get(operand, operand) for operand in instruction.operands]
    return with_results(
        Instruction(instruction.op, operands, instruction.attributes, instruction.node), instruction.results
    )


def with_results(instruction: Instruction, results: Iterable[Tensor]) -> Instruction:
    """Gives the instruction result tensors that exist already (their `producer` stays the one that first made them)."""
    instruction.results = tuple(results)
    return instruction


def use_counts(program: Program) -> Counter[Tensor]:
    """How often each tensor is an operand, a stored value or an output."""
    counts: Counter[Tensor] = Counter(program.outputs)
    for span in program.spans:
        counts.update(store.value for store in span.stores)
        for instruction in span.instructions:
            counts.update(instruction.operands)
    return counts


FUSIONS = (fold_affine, fuse_epilogues, fuse_elementwise)
PASSES: list[Callable[..., Program]] = [
    remove_dead,
    fold_affine,
    merge_equal,
    use_lanes,
    use_winograd,
    fuse_epilogues,
    fuse_elementwise,
    remove_dead,
]
