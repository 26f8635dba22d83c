"""Dropout, drawn from a counter: no generator state is carried along, so any worker can draw any element.

The mask is a pure function of (seed, call number, site, element): the words of Philox-4x32-10 (Salmon, Moraes, Dror
and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011), whose key is the seed and whose counter holds the
rest. It is the same for float32 and float64 and for any number of workers, and the backward pass draws it again
instead of keeping it.

Elements come in groups of 64, so that the kernel draws 16 blocks side by side: word w of block 16 g + j belongs to
element 64 g + 16 w + j.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.ir import Tensor, current
from tapeprop.ir.dims import text
from tapeprop.ops.op import (
    LATER,
    NARROW,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    as_tensor,
    cuda_launch,
    float_bits,
    inverse,
    launch,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.shape.rules import normalise_axes

__all__ = ["dropout"]

HERE = "tapeprop.ops.random.cpu"
CUDA = "tapeprop.ops.random.cuda"
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF
ROUNDS = 10
GROUP = 64  # elements drawn together: 16 blocks of 4 words


# ---- the generator


def philox(counter: Sequence[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Philox-4x32-10: four arrays of 32-bit words (uint64, < 2^32) from four such arrays and a key of two words."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    mask, half = np.uint64(MASK), np.uint64(32)
    k0, k1 = key
    for _ in range(ROUNDS):
        left, right = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (right >> half) ^ c1 ^ np.uint64(k0),
            right & mask,
            (left >> half) ^ c3 ^ np.uint64(k1),
            left & mask,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return [c0, c1, c2, c3]


def words(seed: int, call: int, site: int, count: int) -> np.ndarray:
    """The first `count` words of a site in a call, uint64 and < 2^32."""
    blocks = np.arange(-(-count // GROUP) * (GROUP // 4), dtype=np.uint64)
    low, high = blocks & np.uint64(MASK), (blocks >> np.uint64(32)) + np.uint64(site << 8)
    flat = np.zeros_like(blocks)
    drawn = philox(
        [low, high, flat + np.uint64(call & MASK), flat + np.uint64((call >> 32) & MASK)],
        (seed & MASK, (seed >> 32) & MASK),
    )
    return np.stack([word.reshape(-1, GROUP // 4) for word in drawn], 1).reshape(-1)[:count]


def threshold(rate: float) -> int:
    """Words below it are dropped: the rate in steps of 2^-32."""
    return round(rate * 2.0**32)


def scale(rate: float) -> float:
    """What the elements that stay are multiplied with, so that the mean stays; 0 where none stays."""
    return 0.0 if rate == 1 else 1 / (1 - rate)


# ---- ops


@register
class NextRandom(Op):
    """counter (2,) int64, (seed, call number) -> the same with the call number of the next call."""

    name = "next_random"

    def infer(self, operands, attributes):
        _expect_counter(self.name, operands[0])
        return [((2,), "int64")]

    def vjp(self, call, gradients, wanted):
        return [None]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        return [arrays[0] + np.array([0, 1])]

    def cpu(self, call: Call) -> Launch:
        return launch(f"{HERE}:next_random", call, [(Ref("operand", 0), (2,)), (Ref("result", 0), (2,))])

    def cuda(self, call: Call, device: Device) -> Launch:
        arrays: list[tuple[Ref, tuple[int, ...]]] = [(Ref("operand", 0), (2,)), (Ref("result", 0), (2,))]
        return cuda_launch(f"{CUDA}:next_random", arrays, grid=(1, 1, 1), block=(1, 1, 1))

    def samples(self) -> list[Sample]:
        return [Sample(lambda r: [np.array([r.integers(-(2**62), 2**62), 41])], gradient=())]


@register
class Dropout(Op):
    """(x, counter (2,) int64) -> x mask / (1 - rate), of x's shape and dtype.

    The mask is 0 with probability `rate`, else 1. site: which of the draws of one call this is. shared_axes: along
    these, one draw serves all. Linear in x: its own gradient.
    """

    name = "dropout"
    inplace = ((0, 0),)
    onnx = ("Dropout",)

    def infer(self, operands, attributes):
        x, counter = operands
        _expect_counter(self.name, counter)
        _expect_rate(attributes["rate"])
        _runs((2,) * x.ndim, attributes["shared_axes"])
        return [(x.shape, same_dtype(self.name, [x]))]

    def vjp(self, call, gradients, wanted):
        (g,) = gradients
        return [None if g is None else record(self, [g, call.operands[1]], call.attributes)[0], None]

    def reference(self, call: Call, *arrays: np.ndarray) -> list[np.ndarray]:
        x, counter = arrays
        shape = tuple(1 if axis in call["shared_axes"] else n for axis, n in enumerate(x.shape))
        drawn = words(int(counter[0]), int(counter[1]), call["site"], int(np.prod(shape, dtype=np.int64)))
        mask = (drawn >= np.uint64(threshold(call["rate"]))).reshape(shape)
        return [x * (mask.astype(x.dtype) * x.dtype.type(scale(call["rate"])))]

    def cpu(self, call: Call) -> Launch:
        axes = _runs(call.operands[0].shape, call["shared_axes"])
        size = (call.results[0].size,)
        arrays = [
            (Ref("operand", 0), size),
            (Ref("operand", 1), (2,)),
            (Ref("result", 0), size),
            (Ref("scratch"), (1, GROUP)),
        ]
        dtype = call.results[0].dtype
        integers = (*axes, *self._draw(call))
        return launch(f"{HERE}:dropout", call, arrays, integers, scratch=(GROUP, dtype), dtype=dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        y = call.results[0]
        arrays = [(Ref("operand", 0), (y.size,)), (Ref("operand", 1), (2,)), (Ref("result", 0), (y.size,))]
        _, *axes = _runs(call.operands[0].shape, call["shared_axes"])
        shared0, _, shared1, _, inner = axes
        if shared0 * shared1 * inner == 1:
            grid, block = device.spread(-(-y.size // GROUP) * (GROUP // 4))
            return cuda_launch(f"{CUDA}:dropout", arrays, self._draw(call), grid=grid, block=block, dtype=y.dtype)
        grid, block = device.spread(y.size)
        integers = (*axes, *map(inverse, axes), *self._draw(call))
        wide = y.size >= NARROW
        return cuda_launch(f"{CUDA}:dropout_shared", arrays, integers, grid=grid, block=block, dtype=y.dtype, wide=wide)

    def _draw(self, call: Call) -> tuple[int, int, int]:
        """(site, threshold, bits of the float64 that the elements that stay are multiplied with)."""
        return call["site"], threshold(call["rate"]), float_bits(scale(call["rate"]))

    def samples(self) -> list[Sample]:
        return [
            Sample(
                lambda r, s=shape: [r.standard_normal(s), np.array([r.integers(-(2**62), 2**62), 2**33 + 7])],
                {"rate": rate, "site": site, "shared_axes": axes},
            )
            for shape, rate, site, axes in [
                ((3, 50), 0.5, 0, ()),
                ((1,), 0.1, 3, ()),
                ((5, 3, 33, 41), 0.25, 1, ()),
                ((4, 70, 3, 5), 0.5, 2, (2, 3)),
                ((3, 7, 65), 0.3, 4, (1,)),
                ((2, 3, 4, 5), 0.5, 5, (0, 2)),
                ((6, 4), 1.0, 6, ()),
                ((6, 4), 0.5, 7, (0, 1)),
            ]
        ]


def _expect_counter(name: str, counter: Tensor) -> None:
    if counter.dtype != "int64" or counter.shape != (2,):
        raise DTypeError(f"{name}: expected an int64 counter of shape (2,), got {counter.dtype} {text(counter.shape)}")


def _expect_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise GraphError(f"dropout: expected a rate from 0 to 1, got {rate}")


def _runs(shape: tuple[int, ...], shared: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` as (own, shared, own, shared, own, shared), neighbours of one kind merged, towards the end.

    ShapeError where the kinds alternate too often.
    """
    sizes = [1] * 6
    place = len(sizes)
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1:
            continue
        while place == len(sizes) or place % 2 != int(axis in shared):
            place -= 1
        if place < 0:
            raise ShapeError(
                f"dropout: expected at most three runs of own and shared axes, got shared_axes {shared} of a tensor of "
                f"rank {len(shape)}; transpose the shared axes together"
            )
        sizes[place] *= shape[axis]
    return tuple(sizes)


def dropout(x: Any, rate: float, shared_axes: Sequence[int] = ()) -> Tensor:
    """x with elements set to 0 at random, the others divided by 1 - rate; x itself outside training.

    x: any shape, floating. rate: the probability of a 0, from 0 to 1. shared_axes: axes along which all elements
    share one draw: (2, 3) drops whole channels of (N, C, H, W). StateError in a trace that keeps no random state.
    """
    x = as_tensor(x)
    _expect_rate(rate)
    axes = normalise_axes("dropout", tuple(shared_axes), x.ndim)
    trace = current()
    if trace is None:
        attributes = {
            "name": "dropout",
            "kind": (x.shape, x.dtype),
            "function": lambda x: dropout(x, rate, shared_axes),
        }
        return record(LATER, [x], attributes)[0]  # a function knows the seed, and whether it trains
    if not trace.training or rate == 0:
        return x
    counter, site = trace.next_random_site(lambda state: record("next_random", [state])[0])
    return record("dropout", [x, counter], {"rate": float(rate), "site": site, "shared_axes": axes})[0]
