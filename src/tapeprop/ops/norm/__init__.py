"""Batch normalisation (Ioffe and Szegedy 2015), by the batch's own statistics in training and running ones else.

`momentum` is the fraction of the old running value that is KEPT, and the running variance is the biased one (divided
by the number of values, not that less one), as in Keras and ONNX. The batch's mean and variance are summed in float64
about each chunk's own mean and merged by Chan, Golub and LeVeque (1979): a sum of squares less the square of the sum
would cancel.

The gradient, with x^ = (x - mean) / std over the M values of a channel: dbeta = sum dy, dgamma = sum dy x^, and
dx = gamma / std (dy - dbeta / M - x^ dgamma / M).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Instruction, Shape, Tensor, UndecidedError
from tapeprop.ir.dims import product, same, text
from tapeprop.ops import elementwise
from tapeprop.ops.op import (
    NARROW,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    as_tensor,
    cuda_launch,
    inverse,
    launch,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.reduce import mean as reduce_mean
from tapeprop.ops.reduce import sum as reduce_sum
from tapeprop.ops.shape import expand, reshape

__all__ = ["batch_norm", "batch_norm_inference"]

HERE = "tapeprop.ops.norm.cpu"
BLOCK = 32  # channels that one worker takes at a time where each has one value per sample


def _expect_channels(name: str, x: Tensor, vectors: dict[str, Tensor]) -> None:
    """ShapeError unless x is (N, C, ...) and each vector (C,)."""
    if x.ndim < 2:
        raise ShapeError(f"{name}: expected x of shape (N, C) or (N, C, ...), got {text(x.shape)}")
    for what, vector in vectors.items():
        if vector.ndim != 1 or not same(vector.shape[0], x.shape[1]):
            raise ShapeError(
                f"{name}: expected {what} of shape {text((x.shape[1],))}, one value for each channel of x "
                f"{text(x.shape)}, got {text(vector.shape)}"
            )


def _expect_several_values(shape: Shape) -> None:
    """ShapeError where a channel is known to have a single value; open sizes are checked again in the call."""
    try:
        single = same(product((shape[0], *shape[2:])), 1)
    except UndecidedError:
        return
    if single:
        raise ShapeError(
            "batch_norm: expected several values per channel in training, got one value per channel, "
            f"shape {text(shape)}; use a larger batch"
        )


def _along(x: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """(C,) made to broadcast along the channels of x."""
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def _through_statistics(call: Instruction, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Gradients of (x, running_mean, running_var), given those of all results but y.

    Nobody trains through these, so plain ops will do.
    """
    x, (_, mean, inverse_std, _, _) = call.operands[0], call.results
    to_mean, to_inverse, to_new_mean, to_new_var = gradients
    kept = call.attributes["momentum"]
    means = _sum(to_mean, None if to_new_mean is None else to_new_mean * (1 - kept))
    variances = _sum(
        None if to_new_var is None else to_new_var * (1 - kept),
        None if to_inverse is None else to_inverse * inverse_std * inverse_std * inverse_std * -0.5,
    )
    shift = slope = None
    if means is not None:
        shift = expand(reshape(means, _column(x)), x.shape, mean=True)
    if variances is not None:
        spread = expand(reshape(variances * 2.0, _column(x)), x.shape, mean=True)
        slope = (x - reshape(mean, _column(x))) * spread
    return _sum(shift, slope), *(None if g is None else g * kept for g in (to_new_mean, to_new_var))


def _sum(*parts: Tensor | None) -> Tensor | None:
    """The parts that there are, added up; None where there is none."""
    known = [part for part in parts if part is not None]
    return elementwise.sum_of(*known) if known else None


def _column(x: Tensor) -> Shape:
    """The shape in which (C,) broadcasts along the channels of x."""
    return x.shape[1], *[1] * (x.ndim - 2)


