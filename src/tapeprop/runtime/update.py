"""Optimizers on the tape: which parameters advance together, their state, and the instructions of one update.

An optimizer is an update rule (`UpdateRule`). A `Unit` is a set of parameters that one optimizer has always advanced together, so
that they share a step count; when a loss reaches only some of them the unit splits. An elementwise rule runs over flat
stretches of the segments: neighbours in storage are one instruction. Others run over each parameter as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tapeprop.errors import StateError
from tapeprop.ir import Parameter, Region, Store, Tensor, Trace, recording
from tapeprop.ops.elementwise import compute
from tapeprop.ops.reduce import square_sum
from tapeprop.ops.scalar import minimum, sqrt
from tapeprop.ops.shape import copy, reshape
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.state import Segment, cell, runs
from tapeprop.runtime.update_rules import UpdateRule, new_values, prepared_scalars


class Unit:
    """Parameters that advance together under one rule. scalars: the rule's float64 state, by name in the order of `names`."""

    def __init__(self, rule: UpdateRule, parameters: Iterable[Parameter], scalars: np.ndarray | None = None):
        self.rule = rule
        self.parameters = list(parameters)
        initial = rule.hyper()
        self.names = tuple(initial)
        self.scalars = Buffer("hyper.", len(initial), "float64", "optimizer")
        self.scalars.array[:] = list(initial.values()) if scalars is None else scalars

    def scalar(self, name: str) -> float:
        """The current value of a hyper-parameter or counter."""
        return float(self.scalars.read()[self.names.index(name)])

    def set_scalar(self, name: str, value: float) -> None:
        """Sets it; the tape sees it at once."""
        self.scalars.array[self.names.index(name)] = value


class OptimizerState:
    """The units of a graph and the slots of its parameters; kept through rebuilds. `version` advances when units change."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.version = 0
        self._slots: dict[tuple[Segment, str], Buffer] = {}

    def assign(self, wanted: Sequence[tuple[UpdateRule, Sequence[Parameter]]]) -> None:
        """Makes the units fit `wanted`: (rule, its parameters) for each optimizer.

        A parameter that stays under its rule keeps its state.
        """
        rule_of = {p: rule for rule, parameters in wanted for p in parameters}
        kept: list[Unit] = []
        changed = False
        for unit in self.units:
            staying = [p for p in unit.parameters if rule_of.get(p) is unit.rule]
            changed |= len(staying) != len(unit.parameters)
            if len(staying) == len(unit.parameters):
                kept.append(unit)
            elif staying:
                kept.append(Unit(unit.rule, staying, unit.scalars.read()))
        known = {p for unit in kept for p in unit.parameters}
        for rule, parameters in wanted:
            new = [p for p in parameters if p not in known]
            if new:
                changed = True
                fresh = Unit(rule, new)
                twin = next((unit for unit in kept if unit.rule is rule), None)
                if twin is not None and "lr" in fresh.names:
                    fresh.set_scalar("lr", twin.scalar("lr"))
                for name in rule.slots:
                    for p in new:
                        self.slot(p, name, rule)[...] = rule.slot_initial(name)
                kept.append(fresh)
        self.units = kept
        self.version += changed
        if changed:  # nothing is kept beside parameters that are gone
            homes = {cell(p).segment for p in self.total() if p.storage is not None}
            self._slots = {key: buffer for key, buffer in self._slots.items() if key[0] in homes}

    def split(self, reached: Iterable[Parameter]) -> list[Unit]:
        """The units of just the parameters in `reached`; a unit that holds others as well is cut in two."""
        reached, chosen, units = set(reached), [], []
        for unit in self.units:
            inside = [p for p in unit.parameters if p in reached]
            if not inside:
                units.append(unit)
            elif len(inside) == len(unit.parameters):
                units.append(unit)
                chosen.append(unit)
            else:
                part = Unit(unit.rule, inside, unit.scalars.read())
                rest = Unit(unit.rule, [p for p in unit.parameters if p not in reached], unit.scalars.read())
                units += [part, rest]
                chosen.append(part)
                self.version += 1
        self.units = units
        return chosen

    def buffer(self, segment: Segment, name: str, rule: UpdateRule) -> Buffer:
        """The flat slot array beside a segment; made on first use."""
        if (segment, name) not in self._slots:
            made = self._slots[segment, name] = Buffer(f"{name}.", segment.size, segment.dtype, "optimizer")
            made.array.fill(rule.slot_initial(name))
        return self._slots[segment, name]

    def slot(self, parameter: Parameter, name: str, rule: UpdateRule) -> np.ndarray:
        """A live view of one parameter's slot, of its shape."""
        home = cell(parameter)
        return self.buffer(home.segment, name, rule).lend(home.start, parameter.shape)

    def buffers(self) -> list[Buffer]:
        """Every buffer that updates write to, besides the parameters' own."""
        return [*self._slots.values(), *(unit.scalars for unit in self.units)]

    def total(self) -> list[Parameter]:
        """Every parameter that has an optimizer."""
        return [p for unit in self.units for p in unit.parameters]


