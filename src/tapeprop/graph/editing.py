"""The part of a graph that users edit: nodes, edges, roots, terms, names, and questions about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from tapeprop.errors import CycleError, DisconnectedError, GraphError
from tapeprop.graph import structure
from tapeprop.graph.adjacency import Adjacency, NodeList, check_node, check_nodes
from tapeprop.graph.names import described, labels
from tapeprop.graph.node import LayerNode
from tapeprop.layers import arguments
from tapeprop.layers.edits import edited, edits
from tapeprop.layers.layer import Layer, Member

Ends = LayerNode | Sequence[LayerNode] | None


class EditableGraph(Layer):
    """Nodes in an adjacency dict that may be edited at any time; see `GraphStructure`."""

    _built = False
    #: (number of edits, labels) when labels were last asked for.
    _labels: tuple[int, dict[LayerNode, str]] = (-1, {})

    def __init__(
        self,
        graph: Mapping[LayerNode, Iterable[LayerNode]] | None = None,
        root: Ends = None,
        term: Ends = None,
        *,
        seed: int | None = None,
    ):
        self.seed = arguments.seed(type(self).__name__, "seed", seed)
        # Held by the node alone: what has been removed, and is used nowhere else, is let go with its weights.
        self._numbers: WeakKeyDictionary[LayerNode, int] = WeakKeyDictionary()
        self._next_number = 0
        self._edges = Adjacency(self._welcome)
        self._stopped: set[tuple[LayerNode, LayerNode]] = set()
        if graph is not None:
            self._declare(graph)
        self.root, self.term = root, term
        if graph is None and root is None and term is None:
            self.init_nodes()

    @property
    def built_(self) -> bool:
        """Whether build() has succeeded and nothing was edited since."""
        return self._built

    def init_nodes(self) -> None:
        """A hook for subclasses, to make their nodes.

        The constructor calls it when it is given neither graph nor root nor term; a subclass that passes them calls it
        itself before.
        """

    # ---- what there is

    @property
    def graph(self) -> Adjacency:
        """{node: [next nodes]}, live. Assigning a dict copies it."""
        return self._edges

    @graph.setter
    def graph(self, graph: Mapping[LayerNode, Iterable[LayerNode]]) -> None:
        self._declare(graph)

    def _declare(self, graph: Mapping[LayerNode, Iterable[LayerNode]]) -> None:
        if not isinstance(graph, Mapping):
            raise GraphError(f"graph: expected a dict {{node: [next nodes]}}, got {type(graph).__name__}")
        given = {
            check_node(node, "graph"): check_nodes(following, f"graph: next nodes of {node}")
            for node, following in graph.items()
        }
        self._edges.replace_all(given)

    @property
    def root(self) -> Ends:
        """The input node, or the live list of them."""
        return self._root

    @root.setter
    def root(self, root: Ends) -> None:
        self._root = _as_ends("root", root)
        edited()

    @property
    def term(self) -> Ends:
        """The output node, or the live list of them."""
        return self._term

    @term.setter
    def term(self, term: Ends) -> None:
        self._term = _as_ends("term", term)
        edited()

    @property
    def roots(self) -> list[LayerNode]:
        """The input nodes, in a list of their own."""
        return _as_list(self._root)

    @property
    def terms(self) -> list[LayerNode]:
        """The output nodes, in a list of their own."""
        return _as_list(self._term)

    @property
    def nodes(self) -> list[LayerNode]:
        """The nodes, in the order in which they were declared."""
        return list(self._edges)

    @property
    def stopped(self) -> set[tuple[LayerNode, LayerNode]]:
        """The edges (a, b) along which no gradient flows back; see `stop_gradient`."""
        return {(a, b) for a, b in self._stopped if b in self._edges.get(a, ())}

    @property
    def labels(self) -> dict[LayerNode, str]:
        """{node: its name, or node<i>}; i is given when a node is first added, and never reused."""
        now = edits()
        if self._labels[0] != now:  # every call asks for names, few change them
            self._labels = now, labels(self._numbers, self._edges)
        return dict(self._labels[1])

    def label_of(self, node: LayerNode) -> str:
        """The name, or node<i>, of one node."""
        return node.name if node.name is not None else f"node{self._numbers[node]}"

    def members(self) -> Iterator[Member]:
        """(name or node<i>, layer) of each node."""
        for node, name in self.labels.items():
            yield name, node.layer

    def __len__(self) -> int:
        return len(self._edges)

    def __bool__(self) -> bool:
        return self.built_

    def __iter__(self) -> Iterator[LayerNode]:
        return iter(self.nodes)

    def __contains__(self, node: object) -> bool:
        return node in self._edges

    def __getitem__(self, node: LayerNode) -> NodeList:
        self._expect(node, "graph[node]")
        return self._edges[node]

    def __setitem__(self, node: LayerNode, following: Iterable[LayerNode]) -> None:
        self._edges[node] = following

    # ---- edits

    def add_node(
        self,
        node: LayerNode,
        prev_nodes: LayerNode | Iterable[LayerNode] = (),
        next_nodes: LayerNode | Iterable[LayerNode] = (),
    ) -> None:
        """Adds a node, an edge from each of `prev_nodes` and one to each of `next_nodes`.

        GraphError where it is there already.
        """
        check_node(node, "add_node")
        before, after = check_nodes(prev_nodes, "add_node: prev_nodes"), check_nodes(next_nodes, "add_node: next_nodes")
        if node in self._edges:
            raise GraphError(f"add_node: {self._described(node)} is in the graph already: connect() adds an edge")
        self._edges.admit([node, *before, *after])
        self._edges[node].extend(after)
        for other in before:
            self._edges[other].append(node)

    def remove_node(self, node: LayerNode) -> None:
        """Takes a node out, with its edges.

        Where it was root or term, that place is empty. GraphError where it is absent.
        """
        self._expect(node, "remove_node")
        self._edges.discard(node)
        self._root, self._term = (_replaced(ends, node, None) for ends in (self._root, self._term))
        self._stopped = self.stopped

    def replace_node(self, old: LayerNode, new: LayerNode) -> None:
        """Puts `new` in the place of `old`: its edges, their order, root and term.

        GraphError where `new` is in the graph.
        """
        self._expect(old, "replace_node")
        if check_node(new, "replace_node") in self._edges:
            raise GraphError(f"replace_node: expected a node that is not in the graph, got {self._described(new)}")
        self._edges.replace(old, new)
        self._root, self._term = (_replaced(ends, old, new) for ends in (self._root, self._term))
        self._stopped = {(new if a is old else a, new if b is old else b) for a, b in self._stopped}

    def connect(self, a: LayerNode, b: LayerNode) -> None:
        """Adds an edge from a to b, and the nodes if they are new."""
        self._edges.admit([check_node(a, "connect"), check_node(b, "connect")])
        self._edges[a].append(b)

    def disconnect(self, a: LayerNode, b: LayerNode) -> None:
        """Takes out every edge from a to b. GraphError where there is none."""
        self._expect_edge(a, b, "disconnect")
        self._edges[a][:] = [node for node in self._edges[a] if node is not b]
        self._stopped.discard((a, b))

    def stop_gradient(self, a: LayerNode, b: LayerNode) -> None:
        """Lets no gradient flow back along the edges from a to b, until they are taken out.

        GraphError where there is none.
        """
        self._expect_edge(a, b, "stop_gradient")
        self._stopped.add((a, b))
        edited()

    def clear(self) -> None:
        """Takes out everything."""
        self._edges.clear()
        self._stopped.clear()
        self.root = self.term = None

    def __add__(self, other: Any) -> Any:
        """A new graph in which the term of the first leads to the root of the second; it shares their nodes.

        One term leads to every root, several terms lead to one root, equal numbers are paired in order. GraphError
        otherwise, and where a node stands in both.
        """
        if not isinstance(other, EditableGraph):
            return NotImplemented
        shared = [node for node in self._edges if node in other._edges]
        if shared:
            raise GraphError(
                f"g1 + g2: expected graphs without common nodes, got {described(shared, self.labels)} in both: "
                f"wrap one graph as LayerNode(graph)"
            )
        terms, roots = self.terms, other.roots
        if not terms or not roots:
            raise DisconnectedError("g1 + g2: expected a term in the first graph and a root in the second; set them")
        if len(terms) > 1 and len(roots) > 1 and len(terms) != len(roots):
            raise GraphError(
                f"g1 + g2: expected as many roots as terms, or one of either, got {len(terms)} terms and "
                f"{len(roots)} roots"
            )
        joined = self._new(seed=self.seed)
        joined.graph = {**self._edges, **other._edges}
        count = max(len(terms), len(roots))
        for a, b in zip(terms * (count // len(terms)), roots * (count // len(roots))):
            joined.connect(a, b)
        joined.root, joined.term = self._root, other._term
        joined._stopped = self._stopped | other._stopped
        return joined

    def _new(self, **options: Any) -> EditableGraph:
        """An empty graph of the kind that joining gives."""
        return EditableGraph(**options)

    # ---- questions

    def detect_cycle(self) -> bool:
        """Whether the edges form a cycle."""
        return structure.find_cycle(self._edges) is not None

    def get_path(self, start: LayerNode | None = None, end: LayerNode | None = None) -> list[LayerNode]:
        """The nodes on a path from `start` (None: the root) to `end` (None: the term), both included.

        The first listed edge is taken wherever it leads on. DisconnectedError where there is no path or no such node.
        """
        ends = [*(self.roots if start is None else [start])[:1], *(self.terms if end is None else [end])[:1]]
        if len(ends) < 2 or any(node not in self._edges for node in ends):
            got = ", ".join(map(repr, ends)) or "none"
            raise DisconnectedError(
                f"get_path: expected two nodes of the graph, got {got}: set root and term, or name both"
            )
        path = structure.find_path(self._edges, ends[0], ends[1])
        if path is None:
            raise DisconnectedError(
                f"get_path: expected a path from {self._described(ends[0])} to {self._described(ends[1])}, found none: "
                f"connect them"
            )
        return path

    def __str__(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        named = self.labels
        ends = [", ".join(named.get(node, str(node)) for node in nodes) or "none" for nodes in (self.roots, self.terms)]
        return f"<{type(self).__name__}: {len(self)} nodes, root {ends[0]}, term {ends[1]}>"

    # ---- seeds

    def _welcome(self, nodes: list[LayerNode]) -> None:
        """Nodes come in: they get their numbers, and their layers their streams of the graph's seed.

        CycleError, before that, for one that holds this graph.
        """
        for node in nodes:
            if any(member is self for _, member in node.layer.walk()):
                raise CycleError(
                    f"{type(self).__name__}: expected a node of other layers, got {str(node)!r} "
                    f"({type(node.layer).__name__}), which holds this very graph"
                )
        for node in nodes:
            if node not in self._numbers:
                self._numbers[node] = self._next_number
                self._next_number += 1
            if self.seed is not None:
                node.layer.seed_streams(self.seed, (self._numbers[node],))

    def seed_layers(self) -> None:
        """Gives streams to layers that came in after their node did. To be called before parameters are drawn."""
        if self.seed is not None:
            for node in self._edges:
                node.layer.seed_streams(self.seed, (self._numbers[node],))

    def seed_streams(self, entropy: int, key: tuple[int, ...]) -> None:
        """As `Layer.seed_streams`, by the nodes' numbers.

        A graph with a seed of its own has given out its streams already.
        """
        for node in self._edges:
            node.layer.seed_streams(entropy, (*key, 1, self._numbers[node]))

    # ---- copies

    def __getstate__(self) -> dict[str, Any]:
        edges = {node: list(following) for node, following in self._edges.items()}
        numbers = {node: self._numbers[node] for node in edges}
        return {**vars(self), "_edges": edges, "_numbers": numbers, "_stopped": self.stopped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._numbers = WeakKeyDictionary(state["_numbers"])
        self._edges = Adjacency(self._welcome)
        self._declare(state["_edges"])
        self.root, self.term = state["_root"], state["_term"]

    # ---- inner

    def _described(self, node: LayerNode) -> str:
        return described([node], self.labels)

    def _expect(self, node: Any, where: str) -> None:
        if check_node(node, where) not in self._edges:
            raise GraphError(
                f"{where}: expected a node of the graph, got {node!r}; it has "
                f"{described(self._edges, self.labels) or 'none'}"
            )

    def _expect_edge(self, a: LayerNode, b: LayerNode, where: str) -> None:
        self._expect(a, where)
        self._expect(b, where)
        if b not in self._edges[a]:
            raise GraphError(
                f"{where}: expected an edge from {self._described(a)} to {self._described(b)}, but that leads to "
                f"{described(self._edges[a], self.labels) or 'no node'}"
            )


def _as_ends(what: str, ends: Any) -> LayerNode | NodeList | None:
    if ends is None or isinstance(ends, LayerNode):
        return ends
    return NodeList(check_nodes(ends, what))


def _as_list(ends: LayerNode | NodeList | None) -> list[LayerNode]:
    if ends is None:
        return []
    return list(ends) if isinstance(ends, list) else [ends]


def _replaced(ends: LayerNode | NodeList | None, old: LayerNode, new: LayerNode | None) -> LayerNode | NodeList | None:
    """A root or term in which `new` stands for `old`: a live list stays the same list."""
    if not isinstance(ends, NodeList):
        return new if ends is old else ends
    if old in ends:
        found = [new if node is old else node for node in ends]
        ends[:] = [node for node in found if node is not None]
    return ends
