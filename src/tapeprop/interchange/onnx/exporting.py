"""Graphs and functions as models that other programs run: `save` and `to_model`."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.interchange.onnx.package import onnx_package
from tapeprop.interchange.onnx.recording import Recorded, alone, recorded
from tapeprop.interchange.onnx.writers import PATTERNS, WITHOUT, WRITERS, Builder, NewNode, Settings, Step, steps
from tapeprop.interchange.onnx.writers.builder import ELEMENT_TYPES, where
from tapeprop.ir import Tensor
from tapeprop.ir.dims import Dim
from tapeprop.ops import registry
from tapeprop.runtime.writing import whole_file

__all__ = ["save", "to_model"]

#: The oldest version of the operators that is written, and the one that is by default; runtimes of 2025 have it.
OLDEST_OPSET = 17
USUAL_OPSET = 23
#: Bytes of initialisers from which on a file of its own holds them: a protocol buffer takes less than 2 GiB, nodes included.
MOST_INSIDE = 2**31 - 2**24
#: Where an initialiser begins in that file: what is mapped into memory is aligned for any load.
ALIGNMENT = 64


def to_model(graph_or_function: Any, *, input_shape: Any = None, opset: int | None = None) -> Any:
    """The onnx.ModelProto of a `LayerGraph`, built or not, or of a `tapeprop.Function`, as it is for inference.

    input_shape: as build() takes it, None where a size is open; by default that of build() or of the placeholders. opset: the version
    of the operators, from 17 on; 23 by default. Weights are copied as they are now, in the graph's dtype; the graph stays as it is.

    GraphError, naming node and op, for what ONNX does not have (Python, ops of your own, gradients), for weights of 2 GiB and more
    (`save` writes those), and where the package onnx is not installed; ShapeError where an open size decides what is computed.
    """
    model, arrays = _model(graph_or_function, input_shape, opset)
    size = sum(array.nbytes for array in arrays.values())
    if size >= MOST_INSIDE:
        raise GraphError(
            f"to_model: expected weights of less than {MOST_INSIDE:,} bytes, got {size:,}: write a file with save()"
        )
    model.graph.initializer.extend(_inside(name, array) for name, array in arrays.items())
    return model


def save(
    graph_or_function: Any, path: str | os.PathLike[str], *, input_shape: Any = None, opset: int | None = None
) -> None:
    """Writes `to_model` of a graph or function to a file, whole or not at all.

    Weights of 2 GiB and more go to a file beside it, `<name>.<digest of the weights>.data`, which the model names: it is there
    before the model is, and never takes the place of one that an older model needs. Errors as `to_model`'s; OSError.
    """
    model, arrays = _model(graph_or_function, input_shape, opset)
    if sum(array.nbytes for array in arrays.values()) < MOST_INSIDE:
        model.graph.initializer.extend(_inside(name, array) for name, array in arrays.items())
    else:
        model.graph.initializer.extend(_write_beside(os.fspath(path), arrays))
    with whole_file(path, binary=True, durable=True) as file:
        file.write(model.SerializeToString(deterministic=True))


# ---- from a program to nodes


def _model(source: Any, input_shape: Any, opset: int | None) -> tuple[Any, dict[str, np.ndarray]]:
    """(the model without initialisers, these)."""
    onnx = onnx_package("export")
    opset = _checked_opset(opset, onnx.defs.onnx_opset_version())
    with alone(source):
        program = recorded(source, input_shape)
        names = _names(program)
        builder, outputs = _written(program, names, Settings(opset, program.dtype))
    nodes = _read(builder.nodes, [name for name, _ in outputs])
    _check_text([*names, *builder.initializers, *(node.name for node in nodes)])
    helper = onnx.helper
    graph = helper.make_graph(
        [_node(onnx, node) for node in nodes],
        program.name,
        [_value(onnx, name, tensor) for name, tensor in names.items()],
        [_value(onnx, name, tensor) for name, tensor in outputs],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    model.producer_name, model.producer_version = "tapeprop", sys.modules["tapeprop"].__version__
    read = {name for node in nodes for name in node.inputs}
    return model, {name: array for name, array in builder.initializers.items() if name in read}


def _checked_opset(opset: int | None, newest: int) -> int:
    if opset is None:
        return min(USUAL_OPSET, newest)
    if isinstance(opset, bool) or not isinstance(opset, int) or not OLDEST_OPSET <= opset <= newest:
        raise GraphError(f"export: expected opset to be an int from {OLDEST_OPSET} to {newest}, got {opset!r}")
    return opset


def _check_text(names: Sequence[str]) -> None:
    """GraphError for a name that a protocol buffer does not hold: half a surrogate pair."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise GraphError(f"export: expected names in UTF-8, got {name!r}; rename the node") from None


def _names(program: Recorded) -> dict[str, Tensor]:
    """{name: input}; inputs of one name get numbers."""
    found: dict[str, Tensor] = {}
    for name, tensor in program.inputs:
        wanted, number = name, 0
        while name in found:
            number += 1
            name = f"{wanted}_{number}"
        found[name] = tensor
    return found


