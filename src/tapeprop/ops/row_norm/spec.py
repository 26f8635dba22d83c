"""The ops of row norms, for x (samples, period, segments, inner), and how samples are dealt out for the parameters' gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Shape, Size, Tensor
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
    cuda_launch,
    float_bits,
    inverse,
    launch,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.reduce import mean as reduce_mean
from tapeprop.ops.reduce import sum as reduce_sum
from tapeprop.ops.shape import cast, expand, reshape
from tapeprop.ops.shape.rules import refuse_empty

HERE = "tapeprop.ops.row_norm.cpu"
CUDA = "tapeprop.ops.row_norm.cuda"
CHUNKS = 16  # that samples are dealt out to: as many workers have something to do where the period is 1
FEW_CHUNKS = 8  # where gamma is so long that the chunks' sums would take more room than PARTIALS
PARTIALS = 2**16
TURN = 4096  # elements of a turn: neighbours, so that workers meet in few cache lines
ROW = (2, 3)  # the axes of a row


def deal(shape: Shape) -> dict[str, int]:
    """How the samples of an x (samples, period, segments, inner) are dealt out: {"chunks": ..., "turn": ...}."""
    samples, *rest = shape
    size, vector = product(rest), product(rest[:2])
    turn = max(1, TURN // size) if isinstance(size, int) else 1
    chunks = min(CHUNKS, max(FEW_CHUNKS, PARTIALS // vector)) if isinstance(vector, int) else FEW_CHUNKS
    return {"chunks": min(chunks, -(-samples // turn)) if isinstance(samples, int) else chunks, "turn": turn}


def _dealt(parts: Tensor, samples: Size, chunks: int, turn: int) -> Tensor:
    """(chunks, period, segments) -> (samples, period, segments, 1): to each sample what its chunk has."""
    _, period, segments = parts.shape
    if chunks == 1:
        return reshape(parts, (1, period, segments, 1))
    turns = (samples + (chunks * turn - 1)) // (chunks * turn)
    repeated = expand(reshape(parts, (1, chunks, 1, period, segments)), (turns, chunks, turn, period, segments))
    flat = reshape(repeated, (turns * chunks * turn, period, segments, 1))
    return flat[:samples]


def _column(statistic: Tensor, x: Tensor) -> Tensor:
    """A float64 statistic (samples * period,) as (samples, period, 1, 1) in x's dtype."""
    return cast(reshape(statistic, (x.shape[0], x.shape[1], 1, 1)), x.dtype)


def _sum(*parts: Tensor | None) -> Tensor | None:
    """The parts that there are, added up; None where there is none."""
    known = [part for part in parts if part is not None]
    return elementwise.sum_of(*known) if known else None


def _expect(name: str, x: Tensor, vectors: Sequence[Tensor], statistics: Sequence[Tensor] = ()) -> None:
    """ShapeError unless x is (samples, period, segments, inner), each vector (period, segments) and each statistic fits."""
    refuse_empty(name, x.shape)
    if x.ndim != 4:
        raise ShapeError(f"{name}: expected x of shape (samples, period, segments, inner), got {text(x.shape)}")
    for found, shape in [
        *((v, x.shape[1:3]) for v in vectors),
        *((s, (x.shape[0] * x.shape[1],)) for s in statistics),
    ]:
        if found.ndim != len(shape) or not all(same(a, b) for a, b in zip(found.shape, shape)):
            raise ShapeError(
                f"{name}: expected an operand of shape {text(shape)} for x {text(x.shape)}, got {text(found.shape)}"
            )


def _flat(call: Call, results: Sequence[int] | None = None) -> list[tuple[Ref, tuple[int, ...]]]:
    """Every operand, and the results (or those listed), flat."""
    chosen = range(len(call.results)) if results is None else results
    return [
        *((Ref("operand", i), (a.size,)) for i, a in enumerate(call.operands)),
        *((Ref("result", i), (call.results[i].size,)) for i in chosen),
    ]


