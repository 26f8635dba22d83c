"""A graph's structure as JSON; `construct` makes a graph of it again.

    {"version": 1, "layers": [...], "nodes": [...]}

`layers` is a table in which each layer object stands once, after all that it holds, so what is shared stays shared and
a file can describe no cycle; the last entry is the graph itself. An entry is one of

    {"class": "Conv2D", "arguments": {"in_channels": 3, ...}}
    {"class": "Sequential", "children": [["0", 4], ["relu", 5]]}
    {"class": "LayerGraph", "nodes": [7, 8], "numbers": [0, 2], "next_number": 3, "edges": [[1], []], "root": 0,
     "term": [1], "seed": null, "stopped": [], "allow_dead": false}

A graph that was built with auto_batch_norm has "norms" beside these, the places in `layers` of the layers that a norm of its own
follows. Children are names and places in `layers`, a graph's nodes places in `nodes`; edges, root, term and stopped (edges that
no gradient passes) count within that graph's nodes. `nodes` holds {"class", "name", "layer", "merge_mode",
"checkpoint", "frozen"}.

Only classes of `tapeprop.layers`, those that packages of tapeprop make known (`know`), and those that the caller names, can stand
in a file.
"""

from __future__ import annotations

import inspect
import math
import numbers
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from tapeprop import layers, optimizers
from tapeprop.errors import CycleError, DisconnectedError, GraphError
from tapeprop.graph import GraphStructure, LayerNode, MergeMode
from tapeprop.graph.structure import find_cycle
from tapeprop.interchange.safetensors import shown
from tapeprop.layers import Lambda, Layer, PythonLayer, Sequential, initializers
from tapeprop.optimizers import Optimizer

VERSION = 1
GRAPH, SEQUENTIAL = "LayerGraph", "Sequential"
#: Graphs in layers in graphs: deeper than this the recursions over layers would meet Python's limit.
DEEPEST = 64
#: Layers that walks through every entry of the table meet, and numbers given to nodes: some 150,000 nodes in one graph.
#: Without it a small file could keep the reader busy for hours, by holding layers twice, level by level.
MOST = 500_000

Classes = Mapping[str, type[Layer] | type[Optimizer]]
#: {name: class} of layers that packages above this one own, which files may name as well: see `know`.
_known: dict[str, type[Layer]] = {}
#: {first part of such names: what imports that package}, for files that are read before it was.
_later: dict[str, Callable[[], object]] = {}
_signatures: weakref.WeakKeyDictionary[type, Mapping[str, inspect.Parameter]] = weakref.WeakKeyDictionary()


def public_layers() -> dict[str, type[Layer]]:
    """{qualified name: class} of the layers that a file may name: "Conv2D", "Activation.ReLU" and so on."""
    found: dict[str, type[Layer]] = {}
    bases = (Lambda, PythonLayer)  # a function cannot be written down, and the other computes nothing by itself
    for name in layers.__all__:
        thing = getattr(layers, name)
        if not isinstance(thing, type):
            continue
        inner = {name: thing} if issubclass(thing, Layer) else {f"{name}.{key}": c for key, c in vars(thing).items()}
        for key, cls in inner.items():
            if isinstance(cls, type) and issubclass(cls, Layer) and cls.trace is not Layer.trace and cls not in bases:
                found[key] = cls
    return found


def know(classes: Mapping[str, type[Layer]]) -> None:
    """Lets files name layers of a package above this one; to be called where they are defined."""
    _known.update(classes)


def know_later(first: str, load: Callable[[], object]) -> None:
    """Tells what to call when a file names a layer whose name begins with `first` and a dot; it calls `know`."""
    _later[first] = load


def class_named(name: str, classes: Mapping[str, type[Layer]]) -> type[Layer] | None:
    """The class that a file names, out of `known_classes` or of a package that is not there yet; None for an unknown name."""
    first, dot, _ = name.partition(".")
    if name not in classes and name not in _known and dot and first in _later:
        _later[first]()
    return classes.get(name) or _known.get(name)


