"""The rungs that the convolutions in batch lanes climbed, each beside the one before, on one core.

    python bench/kernels/ladder.py [float32 | float64]

A rung is a way to cut the work, which the kernels take as numbers of the row; so old rungs run as they did. The first is the
convolution on images, an implicit GEMM. Times are CPU times of this thread, the least of alternating bursts. Figures are operations
of the direct sum per second, as a share of what the core does with fma on registers alone: Winograd's may exceed 100 %.
docs/performance.md tells what each rung was expected to gain, and why. Takes about a minute when the kernels are cached.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from unittest import mock

import numpy as np
from gemm_conv import fma_peak, prepared
from lanes import best_seconds

from tapeprop.cli.output import table
from tapeprop.ops.lanes.cpu import tiles
from tapeprop.ops.matmul import cpu as matmul

LAYERS = [(64, 16, 32), (64, 32, 16), (64, 64, 8), (32, 64, 32), (32, 128, 16), (32, 256, 8)]  # images, channels, size
FAR = 1 << 40
ALL_AT_ONCE = {"NEAR": FAR, "NEAR_GRADIENT": FAR, "TOGETHER": 1, "MANY_BLOCKS": FAR}
IN_PARTS = {"MANY_BLOCKS": FAR}

Run = Callable[[], None]


def cut(settings: dict[str, int], *arguments: object, **attributes: object) -> Run:
    """`prepared` with the kernels' work cut otherwise."""
    with mock.patch.multiple(tiles, **settings):
        return prepared(*arguments, **attributes)[0]  # type: ignore[arg-type]


def rungs(dtype: str, images: int, channels: int, size: int) -> tuple[dict[str, dict[str, Run]], int]:
    """({kernel: {rung: a call}}, operations of each) for a convolution of 3 x 3 with as many filters as channels."""
    lanes = 64 // np.dtype(dtype).itemsize
    plain, w = (images, channels, size, size), (channels, channels, 3, 3)
    laned, u = (images // lanes, channels, size, size, lanes), (16, channels, channels)
    padding = {"padding": ((1, 1), (1, 1))}
    at = {"stride": (1, 1), **padding}
    whole = {"dilation": (1, 1), "groups": 1}
    bent = {**padding, "activation": None}
    _, operations = prepared("conv2d", [plain, w], dtype, **at, **whole)
    forward = ("conv2d_lanes", [laned, w], dtype)
    backward = ("conv2d_lanes_input_grad", [laned, w], dtype)
    weights = ("conv2d_lanes_weight_grad", [laned, laned], dtype)
    return {
        "forward": {
            "images": prepared("conv2d", [plain, w], dtype, **at, **whole)[0],
            "lanes": cut(ALL_AT_ONCE, *forward, **at, activation=None),
            "in parts": cut(IN_PARTS, *forward, **at, activation=None),
            "rows copied": prepared(*forward, **at, activation=None)[0],
            "Winograd": prepared("conv2d_winograd", [laned, u], dtype, **bent, turned=False)[0],
        },
        "input gradient": {
            "images": prepared("conv2d_input_grad", [plain, w], dtype, **at, **whole, size=(size, size))[0],
            "lanes": cut(ALL_AT_ONCE, *backward, **at, size=(size, size)),
            "in parts": cut(IN_PARTS, *backward, **at, size=(size, size)),
            "rows copied": prepared(*backward, **at, size=(size, size))[0],
            "Winograd": prepared("conv2d_winograd", [laned, u], dtype, **bent, turned=True)[0],
        },
        "weights' gradient": {
            "images": prepared("conv2d_weight_grad", [plain, plain], dtype, **at, **whole, kernel=(3, 3))[0],
            "lanes": cut(ALL_AT_ONCE, *weights, **at, kernel=(3, 3)),
            "in parts": prepared(*weights, **at, kernel=(3, 3))[0],
        },
    }, operations


def few_rows(dtype: str) -> list[tuple[str, ...]]:
    """A line for each dense layer on one sample: weights turned round first, and read where they lie."""
    lines = []
    for inputs, outputs in ((400, 120), (4096, 256)):
        shapes = [(1, inputs), (outputs, inputs)]
        with mock.patch.object(matmul, "FEW_ROWS", 0):
            turned, _ = prepared("dense", shapes, dtype)
        dots, _ = prepared("dense", shapes, dtype)
        before, after = best_seconds([turned, dots], 0.4)
        lines.append((f"{inputs} to {outputs}", f"{1e6 * before:.1f} us", f"{1e6 * after:.1f} us"))
    return lines


def main() -> None:
    """Prints the tables."""
    dtype = sys.argv[1] if len(sys.argv) > 1 else "float32"
    peak, peak_operations = fma_peak(dtype)
    lines: dict[str, list[tuple[str, ...]]] = {}
    names: dict[str, list[str]] = {}
    for layer in LAYERS:
        kernels, operations = rungs(dtype, *layer)
        for kernel, calls in kernels.items():
            top, *times = best_seconds([peak, *calls.values()], 0.8)
            shares = [operations / seconds / (peak_operations / top) for seconds in times]
            names[kernel] = list(calls)
            lines.setdefault(kernel, []).append((str(layer), *(f"{share:.0%}" for share in shares)))
    for kernel, found in lines.items():
        print(table((f"{kernel}: images, channels, size", *names[kernel]), found, left=(0,)), end="\n\n", flush=True)
    print(table(("dense, one sample", "turned round", "where they lie"), few_rows(dtype), left=(0,)))


if __name__ == "__main__":
    main()
