"""Networks in one line: LeNet-5, AlexNet, VGG."""

from __future__ import annotations

from collections.abc import Sequence

from tapeprop.layers import Activation, AdaptiveAvgPool2D, Conv2D, Dense, Dropout, Flatten, Layer, MaxPool2D
from tapeprop.model import LayerGraph
from tapeprop.zoo.draft import Draft, scaled


def lenet5(classes: int = 10, channels: int = 1, *, seed: int | None = None) -> LayerGraph:
    """LeNet-5 for images (N, channels, 28, 28) -> logits (N, classes); 61,706 weights.

    LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B, with ReLU, maxima, and all maps of
    S2 connected to C3, as it is written today.
    """
    draft = Draft()
    x = draft.line(
        ("conv1", Conv2D(channels, 6, 5, padding=2)), ("relu1", Activation.ReLU()), ("pool1", MaxPool2D(2)),
        ("conv2", Conv2D(6, 16, 5, padding=0)), ("relu2", Activation.ReLU()), ("pool2", MaxPool2D(2)),
        ("flatten", Flatten()), ("fc1", Dense(400, 120)), ("relu3", Activation.ReLU()),
        ("fc2", Dense(120, 84)), ("relu4", Activation.ReLU()), ("fc3", Dense(84, classes)),
    )  # fmt: skip
    return draft.graph(x, seed)


def alexnet(
    classes: int = 1000,
    channels: int = 3,
    *,
    width: float = 1.0,
    dropout_rate: float = 0.5,
    seed: int | None = None,
) -> LayerGraph:
    """AlexNet for images (N, channels, H, W) from 63 pixels on, made for 224 -> logits (N, classes); 61,100,840 weights.

    Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks"; weights, names and numbers as
    torchvision.models.alexnet.
    """
    c = [scaled(n, width) for n in (64, 192, 384, 256, 256)]
    wide = scaled(4096, width)
    features: list[Layer] = [
        Conv2D(channels, c[0], 11, 4, padding=2), Activation.ReLU(), MaxPool2D(3, 2),
        Conv2D(c[0], c[1], 5, padding=2), Activation.ReLU(), MaxPool2D(3, 2),
        Conv2D(c[1], c[2], 3), Activation.ReLU(), Conv2D(c[2], c[3], 3), Activation.ReLU(),
        Conv2D(c[3], c[4], 3), Activation.ReLU(), MaxPool2D(3, 2),
    ]  # fmt: skip
    classifier: list[Layer] = [
        Dropout(dropout_rate), Dense(c[4] * 36, wide), Activation.ReLU(),
        Dropout(dropout_rate), Dense(wide, wide), Activation.ReLU(), Dense(wide, classes),
    ]  # fmt: skip
    return _convolutions_and_classifier(features, 6, classifier, seed)


#: Channels of the convolutions between the pools (Simonyan and Zisserman 2015, table 1, columns A and D).
_VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg11(
    classes: int = 1000,
    channels: int = 3,
    *,
    width: float = 1.0,
    dropout_rate: float = 0.5,
    seed: int | None = None,
) -> LayerGraph:
    """VGG-11 for images (N, channels, H, W) from 32 pixels on, made for 224 -> logits (N, classes); 132,863,336 weights.

    Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition", configuration A; names and
    numbers as torchvision.models.vgg11.
    """
    return _vgg(_VGG11, classes, channels, width, dropout_rate, seed)


def vgg16(
    classes: int = 1000,
    channels: int = 3,
    *,
    width: float = 1.0,
    dropout_rate: float = 0.5,
    seed: int | None = None,
) -> LayerGraph:
    """VGG-16 (configuration D), else as `vgg11`; 138,357,544 weights."""
    return _vgg(_VGG16, classes, channels, width, dropout_rate, seed)


def _vgg(
    stages: Sequence[Sequence[int]], classes: int, channels: int, width: float, dropout_rate: float, seed: int | None
) -> LayerGraph:
    features: list[Layer] = []
    for stage in stages:
        for made in stage:
            features += [Conv2D(channels, channels := scaled(made, width), 3), Activation.ReLU()]
        features.append(MaxPool2D(2))
    wide = scaled(4096, width)
    classifier: list[Layer] = [
        Dense(channels * 49, wide), Activation.ReLU(), Dropout(dropout_rate),
        Dense(wide, wide), Activation.ReLU(), Dropout(dropout_rate), Dense(wide, classes),
    ]  # fmt: skip
    return _convolutions_and_classifier(features, 7, classifier, seed)


def _convolutions_and_classifier(
    features: Sequence[Layer], pixels: int, classifier: Sequence[Layer], seed: int | None
) -> LayerGraph:
    """features, (pixels, pixels) means, classifier; a node for each layer."""
    draft = Draft()
    x = draft.line(
        *((f"features.{i}", layer) for i, layer in enumerate(features)),
        ("avgpool", AdaptiveAvgPool2D(pixels)),
        ("flatten", Flatten()),
        *((f"classifier.{i}", layer) for i, layer in enumerate(classifier)),
    )
    return draft.graph(x, seed)
