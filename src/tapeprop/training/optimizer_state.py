"""Optimizer and random state as plain data, so that training goes on from a file exactly where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tapeprop import optimizers
from tapeprop.errors import WeightFileError
from tapeprop.graph.graph import CompiledGraph
from tapeprop.optimizers import Optimizer


def state_of(graph: CompiledGraph) -> dict[str, Any] | None:
    """{name: array or plain value}; None where the graph is not built.

    "graph" and "nodes" describe the optimizers of the graph and of nodes by class name and settings; units hold step counts and
    learning rates, "slot/<parameter>/<name>" the per-element states. Optimizers set with `where`, and classes of the user's own,
    are left out: set them again after loading.
    """
    if not graph.built_:
        return None
    graph.synchronise_optimizers()
    names = {parameter: name for name, parameter in graph.named_parameters()}
    state: dict[str, Any] = {
        "random": graph.random_counter.copy(),
        "graph": _described(graph.optimizer),
        "nodes": {
            label: _described(node.optimizer) for node, label in graph.labels.items() if node.optimizer is not None
        },
    }
    units = [unit for unit in graph.optimizer_units if _described(unit.rule) is not None]
    state["units"] = [[names[p] for p in unit.parameters if p in names] for unit in units]
    for i, unit in enumerate(units):
        state[f"unit{i}"] = unit.scalars.array.copy()
        for parameter in unit.parameters:
            for slot in unit.rule.slots:
                state[f"slot/{names[parameter]}/{slot}"] = graph.optimizer_slot(parameter, slot, unit.rule).copy()
    return state


def restore(graph: CompiledGraph, state: Mapping[str, Any]) -> None:
    """Sets what `state_of` gave, on a built graph of the same structure. WeightFileError where something does not fit."""
    parameters = dict(graph.named_parameters())
    if state.get("graph") is not None:
        graph.set_optimizer(_made(state["graph"]))
    nodes = {label: node for node, label in graph.labels.items()}
    for label, described in dict(state.get("nodes") or {}).items():
        if label not in nodes:
            raise WeightFileError(f"optimizer state: expected nodes of this graph, got {label!r}")
        nodes[label].set_optimizer(_made(described))
    graph.synchronise_optimizers()
    for i, members in enumerate(state.get("units") or ()):
        unknown = [name for name in members if name not in parameters]
        if unknown:
            raise WeightFileError(f"optimizer state: expected parameters of this graph, got {unknown[0]!r}")
        for unit in graph.split_optimizer([parameters[name] for name in members]):
            _copy(unit.scalars.array, state.get(f"unit{i}"), f"unit{i}")
            for name in members:
                for slot in unit.rule.slots:
                    key = f"slot/{name}/{slot}"
                    _copy(graph.optimizer_slot(parameters[name], slot, unit.rule), state.get(key), key)
    _copy(graph.random_counter, state.get("random"), "random")


def _copy(target: np.ndarray, value: Any, what: str) -> None:
    array = np.asarray(value) if value is not None else np.zeros(0)
    if array.shape != target.shape or array.dtype.kind not in "fiu":
        raise WeightFileError(
            f"optimizer state {what!r}: expected shape {target.shape}, got {array.shape} {array.dtype}"
        )
    target[...] = array


def _described(optimizer: Any) -> dict[str, Any] | None:
    """{"class": name, "settings": {...}} of an optimizer of the catalogue, else None."""
    if optimizer is None or getattr(optimizers, type(optimizer).__name__, None) is not type(optimizer):
        return None
    return {"class": type(optimizer).__name__, "settings": optimizer.config()}


def _made(described: Any) -> Optimizer:
    known = described.get("class") if isinstance(described, Mapping) else None
    if known not in optimizers.__all__ or known == "Optimizer":
        raise WeightFileError(f"optimizer state: expected one of {', '.join(optimizers.__all__)}, got {known!r}")
    try:
        return getattr(optimizers, known)(**described["settings"])
    except (TypeError, ValueError, KeyError) as error:
        raise WeightFileError(f"optimizer state: {known} does not take these settings: {error}") from None
