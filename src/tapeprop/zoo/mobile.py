"""Networks of depthwise convolutions: MobileNet v1 and v2, EfficientNet-B0, Xception."""

from __future__ import annotations

from tapeprop.graph.node import LayerNode
from tapeprop.layers import (
    Activation,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Identity,
    MaxPool2D,
    StochasticDepth,
)
from tapeprop.model import LayerGraph
from tapeprop.zoo.draft import Draft, Named, normed, scaled
from tapeprop.zoo.residual import gated

# ---- MobileNet


def mobilenet_v1(
    classes: int = 1000,
    channels: int = 3,
    *,
    width: float = 1.0,
    dropout_rate: float = 0.001,
    seed: int | None = None,
) -> LayerGraph:
    """MobileNet for images (N, channels, H, W), made for 224 pixels -> logits (N, classes); 4,231,976 weights, "4.2M".

    Howard et al. 2017, "MobileNets: efficient convolutional neural networks for mobile vision applications", table 1.
    """
    draft, before = Draft(), scaled(32, width)
    x = draft.add("conv", *normed(channels, before, 3, 2, padding=1))
    strided = {2, 4, 6, 12}
    for i, made in enumerate((64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024), start=1):
        made, stride = scaled(made, width), 2 if i in strided else 1
        x = draft.add(f"block{i}.depthwise", *normed(before, before, 3, stride, padding=1, groups=before), after=x)
        x = draft.add(f"block{i}.pointwise", *normed(before, made, 1), after=x)
        before = made
    return draft.graph(_classifier(draft, x, "classifier", before, classes, dropout_rate), seed)


def mobilenet_v2(
    classes: int = 1000,
    channels: int = 3,
    *,
    width: float = 1.0,
    dropout_rate: float = 0.2,
    seed: int | None = None,
) -> LayerGraph:
    """MobileNet v2 for images (N, channels, H, W), made for 224 pixels -> logits (N, classes); 3,504,872 weights.

    Sandler et al. 2018, "MobileNetV2: inverted residuals and linear bottlenecks", table 2; names and numbers as
    torchvision.models.mobilenet_v2.
    """
    draft, before, number = Draft(), scaled(32, width), 1
    x = draft.add("features.0", *normed(channels, before, 3, 2, padding=1, activation=Activation.ReLU6))
    for expansion, made, count, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        made = scaled(made, width)
        for i in range(count):
            stride, name = first if i == 0 else 1, f"features.{number}"
            y, wide, part = x, before * expansion, 0
            if expansion > 1:
                y = draft.add(f"{name}.conv.0", *normed(before, wide, 1, activation=Activation.ReLU6), after=y)
                part = 1
            depthwise = normed(wide, wide, 3, stride, padding=1, groups=wide, activation=Activation.ReLU6)
            y = draft.add(f"{name}.conv.{part}", *depthwise, after=y)
            y = draft.line(
                (f"{name}.conv.{part + 1}", Conv2D(wide, made, 1, bias=False)),
                (f"{name}.conv.{part + 2}", BatchNorm2D(made)),
                after=y,
            )
            x = draft.add(name, Identity(), after=[x, y]) if (stride, before) == (1, made) else y
            before, number = made, number + 1
    last = scaled(1280, max(width, 1.0))  # (Sandler et al. 2018, section 5): thin networks keep the last layer
    x = draft.add(f"features.{number}", *normed(before, last, 1, activation=Activation.ReLU6), after=x)
    return draft.graph(_classifier(draft, x, "classifier.1", last, classes, dropout_rate), seed)


