"""Layers: named parameters and `trace(x) -> Tensor`. Arrays are NCHW, weights in PyTorch's layouts."""

from tapeprop.layers import initializers
from tapeprop.layers.activation import Activation
from tapeprop.layers.container import Lambda, Sequential
from tapeprop.layers.conv import Conv1D, Conv2D, Conv3D, DepthConv1D, DepthConv2D, DepthConv3D
from tapeprop.layers.conv_transpose import ConvTranspose1D, ConvTranspose2D, ConvTranspose3D
from tapeprop.layers.dense import Dense, DenseND
from tapeprop.layers.drop_block import DropBlock1D, DropBlock2D, DropBlock3D
from tapeprop.layers.dropout import Dropout, Dropout1D, Dropout2D, Dropout3D, StochasticDepth
from tapeprop.layers.embedding import Embedding, PositionalEncoding
from tapeprop.layers.layer import Layer, tracing
from tapeprop.layers.layer_norm import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from tapeprop.layers.norm import BatchNorm1D, BatchNorm2D, BatchNorm3D
from tapeprop.layers.pool import (
    AdaptiveAvgPool1D,
    AdaptiveAvgPool2D,
    AdaptiveAvgPool3D,
    AvgPool1D,
    AvgPool2D,
    AvgPool3D,
    GlobalAvgPool1D,
    GlobalAvgPool2D,
    GlobalAvgPool3D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    GlobalMaxPool3D,
    LpPool1D,
    LpPool2D,
    LpPool3D,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
    Pool1D,
    Pool2D,
    Pool3D,
)
from tapeprop.layers.python import PythonLayer
from tapeprop.layers.response_norm import GlobalResponseNorm, LocalResponseNorm
from tapeprop.layers.shape import Flatten, Identity, Pad, Reshape, Slice, Transpose, Upsample2D

__all__ = [
    "Activation",
    "AdaptiveAvgPool1D",
    "AdaptiveAvgPool2D",
    "AdaptiveAvgPool3D",
    "AvgPool1D",
    "AvgPool2D",
    "AvgPool3D",
    "BatchNorm1D",
    "BatchNorm2D",
    "BatchNorm3D",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvTranspose1D",
    "ConvTranspose2D",
    "ConvTranspose3D",
    "Dense",
    "DenseND",
    "DepthConv1D",
    "DepthConv2D",
    "DepthConv3D",
    "DropBlock1D",
    "DropBlock2D",
    "DropBlock3D",
    "Dropout",
    "Dropout1D",
    "Dropout2D",
    "Dropout3D",
    "Embedding",
    "Flatten",
    "GlobalAvgPool1D",
    "GlobalAvgPool2D",
    "GlobalAvgPool3D",
    "GlobalMaxPool1D",
    "GlobalMaxPool2D",
    "GlobalMaxPool3D",
    "GlobalResponseNorm",
    "GroupNorm",
    "Identity",
    "InstanceNorm",
    "Lambda",
    "Layer",
    "LayerNorm",
    "LocalResponseNorm",
    "LpPool1D",
    "LpPool2D",
    "LpPool3D",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPool3D",
    "Pad",
    "Pool1D",
    "Pool2D",
    "Pool3D",
    "PositionalEncoding",
    "PythonLayer",
    "RMSNorm",
    "Reshape",
    "Sequential",
    "Slice",
    "StochasticDepth",
    "Transpose",
    "Upsample2D",
    "initializers",
    "tracing",
]
