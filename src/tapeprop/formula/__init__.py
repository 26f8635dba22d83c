"""Formulas: placeholders, variables and constants, put together by `tapeprop.ops`, run by a `Function`.

    x, y = tp.placeholder((), name="x"), tp.placeholder((), name="y")
    f = tp.function(outputs=ops.sin(x) * y, inputs=[x, y])
    value, (dx, dy) = f.value_and_grad(0.5, 2.0)

A formula is recorded once; every function of it is compiled to a tape of its own and has its own run state.
"""

from tapeprop.formula.compiled import Function, function
from tapeprop.formula.leaves import Variable, constant, placeholder, variable

__all__ = ["Function", "Variable", "constant", "function", "placeholder", "variable"]
