"""ONNX: models of other programs as functions and graphs, and graphs as models that other programs run.

    f = tp.interchange.onnx.load_function("resnet50.onnx")
    y = f(x)
    tp.interchange.onnx.save(graph, "net.onnx")

Needs the package onnx: pip install "tapeprop[onnx]".
"""

from tapeprop.interchange.onnx.exporting import save, to_model
from tapeprop.interchange.onnx.functions import load_function

__all__ = ["load_function", "save", "to_model"]
