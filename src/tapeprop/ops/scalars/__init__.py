"""Many scalar operations as one instruction of a few rows: what a formula written out scalar by scalar becomes.

`block` holds the program and cuts it into vector instructions; `compiler.scalars` finds what belongs into one. The gradient of a block
is a block again, so gradients of gradients are too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Constant, Tensor
from tapeprop.ir.dims import text
from tapeprop.ir.kernels import Kernel
from tapeprop.ops.expression import cost, evaluate, to_text
from tapeprop.ops.formulas import FORMULAS
from tapeprop.ops.join import slice as cut
from tapeprop.ops.op import (
    ITEM_BYTES,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    cuda_launch,
    launch,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.scalar import Scalar, encode
from tapeprop.ops.scalars.block import Block, Column, Kind, Plan, Step, reverse

__all__ = ["Block", "Kind", "scalar_block"]


@register
class ScalarBlock(Op):
    """(a vector per entry of block.sizes, the literals, the table) -> (the block's outputs, its bank).

    attributes: block, a `Block`. The bank holds the result of every node, where `block.plan.position` says; it is there for the
    gradient. What else stands in it, steps of complicated kinds, has no gradient.
    """

    name = "scalar_block"

    def infer(self, operands, attributes):
        block: Block = attributes["block"]
        *vectors, literals, table = operands
        plan = block.plan
        shapes = [(n,) for n in (*block.sizes, plan.literals.size)]
        if [x.shape for x in (*vectors, literals)] != shapes or table.shape != plan.table.shape:
            raise ShapeError(
                f"scalar_block: expected vectors of shapes {', '.join(map(text, shapes))} and a table of "
                f"{text(plan.table.shape)}, got {', '.join(text(x.shape) for x in operands)}"
            )
        if table.dtype != "int32":
            raise DTypeError(f"scalar_block: expected a table of int32, got {table.dtype}")
        dtype = same_dtype(self.name, [*vectors, literals])
        return [((len(block.outputs),), dtype), ((plan.size,), dtype)]

    def vjp(self, call, gradients, wanted):
        block: Block = call.attributes["block"]
        count = len(block.sizes)
        found: list[Tensor | None] = [None] * len(call.operands)
        flowing = [g for g in gradients if g is not None]
        if not any(wanted[:count]) or not flowing:
            return found
        back = _reversed(block, tuple(wanted[:count]), (gradients[0] is not None, gradients[1] is not None))
        joined = scalar_block(back.block, [*call.operands[:count], call.results[1], *flowing])
        start = 0
        for k, length in zip([k for k in range(count) if wanted[k]], back.lengths, strict=True):
            found[k] = cut(joined, [start], [start + length])
            start += length
        return found

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        plan: Plan = call["block"].plan
        *vectors, table = arrays
        kind = vectors[0].dtype
        bank = np.zeros(plan.size, kind)

        def read(column: Column, size: int) -> np.ndarray:
            source = bank if column.space < 0 else vectors[column.space]
            if column.table is not None:
                return source[table[column.table : column.table + size]]
            return source[column.start + column.stride * np.arange(size)]

        for step in plan.steps:
            if step.root is None:
                terms = read(step.columns[0], step.terms * step.size).reshape(step.terms, step.size)
                value = functools.reduce(lambda a, b: a + b, terms)
            else:
                (value,) = evaluate([step.root], [read(column, step.size) for column in step.columns], kind)
            bank[step.start : step.start + step.size] = value
        return [read(plan.output, call.results[0].size), bank]

    def cpu_rows(self, call: Call) -> Sequence[Launch]:
        plan: Plan = call["block"].plan
        return [*(_row(call, step) for step in plan.steps), _output_row(call, plan)]

    def cuda_rows(self, call: Call, device: Device) -> Sequence[Launch]:
        plan: Plan = call["block"].plan
        return [*(_cuda_row(call, step, device) for step in plan.steps), _cuda_output_row(call, plan, device)]

    def flops(self, call: Call) -> int:
        return sum(_flops(step) for step in call["block"].plan.steps)

    def samples(self) -> list[Sample]:
        return [
            Sample(
                lambda r, b=block: [
                    *(r.uniform(0.5, 2.0, n) for n in b.sizes),
                    b.plan.literals.copy(),
                    b.plan.table.copy(),
                ],
                {"block": block},
                depth=8,
                gradient=tuple(range(len(block.sizes))),
            )
            for block in _samples()
        ]


def scalar_block(block: Block, vectors: Sequence[Any]) -> Tensor:
    """The outputs of a block as one vector. vectors: one for each of block.sizes, of one floating dtype. ShapeError, DTypeError."""
    dtype = same_dtype("scalar_block", vectors)
    plan = block.plan
    literals = _constant(plan.literals.astype(dtype))
    return record("scalar_block", [*vectors, literals, _constant(plan.table)], {"block": block})[0]


def _constant(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, str(array.dtype), source=Constant(array), name="constant")


@functools.lru_cache(maxsize=16)
def _reversed(block: Block, wanted: tuple[bool, ...], flows: tuple[bool, bool]):
    return reverse(block, wanted, flows)


# ---- rows


def _row(call: Call, step: Step) -> Launch:
    dtype = call.results[1].dtype
    item = ITEM_BYTES[dtype]
    if step.root is None:
        return _sum_row(call, step, dtype)
    classes, fields = [], [step.size, 1]
    words: list[int | Ref] = list(fields)
    for column in step.columns:
        kind, taken = _placed(call, column, step.size, item)
        classes.append(kind)
        words += taken
    words.append(Ref("result", 1, step.start * item))
    kernel = Kernel.of(
        "tapeprop.ops.elementwise.cpu:loop",
        expressions=encode([step.root]),
        inputs=len(step.columns),
        outputs=1,
        dtype=dtype,
        classes=(*classes, "vector"),
        outer=0,
    )
    return Launch(kernel, tuple(words), **_told(step, item))


def _told(step: Step, item: int) -> dict[str, Any]:
    """What listings show of a step."""
    if step.root is None:
        label, reads = f"sum of {step.terms}", step.terms
    else:
        label, reads = to_text(step.root), len(step.columns)
    traffic = (reads + 1) * step.size * item
    return {"label": f"scalars[{step.size}] {label}", "flops": _flops(step), "traffic": traffic}


def _told_of_output(call: Call) -> dict[str, Any]:
    kind = call.results[0]
    return {"label": f"scalars[{kind.size}] out", "flops": 0, "traffic": 2 * kind.nbytes}


def _placed(call: Call, column: Column, size: int, item: int) -> tuple[str, list[int | Ref]]:
    """(how an operand of a loop runs, its words)."""
    if column.table is not None:
        return "gathered", [_source(column, 0), _table(call, column)]
    base = _source(column, column.start * item)
    if column.stride == 1 or size == 1:
        return "vector", [base]
    return ("uniform", [base]) if column.stride == 0 else ("strided", [base, column.stride])


def _source(column: Column, offset: int) -> Ref:
    return Ref("result", 1, offset) if column.space < 0 else Ref("operand", column.space, offset)


def _length(call: Call, column: Column) -> int:
    return call.results[1].size if column.space < 0 else call.operands[column.space].size


def _table(call: Call, column: Column) -> Ref:
    """The positions of a column that has some."""
    return Ref("operand", len(call.operands) - 1, 4 * (column.table or 0))


def _sum_row(call: Call, step: Step, dtype: str) -> Launch:
    item, (column,) = ITEM_BYTES[dtype], step.columns
    made = launch(
        "tapeprop.ops.scalars.cpu:ordered_sums",
        call,
        [
            (Ref("result", 1, step.start * item), (step.size,)),
            (_source(column, 0), (_length(call, column),)),
            (_table(call, column), (step.terms, step.size)),
        ],
        dtype=dtype,
    )
    return Launch(made.kernel, made.fields, **_told(step, item))


def _output_row(call: Call, plan: Plan) -> Launch:
    """The outputs, copied out of the bank."""
    kind = call.results[0]
    how, words = _placed(call, plan.output, kind.size, ITEM_BYTES[kind.dtype])
    kernel = Kernel.of(
        "tapeprop.ops.elementwise.cpu:loop",
        expressions=encode([IDENTITY]),
        inputs=1,
        outputs=1,
        dtype=kind.dtype,
        classes=(how, "vector"),
        outer=0,
    )
    return Launch(kernel, (kind.size, 1, *words, Ref("result", 0)), **_told_of_output(call))


def _cuda_row(call: Call, step: Step, device: Device) -> Launch:
    dtype = call.results[1].dtype
    item = ITEM_BYTES[dtype]
    to = Ref("result", 1, step.start * item)
    if step.root is not None:
        return _cuda_loop(call, step.root, step.columns, to, step.size, device, **_told(step, item))
    (column,) = step.columns
    grid, block = device.spread(step.size)
    return cuda_launch(
        "tapeprop.ops.scalars.cuda:ordered_sums",
        [
            (to, (step.size,)),
            (_source(column, 0), (_length(call, column),)),
            (_table(call, column), (step.terms * step.size,)),
        ],
        [step.terms],
        grid=grid,
        block=block,
        dtype=dtype,
        **_told(step, item),
    )


def _cuda_output_row(call: Call, plan: Plan, device: Device) -> Launch:
    return _cuda_loop(
        call, IDENTITY, (plan.output,), Ref("result"), call.results[0].size, device, **_told_of_output(call)
    )


def _cuda_loop(
    call: Call, root: Scalar, columns: Sequence[Column], to: Ref, size: int, device: Device, **told: Any
) -> Launch:
    """The elementwise loop over columns. One that runs evenly is "strided" whatever its stride: so kernels are few."""
    arrays: list[tuple[Ref, tuple[int, ...]]] = []
    integers = [size]
    for column in columns:
        arrays.append((_source(column, 0), (_length(call, column),)))
        if column.table is not None:
            arrays.append((_table(call, column), (size,)))
        else:
            integers += [column.start, column.stride]
    grid, block = device.spread(size)
    return cuda_launch(
        "tapeprop.ops.elementwise.cuda:loop",
        [*arrays, (to, (size,))],
        integers,
        grid=grid,
        block=block,
        expressions=encode([root]),
        dtype=call.results[0].dtype,
        classes=tuple("strided" if column.table is None else "gathered" for column in columns),
        axes=1,
        wide=False,
        **told,
    )


def _flops(step: Step) -> int:
    if step.root is None:
        return (step.terms - 1) * step.size
    return cost([step.root]) * step.size


# ---- samples


IDENTITY = FORMULAS["add"].expression().args[0]


def _samples() -> list[Block]:
    def kind(name: str, count: int | None = None, **attributes: Any) -> Kind:
        formula = FORMULAS[name]
        count = formula.operands(count)
        known = tuple(sorted(formula.complete(attributes).items()))
        return Kind(formula.expression(count, **attributes), count, (name, known, tuple(range(count))))

    kinds = [kind(name) for name in ("multiply", "add", "tanh", "log", "divide")]
    # three dot products of four pairs, a function of each, and the mean of all by one of them
    products = [(0, (3 * j + i, 12 + i)) for j in range(3) for i in range(3)]
    sums: list[tuple[int, tuple[int, ...]]] = []
    first, ends = 15, []
    for j in range(3):
        total = first + 3 * j
        for i in range(1, 3):
            sums.append((1, (total, first + 3 * j + i)))
            total = first + len(products) + len(sums) - 1
        ends.append(total)
    nodes = [*products, *sums]
    last = first + len(nodes)
    nodes += [(2, (ends[0],)), (3, (ends[1],)), (4, (ends[2], ends[0]))]
    regular = Block([12, 3], kinds, nodes, [last, last + 1, last + 2, ends[0]])
    several = [kind("sum_of", 9), kind("product_of", 3), kind("leaky_relu", alpha=0.3), kind("leaky_relu", alpha=0.2)]
    nodes = [(0, tuple(range(9))), (1, (0, 0, 9)), (2, (10,)), (3, (9,)), (1, (13, 14, 11))]
    irregular = Block([9, 2], several, nodes, [15, 12])  # values 11 to 15; two literals side by side, a long sum
    return [regular, irregular]
