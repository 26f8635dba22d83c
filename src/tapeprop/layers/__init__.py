"""Layers: named parameters and `trace(x) -> Tensor`. Arrays are NCHW, weights in PyTorch's layouts."""

from tapeprop.layers import initializers
from tapeprop.layers.activation import Activation
from tapeprop.layers.container import Lambda, Sequential
from tapeprop.layers.conv import Conv2D
from tapeprop.layers.dense import Dense
from tapeprop.layers.drop_block import DropBlock1D, DropBlock2D, DropBlock3D
from tapeprop.layers.dropout import Dropout, Dropout1D, Dropout2D, Dropout3D, StochasticDepth
from tapeprop.layers.layer import Layer, tracing
from tapeprop.layers.layer_norm import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from tapeprop.layers.norm import BatchNorm1D, BatchNorm2D, BatchNorm3D
from tapeprop.layers.pool import AvgPool2D, GlobalAvgPool2D, MaxPool2D, Pool2D
from tapeprop.layers.python import PythonLayer
from tapeprop.layers.response_norm import GlobalResponseNorm, LocalResponseNorm
from tapeprop.layers.shape import Flatten, Identity, Reshape

__all__ = [
    "Activation",
    "AvgPool2D",
    "BatchNorm1D",
    "BatchNorm2D",
    "BatchNorm3D",
    "Conv2D",
    "Dense",
    "DropBlock1D",
    "DropBlock2D",
    "DropBlock3D",
    "Dropout",
    "Dropout1D",
    "Dropout2D",
    "Dropout3D",
    "Flatten",
    "GlobalAvgPool2D",
    "GlobalResponseNorm",
    "GroupNorm",
    "Identity",
    "InstanceNorm",
    "Lambda",
    "Layer",
    "LayerNorm",
    "LocalResponseNorm",
    "MaxPool2D",
    "Pool2D",
    "PythonLayer",
    "RMSNorm",
    "Reshape",
    "Sequential",
    "StochasticDepth",
    "initializers",
    "tracing",
]
