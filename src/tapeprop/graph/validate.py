"""Whether a graph can be run: the checks that need no shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tapeprop.errors import CycleError, DisconnectedError, GraphError
from tapeprop.graph.names import check_names, described
from tapeprop.graph.node import LayerNode
from tapeprop.graph.structure import Edges, find_cycle, incoming, reachable, topological_order

CYCLE_SHOWN = 12


def check_structure(
    edges: Edges[LayerNode],
    roots: Sequence[LayerNode],
    terms: Sequence[LayerNode],
    named: Mapping[LayerNode, str],
    allow_dead: bool,
) -> list[LayerNode]:
    """The nodes that take part, each after all that lead to it.

    CycleError; DisconnectedError for a root or term that is missing, a node out of reach, or a dead end (those are left
    out where `allow_dead`); GraphError for an edge into a root; DuplicateNameError. Nothing is changed. O(nodes +
    edges).
    """
    _check_ends("root", roots, edges, named)
    _check_ends("term", terms, edges, named)
    check_names(named)
    cycle = find_cycle(edges)
    if cycle is not None:
        names = [named[node] for node in [*cycle, cycle[0]]]
        shown = names if len(names) <= CYCLE_SHOWN else [*names[: CYCLE_SHOWN - 2], "...", names[-1]]
        raise CycleError(
            f"expected a graph without cycles, got {' -> '.join(shown)}, through {described(cycle, named)}: "
            f"disconnect one of these edges"
        )
    back = incoming(edges)
    for root in roots:
        if back[root]:
            raise GraphError(
                f"root {described([root], named)} expects no incoming edge, got one from "
                f"{described(back[root], named)}: disconnect it, or put a LayerNode(Identity()) in front as the root"
            )
    order = topological_order(edges, roots)
    _check_paths(edges, roots, terms, named, set(order))
    if len(order) < len(edges):
        lost = _without(edges, set(order))
        raise DisconnectedError(
            f"expected every node to be reachable from root {described(roots, named)}, got {described(lost, named)}: "
            f"connect, or remove_node, what is not in use"
        )
    live = reachable(back, terms)
    if len(live) < len(edges):
        dead = _without(edges, live)
        if not allow_dead:
            raise DisconnectedError(
                f"expected every node to lead to term {described(terms, named)}, got {described(dead, named)}: "
                f"connect or remove_node it, name it in term=[...], or build(allow_dead=True) to leave it out"
            )
        order = [node for node in order if node in live]
    return order


def _check_ends(what: str, ends: Sequence[LayerNode], edges: Edges[LayerNode], named: Mapping[LayerNode, str]) -> None:
    if not ends:
        raise DisconnectedError(f"expected a {what} node, got none: set graph.{what} to a node or a list of nodes")
    absent = [node for node in ends if node not in edges]
    if absent:
        raise DisconnectedError(
            f"expected {what} to be in the graph, got {described(absent, named)}: add_node it, or set graph.{what}"
        )
    if len(set(ends)) < len(ends):
        twice = [node for node in dict.fromkeys(ends) if ends.count(node) > 1]
        raise GraphError(f"expected {what} to list each node once, got {described(twice, named)} twice")


def _check_paths(
    edges: Edges[LayerNode],
    roots: Sequence[LayerNode],
    terms: Sequence[LayerNode],
    named: Mapping[LayerNode, str],
    reached: set[LayerNode],
) -> None:
    """DisconnectedError where no path leads to a term, with the places where the graph was cut."""
    cut = [term for term in terms if term not in reached]
    if cut:
        back = incoming(edges)
        ends = [node for node in edges if node in reached and not edges[node]]
        starts = [node for node in edges if node not in reached and not back[node]]
        raise DisconnectedError(
            f"expected a path from root {described(roots, named)} to term {described(cut, named)}, found none: paths from "
            f"the root end at {described(ends, named)}, and nothing leads to {described(starts, named)}; connect them"
        )


def _without(edges: Edges[LayerNode], taken: set[LayerNode]) -> list[LayerNode]:
    return [node for node in edges if node not in taken]