def record_update(
    trace: Trace,
    state: OptimizerState,
    units: Sequence[Unit],
    clip_norm: float | None,
) -> None:
    """Records one update of `units` in `trace`: its stores hold the new weights, slots and counters.

    clip_norm: gradients are scaled by min(1, clip_norm / (norm + 1e-6)), the norm being that of all gradients that this update
    consumes, taken as one vector: torch.nn.utils.clip_grad_norm_; Pascanu et al. 2013, algorithm 1.
    """
    with recording(trace):
        scale = None
        if clip_norm is not None:
            scale = _clip_scale(trace, clip_norm, [p for unit in units for p in unit.parameters])
        for unit in units:
            _record_unit(trace, state, unit, scale)


def _clip_scale(trace: Trace, clip_norm: float, parameters: Sequence[Parameter]) -> Tensor:
    squares = []
    for segment, start, size in runs(parameters):
        leaf = trace.leaf(Region(segment.gradients, start, size), (size,), str(segment.dtype), "gradients")
        squares.append(square_sum(leaf))

    def scale(*parts):
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return minimum(clip_norm / (sqrt(total) + 1e-6), 1.0)

    return compute(scale, *squares, label="clip")[0]


def _record_unit(trace: Trace, state: OptimizerState, unit: Unit, scale: Tensor | None) -> None:
    rule, names = unit.rule, unit.names
    label = type(rule).__name__.lower()
    leaves = [trace.leaf(Region(unit.scalars, k, 1), (1,), "float64", name) for k, name in enumerate(names)]
    scalars = dict(zip(names, leaves, strict=True))
    found = prepared_scalars(rule)
    if found:
        prepared = compute(lambda *_: tuple(found.values()), *leaves, label=f"{label}.prepare")
        scalars |= dict(zip(found, prepared, strict=True))
    for name, leaf in zip(names, leaves, strict=True):
        if scalars[name] is not leaf:
            trace.stores.append(Store(scalars[name], leaf))
    if rule.elementwise:
        for stretch in runs(unit.parameters):
            _record_stretch(trace, state, unit, scalars, scale, stretch, label)
    else:
        _record_parameters(trace, state, unit, scalars, scale, label)


def _record_stretch(trace, state, unit, scalars, scale, stretch: tuple[Segment, int, int], label: str) -> None:
    """One instruction: the rule over `size` neighbouring elements."""
    rule, (segment, start, size) = unit.rule, stretch
    leaves = [
        trace.leaf(Region(buffer, start, size), (size,), str(segment.dtype), name)
        for name, buffer in _buffers(state, rule, segment).items()
    ]
    count = len(rule.slots)

    def step(weight, gradient, *rest):
        values = dict(zip(scalars, rest[count : count + len(scalars)], strict=True))
        if scale is not None:
            gradient = gradient * rest[-1]
        return new_values(rule, weight, gradient, rest[:count], values)

    extra = [] if scale is None else [scale]
    results = compute(step, *leaves, *scalars.values(), *extra, label=label, dtype=str(segment.dtype))
    targets = [leaves[0], *leaves[2:]]
    trace.stores += [Store(value, target) for value, target in zip(results, targets, strict=True)]


def _record_parameters(trace, state, unit, scalars, scale, label: str) -> None:
    """The rule over each parameter as a whole, in the parameter's own shape."""
    rule, numbers = unit.rule, list(scalars.values())
    extra = [] if scale is None else [scale]
    cast: dict[str, list[Tensor]] = {}  # the scalars in each dtype, of shape ()
    for parameter in unit.parameters:
        home = cell(parameter)
        dtype = str(home.dtype)
        if dtype not in cast:
            found = compute(lambda *values: values, *numbers, *extra, label=f"{label}.scalars", dtype=dtype)
            cast[dtype] = [reshape(value, ()) for value in found]
        # made here and not by trace.leaf: clipping reads the same region in another shape
        leaves = [
            Tensor(parameter.shape, dtype, source=Region(buffer, home.start, parameter.size), name=name)
            for name, buffer in _buffers(state, rule, home.segment).items()
        ]
        weight, gradient, *slots = leaves
        if scale is not None:
            gradient = gradient * cast[dtype][-1]
        values = new_values(rule, weight, gradient, slots, dict(zip(scalars, cast[dtype])), parameter.name)
        trace.stores += [Store(_made(v), target) for v, target in zip(values, (weight, *slots), strict=True)]


def _buffers(state: OptimizerState, rule: UpdateRule, segment: Segment) -> dict[str, Buffer]:
    """What a rule reads beside its scalars: weights, gradients, and each slot."""
    slots = {f"slot {name}": state.buffer(segment, name, rule) for name in rule.slots}
    return {"weights": segment.values, "gradients": segment.gradients, **slots}


def _made(value: Tensor) -> Tensor:
    """A value that an instruction makes: state handed on as it is must be read before it is written."""
    return copy(value) if value.producer is None or value.producer.op.alias else value


def set_lr(units: Iterable[Unit], lr: float) -> None:
    """Sets the learning rate of every unit. ValueError unless it is a finite number >= 0."""
    if not np.isfinite(lr) or lr < 0:
        raise ValueError(f"lr: expected a finite number >= 0, got {lr}")
    for unit in units:
        unit.set_scalar("lr", lr)


def require_optimizer(state: OptimizerState) -> None:
    """StateError where no parameter has an optimizer."""
    if not state.units:
        raise StateError("update() needs an optimizer: call set_optimizer(SGD(lr=0.01)) on the graph or a node first")


def mark_consumed(parameters: Iterable[Parameter]) -> None:
    """Their gradients stay readable, and the next backward starts from zero."""
    for parameter in parameters:
        cell(parameter).pending = False
