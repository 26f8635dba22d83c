"""Times whole training steps, ours beside torch's and JAX's: forward, mean cross-entropy, backward, SGD with momentum.

    python bench/train.py [--network NAME ...] [--threads 1 2] [--seconds 1.5] [--no-compile] [--no-jax] [--rows]

For every network all sides start from the same weights, and their losses must agree for three steps. Then everything
is timed in alternating bursts of one run: `step`, our train_step() on one batch; `fit`, our session of many steps per
native call, each on a batch gathered from a larger array; on one batch torch, eager in NCHW and in channels_last and
compiled by Inductor, and JAX, the whole step under jit. Ratios are torch's best median over ours. The share of the peak
is that of the convolutions' and products' operations, counted by torch, in what the processor does with fma on
registers alone, measured in the same bursts.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import compare
import numpy as np
from measure import Contender, alternate
from networks import NETWORKS, Network

from tapeprop import LayerGraph
from tapeprop.cli.output import seconds_text, table
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD

try:
    import peers
    import torch
except ModuleNotFoundError as error:
    sys.exit(f"{error}; the comparison needs torch: pip install 'tapeprop[peers]'")

#: A native call of the fit session takes about so long, as in fit() itself; of its data at most so many bytes.
CALL_SECONDS, DATA_BYTES = compare.BURST / 5, 64 << 20


def step_contender(graph: LayerGraph, network: Network) -> Contender:
    """train_step() on one batch."""
    x, y = network.data()
    loss = CrossEntropy()
    return Contender("step", lambda: graph.train_step(x, y, loss))


def fit_contender(graph: LayerGraph, network: Network, step_seconds: float) -> Contender:
    """A fit session: steps on shuffled batches of a larger array, many of them per native call."""
    batch_bytes = 4 * int(np.prod(network.shape))
    steps = max(1, min(int(CALL_SECONDS / step_seconds), DATA_BYTES // batch_bytes))
    x, y = network.data(max(steps, 4))
    session = graph.fit_session([x], [y], [CrossEntropy()], [1.0], network.batch)
    order = np.random.default_rng(0).permutation(len(x))

    def call() -> None:
        if session.steps_left < steps:
            session.start_epoch(order)
        if session.run(steps) != steps:
            raise RuntimeError("the session ran fewer steps than asked for")

    session.start_epoch(order)
    return Contender("fit", call, steps)


#: Of `--rows`: runs, and steps of each. An instruction's time in a run is the median of its steps; shown is the median of the
#: runs, and the least counts for "at its best".
ROW_RUNS, ROW_STEPS = 10, 5


def built(network: Network, threads: int, math_mode: str = "fp32") -> LayerGraph:
    """The graph, ready to train."""
    graph = network.graph().build(network.shape, workers=threads, math_mode=math_mode)
    graph.set_optimizer(SGD(peers.RATE, momentum=peers.MOMENTUM))
    return graph


def measure(network: Network, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one network at one number of threads."""
    torch.set_num_threads(threads)
    jax = peers.jax(threads) if args.jax else None
    differences = peers.check(network, jax)
    graph = built(network, threads)
    step = step_contender(graph, network)
    trial = Contender("trial", step.call)
    alternate([trial], 0.0, compare.BURST / 5)
    fit = fit_contender(graph, network, trial.least)
    x, y = network.data()
    others = [Contender("jax", jax.step_of(graph, network.name, x, y))] if jax else []

    def its_step(channels_last: bool, compiled: bool) -> peers.Call:
        module = peers.copied(graph, network.name)
        return peers.step_of(torch.compile(module) if compiled else module, x, y, channels_last)

    flops = peers.flops(its_step(False, False))
    torchs, compile_seconds = peers.contenders(its_step, network, args.compile, network.name not in peers.DROPOUT)
    found = compare.figures(network, threads, args.seconds, [step, fit], torchs, others, flops)
    return {**found, "compile_seconds": compile_seconds, "loss_difference": differences}


def slowest_rows(network: Network, threads: int, math_mode: str, count: int = 10) -> str:
    """The instructions of a step that take the longest, and what all take together."""
    graph = built(network, threads, math_mode)
    x, y = network.data()
    graph.train_step(x, y, CrossEntropy())
    profiles = [graph.profile(x, y, CrossEntropy(), repeats=ROW_STEPS) for _ in range(ROW_RUNS)]
    steps = [profile.figures(sort="row") for profile in profiles]
    times = np.array([[row.seconds for row in rows] for rows in steps])
    median, least = np.median(times, axis=0), times.min(axis=0).sum()
    total = median.sum()
    rows = [
        replace(row, seconds=float(s), share=float(s / total))
        for row, s in sorted(zip(steps[0], median), key=lambda pair: -pair[1])[:count]
    ]
    closing = (
        f"all {median.size} rows: {seconds_text(total)}; each at its best of {ROW_RUNS} runs: {seconds_text(least)}, "
    )
    closing += f"{peers.flops(peers.step_of(peers.copied(graph, network.name), x, y)) / least / 1e9:.0f} GFLOP/s"
    return closing + "\n" + table(
        ("row", "phase", "op", "layer", "time", "share", "GFLOP/s", "GB/s"),
        [
            (
                str(row.rows[0][1]), row.phase, row.op, row.layer, seconds_text(row.seconds), f"{row.share:.1%}",
                f"{row.gflops:.1f}", f"{row.gbytes:.1f}",
            )
            for row in rows
        ],
        left=(1, 2, 3),
    )  # fmt: skip


def main() -> None:
    """Prints the table and writes the figures."""
    parser = compare.parser(__doc__, list(NETWORKS), 1.5)
    parser.add_argument("--rows", action="store_true", help="print the slowest instructions instead")
    parser.add_argument("--math-mode", default="fp32", choices=("fp32", "winograd"), help="of build(), with --rows")
    args = parser.parse_args()
    if args.rows:
        for name in args.network:
            for threads in args.threads:
                rows = slowest_rows(NETWORKS[name], threads, args.math_mode)
                print(f"{NETWORKS[name].title}, threads: {threads}\n{rows}\n", flush=True)
        return
    kind = "train" if set(args.network) == set(NETWORKS) else f"train-{'-'.join(args.network)}"
    if found := compare.run(kind, args, measure, ("step", "fit")):
        worst: dict[str, float] = {}
        for each in found:
            for side, value in each["loss_difference"].items():
                worst[side] = max(worst.get(side, 0.0), value)
        text = ", ".join(f"{side} {value:.1e}" for side, value in worst.items())
        print(f"losses of {peers.STEPS} steps differ from torch's in float64 by at most: {text}")


if __name__ == "__main__":
    main()
