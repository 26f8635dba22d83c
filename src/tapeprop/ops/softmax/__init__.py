"""softmax and log-softmax along one axis, with their gradients.

Both subtract the maximum first, so nothing overflows. An entry of -inf has probability 0. Where the maximum is +inf,
the entries that reach it share the probability (the limit, where there is one); a row of -inf only, or with a NaN,
gives NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Shape, Tensor
from tapeprop.ir.dims import same, text
from tapeprop.ops import elementwise
from tapeprop.ops.op import (
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    as_tensor,
    cuda_launch,
    launch,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.reduce import sum as reduce_sum

__all__ = ["log_softmax", "softmax"]

HERE = "tapeprop.ops.softmax.cpu"


BLOCK = 64  # columns that one worker takes at a time


def _launch(builder: str, call: Call, **parameters: Any) -> Launch:
    """Every array flat, read as (outer, n, inner) about the axis of n."""
    shape, axis = call.results[0].shape, call["axis"]
    sizes = _product(shape[:axis]), shape[axis], _product(shape[axis + 1 :])
    arrays: list[tuple[Ref, tuple[int, ...]]] = [(Ref("operand", i), (a.size,)) for i, a in enumerate(call.operands)]
    arrays.append((Ref("result", 0), (call.results[0].size,)))
    dtype = call.results[0].dtype
    if sizes[2] == 1:
        return launch(f"{HERE}:{builder}_rows", call, arrays, sizes, dtype=dtype, **parameters)
    arrays.append((Ref("scratch"), (1, 3 * BLOCK)))
    scratch = (3 * BLOCK, "float64")
    return launch(f"{HERE}:{builder}_columns", call, arrays, sizes, dtype=dtype, scratch=scratch, **parameters)


def _cuda_launch(builder: str, call: Call, device: Device, **parameters: Any) -> Launch:
    """As `_launch`; a block takes rows, or threads take columns."""
    shape, axis = call.results[0].shape, call["axis"]
    sizes = _product(shape[:axis]), shape[axis], _product(shape[axis + 1 :])
    arrays: list[tuple[Ref, tuple[int, ...]]] = [(Ref("operand", i), (a.size,)) for i, a in enumerate(call.operands)]
    arrays.append((Ref("result", 0), (call.results[0].size,)))
    rows = sizes[2] == 1
    grid, block = device.rows(sizes[0], sizes[1]) if rows else device.spread(sizes[0] * sizes[2])
    builder = f"tapeprop.ops.softmax.cuda:{builder}_{'rows' if rows else 'columns'}"
    return cuda_launch(builder, arrays, sizes, grid=grid, block=block, dtype=call.results[0].dtype, **parameters)


def _product(sizes: tuple[int, ...]) -> int:
    return int(np.prod(sizes, dtype=np.int64))


def _distance(x: np.ndarray, axis: int) -> np.ndarray:
    """x less its maximum along the axis; 0 where x is the maximum, be it +inf."""
    top = x.max(axis, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.where((top == np.inf) & (x == np.inf), x.dtype.type(0), x - top)


def _axis(name: str, x: Tensor, axis: int) -> int:
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(
            f"{name}: expected an axis from {-x.ndim} to {x.ndim - 1} of shape {text(x.shape)}, got {axis}"
        )
    return int(axis) % x.ndim


def _expect_like(name: str, y: Tensor, dy: Tensor) -> Shape:
    if y.ndim != dy.ndim or not all(same(a, b) for a, b in zip(y.shape, dy.shape)):
        raise ShapeError(f"{name}: expected dy of shape {text(y.shape)}, got {text(dy.shape)}")
    return y.shape


CASES: list[tuple[tuple[int, ...], int]] = [
    ((5, 10), 1),
    ((1, 1), 1),
    ((3, 37), 1),
    ((4, 7), 0),
    ((2, 5, 3, 4), 1),
    ((2, 3, 70), 1),
    ((7,), 0),
    ((70, 3), 1),
]


@register
class Softmax(Op):
    """x -> exp(x) / (sum of exp(x) along `axis`), of x's shape and dtype."""

    name = "softmax"
    inplace = ((0, 0),)
    onnx = ("Softmax",)

    def infer(self, operands, attributes):
        return [(operands[0].shape, same_dtype(self.name, operands))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        return [None if g is None else record("softmax_grad", [call.results[0], g], call.attributes)[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        weights = np.exp(_distance(arrays[0], call["axis"]))
        return [weights / weights.sum(call["axis"], keepdims=True)]

    def cpu(self, call: Call) -> Launch:
        return _launch("softmax", call, logarithm=False)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_launch("softmax", call, device, logarithm=False)

    def flops(self, call: Call) -> int:
        return 5 * call.results[0].size

    def samples(self) -> list[Sample]:
        return [Sample(lambda r, s=shape: [r.standard_normal(s)], {"axis": axis}, shape[axis]) for shape, axis in CASES]


@register
class LogSoftmax(Op):
    """x -> x - log(sum of exp(x) along `axis`), of x's shape and dtype."""

    name = "log_softmax"
    inplace = ((0, 0),)
    onnx = ("LogSoftmax",)

    def infer(self, operands, attributes):
        return [(operands[0].shape, same_dtype(self.name, operands))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        return [None if g is None else record("log_softmax_grad", [call.results[0], g], call.attributes)[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        distance = _distance(arrays[0], call["axis"])
        return [distance - np.log(np.exp(distance).sum(call["axis"], keepdims=True))]

    def cpu(self, call: Call) -> Launch:
        return _launch("softmax", call, logarithm=True)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_launch("softmax", call, device, logarithm=True)

    def flops(self, call: Call) -> int:
        return 5 * call.results[0].size

    def samples(self) -> list[Sample]:
        return [Sample(lambda r, s=shape: [r.standard_normal(s)], {"axis": axis}, shape[axis]) for shape, axis in CASES]


@register
class SoftmaxGrad(Op):
    """(y = softmax(x), dy) -> dx = y (dy - sum of y dy along `axis`)."""

    name = "softmax_grad"
    inplace = ((0, 0), (0, 1))

    def infer(self, operands, attributes):
        return [(_expect_like(self.name, *operands), same_dtype(self.name, operands))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        if g is None:
            return [None, None]
        y, dy = call.operands
        axis = call.attributes["axis"]
        to_y = None
        if wanted[0]:
            to_y = g * (dy - reduce_sum(y * dy, axis, keepdims=True)) - dy * reduce_sum(y * g, axis, keepdims=True)
        return [to_y, record(self, [y, g], call.attributes)[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        y, dy = arrays
        return [y * (dy - (y * dy).sum(call["axis"], keepdims=True))]

    def cpu(self, call: Call) -> Launch:
        return _launch("softmax_grad", call, logarithm=False)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_launch("softmax_grad", call, device, logarithm=False)

    def flops(self, call: Call) -> int:
        return 4 * call.results[0].size

    def samples(self) -> list[Sample]:
        return [
            Sample(
                lambda r, s=shape: [r.uniform(0, 1, s), r.standard_normal(s)],
                {"axis": axis},
                shape[axis],
                gradient=(0, 1),
            )
            for shape, axis in CASES
        ]


@register
class LogSoftmaxGrad(Op):
    """(y = log_softmax(x), dy) -> dx = dy - exp(y) (sum of dy along `axis`)."""

    name = "log_softmax_grad"
    inplace = ((0, 0),)  # exp(y) is made where dx will stand

    def infer(self, operands, attributes):
        return [(_expect_like(self.name, *operands), same_dtype(self.name, operands))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        if g is None:
            return [None, None]
        y, dy = call.operands
        axis = call.attributes["axis"]
        weighted = g * elementwise.exp(y)
        to_y = -(weighted * reduce_sum(dy, axis, keepdims=True)) if wanted[0] else None
        return [to_y, g - reduce_sum(weighted, axis, keepdims=True)]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        y, dy = arrays
        return [dy - np.exp(y) * dy.sum(call["axis"], keepdims=True)]

    def cpu(self, call: Call) -> Launch:
        return _launch("softmax_grad", call, logarithm=True)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_launch("softmax_grad", call, device, logarithm=True)

    def flops(self, call: Call) -> int:
        return 4 * call.results[0].size

    def samples(self) -> list[Sample]:
        return [
            Sample(
                lambda r, s=shape: [-r.uniform(0, 4, s), r.standard_normal(s)],
                {"axis": axis},
                shape[axis],
                gradient=(0, 1),
            )
            for shape, axis in CASES
        ]


def softmax(x: Any, axis: int = -1) -> Tensor:
    """exp(x) / (sum of exp(x) along `axis`), of x's shape and floating dtype. ShapeError where x has no such axis."""
    x = as_tensor(x)
    return record("softmax", [x], {"axis": _axis("softmax", x, axis)})[0]


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """log(softmax(x)), also where softmax(x) rounds to 0. ShapeError where x has no such axis."""
    x = as_tensor(x)
    return record("log_softmax", [x], {"axis": _axis("log_softmax", x, axis)})[0]
