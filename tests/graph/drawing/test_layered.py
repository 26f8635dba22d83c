"""The layered layout: nothing overlaps, lines go down and round the boxes, few of them cross."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from tapeprop.graph.drawing import layered
from tapeprop.graph.drawing.layered import Layout, layers_of, layout
from tapeprop.graph.drawing.ordering import crossings, ordered

Sizes = Sequence[tuple[float, float]]
Edges = Sequence[tuple[int, int]]
CLOSE = 1e-6


def random_graph(count: int, lines: int, seed: int) -> tuple[list[tuple[float, float]], list[tuple[int, int]]]:
    rng = random.Random(seed)
    sizes = [(rng.uniform(20, 150), rng.uniform(10, 50)) for _ in range(count)]
    numbers = rng.sample(range(count), count)  # edges are not in the order of the numbers
    pairs = [sorted(rng.sample(range(count), 2)) for _ in range(lines)]
    return sizes, [(numbers[a], numbers[b]) for a, b in pairs]


def boxes(sizes: Sizes, found: Layout) -> list[tuple[float, float, float, float]]:
    """(left, top, right, bottom)."""
    return [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for (x, y), (w, h) in zip(found.centers, sizes, strict=True)]


def check(sizes: Sizes, edges: Edges, found: Layout, gap: float = 24.0) -> None:
    """Sound for any graph: all lies inside, boxes keep apart, lines begin and end at borders."""
    placed = boxes(sizes, found)
    for i, (left, top, right, bottom) in enumerate(placed):
        assert left > -CLOSE
        assert top > -CLOSE
        assert right < found.width + CLOSE
        assert bottom < found.height + CLOSE
        for other in placed[:i]:
            beside = max(other[0] - right, left - other[2]) > gap - CLOSE
            above = max(other[1] - bottom, top - other[3]) > 40 - CLOSE
            assert beside or above
    assert len(found.paths) == len(edges)
    for path, (source, target) in zip(found.paths, edges, strict=True):
        assert len(path) >= 2
        assert all(-CLOSE < x < found.width + CLOSE and -CLOSE < y < found.height + CLOSE for x, y in path)
        for (x, y), (left, top, right, bottom) in ((path[0], placed[source]), (path[-1], placed[target])):
            assert left - CLOSE < x < right + CLOSE
            assert min(abs(y - top), abs(y - bottom), abs(x - right)) < CLOSE or source == target


def runs_through(path: Sequence[tuple[float, float]], box: tuple[float, float, float, float]) -> bool:
    left, top, right, bottom = box
    for (x0, y0), (x1, y1) in pairwise(path):
        for i in range(21):
            x, y = x0 + (x1 - x0) * i / 20, y0 + (y1 - y0) * i / 20
            if left + 1 < x < right - 1 and top + 1 < y < bottom - 1:
                return True
    return False


def test_nothing_and_little() -> None:
    assert layout([], []) == Layout((), (), 0.0, 0.0)
    assert layout([(30.0, 10.0)], []) == Layout(((15.0, 5.0),), (), 30.0, 10.0)
    pair = layout([(30.0, 10.0), (50.0, 20.0)], [(0, 1)], gap_y=15)
    assert pair.centers == ((25.0, 5.0), (25.0, 35.0))
    assert pair.paths == (((25.0, 10.0), (25.0, 25.0)),)
    assert (pair.width, pair.height) == (50.0, 45.0)


@pytest.mark.parametrize(("count", "lines"), [(2, 1), (6, 7), (15, 40), (40, 60), (60, 30), (120, 200)])
@pytest.mark.parametrize("seed", range(3))
def test_random_graphs(count: int, lines: int, seed: int) -> None:
    sizes, edges = random_graph(count, lines, seed)
    found = layout(sizes, edges)
    check(sizes, edges, found)
    assert found == layout(sizes, edges)
    for path in found.paths:
        assert all(below[1] > above[1] - CLOSE for above, below in pairwise(path))


@pytest.mark.parametrize("seed", range(5))
def test_lines_run_round_boxes(seed: int) -> None:
    sizes, edges = random_graph(25, 40, seed)
    found = layout(sizes, edges)
    placed = boxes(sizes, found)
    assert not [(i, j) for i, path in enumerate(found.paths) for j, box in enumerate(placed) if runs_through(path, box)]


def test_edges_that_close_cycles_and_loops() -> None:
    sizes, edges = [(40.0, 20.0)] * 4, [(0, 1), (1, 2), (2, 0), (3, 3), (1, 0)]
    found = layout(sizes, edges)
    check(sizes, edges, found)
    for number in (2, 4):
        assert found.paths[number][0][1] > found.paths[number][-1][1]
    assert layers_of(4, edges) == ([0, 1, 2, 0], {2, 4})
    assert {x for x, _ in found.paths[0]}.isdisjoint(x for x, _ in found.paths[4])


@pytest.mark.parametrize("seed", range(3))
def test_cyclic_graphs(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [(40.0, 20.0)] * 20
    edges = [(rng.randrange(20), rng.randrange(20)) for _ in range(50)]
    check(sizes, edges, layout(sizes, edges))


def test_parallel_edges_are_told_apart() -> None:
    paths = layout([(60.0, 20.0)] * 3, [(0, 1), (0, 1), (0, 1), (1, 2)]).paths
    assert len(set(paths)) == 4


def test_edges_between_what_is_not_there() -> None:
    for edge in ((0, 2), (-1, 0)):
        with pytest.raises(ValueError, match="vertices 0 to 1"):
            layout([(1.0, 1.0)] * 2, [edge])


def test_layers_are_longest_paths() -> None:
    layers, turned = layers_of(6, [(0, 1), (1, 2), (0, 2), (2, 3), (5, 3)])
    assert layers == [0, 1, 2, 3, 0, 2]  # 5 moves down to what it leads to
    assert not turned


def test_long_lines_are_upright() -> None:
    """A chain with a shortcut: the chain stands in one column, and the shortcut has one upright piece."""
    sizes = [(40.0, 20.0)] * 5
    found = layout(sizes, [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)])
    assert len({round(x, 6) for x, _ in found.centers[1:4]}) == 1
    shortcut = found.paths[4]
    assert any(a[0] == b[0] and b[1] - a[1] == 140 for a, b in pairwise(shortcut))


def count_crossings(rows: list[list[int]], segments: Edges) -> int:
    """All pairs of lines, one by one."""
    place = {v: (i, j) for i, row in enumerate(rows) for j, v in enumerate(row)}
    lines = [(*place[a], place[b][1]) for a, b in segments]
    return sum(p[0] == q[0] and (p[1] - q[1]) * (p[2] - q[2]) < 0 for i, p in enumerate(lines) for q in lines[:i])


def test_crossings_are_counted() -> None:
    rng = random.Random(0)
    upper, lower = list(range(8)), list(range(8, 16))
    rng.shuffle(lower)
    segments = sorted({(rng.randrange(8), rng.randrange(8, 16)) for _ in range(30)})
    following = [[b for a, b in segments if a == v] for v in range(16)]
    assert crossings(upper, lower, following) == count_crossings([upper, lower], segments) > 50


def test_what_can_be_drawn_without_crossings_is() -> None:
    # two trees whose leaves are numbered the wrong way round
    segments = [(0, 5), (0, 7), (1, 4), (1, 6), (4, 8), (6, 9), (5, 10), (7, 11), (2, 4), (3, 5)]
    depth = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    naive = [[v for v, d in enumerate(depth) if d == layer] for layer in range(3)]
    assert count_crossings(naive, segments) > 0
    assert count_crossings(ordered(depth, segments), segments) == 0


@pytest.mark.parametrize("seed", range(4))
def test_orders_are_never_worse_than_the_numbering(seed: int) -> None:
    rng = random.Random(seed)
    depth = [i // 10 for i in range(50)]
    segments = sorted({(a, rng.randrange(10 * (depth[a] + 1), 10 * (depth[a] + 2))) for a in range(40) for _ in "ab"})
    naive = [list(range(10 * i, 10 * i + 10)) for i in range(5)]
    found = ordered(depth, segments)
    assert [sorted(row) for row in found] == naive
    assert count_crossings(found, segments) < count_crossings(naive, segments) / 2


def test_deep_graphs() -> None:
    """No recursion, and lines back to the start of a long chain share their way."""
    count = 1000
    chain = [(i, i + 1) for i in range(count - 1)]
    found = layout([(50.0, 20.0)] * count, chain)
    assert found.width == 50
    assert found.height == 20 * count + 40 * (count - 1)
    assert len({x for x, _ in found.centers}) == 1


def test_the_longest_lines_are_straight_where_there_are_too_many(monkeypatch) -> None:
    monkeypatch.setattr(layered, "DUMMIES", 5)
    sizes = [(50.0, 20.0)] * 10
    edges = [(i, i + 1) for i in range(9)] + [(0, 9), (2, 5)]
    found = layout(sizes, edges)
    check(sizes, edges, found)
    assert len({x for x, _ in found.paths[9]}) == 1
    assert len({x for x, _ in found.paths[10]}) > 1


def test_what_is_not_connected_stands_side_by_side() -> None:
    sizes = [(30.0, 10.0)] * 50
    found = layout(sizes, [])
    check(sizes, [], found)
    assert 0.5 < found.width / found.height < 4
