"""Elementwise ops: one op whose attribute is the formula itself.

`add`, `tanh`, `gelu` ... are scalar expressions from `tapeprop.ops.formulas`; a derivative is another expression, a fused chain is a
composition of expressions, an optimizer's rule is one with several results. All of them are instructions of the op "elementwise",
computed by one kernel generator (`cpu.loop`, `cuda.loop`). Operands broadcast as in NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Instruction, Parameter, Shape, Tensor
from tapeprop.ir.dims import broadcast, text
from tapeprop.ir.kernels import Kernel
from tapeprop.ops import scalar
from tapeprop.ops.expression import cost, derivative, evaluate
from tapeprop.ops.formulas import FORMULAS, Formula
from tapeprop.ops.op import (
    ITEM_BYTES,
    NARROW,
    ArrayType,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    alike,
    as_tensor,
    cuda_launch,
    inverse,
    record,
    register,
)
from tapeprop.ops.scalar import Scalar, constant, encode, input_scalar, inputs_of, substitute

if TYPE_CHECKING:  # the functions below that come from the table of formulas

    def __getattr__(name: str) -> Callable[..., Tensor]: ...


Operand = Tensor | Parameter | np.ndarray | float | int
FLOATS = ("float32", "float64")
LANES = {"float32": 16, "float64": 8}


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
        return _launch(call)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_launch(call, device)

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
    return _record([slope], [operands[k] for k in used], label, call.attributes["dtype"])[0]


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


def _record(
    expressions: Sequence[Scalar], operands: Sequence[Any], label: str, dtype: str, formula: tuple | None = None
) -> tuple[Tensor, ...]:
    attributes = {"expressions": tuple(expressions), "label": label, "dtype": dtype, "formula": formula}
    return record("elementwise", operands, attributes)


# ---- recording


def compute(
    function: Callable[..., Scalar | Sequence[Scalar]],
    *operands: Operand,
    label: str = "formula",
    dtype: str | None = None,
    formula: tuple | None = None,
) -> tuple[Tensor, ...]:
    """The results of a function of scalars, applied to each element of the broadcast operands.

    function: takes one `tapeprop.ops.scalar.Scalar` per operand and gives one or several. Python numbers become constants of the
    expression. dtype: of the results; that of the operands by default. DTypeError, ShapeError.
    """
    tensors, slots = _split(operands)
    found = function(*(input_scalar(slot) if isinstance(slot, int) else constant(slot) for slot in slots))
    roots = [found] if isinstance(found, Scalar) else list(found)
    return _computed(roots, tensors, label, dtype, (*formula, slots) if formula else None)


def _split(operands: Sequence[Operand]) -> tuple[list[Tensor], tuple[int | float, ...]]:
    """(the operands that become tensors, for each operand its number among these, or the number that it is)."""
    tensors: list[Tensor] = []
    slots: list[int | float] = []
    for operand in operands:
        number = type(operand) is not Tensor and isinstance(operand, int | float | np.integer | np.floating)
        if number and (tensors or len(slots) + 1 < len(operands)):
            slots.append(float(operand))  # type: ignore[arg-type]  # mypy does not follow `number`
        else:
            slots.append(len(tensors))
            tensors.append(as_tensor(operand))
    return tensors, tuple(slots)


def _computed(
    roots: Sequence[Scalar], tensors: list[Tensor], label: str, dtype: str | None, formula: tuple | None
) -> tuple[Tensor, ...]:
    if dtype is None:
        tensors = alike(tensors, "fiub")  # an array of whole numbers computes as floats here
        dtype = _dtype(label, tensors)
    return _record(roots, tensors, label, dtype, formula)


def _dtype(label: str, tensors: Sequence[Tensor]) -> str:
    found = {x.dtype for x in tensors}
    if len(found) != 1 or not found <= set(FLOATS):
        raise DTypeError(
            f"{label}: expected operands of one floating dtype, got {', '.join(sorted(found))}; cast one of them"
        )
    return found.pop()


def apply(name: str, *operands: Operand, **attributes: Any) -> Tensor:
    """The formula `name` of the table on tensors; on Scalars, the expression: so an optimizer's rule can be written in ops."""
    formula = FORMULAS[name]
    known = formula.complete(attributes)
    if any(isinstance(operand, Scalar) for operand in operands):
        return formula.function(*operands, **known)  # type: ignore[return-value]
    tensors, slots = _split(operands)
    settings = tuple(sorted(known.items()))
    root = _root(name, settings, tuple([slot if type(slot) is int else slot.hex() for slot in slots]))  # type: ignore[union-attr]
    return _computed([root], tensors, name, None, (name, settings, slots))[0]


