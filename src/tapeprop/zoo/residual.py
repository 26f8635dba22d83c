"""Residual networks: ResNet for small and for large images, ResNeXt, SE-ResNet."""

from __future__ import annotations

from collections.abc import Sequence

from tapeprop.graph.merge import MergeMode
from tapeprop.graph.node import LayerNode
from tapeprop.ir import Tensor
from tapeprop.layers import (
    Activation,
    BatchNorm2D,
    Conv2D,
    Dense,
    Flatten,
    GlobalAvgPool2D,
    Identity,
    Layer,
    MaxPool2D,
)
from tapeprop.model import LayerGraph
from tapeprop.ops import pad
from tapeprop.zoo.draft import Draft, normed, scaled


def resnet20(classes: int = 10, channels: int = 3, *, seed: int | None = None) -> LayerGraph:
    """ResNet-20 for images (N, channels, H, W), made for 32 pixels -> logits (N, classes); 269,722 weights, "0.27M".

    He et al. 2016, "Deep residual learning for image recognition", section 4.2 and table 6: shortcuts are identities, with
    zeros for channels that are not there (option A).
    """
    draft = Draft()
    x, before = draft.add("stem", *normed(channels, 16, 3)), 16
    for stage, made in enumerate((16, 32, 64), start=1):
        for block in range(1, 4):
            name, stride = f"stage{stage}_{block}", 1 if made == before else 2
            inner = draft.add(f"{name}.first", *normed(before, made, 3, stride, padding=1), after=x)
            inner = draft.add(f"{name}.second", *normed(made, made, 3, activation=None), after=inner)
            short = x if stride == 1 else draft.add(f"{name}.short", ZeroPadded(made - before), after=x)
            x = draft.add(name, Activation.ReLU(), after=[inner, short])
            before = made
    return draft.graph(draft.add("head", GlobalAvgPool2D(), Flatten(), Dense(64, classes), after=x), seed)


