"""A model as a graph of layers: `load`.

Three steps, each over the nodes in their order. The `Importer` runs all of them once on open shapes, which tells the shape of every value,
what is known beforehand, and which initialisers are trained. A `Plan` says how each value that is needed comes about (`planning`).
`Build` makes the nodes of the graph (`building`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.interchange.onnx.building import Build
from tapeprop.interchange.onnx.functions import check_names, float_dtype
from tapeprop.interchange.onnx.importing import Importer
from tapeprop.interchange.onnx.model import Model, Source, read
from tapeprop.interchange.onnx.planning import Plan
from tapeprop.ir import Parameter, Tensor, Trace, UndecidedError, recording
from tapeprop.layers.sizes import open_shape
from tapeprop.model import LayerGraph

__all__ = ["load"]

Shape = tuple[int | None, ...]
#: What inputs that are no floats are while the nodes are run once: a graph is fed numbers of its own dtype.
_DTYPES = {"i": "int64", "u": "int64", "b": "uint8"}


def load(
    source: Source,
    *,
    shapes: Mapping[str, Sequence[int | None]] | None = None,
    trainable: bool = True,
    build: bool = True,
    **options: Any,
) -> LayerGraph:
    """The model as a graph of layers, built: each input a root, each output a term, in their order.

    source: a path, the bytes of a file, or an onnx.ModelProto. shapes: {input: shape}, where the file gives none or others are wanted;
    None for an open size. Axis 0 is taken to be the batch and left open, where the model allows it. trainable: whether weights are
    trained. build: False gives structure and weights alone. options: of build(); dtype is the model's own by default.

    A node becomes the layer that does exactly the same, with its weights as that layer's parameters, a merge, or an `Operators`, whose
    parameters have the names of the initialisers; docs/onnx.md has the rules. Nodes and inputs that lead to no output are left out.

    GraphError, naming the node, for operators that are not read, and for models that are no graph of layers: those `load_function`
    takes. WeightFileError for a file that is no sound model.
    """
    model = read(source)
    check_names(shapes or {}, model)
    dtype = options.pop("dtype", None) or float_dtype(model)
    importer, asked, found_shapes = _run(model, dict(shapes or {}), dtype)
    plan = Plan(model, importer, asked)
    graph = Build(plan, trainable).graph()
    if build:
        kept = [found_shapes[name] for name in plan.inputs]
        graph.build(kept if isinstance(graph.root, list) else kept[0], dtype=dtype, **options)
    return graph


# ---- the nodes on open shapes


def _run(model: Model, given: dict[str, Any], dtype: str) -> tuple[Importer, set[str], dict[str, Shape]]:
    """(the importer that has run, the initialisers that it wanted as tensors, the shape of each input)."""
    declared = {value.name: _declared(value, given.get(value.name)) for value in model.inputs}
    opened = {name: (None, *shape[1:]) if shape and name not in given else shape for name, shape in declared.items()}
    try:
        return *_run_on(model, opened, dtype), opened
    except GraphError:
        if opened == declared:
            raise
    return *_run_on(model, declared, dtype), declared  # a batch size that is written into the model


def _declared(value: Any, given: Sequence[int | None] | None) -> Shape:
    if given is not None:
        return tuple(given)
    if value.shape is None:
        raise GraphError(
            f"ONNX input {value.name!r}: expected a shape, got none: give shapes={{{value.name!r}: (None, 3, 224, 224)}}"
        )
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _run_on(model: Model, shapes: Mapping[str, Shape], dtype: str) -> tuple[Importer, set[str]]:
    asked: set[str] = set()
    with recording(Trace(dtype, training=False)) as trace:

        def weight(name: str, array: np.ndarray) -> Tensor:
            asked.add(name)
            return trace.parameter(Parameter(array.shape, array, name=name))

        kinds = {value.name: _DTYPES.get(np.dtype(value.dtype).kind) for value in model.inputs}
        inputs = {
            name: trace.input(i, open_shape(shape, i), kinds[name]) for i, (name, shape) in enumerate(shapes.items())
        }
        importer = Importer({**inputs, **model.initializers}, weight)
        try:
            importer.run(model.nodes)
        except UndecidedError as question:
            raise GraphError(
                f"expected sizes that decide whether {question}, got an open one: give shapes={{input: shape}}"
            ) from None
    return importer, asked
