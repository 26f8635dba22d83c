"""What nodes are called in errors, in state keys and in tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tapeprop.errors import DuplicateNameError
from tapeprop.graph.node import LayerNode

SHOWN = 5


def labels(numbers: Mapping[LayerNode, int], nodes: Iterable[LayerNode]) -> dict[LayerNode, str]:
    """{node: its name, or node<i>}, i being its number in the graph."""
    return {node: node.name if node.name is not None else f"node{numbers[node]}" for node in nodes}


def check_names(named: Mapping[LayerNode, str]) -> None:
    """DuplicateNameError where two nodes bear one name."""
    owners: dict[str, LayerNode] = {}
    for node, name in named.items():
        other = owners.setdefault(name, node)
        if other is not node:
            raise DuplicateNameError(
                f"expected names that differ within a graph, got {name!r} for both {type(other.layer).__name__} and "
                f"{type(node.layer).__name__}: rename one of them (node<i> is what unnamed nodes are called)"
            )


def described(nodes: Iterable[LayerNode], named: Mapping[LayerNode, str]) -> str:
    """Nodes for an error text: 'stem' (Conv2D), node3 (ReLU) and so on, the first few of many."""
    found = [f"{named.get(node, str(node))!r} ({type(node.layer).__name__})" for node in nodes]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