def efficientnet_b0(
    classes: int = 1000,
    channels: int = 3,
    *,
    width: float = 1.0,
    dropout_rate: float = 0.2,
    depth_rate: float = 0.2,
    seed: int | None = None,
) -> LayerGraph:
    """EfficientNet-B0 for images (N, channels, H, W), made for 224 pixels -> logits (N, classes); 5,288,548 weights.

    depth_rate: how often the last block is left out for a sample in training; the others in proportion to their place.

    Tan and Le 2019, "EfficientNet: rethinking model scaling for convolutional neural networks", table 1; names and numbers as
    torchvision.models.efficientnet_b0.
    """
    swish = Activation.Swish
    draft, before = Draft(), scaled(32, width)
    x = draft.add("features.0", *normed(channels, before, 3, 2, padding=1, activation=swish))
    stages = (
        (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
    )  # fmt: skip
    blocks, done = sum(stage[-1] for stage in stages), 0
    for number, (expansion, taps, first, made, count) in enumerate(stages, start=1):
        made = scaled(made, width)
        for i in range(count):
            stride, name = first if i == 0 else 1, f"features.{number}.{i}"
            y, wide, part = x, before * expansion, 0
            if expansion > 1:
                y = draft.add(f"{name}.block.0", *normed(before, wide, 1, activation=swish), after=y)
                part = 1
            depthwise = normed(wide, wide, taps, stride, padding=taps // 2, groups=wide, activation=swish)
            y = draft.add(f"{name}.block.{part}", *depthwise, after=y)
            y = gated(draft, f"{name}.block.{part + 1}", y, wide, max(1, before // 4), swish)
            y = draft.add(f"{name}.block.{part + 2}", *normed(wide, made, 1, activation=None), after=y)
            if (stride, before) == (1, made):
                y = draft.add(f"{name}.stochastic_depth", StochasticDepth(depth_rate * done / blocks), after=y)
                y = draft.add(name, Identity(), after=[y, x])
            x, before, done = y, made, done + 1
    last = 4 * before
    x = draft.add("features.8", *normed(before, last, 1, activation=swish), after=x)
    return draft.graph(_classifier(draft, x, "classifier.1", last, classes, dropout_rate), seed)


def _classifier(draft: Draft, x: LayerNode, name: str, before: int, classes: int, dropout_rate: float) -> LayerNode:
    return draft.line(
        ("avgpool", GlobalAvgPool2D()),
        ("flatten", Flatten()),
        ("dropout", Dropout(dropout_rate)),
        (name, Dense(before, classes)),
        after=x,
    )


# ---- Xception


def xception(
    classes: int = 1000,
    channels: int = 3,
    *,
    width: float = 1.0,
    dropout_rate: float = 0.0,
    seed: int | None = None,
) -> LayerGraph:
    """Xception for images (N, channels, H, W) from 71 pixels on, made for 299 -> logits (N, classes); 22,855,952 weights.

    Chollet 2017, "Xception: deep learning with depthwise separable convolutions", figure 5: the trainable weights of
    keras.applications.Xception. Its pools pad both sides by 1, where those of Keras pad behind alone for some sizes.
    """
    draft, before = Draft(), scaled(64, width)
    inner = scaled(32, width)
    x = draft.add("stem1", *normed(channels, inner, 3, 2, padding="valid"))
    x = draft.add("stem2", *normed(inner, before, 3, padding="valid"), after=x)
    for number, made in enumerate((128, 256, 728), start=1):
        made = scaled(made, width)
        x = _shrinking(draft, f"entry{number}", x, before, made, made, rectified=number > 1)
        before = made
    for number in range(1, 9):
        name, y = f"middle{number}", x
        for i in range(1, 4):
            y = draft.line(
                (f"{name}.relu{i}", Activation.ReLU()), *_separable(f"{name}.sep{i}", before, before), after=y
            )
        x = draft.add(name, Identity(), after=[x, y])
    made = scaled(1024, width)
    x = _shrinking(draft, "exit1", x, before, before, made, rectified=True)
    before = made
    for number, made in enumerate((1536, 2048), start=1):
        made = scaled(made, width)
        name = f"exit2.sep{number}"
        x = draft.line(*_separable(name, before, made), (f"{name}.relu", Activation.ReLU()), after=x)
        before = made
    return draft.graph(_classifier(draft, x, "classifier", before, classes, dropout_rate), seed)


def _shrinking(
    draft: Draft, name: str, x: LayerNode, before: int, inner: int, made: int, *, rectified: bool
) -> LayerNode:
    """Two separable convolutions and a pool of stride 2 beside a 1x1 convolution. rectified: a ReLU before the first."""
    first: list[Named] = [(f"{name}.relu1", Activation.ReLU())] if rectified else []
    y = draft.line(
        *first,
        *_separable(f"{name}.sep1", before, inner),
        (f"{name}.relu2", Activation.ReLU()),
        *_separable(f"{name}.sep2", inner, made),
        (f"{name}.pool", MaxPool2D(3, 2, padding=1)),
        after=x,
    )
    short = draft.add(f"{name}.short", *normed(before, made, 1, 2, activation=None), after=x)
    return draft.add(name, Identity(), after=[y, short])


def _separable(name: str, before: int, made: int) -> list[Named]:
    """A 3x3 filter for each channel, a 1x1 convolution, a batch norm."""
    return [
        (f"{name}.depthwise", Conv2D(before, before, 3, groups=before, bias=False)),
        (f"{name}.pointwise", Conv2D(before, made, 1, bias=False)),
        (f"{name}.norm", BatchNorm2D(made)),
    ]
