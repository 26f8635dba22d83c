"""The plan of a strided copy: which axes merge, which two run innermost, and in what tiles.

transpose, expand and slice all fill a contiguous result with y[i, j, ...] = x[offset + i * s + j * t + ...]; they
differ in the strides alone, so they share one kernel (`strided` in cpu.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from tapeprop.errors import ShapeError
from tapeprop.ops.op import Call, Launch, Ref, launch

OUTER_AXES = 6  # of the kernel, beside its two inner ones
TILE = 16  # of a copy that turns rows into columns; 32 is 2 to 3 times slower where strides are powers of two
GRAIN = 4096  # elements of a copy along rows that one worker does at a time


def contiguous(shape: Sequence[int]) -> list[int]:
    """The row-major strides of `shape`, in elements."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return strides[::-1]


def collapse(sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(size, stride) of the fewest axes that visit the same elements in the same order."""
    merged: list[tuple[int, int]] = []
    for size, stride in zip(sizes, strides):
        if size == 1:
            continue
        if merged and merged[-1][1] == stride * size:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return merged


def padded(numbers: Sequence[int], length: int, fill: int) -> list[int]:
    """`numbers` with `fill` before them up to `length`."""
    return [fill] * (length - len(numbers)) + list(numbers)


def copy_launch(call: Call, strides: Sequence[int], offset: int = 0, divisor: int | None = None) -> Launch:
    """The launch that fills result 0 from operand 0, whose stride along each axis of the result is given, in elements.

    offset: of the first element. divisor: each element is divided by it; None: moved as it is. ShapeError for more
    than eight axes of which no two merge.
    """
    source, result = call.operands[0], call.results[0]
    axes = collapse(result.shape, strides)
    if len(axes) > OUTER_AXES + 2:
        raise ShapeError(
            f"expected at most {OUTER_AXES + 2} axes that cannot be merged, got {len(axes)}; do it in two steps"
        )
    steps = contiguous([size for size, _ in axes])
    moved = [(size, step, stride) for (size, stride), step in zip(axes, steps)]
    n, _, column = moved.pop() if moved else (1, 1, 1)
    across = [i for i, (_, _, stride) in enumerate(moved) if abs(stride) == 1]
    turns = abs(column) > 1 and bool(across)
    m, row_result, row_operand = moved.pop(across[-1] if turns else -1) if moved else (1, 0, 0)
    tile_n = TILE if turns else min(n, GRAIN)
    tile_m = TILE if turns else max(1, GRAIN // n)
    outer = [padded([axis[part] for axis in moved], OUTER_AXES, fill) for part, fill in ((0, 1), (1, 0), (2, 0))]
    integers = [*outer[0], *outer[1], *outer[2], m, row_result, row_operand, n, column, tile_m, tile_n, offset]
    return launch(
        "tapeprop.ops.shape.cpu:strided",
        call,
        [(Ref("result"), (result.size,)), (Ref("operand"), (source.size,))],
        [*integers, divisor or 1],
        dtype=source.dtype,
        mean=divisor is not None,
    )
