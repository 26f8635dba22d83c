"""The networks that the rules are tested on: few shapes, so that few kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.layers import (
    Activation,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Identity,
    MaxPool2D,
    Sequential,
)

IMAGES, CLASSES = (6, 2, 6, 6), 3
ROWS, FEATURES = (5, 4), 4
#: For what fit() takes as the time of a native call: a step in each, and as many as it ever lets into one.
CALL_SECONDS = (1e-9, 1e9)


def images(seed: int = 0, shape: tuple[int, ...] = IMAGES, dtype: str = "float64") -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def rows(seed: int = 0, dtype: str = "float64") -> np.ndarray:
    """Standard normal numbers (5, 4)."""
    return images(seed, ROWS, dtype)


def batches(seed: int = 0) -> np.ndarray:
    """Images (N, 2, 6, 6), N by `seed` one of 16, which fills vector lanes in either dtype, 6 and 8."""
    return images(seed, ((16, 6, 8)[seed % 3], *IMAGES[1:]))


def labels(count: int, seed: int = 0) -> np.ndarray:
    """Class ids (count,)."""
    return np.random.default_rng([seed, 1]).integers(0, CLASSES, count)


def chain(*layers: Any, names: list[str] | None = None, **options: Any) -> LayerGraph:
    """A graph of one node per layer, one after another."""
    nodes = [LayerNode(layer, name=names[i] if names else None) for i, layer in enumerate(layers)]
    edges = {node: nodes[i + 1 : i + 2] for i, node in enumerate(nodes)}
    return LayerGraph(edges, root=nodes[0], term=nodes[-1], **options)


def vision(seed: int = 0, **build: Any) -> LayerGraph:
    """Convolution, batch norm, ReLU, dropout, pooling and a dense head: (N, 2, 6, 6) -> (N, 3)."""
    layers = [
        Conv2D(2, 4, 3), BatchNorm2D(4), Activation.ReLU(), Dropout(0.25), MaxPool2D(), Flatten(), Dense(36, CLASSES),
    ]  # fmt: skip
    names = ["conv", "norm", "relu", "dropout", "pool", "flat", "head"]
    return chain(*layers, names=names, seed=seed).build((None, *IMAGES[1:]), **build)


def perceptron(seed: int = 0, **build: Any) -> LayerGraph:
    """(N, 4) -> (N, 3), a hidden layer of 8."""
    layers = [Dense(4, 8), Activation.Tanh(), Dense(8, CLASSES)]
    return chain(*layers, names=["first", "tanh", "second"], seed=seed).build((None, 4), **build)


def shared(seed: int = 0, **build: Any) -> LayerGraph:
    """One Dense(4, 4) in two nodes of a chain and a head: (N, 4) -> (N, 3)."""
    layer = Dense(4, 4)
    layers = [layer, Activation.Tanh(), layer, Dense(4, CLASSES)]
    return chain(*layers, names=["once", "tanh", "twice", "head"], seed=seed).build((None, 4), **build)


def two_heads(seed: int = 0, **build: Any) -> LayerGraph:
    """A trunk with two heads "a" and "b", each (N, 4) -> (N, 3)."""
    trunk = LayerNode(Sequential(Dense(4, 8), Activation.Tanh()), name="trunk")
    a, b = LayerNode(Dense(8, CLASSES), name="a"), LayerNode(Dense(8, CLASSES), name="b")
    return LayerGraph({trunk: [a, b]}, root=trunk, term=[a, b], seed=seed).build((None, 4), **build)


def node_of(graph: LayerGraph, name: str) -> LayerNode:
    """The node of that name."""
    return next(node for node in graph.nodes if node.name == name)


def merged(mode: MergeMode, count: int, **build: Any) -> LayerGraph:
    """`count` inputs that meet in one merge."""
    roots = [LayerNode(Identity(), name=f"r{i}") for i in range(count)]
    term = LayerNode(Identity(), mode, name="meet")
    return LayerGraph({root: [term] for root in roots}, root=roots, term=term).build(**build)


def state(graph: LayerGraph) -> dict[str, np.ndarray]:
    """Everything that training changes: values, and the gradients as they stand."""
    gradients = {f"d {name}": p.grad.copy() for name, p in graph.named_parameters() if p.trainable}
    return graph.state_dict() | gradients


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Equal keys, and equal bits under each."""
    assert list(a) == list(b)
    differing = [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert not differing, differing


def step_by_step(graph: LayerGraph, x: Any, y: Any, loss: Any) -> float:
    """What train_step does, one call after another."""
    graph.zero_grad()
    out = graph.forward(x, True)
    value = loss(y, out)
    graph.backward(loss.grad(y, out))
    graph.update()
    return value


Make = Callable[..., LayerGraph]
