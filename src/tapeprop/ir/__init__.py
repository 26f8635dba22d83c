"""The intermediate representation: symbolic tensors, instructions, programs, parameters, open sizes."""

from tapeprop.ir.dims import Dim, Shape, Size, UndecidedError
from tapeprop.ir.parameter import Parameter
from tapeprop.ir.tensor import (
    Constant,
    Gradient,
    Input,
    Instruction,
    Placeholder,
    Program,
    Region,
    Span,
    Store,
    Tensor,
    mark,
    reachable,
)
from tapeprop.ir.trace import Checkpoint, Trace, at_node, current, recording

__all__ = [
    "Checkpoint",
    "Constant",
    "Dim",
    "Gradient",
    "Input",
    "Instruction",
    "Parameter",
    "Placeholder",
    "Program",
    "Region",
    "Shape",
    "Size",
    "Span",
    "Store",
    "Tensor",
    "Trace",
    "UndecidedError",
    "at_node",
    "current",
    "mark",
    "reachable",
    "recording",
]
