"""Fusion of elementwise instructions into chains: the composition of two expressions is an expression.

A producer joins its consumer where both run over the same elements, they stand in one span, and no other reader of the producer's
result comes before the consumer. The result of the producer is kept as a second result where someone else reads it as well, so nothing
is computed twice. Every primitive rounds as IEEE says and nothing is contracted: fused and unfused give the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tapeprop.ir import Instruction, Program, Span, Tensor
from tapeprop.ops.scalar import Scalar, input_scalar, ordered, substitute

MAX_OPERANDS = 12  # streams that a core's load ports and prefetchers follow without loss
MAX_RESULTS = 4
MAX_NODES = 160  # of the merged expressions: keeps compile time and register pressure in bounds, and fusion linear


def fuse_elementwise(program: Program) -> Program:
    """Merges elementwise producers into their consumers, span by span."""
    outside = used_outside(program)
    spans = []
    for span in program.spans:
        keep = outside[span.name] | {store.value for store in span.stores}
        spans.append(Span(span.name, _fuse_span(span.instructions, keep), span.stores))
    return Program(spans, program.inputs, program.outputs, program.in_lanes)


def used_outside(program: Program) -> dict[str, set[Tensor]]:
    """{span: tensors that outputs or other spans read}."""
    readers: dict[Tensor, set[str]] = {}
    for span in program.spans:
        for instruction in span.instructions:
            for operand in instruction.operands:
                readers.setdefault(operand, set()).add(span.name)
        for store in span.stores:
            readers.setdefault(store.value, set()).add(span.name)
    outputs = set(program.outputs)
    return {span.name: outputs | {t for t, names in readers.items() if names - {span.name}} for span in program.spans}


def readers_in(span: Span) -> dict[Tensor, list[Instruction]]:
    """{tensor: the instructions of the span that read it}, once for each operand."""
    readers: dict[Tensor, list[Instruction]] = {}
    for call in span.instructions:
        for operand in call.operands:
            readers.setdefault(operand, []).append(call)
    return readers


def _fuse_span(instructions: list[Instruction], keep: set[Tensor]) -> list[Instruction]:
    position = {instruction: i for i, instruction in enumerate(instructions)}
    producer = {result: call for call in instructions for result in call.results}
    uses: dict[Tensor, Counter[Instruction]] = {}
    for call in instructions:
        for operand in call.operands:
            uses.setdefault(operand, Counter())[call] += 1
    sizes = {call: _size(call) for call in instructions if call.op.name == "elementwise"}
    gone: set[Instruction] = set()
    result = list(instructions)
    for i, original in enumerate(instructions):
        call = original
        while call.op.name == "elementwise":
            merged = None
            for operand in call.operands:
                source = producer.get(operand)
                if source is not None and source not in gone and _may_join(source, call, uses, position, keep, sizes):
                    merged = _merge(source, call, uses, keep)
                    break
            if merged is None:
                break
            gone.add(source)  # type: ignore[arg-type]
            sizes[merged] = sizes[source] + sizes[call]  # type: ignore[index]
            _rename(uses, producer, position, source, call, merged)  # type: ignore[arg-type]
            call = merged
        result[i] = call
    return [call for call in result if call not in gone]


def _may_join(source: Instruction, call: Instruction, uses, position, keep: set[Tensor], sizes) -> bool:
    if source.op.name != "elementwise" or source.attributes["dtype"] != call.attributes["dtype"]:
        return False
    if source.results[0].shape != call.results[0].shape:
        return False
    here = position[call]
    for value in source.results:
        if any(position[reader] < here for reader in uses.get(value, ()) if reader is not call):
            return False
    operands = {*source.operands, *call.operands} - set(source.results)
    extra = sum(_read_elsewhere(value, call, uses, keep) for value in source.results)
    fits = len(operands) <= MAX_OPERANDS and extra + len(call.results) <= MAX_RESULTS
    return fits and sizes[source] + sizes[call] <= MAX_NODES


def _size(call: Instruction) -> int:
    return len(ordered(call.attributes["expressions"]))


def _read_elsewhere(value: Tensor, call: Instruction, uses, keep: set[Tensor]) -> bool:
    return value in keep or any(reader is not call for reader in uses.get(value, ()))


def _merge(source: Instruction, call: Instruction, uses, keep: set[Tensor]) -> Instruction:
    """`call` with `source` inside it. Results: those of `source` that others read, then those of `call`."""
    inner = dict(zip(source.results, source.attributes["expressions"], strict=True))
    operands: dict[Tensor, int] = {}

    def number(tensor: Tensor) -> int:
        return operands.setdefault(tensor, len(operands))

    inner_map: Mapping[int | Scalar, Scalar | float] = {
        k: input_scalar(number(t)) for k, t in enumerate(source.operands)
    }
    inner = {t: substitute(root, inner_map) for t, root in inner.items()}
    outer_map: Mapping[int | Scalar, Scalar | float] = {
        k: inner[t] if t in inner else input_scalar(number(t)) for k, t in enumerate(call.operands)
    }
    outer = [substitute(root, outer_map) for root in call.attributes["expressions"]]
    extra = [t for t in source.results if _read_elsewhere(t, call, uses, keep)]
    attributes = {
        "expressions": (*(inner[t] for t in extra), *outer),
        "label": f"{source.attributes['label']}+{call.attributes['label']}",
        "dtype": call.attributes["dtype"],
        "formula": None,
    }
    merged = Instruction(call.op, list(operands), attributes, call.node or source.node)
    merged.results = (*extra, *call.results)
    return merged


def _rename(uses, producer, position, source: Instruction, call: Instruction, merged: Instruction) -> None:
    """Lets the indices speak of `merged` where they spoke of `source` and `call`."""
    position[merged] = position[call]
    for old in (source, call):
        for operand in old.operands:
            uses[operand].pop(old, None)
    for operand in merged.operands:
        uses.setdefault(operand, Counter())[merged] += 1
    for value in merged.results:
        producer[value] = merged
