"""Speed of the convolutions, pools and conversions in the batch-lane layout on one core, beside the fastest it can multiply and add.

    python bench/kernels/lanes.py [float32 | float64]

The peak is measured in the same run, by a loop of fma on registers alone. Times are CPU times of this thread, the least of
alternating bursts, so other work on the machine disturbs them little. Products with padding count, though the kernels leave most out:
a share may exceed 100 %. Takes about 20 seconds when the kernels are cached.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from gemm_conv import fma_peak, prepared

BURST = 2e-3

CONVOLUTIONS = [
    (64, 3, 16, 32, 3, 1, 1),
    (64, 16, 16, 32, 3, 1, 1),
    (64, 32, 32, 16, 3, 1, 1),
    (64, 64, 64, 8, 3, 1, 1),
    (16, 128, 128, 16, 3, 1, 1),
    (16, 256, 256, 8, 3, 1, 1),
    (64, 1, 6, 28, 5, 1, 2),
    (64, 6, 16, 14, 5, 1, 0),
    (32, 36, 36, 32, 3, 1, 1),
    (64, 7, 13, 15, 3, 1, 1),
    (64, 16, 32, 32, 3, 2, 1),
    (64, 16, 32, 32, 1, 2, 0),
    (64, 64, 64, 16, 1, 1, 0),
]  # images, channels, filters, size, taps, stride, padding
POOLS = [
    (64, 6, 28, 2, 2, 0),
    (64, 16, 32, 3, 2, 1),
    (64, 64, 8, 8, 8, 0),
]  # images, channels, size, window, stride, padding
CONVERSIONS = [(64, 784), (64, 400), (64, 3, 32, 32), (64, 16, 32, 32)]


def best_seconds(calls: Sequence[Callable[[], None]], seconds: float) -> list[float]:
    """The least CPU time of each call in bursts of about 2 ms, which alternate for about `seconds`."""
    counts = []
    for call in calls:
        call()
        start = time.thread_time()
        call()
        counts.append(max(1, int(BURST / max(time.thread_time() - start, 1e-7))))
    best, stop, rounds = [float("inf")] * len(calls), time.perf_counter() + seconds, 0
    while rounds < 4 or time.perf_counter() < stop:
        rounds += 1
        for i, call in enumerate(calls):
            start = time.thread_time()
            for _ in range(counts[i]):
                call()
            best[i] = min(best[i], (time.thread_time() - start) / counts[i])
    return best


def convolutions(dtype: str, lanes: int) -> None:
    """A line for each convolution: forward, input gradient, weight gradient."""
    peak, peak_flops = fma_peak(dtype)
    print("images, channels, filters, size, taps, stride, padding | peak | forward | input gradient | weight gradient")
    for n, c, o, size, taps, stride, pad in CONVOLUTIONS:
        out = (size + 2 * pad - taps) // stride + 1
        x, w, y = (n // lanes, c, size, size, lanes), (o, c, taps, taps), (n // lanes, o, out, out, lanes)
        geometry = {"stride": (stride,) * 2, "padding": ((pad, pad),) * 2}
        cases = [
            prepared("conv2d_lanes", [x, w, (o,)], dtype, activation=None, **geometry),
            prepared("conv2d_lanes_input_grad", [y, w], dtype, size=(size, size), **geometry),
            prepared("conv2d_lanes_weight_grad", [x, y], dtype, kernel=(taps, taps), **geometry),
        ]
        top, *times = best_seconds([peak, *(run for run, _ in cases)], 0.6)
        limit = peak_flops / top / 1e9
        parts = [
            f"{1e6 * t:8.1f} us {flops / t / 1e9:5.0f} ({flops / t / 1e9 / limit:4.0%})"
            for t, (_, flops) in zip(times, cases)
        ]
        print(f"{(n, c, o, size, taps, stride, pad)!s:30s} | {limit:4.0f} | {' | '.join(parts)}", flush=True)


def movements(dtype: str, lanes: int) -> None:
    """A line for each pool and conversion, in bytes that it must at least read and write."""

    def report(label: object, cases: dict[str, tuple[Callable[[], None], int]]) -> None:
        times = best_seconds([run for run, _ in cases.values()], 0.2)
        rates = [
            f"{name} {1e6 * t:7.1f} us {size / t / 1e9:4.0f} GB/s" for t, (name, (_, size)) in zip(times, cases.items())
        ]
        print(f"{label!s:24s} | {' | '.join(rates)}", flush=True)

    def bytes_of(*shapes: tuple[int, ...]) -> int:
        return sum(int(np.prod(shape)) for shape in shapes) * np.dtype(dtype).itemsize

    print("images, channels, size, window, stride, padding")
    for n, c, size, window, stride, pad in POOLS:
        out = (size + 2 * pad - window) // stride + 1
        x, y = (n // lanes, c, size, size, lanes), (n // lanes, c, out, out, lanes)
        at = {"size": (window,) * 2, "stride": (stride,) * 2, "padding": ((pad, pad),) * 2}
        mean = at | {"count_include_pad": True}
        shapes = {"height": size, "width": size}
        cases = {
            "max": (prepared("max_pool2d_lanes", [x], dtype, activation=None, **at)[0], bytes_of(x, y)),
            "its gradient": (prepared("max_pool2d_lanes_grad", [x, y, y], dtype, **at)[0], bytes_of(x, x, y, y)),
            "mean": (prepared("avg_pool2d_lanes", [x], dtype, **mean)[0], bytes_of(x, y)),
            "its gradient ": (prepared("avg_pool2d_lanes_grad", [y], dtype, **mean, **shapes)[0], bytes_of(x, y)),
        }
        report((n, c, size, window, stride, pad), cases)
    for shape in CONVERSIONS:
        laned = (shape[0] // lanes, *shape[1:], lanes)
        cases = {
            "to lanes": (prepared("to_lanes", [shape], dtype, lanes=lanes)[0], bytes_of(shape, shape)),
            "from lanes": (prepared("from_lanes", [laned], dtype, batch=shape[0])[0], bytes_of(shape, shape)),
        }
        report(shape, cases)


def main() -> None:
    dtype = sys.argv[1] if len(sys.argv) > 1 else "float32"
    lanes = 64 // np.dtype(dtype).itemsize
    print(f"{dtype}; GFLOP/s and share of the fma peak, one core")
    convolutions(dtype, lanes)
    movements(dtype, lanes)


if __name__ == "__main__":
    main()
