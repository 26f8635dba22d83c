"""Reverse-mode differentiation, IR -> IR.

The policy, stated once: every tensor gathers the contributions of its uses, latest use first; they are summed left to right in that
order when its producer is reached, so the order is fixed by the program and by nothing else. A missing contribution is `None`
and means zero; zeros are never made. Results are values (`=`): adding to a gradient that stands already is the business of the
step protocol, in `runtime`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tapeprop.errors import GraphError
from tapeprop.ir import Instruction, Tensor, at_node, reachable
from tapeprop.ir.dims import text

FLOATS = ("float32", "float64")


def gradients(seeds: Mapping[Tensor, Tensor], wanted: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """The gradient of each wanted tensor that the seeds reach; those that they do not reach are left out.

    seeds: {tensor: gradient flowing into it, of its shape}. The instructions are recorded in the current trace, under the name
    of the node whose gradient they compute. Baur and Strassen 1983; Griewank and Walther 2008, section 3.2.
    """
    wanted = list(wanted)
    instructions = reachable(seeds)
    active = _depending_on(wanted, instructions)
    contributions: dict[Tensor, list[Tensor]] = {}
    for tensor, seed in seeds.items():
        contributions.setdefault(tensor, []).append(seed)
    for call in reversed(instructions):
        if not any(result in contributions for result in call.results):
            continue
        with at_node(call.node):
            flowing = [_total(contributions, result) if result in contributions else None for result in call.results]
            for result, value in zip(call.results, flowing, strict=True):
                if value is not None:
                    contributions[result] = [value]
            needed = [operand in active for operand in call.operands]
            if not any(needed):
                continue
            found = _vjp(call, flowing, needed)
        for operand, need, gradient in zip(call.operands, needed, found, strict=True):
            if need and gradient is not None:
                if gradient.shape != operand.shape:
                    raise GraphError(
                        f"op {call.op.name!r} (node {call.node!r}): its gradient rule gave shape {text(gradient.shape)} for an "
                        f"operand of shape {text(operand.shape)}; mend its vjp()"
                    )
                contributions.setdefault(operand, []).append(gradient)
    return {tensor: _total(contributions, tensor) for tensor in wanted if tensor in contributions}


def _vjp(call: Instruction, flowing: Sequence[Tensor | None], needed: Sequence[bool]) -> Sequence[Tensor | None]:
    """The op's own rule; an error of it is told with the node's name."""
    try:
        return call.op.vjp(call, flowing, needed)
    except GraphError as error:
        if call.node and repr(call.node) not in str(error):
            raise type(error)(f"node {call.node!r}: {error}") from None
        raise


def _total(contributions: Mapping[Tensor, list[Tensor]], tensor: Tensor) -> Tensor:
    parts = contributions[tensor]
    if len(parts) == 1:
        return parts[0]
    from tapeprop.ops.elementwise import sum_of

    return sum_of(*parts)


def _depending_on(wanted: Iterable[Tensor], instructions) -> set[Tensor]:
    """The floating tensors through which a gradient has to flow to reach a wanted one, the wanted among them."""
    active = set(wanted)
    for call in instructions:
        if any(operand in active for operand in call.operands):
            active.update(result for result in call.results if result.dtype in FLOATS)
    return active
