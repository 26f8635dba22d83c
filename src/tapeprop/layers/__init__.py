"""Layers: named parameters and `trace(x) -> Tensor`. Arrays are NCHW, weights in PyTorch's layouts."""

from tapeprop.layers import initializers
from tapeprop.layers.activation import Activation
from tapeprop.layers.container import Lambda, Sequential
from tapeprop.layers.conv import Conv1D, Conv2D, Conv3D, DepthConv1D, DepthConv2D, DepthConv3D
from tapeprop.layers.conv_transpose import ConvTranspose1D, ConvTranspose2D, ConvTranspose3D
from tapeprop.layers.dense import Dense
from tapeprop.layers.dropout import Dropout, Dropout1D, Dropout2D, Dropout3D
from tapeprop.layers.layer import Layer, tracing
from tapeprop.layers.norm import BatchNorm1D, BatchNorm2D, BatchNorm3D
from tapeprop.layers.pool import AvgPool2D, GlobalAvgPool2D, MaxPool2D, Pool2D
from tapeprop.layers.python import PythonLayer
from tapeprop.layers.shape import Flatten, Identity, Reshape

__all__ = [
    "Activation",
    "AvgPool2D",
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
    "DepthConv1D",
    "DepthConv2D",
    "DepthConv3D",
    "Dropout",
    "Dropout1D",
    "Dropout2D",
    "Dropout3D",
    "Flatten",
    "GlobalAvgPool2D",
    "Identity",
    "Lambda",
    "Layer",
    "MaxPool2D",
    "Pool2D",
    "PythonLayer",
    "Reshape",
    "Sequential",
    "initializers",
    "tracing",
]
