"""How each op is written in the operators of ONNX: see `registry`."""

from tapeprop.interchange.onnx.writers import elementwise, norms, products, reductions, shapes, tables
from tapeprop.interchange.onnx.writers.builder import Builder, NewNode
from tapeprop.interchange.onnx.writers.patterns import PATTERNS
from tapeprop.interchange.onnx.writers.registry import WITHOUT, WRITERS
from tapeprop.interchange.onnx.writers.steps import Settings, Step, steps

__all__ = [
    "PATTERNS",
    "WITHOUT",
    "WRITERS",
    "Builder",
    "NewNode",
    "Settings",
    "Step",
    "elementwise",
    "norms",
    "products",
    "reductions",
    "shapes",
    "steps",
    "tables",
]
