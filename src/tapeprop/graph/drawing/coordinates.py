"""The x of every vertex of an ordered layering, with long lines upright and vertices over the middle of what they lead to.

Brandes and Köpf 2001 (https://doi.org/10.1007/3-540-45848-4_3): every vertex is aligned with a median neighbour of the layer above
or below, from the left or from the right, which gives four layouts; each vertex gets the mean of the two middle ones. Aligned
vertices form blocks. Blocks are placed by longest paths over who stands left of whom, as far to the left as the distances allow, and
then moved towards their right neighbours: that replaces the paper's classes, whose shifts can be wrong (Brandes, Walter and Zink 2020,
https://arxiv.org/abs/2008.01252).
"""

from __future__ import annotations

from collections.abc import Sequence

Edge = tuple[int, int]


def coordinates(
    rows: Sequence[Sequence[int]], segments: Sequence[Edge], widths: Sequence[float], count: int, gap: float
) -> list[float]:
    """The x of the middle of each vertex, in any frame; neighbours of a layer stand at least `gap` apart, half of that beside dummies.

    rows: the layers in order. segments: (vertex, vertex one layer below), each once. widths: of every vertex; those from number
    `count` on are dummies. O(k log k) for k vertices and segments.
    """
    place = {v: i for row in rows for i, v in enumerate(row)}
    up: list[list[int]] = [[] for _ in widths]
    down: list[list[int]] = [[] for _ in widths]
    for a, b in segments:
        down[a].append(b)
        up[b].append(a)
    for near in (up, down):
        for ends in near:
            ends.sort(key=place.__getitem__)
    crossed = _crossed(rows, up, place, count)
    found = []
    for upwards in (True, False):
        for mirrored in (False, True):
            layers = [list(row) for row in (rows if upwards else reversed(rows))]
            if mirrored:
                layers = [row[::-1] for row in layers]
            near = up if upwards else down
            aligned = _aligned(layers, near, place, mirrored, crossed, upwards)
            xs = _compacted(layers, aligned, widths, count, gap)
            found.append([-x for x in xs] if mirrored else xs)
    return _balanced(found, widths)


def _crossed(rows: Sequence[Sequence[int]], up: list[list[int]], place: dict[int, int], count: int) -> set[Edge]:
    """Segments that cross one between two dummies, which must stay upright (conflicts of type 1)."""
    found: set[Edge] = set()
    for row in rows[1:]:
        left, waiting = -1, 0
        for i, v in enumerate(row):
            inner = next((place[w] for w in up[v] if w >= count), None) if v >= count else None
            last = i == len(row) - 1
            if inner is None and not last:
                continue
            right = inner if inner is not None else len(place)
            for other in row[waiting : i + 1]:
                for w in up[other]:
                    if not left <= place[w] <= right and not (w >= count and other >= count):
                        found.add((w, other))
            left, waiting = max(left, inner if inner is not None else left), i + 1
    return found


def _aligned(
    layers: list[list[int]],
    near: list[list[int]],
    place: dict[int, int],
    mirrored: bool,
    crossed: set[Edge],
    upwards: bool,
) -> list[int]:
    """The first vertex of the block that each belongs to."""
    head = list(range(len(near)))
    for row in layers[1:]:
        taken = -1
        size = len(place)
        for v in row:
            ends = near[v]
            if not ends:
                continue
            middle = [ends[(len(ends) - 1) // 2], ends[len(ends) // 2]]
            for w in dict.fromkeys(reversed(middle) if mirrored else middle):
                at = size - place[w] if mirrored else place[w]
                if at > taken and ((w, v) if upwards else (v, w)) not in crossed:
                    head[v] = head[w]
                    taken = at
                    break
    return head


def _compacted(
    layers: list[list[int]], head: list[int], widths: Sequence[float], count: int, gap: float
) -> list[float]:
    """x from left to right; blocks first as far left as they can, then as far right as their right neighbours let them."""
    lefts: dict[int, list[tuple[int, float]]] = {}
    rights: dict[int, list[tuple[int, float]]] = {}
    waiting: dict[int, int] = {}
    for row in layers:
        for i, v in enumerate(row):
            waiting.setdefault(head[v], 0)
            if i:
                u = row[i - 1]
                apart = (widths[u] + widths[v]) / 2 + (gap if u < count and v < count else gap / 2)
                lefts.setdefault(head[v], []).append((head[u], apart))
                rights.setdefault(head[u], []).append((head[v], apart))
                waiting[head[v]] += 1
    ready = [block for block, missing in waiting.items() if not missing]
    for block in ready:
        for other, _ in rights.get(block, ()):
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    at: dict[int, float] = {}
    for block in ready:
        at[block] = max((at[other] + apart for other, apart in lefts.get(block, ())), default=0.0)
    for block in reversed(ready):
        if block in rights and block in lefts:
            at[block] = max(at[block], min(at[other] - apart for other, apart in rights[block]))
        elif block in rights:  # nothing holds it at the left
            at[block] = min(at[other] - apart for other, apart in rights[block])
    return [at[head[v]] for v in range(len(head))]


def _balanced(found: list[list[float]], widths: Sequence[float]) -> list[float]:
    """The mean of the two middle ones of four layouts; first they are moved to the left (0, 2) or right edge of the narrowest."""
    spans = [(min(x - w / 2 for x, w in zip(xs, widths)), max(x + w / 2 for x, w in zip(xs, widths))) for xs in found]
    left, right = min(spans, key=lambda span: span[1] - span[0])
    moved = []
    for i, (xs, (low, high)) in enumerate(zip(found, spans)):
        shift = right - high if i % 2 else left - low
        moved.append([x + shift for x in xs])
    return [sum(sorted(four)[1:3]) / 2 for four in zip(*moved)]
