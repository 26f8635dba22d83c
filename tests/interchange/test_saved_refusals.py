"""Graphs that cannot be written down: each is refused, with what to do, before anything is written."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interchange.saved_graphs import Mine, chain, loaded

from tapeprop import ops
from tapeprop.errors import CycleError, DisconnectedError, DuplicateNameError, GraphError
from tapeprop.graph import GraphStructure, LayerNode
from tapeprop.interchange import save
from tapeprop.interchange.describe import DEEPEST, MOST, known_classes
from tapeprop.layers import Dense, Identity, Lambda, Layer, Sequential


class Overriding(GraphStructure):
    def trace(self, x):
        return x


class Forgetful(Layer):
    def __init__(self, size: int, scale: float = 1.0):
        self.size = size
        self.kept_elsewhere = scale


class Grown(Layer):
    def __init__(self, size: int):
        self.size = size


def tied() -> GraphStructure:
    graph = chain(Dense(2, 2), Dense(2, 2))
    first, second = (node.layer for node in graph)
    second.weight = first.weight
    return graph


def grown() -> GraphStructure:
    layer = Grown(2)
    layer.extra = Dense(2, 2)
    return chain(layer)


def holding_itself() -> GraphStructure:
    inside = Mine(Identity(), 1)
    inside.inside = Sequential(inside)
    return chain(inside)


def nested(depth: int) -> GraphStructure:
    return chain(functools.reduce(lambda layer, _: Sequential(layer), range(depth - 1), Identity()))


def doubled(times: int) -> GraphStructure:
    return chain(functools.reduce(lambda layer, _: Sequential(layer, layer), range(times), Identity()))


def cyclic() -> GraphStructure:
    a, b = LayerNode(Identity(), name="a"), LayerNode(Identity(), name="b")
    return GraphStructure({a: [b], b: [a]}, root=a, term=b)


def rootless() -> GraphStructure:
    graph = chain(Identity())
    graph.term = LayerNode(Identity(), name="lost")
    return graph


def twice_named() -> GraphStructure:
    a, b = LayerNode(Dense(2, 2), name="a"), LayerNode(Dense(2, 2), name="a")
    return GraphStructure({a: [b]}, root=a, term=b)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no graph": (lambda: Dense(2, 2), GraphError, "expected a graph, got Dense"),
    "a Lambda": (lambda: chain(Lambda(ops.tanh)), GraphError, r"node 'node0'.*got Lambda\(.*state_dict\(\)"),
    "a class of one's own": (
        lambda: chain(Sequential(("mine", Grown(2)))),
        GraphError,
        r"node 'node0'.mine: .*Grown, a class of your own: give classes=.*state_dict\(\), and rebuild the graph in code",
    ),
    "a graph that computes in its own way": (lambda: Overriding(), GraphError, "Overriding, which has its own trace"),
    "an argument that is not kept": (lambda: chain(Forgetful(2)), GraphError, "'scale' as self.scale"),
    "an argument of no form": (
        lambda: chain(Mine(Identity(), 1, table={1, 2})),
        GraphError,
        "node0': table: expected numbers",
    ),
    "parameters tied by hand": (
        tied,
        GraphError,
        "'node1.weight': expected .* got nothing; .*use one layer in two nodes",
    ),
    "a layer put in later": (grown, GraphError, "'node0.extra': expected .* nothing, got Dense"),
    "a layer that holds itself": (holding_itself, CycleError, "layers that do not hold themselves"),
    "too deep": (lambda: nested(DEEPEST), GraphError, f"nested at most {DEEPEST} deep"),
    "too many": (lambda: doubled(20), GraphError, f"at most {MOST:,} layers"),
    "a cycle": (cyclic, CycleError, "a -> b -> a"),
    "a term that is no node": (rootless, DisconnectedError, "expected term to be in the graph, got lost"),
    "one name twice": (twice_named, DuplicateNameError, "got 'a' for both"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_down_is_refused(tmp_path: Path, case: str) -> None:
    make, kind, message = REFUSED[case]
    classes = {cls.__name__: cls for cls in (Forgetful, Mine)}
    if case == "a layer put in later":
        classes["Grown"] = Grown
    with pytest.raises(kind, match=message):
        save(make(), tmp_path / "g", classes)
    assert list(tmp_path.iterdir()) == []


def test_as_deep_as_it_goes(tmp_path: Path) -> None:
    assert repr(loaded(nested(DEEPEST - 1), tmp_path).nodes[0].layer).count("Sequential") == DEEPEST - 2


@pytest.mark.parametrize("classes", [{"Mine": 3}, {"Mine": int}, {"Dense": Mine}, {"Net": Overriding}])
def test_classes_are_layers_under_names_of_their_own(tmp_path: Path, classes: Any) -> None:
    with pytest.raises(GraphError, match="classes: "):
        save(chain(Identity()), tmp_path / "g", classes)


def test_known_classes_do_not_shadow_public_ones() -> None:
    assert known_classes({"Mine": Mine}) == {**known_classes(None), "Mine": Mine}