@functools.lru_cache(maxsize=4096)
def _root(name: str, settings: tuple[tuple[str, Any], ...], slots: tuple[int | str, ...]) -> Scalar:
    """The expression of a formula of the table; a slot is an input's number, or a constant as hexadecimal text."""
    scalars = [input_scalar(slot) if isinstance(slot, int) else constant(float.fromhex(slot)) for slot in slots]
    return FORMULAS[name].function(*scalars, **dict(settings))


#: Operands of one merge: each is read in one kernel, and each has a derivative of its own, as long as they are many.
MERGED_AT_ONCE = 16


def _merge(name: str, operands: Sequence[Operand]) -> Tensor:
    """A formula of any number of operands. Of many, they are taken a few at a time, or the extremes along an axis."""
    count = len(operands)
    if count <= MERGED_AT_ONCE or any(isinstance(operand, Scalar) for operand in operands):
        return apply(name, *operands)
    if name == "mean_of":
        return apply("divide", _merge("sum_of", operands), count)
    tensors = alike([as_tensor(operand) for operand in operands], "fiub")
    _dtype(name, tensors)
    if name in ("maximum", "minimum"):  # operands that tie share the gradient, which a tree of extremes would not do
        from tapeprop.ops.join import concat
        from tapeprop.ops.reduce import reduce
        from tapeprop.ops.shape import expand, reshape

        shape = together(name, tensors)
        return reduce(concat([reshape(expand(x, shape), (1, *shape)) for x in tensors], axis=0), name[:3], 0)
    found = tensors[0]
    for start in range(1, count, MERGED_AT_ONCE - 1):
        found = apply(name, found, *tensors[start : start + MERGED_AT_ONCE - 1])
    return found


def _public(formula: Formula) -> Callable[..., Tensor]:
    def function(*operands: Operand, **attributes: Any) -> Tensor:
        if formula.arity is None:
            formula.complete(attributes)  # none is known: an error
            if not operands:
                raise TypeError(f"{formula.name}() takes at least one operand")
            return as_tensor(operands[0]) if len(operands) == 1 else _merge(formula.name, operands)
        if not formula.arity <= len(operands) <= formula.arity + len(formula.attributes):
            raise TypeError(f"{formula.name}() takes {formula.arity} operands, got {len(operands)}")
        # attributes may come by position, in the table's order: leaky_relu(x, 0.1)
        extra = dict(zip(formula.attributes, operands[formula.arity :], strict=False))
        operands, attributes = operands[: formula.arity], {**extra, **attributes}
        return apply(formula.name, *operands, **attributes)

    function.__name__ = function.__qualname__ = formula.name
    function.__doc__ = f"{formula.doc}\n\nElement by element; operands broadcast as in NumPy."
    return function


_functions = {name: _public(formula) for name, formula in FORMULAS.items()}
globals().update(_functions)
add, sum_of = _functions["add"], _functions["sum_of"]


def _comparison(name: str, compare: Callable[[Scalar, Scalar], Scalar]) -> Callable[[Operand, Operand], Tensor]:
    def function(x: Operand, y: Operand) -> Tensor:
        if isinstance(x, Scalar) or isinstance(y, Scalar):
            return compare(x, y)
        return compute(lambda a, b: scalar.where(compare(a, b), 1.0, 0.0), x, y, label=name)[0]

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"1.0 where x is {name.replace('_', ' ')} y, else 0.0 (so for NaN). Its gradient is zero."
    return function


comparisons = {
    "less": _comparison("less", scalar.less),
    "less_equal": _comparison("less_equal", scalar.less_equal),
    "greater": _comparison("greater", lambda a, b: scalar.less(b, a)),
    "greater_equal": _comparison("greater_equal", lambda a, b: scalar.less_equal(b, a)),
    "equal": _comparison("equal", scalar.equal),
}
globals().update(comparisons)


