"""The plan of a strided copy: which axes merge, which two run innermost, and in what tiles.

transpose, expand and slice all fill a contiguous result with y[i, j, ...] = x[offset + i * s + j * t + ...]; they
differ in the strides alone, so they share one kernel (`strided` in cpu.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from tapeprop.errors import ShapeError
from tapeprop.ops.op import NARROW, Call, Device, Launch, Ref, cuda_launch, inverse, launch

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


def _moved(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int, int]]:
    """(size, step in the result, stride in the operand) of each axis that is left when neighbours are merged. ShapeError."""
    axes = collapse(shape, strides)
    if len(axes) > OUTER_AXES + 2:
        raise ShapeError(
            f"expected at most {OUTER_AXES + 2} axes that cannot be merged, got {len(axes)}; do it in two steps"
        )
    steps = contiguous([size for size, _ in axes])
    return [(size, step, stride) for (size, stride), step in zip(axes, steps)]


def copy_launch(call: Call, strides: Sequence[int], offset: int = 0, divisor: int | None = None) -> Launch:
    """The launch that fills result 0 from operand 0, whose stride along each axis of the result is given, in elements.

    offset: of the first element. divisor: each element is divided by it; None: moved as it is. ShapeError for more
    than eight axes of which no two merge.
    """
    source, result = call.operands[0], call.results[0]
    moved = _moved(result.shape, strides)
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


def cuda_copy_launch(
    call: Call, device: Device, strides: Sequence[int], offset: int = 0, divisor: int | None = None
) -> Launch:
    """As `copy_launch`; in tiles where an axis of the result other than the last runs through neighbours in the operand."""
    source, result = call.operands[0], call.results[0]
    arrays: list[tuple[Ref, tuple[int, ...]]] = [(Ref("result"), (result.size,)), (Ref("operand"), (source.size,))]
    moved = _moved(result.shape, strides)[::-1] or [(1, 1, 0)]  # from the innermost on
    n, _, column = moved[0]
    tile = 1 << ((4 * device.block).bit_length() - 1) // 2  # four elements for each thread
    across = [axis for axis, (size, _, stride) in enumerate(moved) if abs(stride) == 1 and size >= tile // 2]
    if divisor is None and abs(column) > 1 and n >= tile // 2 and across:
        m, y_row, x_row = moved[across[0]]
        outer = [axis for i, axis in enumerate(moved) if i not in (0, across[0])]
        tiles = -(-m // tile) * -(-n // tile)
        for size, _, _ in outer:
            tiles *= size
        integers = [offset, m, y_row, x_row, n, column, *(axis[part] for part in range(3) for axis in outer), tiles]
        return cuda_launch(
            "tapeprop.ops.shape.cuda:turned",
            arrays,
            integers,
            grid=device.rows(tiles)[0],
            block=(device.block, 1, 1),
            dtype=source.dtype,
            axes=len(outer),
            tile=tile,
            rows=device.block // tile,
        )
    sizes = [size for size, _, _ in moved[:-1]]
    grid, block = device.spread(result.size)
    return cuda_launch(
        "tapeprop.ops.shape.cuda:strided",
        arrays,
        [offset, divisor or 1, *(stride for _, _, stride in moved), *sizes, *map(inverse, sizes)],
        grid=grid,
        block=block,
        dtype=source.dtype,
        axes=len(moved),
        mean=divisor is not None,
        wide=result.size >= NARROW,
    )
