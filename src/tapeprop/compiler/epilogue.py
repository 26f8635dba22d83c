"""Fusion of an activation into the op that makes its operand, where that op can apply it while the sums are still in registers.

The producer's own result must have no other reader: ReLU's gradient is taken from its output, so in training it has none.
"""

from __future__ import annotations

from tapeprop.compiler.fuse import readers_in, used_outside
from tapeprop.ir import Instruction, Program, Span, Tensor

#: Ops with an attribute `activation`, and the formulas that it may name.
EPILOGUES = {"conv2d_lanes": ("relu",), "conv2d_winograd": ("relu",)}


def fuse_epilogues(program: Program) -> Program:
    """A convolution in batch lanes followed by relu alone becomes one instruction."""
    outside = used_outside(program)
    spans = []
    for span in program.spans:
        keep = outside[span.name] | {store.value for store in span.stores}
        readers = readers_in(span)
        merged: dict[Instruction, Instruction | None] = {}
        for call in span.instructions:
            activation = _sole_activation(call, readers, keep)
            if activation is not None:
                attributes = {**call.attributes, "activation": activation.attributes["formula"][0]}
                fused = Instruction(call.op, call.operands, attributes, call.node)
                fused.results = activation.results
                merged[call], merged[activation] = fused, None
        calls = [merged.get(call, call) for call in span.instructions]
        spans.append(Span(span.name, [call for call in calls if call is not None], span.stores))
    return Program(spans, program.inputs, program.outputs, program.in_lanes)


def _sole_activation(
    call: Instruction, readers: dict[Tensor, list[Instruction]], keep: set[Tensor]
) -> Instruction | None:
    """The activation that is the one reader of the op's one result, if the op can apply it."""
    allowed = EPILOGUES.get(call.op.name)
    if allowed is None or call.attributes["activation"] is not None or call.results[0] in keep:
        return None
    found = readers.get(call.results[0], [])
    if len(found) != 1 or found[0].op.name != "elementwise":
        return None
    formula = found[0].attributes["formula"]
    return found[0] if formula and formula[0] in allowed and len(found[0].operands) == 1 else None
