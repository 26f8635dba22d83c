"""Neural networks as graphs of layers, lowered to a flat instruction tape that compiled kernels run."""

from tapeprop import callbacks, datasets, errors, initializers, layers, losses, ops, optimizers, schedules
from tapeprop.compiler.symbolic import gradients
from tapeprop.formula import Function, Variable, constant, function, placeholder, variable
from tapeprop.graph.merge import MergeMode
from tapeprop.graph.node import LayerNode, SequentialNode
from tapeprop.model import LayerGraph, gradcheck, load

__version__ = "0.1.0"

__all__ = [
    "Function",
    "LayerGraph",
    "LayerNode",
    "MergeMode",
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
    "schedules",
    "variable",
]
