"""An ONNX file as plain data: nodes, inputs, outputs and initialisers, checked before anything is made of them.

ONNX' own classes are protocol buffers, whose fields are empty rather than missing. Here an omitted input is "", an omitted
attribute is not in the dict, and a size that the file leaves open is None.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.interchange.onnx.package import onnx_package
from tapeprop.interchange.onnx.versions import converted

__all__ = ["Model", "Node", "Value", "read"]

#: A path, the bytes of a file, or an onnx.ModelProto.
Source = Any

#: The oldest version of the operators that is read: later versions took attributes to inputs and changed defaults.
OLDEST_OPSET = 13


@dataclass(frozen=True)
class Value:
    """An input or output. shape: None where the file gives none; dtype: NumPy's name."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Node:
    """One application of an operator.

    name: as in the file, or made of the operator and the node's place. inputs, outputs: names of values, "" for an omitted one.
    attributes: {name: int, float, str, array or list of such}. opset: the version of the operator's domain. asked: the attributes
    that were asked for: one that was not is refused, as nobody honoured it.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = OLDEST_OPSET
    domain: str = ""
    asked: set[str] = field(default_factory=set, compare=False, repr=False)

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute, or the default where the file does not give it."""
        self.asked.add(attribute)
        return self.attributes.get(attribute, default)

    def fail(self, expected: str, received: Any, remedy: str = "") -> GraphError:
        """The error that names this node."""
        return GraphError(
            f"ONNX node {self.name!r} ({self.op}): expected {expected}, got {received}{': ' + remedy if remedy else ''}"
        )


@dataclass(frozen=True)
class Model:
    """A model that was read. initializers: {name: array}, of inputs with a value as well; nodes: in an order that can be run."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    initializers: Mapping[str, np.ndarray]
    nodes: tuple[Node, ...]
    name: str = ""
    opset: int = OLDEST_OPSET


def read(source: Source) -> Model:
    """The model in a file. GraphError where it is no model, or one that cannot be read: see docs/onnx.md."""
    onnx = onnx_package("load")
    if isinstance(source, onnx.ModelProto):
        proto = source
    elif isinstance(source, bytes):
        proto = onnx.load_model_from_string(source)
    else:
        proto = onnx.load(os.fspath(source))
    proto = current_version(proto, "load")
    graph = proto.graph
    opsets = {entry.domain or "": entry.version for entry in proto.opset_import}
    initializers = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    return Model(
        inputs=tuple(_value(entry) for entry in graph.input if entry.name not in initializers),
        outputs=tuple(_value(entry) for entry in graph.output),
        initializers=initializers,
        nodes=tuple(_node(entry, place, opsets) for place, entry in enumerate(graph.node)),
        name=graph.name,
        opset=opsets.get("", 0),
    )


def current_version(proto: Any, where: str) -> Any:
    """The model in a version of the operators that is read. GraphError where there is no way to one."""
    version = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), OLDEST_OPSET)
    return proto if version >= OLDEST_OPSET else converted(proto, version, OLDEST_OPSET, where)


def _value(entry: Any) -> Value:
    onnx = onnx_package("load")
    kind = entry.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else "unknown"
    if not kind.HasField("shape"):
        return Value(entry.name, dtype, None)
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in kind.shape.dim)
    return Value(entry.name, dtype, shape)


def _node(entry: Any, place: int, opsets: Mapping[str, int]) -> Node:
    onnx = onnx_package("load")
    domain = "" if entry.domain == "ai.onnx" else entry.domain
    name = entry.name or f"{entry.op_type}_{place}"
    attributes: dict[str, Any] = {}
    for attribute in entry.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.GraphProto):
            raise GraphError(
                f"ONNX node {name!r} ({entry.op_type}): expected an operator without graphs of its own, got control flow: "
                "unroll it before the export"
            )
        if isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.to_array(value)
        elif isinstance(value, bytes):
            value = value.decode()
        elif attribute.type == onnx.AttributeProto.STRINGS:
            value = [text.decode() for text in value]
        elif not isinstance(value, int | float | str):
            value = list(value)
        attributes[attribute.name] = value
    return Node(
        op=entry.op_type,
        name=name,
        inputs=tuple(entry.input),
        outputs=tuple(entry.output),
        attributes=attributes,
        opset=opsets.get(entry.domain, opsets.get("", 0)),
        domain=domain,
    )
