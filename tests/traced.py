"""Layers and graphs run by the oracle: traced, differentiated, and interpreted in NumPy without any kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tapeprop.compiler.gradient import gradients
from tapeprop.compiler.interpret import interpret
from tapeprop.graph import GraphStructure
from tapeprop.ir import Parameter, Program, Span, Store, Tensor, Trace, reachable, recording
from tapeprop.layers import Layer


@dataclass
class Run:
    """outputs: one array per term. inputs: the gradient of each input. parameters: that of each parameter reached.

    states: the new value of each parameter that the run stores.
    """

    outputs: list[np.ndarray]
    inputs: list[np.ndarray]
    parameters: dict[Parameter, np.ndarray]
    states: dict[Parameter, np.ndarray]


def run(
    layer: Layer,
    inputs: Sequence[np.ndarray],
    d_out: Sequence[np.ndarray | None] | None = None,
    *,
    training: bool = False,
    dtype: str = "float64",
    seed: int = 0,
    states: Mapping[Parameter, np.ndarray] | None = None,
) -> Run:
    """Forward and backward of a layer, or of a graph with any number of roots and terms.

    d_out: the gradient of each output, None for no gradient; without any, ones. seed: of dropout.
    states: values to use in place of the parameters' own.
    """
    random = Parameter((2,), np.array([seed, 0]), trainable=False, dtype="int64", name="random")
    with recording(Trace(dtype, training, random)) as trace:
        leaves = [trace.input(i, np.shape(array)) for i, array in enumerate(inputs)]
        if isinstance(layer, GraphStructure):
            outputs, _ = layer.trace_all(leaves)
        else:
            outputs = [layer.trace(*leaves)]
        given: list[np.ndarray | float | None] = [1.0] * len(outputs) if d_out is None else list(d_out)
        flows = {y: trace.input(len(leaves) + i, y.shape, y.dtype) for i, y in enumerate(outputs)}
        known = {s: t for s, t in trace.leaves.items() if isinstance(s, Parameter)}
        trained = [t for s, t in known.items() if s.trainable]
        seeds = {y: flows[y] for y, dy in zip(outputs, given) if dy is not None}
        found = gradients(seeds, [*leaves, *trained])
        wanted = [t for t in (*leaves, *trained) if t in found]
    feeds: dict[Tensor, np.ndarray] = dict(zip(leaves, (np.array(a, dtype) for a in inputs)))
    for parameter, leaf in known.items():
        value = (states or {}).get(parameter, parameter.value)
        feeds[leaf] = np.array(value, leaf.dtype)
    forward = _program(outputs, trace.stores)
    for y, value, dy in zip(outputs, interpret(forward, feeds)[0], given):  # one tensor may stand in two outputs
        total = feeds.get(flows[y], np.zeros_like(value))
        feeds[flows[y]] = total if dy is None else total + np.asarray(dy, dtype)
    values, stored = interpret(_program([*outputs, *(found[t] for t in wanted)], trace.stores), feeds)
    results, rest = values[: len(outputs)], dict(zip(wanted, values[len(outputs) :]))
    return Run(
        results,
        [rest.get(leaf, np.zeros(leaf.shape, dtype)) for leaf in leaves],
        {s: rest[t] for s, t in known.items() if t in rest},
        {t.source: value for t, value in stored.items()},  # type: ignore[misc]
    )


def evaluate(tensors: Sequence[Tensor], values: Mapping[Tensor, np.ndarray]) -> list[np.ndarray]:
    """The numbers of tensors, given those of the leaves they depend on."""
    return interpret(Program([Span("run", reachable(tensors))], [], list(tensors)), values)[0]


def _program(outputs: Sequence[Tensor], stores: Sequence[Store]) -> Program:
    calls = reachable([*outputs, *(store.value for store in stores)])
    return Program([Span("run", calls, list(stores))], [], list(outputs))


def S(*shape: int) -> np.ndarray:
    """sin(k) at flat element k."""
    return np.sin(np.arange(np.prod(shape))).reshape(shape)


def C(*shape: int) -> np.ndarray:
    """cos(k) at flat element k."""
    return np.cos(np.arange(np.prod(shape))).reshape(shape)


def R(*shape: int) -> np.ndarray:
    """cos(0.1 k) at flat element k."""
    return np.cos(0.1 * np.arange(np.prod(shape))).reshape(shape)
