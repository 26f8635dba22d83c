"""ONNX: models of other programs as functions and graphs, and graphs as models that other programs run.

    from tapeprop.interchange import onnx

    f = onnx.load_function("resnet50.onnx")
    y = f(x)
    graph = onnx.load("resnet50.onnx")
    graph.fit(X, y, loss=tp.losses.CrossEntropy(), optimizer=tp.optimizers.SGD(1e-3))
    onnx.save(graph, "net.onnx")

Needs the package onnx: pip install "tapeprop[onnx]".
"""

from tapeprop.interchange.onnx.exporting import save, to_model
from tapeprop.interchange.onnx.functions import load_function
from tapeprop.interchange.onnx.graphs import load

__all__ = ["load", "load_function", "save", "to_model"]
