"""DenseNet: every layer reads all layers before it."""

from __future__ import annotations

from tapeprop.graph.merge import MergeMode
from tapeprop.layers import (
    Activation,
    AvgPool2D,
    BatchNorm2D,
    Conv2D,
    Dense,
    Flatten,
    GlobalAvgPool2D,
    Identity,
    MaxPool2D,
)
from tapeprop.model import LayerGraph
from tapeprop.zoo.draft import Draft, scaled


def densenet121(classes: int = 1000, channels: int = 3, *, width: float = 1.0, seed: int | None = None) -> LayerGraph:
    """DenseNet-121 for images (N, channels, H, W) from 32 pixels on, made for 224 -> logits (N, classes); 7,978,856 weights.

    Huang et al. 2017, "Densely connected convolutional networks", table 1, with growth 32; names and numbers as
    torchvision.models.densenet121.
    """
    draft, growth, before = Draft(), scaled(32, width), scaled(64, width)
    x = draft.line(
        ("features.conv0", Conv2D(channels, before, 7, 2, padding=3, bias=False)),
        ("features.norm0", BatchNorm2D(before)),
        ("features.relu0", Activation.ReLU()),
        ("features.pool0", MaxPool2D(3, 2, padding=1)),
    )
    for block, count in enumerate((6, 12, 24, 16), start=1):
        found = [x]
        for i in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{i}"
            joined = draft.add(f"{name}.norm1", BatchNorm2D(before), after=found, merge=MergeMode.CHCAT)
            found.append(
                draft.line(
                    (f"{name}.relu1", Activation.ReLU()),
                    (f"{name}.conv1", Conv2D(before, 4 * growth, 1, bias=False)),
                    (f"{name}.norm2", BatchNorm2D(4 * growth)),
                    (f"{name}.relu2", Activation.ReLU()),
                    (f"{name}.conv2", Conv2D(4 * growth, growth, 3, bias=False)),
                    after=joined,
                )
            )
            before += growth
        x = draft.add(f"features.denseblock{block}", Identity(), after=found, merge=MergeMode.CHCAT)
        if block < 4:
            name, before = f"features.transition{block}", before // 2
            x = draft.line(
                (f"{name}.norm", BatchNorm2D(2 * before)),
                (f"{name}.relu", Activation.ReLU()),
                (f"{name}.conv", Conv2D(2 * before, before, 1, bias=False)),
                (f"{name}.pool", AvgPool2D(2, 2)),
                after=x,
            )
    x = draft.line(
        ("features.norm5", BatchNorm2D(before)),
        ("relu", Activation.ReLU()),
        ("avgpool", GlobalAvgPool2D()),
        ("flatten", Flatten()),
        ("classifier", Dense(before, classes)),
        after=x,
    )
    return draft.graph(x, seed)
