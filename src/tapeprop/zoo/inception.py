"""Inception: branches of several filter sizes side by side, joined along the channels."""

from __future__ import annotations

from functools import partial
from typing import Any

from tapeprop.graph.merge import MergeMode
from tapeprop.graph.node import LayerNode
from tapeprop.layers import (
    Activation,
    AdaptiveAvgPool2D,
    AvgPool2D,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Identity,
    MaxPool2D,
)
from tapeprop.model import LayerGraph
from tapeprop.zoo.draft import Draft, scaled

EPSILON = 1e-3  # of the batch norms


class _Inception(Draft):
    """Adds convolutions and joins, of channels that are scaled by `width`."""

    def __init__(self, width: float):
        super().__init__()
        self.scaled = partial(scaled, width=width)

    def conv(
        self, name: str, before: int, made: int, size: Any, stride: int = 1, padding: Any = "valid", *, after: Any = ()
    ) -> LayerNode:
        """Convolution, batch norm, ReLU. before: as it is, made: to be scaled."""
        made = self.scaled(made)
        return self.add(
            name,
            ("conv", Conv2D(before, made, size, stride, padding, bias=False)),
            ("bn", BatchNorm2D(made, epsilon=EPSILON)),
            ("relu", Activation.ReLU()),
            after=after,
        )

    def join(self, name: str, *branches: LayerNode) -> LayerNode:
        return self.add(name, Identity(), after=branches, merge=MergeMode.CHCAT)

    def classifier(self, x: LayerNode, before: int, classes: int, dropout_rate: float) -> LayerNode:
        return self.line(
            ("avgpool", GlobalAvgPool2D()),
            ("flatten", Flatten()),
            ("dropout", Dropout(dropout_rate)),
            ("fc", Dense(before, classes)),
            after=x,
        )


# ---- Inception v1

#: 1x1; 1x1 and 3x3; 1x1 and 5x5; 1x1 behind the pool (Szegedy et al. 2015, table 1). None: a pool between stages.
_GOOGLENET: dict[str, tuple[int, ...] | None] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "maxpool3": None,
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "maxpool4": None,
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def inception_v1(
    classes: int = 1000,
    channels: int = 3,
    *,
    auxiliary: bool = False,
    width: float = 1.0,
    dropout_rate: float = 0.2,
    seed: int | None = None,
) -> LayerGraph:
    """Inception v1 (GoogLeNet) for images (N, channels, H, W), made for 224 pixels -> logits (N, classes); 6,624,904 weights.

    auxiliary: two more classifiers, behind 4a and 4d, as further results (logits, first, second): 13,004,888 weights in all.

    Szegedy et al. 2015, "Going deeper with convolutions", with batch norms and 3x3 in place of the 5x5 filters; names and numbers as
    torchvision.models.googlenet.
    """
    draft = _Inception(width)
    size = draft.scaled
    x = draft.conv("conv1", channels, 64, 7, 2, 3)
    x = draft.add("maxpool1", MaxPool2D(3, 2, ceil_mode=True), after=x)
    x = draft.conv("conv2", size(64), 64, 1, after=x)
    x = draft.conv("conv3", size(64), 192, 3, padding=1, after=x)
    x = draft.add("maxpool2", MaxPool2D(3, 2, ceil_mode=True), after=x)
    before = size(192)
    heads: list[LayerNode] = []
    for part, made in _GOOGLENET.items():
        if made is None:
            x = draft.add(part, MaxPool2D(3 if part == "maxpool3" else 2, 2, ceil_mode=True), after=x)
            continue
        one, reduce3, three, reduce5, five, behind = made
        name = f"inception{part}"
        first = draft.conv(f"{name}.branch1", before, one, 1, after=x)
        second = draft.conv(f"{name}.branch2.0", before, reduce3, 1, after=x)
        second = draft.conv(f"{name}.branch2.1", size(reduce3), three, 3, padding=1, after=second)
        third = draft.conv(f"{name}.branch3.0", before, reduce5, 1, after=x)
        third = draft.conv(f"{name}.branch3.1", size(reduce5), five, 3, padding=1, after=third)
        fourth = draft.add(f"{name}.branch4.0", MaxPool2D(3, 1, padding=1, ceil_mode=True), after=x)
        fourth = draft.conv(f"{name}.branch4.1", before, behind, 1, after=fourth)
        x = draft.join(name, first, second, third, fourth)
        before = sum(map(size, (one, three, five, behind)))
        if auxiliary and part in ("4a", "4d"):
            heads.append(_auxiliary_v1(draft, f"aux{len(heads) + 1}", x, before, classes))
    logits = draft.classifier(x, before, classes, dropout_rate)
    return draft.graph([logits, *heads] if heads else logits, seed)


