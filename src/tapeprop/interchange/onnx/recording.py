"""What is exported: a graph or a function as recorded for inference, before the compiler changes anything.

Batch norm has its running statistics here, dropout is gone, and every op is the one that its layer wrote.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeprop.errors import GraphError, ShapeError
from tapeprop.formula import Function
from tapeprop.graph import GraphStructure
from tapeprop.graph.graph import CompiledGraph
from tapeprop.graph.names import check_names
from tapeprop.ir import Constant, Parameter, Placeholder, Shape, Size, Tensor, Trace, UndecidedError, at_node, reachable
from tapeprop.ir import recording as recording_in
from tapeprop.ir.dims import Dim, evaluate, text
from tapeprop.layers.layer import variables_dtype
from tapeprop.layers.sizes import open_shape, plain_shape
from tapeprop.ops.op import LATER, record

__all__ = ["Recorded", "alone", "recorded"]


@dataclass(frozen=True)
class Recorded:
    """A program for inference. dtype: of its floating numbers; keys: {parameter: the name of its initialiser}.

    outputs: what callers read, in their order; the names of inputs and outputs are those that they should bear.
    """

    name: str
    dtype: str
    inputs: tuple[tuple[str, Tensor], ...]
    outputs: tuple[tuple[str, Tensor], ...]
    keys: Mapping[Parameter, str]


def recorded(source: Any, input_shape: Any = None) -> Recorded:
    """The program of a graph or of a function.

    input_shape: as build() takes it; by default that of build(), or of the function's placeholders. GraphError for what is neither,
    ShapeError where a size that is open decides what is computed, and the errors of the layers.
    """
    try:
        if isinstance(source, Function):
            return _of_function(source, input_shape)
        if isinstance(source, GraphStructure):
            return _of_graph(source, input_shape)
    except UndecidedError as question:
        raise ShapeError(
            f"export: expected sizes that decide whether {question}, got open ones; give input_shape with these sizes"
        ) from None
    raise GraphError(f"export: expected a LayerGraph or a tapeprop.Function, got {type(source).__name__}")


def alone(source: Any) -> AbstractContextManager[Any]:
    """Keeps other threads from running a graph, or a function, so that all weights are those of one moment."""
    if isinstance(source, Function):
        return source._network.lock
    return source._exclusive("export") if isinstance(source, CompiledGraph) else contextlib.nullcontext()


def _random_state() -> Parameter:
    return Parameter((2,), np.zeros(2), trainable=False, dtype="int64", name="random state")


# ---- graphs


def _of_graph(graph: GraphStructure, input_shape: Any) -> Recorded:
    shape = graph._input_shape if input_shape is None else input_shape
    if shape is None:
        raise GraphError(
            "export: expected an input shape, got a graph that was not built with one; give input_shape, such as (None, 3, 32, 32)"
        )
    check_names(graph.labels)
    graph.seed_layers()  # weights that are not drawn yet are those that build() would draw
    built = getattr(graph, "_network", None) is not None
    dtype = graph.dtype if built else variables_dtype(graph)  # type: ignore[attr-defined]
    with recording_in(Trace(dtype, False, _random_state())) as trace:
        labels = [graph.label_of(node) for node in graph.roots]
        shapes = graph.open_shapes(shape)
        inputs = [trace.input(i, size, name=label) for i, (label, size) in enumerate(zip(labels, shapes, strict=True))]
        outputs, _ = graph.trace_all(inputs)
    keys = {parameter: key for key, parameter in graph.named_parameters()}
    ends = [graph.label_of(node) for node in graph.terms]
    return Recorded(type(graph).__name__, dtype, tuple(zip(labels, inputs)), tuple(zip(ends, outputs)), keys)


# ---- functions


def _of_function(function: Function, input_shape: Any) -> Recorded:
    dtype = function._network.options.dtype
    with recording_in(Trace(dtype, False, _random_state())) as trace:
        shapes, sizes = _function_shapes(function, input_shape)
        values: dict[Tensor, Tensor] = {
            old: trace.input(i, shape, old.dtype, str(old.name))
            for i, (old, shape) in enumerate(zip(function.inputs, shapes, strict=True))
        }
        for call in reachable(function.outputs):
            operands = [_again(trace, values, operand) for operand in call.operands]
            attributes = {name: _sized(value, sizes) for name, value in call.attributes.items()}
            with at_node(call.node):
                results = (
                    [attributes["function"](*operands)] if call.op is LATER else record(call.op, operands, attributes)
                )
            values.update(zip(call.results, results, strict=True))
        outputs = [_again(trace, values, tensor) for tensor in function.outputs]
    count = len(outputs)
    names = ["output" if count == 1 else f"output{i}" for i in range(count)]
    inputs = tuple((str(old.name), values[old]) for old in function.inputs)
    keys = {t.source: str(t.name) for t in function.variables if isinstance(t.source, Parameter)}
    return Recorded("function", dtype, inputs, tuple(zip(names, outputs)), keys)


def _again(trace: Trace, values: Mapping[Tensor, Tensor], old: Tensor) -> Tensor:
    """What a tensor of the formula is in this trace."""
    if old in values:
        return values[old]
    if isinstance(old.source, Parameter):
        return trace.parameter(old.source)
    if isinstance(old.source, Constant):
        return trace.constant(old.source.array)
    assert not isinstance(old.source, Placeholder), old  # the function has looked
    raise GraphError(f"export: expected placeholders, variables and constants, got a formula that reads {old!r}")


def _function_shapes(function: Function, given: Any) -> tuple[list[Shape], dict[str, Size]]:
    """(the shape of each input, {symbol of an open size in the formula: its size now}).

    Open sizes are named by their place, as those of a graph: the formula's own names count up in a process.
    """
    declared = [plain_shape(tensor.shape) for tensor in function.inputs]
    listed = declared if given is None else list(given) if isinstance(given, list) else [given]
    if len(listed) != len(declared):
        raise ShapeError(f"export: expected an input_shape for each of {len(declared)} inputs, got {given}")
    sizes: dict[str, Size] = {}
    for i, (tensor, shape) in enumerate(zip(function.inputs, listed)):
        wanted = open_shape(shape, i)
        fits = len(wanted) == tensor.ndim
        for size, now in zip(tensor.shape, wanted) if fits else ():
            known = sizes.setdefault(str(size), now) if isinstance(size, Dim) else size
            fits = fits and (known == now or (isinstance(known, Dim) and isinstance(now, Dim)))
        if not fits:
            raise ShapeError(
                f"export: placeholder {tensor.name!r}: expected a shape that fits {text(tensor.shape)}, got {shape}"
            )
    return [tuple(evaluate(size, sizes) for size in tensor.shape) for tensor in function.inputs], sizes


def _sized(value: Any, sizes: Mapping[str, Size]) -> Any:
    """An attribute under these sizes."""
    if isinstance(value, Dim):
        return evaluate(value, sizes)
    return tuple([_sized(item, sizes) for item in value]) if type(value) is tuple else value
