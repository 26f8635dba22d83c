"""Nodes of a model as a layer: what no layer of `tapeprop.layers` does is run by its converters.

`Operators` keeps all that it was made from in plain values, so that a graph with it can be saved and loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.interchange import describe
from tapeprop.interchange.onnx.importing import Importer
from tapeprop.interchange.onnx.model import Node, check_schema
from tapeprop.interchange.safetensors import shown
from tapeprop.ir import Tensor
from tapeprop.layers.layer import Layer, Member, tracing

__all__ = ["Operators", "Weight", "plain", "plain_node"]

Plain = Mapping[str, Any]


class Weight(Layer):
    """An initialiser of a model: a tensor that is trained, in every `Operators` that holds it. weight: of the shape, zeros at first."""

    def __init__(self, shape: Sequence[int], trainable: bool = True):
        self.shape = tuple(int(size) for size in shape)
        self.trainable = bool(trainable)
        self.weight = self.parameter(self.shape, name="weight", trainable=self.trainable)

    def trace(self, x: Tensor) -> Tensor:
        """The weight, whatever x is."""
        return tracing().parameter(self.weight)


class Operators(Layer):
    """ONNX nodes with one input that is data.

    nodes: in the order in which they run, each as `plain_node` writes it. input, output: the names of the values that come in and
    that are the result. weights: {name: Weight}, initialisers that are trained. constants: {name: array}, those that are known, as
    `plain` writes them. sizes: {name: array}, numbers that the model worked out of the sizes of its tensors, as `plain` writes them;
    in place of a number {"axis": i} is the size of axis i of the input.

    Parameters are found under the names of the initialisers. GraphError for what makes no nodes.
    """

    def __init__(
        self,
        nodes: Sequence[Plain],
        input: str,
        output: str,
        weights: Mapping[str, Weight] | None = None,
        constants: Mapping[str, Plain] | None = None,
        sizes: Mapping[str, Plain] | None = None,
    ):
        self.nodes = tuple(nodes)
        self.input = input
        self.output = output
        self.weights = dict(weights or {})
        self.constants = dict(constants or {})
        self.sizes = dict(sizes or {})
        self._nodes = tuple(map(_node, self.nodes))
        self._arrays = {name: _array(value) for name, value in self.constants.items()}
        for name, value in self.sizes.items():
            _sized(value, None, name)
        for name, weight in self.weights.items():
            if not isinstance(weight, Weight):
                raise GraphError(
                    f"Operators: expected weights to be {{name: Weight}}, got {shown(name)}: {shown(weight)}"
                )

    def members(self) -> Iterator[Member]:
        """(name of the initialiser, parameter)."""
        for name, weight in self.weights.items():
            yield name, weight.weight

    def is_bias(self, name: str) -> bool:
        """False: which initialisers are biases is not known."""
        return False

    def trace(self, x: Tensor) -> Tensor:
        """x: the value called `input`. Gives the one called `output`."""
        stand_in = np.zeros((), np.float32)  # nothing is read of it but its shape
        values: dict[str, Tensor | np.ndarray] = dict(self._arrays)
        values.update((name, np.broadcast_to(stand_in, weight.shape)) for name, weight in self.weights.items())
        sizes = {name: _sized(value, x, name) for name, value in self.sizes.items()}
        importer = Importer({**values, **sizes, self.input: x}, self._weight, sizes)
        importer.run(self._nodes)
        return importer.tensor(self.output)

    def _weight(self, name: str, array: np.ndarray) -> Tensor:
        if name not in self.weights:  # one that is known elsewhere: it cannot be trained
            return tracing().constant(array)
        return tracing().parameter(self.weights[name].weight)

    def __repr__(self) -> str:
        return f"Operators({', '.join(node.op for node in self._nodes)})"


describe.know({"onnx.Operators": Operators, "onnx.Weight": Weight})


# ---- plain values


def plain(array: np.ndarray) -> dict[str, Any]:
    """An array as a dict that JSON can hold."""
    return {"dtype": str(array.dtype), "shape": list(array.shape), "values": array.ravel().tolist()}


def plain_node(node: Node) -> dict[str, Any]:
    """A node as a dict that JSON can hold."""
    attributes = {
        name: plain(value) if isinstance(value, np.ndarray) else value for name, value in node.attributes.items()
    }
    return {
        "op": node.op,
        "name": node.name,
        "inputs": list(node.inputs),
        "outputs": list(node.outputs),
        "attributes": attributes,
        "opset": node.opset,
    }


_NODE = {"op": str, "name": str, "inputs": tuple | list, "outputs": tuple | list, "attributes": dict, "opset": int}
_DTYPES = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"}


def _node(given: Any) -> Node:
    """What `plain_node` wrote. GraphError for anything else."""
    if not isinstance(given, dict) or given.keys() != _NODE.keys():
        raise GraphError(f"Operators: expected nodes with {', '.join(_NODE)}, got {shown(given)}")
    for key, kind in _NODE.items():
        if not isinstance(given[key], kind):
            raise GraphError(f"Operators: expected {key} of a node to be {kind}, got {shown(given[key])}")
    if not all(isinstance(name, str) for name in (*given["inputs"], *given["outputs"])):
        raise GraphError(f"Operators: expected names as inputs and outputs of {given['name']!r}")
    attributes = {
        name: _array(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value
        for name, value in given["attributes"].items()
    }
    inputs, outputs = tuple(given["inputs"]), tuple(given["outputs"])
    node = Node(given["op"], given["name"], inputs, outputs, attributes, given["opset"])
    check_schema(node)
    return node


def _array(given: Any) -> np.ndarray:
    """What `plain` wrote. GraphError for anything else."""
    shape, values = _checked(given, "an array")
    try:
        found = np.array(values, given["dtype"]).reshape(shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise GraphError(f"Operators: expected numbers of {given['dtype']} and shape {shape}, got {error}") from None
    found.setflags(write=False)
    return found


def _checked(given: Any, what: str) -> tuple[tuple[int, ...], list[Any]]:
    """(shape, values) of a dict that `plain` may have written."""
    if not isinstance(given, dict) or given.keys() != {"dtype", "shape", "values"} or given["dtype"] not in _DTYPES:
        raise GraphError(f"Operators: expected {what} with dtype, shape and values, got {shown(given)}")
    shape, values = given["shape"], given["values"]
    whole = isinstance(shape, tuple | list) and all(isinstance(size, int) and size >= 0 for size in shape)
    if not whole or not isinstance(values, tuple | list) or len(values) != math.prod(shape):
        raise GraphError(f"Operators: expected {what} with as many values as its shape has, got shape {shown(shape)}")
    return tuple(shape), list(values)


def _sized(given: Any, x: Tensor | None, name: str) -> np.ndarray:
    """Numbers that depend on the sizes of x; None: only whether they are well formed. GraphError."""
    shape, values = _checked(given, f"sizes {name!r}")
    found: list[Any] = []
    for value in values:
        if isinstance(value, dict):
            axis = value.get("axis")
            if not isinstance(axis, int) or axis < 0 or (x is not None and axis >= x.ndim):
                raise GraphError(f"Operators: expected {name!r} to name axes of its input, got {shown(value)}")
            found.append(1 if x is None else x.shape[axis])
        else:
            found.append(value)
    array = np.empty(len(found), object)
    array[:] = found
    if all(isinstance(value, int) for value in found):
        array = array.astype(given["dtype"])
    return array.reshape(shape)
