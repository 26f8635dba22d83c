"""An ONNX model as plain data: nodes, inputs, outputs and initialisers, checked before anything is made of them.

ONNX' own classes are protocol buffers, whose fields are empty rather than missing. Here an omitted input is "", an omitted
attribute is not in the dict, and a size that the file leaves open is None. `files` reads bytes and tensors.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tapeprop.errors import CycleError, GraphError, WeightFileError
from tapeprop.graph.structure import find_cycle
from tapeprop.interchange.onnx.files import DTYPES, Files, dtype_name, read_proto, text
from tapeprop.interchange.onnx.package import onnx_package
from tapeprop.interchange.onnx.versions import converted
from tapeprop.interchange.safetensors import shown

__all__ = ["Model", "Node", "Source", "Value", "check_schema", "read"]

#: A path, the bytes of a file, or an onnx.ModelProto.
Source = Any

#: The oldest version of the operators that is read: later versions took attributes to inputs and changed defaults.
OLDEST_OPSET = 13
#: Names are cut for errors: a file may give one of any length.
LONGEST_NAME = 200
#: Entries of an attribute, which has one for each axis. Constant, whose attributes are data, has no limit.
MOST_ENTRIES = 4096
CYCLE_SHOWN = 12


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
    """The model in a file: all of it, or an error.

    WeightFileError for a file that is no sound model: truncated, corrupt, above 2 GiB, external data that leaves the model's
    folder, tensors whose shape does not fit their bytes, or whose format is not read. GraphError, naming node or value, for a
    model that makes no sense or is not read: control flow, functions of its own, versions of the operators that are not known;
    CycleError. OSError where the file cannot be opened.
    """
    proto, files = read_proto(source)
    try:
        return _model(current_version(proto, files), files)
    except UnicodeDecodeError as error:
        raise WeightFileError(
            f"{files.name}: expected names in UTF-8, got {error.reason}: the file is corrupt"
        ) from error


def current_version(proto: Any, files: Files) -> Any:
    """The model in a version of the operators that is read. GraphError where there is no way to one."""
    newest = onnx_package("load").defs.onnx_opset_version()
    version = _opsets(proto, files).get("")
    if version is None and all(not _domain(node.domain) for node in proto.graph.node):
        raise WeightFileError(
            f"{files.name}: expected a model that names the version of its operators, got none: the file is no ONNX model, or corrupt"
        )
    if version is None or OLDEST_OPSET <= version <= newest:
        return proto
    if version > newest:
        raise GraphError(
            f"{files.name}: expected operators of version {OLDEST_OPSET} to {newest}, got opset {version}: install a newer onnx"
        )
    return converted(proto, version, OLDEST_OPSET, files.name)


def _opsets(proto: Any, files: Files) -> dict[str, int]:
    """{domain: version of its operators}."""
    found: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = _domain(entry.domain)
        if found.setdefault(domain, entry.version) != entry.version:
            raise GraphError(
                f"{files.name}: expected one version of the operators of {domain or 'ai.onnx'!r}, got {found[domain]} and "
                f"{entry.version}: the file is corrupt"
            )
    return found


def _domain(name: Any) -> str:
    return "" if text(name) == "ai.onnx" else text(name)


def _model(proto: Any, files: Files) -> Model:
    graph, opsets = proto.graph, _opsets(proto, files)
    if proto.functions:
        names = ", ".join(shown(entry.name) for entry in proto.functions[:5])
        raise GraphError(
            f"{files.name}: expected operators of ONNX alone, got functions of the model's own, {names}: write them out with "
            "onnx.inliner.inline_local_functions(model)"
        )
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise GraphError(
            f"{files.name}: expected dense initialisers, got {shown(name)}, which is sparse: make it dense"
        )
    initializers: dict[str, np.ndarray] = {}
    for entry in graph.initializer:
        name = text(entry.name)
        if not name or name in initializers:
            raise GraphError(f"{files.name}: expected initialisers with names that differ, got {shown(name)}")
        initializers[name] = files.array(entry, f"initialiser {shown(name)}")
    inputs = [_value(entry, "input", files) for entry in graph.input if text(entry.name) not in initializers]
    outputs = [_value(entry, "output", files) for entry in graph.output]
    nodes = [_node(entry, place, opsets, files) for place, entry in enumerate(graph.node)]
    _check_ends(inputs, outputs, files)
    return Model(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        initializers=initializers,
        nodes=_in_order(nodes, [*(value.name for value in inputs), *initializers], outputs, files),
        name=text(graph.name),
        opset=opsets.get("", 0),
    )


# ---- inputs and outputs


def _value(entry: Any, what: str, files: Files) -> Value:
    name = text(entry.name)
    where = f"{files.name}: {what} {shown(name)}"
    if entry.type.WhichOneof("value") not in (None, "tensor_type"):
        kind = entry.type.WhichOneof("value").removesuffix("_type")
        raise GraphError(f"{where}: expected a tensor, got a {kind}: export a model of tensors")
    kind = entry.type.tensor_type
    dtype = dtype_name(kind.elem_type)
    if what == "input" and dtype not in _READ:
        raise GraphError(f"{where}: expected {', '.join(sorted(_READ))}, got {dtype}: export the model in float32")
    if not kind.HasField("shape"):
        return Value(name, dtype, None)
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else (text(dim.dim_param) or None) for dim in kind.shape.dim
    )
    if len(shape) > 64 or any(isinstance(size, int) and size < 0 for size in shape):
        raise GraphError(f"{where}: expected at most 64 sizes >= 0, got {shown(shape)}: the file is corrupt")
    return Value(name, dtype, shape)


_READ = {np.dtype(stored).newbyteorder("=").name for stored, _ in DTYPES.values()}


def _check_ends(inputs: Sequence[Value], outputs: Sequence[Value], files: Files) -> None:
    seen = {""}
    for value in inputs:
        if value.name in seen:
            raise GraphError(f"{files.name}: expected inputs with names that differ, got {shown(value.name)}")
        seen.add(value.name)
    if not outputs:
        raise GraphError(
            f"{files.name}: expected a model with an output, got none: the file is no ONNX model, or corrupt"
        )


# ---- nodes


def _node(entry: Any, place: int, opsets: Mapping[str, int], files: Files) -> Node:
    domain = _domain(entry.domain)
    op, inputs, outputs = text(entry.op_type), tuple(map(text, entry.input)), tuple(map(text, entry.output))
    name = (text(entry.name) or f"{op}_{place}")[:LONGEST_NAME]
    node = Node(op[:LONGEST_NAME], name, inputs, outputs, {}, opsets.get(domain, 0), domain)
    if not domain and domain not in opsets:
        raise node.fail("a version of the operators of ONNX in the file", "none", "the file is corrupt")
    attributes: dict[str, Any] = {}
    for attribute in entry.attribute:
        key = text(attribute.name)
        if key in attributes:
            raise node.fail("attributes with names that differ", f"{shown(key)} twice", "the file is corrupt")
        attributes[key] = _attribute(attribute, node, files)
    node = replace(node, attributes=attributes)
    check_schema(node)
    return node


def _attribute(attribute: Any, node: Node, files: Files) -> Any:
    """The value: a number, a text, an array, or a list of such."""
    kind = onnx_package("load").AttributeProto.AttributeType
    name = shown(text(attribute.name))
    if attribute.type in (kind.GRAPH, kind.GRAPHS):
        raise node.fail("an operator without graphs of its own", "control flow", "unroll it before the export")
    if attribute.ref_attr_name:
        raise node.fail(f"a value for attribute {name}", "the name of another", "export it again")
    if attribute.type == kind.TENSOR:
        return files.array(attribute.t, f"ONNX node {node.name!r} ({node.op}): attribute {name}")
    if attribute.type == kind.STRING:
        return text(attribute.s)
    if attribute.type == kind.INT:
        return attribute.i
    if attribute.type == kind.FLOAT:
        found: Any = [attribute.f]
    elif attribute.type in (kind.INTS, kind.FLOATS):
        found = attribute.ints if attribute.type == kind.INTS else attribute.floats
    elif attribute.type == kind.STRINGS:
        found = list(map(text, attribute.strings))
    else:
        received = kind.Name(attribute.type).lower() if attribute.type in kind.values() else f"type {attribute.type}"
        raise node.fail(f"numbers, text or a dense tensor for attribute {name}", received)
    if node.op != "Constant":
        if len(found) > MOST_ENTRIES:
            raise node.fail(
                f"at most {MOST_ENTRIES:,} entries in attribute {name}", f"{len(found):,}", "the file is corrupt"
            )
        if attribute.type in (kind.FLOAT, kind.FLOATS) and any(map(math.isnan, found)):
            raise node.fail(f"numbers in attribute {name}", "NaN", "the file is corrupt")
    if attribute.type in (kind.FLOAT, kind.FLOATS):
        found = [float(str(np.float32(number))) for number in found]  # 0.1 is meant, not float32's nearest number
    return found[0] if attribute.type == kind.FLOAT else list(found)


_PYTHON = {
    "INT": int,
    "FLOAT": float,
    "STRING": str,
    "TENSOR": np.ndarray,
    "INTS": list,
    "FLOATS": list,
    "STRINGS": list,
}


def check_schema(node: Node) -> None:
    """GraphError where inputs, outputs or attributes are not those that ONNX gives the operator; other domains are not looked at.

    What reads a node may then rely on their number and kinds.
    """
    defs = onnx_package("load").defs
    if node.domain or not defs.has(node.op, node.domain):
        return  # the importer refuses what it does not know
    try:
        schema = defs.get_schema(node.op, node.opset, node.domain)
    except defs.SchemaError:
        raise node.fail(
            "an operator of its model's version", f"opset {node.opset}, which has none of that name"
        ) from None
    for what, names, least, most in (
        ("inputs", node.inputs, schema.min_input, schema.max_input),
        ("outputs", node.outputs, schema.min_output, schema.max_output),
    ):
        if not least <= len(names) <= most:
            raise node.fail(f"the {what} that the operator has", f"{len(names)} {what}")
    for name, value in node.attributes.items():
        if name not in schema.attributes:
            raise node.fail(f"attributes that {node.op} has here", name[:LONGEST_NAME], "leave them out")
        kind = schema.attributes[name].type.name
        if not isinstance(value, _PYTHON.get(kind, object)) or _entries(value, kind):
            raise node.fail(f"attribute {name!r} of type {kind}", shown(value))
    missing = [
        name for name, attribute in schema.attributes.items() if attribute.required and name not in node.attributes
    ]
    if missing:
        raise node.fail(f"attribute {missing[0]!r}", "none", "the file is corrupt")


def _entries(value: Any, kind: str) -> bool:
    """Whether a list has entries of another type than its kind; Constant's long lists are of one kind already."""
    wanted = {"INTS": int, "FLOATS": float, "STRINGS": str}.get(kind)
    return wanted is not None and bool(value) and not isinstance(value[0], wanted)