def _auxiliary_v1(draft: _Inception, name: str, x: LayerNode, before: int, classes: int) -> LayerNode:
    wide = draft.scaled(1024)
    x = draft.add(f"{name}.pool", AdaptiveAvgPool2D(4), after=x)
    x = draft.conv(f"{name}.conv", before, 128, 1, after=x)
    return draft.line(
        (f"{name}.flatten", Flatten()),
        (f"{name}.fc1", Dense(draft.scaled(128) * 16, wide)),
        (f"{name}.relu", Activation.ReLU()),
        (f"{name}.dropout", Dropout(0.7)),
        (f"{name}.fc2", Dense(wide, classes)),
        after=x,
    )


# ---- Inception v3


def inception_v3(
    classes: int = 1000,
    channels: int = 3,
    *,
    auxiliary: bool = False,
    width: float = 1.0,
    dropout_rate: float = 0.5,
    seed: int | None = None,
) -> LayerGraph:
    """Inception v3 for images (N, channels, H, W) from 75 pixels on, made for 299 -> logits (N, classes); 23,834,568 weights.

    auxiliary: a classifier behind Mixed_6e as a second result, (logits, auxiliary): 27,161,264 weights in all.

    Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision"; names and numbers as
    torchvision.models.inception_v3.
    """
    draft = _Inception(width)
    size = draft.scaled
    x = draft.conv("Conv2d_1a_3x3", channels, 32, 3, 2)
    x = draft.conv("Conv2d_2a_3x3", size(32), 32, 3, after=x)
    x = draft.conv("Conv2d_2b_3x3", size(32), 64, 3, padding=1, after=x)
    x = draft.add("maxpool1", MaxPool2D(3, 2), after=x)
    x = draft.conv("Conv2d_3b_1x1", size(64), 80, 1, after=x)
    x = draft.conv("Conv2d_4a_3x3", size(80), 192, 3, after=x)
    x = draft.add("maxpool2", MaxPool2D(3, 2), after=x)
    before = size(192)
    for name, behind in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x, before = _mixed_35(draft, name, x, before, behind)
    x, before = _to_17(draft, "Mixed_6a", x, before)
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x, before = _mixed_17(draft, name, x, before, inner)
    heads = [_auxiliary_v3(draft, x, before, classes)] if auxiliary else []
    x, before = _to_8(draft, "Mixed_7a", x, before)
    for name in ("Mixed_7b", "Mixed_7c"):
        x, before = _mixed_8(draft, name, x, before)
    logits = draft.classifier(x, before, classes, dropout_rate)
    return draft.graph([logits, *heads] if heads else logits, seed)


# Blocks give (node, its channels). Numbers in names: the pixels of their images when the network's have 299.


def _mixed_35(draft: _Inception, name: str, x: LayerNode, before: int, behind: int) -> tuple[LayerNode, int]:
    size = draft.scaled
    one = draft.conv(f"{name}.branch1x1", before, 64, 1, after=x)
    five = draft.conv(f"{name}.branch5x5_1", before, 48, 1, after=x)
    five = draft.conv(f"{name}.branch5x5_2", size(48), 64, 5, padding=2, after=five)
    three = draft.conv(f"{name}.branch3x3dbl_1", before, 64, 1, after=x)
    three = draft.conv(f"{name}.branch3x3dbl_2", size(64), 96, 3, padding=1, after=three)
    three = draft.conv(f"{name}.branch3x3dbl_3", size(96), 96, 3, padding=1, after=three)
    pool = _behind_pool(draft, name, x, before, behind)
    return draft.join(name, one, five, three, pool), sum(map(size, (64, 64, 96, behind)))


def _to_17(draft: _Inception, name: str, x: LayerNode, before: int) -> tuple[LayerNode, int]:
    size = draft.scaled
    three = draft.conv(f"{name}.branch3x3", before, 384, 3, 2, after=x)
    double = draft.conv(f"{name}.branch3x3dbl_1", before, 64, 1, after=x)
    double = draft.conv(f"{name}.branch3x3dbl_2", size(64), 96, 3, padding=1, after=double)
    double = draft.conv(f"{name}.branch3x3dbl_3", size(96), 96, 3, 2, after=double)
    pool = draft.add(f"{name}.pool", MaxPool2D(3, 2), after=x)
    return draft.join(name, three, double, pool), size(384) + size(96) + before


