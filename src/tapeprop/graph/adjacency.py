"""A graph's edges as users see them: a dict of lists that may be edited in place at any time.

Both are owned by the graph, never the caller's own objects, and keep two promises: whatever stands in a list is also a
key, and an edit that raises has changed nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, SupportsIndex

from tapeprop.errors import GraphError
from tapeprop.graph.node import LayerNode
from tapeprop.layers.edits import edited


def check_node(value: Any, where: str) -> LayerNode:
    """`value` if it is a LayerNode, else a GraphError with the remedy."""
    if isinstance(value, LayerNode):
        return value
    raise GraphError(
        f"{where}: expected a LayerNode, got {type(value).__name__} {value!r}; wrap a layer as LayerNode(layer)"
    )


def check_nodes(values: Any, where: str) -> list[LayerNode]:
    """A list of nodes from a node or an iterable of nodes."""
    if isinstance(values, LayerNode):
        return [values]
    if not isinstance(values, Iterable):
        raise GraphError(f"{where}: expected a LayerNode or a list of them, got {values!r}")
    return [check_node(value, where) for value in values]


class NodeList(list[LayerNode]):
    """A list of nodes that counts edits and tells its owner of every node that comes in."""

    def __init__(self, nodes: Iterable[LayerNode] = (), admit: Callable[[Iterable[LayerNode]], object] = list):
        super().__init__(nodes)
        self._admit = admit

    def _take(self, values: Any) -> list[LayerNode]:
        nodes = [check_node(value, "list of nodes") for value in values]
        self._admit(nodes)
        return nodes

    def let_go(self) -> None:
        """The list is no longer its owner's: what is put into it from now on goes nowhere else."""
        self._admit = list

    def append(self, node: LayerNode) -> None:
        super().append(*self._take([node]))
        edited()

    def extend(self, nodes: Iterable[LayerNode]) -> None:
        super().extend(self._take(nodes))
        edited()

    def insert(self, index: SupportsIndex, node: LayerNode) -> None:
        super().insert(operator.index(index), *self._take([node]))
        edited()

    def __setitem__(self, index: Any, value: Any) -> None:
        nodes = list(value) if isinstance(index, slice) else value
        list(self)[index] = nodes  # an index that does not fit is refused before anything is let in
        super().__setitem__(index, self._take(nodes) if isinstance(index, slice) else self._take([nodes])[0])
        edited()

    def __iadd__(self, nodes: Iterable[LayerNode]) -> NodeList:  # type: ignore[override, misc]
        self.extend(nodes)
        return self

    def __imul__(self, count: SupportsIndex) -> NodeList:
        super().__imul__(count)
        edited()
        return self

    def __delitem__(self, index: Any) -> None:
        super().__delitem__(index)
        edited()

    def remove(self, node: LayerNode) -> None:
        if node not in self:
            raise GraphError(
                f"list of nodes: {node!r} is not in it; it holds {', '.join(map(repr, self)) or 'nothing'}"
            )
        super().remove(node)
        edited()

    def pop(self, index: SupportsIndex = -1) -> LayerNode:
        node = super().pop(index)
        edited()
        return node

    def clear(self) -> None:
        super().clear()
        edited()

    def reverse(self) -> None:
        super().reverse()
        edited()

    def sort(self, **options: Any) -> None:
        self[:] = sorted(self, **options)

    def __reduce__(self) -> tuple:
        return list, (list(self),)


class Adjacency(dict[LayerNode, NodeList]):
    """{node: [next nodes]}: assignment copies the list, and nodes met for the first time are added at the end.

    welcome: called with the nodes that are to be added, in order; raises where one must not. Deleting a node deletes the
    edges to it.
    """

    def __init__(self, welcome: Callable[[list[LayerNode]], object]):
        super().__init__()
        self._welcome = welcome

    def admit(self, nodes: Iterable[LayerNode]) -> None:
        """Makes every node a key; all of them, or none where one is refused."""
        new = list(dict.fromkeys(node for node in nodes if check_node(node, "graph") not in self))
        if new:
            self._welcome(new)
            for node in new:
                super().__setitem__(node, NodeList(admit=self.admit))
            edited()

    def __setitem__(self, node: LayerNode, following: Iterable[LayerNode]) -> None:
        check_node(node, "graph")
        nodes = check_nodes(following, f"next nodes of {node}")
        self.admit([node, *nodes])
        self[node].let_go()
        super().__setitem__(node, NodeList(nodes, self.admit))
        edited()

    def __delitem__(self, node: LayerNode) -> None:
        self.discard(node)

    def discard(self, node: LayerNode) -> None:
        """Takes out a node and every edge to it. GraphError where it is absent."""
        if node not in self:
            raise GraphError(f"graph: {node!r} is not in it")
        self[node].let_go()
        super().__delitem__(node)
        for following in self.values():
            if node in following:
                following[:] = [other for other in following if other is not node]
        edited()

    def replace_all(self, given: Mapping[LayerNode, list[LayerNode]]) -> None:
        """Holds what is given and nothing else. The keys come first: they number the nodes and order the operands."""
        nodes = list(dict.fromkeys((*given, *chain.from_iterable(given.values()))))
        self._welcome(nodes)
        self.clear()
        for node in nodes:
            super().__setitem__(node, NodeList(given.get(node, ()), self.admit))
        edited()

    def replace(self, old: LayerNode, new: LayerNode) -> None:
        """Puts `new` where `old` stands, in the keys and in every list; orders stay, and so do the lists themselves."""
        self._welcome([new])
        items = [(new if node is old else node, following) for node, following in self.items()]
        super().clear()
        super().update(items)
        for following in self.values():
            if old in following:
                following[:] = [new if node is old else node for node in following]
        edited()

    def pop(self, node: LayerNode, *default: Any) -> Any:
        if node not in self and default:
            return default[0]
        following = self.get(node)
        self.discard(node)
        return following

    def popitem(self) -> tuple[LayerNode, NodeList]:
        node = next(reversed(self))
        return node, self.pop(node)

    def setdefault(self, node: LayerNode, following: Iterable[LayerNode] = ()) -> NodeList:
        if node not in self:
            self[node] = following
        return self[node]

    def update(self, *others: Any, **none: Any) -> None:
        given = {
            check_node(node, "graph"): check_nodes(following, f"next nodes of {node}")
            for node, following in dict(*others, **none).items()
        }
        self.admit(node for key, following in given.items() for node in (key, *following))
        for node, following in given.items():
            self[node] = following

    def __ior__(self, other: Any) -> Adjacency:  # type: ignore[override, misc]
        self.update(other)
        return self

    def clear(self) -> None:
        for following in self.values():
            following.let_go()
        super().clear()
        edited()

    def __reduce__(self) -> tuple:
        return dict, ({node: list(following) for node, following in self.items()},)
