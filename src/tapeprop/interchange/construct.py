"""A graph from its description, which may come from anyone; the form is that of `describe`.

What a file names is looked up among the classes of tapeprop and those that the caller gives; nothing else is imported. An entry is
checked before it is made, and refers to entries made before, so no cycle and no depth can come of it. Layers draw their weights when
first asked for them: to make one of any size costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from tapeprop.errors import WeightFileError
from tapeprop.graph import GraphStructure, LayerNode, MergeMode, SequentialNode
from tapeprop.graph.auto_norm import Normed, Norms, norm_for
from tapeprop.graph.structure import find_cycle
from tapeprop.interchange.describe import (
    DEEPEST,
    GRAPH,
    MOST,
    SEQUENTIAL,
    VERSION,
    Classes,
    class_named,
    known_classes,
    signature_of,
)
from tapeprop.interchange.safetensors import shown
from tapeprop.layers import Layer, Sequential

#: Arguments that are tuples in tuples.
DEEPEST_ARGUMENT = 8
#: Seeds may have 128 bits; no other int comes near.
LARGEST_INT = 2**128
LONGEST_REASON = 400

_NODES: dict[str, type[LayerNode]] = {"LayerNode": LayerNode, "SequentialNode": SequentialNode}
_NODE_KEYS = ("class", "name", "layer", "merge_mode", "checkpoint", "frozen")
_GRAPH_KEYS = ("class", "nodes", "numbers", "next_number", "edges", "root", "term", "seed", "stopped", "allow_dead")

Graph = TypeVar("Graph", bound=GraphStructure)


def construct(description: Any, file: str, classes: Classes | None, graph_class: type[Graph]) -> Graph:
    """The graph that is described, its weights not drawn yet.

    file: begins error texts. classes: {name: class} of the caller's own layers. graph_class: of it and of the graphs
    inside. WeightFileError for whatever `describe` would not have written.
    """
    return _Reader(file, known_classes(classes), graph_class).graph(description)  # type: ignore[return-value]


def reason(error: BaseException) -> str:
    """An error's text, cut short: it may quote what a file holds."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


