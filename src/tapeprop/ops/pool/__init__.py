"""Pooling over windows of (N, C, H, W): the maximum and the mean, with gradients that close under higher derivatives.

A window stands at every `stride`-th place of the padded image where it fits whole (floor mode). Maximum: padding is
-inf, a tie goes to the first element in row-major order of the window, a NaN wins over everything. Mean: padding is 0
and counts as an element unless `count_include_pad` is False.

The maximum is a choice of positions, made by x alone. `max_pool2d_pick(x, z)` reads z at those positions, and
`max_pool2d_grad(x, dy)` adds dy up at them: each is the other's transpose, hence its gradient. The mean is linear,
and its transpose `avg_pool2d_grad` spreads dy over the windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Shape, Tensor
from tapeprop.ir.dims import same, text
from tapeprop.ops.op import (
    ITEM_BYTES,
    NARROW,
    Attributes,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    check_rank,
    cuda_launch,
    inverse,
    launch,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.pool.functions import (
    adaptive_avg_pool,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from tapeprop.ops.pool.geometry import dilations, extents, picks, pool_attributes, pooled_shape, targets, windows

__all__ = [
    "adaptive_avg_pool",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
]

HERE = "tapeprop.ops.pool.cpu"


# ---- launches and shapes


def _expect_shape(name: str, tensor: Tensor, expected: Shape, what: str) -> None:
    if tensor.ndim != len(expected) or not all(same(a, b) for a, b in zip(tensor.shape, expected)):
        raise ShapeError(f"{name}: expected {what} of shape {text(expected)}, got {text(tensor.shape)}")


def _pool_launch(
    builder: str,
    call: Call,
    image: tuple[int, ...],
    scratch: tuple[int, str] | None = None,
    more: tuple[int, ...] = (),
    **parameters: Any,
) -> Launch:
    """Every array flat, then the geometry. image: the shape (N, C, H, W) that windows slide over.

    scratch: what a worker keeps beside; more: further integers, before the vertical stride. ShapeError where the window
    does not fit.
    """
    arrays, geometry = _geometry(builder, call, image)
    if scratch is not None:
        arrays.append((Ref("scratch"), (1, scratch[0])))
    return launch(
        f"{HERE}:{builder}",
        call,
        arrays,
        (*geometry[:-2], *more, geometry[-2]),
        scratch=scratch,
        stride=geometry[-1],
        dtype=call.results[0].dtype,
        **parameters,
    )


def _places_launch(builder: str, call: Call) -> Launch:
    """That of a kernel that finds the places of the maxima: its scratch has room for whole vectors of 64 bytes."""
    x = call.operands[0]
    lanes = 64 // ITEM_BYTES[x.dtype]
    width = x.shape[3]
    wide = int(pooled_shape(builder, x.shape, call.attributes)[3])  # type: ignore[arg-type]
    (size_h, _), (_, stride), (_, (left, _)) = call["size"], call["stride"], call["padding"]
    room = -(-wide // lanes) * lanes
    span = max(left - (-width // lanes) * lanes, room * stride + extents(call.attributes)[1] - 1)
    scratch = (2 * room + size_h * span, "int32" if x.dtype == "float32" else "int64")
    return _pool_launch(builder, call, x.shape, scratch, (room, span))


def _cuda_launch(
    builder: str, call: Call, image: tuple[int, ...], device: Device, gathers: bool = False, **parameters: Any
) -> Launch:
    """As `_pool_launch`; a thread makes an element of the result. gathers: that is one of the image, not a window's."""
    arrays, geometry = _geometry(builder, call, image)
    made = call.results[0]
    grid, block = device.spread(made.size)
    _, height, width, high, wide, *_ = geometry
    divisors = (width, height, *call["stride"]) if gathers else (wide, high)
    return cuda_launch(
        f"tapeprop.ops.pool.cuda:{builder}", arrays, (*geometry, *map(inverse, divisors)), grid=grid, block=block,
        dtype=made.dtype, narrow=made.size < NARROW, **parameters,
    )  # fmt: skip


def _geometry(
    builder: str, call: Call, image: tuple[int, ...]
) -> tuple[list[tuple[Ref, tuple[int, ...]]], tuple[int, ...]]:
    """(every array flat, the integers that kernels take). ShapeError where the window does not fit."""
    high, wide = pooled_shape(builder, image, call.attributes)[2:]  # sizes may have been open when it was recorded
    (size_h, size_w), (stride_h, stride_w) = call["size"], call["stride"]
    (top, _), (left, _) = call["padding"]
    n, c, height, width = image
    kinds = [*((Ref("operand", i), a) for i, a in enumerate(call.operands)), (Ref("result", 0), call.results[0])]
    arrays: list[tuple[Ref, tuple[int, ...]]] = [(ref, (a.size,)) for ref, a in kinds]
    gaps = dilations(call.attributes) if builder.startswith("max") else ()
    sizes = (n * c, height, width, int(high), int(wide), top, left, size_h, size_w)  # type: ignore[arg-type]
    return arrays, (*sizes, *gaps, stride_h, stride_w)


