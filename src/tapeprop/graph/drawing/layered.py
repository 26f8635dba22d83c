"""Where the boxes and lines of a drawing go: a layered layout, top to bottom.

The frame is that of Sugiyama, Tagawa and Toda 1981 (https://doi.org/10.1109/TSMC.1981.4308636): every vertex gets a layer by the
longest path to it, lines that pass layers get a dummy vertex in each, the vertices of a layer are put in order (`ordering`), and then
get coordinates (`coordinates`). Lines of one source share their dummies: they run together and part as late as they can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tapeprop.graph.drawing.coordinates import coordinates
from tapeprop.graph.drawing.ordering import ordered

Point = tuple[float, float]
Edge = tuple[int, int]

#: Beyond so many dummies in a component the longest lines are drawn straight.
DUMMIES = 30_000
#: Between lines from one vertex to the same other.
BESIDE = 10.0
#: Width of a shelf of components over its height.
ASPECT = 1.6


@dataclass(frozen=True)
class Layout:
    """Where everything goes; y grows downwards and all of it lies in (0, 0) to (width, height).

    centers: the middle of each vertex. paths: for each edge a line of at least two points, from the border of its source to that of its
    target, downwards unless the edge closes a cycle.
    """

    centers: tuple[Point, ...]
    paths: tuple[tuple[Point, ...], ...]
    width: float
    height: float


def layout(
    sizes: Sequence[tuple[float, float]], edges: Sequence[Edge], *, gap_x: float = 24, gap_y: float = 40
) -> Layout:
    """A layout of vertices with these (width, height), joined by edges (source, target); the same for the same arguments.

    gap_x, gap_y: the least distance of boxes side by side and of layers. Parallel edges and edges that close a cycle are drawn like any
    other, loops at the right of their vertex; what is not connected stands side by side. Vertices and lines of a path of `layout` never
    run through a box, except those of `DUMMIES`.

    Cost: O(k log k) for k vertices, dummies and edges, times the rounds of `ordering.ordered`, which become fewer as k grows; k is at
    most vertices times layers. A chain of 1,000 takes some 50 ms, a random graph of 500 vertices and 1,500 edges about a second.
    """
    count = len(sizes)
    for source, target in edges:
        if not (0 <= source < count and 0 <= target < count):
            raise ValueError(f"layout: expected edges between vertices 0 to {count - 1}, got {(source, target)}")
    placed = []
    for vertices, lines in components(count, edges):
        local = {vertex: i for i, vertex in enumerate(vertices)}
        part = _component(
            [sizes[v] for v in vertices], [(local[edges[e][0]], local[edges[e][1]]) for e in lines], gap_x, gap_y
        )
        placed.append((vertices, lines, part))
    return _packed(placed, count, len(edges), gap_x, gap_y)


def components(count: int, edges: Sequence[Edge]) -> list[tuple[list[int], list[int]]]:
    """(its vertices, the numbers of its edges) of everything that hangs together, by their first vertex."""
    parent = list(range(count))

    def top(v: int) -> int:
        while parent[v] != v:
            parent[v] = v = parent[parent[v]]
        return v

    for source, target in edges:
        a, b = top(source), top(target)
        parent[max(a, b)] = min(a, b)
    found: dict[int, tuple[list[int], list[int]]] = {}
    for v in range(count):
        found.setdefault(top(v), ([], []))[0].append(v)
    for i, (source, _) in enumerate(edges):
        found[top(source)][1].append(i)
    return list(found.values())


def layers_of(count: int, edges: Sequence[Edge]) -> tuple[list[int], set[int]]:
    """(the layer of each vertex, the numbers of the edges that were turned round to break cycles).

    A layer is the longest path from a vertex without incoming edges; those vertices move down to the first that they lead to. Edges to
    a vertex that a depth-first search is still inside of close a cycle. Loops are left out.
    """
    turned = _closing(count, edges)
    following: list[list[int]] = [[] for _ in range(count)]
    waiting = [0] * count
    for i, (source, target) in enumerate(edges):
        if source != target:
            a, b = (target, source) if i in turned else (source, target)
            following[a].append(b)
            waiting[b] += 1
    first = [v for v in range(count) if not waiting[v]]
    layers, ready = [0] * count, list(first)
    for v in ready:
        for w in following[v]:
            layers[w] = max(layers[w], layers[v] + 1)
            waiting[w] -= 1
            if not waiting[w]:
                ready.append(w)
    for v in first:
        if following[v]:
            layers[v] = min(layers[w] for w in following[v]) - 1
    return layers, turned


def _closing(count: int, edges: Sequence[Edge]) -> set[int]:
    out: list[list[int]] = [[] for _ in range(count)]
    for i, (source, _) in enumerate(edges):
        out[source].append(i)
    closing, state = set(), [0] * count  # 0 unseen, 1 inside, 2 done
    for start in range(count):
        stack = [(start, iter(out[start]))] if not state[start] else []
        state[start] = state[start] or 1
        while stack:
            v, rest = stack[-1]
            for i in rest:
                w = edges[i][1]
                if state[w] == 1 and w != v:
                    closing.add(i)
                elif not state[w]:
                    state[w] = 1
                    stack.append((w, iter(out[w])))
                    break
            else:
                state[v] = 2
                stack.pop()
    return closing


def _component(sizes: Sequence[Point], edges: Sequence[Edge], gap_x: float, gap_y: float) -> Layout:
    count = len(sizes)
    layers, turned = layers_of(count, edges)
    down = [(b, a) if i in turned else (a, b) for i, (a, b) in enumerate(edges)]
    routes, dummies = _routes(layers, down)
    depth = layers + dummies
    segments = list(dict.fromkeys(pair for route in routes for pair in pairwise(route)))
    segments = [(a, b) for a, b in segments if depth[b] == depth[a] + 1]
    rows = ordered(depth, segments)
    widths = [w for w, _ in sizes] + [0.0] * len(dummies)
    xs = coordinates(rows, segments, widths, count, gap_x)
    loops = {a for a, b in edges if a == b}
    tops, bottoms = _heights(rows, segments, xs, [h for _, h in sizes], gap_y)
    centers = [(xs[v], (tops[layers[v]] + bottoms[layers[v]]) / 2) for v in range(count)]
    paths = []
    beside = _beside(edges)
    for i, route in enumerate(routes):
        points = _loop(centers[route[0]], sizes[route[0]], gap_x) if edges[i][0] == edges[i][1] else None
        if points is None:
            points = _line(route, count, depth, xs, tops, bottoms, centers, sizes, beside[i])
        paths.append(tuple(reversed(points)) if i in turned else tuple(points))
    right = max(
        [xs[v] + widths[v] / 2 + (gap_x * 0.75 if v in loops else 0.0) for v in range(count)]
        + [x for path in paths for x, _ in path]
    )
    left = min([xs[v] - widths[v] / 2 for v in range(count)] + [x for path in paths for x, _ in path])
    return Layout(
        tuple((x - left, y) for x, y in centers),
        tuple(tuple((x - left, y) for x, y in path) for path in paths),
        right - left,
        bottoms[-1],
    )


def _routes(layers: list[int], down: Sequence[Edge]) -> tuple[list[list[int]], list[int]]:
    """(the vertices and dummies that each edge passes, the layer of each dummy); dummies are numbered after the vertices."""
    reach: dict[int, int] = {}
    for a, b in down:
        if layers[b] > layers[a] + 1:
            reach[a] = max(reach.get(a, 0), layers[b] - layers[a] - 1)
    straight, total = set(), sum(reach.values())
    for a in sorted(reach, key=lambda v: -reach[v]):
        if total <= DUMMIES:
            break
        straight.add(a)
        total -= reach[a]
    dummies: list[int] = []
    known: dict[tuple[int, int], int] = {}
    routes = []
    for a, b in down:
        route = [a]
        for layer in range(layers[a] + 1, layers[b]) if a not in straight else ():
            if (a, layer) not in known:
                known[a, layer] = len(layers) + len(dummies)
                dummies.append(layer)
            route.append(known[a, layer])
        routes.append([*route, b])
    return routes, dummies


def _heights(
    rows: list[list[int]], segments: Sequence[Edge], xs: Sequence[float], heights: Sequence[float], gap_y: float
) -> tuple[list[float], list[float]]:
    """(top, bottom) of each layer; where lines run far to the side the gap is up to twice as high, so that they stay readable."""
    layer = {v: i for i, row in enumerate(rows) for v in row}
    run = [0.0] * len(rows)
    for a, b in segments:
        run[layer[b]] = max(run[layer[b]], abs(xs[a] - xs[b]))
    tops, bottoms, y = [], [], 0.0
    for i, row in enumerate(rows):
        y += min(2 * gap_y, max(gap_y, run[i] / 8)) if i else 0.0
        tops.append(y)
        y += max([heights[v] for v in row if v < len(heights)], default=0.0)
        bottoms.append(y)
    return tops, bottoms


def _beside(edges: Sequence[Edge]) -> list[float]:
    """How far to the right each edge is drawn, so that those with the same ends can be told apart."""
    same: dict[Edge, list[int]] = {}
    for i, (a, b) in enumerate(edges):
        same.setdefault((min(a, b), max(a, b)), []).append(i)
    found = [0.0] * len(edges)
    for numbers in same.values():
        for place, i in enumerate(numbers):
            found[i] = BESIDE * (place - (len(numbers) - 1) / 2)
    return found


def _line(
    route: list[int],
    count: int,
    depth: list[int],
    xs: Sequence[float],
    tops: list[float],
    bottoms: list[float],
    centers: list[Point],
    sizes: Sequence[Point],
    beside: float,
) -> list[Point]:
    """Upright inside every layer, slanted only between them, where no box stands."""
    (a, *_, b) = route
    limit = min(sizes[a][0], sizes[b][0]) / 3
    beside = max(-limit, min(limit, beside))
    points = [(xs[a], centers[a][1] + sizes[a][1] / 2), (xs[a], bottoms[depth[a]])]
    for v in route[1:-1]:
        points += [(xs[v], tops[depth[v]]), (xs[v], bottoms[depth[v]])]
    points += [(xs[b], tops[depth[b]]), (xs[b], centers[b][1] - sizes[b][1] / 2)]
    kept: list[Point] = []
    for x, y in points:
        point = (x + beside, y)
        if kept and kept[-1] == point:
            continue
        if len(kept) > 1 and kept[-1][0] == kept[-2][0] == point[0]:
            kept[-1] = point  # three in a column
        else:
            kept.append(point)
    return kept


def _loop(center: Point, size: Point, gap_x: float) -> list[Point]:
    (x, y), (w, h) = center, size
    out = x + w / 2 + gap_x / 2
    return [(x + w / 2, y - h / 4), (out, y - h / 4), (out, y + h / 4), (x + w / 2, y + h / 4)]


def _packed(
    placed: Sequence[tuple[list[int], list[int], Layout]], count: int, lines: int, gap_x: float, gap_y: float
) -> Layout:
    """The components in rows from left to right, rows as wide as makes the whole about ASPECT times as wide as high."""
    area = sum((part.width + gap_x) * (part.height + gap_y) for *_, part in placed)
    limit = max([(ASPECT * area) ** 0.5, *(part.width for *_, part in placed)])
    centers: list[Point] = [(0.0, 0.0)] * count
    paths: list[tuple[Point, ...]] = [()] * lines
    x = y = shelf = width = 0.0
    for vertices, numbers, part in placed:
        if x and x + part.width > limit:
            x, y, shelf = 0.0, y + shelf + gap_y, 0.0
        for v, (cx, cy) in zip(vertices, part.centers, strict=True):
            centers[v] = (cx + x, cy + y)
        for e, path in zip(numbers, part.paths, strict=True):
            paths[e] = tuple((px + x, py + y) for px, py in path)
        width, shelf = max(width, x + part.width), max(shelf, part.height)
        x += part.width + gap_x
    return Layout(tuple(centers), tuple(paths), width, y + shelf)
