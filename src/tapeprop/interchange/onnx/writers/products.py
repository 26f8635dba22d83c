"""Products of matrices, and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tapeprop.interchange.onnx.writers.builder import Builder, unwritable
from tapeprop.interchange.onnx.writers.registry import writer
from tapeprop.interchange.onnx.writers.steps import Step


@writer("dense")
def dense(b: Builder, step: Step, x: str, w: str, bias: str = "") -> str:
    return b.node("Gemm", [x, w, bias], transB=1)


@writer("matmul")
def matmul(b: Builder, step: Step, x: str, y: str) -> str:
    left, right = step["transpose_a"], step["transpose_b"]
    if (left or right) and all(operand.ndim == 2 for operand in step.operands):
        return b.node("Gemm", [x, y], transA=int(left), transB=int(right))
    turned = [
        _turned(b, name, operand.ndim) if turn else name
        for name, operand, turn in zip((x, y), step.operands, (left, right))
    ]
    return b.node("MatMul", turned)


def _turned(b: Builder, name: str, rank: int) -> str:
    return b.node("Transpose", [name], perm=[*range(rank - 2), rank - 1, rank - 2])


def ends(padding: Sequence[tuple[int, int]]) -> list[int]:
    """((top, bottom), (left, right)) in ONNX' order: all that come before, then all behind."""
    return [before for before, _ in padding] + [behind for _, behind in padding]


@writer("conv2d", "conv3d")
def conv(b: Builder, step: Step, x: str, w: str, bias: str = "") -> str:
    return b.node("Conv", [x, w, bias], **_geometry(step))


@writer("conv2d_input_grad", "conv3d_input_grad")
def conv_transpose(b: Builder, step: Step, x: str, w: str, bias: str = "") -> str:
    geometry = _geometry(step)
    missing: list[Any] = []
    sizes = zip(
        step["size"],
        step.operands[0].shape[2:],
        step.operands[1].shape[2:],
        step["stride"],
        step["padding"],
        step["dilation"],
    )
    for size, given, taps, stride, (before, behind), gap in sizes:
        missing.append(size - ((given - 1) * stride - before - behind + (taps - 1) * gap + 1))
    if not all(isinstance(n, int) for n in missing):
        raise unwritable(
            step, "sizes that follow from those of the operand", tuple(step["size"]), "give input_shape these sizes"
        )
    return b.node("ConvTranspose", [x, w, bias], output_padding=missing, **geometry)


def _geometry(step: Step) -> dict[str, Any]:
    return {
        "kernel_shape": [int(n) for n in step.operands[1].shape[2:]],  # type: ignore[arg-type]
        "strides": list(step["stride"]),
        "pads": ends(step["padding"]),
        "dilations": list(step["dilation"]),
        "group": step["groups"],
    }
