"""What an update rule is asked for, and whether its answer can be used: known before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.ir import Parameter, Tensor, Trace, recording
from tapeprop.ir.dims import text
from tapeprop.ops.scalar import Scalar, inputs
from tapeprop.ops.scalar.node import COMPARISONS
from tapeprop.runtime.state import cell

Expression = Scalar | Tensor

_WHOLE = (
    "sums, means, products of matrices and shapes need `elementwise = False` in the class: rule() then gets Tensors"
)


class UpdateRule(Protocol):
    """What `tapeprop.optimizers.Optimizer` gives: `rule` takes Scalars where `elementwise`, else whole parameters."""

    elementwise: bool
    slots: tuple[str, ...]

    def hyper(self) -> dict[str, float]: ...
    def slot_initial(self, name: str) -> float: ...
    def prepare(self, scalars: dict[str, Any]) -> dict[str, Any]: ...
    def rule(self, weight, gradient, slots: dict[str, Any], scalars: dict[str, Any]) -> tuple[Any, dict[str, Any]]: ...


def check_rule(rule: UpdateRule, parameters: Sequence[tuple[str, Parameter]]) -> None:
    """Asks a rule what it would do to (name, parameter) each, and changes nothing. GraphErrors name optimizer and parameter."""
    who = type(rule).__name__
    if isinstance(rule.slots, str) or len(set(rule.slots)) < len(rule.slots):
        raise GraphError(f"{who}.slots: expected a tuple of names that differ, such as ('mean',), got {rule.slots!r}")
    names = (*rule.hyper(), *prepared_scalars(rule))
    if rule.elementwise:
        weight, gradient, *rest = inputs(2 + len(rule.slots) + len(names))
        new_values(rule, weight, gradient, rest[: len(rule.slots)], dict(zip(names, rest[len(rule.slots) :])))
        return
    seen: set[tuple] = set()
    for name, parameter in parameters:
        kind = parameter.shape, str(cell(parameter).dtype)
        if kind in seen:
            continue
        seen.add(kind)
        with recording(Trace(kind[1], True)):
            tensors = [Tensor(*kind) for _ in range(2 + len(rule.slots))]
            new_values(rule, tensors[0], tensors[1], tensors[2:], {n: Tensor((), kind[1]) for n in names}, name)


def prepared_scalars(rule: UpdateRule) -> dict[str, Scalar]:
    """What `prepare` makes of the scalars of `hyper`, the inputs 0, 1, ... of its expressions."""
    names = tuple(rule.hyper())
    who = f"{type(rule).__name__}.prepare()"
    found = rule.prepare(dict(zip(names, inputs(len(names)), strict=True)))
    if not isinstance(found, Mapping):
        raise GraphError(f"{who}: expected {{name: scalar}}, got {_described(found)}")
    for name, value in found.items():
        _check_scalar(f"{who}: {name!r}", value)
    return dict(found)


def new_values(
    rule: UpdateRule,
    weight: Expression,
    gradient: Expression,
    slots: Sequence[Expression],
    scalars: Mapping[str, Expression],
    name: str = "",
) -> list[Any]:
    """The new weight and then each slot's new value, in the order of `rule.slots`: Scalars, or Tensors of the weight's shape.

    name: of the parameter, for errors. GraphError, ShapeError, DTypeError for an answer that cannot be stored.
    """
    who = f"{type(rule).__name__}.rule()" + (f" for {name!r}" if name else "")
    found = _ask(rule, who, weight, gradient, dict(zip(rule.slots, slots, strict=True)), dict(scalars))
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Mapping)):
        raise GraphError(f"{who}: expected (the new weight, {{slot: its new value}}), got {_described(found)}")
    new, states = found
    if set(states) != set(rule.slots):
        raise GraphError(
            f"{who}: expected new values of the slots {', '.join(rule.slots) or '(none)'}, got {_named(states)}; "
            f"list what it keeps in `slots` of the class"
        )
    values = [new, *(states[slot] for slot in rule.slots)]
    for what, value in zip(("the new weight", *(f"slot {slot!r}" for slot in rule.slots)), values, strict=True):
        if isinstance(weight, Tensor):
            _check_tensor(f"{who}: {what}", value, weight)
        else:
            _check_scalar(f"{who}: {what}", value)
    return values


def _ask(rule: UpdateRule, who: str, *arguments: Any) -> Any:
    try:
        return rule.rule(*arguments)
    except GraphError as error:
        more = f"; {_WHOLE}" if rule.elementwise else ""
        raise type(error)(f"{who}: {error}{more}") from error
    except Exception as error:
        error.add_note(f"in {who}, where an update is recorded" + (f"; {_WHOLE}" if rule.elementwise else ""))
        raise


def _check_scalar(what: str, value: Any) -> None:
    if not isinstance(value, Scalar):
        _refuse(what, "a Scalar, made of those it was given", value)
    if value.op in COMPARISONS:
        raise GraphError(f"{what}: expected a number, got a condition; choose with ops.where(condition, a, b)")


def _check_tensor(what: str, value: Any, weight: Tensor) -> None:
    if not isinstance(value, Tensor):
        _refuse(what, "a Tensor, made of those it was given", value)
    if value.shape != weight.shape:
        raise ShapeError(f"{what}: expected the parameter's shape {text(weight.shape)}, got {text(value.shape)}")
    if value.dtype != weight.dtype:
        raise DTypeError(f"{what}: expected the parameter's dtype {weight.dtype}, got {value.dtype}; cast it back")


def _refuse(what: str, expected: str, value: Any) -> NoReturn:
    raise GraphError(f"{what}: expected {expected}, got {_described(value)}")


def _described(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else "None" if value is None else type(value).__name__


def _named(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"
