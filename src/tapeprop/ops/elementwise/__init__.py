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

from tapeprop.errors import DTypeError
from tapeprop.ir import Parameter, Tensor
from tapeprop.ops import scalar
from tapeprop.ops.elementwise.spec import record_expressions, together
from tapeprop.ops.formulas import FORMULAS, Formula
from tapeprop.ops.op import alike, as_tensor
from tapeprop.ops.scalar import Scalar, constant, input_scalar

if TYPE_CHECKING:  # the functions below that come from the table of formulas

    def __getattr__(name: str) -> Callable[..., Tensor]: ...


Operand = Tensor | Parameter | np.ndarray | float | int
FLOATS = ("float32", "float64")


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
    return record_expressions(roots, tensors, label, dtype, formula)


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
