"""Random networks: a list of small choices, each always meaningful, so that Hypothesis can shrink it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.layers import (
    Activation,
    AvgPool2D,
    BatchNorm1D,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Identity,
    Layer,
    MaxPool2D,
    Reshape,
    Sequential,
)

BATCHES = (3, 8)  # 8 fills the vector lanes of float64, for which image ops have a layout of their own
Shape = tuple[int, ...]  # of one sample
Choice = tuple[str, int, int, int]

ACTIVATIONS = [
    Activation.ReLU, Activation.Tanh, Activation.Sigmoid, Activation.LeakyReLU, Activation.Softplus, Activation.GELU,
]  # fmt: skip
IMAGE_LAYERS: list[Callable[[Shape], Layer]] = [
    lambda s: Conv2D(s[0], 3, 3),
    lambda s: Conv2D(s[0], 2, 1),
    lambda s: Conv2D(s[0], 2, 3, stride=2),
    lambda s: BatchNorm2D(s[0]),
    lambda s: MaxPool2D(3, 1, padding=1),
    lambda s: AvgPool2D(3, 1, padding=1),
    lambda s: GlobalAvgPool2D(),
    lambda s: Dropout(0.3),
    lambda s: Sequential(Conv2D(s[0], s[0], 3), Activation.ReLU()),
]
ROW_LAYERS: list[Callable[[Shape], Layer]] = [
    lambda s: Dense(s[0], 4),
    lambda s: Dense(s[0], 6),
    lambda s: BatchNorm1D(s[0]),
    lambda s: Activation.Softmax(),
    lambda s: Dropout(0.3),
    lambda s: Reshape(s[0], 1, 1),
]
# Hypothesis likes the ends of a list best.
KINDS = [*["layer"] * 4, "activation", "again", "flatten", "nested", "activation", *["merge"] * 4]


@dataclass
class Recipe:
    """A network and how it is run.

    choices: (kind of step, three numbers that say where and what) for each node. seeded: whether an output gets a
    gradient, taken in turn. frozen: the position of a node, stopped: that of an edge in the list of all; none where there
    are fewer.
    """

    choices: list[Choice]
    two_roots: bool
    training: bool
    seeded: list[bool]
    frozen: int | None
    stopped: int | None
    seed: int = 0
    batch: int = 3


@dataclass
class Built:
    """A graph, the arrays that go in, the gradients of its outputs, and whether it trains."""

    graph: LayerGraph
    inputs: list[np.ndarray]
    d_out: list[np.ndarray | None]
    training: bool


recipes = st.builds(
    Recipe,
    choices=st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 3), st.integers(0, 719), st.integers(0, 59)),
        min_size=5,
        max_size=14,
    ),
    two_roots=st.booleans(),
    training=st.booleans(),
    seeded=st.lists(st.booleans(), min_size=3, max_size=3),
    frozen=st.none() | st.integers(0, 20),
    stopped=st.none() | st.integers(0, 20),
    seed=st.integers(0, 3),
    batch=st.sampled_from(BATCHES),
)


def for_random_graphs(count: int) -> Callable[[Callable[[Recipe], None]], Callable[[], None]]:
    """Runs a test on `count` recipes: the same ones in every test and every run, so that few kernels are compiled."""
    return lambda test: seed(7)(settings(max_examples=count, database=None)(given(recipes)(test)))


class _Growing:
    """Nodes with the shape of a sample after each, and the edges so far."""

    def __init__(self, roots: Sequence[Shape]):
        self.roots = [LayerNode(Identity(), name=f"root{i}") for i in range(len(roots))]
        self.pool: list[tuple[LayerNode, Shape]] = list(zip(self.roots, roots))
        self.edges: dict[LayerNode, list[LayerNode]] = {root: [] for root in self.roots}
        self.made: list[tuple[Layer, Shape]] = []  # layers with parameters, and what they take

    def append(self, layer: Layer, sources: Sequence[LayerNode], taken: Shape, mode: MergeMode = MergeMode.SUM) -> None:
        node = LayerNode(layer, mode, name=f"n{len(self.pool)}")
        self.edges[node] = []
        for source in sources:
            self.edges[source].append(node)
        self.pool.append((node, tuple(layer.out_shape((2, *taken)))[1:]))
        if layer.param_size != (0, 0):
            self.made.append((layer, taken))

    def step(self, kind: str, a: int, b: int, c: int) -> None:
        node, shape = self.pool[-1 - a % len(self.pool)]
        layers = IMAGE_LAYERS if len(shape) == 3 else ROW_LAYERS
        if kind == "layer":
            self.append(layers[b % len(layers)](shape), [node], shape)
        elif kind == "activation":
            self.append(ACTIVATIONS[b % len(ACTIVATIONS)](), [node], shape)
        elif kind == "flatten":
            self.append(Flatten(), [node], shape)
        elif kind == "again":
            fitting = [layer for layer, taken in self.made if taken == shape]
            self.append(fitting[b % len(fitting)] if fitting else Activation.ReLU6(), [node], shape)
        elif kind == "nested":
            inner = [LayerNode(Activation.Tanh()), LayerNode(layers[b % len(layers)](shape))]
            self.append(LayerGraph({inner[0]: [inner[1]]}, root=inner[0], term=inner[1]), [node], shape)
        else:
            self._merge(list(MergeMode)[b % len(MergeMode)], node, shape, c)

    def _merge(self, mode: MergeMode, node: LayerNode, shape: Shape, c: int) -> None:
        others = [(other, s) for other, s in self.pool if _merged(mode, [shape, s]) is not None]
        count = min(c % 3, len(others)) if _merged(mode, [shape, shape]) is not None else 0
        chosen = [(node, shape)]
        for k in range(count):
            candidate = others[(c // 3 + k) % len(others)]
            if _merged(mode, [s for _, s in [*chosen, candidate]]) is not None:
                chosen.append(candidate)
        result = _merged(mode, [s for _, s in chosen])
        # operands come in the order of declaration: that of the pool
        places = {n: i for i, (n, _) in enumerate(self.pool)}
        if mode is MergeMode.DOT and result is not None:
            result = _merged(mode, [s for _, s in sorted(chosen, key=lambda item: places[item[0]])])
        if result is None:
            chosen, result = [(node, shape)], shape
        layer = [Identity(), Activation.Tanh(), Activation.ReLU()][c % 3]
        self.append(layer, [n for n, _ in chosen], result, mode)


def _merged(mode: MergeMode, shapes: Sequence[Shape]) -> Shape | None:
    """The shape of a sample after a merge, None where the operands do not go together."""
    if len(shapes) == 1:
        return shapes[0]
    if mode is MergeMode.CHCAT:
        if len({(len(s), s[1:]) for s in shapes}) > 1:
            return None
        return (sum(s[0] for s in shapes), *shapes[0][1:])
    if mode is MergeMode.DOT:
        if any(len(s) != 3 for s in shapes) or any(a[2] != b[1] for a, b in itertools.pairwise(shapes)):
            return None
        if len({s[0] for s in shapes}) > 1:
            return None
        return (shapes[0][0], shapes[0][1], shapes[-1][2])
    if len({len(s) for s in shapes}) > 1:
        return None
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


def build(recipe: Recipe, dropout: float = 0.3, **options: Any) -> Built:
    """The graph that a recipe means, built in float64 unless told otherwise, with weights and inputs drawn by its seed."""
    growing = _Growing([(2, 4, 4), (2, 4, 4)] if recipe.two_roots else [(2, 4, 4)])
    for choice in recipe.choices:
        growing.step(*choice)
    nodes = [node for node, _ in growing.pool]
    for root in growing.roots:  # a root that nothing uses leads somewhere too
        if not growing.edges[root]:
            growing.append(Activation.Tanh(), [root], (2, 4, 4))
    shapes = dict(growing.pool)
    terms = [node for node in shapes if not growing.edges[node]]
    inner = nodes[len(nodes) // 2]
    if len(terms) < 3 and inner not in terms and inner not in growing.roots:
        terms.append(inner)  # an output that is used further on
    roots = growing.roots if recipe.two_roots else growing.roots[0]
    graph = LayerGraph(growing.edges, root=roots, term=terms, seed=recipe.seed)
    pairs = [(a, b) for a in growing.edges for b in growing.edges[a]]
    if recipe.stopped is not None and recipe.stopped < len(pairs):
        graph.stop_gradient(*pairs[recipe.stopped])
    if recipe.frozen is not None and recipe.frozen < len(nodes):
        nodes[recipe.frozen].frozen = True
    for _, layer in graph.walk():
        if isinstance(layer, Dropout):
            layer.dropout_rate = dropout
    graph.build(**{"dtype": "float64", **options})
    rng = np.random.default_rng(recipe.seed)
    for _, parameter in graph.named_parameters():
        if parameter.trainable:
            parameter.assign(rng.uniform(-1, 1, parameter.shape))
    inputs = [rng.standard_normal((recipe.batch, 2, 4, 4)) for _ in growing.roots]
    wanted = [recipe.seeded[i % 3] for i in range(len(terms))]
    if not any(wanted):
        wanted[0] = True
    d_out = [rng.standard_normal((recipe.batch, *shapes[node])) if use else None for node, use in zip(terms, wanted)]
    return Built(graph, inputs, d_out, recipe.training)
