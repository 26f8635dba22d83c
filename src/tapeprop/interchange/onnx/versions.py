"""Models of older operators in a version that is read, by onnx.version_converter and where that is silent or wrong by hand.

The converter is asked for version 13, the first that is read. It leaves as they are, with other numbers (onnx 1.23):
Resize of version 10 and Upsample, whose coordinates were "asymmetric" where later ones are "half_pixel" by default; operands before
version 7 with a place in the middle by `axis`, PRelu's slopes along axis 1 among them; BatchNormalization and Dropout before version 7
without is_test, which trained; Hardmax, which was over all axes from `axis` on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.interchange.onnx.package import onnx_package

__all__ = ["OLDEST_CONVERTED", "converted"]

#: ONNX' own old cases, which show that converting works, are of versions 6, 9, 10 and 12.
OLDEST_CONVERTED = 6
#: The most elements of an initialiser that the converter is given.
LIGHT = 1024
#: Operators that had the attributes broadcast and axis.
BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow")
#: The most sizes that a shape may have in a model to convert: onnx takes 4 s for a million.
MOST_AXES = 2**16
#: Operators that make no more elements than their first operand has, and those that broadcast.
_KEEPING = (
    "Cast",
    "Identity",
    "Unsqueeze",
    "Squeeze",
    "Slice",
    "Neg",
    "Abs",
    "Floor",
    "Ceil",
    "Flatten",
    "Reshape",
    "Transpose",
)
_ELEMENTWISE = (*BROADCASTING, "Mod", "Equal", "Less", "Greater", "Where", "Min", "Max", "And", "Or", "Not")


def converted(proto: Any, version: int, wanted: int, where: str) -> Any:
    """The model (an onnx.ModelProto of operators of `version`) as one of version `wanted`; `proto` itself stays as it is.

    where: the file's name for errors. GraphError for a version older than 6, and where an operator cannot be converted.
    """
    try:
        return _converted(proto, version, wanted, where)
    except UnicodeDecodeError as error:
        raise GraphError(f"{where}: expected names in UTF-8, got {error.reason}: the file is corrupt") from error


def _converted(proto: Any, version: int, wanted: int, where: str) -> Any:
    onnx = onnx_package("load")
    what = f"{where}: expected operators of version {wanted} or later, got opset {version}"
    again = f"export the model again with opset {wanted} or later"
    if version < OLDEST_CONVERTED:
        raise GraphError(f"{what}, of which only {OLDEST_CONVERTED} and later are converted: {again}")
    for place, node in enumerate(proto.graph.node):
        reason = _refused(node, version) if node.domain in ("", "ai.onnx") else ""
        if reason:
            name = node.name or f"{node.op_type}_{place}"
            raise GraphError(f"{what}: ONNX node {name!r} ({node.op_type}): {reason}: {again}")
    if proto.functions or proto.graph.sparse_initializer:
        raise GraphError(f"{what}, with functions or sparse initialisers, which are not read: {again}")
    heavy = [entry for entry in proto.graph.initializer if _is_heavy(entry)]
    source = _without(proto, heavy)
    try:
        onnx.checker.check_model(source)  # what is malformed reaches no C++ code that takes it to be sound
        _check_ranks(source.graph)
        found = onnx.version_converter.convert_version(_with_axes(source) if version < 7 else source, wanted)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(f"{what}, and a model that ONNX does not accept: {_first_line(error)}: {again}") from error
    except (onnx.version_converter.ConvertError, RuntimeError, ValueError, IndexError) as error:
        raise GraphError(f"{what}, which onnx cannot convert: {_first_line(error)}: {again}") from error
    if version <= 10:
        growing = {node.output[0] for node in proto.graph.node if node.op_type == "Upsample" and node.output}
        _as_upsample(found, growing, what, again)
    found.graph.initializer.extend(heavy)
    return found


def _is_heavy(tensor: Any) -> bool:
    """Whether a tensor is left out of the conversion: a weight, not sizes or the like; or one that lies in another file."""
    onnx = onnx_package("load")
    return math.prod(tensor.dims) > LIGHT or tensor.data_location == onnx.TensorProto.EXTERNAL


def _without(proto: Any, tensors: list[Any]) -> Any:
    """A copy of the model in which these initialisers are inputs: the converter looks at their shapes alone, and copies are large."""
    onnx = onnx_package("load")
    left_out, inputs = {entry.name for entry in tensors}, {value.name for value in proto.graph.input}
    found = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    graph, old = found.graph, proto.graph
    graph.name = old.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(old, field))
    graph.initializer.extend(entry for entry in old.initializer if entry.name not in left_out)
    for entry in tensors:
        if entry.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(entry.name, entry.data_type, entry.dims))
    return found


def _check_ranks(graph: Any) -> None:
    """ValueError where a shape may be of more than `MOST_AXES` sizes: shape inference would list them all, for hours."""
    bounds = {entry.name: math.prod(entry.dims) for entry in graph.initializer}
    for value in graph.input:
        sizes = [dim.dim_value if dim.dim_value > 0 else MOST_AXES for dim in value.type.tensor_type.shape.dim]
        bounds.setdefault(value.name, math.prod(sizes))
    shapes = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Shape"}
    values = {entry.name: entry for entry in graph.initializer}
    for node in graph.node:
        operands = [bounds.get(name, math.inf) for name in node.input if name]
        place = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}.get(node.op_type)
        if place is not None and operands[place] > MOST_AXES:
            raise ValueError(f"{node.op_type} {node.name!r} to a shape that may have more than {MOST_AXES:,} sizes")
        found: float = math.inf
        if node.op_type == "Shape":
            found = MOST_AXES // 64
        elif node.op_type == "Constant":
            found = max([1, *(math.prod(attribute.t.dims) for attribute in node.attribute)])
        elif node.op_type == "ConstantOfShape" and node.input[0] in shapes:
            found = bounds.get(shapes[node.input[0]], math.inf)
        elif node.op_type == "ConstantOfShape" and node.input[0] in values:
            found = math.prod(map(int, onnx_package("load").numpy_helper.to_array(values[node.input[0]])))
        elif node.op_type == "Concat":
            found = sum(operands)
        elif node.op_type == "Gather":
            found = operands[1]
        elif node.op_type in _KEEPING:
            found = operands[0]
        elif node.op_type in _ELEMENTWISE:
            found = math.prod(operands)
        bounds.update((name, found) for name in node.output if name)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][-200:]


def _refused(node: Any, version: int) -> str:
    """Why a node cannot be converted; "" where it can."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type in ("BatchNormalization", "Dropout") and version < 7 and not given.get("is_test", 0):
        return "expected is_test, got the training mode of old versions"
    if node.op_type == "Hardmax":
        return "is over other axes in later versions"
    return ""


