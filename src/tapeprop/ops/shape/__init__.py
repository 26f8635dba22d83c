"""Ops that move or rename elements without arithmetic: reshape, transpose, expand, copy, cast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Size, Tensor
from tapeprop.ir.dims import product, text
from tapeprop.ops.op import Call, Device, Launch, Op, Ref, Sample, as_tensor, cuda_launch, launch, record, register
from tapeprop.ops.shape.rules import broadcast_axes, drawn, is_one, refuse_empty, resolve
from tapeprop.ops.shape.strides import contiguous, copy_launch, cuda_copy_launch

__all__ = [
    "cast",
    "copy",
    "expand",
    "flatten",
    "identity",
    "reshape",
    "stop_gradient",
    "transpose",
]


# ---- reshape


@register
class Reshape(Op):
    """The same elements in the same order under another shape: no memory moves."""

    name = "reshape"
    alias = True
    onnx = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

    def infer(self, operands, attributes):
        (x,) = operands
        return [(resolve(x.shape, attributes["shape"]), x.dtype)]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        return [None if g is None else reshape(g, call.operands[0].shape)]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        return [arrays[0].reshape(call.results[0].shape)]

    def samples(self):
        return [
            Sample(drawn((2, 3, 4)), {"shape": (2, 12)}),
            Sample(drawn((1, 1)), {"shape": ()}),
        ]


def reshape(x: Any, shape: int | Sequence[Size]) -> Tensor:
    """The elements of x, in row-major order, under another shape.

    shape: sizes, open ones included; one may be -1, to be computed. ShapeError where the numbers of elements differ.
    """
    x = as_tensor(x)
    wanted = tuple(_as_size(size) for size in ((shape,) if isinstance(shape, int | np.integer) else shape))
    found = resolve(x.shape, wanted)
    if found == x.shape:
        return x
    return record("reshape", [x], {"shape": found})[0]


def alias(x: Tensor) -> Tensor:
    """x under a name of its own: the same memory, but another gradient where x is read elsewhere as well."""
    return record("reshape", [x], {"shape": x.shape})[0]


def _as_size(size: Any) -> Size:
    return int(size) if isinstance(size, np.integer) else size


def flatten(x: Any) -> Tensor:
    """(N, ...) -> (N, product of the rest). ShapeError for a scalar."""
    x = as_tensor(x)
    if x.ndim == 0:
        raise ShapeError("flatten: expected a tensor with a batch axis, got shape (); use reshape(x, (1, 1))")
    return reshape(x, (x.shape[0], product(x.shape[1:])))


# ---- copies and casts


@register
class StopGradient(Op):
    """The operand itself, to which no gradient flows."""

    name = "stop_gradient"
    alias = True

    def infer(self, operands, attributes):
        (x,) = operands
        return [(x.shape, x.dtype)]

    def vjp(self, call, gradients, wanted):
        return [None]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        return [arrays[0]]

    def samples(self):
        return [Sample(drawn((2, 3)), gradient=())]


def stop_gradient(x: Any) -> Tensor:
    """x, as a constant to differentiation: its gradient is zero."""
    return record("stop_gradient", [x])[0]


@register
class Copy(Op):
    """The operand at a place of its own."""

    name = "copy"
    onnx = ("Identity",)

    def infer(self, operands, attributes):
        (x,) = operands
        refuse_empty("copy", x.shape)
        return [(x.shape, x.dtype)]

    def vjp(self, call, gradients, wanted):
        return [gradients[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        return [arrays[0].copy()]

    def cpu(self, call: Call) -> Launch:
        n = call.results[0].size
        arrays = [(Ref("result"), (n,)), (Ref("operand"), (n,))]
        return launch("tapeprop.ops.shape.cpu:copy", call, arrays, dtype=call.operands[0].dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_copy(call, device)

    def flops(self, call: Call) -> int:
        return 0

    def samples(self):
        return [
            Sample(drawn((3, 67))),
            Sample(drawn(())),
            Sample(lambda r: [r.integers(-9, 9, (5,))], gradient=()),
        ]


def copy(x: Any) -> Tensor:
    """x at a place of its own: what is read from it cannot change with x."""
    return record("copy", [x])[0]


def identity(x: Any) -> Tensor:
    """x itself; nothing is recorded."""
    return as_tensor(x)


def _cuda_copy(call: Call, device: Device) -> Launch:
    """The launch that fills result 0 with operand 0, in its own dtype."""
    x, y = call.operands[0], call.results[0]
    grid, block = device.spread(y.size)
    arrays = [(Ref("result"), (y.size,)), (Ref("operand"), (x.size,))]
    return cuda_launch("tapeprop.ops.shape.cuda:copy", arrays, grid=grid, block=block, dtype=x.dtype, to=y.dtype)


@register
class Cast(Op):
    """The operand's numbers in another floating dtype, rounded to nearest."""

    name = "cast"
    onnx = ("Cast",)

    def infer(self, operands, attributes):
        (x,) = operands
        refuse_empty("cast", x.shape)
        if attributes["dtype"] not in ("float32", "float64"):
            raise DTypeError(f"cast: expected float32 or float64 to cast to, got {attributes['dtype']}")
        return [(x.shape, attributes["dtype"])]

    def vjp(self, call, gradients, wanted):
        (g,), (x,) = gradients, call.operands
        return [None if g is None or x.dtype not in ("float32", "float64") else cast(g, x.dtype)]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        with np.errstate(over="ignore"):  # a large float64 becomes an infinite float32
            return [arrays[0].astype(call.results[0].dtype)]

    def cpu(self, call: Call) -> Launch:
        (x,), (y,) = call.operands, call.results
        arrays = [(Ref("result"), (y.size,)), (Ref("operand"), (x.size,))]
        return launch("tapeprop.ops.shape.cpu:cast", call, arrays, dtype=x.dtype, to=y.dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_copy(call, device)

    def samples(self):
        return [
            Sample(drawn((3, 35)), {"dtype": "float64"}),
            Sample(drawn((70,)), {"dtype": "float64"}),
            Sample(lambda r: [r.integers(-9, 9, (5,))], {"dtype": "float64"}, gradient=()),
        ]


def cast(x: Any, dtype: str) -> Tensor:
    """x in the dtype "float32" or "float64"; x itself where it has it. Integers may be cast, without a gradient."""
    x = as_tensor(x)
    return x if x.dtype == dtype else record("cast", [x], {"dtype": dtype})[0]


# ---- transpose


@register
class Transpose(Op):
    """Axes in another order: result axis i is operand axis axes[i]."""

    name = "transpose"
    onnx = ("Transpose",)

    def infer(self, operands, attributes):
        (x,), axes = operands, attributes["axes"]
        refuse_empty("transpose", x.shape)
        if sorted(axes) != list(range(x.ndim)):
            raise ShapeError(
                f"transpose: expected an order of the axes 0 to {x.ndim - 1} of {text(x.shape)}, got {axes}"
            )
        return [(tuple(x.shape[axis] for axis in axes), x.dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), axes = gradients, call.attributes["axes"]
        return [None if g is None else transpose(g, tuple(axes.index(i) for i in range(len(axes))))]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        return [np.ascontiguousarray(arrays[0].transpose(call["axes"])).reshape(call.results[0].shape)]

    def cpu(self, call: Call) -> Launch:
        return copy_launch(call, self._strides(call))

    def cuda(self, call: Call, device: Device) -> Launch:
        return cuda_copy_launch(call, device, self._strides(call))

    def _strides(self, call: Call) -> list[int]:
        strides = contiguous(call.operands[0].shape)
        return [strides[axis] for axis in call["axes"]]

    def flops(self, call: Call) -> int:
        return 0

    def samples(self):
        return [
            Sample(drawn((3, 5)), {"axes": (1, 0)}),
            Sample(drawn((33, 70)), {"axes": (1, 0)}),
            Sample(drawn((2, 3, 4, 5)), {"axes": (0, 2, 1, 3)}),
            Sample(drawn((2, 3, 4, 5)), {"axes": (3, 1, 0, 2)}),
            Sample(drawn((2, 20, 1, 17)), {"axes": (0, 3, 2, 1)}),
            Sample(drawn((2, 17, 3, 18)), {"axes": (2, 0, 3, 1)}),
            Sample(drawn((2, 3, 2, 3, 2, 2)), {"axes": (5, 3, 1, 4, 2, 0)}),
            Sample(drawn((17, 2, 3, 2, 2, 16)), {"axes": (5, 3, 1, 4, 2, 0)}),
            Sample(drawn((1,)), {"axes": (0,)}),
        ]


def transpose(x: Any, axes: Sequence[int] | None = None) -> Tensor:
    """x with its axes in the order `axes` (None: reversed), as numpy.transpose.

    A reshape, without a copy, where only axes of size 1 move. ShapeError where `axes` is no permutation.
    """
    x = as_tensor(x)
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(int(a) + x.ndim if a < 0 else int(a) for a in axes)
    if sorted(order) == list(range(x.ndim)):
        long = [axis for axis in order if not is_one(x.shape[axis])]
        if long == sorted(long):
            return reshape(x, tuple(x.shape[axis] for axis in order))
    return record("transpose", [x], {"axes": order})[0]


# ---- expand


@register
class Expand(Op):
    """Broadcasting made real: y = x repeated to `shape`; with mean, divided by the number of repetitions.

    The transpose of `reduce` with mode sum (mean), and the other way round.
    """

    name = "expand"
    onnx = ("Expand",)

    def infer(self, operands, attributes):
        (x,), shape = operands, attributes["shape"]
        if attributes["mean"] and x.dtype not in ("float32", "float64"):
            raise DTypeError(f"expand: expected a floating tensor to divide, got {x.dtype}; cast it")
        refuse_empty("expand", x.shape, shape)
        broadcast_axes("expand", x.shape, shape)
        return [(tuple(shape), x.dtype)]

    def vjp(self, call, gradients, wanted):
        from tapeprop.ops.reduce import reduce

        (g,), (x,) = gradients, call.operands
        if g is None:
            return [None]
        axes = broadcast_axes("expand", x.shape, g.shape)
        return [reshape(reduce(g, "mean" if call.attributes["mean"] else "sum", axes), x.shape)]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        (x,), shape = arrays, call.results[0].shape
        y = np.ascontiguousarray(np.broadcast_to(x, shape)).reshape(shape)
        return [y / (y.size // x.size) if call["mean"] else y]

    def cpu(self, call: Call) -> Launch:
        return copy_launch(call, self._strides(call), divisor=self._divisor(call))

    def cuda(self, call: Call, device: Device) -> Launch:
        return cuda_copy_launch(call, device, self._strides(call), divisor=self._divisor(call))

    def _strides(self, call: Call) -> list[int]:
        x, y = call.operands[0], call.results[0]
        repeated = broadcast_axes("expand", x.shape, y.shape)
        strides = [0] * (len(y.shape) - len(x.shape)) + contiguous(x.shape)
        return [0 if axis in repeated else stride for axis, stride in enumerate(strides)]

    def _divisor(self, call: Call) -> int | None:
        return call.results[0].size // call.operands[0].size if call["mean"] else None

    def flops(self, call: Call) -> int:
        return call.results[0].size if call["mean"] else 0

    def samples(self):
        cases = [
            ((), (3, 5)),
            ((1,), (70,)),
            ((37,), (5, 37)),
            ((5, 1), (5, 37)),
            ((2, 1, 4, 1), (2, 3, 4, 5)),
            ((1, 6, 1, 1), (3, 6, 4, 5)),
            ((3, 2), (3, 2)),
        ]
        return [
            Sample(drawn(source), {"shape": shape, "mean": mean}) for source, shape in cases for mean in (False, True)
        ]


def expand(x: Any, shape: Sequence[Size], mean: bool = False) -> Tensor:
    """x repeated to `shape` as NumPy broadcasts, as an array of its own; x itself where the shapes agree.

    mean: divide by the number of repetitions, so that the sum over the repeated axes gives x back.
    """
    x = as_tensor(x)
    shape = tuple(_as_size(size) for size in shape)
    if shape == x.shape:
        return x
    return record("expand", [x], {"shape": shape, "mean": bool(mean)})[0]
