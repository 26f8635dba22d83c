"""Networks people know: sizes as published, and that they train."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import tapeprop as tp
from tapeprop import layers, zoo
from tapeprop.errors import GraphError
from tapeprop.layers import StochasticDepth

#: Trainable elements at the published size, and where the number stands.
PUBLISHED = {
    "alexnet": 61_100_840,  # torchvision 0.28, AlexNet_Weights
    "convnext_tiny": 28_589_128,  # torchvision 0.28, ConvNeXt_Tiny_Weights; Liu et al. 2022, table 9: 28.6M
    "densenet121": 7_978_856,  # torchvision 0.28, DenseNet121_Weights
    "efficientnet_b0": 5_288_548,  # torchvision 0.28, EfficientNet_B0_Weights; Tan and Le 2019, table 2: 5.3M
    "inception_v1": 6_624_904,  # torchvision 0.28, GoogLeNet_Weights
    "inception_v3": 23_834_568,  # torchvision 0.28, Inception_V3_Weights (27,161,264) less its AuxLogits
    "lenet5": 61_706,  # LeCun et al. 1998 with all 60,000 connections of a full C3 and biases: 156 + 2416 + 48120 + 10164 + 850
    "mobilenet_v1": 4_231_976,  # keras.applications.MobileNet, trainable; Howard et al. 2017, table 4: 4.2M
    "mobilenet_v2": 3_504_872,  # torchvision 0.28, MobileNet_V2_Weights; Sandler et al. 2018, table 4: 3.4M
    "resnet18": 11_689_512,  # torchvision 0.28, ResNet18_Weights
    "resnet20": 269_722,  # He et al. 2016, table 6: 0.27M
    "resnet34": 21_797_672,  # torchvision 0.28, ResNet34_Weights
    "resnet50": 25_557_032,  # torchvision 0.28, ResNet50_Weights
    "resnext50": 25_028_904,  # torchvision 0.28, ResNeXt50_32X4D_Weights
    "se_resnet50": 28_088_024,  # timm 1.0, seresnet50; Hu et al. 2018: 28.1M in the authors' repository
    "vgg11": 132_863_336,  # torchvision 0.28, VGG11_Weights
    "vgg16": 138_357_544,  # torchvision 0.28, VGG16_Weights
    "xception": 22_855_952,  # keras.applications.Xception, trainable; Chollet 2017, table 3
}
AUXILIARY = {"inception_v1": 13_004_888, "inception_v3": 27_161_264}  # with the classifiers that are for training alone


def test_every_network_has_a_published_size():
    assert set(PUBLISHED) == set(zoo.__all__)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_size_is_the_published_one(name):
    assert sum(getattr(zoo, name)().param_size) == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(AUXILIARY))
def test_size_with_auxiliary_classifiers(name):
    graph = getattr(zoo, name)(auxiliary=True)
    assert sum(graph.param_size) == AUXILIARY[name]
    assert len(graph.term) == {"inception_v1": 3, "inception_v3": 2}[name]


def rates_of(network):
    return [name for name in ("dropout_rate", "depth_rate") if name in inspect.signature(network).parameters]


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"lenet5", "resnet20"}))
def test_takes_other_images_classes_and_widths(name):
    graph = getattr(zoo, name)(7, 1, width=0.25, seed=0)
    assert graph.out_shape((2, 1, 128, 128)) == (2, 7)
    assert sum(graph.param_size) < PUBLISHED[name] / 8


@pytest.mark.parametrize("width", [0, -1.0, float("nan"), "wide"])
def test_a_width_that_is_none(width):
    with pytest.raises(GraphError, match="expected width to be a finite number"):
        zoo.vgg11(width=width)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "inception_v1"])
def test_learns_a_few_images_by_heart(name):
    network = getattr(zoo, name)
    options = {} if name == "resnet20" else {"width": 0.25}
    graph = network(4, seed=0, **options, **dict.fromkeys(rates_of(network), 0.0)).build((8, 3, 32, 32))
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((8, 3, 32, 32), dtype=np.float32), np.arange(8) % 4
    graph.set_optimizer(tp.optimizers.Adam(lr=0.003))
    losses = [graph.train_step(X, y, tp.losses.CrossEntropy()) for _ in range(20)]
    assert losses[-1] < 0.3 * losses[0]


def test_stochastic_depth_leaves_out_whole_samples():
    graph = tp.LayerGraph(
        {(node := tp.LayerNode(StochasticDepth(0.5), name="depth")): []}, root=node, term=node, seed=0
    )
    y = graph.build(dtype="float64")(np.ones((64, 2, 3, 3)), True)
    assert set(np.unique(y)) == {0.0, 2.0}
    assert (y == y[:, :1, :1, :1]).all()
    assert np.array_equal(graph(np.ones((64, 2, 3, 3))), np.ones((64, 2, 3, 3)))


def test_the_page_of_layers_names_every_layer_and_network():
    page = (Path(__file__).parents[2] / "docs" / "layers.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page))
    classes = {name for name in layers.__all__ if inspect.isclass(getattr(layers, name))}
    assert (classes | set(zoo.__all__)) - named == set()