def _with_axes(proto: Any) -> Any:
    """The model with second operands that have all axes up to the last, instead of the attributes broadcast and axis.

    Before version 7 an operand had its place among the axes of the first one by `axis`, and PRelu's slopes theirs along axis 1.
    ValueError where a rank is not known.
    """
    onnx = onnx_package("load")
    ranks = {entry.name: len(entry.dims) for entry in proto.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(proto)
    for value in (*inferred.graph.input, *inferred.graph.value_info):
        if value.type.tensor_type.HasField("shape"):
            ranks.setdefault(value.name, len(value.type.tensor_type.shape.dim))
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    nodes = []
    for place, node in enumerate(found.graph.node):
        axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
        if node.op_type == "PRelu" or (node.op_type in BROADCASTING and axes):
            rank, own = (ranks.get(name) for name in node.input)
            if rank is None or own is None:
                raise ValueError(f"{node.op_type} {node.name!r} of operands whose rank is not known")
            axis = 1 if node.op_type == "PRelu" else axes[0] % max(rank, 1)
            if own and axis + own < rank:
                wide = f"{node.input[1]}_of_{node.op_type}_{place}"
                behind = list(range(own, rank - axis))
                nodes.append(onnx.helper.make_node("Unsqueeze", [node.input[1]], [wide], axes=behind))
                node.input[1] = wide
            kept = [attribute for attribute in node.attribute if attribute.name not in ("axis", "broadcast")]
            del node.attribute[:]
            node.attribute.extend(kept)
        nodes.append(node)
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    return found


def _as_upsample(proto: Any, growing: set[str], what: str, again: str) -> None:
    """Gives each Resize what Upsample, and Resize of version 10, meant. growing: the outputs of Upsample.

    Its nearest element is the one before where the image grows, and the one behind where it shrinks: so ONNX' cases of version 10.
    """
    onnx = onnx_package("load")
    arrays = {entry.name: entry for entry in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            arrays[node.output[0]] = node.attribute[0].t
        if node.op_type != "Resize":
            continue
        rounding = "floor"
        modes = [attribute.s for attribute in node.attribute if attribute.name == "mode"]
        if modes in ([], [b"nearest"]) and node.output[0] not in growing:
            if len(node.input) < 3 or node.input[2] not in arrays:
                raise GraphError(f"{what}: ONNX node {node.name!r} (Resize): expected scales that are known: {again}")
            scales = onnx.numpy_helper.to_array(arrays[node.input[2]])
            if not (np.all(scales >= 1) or np.all(scales <= 1)):
                raise GraphError(
                    f"{what}: ONNX node {node.name!r} (Resize): expected scales that all grow or all shrink, got {scales}: {again}"
                )
            rounding = "floor" if np.all(scales >= 1) else "ceil"
        node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        node.attribute.append(onnx.helper.make_attribute("nearest_mode", rounding))
