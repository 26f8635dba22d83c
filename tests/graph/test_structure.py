"""The pure graph algorithms, on graphs of strings and ints."""

import random

import pytest

from tapeprop.graph.structure import find_cycle, find_path, incoming, reachable, topological_order

DIAMOND = {"r": ["a", "b"], "a": ["a2"], "a2": ["t"], "b": ["t"], "t": []}


def random_dag(seed: int, size: int = 30) -> dict[int, list[int]]:
    """A DAG on shuffled numbers, double edges included."""
    chance = random.Random(seed)
    names = chance.sample(range(size), size)
    edges: dict[int, list[int]] = {name: [] for name in chance.sample(names, size)}
    for i, name in enumerate(names):
        later = names[i + 1 :]
        edges[name] = chance.choices(later, k=chance.randrange(4)) if later else []
    return edges


def test_incoming_keeps_declaration_order_and_double_edges() -> None:
    assert incoming({"b": ["t", "t"], "a": ["t", "b"], "t": []}) == {"b": ["a"], "a": [], "t": ["b", "b", "a"]}


def test_a_branch_is_followed_to_its_end_before_the_next() -> None:
    assert topological_order(DIAMOND, ["r"]) == ["r", "a", "a2", "b", "t"]
    assert topological_order({**DIAMOND, "r": ["b", "a"]}, ["r"]) == ["r", "b", "a", "a2", "t"]


def test_the_first_root_comes_first() -> None:
    assert topological_order({"t": [], "y": ["t"], "x": ["t"]}, ["x", "y"]) == ["x", "y", "t"]


@pytest.mark.parametrize("seed", range(20))
def test_order_of_random_graphs(seed: int) -> None:
    edges = random_dag(seed)
    starts = [node for node, before in incoming(edges).items() if not before]
    order = topological_order(edges, starts)
    place = {node: i for i, node in enumerate(order)}
    assert sorted(order) == sorted(edges)
    assert all(place[a] < place[b] for a, following in edges.items() for b in following)
    assert find_cycle(edges) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_cycle_that_is_found_is_one(seed: int) -> None:
    edges = random_dag(seed)
    order = topological_order(edges, [node for node, before in incoming(edges).items() if not before])
    a, b = next((a, b) for a in order for b in order if b in reachable(edges, edges[a]))
    edges[b] = [*edges[b], a]
    cycle = find_cycle(edges)
    assert cycle is not None
    assert all(b in edges[a] for a, b in zip(cycle, [*cycle[1:], cycle[0]]))
    assert len(set(cycle)) == len(cycle)


def test_a_node_that_leads_to_itself_is_a_cycle() -> None:
    assert find_cycle({"a": ["b"], "b": ["b"]}) == ["b"]


def test_reachable() -> None:
    assert reachable(DIAMOND, ["b"]) == {"b", "t"}
    assert reachable(DIAMOND, []) == set()


@pytest.mark.parametrize(
    ("edges", "end", "path"),
    [
        (DIAMOND, "t", ["r", "a", "a2", "t"]),
        ({"r": ["dead", "b"], "dead": [], "b": ["t"], "t": []}, "t", ["r", "b", "t"]),
        (DIAMOND, "r", ["r"]),
        ({"r": ["a"], "a": [], "t": ["r"]}, "t", None),
        # the first edge leads into a cycle that can still reach the end
        ({"r": ["x"], "x": ["y"], "y": ["x", "t"], "t": []}, "t", ["r", "x", "y", "t"]),
        ({"r": ["x", "t"], "x": ["y"], "y": ["r"], "t": []}, "t", ["r", "t"]),
    ],
)
def test_find_path(edges: dict[str, list[str]], end: str, path: list[str] | None) -> None:
    assert find_path(edges, "r", end) == path


def test_depth_is_no_limit() -> None:
    size = 50_000
    chain = {i: [i + 1] for i in range(size)} | {size: []}
    assert topological_order(chain, [0]) == list(range(size + 1))
    assert find_path(chain, 0, size) == list(range(size + 1))
    assert find_cycle(chain) is None
    cycle = find_cycle({**chain, size: [0]})
    assert cycle == list(range(size + 1))