@register
class BatchNorm(Op):
    """(x, gamma, beta, running_mean, running_var) -> (y, batch_mean, inverse_std, new_running_mean, new_running_var).

    x and y are (N, C, ...), the rest (C,). y = (x - batch_mean) inverse_std gamma + beta, with
    inverse_std = 1 / sqrt(batch variance + epsilon). The two running values are state effects: whoever records the op
    stores them.
    """

    name = "batch_norm"
    inplace = ((0, 0), (3, 3), (4, 4))
    onnx = ("BatchNormalization",)

    def infer(self, operands, attributes):
        x, gamma, beta, mean, var = operands
        _expect_channels(self.name, x, {"gamma": gamma, "beta": beta, "running_mean": mean, "running_var": var})
        _expect_several_values(x.shape)
        dtype = same_dtype(self.name, operands)
        return [(x.shape, dtype), *[((x.shape[1],), dtype)] * 4]

    def vjp(self, call, gradients, wanted):
        x, gamma = call.operands[:2]
        _, mean, inverse_std = call.results[:3]
        found: list[Tensor | None] = [None] * 5
        if gradients[0] is not None:
            found[:3] = record("batch_norm_grad", [gradients[0], x, gamma, mean, inverse_std])
        if any(g is not None for g in gradients[1:]):
            through, *found[3:] = _through_statistics(call, gradients[1:])
            if through is not None:
                found[0] = through if found[0] is None else found[0] + through
        return found

    def operands_for(self, call, wanted):
        """Only the new running values depend on the old ones; gamma is as long."""
        x, gamma, beta, mean, var = call.operands
        return x, gamma, beta, mean if wanted[3] else gamma, var if wanted[4] else gamma

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        x, gamma, beta, running_mean, running_var = arrays
        _expect_several_values(x.shape)
        axes = (0, *range(2, x.ndim))
        wide = x.astype(np.float64)
        mean, var = wide.mean(axes), wide.var(axes)
        inverse_std = 1 / np.sqrt(var + call["epsilon"])
        y = (wide - _along(x, mean)) * _along(x, inverse_std * gamma) + _along(x, beta)
        kept = call["momentum"]
        new_mean, new_var = kept * running_mean + (1 - kept) * mean, kept * running_var + (1 - kept) * var
        return [a.astype(x.dtype) for a in (y, mean, inverse_std, new_mean, new_var)]

    def cpu(self, call: Call) -> Launch:
        _expect_several_values(call.operands[0].shape)
        settings = [int(np.float64(call[name]).view(np.int64)) for name in ("momentum", "epsilon")]
        return _launch(self.name, call, settings)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        _expect_several_values(call.operands[0].shape)
        return _cuda_launches(call, device, forward=True)

    def parts(self, call: Call) -> int:
        return _parts(call)

    def flops(self, call: Call) -> int:
        return 8 * call.operands[0].size

    def samples(self) -> list[Sample]:
        return [
            Sample(
                lambda r, s=shape: [
                    *_operands(r, s),
                    r.standard_normal(s[1]),
                    r.uniform(0.5, 2, s[1]),
                ],
                {"momentum": momentum, "epsilon": epsilon},
                depth=shape[0] * int(np.prod(shape[2:])),
                gradient=(0, 1, 2, 3, 4),
            )
            for shape, momentum, epsilon in [
                ((2, 3, 4, 5), 0.9, 1e-5),
                ((6, 5), 0.75, 1e-3),
                ((70, 33), 0.9, 1e-5),
                ((1, 2, 7), 0.0, 1e-5),
                ((2, 1, 1), 1.0, 1e-2),
                ((3, 2, 45, 37), 0.9, 1e-5),
            ]
        ]


def _launch(builder: str, call: Call, settings: Sequence[int]) -> Launch:
    """The kernel for planes, or where a channel has one value per sample, that for columns with sums in scratch.

    Arrays of x's shape are flat, read as (N, C, spatial).
    """
    n, c, *spatial = call.results[0].shape
    sizes = (n, c, int(np.prod(spatial, dtype=np.int64)))
    dtype = call.results[0].dtype
    arrays: list[tuple[Ref, tuple[int, ...]]] = [(Ref("operand", i), (a.size,)) for i, a in enumerate(call.operands)]
    arrays += [(Ref("result", i), (a.size,)) for i, a in enumerate(call.results)]
    if sizes[2] > 1:
        return launch(f"{HERE}:{builder}_planes", call, arrays, (*sizes, *settings), dtype=dtype)
    arrays.append((Ref("scratch"), (1, 2 * BLOCK)))
    scratch = (2 * BLOCK, "float64")
    return launch(f"{HERE}:{builder}_columns", call, arrays, (*sizes, *settings), scratch=scratch, dtype=dtype)