def add_if_pending(gradient: Tensor, standing: Tensor, pending: Tensor) -> Tensor:
    """standing + gradient where pending is not 0, else gradient: how backward() treats a parameter's gradient buffer."""
    return compute(
        lambda g, s, p: scalar.where(scalar.equal(p, 0.0), g, s + g),
        gradient,
        standing,
        pending,
        label="add_if_pending",
    )[0]


__all__ = ["add_if_pending", "compute", *_functions, *comparisons]


# ---- the kernel launch


def _strides(shape: tuple[int, ...], target: tuple[int, ...]) -> list[int]:
    """Element strides of a contiguous operand as it is broadcast to `target`; 0 along broadcast axes."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step if size != 1 else 0)
        step *= size
    return [0] * (len(target) - len(shape)) + strides[::-1]


def collapse(shape: tuple[int, ...], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """(sizes, strides per operand) with axes of size 1 dropped and neighbours merged where every operand runs through them evenly."""
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        here = [s[axis] for s in strides]
        if sizes and all(m[-1] == h * size for m, h in zip(merged, here, strict=True)):
            sizes[-1] *= size
            for m, h in zip(merged, here, strict=True):
                m[-1] = h
        else:
            sizes.append(size)
            for m, h in zip(merged, here, strict=True):
                m.append(h)
    if not sizes:
        return [1], [[1 if i == len(strides) - 1 else 0] for i in range(len(strides))]
    return sizes, merged


def _layout(call: Call) -> tuple[list[int], list[list[int]]]:
    """(sizes, strides of each operand and result): the axes that are left when neighbours are merged."""
    shape = call.results[0].shape
    return collapse(shape, [_strides(a.shape, shape) for a in (*call.operands, *call.results)])


def _is_rounded(call: Call, array: ArrayType) -> bool:
    """Whether an operand or result is one float64 element beside other arithmetic. DTypeError where it is of another dtype."""
    if array.dtype == call["dtype"]:
        return False
    if array.dtype != "float64" or array.size != 1:
        raise DTypeError(f"{call['label']}: expected {call['dtype']} operands, got {array.dtype}; cast it")
    return True


def _launch(call: Call) -> Launch:
    dtype = call["dtype"]
    arrays = [*call.operands, *call.results]
    sizes, strides = _layout(call)
    classes = []
    for array, steps in zip(arrays, strides, strict=True):
        if _is_rounded(call, array):
            classes.append("scalar64")
        else:
            classes.append({0: "uniform", 1: "vector"}.get(steps[-1], "strided"))
    if len(sizes) == 1 and sizes[0] == 1:
        classes = ["scalar64" if c == "scalar64" else "vector" for c in classes]
    *outer, inner = sizes
    count = len(call.operands)
    kernel = Kernel.of(
        "tapeprop.ops.elementwise.cpu:loop",
        expressions=encode(call["expressions"]),
        inputs=count,
        outputs=len(call.results),
        dtype=dtype,
        classes=tuple(classes),
        outer=len(outer),
    )
    outer_count = 1
    for n in outer:
        outer_count *= n
    fields: list[int | Ref] = [inner, outer_count, *outer]
    for k, (kind, steps) in enumerate(zip(classes, strides, strict=True)):
        fields.append(Ref("operand", k) if k < count else Ref("result", k - count))
        fields += steps[:-1]
        if kind == "strided":
            fields.append(steps[-1])
    return Launch(kernel, tuple(fields), ("elementwise", *sizes, ITEM_BYTES[dtype]))


def _cuda_launch(call: Call, device: Device) -> Launch:
    sizes, strides = _layout(call)
    count = call.results[0].size
    classes = []
    for array, steps in zip(call.operands, strides):
        if _is_rounded(call, array):
            classes.append("single64")
        else:
            classes.append("".join("*" if step or count == 1 else "." for step in steps))
    grid, block = device.spread(count)
    arrays: list[tuple[Ref, tuple[int, ...]]] = [(Ref("operand", k), (a.size,)) for k, a in enumerate(call.operands)]
    arrays += [(Ref("result", j), (count,)) for j in range(len(call.results))]
    return cuda_launch(
        "tapeprop.ops.elementwise.cuda:loop",
        arrays,
        [count, *(word for n in sizes[1:] for word in (n, inverse(max(n, 1))))],
        grid=grid,
        block=block,
        expressions=encode(call["expressions"]),
        dtype=call["dtype"],
        classes=tuple(classes),
        axes=len(sizes),
        wide=len(sizes) > 1 and count >= NARROW,
    )


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
