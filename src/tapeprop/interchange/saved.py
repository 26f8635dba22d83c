"""Graphs in one file: the weights as safetensors, the structure as JSON in the file's metadata.

Any safetensors reader finds the weights, under the keys of `state_dict()`. The metadata:

    format      "tapeprop"
    graph       the structure; its form stands in `describe`
    build       the keyword arguments of build(), for a graph that was built; device and workers are the machine's
    trainable   {key: bool} of parameters whose `trainable` was changed by hand
    optimizer   what the optimizers remember besides arrays; their arrays are tensors called optimizer/<name>
    sha256      of the metadata and tensors; without it (a file that other tools have worked on) nothing is compared

A graph takes part in three of these if it offers the methods, as `tapeprop.LayerGraph` does: `build_options()` gives
build()'s arguments or None; `optimizer_state_dict()` gives {name: array or plain value}, which
`load_optimizer_state_dict(state, classes)` takes back once the graph is built (lists come back as tuples); its "rules"
name the classes of the optimizers.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from tapeprop import optimizers
from tapeprop.errors import DeviceError, GraphError, WeightFileError
from tapeprop.graph import GraphStructure
from tapeprop.graph.names import check_names
from tapeprop.graph.weights import check_keys
from tapeprop.interchange import safetensors
from tapeprop.interchange.construct import construct, decode, reason
from tapeprop.interchange.describe import Classes, arguments_of, describe, encode
from tapeprop.interchange.safetensors import Arrays, Layout, Path, shown
from tapeprop.ir import Parameter
from tapeprop.layers import Layer, Sequential

__all__ = ["load", "save"]

FORMAT = "tapeprop"
OPTIMIZER = "optimizer/"
#: Arguments of build() that say something about the machine, not the graph.
OF_THE_MACHINE = ("device", "workers")

Graph = TypeVar("Graph", bound=GraphStructure)


# ---- saving


def save(graph: GraphStructure, path: Path, classes: Classes | None = None) -> None:
    """Writes structure and weights to one file, whole or not at all.

    classes: {name: class} of the graph's layers and optimizers that are not tapeprop's; `load` wants them again. An initializer
    that is a function of your own is left out: the weights are drawn already. GraphError, naming the node, for a layer
    that cannot be written down (a Lambda, a class that is not in `classes`, parameters tied by hand); OSError.
    """
    if not isinstance(graph, GraphStructure):
        raise GraphError(f"save: expected a graph, got {type(graph).__name__}")
    description = describe(graph, classes)
    check_names(graph.labels)
    check_keys(graph.walk())
    metadata = {"format": FORMAT, "graph": _json(description)}
    trainable = _changed_by_hand(graph, description, classes)
    if trainable:
        metadata["trainable"] = _json(trainable)
    options = _ask(graph, "build_options")
    if options is not None:
        kept = {name: value for name, value in options.items() if name not in OF_THE_MACHINE}
        metadata["build"] = _json({n: encode(x, f"save: build: {n}", _no_layer) for n, x in kept.items()})
    tensors = graph.state_dict()
    optimizer = _ask(graph, "optimizer_state_dict")
    if optimizer is not None:
        _check_rules(optimizer.get("rules", ()), classes)
        arrays = {OPTIMIZER + name: value for name, value in optimizer.items() if isinstance(value, np.ndarray)}
        if clash := arrays.keys() & tensors.keys():
            raise GraphError(
                f"save: expected state keys that do not begin with {OPTIMIZER}, got {min(clash)!r}: rename the node"
            )
        plain = {name: value for name, value in optimizer.items() if OPTIMIZER + name not in arrays}
        metadata["optimizer"] = _json({n: encode(x, f"save: optimizer: {n}", _no_layer) for n, x in plain.items()})
        tensors.update(arrays)
    metadata["sha256"] = _digest(metadata, tensors)
    safetensors.write(path, tensors, metadata)


def _ask(graph: GraphStructure, method: str) -> Any:
    """What a method of the graph says; None where it does not have it."""
    return getattr(graph, method, lambda: None)()


def _check_rules(rules: Sequence[Any], classes: Classes | None) -> None:
    """GraphError where load() would not know the class of an optimizer."""
    for name in (rule["class"] for rule in rules):
        if name not in optimizers.__all__ and name not in (classes or {}):
            raise GraphError(
                f"save: expected optimizers of tapeprop.optimizers, got {name}, a class of your own: give "
                f'classes={{"{name}": {name}}} here and to load, or save the weights alone with state_dict()'
            )


def _no_layer(layer: Layer) -> int:
    raise GraphError(f"save: expected a plain value, got the layer {layer!r}")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _changed_by_hand(graph: GraphStructure, description: Any, classes: Classes | None) -> dict[str, bool]:
    """Makes the graph again, compares, and gives {key: trainable} of the parameters that differ in that alone.

    So a file is never written that would load as something else. GraphError where anything else differs.
    """
    remedy = "save the weights alone with state_dict(), and rebuild the graph in code"
    try:
        again = construct(description, "save", classes, GraphStructure)
    except WeightFileError as error:
        raise GraphError(
            f"save: expected layers that their constructors' arguments make again: {error}; {remedy}"
        ) from error
    ours, theirs = dict(graph.walk()), dict(again.walk())
    for key in ours | theirs:
        mine, other = (_fact(walked[key]) if key in walked else "nothing" for walked in (ours, theirs))
        if mine != other:
            raise GraphError(
                f"save: {key!r}: expected what its layer's constructor makes, {other}, got {mine}; a parameter that "
                f"stands in two layers, or one that was replaced, cannot be written down: use one layer in two nodes, "
                f"or {remedy}"
            )
    return {
        key: member.trainable
        for key, member in ours.items()
        if isinstance(member, Parameter) and member.trainable != theirs[key].trainable  # type: ignore[union-attr]
    }


def _fact(member: Layer | Parameter) -> str:
    """What has to be equal in a graph that was made again."""
    if isinstance(member, Parameter):
        return f"a parameter of shape {member.shape}" + (f" and dtype {member.dtype}" if member.dtype else "")
    if isinstance(member, GraphStructure | Sequential):
        return "a container"
    try:
        given = arguments_of(member, "")
        plain = {name: encode(x, "", lambda layer: 0) for name, x in given.items() if not name.endswith("initializer")}
    except GraphError:  # a layer that another makes for itself, and that need not be written down
        plain = {}
    return f"{type(member).__qualname__}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"


# ---- loading


def load(
    path: Path,
    classes: Classes | None = None,
    *,
    graph_class: type[Graph] = GraphStructure,  # type: ignore[assignment]
    build: bool = True,
    **options: Any,
) -> Graph:
    """The graph in a file, built if it was built when it was saved.

    classes: {name: class} of layers and optimizers that are not tapeprop's. graph_class: of the graph and those inside.
    build: False gives structure and weights alone. options: of build(), in place of those in the file.

    Nothing that a file names is imported or run. WeightFileError for a file that is truncated or corrupt, or whose
    structure and weights do not go together: sizes are compared before memory is taken. OSError; DeviceError.
    """
    with open(path, "rb") as file:
        layout = safetensors.read_layout(file, path)
        parts = _parts(layout)
        graph = construct(parts["graph"], layout.file, classes, graph_class)
        parameters = _checked_parameters(graph, layout, "optimizer" in parts)
        _set_trainable(parameters, parts.get("trainable", {}), layout.file)
        arrays = safetensors.read_arrays(file, layout)
    found = layout.metadata.get("sha256")
    if found is not None and found != (made := _digest(layout.metadata, arrays)):
        raise WeightFileError(
            f"{layout.file}: expected contents with sha256 {shown(found)}, got {made}: the file was damaged or edited"
        )
    for name, parameter in parameters.items():
        parameter.assign(arrays.pop(name))
    if build and ("build" in parts or options):
        _build(graph, parts.get("build", {}), options, layout.file)
    if graph.built_ and "optimizer" in parts and hasattr(graph, "load_optimizer_state_dict"):
        state = {**parts["optimizer"], **{name.removeprefix(OPTIMIZER): array for name, array in arrays.items()}}
        _guarded(
            lambda: graph.load_optimizer_state_dict(state, classes), layout.file, "optimizer state that fits the graph"
        )
    return graph


def _parts(layout: Layout) -> dict[str, Any]:
    """The values in the metadata."""
    if layout.metadata.get("format") != FORMAT or "graph" not in layout.metadata:
        raise WeightFileError(
            f"{layout.file}: expected a graph saved by graph.save(path), got tensors without a structure: build the "
            f"graph in code, and give load_state_dict() the tensors of safetensors.read(path)"
        )
    parts: dict[str, Any] = {}
    for key in ("graph", "build", "trainable", "optimizer"):
        if key in layout.metadata:
            parts[key] = safetensors.parse_json(layout.metadata[key], f"{layout.file}: metadata {key!r}")
            if not isinstance(parts[key], dict):
                raise WeightFileError(f"{layout.file}: metadata {key!r}: expected an object, got {shown(parts[key])}")
    for key in ("build", "optimizer"):
        if key in parts:
            items = parts[key].items()
            parts[key] = {name: decode(x, layout.file, f"{key}: {shown(name)}") for name, x in items}
    return parts


def _checked_parameters(graph: GraphStructure, layout: Layout, has_optimizer: bool) -> dict[str, Parameter]:
    """The parameters by key, none of them drawn. WeightFileError unless the file has a tensor that fits each."""
    try:
        check_names(graph.labels)
        check_keys(graph.walk())
    except GraphError as error:
        raise WeightFileError(f"{layout.file}: {reason(error)}") from error
    parameters = dict(graph.named_parameters())
    for name in layout.tensors:
        if name not in parameters and not (has_optimizer and name.startswith(OPTIMIZER)):
            raise WeightFileError(
                f"{layout.file}: tensor {shown(name)}: expected a parameter of the graph, got a name that none has: "
                f"the file is corrupt"
            )
    for name, parameter in parameters.items():
        dtypes = ("F64", "F32", "F16", "BF16") if parameter.dtype is None else (_name_of(parameter.dtype),)
        expected = f"{' or '.join(dtypes)} of shape {shown(parameter.shape)}"
        info = layout.tensors.get(name)
        if info is None or info.shape != parameter.shape or info.dtype not in dtypes:
            got = "nothing" if info is None else f"{info.dtype} of shape {shown(info.shape)}"
            raise WeightFileError(
                f"{layout.file}: tensor {shown(name)}: expected {expected}, got {got}: structure and weights do not go "
                f"together"
            )
    return parameters


def _name_of(dtype: str) -> str:
    return safetensors.NAMES[np.dtype(dtype)]


def _set_trainable(parameters: Mapping[str, Parameter], changes: dict[str, Any], file: str) -> None:
    for name, value in changes.items():
        if name not in parameters or not isinstance(value, bool) or parameters[name].dtype is not None:
            raise WeightFileError(
                f"{file}: trainable: expected weights and true or false, got {shown(name)}: {shown(value)}: the file "
                f"is corrupt"
            )
        parameters[name].trainable = value


def _build(graph: GraphStructure, saved: dict[str, Any], given: dict[str, Any], file: str) -> None:
    build = getattr(graph, "build", None)
    if build is None:
        if given:
            raise GraphError(f"load: {type(graph).__name__} has no build() that could take {', '.join(given)}")
        return
    taken = inspect.signature(build).parameters
    if wrong := [name for name in given if name not in taken]:
        raise TypeError(f"load: expected options of build() out of {', '.join(taken)}, got {', '.join(wrong)}")
    known = taken.keys() - set(OF_THE_MACHINE)
    unknown = [name for name in saved if name not in known]
    if unknown:
        got = ", ".join(map(shown, unknown[:20]))
        raise WeightFileError(
            f"{file}: build: expected options out of {', '.join(sorted(known))}, got {got}: the "
            f"file is corrupt, or of another version"
        )
    _guarded(lambda: build(**{**saved, **given}), file, "a graph that can be built")


def _guarded(step: Callable[[], object], file: str, expected: str) -> None:
    """Runs a step on what came from the file; whatever it says against that is the file's fault, not the machine's."""
    try:
        step()
    except (DeviceError, MemoryError):
        raise
    except Exception as error:
        raise WeightFileError(f"{file}: expected {expected}, got {reason(error)}") from error


def _digest(metadata: Mapping[str, str], tensors: Arrays) -> str:
    """The SHA-256 of everything but the digest itself, in an order of its own."""
    found = hashlib.sha256(_json(sorted(item for item in metadata.items() if item[0] != "sha256")).encode())
    for name in sorted(tensors):
        array = tensors[name]
        found.update(_json([name, safetensors.NAMES[array.dtype.newbyteorder("=")], array.shape]).encode())
        if array.size:
            found.update(safetensors.stored(array))
    return found.hexdigest()
