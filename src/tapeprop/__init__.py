"""Neural networks as graphs of layers, lowered to a flat instruction tape that compiled kernels run."""

from functools import partial as _partial
from importlib import import_module as _import_module

from tapeprop import callbacks, datasets, errors, initializers, layers, losses, ops, optimizers, schedules, zoo
from tapeprop.compiler.symbolic import gradients
from tapeprop.formula import Function, Variable, constant, function, placeholder, variable
from tapeprop.graph.merge import MergeMode
from tapeprop.graph.node import LayerNode, SequentialNode
from tapeprop.interchange.describe import know_later as _know_later
from tapeprop.model import LayerGraph, gradcheck, load
from tapeprop.profiler.collect import profiling
from tapeprop.profiler.profile import Profile

__version__ = "0.1.0"

# A graph that came from an ONNX model and was saved: load() finds its layers.
_know_later("onnx", _partial(_import_module, "tapeprop.interchange.onnx"))

__all__ = [
    "Function",
    "LayerGraph",
    "LayerNode",
    "MergeMode",
    "Profile",
    "SequentialNode",
    "Variable",
    "__version__",
    "callbacks",
    "constant",
    "datasets",
    "errors",
    "function",
    "gradcheck",
    "gradients",
    "initializers",
    "layers",
    "load",
    "losses",
    "ops",
    "optimizers",
    "placeholder",
    "profiling",
    "schedules",
    "variable",
    "zoo",
]
