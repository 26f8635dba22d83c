"""What to put on a branch whose channels do not fit the others that it meets."""

from __future__ import annotations

from collections.abc import Sequence

from tapeprop.ir import Size, Tensor, reachable

LARGEST_STRIDE = 8


def adapting(operands: Sequence[Tensor], names: Sequence[str]) -> str | None:
    """What to do so that all operands of a merge have one shape: add Conv2D(3, 6, 1) on the shortcut from 'x'.

    operands: (N, C) or images of one to three axes, (N, C, H, W), from the nodes `names`. The shortcuts, operands from which
    others are computed, are adapted to those others; without one, fewer channels to more. None where channels and strides are not
    all that differs.
    """
    if {operand.ndim for operand in operands} not in ({2}, {3}, {4}, {5}):
        return None
    shortcuts = [i for i, operand in enumerate(operands) if any(_leads_to(operand, other) for other in operands)]
    rest = [i for i in range(len(operands)) if i not in shortcuts] or list(range(len(operands)))
    if not all(isinstance(operand.shape[1], int) for operand in operands):
        return None
    target = operands[max(rest, key=lambda i: operands[i].shape[1])].shape  # type: ignore[arg-type, return-value]
    steps = []
    for i, (operand, name) in enumerate(zip(operands, names)):
        if all(size in (1, wanted) for size, wanted in zip(operand.shape, target)):
            continue
        layer = _adapter(operand.shape, target)
        if layer is None:
            return None
        steps.append(f"add {layer} {'on the shortcut from' if i in shortcuts else 'behind'} {name!r}")
    if all(operand.shape[2:] == target[2:] for operand in operands):
        steps[-1] += ", or merge by CHCAT"
    return " and ".join(steps)


def _leads_to(a: Tensor, b: Tensor) -> bool:
    """Whether b is computed from a, another tensor."""
    return a is not b and any(a in call.operands for call in reachable([b]))


def _adapter(shape: tuple[Size, ...], target: tuple[Size, ...]) -> str | None:
    """The layer that makes `target` of `shape`, as it is written in code."""
    if shape[0] != target[0]:
        return None
    if len(shape) == 2:
        return f"Dense({shape[1]}, {target[1]})"
    for stride in range(1, LARGEST_STRIDE + 1):
        if tuple((size - 1) // stride + 1 for size in shape[2:]) == target[2:]:
            return f"Conv{len(shape) - 2}D({shape[1]}, {target[1]}, 1{f', stride={stride}' if stride > 1 else ''})"
    return None