def _window_size(attributes: Attributes) -> int:
    return attributes["size"][0] * attributes["size"][1]


# ---- maximum


@register
class MaxPool2D(Op):
    """x (N, C, H, W) -> (N, C, H', W'), the maximum of each window."""

    name = "max_pool2d"
    onnx = ("MaxPool",)

    def infer(self, operands, attributes):
        (x,) = operands
        check_rank(self.name, x, 4, "(N, C, H, W)")
        return [(pooled_shape(self.name, x.shape, attributes), same_dtype(self.name, operands))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        return [None if g is None else record("max_pool2d_grad", [call.operands[0], g], call.attributes)[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        (x,) = arrays
        pooled_shape(self.name, x.shape, call.attributes)
        return [windows(x, call.attributes, -np.inf).max(-1)]

    def cpu(self, call: Call) -> Launch:
        x, y = call.operands[0], call.results[0]
        (_, stride), (_, (left, _)) = call["stride"], call["padding"]
        reach = (y.shape[3] - 1) * stride + extents(call.attributes)[1]  # of a row of windows, padding included
        return _pool_launch(self.name, call, x.shape, (max(left + x.shape[3], reach), x.dtype))

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_launch(self.name, call, call.operands[0].shape, device)

    def flops(self, call: Call) -> int:
        return call.results[0].size * _window_size(call.attributes)

    def samples(self) -> list[Sample]:
        return [
            Sample(lambda r, s=shape: [r.standard_normal(s)], attributes) for shape, attributes in _cases(self.name)
        ]


@register
class MaxPool2DPick(Op):
    """(x, z), both (N, C, H, W) -> (N, C, H', W'): z at the position of each window's maximum of x. Linear in z."""

    name = "max_pool2d_pick"

    def infer(self, operands, attributes):
        x, z = operands
        check_rank(self.name, x, 4, "(N, C, H, W)")
        _expect_shape(self.name, z, x.shape, "z")
        return [(pooled_shape(self.name, x.shape, attributes), same_dtype(self.name, operands))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        return [None, None if g is None else record("max_pool2d_grad", [call.operands[0], g], call.attributes)[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        x, z = arrays
        pooled_shape(self.name, x.shape, call.attributes)
        flat = z.reshape(*z.shape[:2], -1)
        places = picks(x, call.attributes).reshape(*z.shape[:2], -1)
        return [np.take_along_axis(flat, places, -1).reshape(call.results[0].shape)]

    def cpu(self, call: Call) -> Launch:
        return _places_launch(self.name, call)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_launch(self.name, call, call.operands[0].shape, device)

    def flops(self, call: Call) -> int:
        return call.results[0].size * _window_size(call.attributes)

    def samples(self) -> list[Sample]:
        return [
            Sample(lambda r, s=shape: [r.standard_normal(s), r.standard_normal(s)], attributes, gradient=(1,))
            for shape, attributes in _cases(self.name)
        ]


@register
class MaxPool2DGrad(Op):
    """(x (N, C, H, W), dy (N, C, H', W')) -> dx: dy added up at the positions of the maxima of x. Linear in dy."""

    name = "max_pool2d_grad"

    def infer(self, operands, attributes):
        x, dy = operands
        check_rank(self.name, x, 4, "(N, C, H, W)")
        _expect_shape(self.name, dy, pooled_shape(self.name, x.shape, attributes), "dy")
        return [(x.shape, same_dtype(self.name, operands))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        return [None, None if g is None else record("max_pool2d_pick", [call.operands[0], g], call.attributes)[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        x, dy = arrays
        pooled_shape(self.name, x.shape, call.attributes)
        n, c, h, w = x.shape
        dx = np.zeros((n * c, h * w), x.dtype)
        planes = np.arange(n * c)[:, None]
        np.add.at(dx, (planes, picks(x, call.attributes).reshape(n * c, -1)), dy.reshape(n * c, -1))
        return [dx.reshape(x.shape)]

    def cpu(self, call: Call) -> Launch:
        return _places_launch(self.name, call)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_launch(self.name, call, call.operands[0].shape, device, gathers=True)

    def flops(self, call: Call) -> int:
        return call.operands[1].size * _window_size(call.attributes)

    def samples(self) -> list[Sample]:
        return [
            Sample(
                lambda r, s=shape, a=attributes: [r.standard_normal(s), r.standard_normal(pooled_shape("", s, a))],
                attributes,
                depth=_window_size(attributes),
                gradient=(1,),
            )
            for shape, attributes in _cases(self.name)
        ]


# ---- mean


@register
class AvgPool2D(Op):
    """x (N, C, H, W) -> (N, C, H', W'), the mean of each window."""

    name = "avg_pool2d"
    onnx = ("AveragePool",)

    def infer(self, operands, attributes):
        (x,) = operands
        check_rank(self.name, x, 4, "(N, C, H, W)")
        return [(pooled_shape(self.name, x.shape, attributes), same_dtype(self.name, operands))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        height, width = call.operands[0].shape[2:]
        attributes = {**call.attributes, "height": height, "width": width}
        return [None if g is None else record("avg_pool2d_grad", [g], attributes)[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        (x,) = arrays
        pooled_shape(self.name, x.shape, call.attributes)
        return [windows(x, call.attributes, 0.0).sum(-1) / _counts(x.shape, call.attributes).astype(x.dtype)]

    def cpu(self, call: Call) -> Launch:
        return _pool_launch(self.name, call, call.operands[0].shape, count_include_pad=call["count_include_pad"])

    def cuda(self, call: Call, device: Device) -> Launch:
        image, whole = call.operands[0].shape, call["count_include_pad"]
        return _cuda_launch(self.name, call, image, device, count_include_pad=whole)

    def flops(self, call: Call) -> int:
        return call.results[0].size * _window_size(call.attributes)

    def samples(self) -> list[Sample]:
        return [
            Sample(lambda r, s=shape: [r.standard_normal(s)], attributes, depth=_window_size(attributes))
            for shape, attributes in _cases(self.name)
        ]


@register
class AvgPool2DGrad(Op):
    """dy (N, C, H', W') -> dx (N, C, height, width): dy / (elements of its window), added up over the windows."""

    name = "avg_pool2d_grad"

    def infer(self, operands, attributes):
        (dy,) = operands
        check_rank(self.name, dy, 4, "(N, C, H', W')")
        image = (*dy.shape[:2], attributes["height"], attributes["width"])
        _expect_shape(self.name, dy, pooled_shape(self.name, image, attributes), "dy")
        return [(image, same_dtype(self.name, operands))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        attributes = {key: value for key, value in call.attributes.items() if key not in ("height", "width")}
        return [None if g is None else record("avg_pool2d", [g], attributes)[0]]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        (dy,) = arrays
        shape = call.results[0].shape
        pooled_shape(self.name, shape, call.attributes)
        planes = shape[0] * shape[1]
        dx = np.zeros((planes, shape[2] * shape[3] + 1), dy.dtype)  # the last column takes what falls into the padding
        share = (dy / _counts(shape, call.attributes).astype(dy.dtype)).reshape(planes, -1, 1)
        places = targets(shape, call.attributes).reshape(1, -1, _window_size(call.attributes))
        np.add.at(dx, (np.arange(planes)[:, None, None], places), share)
        return [dx[:, :-1].reshape(shape)]

    def cpu(self, call: Call) -> Launch:
        return _pool_launch(self.name, call, call.results[0].shape, count_include_pad=call["count_include_pad"])

    def cuda(self, call: Call, device: Device) -> Launch:
        image, whole = call.results[0].shape, call["count_include_pad"]
        return _cuda_launch(self.name, call, image, device, gathers=True, count_include_pad=whole)

    def flops(self, call: Call) -> int:
        return call.operands[0].size * _window_size(call.attributes)

    def samples(self) -> list[Sample]:
        return [
            Sample(
                lambda r, s=shape, a=attributes: [r.standard_normal(pooled_shape("", s, a))],
                {**attributes, "height": shape[2], "width": shape[3]},
                depth=_window_size(attributes),
            )
            for shape, attributes in _cases(self.name)
        ]


def _counts(shape: tuple[int, ...], attributes: Attributes) -> np.ndarray:
    """(H', W') or (): what each window's sum is divided by."""
    if attributes["count_include_pad"]:
        return np.array(_window_size(attributes))
    return (targets(shape, attributes) >= 0).sum(-1)


def _cases(name: str) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """(image shape, attributes) of the generated tests: both strides, overlap, gaps, padding on one side, windows as
    large as the image.
    """
    geometries: list[tuple[Any, ...]] = [
        ((2, 3, 8, 8), 2, 2, 0),
        ((1, 2, 9, 7), 3, 2, 1),
        ((3, 1, 7, 20), (3, 2), 1, ((1, 0), (0, 1))),
        ((1, 1, 5, 5), 5, 1, 0),
        ((2, 1, 6, 11), (1, 3), (3, 4), ((0, 0), (1, 1))),
        ((1, 2, 1, 1), 1, 1, 0),
        ((2, 2, 37, 70), 2, 1, 0),
    ]
    if not name.startswith("avg"):
        dilated: list[tuple[Any, ...]] = [((1, 2, 9, 11), (2, 3), 2, 1, (3, 2)), ((2, 1, 8, 5), 2, 1, 0, (2, 1))]
        geometries = [*geometries, *dilated]
        return [(shape, pool_attributes(name, *rest)) for shape, *rest in geometries]
    return [
        (shape, {**pool_attributes(name, *rest), "count_include_pad": bool(i % 2)})
        for i, (shape, *rest) in enumerate(geometries[1:] + geometries[:1])
    ]
