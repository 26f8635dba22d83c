"""The two conversions between images and batch lanes, each other's gradient, and what all ops of the layout share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Instruction, Shape, Size, Tensor
from tapeprop.ir.dims import same, text
from tapeprop.ops.op import (
    ArrayType,
    Call,
    Launch,
    Op,
    Sample,
    check_rank,
    record,
    register,
    registry,
    same_dtype,
)
from tapeprop.ops.shape.rules import drawn

#: Numbers of images side by side that the kernels take.
WIDTHS = (4, 8, 16, 32, 64)


def check_lanes(name: str, lanes: Size) -> int:
    """`lanes` as an int. ShapeError unless it is one of `WIDTHS`."""
    if not isinstance(lanes, int) or lanes not in WIDTHS:
        raise ShapeError(
            f"{name}: expected {', '.join(map(str, WIDTHS))} images side by side, got {lanes}; 16 fill a cache line in "
            "float32, 8 in float64"
        )
    return lanes


def check_shape(name: str, tensor: Tensor, expected: Shape, what: str) -> None:
    """ShapeError unless the tensor has the shape."""
    if tensor.ndim != len(expected) or not all(same(a, b) for a, b in zip(tensor.shape, expected)):
        raise ShapeError(f"{name}: expected {what} of shape {text(expected)}, got {text(tensor.shape)}")


def rectified_gradient(call: Instruction, g: Tensor) -> Tensor:
    """The gradient that flows through the activation of an op that has one: 0 where its result is not above 0."""
    if call.attributes["activation"] is None:
        return g
    from tapeprop.ops import elementwise

    passed = elementwise.comparisons["greater"](call.results[0], 0.0)
    return elementwise.apply("select", passed, g, 0.0)


# ---- the same numbers as images


def images(array: np.ndarray) -> np.ndarray:
    """(G, ..., L) as (G L, ...)."""
    return np.moveaxis(array, -1, 1).reshape(-1, *array.shape[1:-1])


def batch_lanes(array: np.ndarray, lanes: int) -> np.ndarray:
    """(N, ...) as (N / lanes, ..., lanes)."""
    grouped = array.reshape(-1, lanes, *array.shape[1:])
    return np.ascontiguousarray(np.moveaxis(grouped, 1, -1))


def image_tensor(name: str, x: Tensor) -> Tensor:
    """What a tensor (G, C, H, W, L) is as images, (G L, C, H, W), for the shape rules of the ops on images."""
    check_rank(name, x, 5, "(N / lanes, C, H, W, lanes)")
    return Tensor((x.shape[0] * check_lanes(name, x.shape[4]), *x.shape[1:4]), x.dtype)


def lane_shape(shape: Shape, x: Tensor) -> Shape:
    """(N, C, H, W) in the lanes of x."""
    return (x.shape[0], *shape[1:], x.shape[4])


def image_call(call: Call, attributes: Mapping[str, Any]) -> Call:
    """`call` with every array of rank 5 as images."""

    def as_images(kind: ArrayType) -> ArrayType:
        shape = kind.shape
        return ArrayType((shape[0] * shape[4], *shape[1:4]), kind.dtype) if len(shape) == 5 else kind

    return Call(tuple(map(as_images, call.operands)), tuple(map(as_images, call.results)), attributes)


def reference_on_images(
    op: str, call: Call, attributes: Mapping[str, Any], arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The results of the op on images that `call` stands for, back in lanes."""
    found = registry[op].reference(image_call(call, attributes), *(images(a) if a.ndim == 5 else a for a in arrays))
    kinds = call.results
    return [batch_lanes(a, kind.shape[4]) if len(kind.shape) == 5 else a for a, kind in zip(found, kinds)]


# ---- the ops


@register
class ToLanes(Op):
    """x (N, ...) -> (N / lanes, ..., lanes)."""

    name = "to_lanes"
    cpu_only = True

    def infer(self, operands, attributes):
        (x,), lanes = operands, check_lanes(self.name, attributes["lanes"])
        dtype = same_dtype(self.name, operands)
        if x.ndim < 2:
            raise ShapeError(f"to_lanes: expected a tensor of rank 2 or more, got shape {text(x.shape)}")
        if isinstance(x.shape[0], int) and x.shape[0] % lanes:
            raise ShapeError(f"to_lanes: expected a batch that {lanes} lanes divide, got shape {text(x.shape)}")
        return [((x.shape[0] // lanes, *x.shape[1:], lanes), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        return [None if g is None else from_lanes(g, call.operands[0].shape[0])]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        return [batch_lanes(arrays[0], call["lanes"])]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.lanes.cpu.layout import conversion_launch

        n, lanes = call.operands[0].shape[0], call["lanes"]
        if n % lanes:  # open when the call was recorded
            raise ShapeError(f"to_lanes: expected a batch that {lanes} lanes divide, got {n} images")
        return conversion_launch("to_lanes", call, n // lanes, lanes)

    def flops(self, call: Call) -> int:
        return 0

    def samples(self):
        shapes = [(32, 3), (16, 1), (16, 3, 5, 7), (48, 2, 300), (16, 1100)]
        return [Sample(drawn(shape), {"lanes": lanes}) for shape in shapes for lanes in (16, 8)]


@register
class FromLanes(Op):
    """x (G, ..., lanes) -> (batch, ...), batch being G lanes."""

    name = "from_lanes"
    cpu_only = True

    def infer(self, operands, attributes):
        (x,), batch = operands, attributes["batch"]
        dtype = same_dtype(self.name, operands)
        if x.ndim < 3:
            raise ShapeError(f"from_lanes: expected a tensor of rank 3 or more, got shape {text(x.shape)}")
        lanes = check_lanes(self.name, x.shape[-1])
        if not same(x.shape[0], batch // lanes) or (isinstance(batch, int) and batch % lanes):
            raise ShapeError(f"from_lanes: expected groups of {lanes} of {batch} images, got shape {text(x.shape)}")
        return [((batch, *x.shape[1:-1]), dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (x,) = gradients, call.operands
        return [None if g is None else to_lanes(g, x.shape[-1])]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        return [images(arrays[0])]

    def cpu(self, call: Call) -> Launch:
        from tapeprop.ops.lanes.cpu.layout import conversion_launch

        groups, *_, lanes = call.operands[0].shape
        return conversion_launch("from_lanes", call, groups, lanes)

    def flops(self, call: Call) -> int:
        return 0

    def samples(self):
        shapes = [(2, 3, 16), (1, 1, 16), (1, 3, 5, 7, 16), (3, 2, 300, 8), (2, 1100, 8)]
        return [Sample(drawn(shape), {"batch": shape[0] * shape[-1]}) for shape in shapes]


def to_lanes(x: Any, lanes: int) -> Tensor:
    """x (N, ...) with the images of a group of `lanes` side by side: (N / lanes, ..., lanes).

    lanes: 16 fill a cache line in float32, 8 in float64. N may be open. ShapeError where lanes do not divide it.
    """
    return record("to_lanes", [x], {"lanes": lanes})[0]


def from_lanes(x: Any, batch: Size) -> Tensor:
    """x (G, ..., lanes) as images: (batch, ...), the inverse of `to_lanes`. ShapeError unless batch is G lanes."""
    return record("from_lanes", [x], {"batch": batch})[0]
