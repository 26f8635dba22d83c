"""Algorithms on directed graphs given as {node: [next nodes]}, every node being a key.

All are iterative and take O(nodes + edges), whatever the depth. An edge that is listed twice is two edges. Orders
follow from the order of the keys and of the lists alone, never from hashes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

N = TypeVar("N", bound=Hashable)
Edges = Mapping[N, Sequence[N]]


def incoming(edges: Edges[N]) -> dict[N, list[N]]:
    """{node: [previous nodes]}: by the order of the keys, then of each list. A double edge counts twice."""
    found: dict[N, list[N]] = {node: [] for node in edges}
    for node, following in edges.items():
        for target in following:
            found[target].append(node)
    return found


def reachable(edges: Edges[N], starts: Iterable[N]) -> set[N]:
    """The nodes that a path leads to from one of `starts`, those included."""
    found = set(starts)
    stack = list(found)
    while stack:
        for target in edges[stack.pop()]:
            if target not in found:
                found.add(target)
                stack.append(target)
    return found


def find_cycle(edges: Edges[N]) -> list[N] | None:
    """The nodes of a cycle in the order of its edges, the first not repeated; None where there is none."""
    done: set[N] = set()
    for start in edges:
        if start in done:
            continue
        path: dict[N, None] = {start: None}  # an ordered set: what is on the way down
        stack: list[Iterator[N]] = [iter(edges[start])]
        while stack:
            target = next(stack[-1], None)
            if target is None:
                stack.pop()
                done.add(path.popitem()[0])
            elif target in path:
                nodes = list(path)
                return nodes[nodes.index(target) :]
            elif target not in done:
                path[target] = None
                stack.append(iter(edges[target]))
    return None


def topological_order(edges: Edges[N], starts: Sequence[N]) -> list[N]:
    """The nodes reachable from `starts`, each after all that lead to it; the graph has no cycle.

    Of branches that could come in any order the first listed comes first, and each is followed to its end before the
    next begins, so that few results wait at a time.
    """
    done: set[N] = set()
    order: list[N] = []
    for start in reversed(starts):
        if start in done:
            continue
        done.add(start)
        stack: list[tuple[N, Iterator[N]]] = [(start, reversed(edges[start]))]
        while stack:
            node, rest = stack[-1]
            for target in rest:
                if target not in done:
                    done.add(target)
                    stack.append((target, reversed(edges[target])))
                    break
            else:
                stack.pop()
                order.append(node)
    order.reverse()
    return order


def find_path(edges: Edges[N], start: N, end: N) -> list[N] | None:
    """A path from `start` to `end`, both included, by the first listed edge wherever that leads to `end`; or None."""
    back = incoming(edges)
    towards = reachable(back, [end])
    if start not in towards:
        return None
    path, seen = [start], {start}
    while path[-1] != end:
        following = next((n for n in edges[path[-1]] if n in towards and n not in seen), None)
        if following is None:  # only a cycle leads here: step back
            path.pop()
            continue
        seen.add(following)
        path.append(following)
    return path
