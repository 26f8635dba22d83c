"""How each operator of ONNX is read: see `registry`."""

from tapeprop.interchange.onnx.converters import (
    convolution,
    dropout,
    elementwise,
    known,
    norms,
    pooling,
    resize,
    shapes,
)
from tapeprop.interchange.onnx.converters.registry import CONVERTERS, Converter

__all__ = [
    "CONVERTERS",
    "Converter",
    "convolution",
    "dropout",
    "elementwise",
    "known",
    "norms",
    "pooling",
    "resize",
    "shapes",
]
