"""Times whole training steps, ours beside torch's: zero gradients, forward, mean cross-entropy, backward, SGD with momentum.

    python bench/train.py [--network NAME ...] [--threads 1 2] [--seconds 1.5] [--rows]

For every network both sides start from the same weights, and their losses must agree for three steps. Then everything
is timed in alternating bursts of one run: `step`, our train_step() on one batch; `fit`, our session of many steps per
native call, each on a batch gathered from a larger array; torch eager on one batch, NCHW and channels_last. Ratios are
torch's better median over ours. The share of the peak is that of the convolutions' and products' operations, counted by
torch, in what the processor does with fma on registers alone, measured in the same bursts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measure import Contender, alternate, machine, machine_text, peak_contender, results_path, write_results
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

BURST = 0.05
#: In which the threads of torch's OpenMP and of our team stop spinning.
PAUSE = 0.03
#: A native call of the fit session takes about so long, as in fit() itself; of its data at most so many bytes.
CALL_SECONDS, DATA_BYTES = BURST / 5, 64 << 20


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


def built(network: Network, threads: int) -> LayerGraph:
    """The graph, ready to train."""
    graph = network.graph().build(network.shape, workers=threads)
    graph.set_optimizer(SGD(peers.RATE, momentum=peers.MOMENTUM))
    return graph


def measure(network: Network, threads: int, seconds: float) -> dict[str, Any]:
    """The figures of one network at one number of threads."""
    torch.set_num_threads(threads)
    graph = built(network, threads)
    step = step_contender(graph, network)
    trial = Contender("trial", step.call)
    alternate([trial], 0.0, BURST / 5)
    x, y = network.data()
    contenders = [step, fit_contender(graph, network, trial.least)]
    contenders.append(Contender("torch", peers.step_of(peers.copied(graph, network.name), x, y)))
    if len(network.shape) == 4:
        module = peers.copied(graph, network.name)
        contenders.append(Contender("torch channels_last", peers.step_of(module, x, y, channels_last=True)))
    peak, operations = peak_contender(threads)
    alternate([*contenders, peak], seconds, BURST, PAUSE if threads > 1 else 0.0)
    limit, flops = operations / peak.least, peers.flops(network)
    best = min(contenders[2:], key=lambda contender: contender.median)
    figures: dict[str, Any] = {
        "network": network.name,
        "batch": network.batch,
        "threads": threads,
        "seconds": {contender.name: contender.median for contender in contenders},
        "least_seconds": {contender.name: contender.least for contender in contenders},
        "bursts": len(step.times),
        "best_peer": best.name,
        "flops": flops,
        "peak_flops": limit,
    }
    for ours in contenders[:2]:
        figures[f"{ours.name}_ratio"] = best.median / ours.median
        figures[f"{ours.name}_least_ratio"] = min(c.least for c in contenders[2:]) / ours.least
        figures[f"{ours.name}_share"] = flops / ours.median / limit
    return figures


HEADER = (
    "network", "threads", "step", "fit", "torch", "channels_last", "ratio: step", "fit", "fit, least", "GFLOP/s", "of peak"
)  # fmt: skip


def line(found: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    seconds = found["seconds"]
    times = [
        seconds_text(seconds[name]) if name in seconds else "-"
        for name in ("step", "fit", "torch", "torch channels_last")
    ]
    ratios = [f"{found[name]:.2f}" for name in ("step_ratio", "fit_ratio", "fit_least_ratio")]
    rate = f"{found['flops'] / seconds['fit'] / 1e9:.0f}"
    return (found["network"], str(found["threads"]), *times, *ratios, rate, f"{found['fit_share']:.0%}")


def slowest_rows(network: Network, threads: int, count: int = 10) -> str:
    """The instructions of a step that take the longest."""
    graph = built(network, threads)
    x, y = network.data()
    graph.train_step(x, y, CrossEntropy())
    rows = sorted(graph.profile_rows(x, y, CrossEntropy()), key=lambda row: -row.seconds)[:count]
    return table(
        ("row", "span", "op", "node", "time", "share", "GFLOP/s", "GB/s"),
        [
            (
                str(row.row), row.span, row.op, row.node, seconds_text(row.seconds), f"{row.share:.1%}",
                f"{row.flops / row.seconds / 1e9:.1f}", f"{row.traffic / row.seconds / 1e9:.1f}",
            )
            for row in rows
        ],
        left=(1, 2, 3),
    )  # fmt: skip


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each network and number of threads")
    parser.add_argument("--output", type=Path, metavar="PATH", help="of the figures (default: bench/results/...)")
    parser.add_argument("--rows", action="store_true", help="print the slowest instructions instead")
    args = parser.parse_args()
    if args.rows:
        for name in args.network:
            for threads in args.threads:
                rows = slowest_rows(NETWORKS[name], threads)
                print(f"{NETWORKS[name].title}, threads: {threads}\n{rows}\n", flush=True)
        return
    host = machine()
    print(machine_text(host), flush=True)
    results = []
    for name in args.network:
        network = NETWORKS[name]
        difference = peers.check(network)
        for threads in args.threads:
            found = measure(network, threads, args.seconds)
            results.append({**found, "loss_difference": difference})
            print("  ".join(f"{n} {v}" for n, v in zip(HEADER, line(found))), file=sys.stderr, flush=True)
    print(table(HEADER, [line(found) for found in results], left=(0,)))
    print(f"losses agree within {max(found['loss_difference'] for found in results):.1e} for {peers.STEPS} steps")
    kind = "train" if set(args.network) == set(NETWORKS) else f"train-{'-'.join(args.network)}"
    write_results(args.output or results_path(kind), {"machine": host, "results": results})


if __name__ == "__main__":
    main()
