"""ConvNeXt: residual blocks of a 7x7 depthwise convolution and two dense layers at each pixel."""

from __future__ import annotations

import numpy as np

from tapeprop.ir import Tensor
from tapeprop.layers import (
    Activation,
    Conv2D,
    Dense,
    DenseND,
    Flatten,
    GlobalAvgPool2D,
    Identity,
    Layer,
    LayerNorm,
    Sequential,
    StochasticDepth,
    Transpose,
)
from tapeprop.model import LayerGraph
from tapeprop.zoo.draft import Draft, scaled

EPSILON = 1e-6  # of the layer norms
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # channels behind the pixels, and back


def convnext_tiny(
    classes: int = 1000,
    channels: int = 3,
    *,
    width: float = 1.0,
    depth_rate: float = 0.1,
    seed: int | None = None,
) -> LayerGraph:
    """ConvNeXt-T for images (N, channels, H, W) from 32 pixels on, made for 224 -> logits (N, classes); 28,589,128 weights.

    depth_rate: how often the last block is left out for a sample in training; the others in proportion to their place.

    Liu et al. 2022, "A ConvNet for the 2020s", figure 4 and table 9; names and numbers as torchvision.models.convnext_tiny.
    """
    draft, before = Draft(), scaled(96, width)
    counts, done = (3, 3, 9, 3), 0
    x = draft.add("features.0", Conv2D(channels, before, 4, 4, "valid"), PixelNorm(before))
    for stage, count in enumerate(counts):
        if stage > 0:
            made = scaled(96 << stage, width)
            x = draft.add(f"features.{2 * stage}", PixelNorm(before), Conv2D(before, made, 2, 2, "valid"), after=x)
            before = made
        for i in range(count):
            name = f"features.{2 * stage + 1}.{i}"
            y = draft.line(
                (f"{name}.block", Sequential(*_block(before))),
                (name, LayerScale(before)),
                (f"{name}.stochastic_depth", StochasticDepth(depth_rate * done / (sum(counts) - 1))),
                after=x,
            )
            x = draft.add(f"{name}.sum", Identity(), after=[y, x])
            done += 1
    x = draft.add("avgpool", GlobalAvgPool2D(), after=x)
    x = draft.add("classifier", PixelNorm(before), Flatten(), Dense(before, classes), after=x)
    return draft.graph(x, seed)


def _block(channels: int) -> list[Layer]:
    return [
        Conv2D(channels, channels, 7, groups=channels),
        Transpose(LAST),
        LayerNorm(channels, epsilon=EPSILON),
        DenseND(channels, 4 * channels),
        Activation.GELU(),
        DenseND(4 * channels, channels),
        Transpose(FIRST),
    ]


class PixelNorm(LayerNorm):
    """Layer norm over the channels of each pixel of (N, channels, H, W)."""

    def __init__(self, normalized_shape: int):
        super().__init__(normalized_shape, epsilon=EPSILON)

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, channels, H, W). Gives the same shape."""
        return Transpose(FIRST).trace(super().trace(Transpose(LAST).trace(x)))


def _small(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    return np.full(shape, 1e-6)


class LayerScale(Layer):
    """Each channel of (N, channels, H, W) times a weight of its own, 1e-6 at first (Touvron et al. 2021, CaiT, section 2)."""

    def __init__(self, channels: int):
        self.channels = channels
        self.layer_scale = self.parameter((channels, 1, 1), _small, name="layer_scale")

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, channels, H, W). Gives the same shape."""
        return x * self.layer_scale
