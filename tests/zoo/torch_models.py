"""The networks of tapeprop.zoo in torch, written anew: torchvision's own where it has them. Keys of weights agree with ours."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
# What registers the compiled ops for detection, which no network here uses; it fails beside another build of torch.
sys.modules.setdefault("torchvision._meta_registrations", ModuleType("torchvision._meta_registrations"))
models = pytest.importorskip("torchvision.models")
nn = torch.nn


def torch_model(name: str, classes: int) -> Any:
    """The network, without dropout and stochastic depth."""
    if name in _OWN:
        return _OWN[name](classes)
    theirs = {"inception_v1": "googlenet", "resnext50": "resnext50_32x4d"}.get(name, name)
    options: dict[str, Any] = {"num_classes": classes}
    if name.startswith("inception"):
        options |= {"aux_logits": False, "init_weights": False}
    if name in ("inception_v1", "alexnet", "vgg11", "vgg16", "efficientnet_b0", "mobilenet_v2"):
        options |= {"dropout": 0.0}
    if name in ("efficientnet_b0", "convnext_tiny"):
        options |= {"stochastic_depth_prob": 0.0}
    model = getattr(models, theirs)(weights=None, **options)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


class _Add(nn.Module):
    """relu(inner(x) + short(x)), or without the ReLU; inner and short by name."""

    def __init__(self, inner: dict[str, Any], short: dict[str, Any], rectified: bool):
        super().__init__()
        self.inner_keys, self.short_keys, self.rectified = list(inner), list(short), rectified
        for key, module in {**inner, **short}.items():
            self.add_module(key, module)

    def forward(self, x):
        y, short = x, x
        for key in self.inner_keys:
            y = getattr(self, key)(y)
        for key in self.short_keys:
            short = getattr(self, key)(short)
        return (y + short).relu() if self.rectified else y + short


def _conv_norm(before: int, made: int, size: int, stride: int, padding: int, groups: int = 1, relu: bool = True) -> Any:
    layers = [nn.Conv2d(before, made, size, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(made)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


def _named(**modules: Any) -> Any:
    made = nn.Sequential()
    for name, module in modules.items():
        made.add_module(name, module)
    return made


def _lenet5(classes: int) -> Any:
    return _named(
        conv1=nn.Conv2d(1, 6, 5, padding=2), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(6, 16, 5), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2), flatten=nn.Flatten(),
        fc1=nn.Linear(400, 120), relu3=nn.ReLU(), fc2=nn.Linear(120, 84), relu4=nn.ReLU(), fc3=nn.Linear(84, classes),
    )  # fmt: skip


class _Shortcut(nn.Module):
    def forward(self, x):
        more = x.shape[1] // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))


def _resnet20(classes: int) -> Any:
    parts, before = {"stem": _conv_norm(3, 16, 3, 1, 1)}, 16
    for stage, made in enumerate((16, 32, 64), 1):
        for block in range(1, 4):
            stride = 1 if before == made else 2
            inner = {
                "first": _conv_norm(before, made, 3, stride, 1),
                "second": _conv_norm(made, made, 3, 1, 1, relu=False),
            }
            parts[f"stage{stage}_{block}"] = _Add(inner, {"short": _Shortcut()} if stride == 2 else {}, True)
            before = made
    parts["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    return _named(**parts)


class _Gate(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, channels // 16, 1), nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x):
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def _se_resnet50(classes: int) -> Any:
    model = models.resnet50(weights=None, num_classes=classes)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for i, block in enumerate(stage):
            inner = {key: getattr(block, key) for key in ("conv1", "bn1", "relu", "conv2", "bn2")}
            inner |= {"relu2": nn.ReLU(), "conv3": block.conv3, "bn3": block.bn3, "se": _Gate(block.bn3.num_features)}
            stage[i] = _Add(inner, {} if block.downsample is None else {"downsample": block.downsample}, True)
    return model


def _mobilenet_v1(classes: int) -> Any:
    parts, before = {"conv": _conv_norm(3, 32, 3, 2, 1)}, 32
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for i, (made, stride) in enumerate(plan, 1):
        parts[f"block{i}"] = _named(
            depthwise=_conv_norm(before, before, 3, stride, 1, before), pointwise=_conv_norm(before, made, 1, 1, 0)
        )
        before = made
    return _named(**parts, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=nn.Linear(before, classes))


def _separable(before: int, made: int) -> Any:
    return _named(
        depthwise=nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False),
        pointwise=nn.Conv2d(before, made, 1, bias=False),
        norm=nn.BatchNorm2d(made),
    )


def _xception(classes: int) -> Any:
    parts, before = {"stem1": _conv_norm(3, 32, 3, 2, 0), "stem2": _conv_norm(32, 64, 3, 1, 0)}, 64

    def shrinking(before: int, inner: int, made: int, rectified: bool) -> Any:
        branch = {"relu1": nn.ReLU()} if rectified else {}
        branch |= {"sep1": _separable(before, inner), "relu2": nn.ReLU(), "sep2": _separable(inner, made)}
        branch["pool"] = nn.MaxPool2d(3, 2, 1)
        return _Add(branch, {"short": _conv_norm(before, made, 1, 2, 0, relu=False)}, False)

    for number, made in enumerate((128, 256, 728), 1):
        parts[f"entry{number}"] = shrinking(before, made, made, number > 1)
        before = made
    for number in range(1, 9):
        branch = {}
        for i in range(1, 4):
            branch |= {f"relu{i}": nn.ReLU(), f"sep{i}": _separable(728, 728)}
        parts[f"middle{number}"] = _Add(branch, {}, False)
    parts["exit1"] = shrinking(728, 728, 1024, True)
    parts["exit2"] = _named(sep1=_separable(1024, 1536), relu1=nn.ReLU(), sep2=_separable(1536, 2048), relu2=nn.ReLU())
    return _named(**parts, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=nn.Linear(2048, classes))


_OWN = {
    "lenet5": _lenet5,
    "resnet20": _resnet20,
    "se_resnet50": _se_resnet50,
    "mobilenet_v1": _mobilenet_v1,
    "xception": _xception,
}
