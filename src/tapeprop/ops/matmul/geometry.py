"""How the leading axes of two stacks of matrices are walked."""

from __future__ import annotations

from collections.abc import Sequence

from tapeprop.errors import ShapeError

BATCH_AXES = 4  # runs of leading axes that the kernels walk; neighbours that broadcast alike count as one


def batch_axes(leading: Sequence[int], a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int, int]]:
    """(size, step in a, step in b) of each run of leading axes, steps in elements, 0 where the operand is broadcast."""
    steps = {0: a[-1] * a[-2], 1: b[-1] * b[-2]}
    axes: list[tuple[int, int, int]] = []
    for axis in range(1, len(leading) + 1):
        size, found = leading[-axis], []
        for which, shape in enumerate((a, b)):
            own = shape[-2 - axis] if len(shape) >= axis + 2 else 1
            found.append(steps[which] if own > 1 else 0)
            steps[which] *= own
        if size == 1:
            continue
        if axes and all(bool(old) == bool(new) for old, new in zip(axes[0][1:], found)):
            axes[0] = (axes[0][0] * size, *axes[0][1:])
        else:
            axes.insert(0, (size, found[0], found[1]))
    if len(axes) > BATCH_AXES:
        raise ShapeError(
            f"matmul: expected at most {BATCH_AXES} runs of leading axes that broadcast alike, got {len(axes)} for "
            f"{tuple(a)} and {tuple(b)}; expand an operand first"
        )
    return axes
