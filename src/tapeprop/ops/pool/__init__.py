"""Pooling over windows of (N, C, H, W): the maximum and the mean, with gradients that close under higher derivatives.

A window stands at every `stride`-th place of the padded image where it fits whole (floor mode). Maximum: padding is
-inf, a tie goes to the first element in row-major order of the window, a NaN wins over everything. Mean: padding is 0
and counts as an element unless `count_include_pad` is False.

The maximum is a choice of positions, made by x alone. `max_pool2d_pick(x, z)` reads z at those positions, and
`max_pool2d_grad(x, dy)` adds dy up at them: each is the other's transpose, hence its gradient. The mean is linear,
and its transpose `avg_pool2d_grad` spreads dy over the windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Shape, Size, Tensor, UndecidedError
from tapeprop.ir.dims import at_least, same, text
from tapeprop.ops.op import (
    NARROW,
    Attributes,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    as_tensor,
    check_rank,
    cuda_launch,
    inverse,
    launch,
    record,
    register,
    same_dtype,
)

__all__ = ["avg_pool2d", "max_pool2d"]

HERE = "tapeprop.ops.pool.cpu"


# ---- geometry


def pool_attributes(
    name: str, size: int | Sequence[int], stride: int | Sequence[int] | None, padding: Any
) -> dict[str, Any]:
    """The attributes of a pooling op: size, stride (vertical, horizontal), padding ((top, bottom), (left, right)).

    size, stride, padding: one int for all, or one per axis; padding also a (before, after) pair per axis; stride
    None: the size. ShapeError where they make no sense.
    """
    sizes = _pair(name, "size", size, 1)
    strides = sizes if stride is None else _pair(name, "stride", stride, 1)
    sides: list[tuple[int, int]] = []
    for given in (padding, padding) if isinstance(padding, int | np.integer) else tuple(padding):
        sides.append(_pair(name, "padding", given, 0))
    if len(sides) != 2:
        raise ShapeError(f"{name}: expected padding ((top, bottom), (left, right)), got {padding}")
    for extent, side in zip(sizes, sides):
        if 2 * max(side) > extent:
            raise ShapeError(
                f"{name}: expected padding of at most half the window {sizes}, got {tuple(sides)}; "
                "pad less or widen the window"
            )
    return {"size": sizes, "stride": strides, "padding": tuple(sides)}


def _pair(name: str, what: str, value: Any, least: int) -> tuple[int, int]:
    numbers = (value, value) if isinstance(value, int | np.integer) else tuple(value)
    if len(numbers) != 2 or any(not isinstance(n, int | np.integer) or n < least for n in numbers):
        raise ShapeError(f"{name}: expected {what} to be an int or two ints, each >= {least}, got {value}")
    return int(numbers[0]), int(numbers[1])


def pooled_shape(name: str, shape: Shape, attributes: Attributes) -> Shape:
    """(N, C, H', W') of pooling (N, C, H, W). ShapeError where a window is larger than the padded image."""
    found = []
    for extent, size, stride, padding in zip(
        shape[2:], attributes["size"], attributes["stride"], attributes["padding"], strict=True
    ):
        room = extent + sum(padding)
        if not _may_be_at_least(room, size):
            raise ShapeError(
                f"{name}: expected an image of at least the window {attributes['size']} after padding, "
                f"got {text(shape)} with padding {attributes['padding']}; use a smaller window or fewer pooling layers"
            )
        found.append((room - size) // stride + 1)
    return (*shape[:2], *found)


def _may_be_at_least(a: Size, bound: int) -> bool:
    """False only where it is known: an open size is checked again when the kernel is chosen."""
    try:
        return at_least(a, bound)
    except UndecidedError:
        return True


def _expect_shape(name: str, tensor: Tensor, expected: Shape, what: str) -> None:
    if tensor.ndim != len(expected) or not all(same(a, b) for a, b in zip(tensor.shape, expected)):
        raise ShapeError(f"{name}: expected {what} of shape {text(expected)}, got {text(tensor.shape)}")


def _windows(x: np.ndarray, attributes: Attributes, fill: float) -> np.ndarray:
    """(N, C, H', W', elements of a window, in row-major order)."""
    (kh, kw), (sh, sw) = attributes["size"], attributes["stride"]
    padded = np.pad(x, ((0, 0), (0, 0), *attributes["padding"]), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), (2, 3))[:, :, ::sh, ::sw]
    return view.reshape(*view.shape[:4], kh * kw)


def _targets(shape: tuple[int, ...], attributes: Attributes) -> np.ndarray:
    """(H', W', window): the row-major index in the image of every element of every window; -1 in the padding."""
    h, w = shape[2:]
    index = np.arange(h * w, dtype=np.float64).reshape(1, 1, h, w)
    return _windows(index, attributes, -1.0)[0, 0].astype(np.int64)


def _picks(x: np.ndarray, attributes: Attributes) -> np.ndarray:
    """(N, C, H', W'): the row-major index in the image of each window's maximum."""
    targets = np.broadcast_to(_targets(x.shape, attributes), _windows(x, attributes, -np.inf).shape)
    values = _windows(x, attributes, -np.inf)
    # argmax gives the first NaN or maximum; where all is -inf, the first element that is no padding
    place = np.where(values.max(-1) == -np.inf, np.argmax(targets >= 0, -1), np.argmax(values, -1))
    return np.take_along_axis(targets, place[..., None], -1)[..., 0]