def known_classes(classes: Classes | None) -> dict[str, type[Layer]]:
    """The public layers, those of packages above, and the caller's own.

    GraphError where a class is of neither layer nor optimizer, or has a public name.
    """
    public, own = {**public_layers(), **_known}, {}
    for name, cls in (classes or {}).items():
        if not isinstance(cls, type) or not issubclass(cls, Layer | Optimizer) or issubclass(cls, GraphStructure):
            remedy = "give the classes of layers and optimizers; a graph is described by its nodes and needs none"
            raise GraphError(
                f"classes: expected {{name: subclass of Layer or Optimizer}}, got {shown(name)}: {shown(cls)}: {remedy}"
            )
        if issubclass(cls, Optimizer):
            if name != cls.__name__ or name in optimizers.__all__:
                raise GraphError(
                    f"classes: expected an optimizer of your own under the name of its class, got {name!r}: "
                    f"{cls.__qualname__}"
                )
            continue
        if name in public:
            raise GraphError(f"classes: {name!r} is a layer of tapeprop; choose another name for {cls.__qualname__}")
        own[name] = cls
    return {**public, **own}


# ---- writing


def describe(graph: GraphStructure, classes: Classes | None = None) -> dict[str, Any]:
    """The structure of a graph, ready for JSON. classes: {name: class} of layers of the caller's own.

    GraphError, naming the node, for a layer of an unknown class (a Lambda is one), arguments that cannot be written, a
    subclass that computes in its own way, or nesting too deep; CycleError; DisconnectedError for a root or term
    that is no node of its graph.
    """
    writer = _Writer(known_classes(classes))
    writer.layer(graph, type(graph).__name__)
    norms = {"norms": sorted(writer.places[id(layer)] for layer, _ in graph._norms if id(layer) in writer.places)}
    return {"version": VERSION, "layers": writer.layers, "nodes": writer.nodes} | (norms if norms["norms"] else {})


class _Writer:
    """The two tables while they grow."""

    def __init__(self, classes: Mapping[str, type[Layer]]):
        self.names = {cls: name for name, cls in reversed(list(classes.items()))}  # the first of several names counts
        self.layers: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = []
        # by identity: a class of the user's may have a notion of equality of its own
        self.places: dict[int, int] = {}
        self.path: set[int] = set()

    def layer(self, layer: Layer, where: str) -> int:
        """The place of a layer in the table; it is added after those that it holds."""
        if id(layer) in self.places:
            return self.places[id(layer)]
        if id(layer) in self.path:
            raise CycleError(f"save: {where}: expected layers that do not hold themselves, got {type(layer).__name__}")
        if len(self.path) >= DEEPEST:
            raise GraphError(f"save: {where}: expected layers nested at most {DEEPEST} deep, got more: nest them less")
        self.path.add(id(layer))
        if isinstance(layer, GraphStructure):
            entry = self._graph(layer, where)
        elif type(layer) is Sequential:
            children = [[name, self.layer(child, f"{where}.{name}")] for name, child in layer.children()]
            entry = {"class": SEQUENTIAL, "children": children}
        else:
            entry = {"class": self._class_name(layer, where), "arguments": self._arguments(layer, where)}
        self.path.discard(id(layer))
        self.layers.append(entry)
        self.places[id(layer)] = len(self.layers) - 1
        return self.places[id(layer)]

    def _class_name(self, layer: Layer, where: str) -> str:
        cls = type(layer)
        if cls in self.names:
            return self.names[cls]
        remedy = "save its weights alone with state_dict(), and rebuild the graph in code"
        if isinstance(layer, Lambda):
            raise GraphError(f"save: {where}: expected a layer that can be written down, got {layer!r}: {remedy}")
        raise GraphError(
            f"save: {where}: expected a layer of tapeprop.layers, got {cls.__qualname__}, a class of your own: give "
            f'classes={{"{cls.__name__}": {cls.__name__}}} here and to load, or {remedy}'
        )

    def _arguments(self, layer: Layer, where: str) -> dict[str, Any]:
        return {
            name: encode(value, f"save: {where}: {name}", lambda inner: self.layer(inner, where))
            for name, value in arguments_of(layer, f"save: {where}").items()
            if not _is_own_initializer(name, value)
        }

    def _graph(self, graph: GraphStructure, where: str) -> dict[str, Any]:
        _check_plain(graph, where)
        cycle = find_cycle(graph.graph)
        if cycle is not None:
            names = " -> ".join(graph.labels[node] for node in [*cycle, cycle[0]])
            raise CycleError(
                f"save: {where}: expected a graph without cycles, got {names}: disconnect one of these edges"
            )
        place = {node: i for i, node in enumerate(graph.nodes)}
        for what, ends in (("root", graph.roots), ("term", graph.terms)):
            for node in ends:
                if node not in place:
                    raise DisconnectedError(
                        f"save: {where}: expected {what} to be in the graph, got {node}: add_node it"
                    )
        return {
            "class": GRAPH,
            "nodes": [self._node(node, f"{where}: node {label!r}") for node, label in graph.labels.items()],
            "numbers": [graph._numbers[node] for node in place],
            "next_number": graph._next_number,
            "edges": [[place[node] for node in following] for following in graph.graph.values()],
            "root": _ends(graph.root, place),
            "term": _ends(graph.term, place),
            "seed": graph.seed,
            "stopped": sorted([place[a], place[b]] for a, b in graph.stopped),
            "allow_dead": bool(graph._allow_dead),
        }

    def _node(self, node: LayerNode, where: str) -> int:
        if id(node) not in self.places:
            base = _check_plain(node, where)
            entry = {
                "class": base.__name__,
                "name": node.name,
                "layer": self.layer(node.layer, where),
                "merge_mode": MergeMode.of(node.merge_mode).value,
                "checkpoint": bool(node.checkpoint),
                "frozen": bool(node.frozen),
            }
            self.nodes.append(entry)
            self.places[id(node)] = len(self.nodes) - 1
        return self.places[id(node)]