def _mixed_17(draft: _Inception, name: str, x: LayerNode, before: int, inner: int) -> tuple[LayerNode, int]:
    size = draft.scaled
    across: dict[str, Any] = {"size": (1, 7), "padding": (0, 3)}
    down: dict[str, Any] = {"size": (7, 1), "padding": (3, 0)}
    one = draft.conv(f"{name}.branch1x1", before, 192, 1, after=x)
    seven = draft.conv(f"{name}.branch7x7_1", before, inner, 1, after=x)
    seven = draft.conv(f"{name}.branch7x7_2", size(inner), inner, **across, after=seven)
    seven = draft.conv(f"{name}.branch7x7_3", size(inner), 192, **down, after=seven)
    double = draft.conv(f"{name}.branch7x7dbl_1", before, inner, 1, after=x)
    for i, made, way in ((2, inner, down), (3, inner, across), (4, inner, down), (5, 192, across)):
        double = draft.conv(f"{name}.branch7x7dbl_{i}", size(inner), made, **way, after=double)
    pool = _behind_pool(draft, name, x, before, 192)
    return draft.join(name, one, seven, double, pool), 4 * size(192)


def _to_8(draft: _Inception, name: str, x: LayerNode, before: int) -> tuple[LayerNode, int]:
    size = draft.scaled
    three = draft.conv(f"{name}.branch3x3_1", before, 192, 1, after=x)
    three = draft.conv(f"{name}.branch3x3_2", size(192), 320, 3, 2, after=three)
    seven = draft.conv(f"{name}.branch7x7x3_1", before, 192, 1, after=x)
    seven = draft.conv(f"{name}.branch7x7x3_2", size(192), 192, (1, 7), padding=(0, 3), after=seven)
    seven = draft.conv(f"{name}.branch7x7x3_3", size(192), 192, (7, 1), padding=(3, 0), after=seven)
    seven = draft.conv(f"{name}.branch7x7x3_4", size(192), 192, 3, 2, after=seven)
    pool = draft.add(f"{name}.pool", MaxPool2D(3, 2), after=x)
    return draft.join(name, three, seven, pool), size(320) + size(192) + before


def _mixed_8(draft: _Inception, name: str, x: LayerNode, before: int) -> tuple[LayerNode, int]:
    size = draft.scaled

    def fork(branch: str, number: str, x: LayerNode) -> list[LayerNode]:
        return [
            draft.conv(f"{branch}_{number}a", size(384), 384, (1, 3), padding=(0, 1), after=x),
            draft.conv(f"{branch}_{number}b", size(384), 384, (3, 1), padding=(1, 0), after=x),
        ]

    one = draft.conv(f"{name}.branch1x1", before, 320, 1, after=x)
    three = draft.conv(f"{name}.branch3x3_1", before, 384, 1, after=x)
    threes = fork(f"{name}.branch3x3", "2", three)
    double = draft.conv(f"{name}.branch3x3dbl_1", before, 448, 1, after=x)
    double = draft.conv(f"{name}.branch3x3dbl_2", size(448), 384, 3, padding=1, after=double)
    doubles = fork(f"{name}.branch3x3dbl", "3", double)
    pool = _behind_pool(draft, name, x, before, 192)
    branches = [one, *threes, *doubles, pool]
    return draft.join(name, *branches), size(320) + 4 * size(384) + size(192)


def _behind_pool(draft: _Inception, name: str, x: LayerNode, before: int, made: int) -> LayerNode:
    x = draft.add(f"{name}.pool", AvgPool2D(3, 1, padding=1), after=x)
    return draft.conv(f"{name}.branch_pool", before, made, 1, after=x)


def _auxiliary_v3(draft: _Inception, x: LayerNode, before: int, classes: int) -> LayerNode:
    name = "AuxLogits"
    x = draft.add(f"{name}.pool", AvgPool2D(5, 3), after=x)
    x = draft.conv(f"{name}.conv0", before, 128, 1, after=x)
    x = draft.conv(f"{name}.conv1", draft.scaled(128), 768, 5, after=x)
    return draft.line(
        (f"{name}.avgpool", GlobalAvgPool2D()),
        (f"{name}.flatten", Flatten()),
        (f"{name}.fc", Dense(draft.scaled(768), classes)),
        after=x,
    )
