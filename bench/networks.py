"""The networks of the benchmarks as graphs; `peers` and `jax_peers` hold the same ones in torch and in JAX.

All have float32 weights that follow from the seed, 10 classes and a batch size of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from tapeprop import LayerGraph, LayerNode, MergeMode, SequentialNode
from tapeprop.cli.digits import digits_network
from tapeprop.initializers import uniform
from tapeprop.layers import (
    Activation,
    BatchNorm2D,
    Conv2D,
    Dense,
    Flatten,
    GlobalAvgPool2D,
    Lambda,
    Layer,
    MaxPool2D,
)
from tapeprop.ops import tanh

CLASSES = 10


@dataclass(frozen=True)
class Network:
    """A graph to build, and the shape of the batch that it is timed with."""

    name: str
    title: str
    shape: tuple[int, ...]
    graph: Callable[[], LayerGraph]

    @property
    def batch(self) -> int:
        """Samples in a step."""
        return self.shape[0]

    def data(self, batches: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Random samples (batches * batch, ...) float32 and labels int64 for them."""
        rng = np.random.default_rng(seed)
        count = batches * self.batch
        samples = rng.standard_normal((count, *self.shape[1:]), dtype=np.float32)
        return samples, rng.integers(0, CLASSES, count)


def chain(nodes: int = 64, width: int = 16) -> LayerGraph:
    """Residual nodes x + tanh(Dense(x)), as many as `nodes`, and a dense head: small work, many instructions."""
    steps = [LayerNode(_Residual(width), name=f"step{i}") for i in range(nodes)]
    head = LayerNode(Dense(width, CLASSES), name="head")
    return _line([*steps, head])


class _Residual(Layer):
    def __init__(self, width: int):
        # Weights as large as those of torch.nn.Linear: with larger ones 64 steps multiply rounding errors without end.
        bound = 1 / math.sqrt(width)
        self.dense = Dense(width, width, initializer=partial(uniform, low=-bound, high=bound))

    def trace(self, x):
        return x + tanh(self.dense(x))


def mlp() -> LayerGraph:
    """784-256-128-10 with ReLU."""
    sizes, nodes = (784, 256, 128), []
    for before, after in pairwise(sizes):
        nodes.append(SequentialNode(Dense(before, after), Activation.ReLU(), name=f"dense{before}"))
    return _line([*nodes, LayerNode(Dense(128, CLASSES), name="head")])


def lenet() -> LayerGraph:
    """LeNet-5 (LeCun et al. 1998) with ReLU and maxima: 28x28 images, 61,706 weights."""
    return _line(
        [
            SequentialNode(Conv2D(1, 6, 5), Activation.ReLU(), MaxPool2D(2), name="first"),
            SequentialNode(
                Conv2D(6, 16, 5, padding="valid"), Activation.ReLU(), MaxPool2D(2), Flatten(), name="second"
            ),
            SequentialNode(Dense(400, 120), Activation.ReLU(), name="third"),
            SequentialNode(Dense(120, 84), Activation.ReLU(), name="fourth"),
            LayerNode(Dense(84, CLASSES), name="head"),
        ]
    )


def branches() -> LayerGraph:
    """Three convolutions 3 -> 6, 12, 18 of one image, joined along the channels, one more and a dense head."""
    image = LayerNode(Lambda(lambda x: x), name="image")
    sides = [SequentialNode(Conv2D(3, c, 3), Activation.ReLU(), name=f"branch{c}") for c in (6, 12, 18)]
    joined = SequentialNode(Conv2D(36, 36, 3), Activation.ReLU(), merge_mode=MergeMode.CHCAT, name="joined")
    head = SequentialNode(GlobalAvgPool2D(), Flatten(), Dense(36, CLASSES), name="head")
    edges = {image: sides, **{side: [joined] for side in sides}, joined: [head], head: []}
    return LayerGraph(edges, root=image, term=head, seed=0)


def resnet20(checkpoint: bool = False) -> LayerGraph:
    """ResNet-20 for 32x32 images (He et al. 2016, section 4.2), with projections as shortcuts (option B).

    About 0.27 million weights. checkpoint: of the nodes inside the blocks.
    """
    edges: dict[LayerNode, list[LayerNode]] = {}

    def node(after: list[LayerNode], *layers: Layer, name: str, checkpoint: bool = False) -> LayerNode:
        made = SequentialNode(*layers, name=name, checkpoint=checkpoint)
        edges[made] = []
        for before in after:
            edges[before].append(made)
        return made

    root = x = node([], *_normalised(3, 16, 3), Activation.ReLU(), name="stem")
    channels, inside = 16, {"checkpoint": checkpoint}
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range(1, 4):
            name, stride = f"block{stage}{block}", 1 if width == channels else 2
            inner = node([x], *_normalised(channels, width, 3, stride), Activation.ReLU(), name=f"{name}a", **inside)
            inner = node([inner], *_normalised(width, width, 3), name=f"{name}b", **inside)
            short = node([x], *_normalised(channels, width, 1, stride), name=f"{name}s", **inside) if stride > 1 else x
            x = node([inner, short], Activation.ReLU(), name=name)
            channels = width
    term = node([x], GlobalAvgPool2D(), Flatten(), Dense(64, CLASSES), name="head")
    return LayerGraph(edges, root=root, term=term, seed=0)


def vgg() -> LayerGraph:
    """Six 3x3 convolutions in the manner of VGG (Simonyan and Zisserman 2015) for 32x32 images, two dense layers."""
    nodes, channels = [], 3
    for width in (64, 128, 256):
        first, second = (Conv2D(a, width, 3, initializer="glorot") for a in (channels, width))
        layers = (first, Activation.ReLU(), second, Activation.ReLU(), MaxPool2D(2))
        nodes.append(SequentialNode(*layers, name=f"stage{width}"))
        channels = width
    nodes.append(SequentialNode(Flatten(), Dense(256 * 4 * 4, 256), Activation.ReLU(), name="dense"))
    return _line([*nodes, LayerNode(Dense(256, CLASSES), name="head")])


def _normalised(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[Layer, Layer]:
    return Conv2D(inputs, outputs, size, stride, bias=False), BatchNorm2D(outputs)


def _line(nodes: list[LayerNode]) -> LayerGraph:
    edges = {a: [b] for a, b in pairwise(nodes)}
    return LayerGraph({**edges, nodes[-1]: []}, root=nodes[0], term=nodes[-1], seed=0)


NETWORKS = {
    network.name: network
    for network in (
        Network("digits", "digits demo, 8x8, batch 32", (32, 1, 8, 8), digits_network),
        Network("chain", "64 residual nodes of 16, batch 8", (8, 16), chain),
        Network("mlp", "MLP 784-256-128-10, batch 64", (64, 784), mlp),
        Network("lenet", "LeNet-5, 28x28, batch 64", (64, 1, 28, 28), lenet),
        Network("branches", "three branches, 32x32, batch 32", (32, 3, 32, 32), branches),
        Network("resnet20", "ResNet-20, 32x32, batch 64", (64, 3, 32, 32), resnet20),
        Network("vgg", "VGG-like, 32x32, batch 32", (32, 3, 32, 32), vgg),
    )
}


def without_dropout(graph: LayerGraph) -> LayerGraph:
    """The graph with every dropout rate at 0, so that two frameworks can be compared; not built yet."""
    for _, member in graph.walk():
        if hasattr(member, "dropout_rate"):
            member.dropout_rate = 0.0
    return graph
