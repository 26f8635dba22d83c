"""The network of the demo: a shortcut (SUM) and a concatenation of channels (CHCAT), for the digits inside."""

from __future__ import annotations

from tapeprop import LayerGraph, LayerNode, MergeMode, SequentialNode
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Dropout, Flatten, MaxPool2D, Sequential

WIDTH = 16


def digits_network(seed: int | None = 0) -> LayerGraph:
    """(N, 1, 8, 8) -> logits (N, 10), about 22,000 weights; not built yet.

                   +--> refine --+            +--> narrow --+
        stem ------+             +--> shortcut              +--> pooled --> head
                   +-------------+    (SUM)   +--> wide ----+    (CHCAT)

    `shortcut` adds what `refine` has found to what `stem` has seen (He et al. 2016, https://arxiv.org/abs/1512.03385);
    `narrow` and `wide` look at it with windows of two sizes (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842).
    """
    stem = SequentialNode(*_convolution(1, WIDTH, 3), Activation.ReLU(), name="stem")
    refine = SequentialNode(
        *_convolution(WIDTH, WIDTH, 3), Activation.ReLU(), *_convolution(WIDTH, WIDTH, 3), name="refine"
    )
    shortcut = LayerNode(Activation.ReLU(), MergeMode.SUM, name="shortcut")
    narrow = SequentialNode(*_convolution(WIDTH, WIDTH, 1), Activation.ReLU(), name="narrow")
    wide = SequentialNode(*_convolution(WIDTH, WIDTH, 3), Activation.ReLU(), name="wide")
    pooled = LayerNode(MaxPool2D(2), MergeMode.CHCAT, name="pooled")
    head = LayerNode(
        Sequential(
            *_convolution(2 * WIDTH, 2 * WIDTH, 3),
            Activation.ReLU(),
            Flatten(),
            Dropout(0.25),
            Dense(2 * WIDTH * 4 * 4, 10),
        ),
        name="head",
    )
    edges = {
        stem: [refine, shortcut],
        refine: [shortcut],
        shortcut: [narrow, wide],
        narrow: [pooled],
        wide: [pooled],
        pooled: [head],
        head: [],
    }
    return LayerGraph(edges, root=stem, term=head, seed=seed)


def _convolution(in_channels: int, out_channels: int, size: int) -> list:
    """A convolution without bias and its batch norm, whose shift takes the bias's place."""
    return [Conv2D(in_channels, out_channels, size, bias=False), BatchNorm2D(out_channels)]
