"""Launches of elementwise expressions: the axes that are left when neighbours are merged, and how each array runs along them."""

from __future__ import annotations

from collections.abc import Sequence

from tapeprop.errors import DTypeError
from tapeprop.ir.kernels import Kernel
from tapeprop.ops.op import (
    ITEM_BYTES,
    NARROW,
    ArrayType,
    Call,
    Device,
    Launch,
    Ref,
    cuda_launch,
    inverse,
)
from tapeprop.ops.scalar import encode


def _strides(shape: tuple[int, ...], target: tuple[int, ...]) -> list[int]:
    """Element strides of a contiguous operand as it is broadcast to `target`; 0 along broadcast axes."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step if size != 1 else 0)
        step *= size
    return [0] * (len(target) - len(shape)) + strides[::-1]


def collapse(shape: tuple[int, ...], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """(sizes, strides per operand) with axes of size 1 dropped and neighbours merged where every operand runs through them evenly."""
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        here = [s[axis] for s in strides]
        if sizes and all(m[-1] == h * size for m, h in zip(merged, here, strict=True)):
            sizes[-1] *= size
            for m, h in zip(merged, here, strict=True):
                m[-1] = h
        else:
            sizes.append(size)
            for m, h in zip(merged, here, strict=True):
                m.append(h)
    if not sizes:
        return [1], [[1 if i == len(strides) - 1 else 0] for i in range(len(strides))]
    return sizes, merged


def _layout(call: Call) -> tuple[list[int], list[list[int]]]:
    """(sizes, strides of each operand and result): the axes that are left when neighbours are merged."""
    shape = call.results[0].shape
    return collapse(shape, [_strides(a.shape, shape) for a in (*call.operands, *call.results)])


def _is_rounded(call: Call, array: ArrayType) -> bool:
    """Whether an operand or result is one float64 element beside other arithmetic. DTypeError where it is of another dtype."""
    if array.dtype == call["dtype"]:
        return False
    if array.dtype != "float64" or array.size != 1:
        raise DTypeError(f"{call['label']}: expected {call['dtype']} operands, got {array.dtype}; cast it")
    return True


def loop_launch(call: Call) -> Launch:
    dtype = call["dtype"]
    arrays = [*call.operands, *call.results]
    sizes, strides = _layout(call)
    classes = []
    for array, steps in zip(arrays, strides, strict=True):
        if _is_rounded(call, array):
            classes.append("scalar64")
        else:
            classes.append({0: "uniform", 1: "vector"}.get(steps[-1], "strided"))
    if len(sizes) == 1 and sizes[0] == 1:
        classes = ["scalar64" if c == "scalar64" else "vector" for c in classes]
    *outer, inner = sizes
    count = len(call.operands)
    kernel = Kernel.of(
        "tapeprop.ops.elementwise.cpu:loop",
        expressions=encode(call["expressions"]),
        inputs=count,
        outputs=len(call.results),
        dtype=dtype,
        classes=tuple(classes),
        outer=len(outer),
    )
    outer_count = 1
    for n in outer:
        outer_count *= n
    fields: list[int | Ref] = [inner, outer_count, *outer]
    for k, (kind, steps) in enumerate(zip(classes, strides, strict=True)):
        fields.append(Ref("operand", k) if k < count else Ref("result", k - count))
        fields += steps[:-1]
        if kind == "strided":
            fields.append(steps[-1])
    return Launch(kernel, tuple(fields), ("elementwise", *sizes, ITEM_BYTES[dtype]))


def cuda_loop_launch(call: Call, device: Device) -> Launch:
    sizes, strides = _layout(call)
    count = call.results[0].size
    classes = []
    for array, steps in zip(call.operands, strides):
        if _is_rounded(call, array):
            classes.append("single64")
        else:
            classes.append("".join("*" if step or count == 1 else "." for step in steps))
    grid, block = device.spread(count)
    arrays: list[tuple[Ref, tuple[int, ...]]] = [(Ref("operand", k), (a.size,)) for k, a in enumerate(call.operands)]
    arrays += [(Ref("result", j), (count,)) for j in range(len(call.results))]
    return cuda_launch(
        "tapeprop.ops.elementwise.cuda:loop",
        arrays,
        [count, *(word for n in sizes[1:] for word in (n, inverse(max(n, 1))))],
        grid=grid,
        block=block,
        expressions=encode(call["expressions"]),
        dtype=call["dtype"],
        classes=tuple(classes),
        axes=len(sizes),
        wide=len(sizes) > 1 and count >= NARROW,
    )