class ZeroPadded(Layer):
    """Every second pixel, between `more` channels of zeros, half of them before: (N, C, H, W) -> (N, C + more, H/2, W/2)."""

    def __init__(self, more: int):
        self.more = more

    def trace(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). Gives (N, C + more, ceil(H / 2), ceil(W / 2))."""
        return pad(x[:, :, ::2, ::2], ((0, 0), (self.more // 2, self.more - self.more // 2), (0, 0), (0, 0)))


def resnet18(classes: int = 1000, channels: int = 3, *, width: float = 1.0, seed: int | None = None) -> LayerGraph:
    """ResNet-18 for images (N, channels, H, W), made for 224 pixels -> logits (N, classes); 11,689,512 weights.

    He et al. 2016, "Deep residual learning for image recognition", table 1; names and numbers as torchvision.models.resnet18.
    """
    return _resnet(_basic, (2, 2, 2, 2), classes, channels, width, seed)


def resnet34(classes: int = 1000, channels: int = 3, *, width: float = 1.0, seed: int | None = None) -> LayerGraph:
    """ResNet-34, else as `resnet18`; 21,797,672 weights."""
    return _resnet(_basic, (3, 4, 6, 3), classes, channels, width, seed)


def resnet50(classes: int = 1000, channels: int = 3, *, width: float = 1.0, seed: int | None = None) -> LayerGraph:
    """ResNet-50, else as `resnet18`; 25,557,032 weights.

    A block's stride stands in its 3x3 convolution, as in torchvision.models.resnet50, not in the first 1x1.
    """
    return _resnet(_Bottleneck(), (3, 4, 6, 3), classes, channels, width, seed)


def resnext50(classes: int = 1000, channels: int = 3, *, width: float = 1.0, seed: int | None = None) -> LayerGraph:
    """ResNeXt-50 with 32 groups of 4 channels, else as `resnet18`; 25,028,904 weights.

    Xie et al. 2017, "Aggregated residual transformations for deep neural networks", table 1; names and numbers as
    torchvision.models.resnext50_32x4d.
    """
    return _resnet(_Bottleneck(groups=32, inner=2), (3, 4, 6, 3), classes, channels, width, seed)


def se_resnet50(classes: int = 1000, channels: int = 3, *, width: float = 1.0, seed: int | None = None) -> LayerGraph:
    """SE-ResNet-50, else as `resnet18`; 28,088,024 weights.

    Hu et al. 2018, "Squeeze-and-excitation networks", section 3.3, with the reduction 16 and biases; names and numbers as timm's
    seresnet50 (Wightman 2019).
    """
    return _resnet(_Bottleneck(reduction=16), (3, 4, 6, 3), classes, channels, width, seed)


# ---- blocks: how many channels they make of `made`, and their nodes from x to what is added to the shortcut


class _Basic:
    """Two 3x3 convolutions (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __call__(self, draft: Draft, name: str, x: LayerNode, before: int, made: int, stride: int) -> LayerNode:
        return draft.line(
            (f"{name}.conv1", Conv2D(before, made, 3, stride, padding=1, bias=False)),
            (f"{name}.bn1", BatchNorm2D(made)),
            (f"{name}.relu1", Activation.ReLU()),
            (f"{name}.conv2", Conv2D(made, made, 3, bias=False)),
            (f"{name}.bn2", BatchNorm2D(made)),
            after=x,
        )


_basic = _Basic()


class _Bottleneck:
    """1x1, 3x3, 1x1 (He et al. 2016, figure 5 right).

    groups: of the 3x3 convolution; inner: its channels, as a multiple of `made`; reduction: of the gate behind the block, or None.
    """

    expansion = 4

    def __init__(self, groups: int = 1, inner: int = 1, reduction: int | None = None):
        self.groups, self.inner, self.reduction = groups, inner, reduction

    def __call__(self, draft: Draft, name: str, x: LayerNode, before: int, made: int, stride: int) -> LayerNode:
        inner, after = -(-made * self.inner // self.groups) * self.groups, made * self.expansion
        x = draft.line(
            (f"{name}.conv1", Conv2D(before, inner, 1, bias=False)),
            (f"{name}.bn1", BatchNorm2D(inner)),
            (f"{name}.relu1", Activation.ReLU()),
            (f"{name}.conv2", Conv2D(inner, inner, 3, stride, padding=1, groups=self.groups, bias=False)),
            (f"{name}.bn2", BatchNorm2D(inner)),
            (f"{name}.relu2", Activation.ReLU()),
            (f"{name}.conv3", Conv2D(inner, after, 1, bias=False)),
            (f"{name}.bn3", BatchNorm2D(after)),
            after=x,
        )
        return x if self.reduction is None else gated(draft, f"{name}.se", x, after, after // self.reduction)


def gated(
    draft: Draft,
    name: str,
    x: LayerNode,
    channels: int,
    squeezed: int,
    activation: type[Layer] = Activation.ReLU,
) -> LayerNode:
    """x times a gate for each channel, made of the channels' means (Hu et al. 2018, section 3)."""
    gate = draft.line(
        (f"{name}.pool", GlobalAvgPool2D()),
        (f"{name}.fc1", Conv2D(channels, squeezed, 1)),
        (f"{name}.act", activation()),
        (f"{name}.fc2", Conv2D(squeezed, channels, 1)),
        (f"{name}.gate", Activation.Sigmoid()),
        after=x,
    )
    return draft.add(name, Identity(), after=[x, gate], merge=MergeMode.HADAMARD)


def _resnet(
    block: _Basic | _Bottleneck,
    counts: Sequence[int],
    classes: int,
    channels: int,
    width: float,
    seed: int | None,
) -> LayerGraph:
    draft, before = Draft(), scaled(64, width)
    x = draft.line(
        ("conv1", Conv2D(channels, before, 7, 2, padding=3, bias=False)),
        ("bn1", BatchNorm2D(before)),
        ("relu", Activation.ReLU()),
        ("maxpool", MaxPool2D(3, 2, padding=1)),
    )
    for stage, count in enumerate(counts):
        made = scaled(64 << stage, width)
        after = made * block.expansion
        for i in range(count):
            name, stride = f"layer{stage + 1}.{i}", 2 if i == 0 and stage > 0 else 1
            inner = block(draft, name, x, before, made, stride)
            short = x
            if (stride, before) != (1, after):
                short = draft.add(f"{name}.downsample", *normed(before, after, 1, stride, activation=None), after=x)
            x = draft.add(f"{name}.relu", Activation.ReLU(), after=[inner, short])
            before = after
    x = draft.line(("avgpool", GlobalAvgPool2D()), ("flatten", Flatten()), ("fc", Dense(before, classes)), after=x)
    return draft.graph(x, seed)
