"""The Winograd pass: 3 x 3 convolutions of stride 1 in batch lanes by fewer products, where the user allows another kind of error.

Convolutions and their input gradients change; the weights' gradients stay direct sums. `ops.lanes.winograd` states the error.
"""

from __future__ import annotations

from tapeprop.ir import Instruction, Program, Span, Tensor, reachable
from tapeprop.ops.lanes import conv2d_winograd, winograd_filters

#: Channels in and out from which on the pass changes a convolution: with fewer, moving tiles to points and back takes what the
#: products save (16: 0.9 times as fast as summing directly, 32: 1.2 to 1.4, 64 and more: 1.5 to 1.9; AVX2).
CHANNELS = 32


def use_winograd(program: Program) -> Program:
    """The program with its large 3 x 3 convolutions in batch lanes as products of points."""
    spans = []
    for span in program.spans:
        points: dict[Tensor, Tensor] = {}
        calls: list[Instruction] = []
        for call in span.instructions:
            calls += _rewritten(call, points) if _gains(call) else [call]
        spans.append(Span(span.name, calls, list(span.stores)))
    return Program(spans, program.inputs, program.outputs, program.in_lanes)


def _gains(call: Instruction) -> bool:
    if call.op.name not in ("conv2d_lanes", "conv2d_lanes_input_grad"):
        return False
    outs, channels, *kernel = call.operands[1].shape
    at = call.attributes
    fits = tuple(kernel) == (3, 3) and at["stride"] == (1, 1) and all(n <= 2 for sides in at["padding"] for n in sides)
    return fits and all(isinstance(n, int) and n >= CHANNELS for n in (outs, channels))


def _rewritten(call: Instruction, points: dict[Tensor, Tensor]) -> list[Instruction]:
    """The instructions that take the call's place and make its result. points: of the filters that have been transformed."""
    x, w, *bias = call.operands
    given = [x, w, *bias]
    if w not in points:
        points[w] = winograd_filters(w)
    else:
        given.append(points[w])
    padding, turned = call.attributes["padding"], call.op.name == "conv2d_lanes_input_grad"
    if turned:  # what the filter reaches beyond an edge of dy, the padding of x does not
        padding = tuple((2 - before, 2 - after) for before, after in padding)
    y = conv2d_winograd(
        x, points[w], *bias, padding=padding, turned=turned, activation=call.attributes.get("activation")
    )
    made = reachable([y], given)
    for instruction in made:
        instruction.node = call.node
    made[-1].results = call.results
    return made
