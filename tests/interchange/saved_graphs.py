"""Graphs that tests of saved graphs share: one with every setting of a node, chains of layers, one that says it is built."""

from pathlib import Path
from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.graph import GraphStructure, LayerNode, MergeMode, SequentialNode
from tapeprop.interchange import load, save
from tapeprop.layers import (
    Activation,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Identity,
    Layer,
    MaxPool2D,
    Reshape,
)


def network() -> GraphStructure:
    """Two inputs, two outputs, a layer in two nodes, a sequence, a graph inside, and every setting of a node."""
    shared = Conv2D(3, 3, (3, 1), padding=((1, 1), (0, 0)), bias=False, random_state=2**63)
    a, b = LayerNode(shared, name="left"), LayerNode(shared)
    inner_in, inner_out = LayerNode(BatchNorm2D(6, momentum=0.7)), LayerNode(Activation.LeakyReLU(0.2))
    inner = GraphStructure({inner_in: [inner_out]}, root=inner_in, term=inner_out)
    join = LayerNode(inner, MergeMode.CHCAT, name="join", checkpoint=True)
    head = SequentialNode(
        MaxPool2D(2), Flatten(), ("drop", Dropout(0.25, random_state=5)), Dense(96, 4), merge_mode="sub", name="head"
    )
    tail = LayerNode(Reshape(2, -1))
    head.frozen = True
    removed = LayerNode(Identity())
    graph = GraphStructure(
        {a: [join, removed], b: [join], removed: [], join: [head, head, tail]}, [a, b], [head, tail], seed=3
    )
    graph.remove_node(removed)
    graph.stop_gradient(b, join)
    return graph


def loaded(graph: GraphStructure, path: Path, **options: Any) -> GraphStructure:
    save(graph, path / "g.safetensors", **options)
    return load(path / "g.safetensors", **options)


def chain(*layers: Layer) -> GraphStructure:
    nodes = [LayerNode(layer) for layer in layers]
    graph = {node: [following] for node, following in zip(nodes, [*nodes[1:], nodes[-1]])}
    graph[nodes[-1]] = []
    return GraphStructure(graph, root=nodes[0], term=nodes[-1])


def same_state(a: GraphStructure, b: GraphStructure) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(np.array_equal(ours[key], theirs[key]) for key in ours)


class Mine(Layer):
    """A layer of the user's, with a layer inside and arguments of every kind."""

    def __init__(self, inside: Layer, *sizes: int, scale: float = 1.0, table: Any = None):
        self.inside, self.sizes, self.scale, self.table = inside, sizes, scale, table
        self.weight = self.parameter(sizes, "ones")

    def trace(self, x):
        return self.inside(x) * self.weight


class Built(GraphStructure):
    """What LayerGraph offers to be saved whole."""

    def build(
        self, input_shape: Any = None, *, dtype: str = "float32", device: str = "cpu", clip_norm: Any = None
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise GraphError(f"dtype {dtype}")
        self.options = {"input_shape": input_shape, "dtype": dtype, "device": device, "clip_norm": clip_norm}
        self._built = True

    def build_options(self) -> Any:
        return self.options if self.built_ else None

    def optimizer_state_dict(self) -> Any:
        return self.memory if self.built_ else None

    def load_optimizer_state_dict(self, state: Any, classes: Any = None) -> None:
        if "lr" not in state:
            raise KeyError("lr")
        self.memory = state

    memory: Any = None


def built(**options: Any) -> Built:
    node = LayerNode(Dense(2, 3))
    graph = Built({node: []}, root=node, term=node)
    graph.build(**options)
    graph.memory = {"lr": 0.1, "steps": 7, "names": ["a", "b"], "node0.weight.m": np.ones((3, 2), np.float32)}
    return graph