def _cuda_launches(call: Call, device: Device, forward: bool) -> list[Launch]:
    """Chunks of channels, their merge, and the elements: see `cuda`."""
    n, c, *spatial = call.results[0].shape
    size = int(np.prod(spatial, dtype=np.int64))
    dtype, count = call.results[0].dtype, n * size
    name = "batch_norm" if forward else "batch_norm_grad"
    # as many chunks as fill the device, each long enough to be worth a block (or a thread) of its own
    least, share = (8 * device.block, device.blocks) if size > 1 else (16, device.blocks * device.block)
    chunks = max(1, min(-(-count // least), max(2, share // c)))
    length = -(-count // chunks)
    chunks = -(-count // length)
    where = "planes" if size > 1 else "columns"
    over_chunks = device.rows(c * chunks) if size > 1 else device.spread(c * chunks)
    over_channels, over_elements = device.rows(c, chunks), device.spread(call.results[0].size)
    scratch = (2 * c * (chunks + 1), "float64")
    parts = (Ref("scratch"), (2 * c * chunks,))
    kept = (Ref("scratch", 0, 16 * c * chunks), (2 * c,))
    sizes = (n, c, size, chunks, length)
    by_size: dict[str, Any] = {"wide": count >= NARROW} if size > 1 else {}  # a plane's element finds its sample
    chunk_sizes = (*sizes, inverse(size)) if size > 1 else sizes
    wide = call.results[0].size + device.blocks * device.block >= NARROW

    def of(kernel: str, arrays: Sequence, integers: Sequence[int], cut: tuple, **more: Any) -> Launch:
        whole = {} if kernel.startswith("normalise") else {"flops": 0, "traffic": 0}  # the op's cost counts once
        return cuda_launch(
            f"tapeprop.ops.norm.cuda:{kernel}", arrays, integers, grid=cut[0], block=cut[1], scratch=scratch,
            label=f"{name}.{kernel.partition('_')[0]}", dtype=dtype, **whole, **more,
        )  # fmt: skip

    def operand(*numbers: int) -> list:
        return [(Ref("operand", i), (call.operands[i].size,)) for i in numbers]

    def result(*numbers: int) -> list:
        return [(Ref("result", i), (call.results[i].size,)) for i in numbers]

    places = (c, size, inverse(size), inverse(c))
    if forward:
        settings = [int(np.float64(call[name]).view(np.int64)) for name in ("momentum", "epsilon")]
        return [
            of(f"moments_{where}", [*operand(0), parts], chunk_sizes, over_chunks, **by_size),
            of(
                "merge_moments",
                [*operand(1, 3, 4), *result(1, 2, 3, 4), parts, kept],
                (*sizes, *settings),
                over_channels,
            ),
            of("normalise", [*operand(0, 2), kept, *result(0)], places, over_elements, wide=wide),
        ]
    return [
        of(f"sums_{where}", [*operand(0, 1, 3), parts], chunk_sizes, over_chunks, **by_size),
        of("merge_sums", [*operand(4), *result(1, 2), parts, kept], sizes, over_channels),
        of("normalise_grad", [*operand(0, 1, 2, 3, 4), kept, *result(0)], places, over_elements, wide=wide),
    ]


def _parts(call: Call) -> int:
    """How many workers can share a call of `_launch`."""
    _, channels, *spatial = call.results[0].shape
    return channels if int(np.prod(spatial, dtype=np.int64)) > 1 else -(-channels // BLOCK)


@register
class BatchNormGrad(Op):
    """(dy, x (N, C, ...), gamma, batch_mean, inverse_std (C,)) -> (dx like x, dgamma (C,), dbeta (C,))."""

    name = "batch_norm_grad"
    inplace = ((0, 0), (0, 1))

    def infer(self, operands, attributes):
        dy, x, gamma, mean, inverse_std = operands
        _expect_channels(self.name, x, {"gamma": gamma, "batch_mean": mean, "inverse_std": inverse_std})
        if dy.ndim != x.ndim or not all(same(a, b) for a, b in zip(dy.shape, x.shape)):
            raise ShapeError(f"{self.name}: expected dy of x's shape {text(x.shape)}, got {text(dy.shape)}")
        dtype = same_dtype(self.name, operands)
        return [(x.shape, dtype), ((x.shape[1],), dtype), ((x.shape[1],), dtype)]

    def vjp(self, call, gradients, wanted):
        """Of <g, dx> + <h, dgamma> + <k, dbeta>, where dx = gamma / std (dy - mean dy - x^ mean(x^ dy)). Rare, so in plain ops."""
        dy, x, *vectors = call.operands
        axes, column = (0, *range(2, x.ndim)), _column(x)
        gamma, mean, inverse_std = (reshape(v, column) for v in vectors)
        g, h, k = (t if t is None or i == 0 else reshape(t, column) for i, t in enumerate(gradients))
        centred = x - mean
        normal = centred * inverse_std
        scaled = through_mean = to_gamma = to_inverse = to_x = to_mean = None
        if g is not None:
            scaled, along = g * (gamma * inverse_std), reduce_mean(dy * normal, axes, True)
            h, k = _sum(h, -reduce_mean(scaled * normal, axes, True)), _sum(k, -reduce_mean(scaled, axes, True))
            through_mean = -(scaled * along)
            slope = reduce_sum(g * (dy - reduce_mean(dy, axes, True) - normal * along), axes, True)
            to_gamma, to_inverse = inverse_std * slope, gamma * slope
        to_dy = _sum(scaled, None if h is None else normal * h, k)
        to_normal = _sum(through_mean, None if h is None else dy * h)
        if to_normal is not None:
            to_x = to_normal * inverse_std
            to_mean = -reduce_sum(to_x, axes)
            to_inverse = _sum(to_inverse, reduce_sum(to_normal * centred, axes, True))
        found = (None if t is None else reshape(t, x.shape[1:2]) for t in (to_gamma, to_mean, to_inverse))
        return [None if to_dy is None else expand(to_dy, x.shape), to_x, *found]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        dy, x, gamma, mean, inverse_std = (a.astype(np.float64) for a in arrays)
        axes = (0, *range(2, x.ndim))
        normal = (x - _along(x, mean)) * _along(x, inverse_std)
        dgamma, dbeta = (dy * normal).sum(axes), dy.sum(axes)
        values = x.size // x.shape[1]
        dx = dy - _along(x, dbeta / values) - normal * _along(x, dgamma / values)
        return [a.astype(arrays[0].dtype) for a in (dx * _along(x, gamma * inverse_std), dgamma, dbeta)]

    def cpu(self, call: Call) -> Launch:
        return _launch(self.name, call, ())

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        return _cuda_launches(call, device, forward=False)

    def parts(self, call: Call) -> int:
        return _parts(call)

    def flops(self, call: Call) -> int:
        return 10 * call.operands[0].size

    def samples(self) -> list[Sample]:
        return [
            Sample(
                lambda r, s=shape: [
                    r.standard_normal(s),
                    *_operands(r, s)[:2],
                    r.standard_normal(s[1]),
                    r.uniform(0.5, 2, s[1]),
                ],
                depth=shape[0] * int(np.prod(shape[2:])),
                gradient=(0, 1, 2, 3, 4),
            )
            for shape in [(2, 3, 4, 5), (6, 5), (70, 33), (1, 2, 7), (2, 1, 1), (3, 2, 45, 37)]
        ]


def _operands(r: np.random.Generator, shape: tuple[int, ...]) -> list[np.ndarray]:
    """x, gamma, beta."""
    return [r.standard_normal(shape), r.uniform(0.5, 2, shape[1]), r.standard_normal(shape[1])]


def batch_norm(
    x: Any, gamma: Any, beta: Any, running_mean: Any, running_var: Any, momentum: float = 0.9, epsilon: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Normalises each channel of x (N, C, ...) by the batch's mean and variance; the other operands are (C,), of one
    floating dtype.

    Gives (y, batch_mean, inverse_std, new_running_mean, new_running_var). momentum: the fraction of the running
    values that is kept. ShapeError where a channel has one value only.
    """
    operands = [as_tensor(a) for a in (x, gamma, beta, running_mean, running_var)]
    y, mean, inverse_std, new_mean, new_var = record(
        "batch_norm", operands, {"momentum": float(momentum), "epsilon": float(epsilon)}
    )
    return y, mean, inverse_std, new_mean, new_var


def batch_norm_inference(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, epsilon: float = 1e-5) -> Tensor:
    """(x - mean) gamma / sqrt(var + epsilon) + beta, of the shape and dtype of x (N, C, ...); the other operands are
    (C,).

    The mean is taken off first: folded into beta it would cancel where it is large beside the deviation.
    """
    x, gamma, beta, mean, var = (as_tensor(a) for a in (x, gamma, beta, mean, var))
    _expect_channels("batch_norm", x, {"gamma": gamma, "beta": beta, "mean": mean, "var": var})
    scale = gamma / elementwise.sqrt(var + float(epsilon))
    mean, scale, beta = (reshape(a, _column(x)) for a in (mean, scale, beta))
    return (x - mean) * scale + beta