def _pool_launch(builder: str, call: Call, image: tuple[int, ...], places: bool = False, **parameters: Any) -> Launch:
    """Every array flat, then the geometry. image: the shape (N, C, H, W) that windows slide over.

    places: whether the kernel keeps the places of the maxima of a row of windows. ShapeError where the window does not
    fit.
    """
    arrays, geometry = _geometry(builder, call, image)
    dtype = call.results[0].dtype
    scratch = None
    if places:
        wide = geometry[4]
        arrays.append((Ref("scratch"), (1, wide)))
        scratch = (wide, "int32" if dtype == "float32" else "int64")
    return launch(
        f"{HERE}:{builder}",
        call,
        arrays,
        geometry[:-1],
        scratch=scratch,
        stride=geometry[-1],
        dtype=dtype,
        **parameters,
    )


def _cuda_launch(
    builder: str, call: Call, image: tuple[int, ...], device: Device, gathers: bool = False, **parameters: Any
) -> Launch:
    """As `_pool_launch`; a thread makes an element of the result. gathers: that is one of the image, not a window's."""
    arrays, geometry = _geometry(builder, call, image)
    made = call.results[0]
    grid, block = device.spread(made.size)
    _, height, width, high, wide, *_, stride_h, stride_w = geometry
    divisors = (width, height, stride_h, stride_w) if gathers else (wide, high)
    return cuda_launch(
        f"tapeprop.ops.pool.cuda:{builder}", arrays, (*geometry, *map(inverse, divisors)), grid=grid, block=block,
        dtype=made.dtype, narrow=made.size < NARROW, **parameters,
    )  # fmt: skip


def _geometry(
    builder: str, call: Call, image: tuple[int, ...]
) -> tuple[list[tuple[Ref, tuple[int, ...]]], tuple[int, ...]]:
    """(every array flat, the integers that kernels take). ShapeError where the window does not fit."""
    pooled_shape(builder, image, call.attributes)  # its sizes may have been open when the call was recorded
    (size_h, size_w), (stride_h, stride_w) = call["size"], call["stride"]
    (top, bottom), (left, right) = call["padding"]
    n, c, height, width = image
    high, wide = (height + top + bottom - size_h) // stride_h + 1, (width + left + right - size_w) // stride_w + 1
    kinds = [*((Ref("operand", i), a) for i, a in enumerate(call.operands)), (Ref("result", 0), call.results[0])]
    arrays: list[tuple[Ref, tuple[int, ...]]] = [(ref, (a.size,)) for ref, a in kinds]
    return arrays, (n * c, height, width, high, wide, top, left, size_h, size_w, stride_h, stride_w)


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
        return [_windows(x, call.attributes, -np.inf).max(-1)]

    def cpu(self, call: Call) -> Launch:
        return _pool_launch(self.name, call, call.operands[0].shape)

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
        picks = _picks(x, call.attributes).reshape(*z.shape[:2], -1)
        return [np.take_along_axis(flat, picks, -1).reshape(call.results[0].shape)]

    def cpu(self, call: Call) -> Launch:
        return _pool_launch(self.name, call, call.operands[0].shape, places=True)

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
        np.add.at(dx, (planes, _picks(x, call.attributes).reshape(n * c, -1)), dy.reshape(n * c, -1))
        return [dx.reshape(x.shape)]

    def cpu(self, call: Call) -> Launch:
        return _pool_launch(self.name, call, call.operands[0].shape, places=True)

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


def max_pool2d(x: Any, size: Any, stride: Any = None, padding: Any = ((0, 0), (0, 0))) -> Tensor:
    """The maximum of each window: (N, C, H, W) -> (N, C, (H + top + bottom - size) // stride + 1, likewise).

    size, stride: an int or (vertical, horizontal); stride None: the size. padding: ((top, bottom), (left, right)) of
    -inf, or an int for all sides. ShapeError where the padding exceeds half the window, or the window the padded
    image.
    """
    return record("max_pool2d", [as_tensor(x)], pool_attributes("max_pool2d", size, stride, padding))[0]


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
        return [_windows(x, call.attributes, 0.0).sum(-1) / _counts(x.shape, call.attributes).astype(x.dtype)]

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
        targets = _targets(shape, call.attributes).reshape(1, -1, _window_size(call.attributes))
        np.add.at(dx, (np.arange(planes)[:, None, None], targets), share)
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
    return (_targets(shape, attributes) >= 0).sum(-1)


def avg_pool2d(
    x: Any, size: Any, stride: Any = None, padding: Any = ((0, 0), (0, 0)), count_include_pad: bool = True
) -> Tensor:
    """The mean of each window: (N, C, H, W) -> (N, C, (H + top + bottom - size) // stride + 1, likewise).

    count_include_pad: whether padding counts as zeros, or a window's sum is divided by the number of its real elements.
    Else as `max_pool2d`.
    """
    attributes = pool_attributes("avg_pool2d", size, stride, padding)
    return record("avg_pool2d", [as_tensor(x)], {**attributes, "count_include_pad": bool(count_include_pad)})[0]


def _cases(name: str) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """(image shape, attributes) of the generated tests: both strides, overlap, gaps, padding on one side, windows as
    large as the image.
    """
    geometries: list[tuple[tuple[int, ...], Any, Any, Any]] = [
        ((2, 3, 8, 8), 2, 2, 0),
        ((1, 2, 9, 7), 3, 2, 1),
        ((3, 1, 7, 20), (3, 2), 1, ((1, 0), (0, 1))),
        ((1, 1, 5, 5), 5, 1, 0),
        ((2, 1, 6, 11), (1, 3), (3, 4), ((0, 0), (1, 1))),
        ((1, 2, 1, 1), 1, 1, 0),
        ((2, 2, 37, 70), 2, 1, 0),
    ]
    if not name.startswith("avg"):
        return [(shape, pool_attributes(name, *rest)) for shape, *rest in geometries]
    return [
        (shape, {**pool_attributes(name, *rest), "count_include_pad": bool(i % 2)})
        for i, (shape, *rest) in enumerate(geometries[1:] + geometries[:1])
    ]