def _in_order(nodes: Sequence[Node], given: Sequence[str], outputs: Sequence[Value], files: Files) -> tuple[Node, ...]:
    """The nodes, each after those that make its inputs; the file's order where it can be.

    GraphError for a value that is made twice or by none; CycleError.
    """
    maker: dict[str, int] = dict.fromkeys(given, -1)
    for place, node in enumerate(nodes):
        for name in filter(None, node.outputs):
            if name in maker:
                other = "an input or initialiser" if maker[name] < 0 else f"an output of {nodes[maker[name]].name!r}"
                raise node.fail("outputs with names of their own", f"{shown(name)}, which is {other} as well")
            maker[name] = place
    following: dict[int, list[int]] = {place: [] for place in range(len(nodes))}
    waiting = [0] * len(nodes)
    for place, node in enumerate(nodes):
        for name in filter(None, node.inputs):
            if name not in maker:
                raise node.fail(
                    "inputs that come before it", f"{shown(name)}, which nothing makes", "the file is corrupt"
                )
            if maker[name] >= 0:
                following[maker[name]].append(place)
                waiting[place] += 1
    for value in outputs:
        if value.name not in maker:
            raise GraphError(f"{files.name}: output {shown(value.name)}: expected a node that gives it, got none")
    ready = [place for place, count in enumerate(waiting) if not count]
    order = []
    while ready:
        place = heapq.heappop(ready)
        order.append(nodes[place])
        for target in following[place]:
            waiting[target] -= 1
            if not waiting[target]:
                heapq.heappush(ready, target)
    if len(order) < len(nodes):
        cycle = find_cycle(following) or []
        names = [nodes[place].name for place in [*cycle, *cycle[:1]]]
        path = " -> ".join(names if len(names) <= CYCLE_SHOWN else [*names[: CYCLE_SHOWN - 2], "...", names[-1]])
        raise CycleError(f"{files.name}: expected nodes without cycles, got {path}: the file is corrupt")
    return tuple(order)