def _written(
    program: Recorded, inputs: Mapping[str, Tensor], settings: Settings
) -> tuple[Builder, list[tuple[str, Tensor]]]:
    """(the nodes, the outputs by name)."""
    ends = [tensor for _, tensor in program.outputs]
    todo = steps(ends, PATTERNS, settings)
    builder = Builder(settings, inputs, program.keys, [name for name, _ in program.outputs])
    for step in todo:
        builder.begin(step)
        _write(builder, step)
    return builder, _name_outputs(builder, program)


def _write(builder: Builder, step: Step) -> None:
    write = WRITERS.get(step.op)
    if write is None or _is_own(step):
        reason = WITHOUT.get(step.op, "it is an op of your own; write the formula in tapeprop.ops")
        raise GraphError(f"{where(step.node, step.op)}: expected an op that ONNX has, got {step.op}: {reason}")
    found = write(builder, step, *map(builder.value, step.operands))
    for tensor, name in zip(step.results, found if isinstance(found, tuple) else (found,)):
        builder.values[tensor] = name


def _is_own(step: Step) -> bool:
    """Whether an op is the user's, whatever it is called: a class of his, or what was made of his kernel."""
    call = step.results[0].producer
    assert call is not None
    ours = type(call.op).__module__.split(".")[:2] == ["tapeprop", "ops"]
    return not ours or registry.get(call.op.name) is not call.op


def _name_outputs(builder: Builder, program: Recorded) -> list[tuple[str, Tensor]]:
    """The outputs under the names that they should bear; an Identity where a value is an input, a weight or an output already."""
    made = {output: node for node in builder.nodes for output in node.outputs}
    used = set(builder.initializers) | {name for name in builder.values.values() if name not in made}
    found: list[tuple[str, Tensor]] = []
    renamed: dict[str, str] = {}
    for wanted, tensor in program.outputs:
        value = builder.value(tensor)
        name, number = wanted, 0
        while name in used:
            number += 1
            name = f"{wanted}/output" if number == 1 else f"{wanted}/output_{number}"
        used.add(name)
        found.append((name, tensor))
        if value in made and value not in renamed:
            renamed[value] = name
        else:
            builder.nodes.append(NewNode("Identity", builder.unique(f"{wanted}/Identity"), [value], [name]))
    for node in builder.nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        node.outputs = [renamed.get(name, name) for name in node.outputs]
    return found


def _read(nodes: Sequence[NewNode], outputs: Sequence[str]) -> list[NewNode]:
    """The nodes that the outputs depend on: a writer may have found a better operand than the one that was written for it."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.outputs):
            found.append(node)
            wanted.update(node.inputs)
    return found[::-1]


# ---- from nodes to a protocol buffer


def _node(onnx: Any, node: NewNode) -> Any:
    tensors = {key: onnx.numpy_helper.from_array(v) for key, v in node.attributes.items() if isinstance(v, np.ndarray)}
    return onnx.helper.make_node(node.op, node.inputs, node.outputs, node.name, **{**node.attributes, **tensors})


def _value(onnx: Any, name: str, tensor: Tensor) -> Any:
    shape = [str(size) if isinstance(size, Dim) else int(size) for size in tensor.shape]
    return onnx.helper.make_tensor_value_info(name, ELEMENT_TYPES[tensor.dtype], shape)


def _inside(name: str, array: np.ndarray) -> Any:
    proto = _described(name, array)
    proto.raw_data = _bytes(array).tobytes()
    return proto


def _described(name: str, array: np.ndarray) -> Any:
    onnx = onnx_package("export")
    return onnx.TensorProto(name=name, data_type=ELEMENT_TYPES[str(array.dtype)], dims=array.shape)


def _bytes(array: np.ndarray) -> np.ndarray:
    """The elements in row-major order, little-endian."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _write_beside(path: str, arrays: Mapping[str, np.ndarray]) -> list[Any]:
    """Writes the arrays to a file beside `path` and gives what stands for them in the model."""
    onnx = onnx_package("export")
    digest = hashlib.sha256()
    protos, place = [], 0
    for name, array in arrays.items():
        digest.update(_bytes(array).data.cast("B") if array.size else b"")
        place = -(-place // ALIGNMENT) * ALIGNMENT
        proto = _described(name, array)
        proto.data_location = onnx.TensorProto.EXTERNAL
        proto.external_data.add(key="offset", value=str(place))
        proto.external_data.add(key="length", value=str(array.nbytes))
        protos.append(proto)
        place += array.nbytes
    location = f"{os.path.basename(path)}.{digest.hexdigest()[:16]}.data"
    for proto in protos:
        proto.external_data.add(key="location", value=location)
    with whole_file(os.path.join(os.path.dirname(os.path.realpath(path)), location), binary=True, durable=True) as file:
        place = 0
        for array in arrays.values():
            file.write(b"\0" * (-place % ALIGNMENT))
            place += -place % ALIGNMENT
            file.write(_bytes(array).data)
            place += array.nbytes
    return protos
