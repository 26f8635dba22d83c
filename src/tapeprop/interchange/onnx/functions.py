"""A model as a formula: `load_function`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.formula import Function, function, placeholder, variable
from tapeprop.interchange.onnx.importing import Importer
from tapeprop.interchange.onnx.model import Model, Source, Value, read

__all__ = ["check_names", "float_dtype", "load_function"]

_FLOATS = ("float32", "float64")
#: The dtype of the placeholder for an input of another dtype.
_NEAREST = {
    "bool": "uint8",
    "float16": "float32",
    **dict.fromkeys(["int8", "int16", "int32", "uint16", "uint32", "uint64"], "int64"),  # as indices and labels are
}


def load_function(
    source: Source,
    *,
    shapes: Mapping[str, Sequence[int | None]] | None = None,
    trainable: bool = True,
    workers: int | None = None,
) -> Function:
    """The model as a `tapeprop.Function` from its inputs to its outputs, in their order; its weights are variables.

    source: a path, the bytes of a file, or an onnx.ModelProto. shapes: {input: shape}, where the file gives none or others are wanted.
    trainable: whether weights are trained. Truth values are numbers, 0 and 1. GraphError, naming the node, for operators that are not
    read (docs/onnx.md lists those that are); WeightFileError for a file that is no model.
    """
    model = read(source)
    check_names(shapes or {}, model)
    dtype = float_dtype(model)
    inputs = {value.name: _placeholder(value, (shapes or {}).get(value.name)) for value in model.inputs}

    def weight(name: str, array: np.ndarray) -> Any:
        return variable(array, name, dtype, trainable)

    importer = Importer({**inputs, **model.initializers}, weight)
    importer.run(model.nodes)
    outputs = [importer.tensor(value.name) for value in model.outputs]
    one = outputs[0] if len(outputs) == 1 else outputs
    return function(one, list(inputs.values()), workers=workers)


def float_dtype(model: Model) -> str:
    """The floating dtype of a model: that of its inputs, else of its weights, else float32."""
    found = [value.dtype for value in model.inputs if value.dtype in _FLOATS]
    found += [str(array.dtype) for array in model.initializers.values() if str(array.dtype) in _FLOATS]
    return found[0] if found else "float32"


def check_names(shapes: Mapping[str, Any], model: Model) -> None:
    """GraphError for a shape of an input that the model does not have."""
    names = [value.name for value in model.inputs]
    if unknown := [name for name in shapes if name not in names]:
        raise GraphError(f"shapes: expected inputs of the model ({', '.join(map(repr, names))}), got {unknown[0]!r}")


def _placeholder(value: Value, shape: Sequence[int | None] | None) -> Any:
    if shape is None:
        if value.shape is None:
            raise GraphError(
                f"ONNX input {value.name!r}: expected a shape, got none: give shapes={{{value.name!r}: (None, 3, 224, 224)}}"
            )
        shape = [size if isinstance(size, int) else None for size in value.shape]
    return placeholder(shape, value.name, _NEAREST.get(value.dtype, value.dtype))
