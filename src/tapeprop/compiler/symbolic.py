"""Gradients of formulas as formulas: what `tapeprop.gradients` gives is recorded by ops and can be differentiated again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.compiler import gradient
from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.ir import Constant, Parameter, Shape, Tensor, UndecidedError, current
from tapeprop.ir.dims import same, text
from tapeprop.ops.elementwise import sum_of
from tapeprop.ops.op import as_tensor
from tapeprop.ops.shape import expand

__all__ = ["gradients"]

Tensors = Tensor | Parameter | Sequence[Tensor | Parameter]


def gradients(outputs: Tensors, inputs: Tensors, seeds: Any = None) -> list[Tensor]:
    """The gradient of the sum of all outputs by each input, a list of tensors of the inputs' shapes and dtypes.

    outputs, inputs: a tensor or a list of them, floating; in a layer's trace() parameters too. seeds: what flows into each output,
    ones by default: a tensor of its shape and dtype, an array of its shape, a number for all its elements, or None for
    nothing; a list of these for a list of outputs. An input without influence has a gradient of zeros.

    The gradients are formulas like any other, of which gradients() gives the next ones; recorded in the trace at work, if there is
    one. A Hessian-vector product, after Pearlmutter 1994:

        (slope,) = gradients(y, x)
        (product,) = gradients(slope, x, seeds=vector)

    GraphError for what is no tensor, for a constant among the inputs, and where an op on the way has no gradient; DTypeError for
    integers; ShapeError for a seed of another shape.
    """
    ends = _tensors("output", outputs)
    wanted = _tensors("input", inputs)
    for i, x in enumerate(wanted):
        if isinstance(x.source, Constant):
            raise GraphError(
                f"gradients: input {i} is a constant, {x!r}, and has no gradient; expected a tensor that can change, such as a "
                "placeholder or the argument of trace()"
            )
    flows: dict[Tensor, list[Tensor]] = {}
    for i, (y, seed) in enumerate(zip(ends, _listed_seeds(seeds, outputs, len(ends)), strict=True)):
        if seed is not None:
            flows.setdefault(y, []).append(_seed(i, seed, y))
    found = gradient.gradients({y: sum_of(*parts) for y, parts in flows.items()}, wanted)
    return [found[x] if x in found else _full(0.0, x.shape, x.dtype) for x in wanted]


def _tensors(what: str, given: Any) -> list[Tensor]:
    """The floating tensors that a caller gave, one or several."""
    found = []
    for i, value in enumerate(given if isinstance(given, list | tuple) else [given]):
        if not isinstance(value, Tensor | Parameter):
            raise GraphError(
                f"gradients: expected a tensor as {what} {i}, got {type(value).__name__} {value!r:.60}; give what ops return"
            )
        tensor = as_tensor(value)
        if tensor.dtype not in gradient.FLOATS:
            raise DTypeError(f"gradients: expected a floating tensor as {what} {i}, got {tensor!r}; cast() it first")
        found.append(tensor)
    return found


def _listed_seeds(seeds: Any, outputs: Any, count: int) -> list[Any]:
    if seeds is None:
        return [1.0] * count
    if not isinstance(outputs, list | tuple):
        return [seeds]
    if not isinstance(seeds, list | tuple) or len(seeds) != count:
        got = f"a list of {len(seeds)}" if isinstance(seeds, list | tuple) else type(seeds).__name__
        raise GraphError(f"gradients: expected a list of seeds, one for each of the {count} outputs, got {got}")
    return list(seeds)


def _seed(i: int, seed: Any, y: Tensor) -> Tensor:
    """What flows into output i, of its shape and dtype."""
    if not isinstance(seed, Tensor):
        array = np.asarray(seed)
        if array.dtype.kind not in "fiub":
            raise DTypeError(
                f"gradients: expected a tensor, an array or a number as the seed of output {i}, got {type(seed).__name__} "
                f"({array.dtype})"
            )
        if array.ndim == 0:
            return _full(float(array), y.shape, y.dtype)
        seed = _constant(array, y.dtype)
    if not _same_shape(seed.shape, y.shape):
        raise ShapeError(
            f"gradients: expected a seed of shape {text(y.shape)} for output {i}, got {text(seed.shape)}; reshape or expand() it"
        )
    if seed.dtype != y.dtype:
        raise DTypeError(f"gradients: expected a seed of dtype {y.dtype} for output {i}, got {seed.dtype}; cast() it")
    return seed


def _same_shape(a: Shape, b: Shape) -> bool:
    try:
        return len(a) == len(b) and all(same(m, n) for m, n in zip(a, b))
    except UndecidedError:
        if current() is not None:  # the graph is traced again, with the sizes of the call
            raise
        return False


def _constant(array: np.ndarray, dtype: str) -> Tensor:
    """A constant of this very dtype, whatever that of the trace is."""
    copy = np.array(array, dtype=dtype)
    copy.setflags(write=False)
    return Tensor(copy.shape, dtype, source=Constant(copy), name="constant")


def _full(value: float, shape: Shape, dtype: str) -> Tensor:
    return expand(_constant(np.asarray(value), dtype), shape)
