"""Networks people know, as functions that return a `LayerGraph` that is not built yet.

    graph = tapeprop.zoo.resnet18(classes=10, seed=0).build((None, 3, 64, 64))

Images are (N, channels, H, W); results are logits. All take `classes`, `channels` of the image, `seed`, and most `width`, which
multiplies the channels of all layers. Nodes bear the names of torchvision's modules where it has the network: `load_state_dict`
takes its weights by name.
"""

from tapeprop.zoo.classics import alexnet, lenet5, vgg11, vgg16
from tapeprop.zoo.convnext import convnext_tiny
from tapeprop.zoo.dense import densenet121
from tapeprop.zoo.inception import inception_v1, inception_v3
from tapeprop.zoo.mobile import efficientnet_b0, mobilenet_v1, mobilenet_v2, xception
from tapeprop.zoo.residual import resnet18, resnet20, resnet34, resnet50, resnext50, se_resnet50

__all__ = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "inception_v1",
    "inception_v3",
    "lenet5",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnext50",
    "se_resnet50",
    "vgg11",
    "vgg16",
    "xception",
]
