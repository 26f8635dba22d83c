"""Optimizer and random state as plain data, so that training goes on from a file exactly where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tapeprop import optimizers
from tapeprop.errors import WeightFileError
from tapeprop.graph.graph import CompiledGraph
from tapeprop.ir import Parameter
from tapeprop.optimizers import Optimizer

Classes = Mapping[str, type]


Described = dict[str, Any]
#: Which optimizers a graph has: its own, those of its nodes by name, and (optimizer, names of its parameters) of all others.
Assignment = dict[str, Any]


def state_of(graph: CompiledGraph) -> dict[str, Any] | None:
    """{name: array or plain value}; None where the graph is not built.

    "graph", "nodes" and "where" describe the optimizers by class name and settings: the graph's own, those of nodes by name, and
    the others (set with `where`, or for nodes of graphs inside) each with the names of its parameters. "units" and "rules" say who
    advances together and by what; "unit<i>" holds step counts and learning rate, "slot/<parameter>/<name>" a per-element state.
    """
    if not graph.built_:
        return None
    graph.synchronise_optimizers()
    names = {parameter: name for name, parameter in graph.named_parameters()}
    units = graph.optimizer_units
    state: dict[str, Any] = {
        "random": graph.random_counter.copy(),
        **_assignment(graph),
        "units": tuple(tuple(names[p] for p in unit.parameters) for unit in units),
        "rules": tuple(_described(unit.rule) for unit in units),
    }
    for i, unit in enumerate(units):
        state[f"unit{i}"] = unit.scalars.read().copy()
        for parameter in unit.parameters:
            for slot in unit.rule.slots:
                state[f"slot/{names[parameter]}/{slot}"] = graph.optimizer_slot(parameter, slot, unit.rule).copy()
    return state


def restore(graph: CompiledGraph, state: Mapping[str, Any], classes: Classes | None = None) -> None:
    """Sets what `state_of` gave, on a built graph of the same structure; optimizers of equal settings stay the objects they are.

    classes: {name: class} of optimizers of the user's own. WeightFileError where something does not fit; nothing is set then.
    """
    known = own_optimizers(classes)
    parameters = dict(graph.named_parameters())
    units = list(zip(_listed(state, "units"), _listed(state, "rules"), strict=False))
    graph.synchronise_optimizers()
    present = {type(unit.rule).__name__: type(unit.rule) for unit in graph.optimizer_units}
    for i, (members, described) in enumerate(units):
        unknown = [name for name in members if name not in parameters]
        if unknown:
            raise WeightFileError(f"optimizer state: expected parameters of this graph, got {unknown[0]!r}")
        rule = _made(described, present | known)
        _checked(state, f"unit{i}", (len(rule.hyper()),))
        for name in members:
            for slot in rule.slots:
                _checked(state, f"slot/{name}/{slot}", parameters[name].shape)
    _checked(state, "random", graph.random_counter.shape)
    wanted = {key: state.get(key) for key in ("graph", "nodes", "where")}
    if wanted != _assignment(graph):
        _assign(graph, wanted, present | known)
    for i, (members, _) in enumerate(units):
        for unit in graph.split_optimizer([parameters[name] for name in members]):
            unit.scalars.array[...] = _checked(state, f"unit{i}", unit.scalars.read().shape)
            for name in members:
                for slot in unit.rule.slots:
                    target = graph.optimizer_slot(parameters[name], slot, unit.rule)
                    target[...] = _checked(state, f"slot/{name}/{slot}", target.shape)
    graph.set_random_counter(state["random"])


def own_optimizers(classes: Classes | None) -> dict[str, type]:
    """The optimizers among the classes of the user's own."""
    return {name: cls for name, cls in (classes or {}).items() if isinstance(cls, type) and issubclass(cls, Optimizer)}


def _assignment(graph: CompiledGraph) -> Assignment:
    own = {label: node.optimizer for node, label in graph.labels.items() if node.optimizer is not None}
    placed = [graph.optimizer, *own.values()]
    names = {parameter: name for name, parameter in graph.named_parameters()}
    others: dict[int, tuple[Any, list[str]]] = {}
    for unit in graph.optimizer_units:
        if not any(unit.rule is rule for rule in placed):
            others.setdefault(id(unit.rule), (unit.rule, []))[1].extend(names[p] for p in unit.parameters)
    return {
        "graph": _described(graph.optimizer),
        "nodes": {label: _described(optimizer) for label, optimizer in own.items()},
        "where": tuple((_described(rule), tuple(sorted(members))) for rule, members in others.values()),
    }


def _assign(graph: CompiledGraph, wanted: Assignment, known: Mapping[str, type]) -> None:
    nodes = {label: node for node, label in graph.labels.items()}
    described = dict(wanted["nodes"] or {})
    if unknown := [label for label in described if label not in nodes]:
        raise WeightFileError(f"optimizer state: expected nodes of this graph, got {unknown[0]!r}")
    own = None if wanted["graph"] is None else _made(wanted["graph"], known)
    made = {nodes[label]: _made(one, known) for label, one in described.items()}
    rules = [(_Among(members), _made(one, known)) for one, members in wanted["where"] or ()]
    graph.replace_optimizers(own, made, rules)
    graph.synchronise_optimizers()


class _Among(frozenset[str]):
    """A predicate for set_optimizer() that chooses parameters by name; unlike a lambda it can be pickled."""

    def __call__(self, name: str, parameter: Parameter) -> bool:
        return name in self


def _listed(state: Mapping[str, Any], key: str) -> tuple:
    found = state.get(key)
    if not isinstance(found, tuple | list):
        raise WeightFileError(f"optimizer state: expected a list of {key}, got {found!r}")
    return tuple(found)


def _checked(state: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array under a key, of this shape."""
    value = state.get(key)
    array = np.asarray(value) if value is not None else np.zeros(0)
    if array.shape != shape or array.dtype.kind not in "fiu":
        raise WeightFileError(f"optimizer state {key!r}: expected shape {shape}, got {array.shape} {array.dtype}")
    return array


def _described(optimizer: Any) -> Described | None:
    """{"class": name, "settings": {...}}"""
    return None if optimizer is None else {"class": type(optimizer).__name__, "settings": optimizer.config()}


def _made(described: Any, known: Mapping[str, type]) -> Optimizer:
    """An optimizer of the catalogue, or of a class in `known`."""
    name = described.get("class") if isinstance(described, Mapping) else None
    public = {key: getattr(optimizers, key) for key in optimizers.__all__ if key != "Optimizer"}
    cls = {**known, **public}.get(name) if isinstance(name, str) else None
    if cls is None:
        raise WeightFileError(
            f"optimizer state: expected one of {', '.join([*public, *known])}, got {name!r}; give a class of your own: "
            f'classes={{"Name": Name}}'
        )
    try:
        return cls(**described["settings"])
    except (TypeError, ValueError, KeyError) as error:
        raise WeightFileError(f"optimizer state: {name} does not take these settings: {error}") from None
