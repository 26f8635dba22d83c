"""The order of the vertices inside each layer, so that few lines cross.

Barycentres, layer by layer, down and up in turn (Sugiyama, Tagawa and Toda 1981), then swaps of neighbours where that saves a crossing
(Gansner, Koutsofios, North and Vo 1993, https://doi.org/10.1109/32.221135, section 3). The best order met is kept, so none is worse
than the first, in which vertices stand as they are numbered.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence

Edge = tuple[int, int]

#: Rounds of sweeps down and up at most, and what all of them may cost in segments looked at.
ROUNDS = 12
BUDGET = 300_000
#: Neighbours are swapped only in graphs of at most so many segments.
SWAPPED = 4_000


def crossings(upper: Sequence[int], lower: Sequence[int], following: Sequence[Sequence[int]]) -> int:
    """How many pairs of lines between two neighbouring layers cross, each given in order.

    following: {vertex: those in the lower layer}. O(e log e) comparisons for e lines, by insertion into a sorted list (the
    inversions of Barth, Jünger and Mutzel 2002).
    """
    place = {v: i for i, v in enumerate(lower)}
    met: list[int] = []
    found = 0
    for v in upper:
        ends = sorted(place[w] for w in following[v])
        found += sum(len(met) - bisect_right(met, end) for end in ends)
        for end in ends:
            insort(met, end)
    return found


def ordered(depth: Sequence[int], segments: Sequence[Edge]) -> list[list[int]]:
    """The layers from top to bottom, each in the best order found.

    depth: the layer of each vertex. segments: (vertex, vertex one layer below), each once. ROUNDS rounds, fewer where BUDGET is
    spent before; a round costs O(k log k) for k vertices and segments, one of swaps O(sum of degree**2).
    """
    down: list[list[int]] = [[] for _ in depth]
    up: list[list[int]] = [[] for _ in depth]
    for a, b in segments:
        down[a].append(b)
        up[b].append(a)
    rows: list[list[int]] = [[] for _ in range(max(depth) + 1)]
    for v, layer in enumerate(depth):
        rows[layer].append(v)
    best = [list(row) for row in rows]
    least = _all_crossings(best, down)
    rows = _by_search(rows, down, depth)
    rounds = max(2, min(ROUNDS, BUDGET // (len(segments) + len(depth))))
    for attempt in range(rounds + 1):
        found = _all_crossings(rows, down)
        if found < least:
            best, least = [list(row) for row in rows], found
        if not least or attempt == rounds:
            break
        mirrored = bool(attempt % 2)  # vertices of equal barycentres change sides
        for i in range(1, len(rows)):
            _by_barycentre(rows[i], rows[i - 1], up, mirrored)
        for i in range(len(rows) - 2, -1, -1):
            _by_barycentre(rows[i], rows[i + 1], down, mirrored)
        if len(segments) <= SWAPPED:
            _swap_neighbours(rows, down, up)
    return best


def _all_crossings(rows: list[list[int]], down: list[list[int]]) -> int:
    return sum(crossings(rows[i], rows[i + 1], down) for i in range(len(rows) - 1))


def _by_search(rows: list[list[int]], down: list[list[int]], depth: Sequence[int]) -> list[list[int]]:
    """The vertices of each layer as a depth-first search from the top meets them: what belongs to one branch stands together."""
    found: list[list[int]] = [[] for _ in rows]
    seen = [False] * len(depth)
    for row in rows:
        for start in row:
            stack = [start]
            while stack:
                v = stack.pop()
                if not seen[v]:
                    seen[v] = True
                    found[depth[v]].append(v)
                    stack.extend(reversed(down[v]))
    return found


def _by_barycentre(row: list[int], fixed: list[int], near: list[list[int]], mirrored: bool) -> None:
    """Sorts a layer by the mean place of each vertex's neighbours in a fixed one; those without any keep their places."""
    place = {v: i for i, v in enumerate(fixed)}
    bound = [v for v in (reversed(row) if mirrored else row) if near[v]]
    bound.sort(key=lambda v: sum(place[w] for w in near[v]) / len(near[v]))
    following = iter(bound)
    row[:] = [next(following) if near[v] else v for v in row]


def _swap_neighbours(rows: list[list[int]], down: list[list[int]], up: list[list[int]]) -> None:
    """Swaps neighbours of a layer as long as that saves a crossing, once through all layers."""
    for i, row in enumerate(rows):
        sides = [(rows[i - 1], up)] if i else []
        sides += [(rows[i + 1], down)] if i + 1 < len(rows) else []
        ends = [
            {v: sorted(place[w] for w in near[v]) for v in row}
            for fixed, near in sides
            for place in [{w: j for j, w in enumerate(fixed)}]
        ]
        for j in range(len(row) - 1):
            a, b = row[j], row[j + 1]
            if sum(_inversions(e[a], e[b]) for e in ends) > sum(_inversions(e[b], e[a]) for e in ends):
                row[j], row[j + 1] = b, a


def _inversions(left: list[int], right: list[int]) -> int:
    """Crossings between the lines of a vertex and those of its right neighbour; places sorted."""
    if not left or not right or left[-1] <= right[0]:
        return 0
    return sum(len(left) - bisect_right(left, end) for end in right)
