"""How each operator of ONNX is read: see `registry`. The modules register their operators when they are imported."""

from tapeprop.interchange.onnx.converters import (
    activations,
    convolution,
    dropout,
    elementwise,
    indexing,
    known,
    known_arithmetic,
    linear,
    logic,
    losses,
    norms,
    pooling,
    reductions,
    resize,
    shapes,
    types,
)
from tapeprop.interchange.onnx.converters.registry import CONVERTERS, KNOWN, Converter

__all__ = [
    "CONVERTERS",
    "KNOWN",
    "Converter",
    "activations",
    "convolution",
    "dropout",
    "elementwise",
    "indexing",
    "known",
    "known_arithmetic",
    "linear",
    "logic",
    "losses",
    "norms",
    "pooling",
    "reductions",
    "resize",
    "shapes",
    "types",
]
