"""The op "elementwise": its shape rule, its gradient, which is another expression, and samples for each formula of the table."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Instruction, Shape, Tensor
from tapeprop.ir.dims import broadcast, text
from tapeprop.ops.elementwise.launches import cuda_loop_launch, loop_launch
from tapeprop.ops.expression import cost, derivative, evaluate
from tapeprop.ops.formulas import FORMULAS, Formula
from tapeprop.ops.op import Call, Device, Launch, Op, Sample, record, register
from tapeprop.ops.scalar import Scalar, input_scalar, inputs_of, substitute


@register
class Elementwise(Op):
    """results[k] = expressions[k](operands), element by element.

    attributes: expressions, a tuple of Scalars over inputs numbered as the operands; label, what the tape shows; dtype of the
    arithmetic and of the results; formula: None, or where the instruction is one of the table (name, attributes, slots), a slot
    being an operand's number or a constant. A float64 operand of one element beside float32 arithmetic is rounded once: a hyper-parameter.
    """

    name = "elementwise"
    onnx = tuple(formula.onnx for formula in FORMULAS.values() if formula.onnx)

    def infer(self, operands, attributes):
        return [(together(attributes["label"], operands), attributes["dtype"])] * len(attributes["expressions"])

    def inplace_pairs(self, call: Instruction):
        """A result may take the memory of any operand of its shape: each element is read before it is written."""
        shape, dtype = call.results[0].shape, call.attributes["dtype"]
        fitting = [k for k, x in enumerate(call.operands) if x.shape == shape and x.dtype == dtype]
        return tuple((j, k) for j in range(len(call.results)) for k in fitting)

    def vjp(self, call, gradients, wanted):
        found: list[Tensor | None] = []
        for i, (operand, want) in enumerate(zip(call.operands, wanted, strict=True)):
            parts = [
                part
                for j, g in enumerate(gradients)
                if want and g is not None
                for part in [_gradient(call, i, j, g)]
                if part is not None
            ]
            if not parts:
                found.append(None)
                continue
            from tapeprop.ops.elementwise import sum_of
            from tapeprop.ops.reduce import sum_to
            from tapeprop.ops.shape import cast

            found.append(cast(sum_to(sum_of(*parts), operand.shape), operand.dtype))
        return found

    def reference(self, call: Call, *arrays: np.ndarray):
        kind = np.dtype(call["dtype"])
        shape = call.results[0].shape
        values = evaluate(call["expressions"], [np.asarray(a).astype(kind) for a in arrays], kind)
        return [np.broadcast_to(np.asarray(v, dtype=kind), shape).copy() for v in values]

    def cpu(self, call: Call) -> Launch:
        return loop_launch(call)

    def cuda(self, call: Call, device: Device) -> Launch:
        return cuda_loop_launch(call, device)

    def flops(self, call: Call) -> int:
        return cost(call["expressions"]) * call.results[0].size

    def samples(self):
        return [sample for formula in FORMULAS.values() for sample in _samples(formula)]


def together(label: str, operands: Sequence[Tensor]) -> Shape:
    """The shape that the operands broadcast to. ShapeError where they do not."""
    try:
        return broadcast(*(x.shape for x in operands))
    except ValueError:
        shapes = " and ".join(text(x.shape) for x in operands)
        raise ShapeError(
            f"{label}: expected shapes that broadcast as in NumPy, got {shapes}; reshape one operand"
        ) from None


def _gradient(call: Instruction, i: int, j: int, g: Tensor) -> Tensor | None:
    """What result j sends to operand i: g * d expression_j / d input_i, of the results' shape; None where that is zero."""
    count = len(call.operands)
    found = slope_of(call.attributes["expressions"][j], call.attributes["formula"], i, count)
    if found is None:
        return None
    slope, used = found
    if slope is input_scalar(0) and used == (count + 1,):  # the gradient passes as it is
        return g
    operands = [*call.operands, call.results[j], g]
    label = f"{call.attributes['label']}'"
    return record_expressions([slope], [operands[k] for k in used], label, call.attributes["dtype"])[0]


@functools.lru_cache(maxsize=1024)  # deep networks repeat a few formulas
def slope_of(root: Scalar, formula: tuple | None, i: int, count: int) -> tuple[Scalar, tuple[int, ...]] | None:
    """(the gradient by input i as an expression, what its inputs are); None where it is zero.

    They are numbered among: the operands, 0 to count - 1; the result, count; the gradient that flows in, count + 1.
    """
    if i not in inputs_of([root]):
        return None
    output, flowing = input_scalar(count), input_scalar(count + 1)
    slope = _formula_slope(formula, i, root, output, flowing) if formula else derivative(root, i, flowing)
    if root.args:
        # the result stands for the forward expression where the derivative contains it: nothing is computed twice
        slope = substitute(slope, {root: output})
    used = inputs_of([slope])
    if not used:
        return None
    return substitute(slope, {old: input_scalar(new) for new, old in enumerate(used)}), used


def _formula_slope(formula: tuple, i: int, root: Scalar, output: Scalar, flowing: Scalar) -> Scalar:
    """`flowing` times the derivative of a formula of the table by operand i: through the output where that saves the operand."""
    name, attributes, slots = formula
    rule, count = FORMULAS[name], len(slots)
    through_output = rule.from_output(**dict(attributes))
    if through_output is not None:
        return substitute(through_output, {0: flowing, 1: output})
    places: dict[int | Scalar, Scalar | float] = {
        k: input_scalar(slot) if isinstance(slot, int) else slot for k, slot in enumerate(slots)
    }
    return substitute(rule.vjp(slots.index(i), count, **dict(attributes)), {**places, count: flowing})


def record_expressions(
    expressions: Sequence[Scalar], operands: Sequence[Any], label: str, dtype: str, formula: tuple | None = None
) -> tuple[Tensor, ...]:
    attributes = {"expressions": tuple(expressions), "label": label, "dtype": dtype, "formula": formula}
    return record("elementwise", operands, attributes)


# ---- samples for the generated tests


def _draw(formula: Formula, shapes: Sequence[tuple[int, ...]], random: np.random.Generator) -> list[np.ndarray]:
    """Operands from the formula's domain, none too near to a kink for a central difference."""
    count = len(shapes)
    domain = formula.domain if isinstance(formula.domain[0], tuple) else [formula.domain] * count
    while True:
        arrays = [random.uniform(low, high, shape) for (low, high), shape in zip(domain, shapes, strict=True)]
        if formula.kinks is None:
            return arrays
        near = formula.kinks(*np.broadcast_arrays(*arrays), distance=1e-4, **formula.attributes)
        if not np.any(near):
            return arrays


def _samples(formula: Formula) -> list[Sample]:
    count = formula.arity or 3
    shapes: list[list[tuple[int, ...]]] = [[(3, 17)] * count]
    if count > 1:
        shapes.append([(2, 3, 1, 5), (3, 4, 1), *[(1,)] * (count - 2)])
    attributes = tuple(sorted(formula.attributes.items()))
    return [
        Sample(
            lambda r, s=s: _draw(formula, s, r),
            {
                "expressions": (formula.expression(count),),
                "label": formula.name,
                "dtype": "float64",
                "formula": (formula.name, attributes, tuple(range(count))),
            },
            gradient=tuple(range(count)),
        )
        for s in shapes
    ]