class _Reader:
    """Layers and nodes while they are made.

    depths, counts: of each layer, the levels of layers in it, and the layers that a walk through it meets. met: the
    sum of the latter.
    """

    def __init__(self, file: str, classes: Mapping[str, type[Layer]], graph_class: type[GraphStructure]):
        self.file = file
        self.classes = classes
        self.graph_class = graph_class
        self.layers: list[Layer] = []
        self.depths: list[int] = []
        self.counts: list[int] = []
        self.entries: list[Any] = []
        self.nodes: dict[int, LayerNode] = {}
        self.met = 0

    def graph(self, description: Any) -> GraphStructure:
        norms = ("norms",) if isinstance(description, dict) and "norms" in description else ()
        top = self._object(description, ("version", "layers", "nodes", *norms), "the structure")
        if top["version"] != VERSION or type(top["version"]) is not int:
            remedy = "it was written by another version of tapeprop"
            self._fail("the structure", f"version {VERSION}", shown(top["version"]), remedy)
        self.entries = self._list(top["nodes"], "nodes")
        for i, entry in enumerate(self._list(top["layers"], "layers")):
            self._add(entry, f"layers[{i}]")
        graph = self.layers[-1] if self.layers else None
        if not isinstance(graph, GraphStructure):
            self._fail("layers", f"a {GRAPH} as its last entry", type(graph).__name__)
        graph._norms = self._norms(top["norms"]) if norms else ()
        return graph

    def _norms(self, places: Any) -> Norms:
        """New norms behind the layers at these places."""
        found = []
        for place in self._list(places, "norms"):
            layer = self.layers[self._place(place, len(self.layers), "norms")]
            if not isinstance(layer, Normed):
                self._fail("norms", "places of convolutions and dense layers", type(layer).__name__)
            found.append((layer, norm_for(layer)))
        if len({id(layer) for layer, _ in found}) < len(found):
            self._fail("norms", "places that differ", "one twice")
        return tuple(found)

    # ---- layers

    def _add(self, entry: Any, where: str) -> None:
        name = entry.get("class") if isinstance(entry, dict) else None
        make = {GRAPH: self._graph, SEQUENTIAL: self._sequential}.get(name) if isinstance(name, str) else None
        self.layers.append((make or self._layer)(entry, where))

    def _count(self, held: list[int], numbers: int, where: str) -> None:
        """To be called before a layer is made of those at the places `held`, and of nodes with so many numbers."""
        self.depths.append(1 + max((self.depths[i] for i in held), default=0))
        self.counts.append(1 + sum(self.counts[i] for i in held))
        self.met += self.counts[-1] + numbers
        if self.depths[-1] > DEEPEST:
            self._fail(where, f"layers nested at most {DEEPEST} deep", f"{self.depths[-1]}")
        if self.met > MOST:
            self._fail(
                where, f"at most {MOST:,} layers and numbers, counted as often as they are held", f"{self.met:,}"
            )

    def _layer(self, entry: Any, where: str) -> Layer:
        given = self._object(entry, ("class", "arguments"), where)
        name, arguments = given["class"], given["arguments"]
        cls = class_named(name, self.classes) if isinstance(name, str) else None
        if cls is None:
            remedy = 'for a class of your own give load(path, classes={"Name": Name})'
            self._fail(where, "a class of tapeprop.layers", shown(name), remedy)
        where = f"{where} ({name})"
        if not isinstance(arguments, dict):
            self._fail(where, "an object of arguments", shown(arguments))
        held: list[int] = []
        values = {key: self._decode(value, held, f"{where}: {key}"[:200]) for key, value in arguments.items()}
        self._count(held, 0, where)
        try:
            return _call(cls, values)
        except Exception as error:  # whatever a constructor says to arguments that are not for it
            self._fail(where, "arguments that it takes", reason(error), cause=error)

    def _sequential(self, entry: Any, where: str) -> Layer:
        pairs, held = [], []
        for pair in self._list(self._object(entry, ("class", "children"), where)["children"], f"{where}: children"):
            if not isinstance(pair, list) or len(pair) != 2:
                self._fail(f"{where}: children", "pairs of a name and a place", shown(pair))
            held.append(self._place(pair[1], len(self.layers), f"{where}: child {shown(pair[0])}"))
            pairs.append((pair[0], self.layers[held[-1]]))
        self._count(held, 0, where)
        try:
            return Sequential(*pairs)
        except Exception as error:
            self._fail(where, "children that go together", reason(error), cause=error)

    def _decode(self, value: Any, held: list[int], where: str, depth: int = 0) -> Any:
        """An argument as `describe.encode` wrote it; lists become tuples. The places of layers are added to `held`."""
        if depth > DEEPEST_ARGUMENT:
            self._fail(where, f"values nested at most {DEEPEST_ARGUMENT} deep", "more")
        if isinstance(value, list):
            return tuple(self._decode(item, held, where, depth + 1) for item in value)
        if isinstance(value, dict):
            match value:
                case {"float": "inf" | "-inf" | "nan"} if len(value) == 1:
                    return float(value["float"])
                case {"layer": place} if len(value) == 1:
                    held.append(self._place(place, len(self.layers), where))
                    return self.layers[held[-1]]
                case {"dict": dict(items)} if len(value) == 1:
                    return {key: self._decode(item, held, where, depth + 1) for key, item in items.items()}
            self._fail(where, 'an object with "float", "layer" or "dict" alone', shown(value))
        if isinstance(value, int) and abs(value) > LARGEST_INT:
            self._fail(where, "an int of at most 128 bits", shown(value))
        return value

    # ---- graphs

    def _graph(self, entry: Any, where: str) -> GraphStructure:
        given = self._object(entry, _GRAPH_KEYS, where)
        held: list[int] = []
        nodes = self._graph_nodes(given, held, where)
        numbers, following = self._numbers(given, len(nodes), where), given["next_number"]
        edges = self._edges(given["edges"], len(nodes), where)
        roots, terms = (self._ends(given[key], len(nodes), f"{where}: {key}") for key in ("root", "term"))
        stopped = self._stopped(given["stopped"], edges, where)
        seed, allow_dead = given["seed"], given["allow_dead"]
        if seed is not None and not (type(seed) is int and 0 <= seed <= LARGEST_INT):
            self._fail(f"{where}: seed", "null or an int from 0 to 2**128", shown(seed))
        self._bool(allow_dead, f"{where}: allow_dead")
        self._count(held, following, where)
        try:
            graph = self.graph_class(seed=seed)
            graph._numbers.update(zip(nodes, numbers))
            graph._next_number = following  # those of nodes that were removed are never given again
            graph.graph = {node: [nodes[i] for i in edges[place]] for place, node in enumerate(nodes)}
            graph.root, graph.term = _resolved(roots, nodes), _resolved(terms, nodes)
            graph._stopped = {(nodes[a], nodes[b]) for a, b in stopped}
            graph._allow_dead = allow_dead
        except Exception as error:
            self._fail(where, "nodes that make a graph", reason(error), cause=error)
        return graph

    def _graph_nodes(self, given: dict[str, Any], held: list[int], where: str) -> list[LayerNode]:
        places = [self._place(i, len(self.entries), f"{where}: nodes") for i in self._list(given["nodes"], where)]
        if len(set(places)) < len(places):
            self._fail(f"{where}: nodes", "nodes that differ", "one twice")
        return [self._node(i, held) for i in places]

    def _node(self, place: int, held: list[int]) -> LayerNode:
        where = f"nodes[{place}]"
        given = self._object(self.entries[place], _NODE_KEYS, where)
        held.append(self._place(given["layer"], len(self.layers), f"{where}: layer"))
        if place in self.nodes:
            return self.nodes[place]
        name, cls = given["name"], given["class"]
        if not isinstance(cls, str) or cls not in _NODES:
            self._fail(where, f"a class out of {', '.join(_NODES)}", shown(cls))
        if name is not None and (not isinstance(name, str) or not name):
            self._fail(where, "a name or null", shown(name))
        modes = [mode.value for mode in MergeMode]
        if given["merge_mode"] not in modes:
            self._fail(where, f"a merge_mode out of {', '.join(modes)}", shown(given["merge_mode"]))
        node = _NODES[cls].__new__(_NODES[cls])  # SequentialNode's constructor would make a Sequential of its own
        layer, checkpoint = self.layers[held[-1]], self._bool(given["checkpoint"], where)
        LayerNode.__init__(node, layer, given["merge_mode"], name, checkpoint=checkpoint)
        node.frozen = self._bool(given["frozen"], where)
        self.nodes[place] = node
        return node

    def _numbers(self, given: dict[str, Any], count: int, where: str) -> list[int]:
        """The numbers of a graph's nodes: node<i> is what they are called in state keys."""
        following = given["next_number"]
        self._place(following, MOST + 1, f"{where}: next_number")
        numbers = [self._place(i, following, f"{where}: numbers") for i in self._list(given["numbers"], where)]
        if len(numbers) != count or len(set(numbers)) != count:
            self._fail(f"{where}: numbers", f"{count} numbers that differ", shown(numbers))
        return numbers

    def _edges(self, edges: Any, count: int, where: str) -> dict[int, list[int]]:
        where = f"{where}: edges"
        if len(self._list(edges, where)) != count:
            self._fail(where, f"{count} lists", f"{len(edges)}")
        found = {i: [self._place(j, count, where) for j in self._list(row, where)] for i, row in enumerate(edges)}
        cycle = find_cycle(found)
        if cycle is not None:
            self._fail(where, "no cycle", f"one through {shown(cycle)}")
        return found

    def _ends(self, ends: Any, count: int, where: str) -> Any:
        if isinstance(ends, list):
            return [self._place(i, count, where) for i in ends]
        return None if ends is None else self._place(ends, count, where)

    def _stopped(self, stopped: Any, edges: dict[int, list[int]], where: str) -> set[tuple[int, int]]:
        where = f"{where}: stopped"
        known = {(a, b) for a, following in edges.items() for b in following}
        found = set()
        for pair in self._list(stopped, where):
            if not isinstance(pair, list) or not all(type(i) is int for i in pair) or tuple(pair) not in known:
                self._fail(where, "pairs of nodes with an edge", shown(pair))
            found.add((pair[0], pair[1]))
        return found

    # ---- checks

    def _object(self, value: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
        if not isinstance(value, dict) or value.keys() != set(keys):
            got = ", ".join(shown(key) for key in list(value)[:20]) if isinstance(value, dict) else shown(value)
            self._fail(where, f"an object with the keys {', '.join(keys)}", got or "none")
        return value

    def _list(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list):
            self._fail(where, "a list", shown(value))
        return value

    def _bool(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            self._fail(where, "true or false", shown(value))
        return value

    def _place(self, value: Any, count: int, where: str) -> int:
        if type(value) is not int or not 0 <= value < count:  # a bool is an int too
            self._fail(where, f"an int from 0 to {count - 1}" if count else "nothing", shown(value))
        return value

    def _fail(
        self, where: str, expected: str, received: str, remedy: str = "the file is corrupt", cause: Any = None
    ) -> NoReturn:
        raise WeightFileError(f"{self.file}: {where}: expected {expected}, got {received}: {remedy}") from cause


def _call(cls: type[Layer], values: dict[str, Any]) -> Layer:
    """cls(**values), where `*arguments` stand among the values under their name."""
    parameters = signature_of(cls).values()
    several = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    if several is None:
        return cls(**values)
    before = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return cls(*(values.pop(name) for name in before), *values.pop(several), **values)


def _resolved(ends: Any, nodes: list[LayerNode]) -> Any:
    if ends is None:
        return None
    return [nodes[i] for i in ends] if isinstance(ends, list) else nodes[ends]


def decode(value: Any, file: str, where: str) -> Any:
    """A value that holds no layers, as `describe.encode` wrote it. WeightFileError."""
    return _Reader(file, {}, GraphStructure)._decode(value, [], where)
