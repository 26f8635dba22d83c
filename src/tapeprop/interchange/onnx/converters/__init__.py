"""How each operator of ONNX is read: see `registry`."""

from tapeprop.interchange.onnx.converters import elementwise, known, shapes
from tapeprop.interchange.onnx.converters.registry import CONVERTERS, Converter

__all__ = ["CONVERTERS", "Converter", "elementwise", "known", "shapes"]
