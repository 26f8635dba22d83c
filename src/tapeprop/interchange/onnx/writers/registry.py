"""The ops that are written: each is a function from a step of the program to nodes of ONNX.

    @writer("softmax")
    def softmax(b, step, x):
        return b.node("Softmax", [x], axis=step["axis"])

A writer gets the builder, the step, and the name of each operand; it gives the name of each result, in a tuple where there are
several. Results left out at the end are those that ONNX does not have: who reads one gets an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["WITHOUT", "WRITERS", "writer"]

#: {op, or what `patterns` makes of several: how it is written}.
WRITERS: dict[str, Callable[..., Any]] = {}

_GRADIENT = "it is part of a gradient, and ONNX has none; export the formula itself"
_LANES = "the compiler alone makes it, for the vectors of a CPU"
_RANDOM = "it draws random numbers, which it does in training alone"
_TRAINING = "it belongs to the training tape"

#: {op: why it is not written}.
WITHOUT: dict[str, str] = {
    **dict.fromkeys(
        (
            "conv2d_weight_grad", "conv3d_weight_grad", "scatter_rows", "max_pool2d_pick", "max_pool2d_grad", "avg_pool2d_grad",
            "softmax_grad", "log_softmax_grad", "weighted_nll_grad", "mean_loss_grad", "nll_grad", "batch_norm_grad",
            "row_norm_grad", "python_grad",
        ),
        _GRADIENT,
    ),
    **dict.fromkeys(
        (
            "to_lanes", "from_lanes", "conv2d_lanes", "conv2d_lanes_input_grad", "conv2d_lanes_weight_grad", "max_pool2d_lanes",
            "max_pool2d_lanes_grad", "avg_pool2d_lanes", "avg_pool2d_lanes_grad", "winograd_filters", "conv2d_winograd",
        ),
        _LANES,
    ),
    **dict.fromkeys(("next_random", "dropout"), _RANDOM),
    **dict.fromkeys(("take_rows", "advance", "accumulate"), _TRAINING),
    "python": "it is Python, which no other program runs; write the layer in tapeprop.ops",
    "scalar_block": "the compiler alone makes it, of elementwise ops",
}  # fmt: skip


def writer(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function writes these ops."""

    def registered(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            assert name not in WRITERS, name
            assert name not in WITHOUT, name
            WRITERS[name] = function
        return function

    return registered