def arguments_of(layer: Layer, where: str) -> dict[str, Any]:
    """The constructor's arguments by name, *arguments as a tuple. GraphError where one is not kept as an attribute."""
    signature = signature_of(type(layer))
    found = layer.constructor_arguments() if signature else {}
    for name, parameter in signature.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and isinstance(getattr(layer, name, None), tuple | list):
            found[name] = tuple(getattr(layer, name))
        elif name not in found:
            raise GraphError(
                f"{where}: expected {type(layer).__qualname__} to keep its argument {name!r} as self.{name}, "
                f"so that it can be made again: add that to its constructor"
            )
    return {name: found[name] for name in signature}


def encode(value: Any, where: str, place: Callable[[Layer], int]) -> Any:
    """A constructor's argument for JSON; place: gives a layer's place in the table. GraphError for what has no form."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else {"float": repr(number)}
    if isinstance(value, tuple | list):
        return [encode(item, where, place) for item in value]
    if isinstance(value, Layer):
        return {"layer": place(value)}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(item, where, place) for key, item in value.items()}}
    named = _initializer_name(value)
    if named is not None:
        return named
    raise GraphError(
        f"{where}: expected numbers, strings, None, tuples, dicts or layers, got {type(value).__name__} "
        f"{shown(value)}: save the weights alone with state_dict(), and rebuild the graph in code"
    )


def _check_plain(thing: GraphStructure | LayerNode, where: str) -> type:
    """The tapeprop class that stands for a graph or node. GraphError where a subclass does more than to build it up."""
    house = __name__.partition(".")[0]
    base = next(cls for cls in type(thing).__mro__ if cls.__module__.partition(".")[0] == house)
    for cls in type(thing).__mro__[: type(thing).__mro__.index(base)]:
        own = [name for name in vars(cls) if hasattr(base, name) and not name.startswith("__") and name != "init_nodes"]
        if own:
            raise GraphError(
                f"save: {where}: expected a {base.__name__}, or a subclass that leaves its methods as they are, got "
                f"{cls.__qualname__}, which has its own {own[0]}: save the weights alone with state_dict(), and "
                f"rebuild the graph in code"
            )
    return base


def _ends(ends: Any, place: Mapping[LayerNode, int]) -> Any:
    if ends is None:
        return None
    return [place[node] for node in ends] if isinstance(ends, list) else place[ends]


def _initializer_name(value: Any) -> str | None:
    return next((name for name, function in initializers.NAMED.items() if function is value), None)


def _is_own_initializer(name: str, value: Any) -> bool:
    """Weights are saved after they were drawn: a function of the user's that drew them is not needed any more."""
    return name.endswith("initializer") and callable(value) and _initializer_name(value) is None


def signature_of(cls: type) -> Mapping[str, inspect.Parameter]:
    """The arguments of a class's constructor by name."""
    if cls not in _signatures:  # inspect takes up to 0.1 ms, and a graph may have 20,000 layers
        _signatures[cls] = inspect.signature(cls).parameters
    return _signatures[cls]