@register
class RowNorm(Op):
    """(x (samples, period, segments, inner), gamma, beta (period, segments)) -> (y like x, mean, inverse_std (samples * period,)).

    y = (x - mean) inverse_std gamma + beta, inverse_std = 1 / sqrt(variance + epsilon), float64 as the mean. center: whether there is
    a mean; without, it is 0 and the variance the mean of the squares.
    """

    name = "row_norm"
    inplace = ((0, 0),)
    onnx = ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization")

    def infer(self, operands, attributes):
        x, gamma, beta = operands
        _expect(self.name, x, (gamma, beta))
        rows = (x.shape[0] * x.shape[1],)
        return [(x.shape, same_dtype(self.name, operands)), (rows, "float64"), (rows, "float64")]

    def vjp(self, call, gradients, wanted):
        (x, gamma, _), (_, mean, inverse_std) = call.operands, call.results
        g, to_mean, to_inverse = gradients
        center = call.attributes["center"]
        found: list[Tensor | None] = [None] * 3
        if g is not None:
            attributes = {"center": center, **deal(x.shape)}
            found[0], *parts = record("row_norm_grad", [g, x, gamma, mean, inverse_std], attributes)
            found[1:] = [cast(reduce_sum(part, 0), x.dtype) for part in parts]
        if to_mean is not None and center:
            found[0] = _sum(found[0], expand(_column(to_mean, x), x.shape, mean=True))
        if to_inverse is not None:
            slope = _column(to_inverse * inverse_std * inverse_std * inverse_std * -1.0, x)
            found[0] = _sum(found[0], (x - _column(mean, x)) * expand(slope, x.shape, mean=True))
        return found

    def operands_for(self, call, wanted):
        """The statistics depend on x alone; gamma is like beta."""
        x, gamma, beta = call.operands
        return (x, gamma, beta) if wanted[0] else (x, gamma, gamma)

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        x, gamma, beta = (a.astype(np.float64) for a in arrays)
        mean = x.mean(ROW, keepdims=True) if call["center"] else np.zeros((*x.shape[:2], 1, 1))
        inverse_std = 1 / np.sqrt(np.square(x - mean).mean(ROW, keepdims=True) + call["epsilon"])
        y = (x - mean) * inverse_std * gamma[..., None] + beta[..., None]
        return [y.astype(arrays[0].dtype), mean.reshape(-1), inverse_std.reshape(-1)]

    def cpu(self, call: Call) -> Launch:
        settings = (float_bits(call["epsilon"]), call["center"])
        integers = (*call.operands[0].shape, *settings)
        return launch(f"{HERE}:row_norm", call, _flat(call), integers, dtype=call.operands[0].dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_rows(call, device, "row_norm", _flat(call), (float_bits(call["epsilon"]), call["center"]))

    def flops(self, call: Call) -> int:
        return 8 * call.operands[0].size

    def parts(self, call: Call) -> int:
        return call.results[1].size

    def samples(self) -> list[Sample]:
        return [
            Sample(
                lambda r, s=shape: [r.standard_normal(s), r.uniform(0.5, 2, s[1:3]), r.standard_normal(s[1:3])],
                {"epsilon": epsilon, "center": center},
                depth=shape[2] * shape[3],
                gradient=(0, 1, 2),
            )
            for shape, epsilon, center in CASES
        ]


CASES: list[tuple[tuple[int, ...], float, bool]] = [
    ((5, 1, 37, 1), 1e-5, True),
    ((70, 1, 8, 1), 1e-3, False),
    ((3, 2, 3, 20), 1e-5, True),
    ((2, 3, 2, 5), 1e-6, False),
    ((1, 1, 1, 9000), 1e-5, True),
    ((4, 1, 1, 1), 1e-2, True),
    ((300, 4, 2, 3), 1e-5, True),
    ((1, 1, 4500, 1), 1e-5, False),
]


def _cuda_rows(call: Call, device: Device, kernel: str, arrays: Sequence, more: Sequence[int]) -> Launch:
    """A block for each row."""
    samples, period, segments, inner = call.operands[0].shape
    grid, block = device.rows(samples * period, segments * inner)
    integers = (samples * period, period, segments * inner, segments, inner, inverse(inner), *more)
    wide = segments * inner >= NARROW
    dtype = call.operands[0].dtype
    return cuda_launch(f"{CUDA}:{kernel}", arrays, integers, grid=grid, block=block, dtype=dtype, wide=wide)


@register
class RowNormGrad(Op):
    """(dy, x (samples, period, segments, inner), gamma (period, segments), mean, inverse_std (samples * period,)) -> (dx like x,
    to_gamma, to_beta (chunks, period, segments)).

    The last two, float64, are each chunk's share of dgamma and dbeta.
    """

    name = "row_norm_grad"
    inplace = ((0, 0), (0, 1))
    fixed_float64 = (3, 4)

    def infer(self, operands, attributes):
        dy, x, gamma, mean, inverse_std = operands
        _expect(self.name, x, (gamma,), (mean, inverse_std))
        if dy.ndim != x.ndim or not all(same(a, b) for a, b in zip(dy.shape, x.shape)):
            raise ShapeError(f"{self.name}: expected dy of x's shape {text(x.shape)}, got {text(dy.shape)}")
        parts = (attributes["chunks"], *gamma.shape), "float64"
        return [(x.shape, same_dtype(self.name, operands[:3])), parts, parts]

    def vjp(self, call, gradients, wanted):
        """Of <u, dx> + <h, to_gamma> + <k, to_beta>. Rare, so in plain ops."""
        dy, x, gamma, mean, inverse_std = call.operands
        u, *parts = gradients
        center, chunks, turn = (call.attributes[name] for name in ("center", "chunks", "turn"))
        h, k = (None if t is None else cast(_dealt(t, x.shape[0], chunks, turn), x.dtype) for t in parts)
        column = reshape(gamma, (1, *gamma.shape, 1))
        inverse_column = _column(inverse_std, x)
        centred = x - _column(mean, x)
        normal = centred * inverse_column
        scaled = to_flow = to_gamma = to_inverse = through = to_x = to_mean = None
        if u is not None:
            flow, v = dy * column, u * inverse_column
            along, by = reduce_mean(flow * normal, ROW, True), reduce_mean(v * normal, ROW, True)
            apart, to_flow = flow - normal * along, v - normal * by
            if center:
                apart, to_flow = apart - reduce_mean(flow, ROW, True), to_flow - reduce_mean(v, ROW, True)
            scaled, through = to_flow * column, -(v * along + flow * by)
            to_gamma = reduce_sum(dy * to_flow, (0, 3))
            to_inverse = reduce_sum(u * apart, ROW, True)
        to_dy = _sum(scaled, None if h is None else normal * h, k)
        to_normal = _sum(through, None if h is None else dy * h)
        if to_normal is not None:
            to_x = to_normal * inverse_column
            to_mean = -reduce_sum(to_x, ROW)
            to_inverse = _sum(to_inverse, reduce_sum(to_normal * centred, ROW, True))
        found = (None if t is None else cast(reshape(t, mean.shape), "float64") for t in (to_mean, to_inverse))
        return [None if to_dy is None else expand(to_dy, x.shape), to_x, to_gamma, *found]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        dy, x, gamma, mean, inverse_std = (a.astype(np.float64) for a in arrays)
        inverse_std = inverse_std.reshape(*x.shape[:2], 1, 1)
        normal = (x - mean.reshape(*x.shape[:2], 1, 1)) * inverse_std
        flow = dy * gamma[..., None]
        apart = flow - normal * (flow * normal).mean(ROW, keepdims=True)
        if call["center"]:
            apart = apart - flow.mean(ROW, keepdims=True)
        chunk = np.arange(len(x)) // call["turn"] % call["chunks"]
        parts = np.zeros((2, *call.results[1].shape))
        np.add.at(parts[0], chunk, (dy * normal).sum(3))
        np.add.at(parts[1], chunk, dy.sum(3))
        return [(apart * inverse_std).astype(arrays[1].dtype), *parts]

    def cpu(self, call: Call) -> Launch:
        x = call.operands[1]
        integers = (*x.shape, call["chunks"], call["turn"], call["center"])
        return launch(f"{HERE}:row_norm_grad", call, _flat(call), integers, dtype=x.dtype)

    def cuda_rows(self, call: Call, device: Device) -> list[Launch]:
        samples, period, segments, inner = call.operands[1].shape
        first = _cuda_rows(call, device, "row_norm_grad", _flat(call, [0]), [call["center"]])
        # dx may lie over dy or x, which the sums of the chunks read: they come first
        count, chunks, turn = period * segments, call["chunks"], call["turn"]
        arrays = [*_flat(call, [1, 2])[:2], *_flat(call, [1, 2])[3:]]
        if inner == 1:
            grid, block = device.spread(chunks * count)
        else:
            grid, block = device.rows(chunks * count, -(-samples // chunks) * inner)
        integers = (samples, period, segments, inner, chunks, turn, inverse(inner), inverse(turn))
        parameters: dict[str, Any] = {} if inner == 1 else {"wide": samples * inner >= NARROW}
        sums = cuda_launch(
            f"{CUDA}:parameter_sums_{'elements' if inner == 1 else 'segments'}", arrays, integers, grid=grid,
            block=block, label="row_norm_grad.parameters", flops=0, traffic=0, dtype=call.operands[1].dtype, **parameters,
        )  # fmt: skip
        return [sums, first]

    def flops(self, call: Call) -> int:
        return 12 * call.operands[0].size

    def parts(self, call: Call) -> int:
        return call["chunks"] * call.operands[1].shape[1]

    def samples(self) -> list[Sample]:
        return [
            Sample(
                lambda r, s=shape: [
                    r.standard_normal(s),
                    r.standard_normal(s),
                    r.uniform(0.5, 2, s[1:3]),
                    r.standard_normal(s[0] * s[1]),
                    r.uniform(0.5, 2, s[0] * s[1]),
                ],
                {"center": center, "chunks": chunks, "turn": turn},
                depth=max(shape[2] * shape[3], shape[0] * shape[3]),
                gradient=(0, 1, 2, 3, 4),
            )
            for (shape, _, center), (chunks, turn) in zip(
                CASES, [(3, 1), (4, 5), (2, 1), (1, 9), (1, 1), (32, 1), (7, 16), (1, 1)], strict=True
            )
        ]
