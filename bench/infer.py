"""Times inference, ours beside torch's and JAX's: the output of one batch in evaluation mode.

    python bench/infer.py [--network NAME ...] [--batch 1] [--threads 1 2] [--seconds 1.5] [--no-compile] [--no-jax]

All sides have the weights and running statistics of a few training steps, and their outputs must agree. Then everything
is timed in alternating bursts of one run: `forward`, our forward(), which keeps what a backward() would need; `predict`,
which keeps nothing; torch under inference_mode, eager in NCHW and in channels_last and compiled by Inductor; JAX under
jit. Ratios are torch's best median over ours, and the share of the peak is as in `train`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import compare
import numpy as np
from measure import Contender
from networks import Network

from tapeprop import LayerGraph
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD

try:
    import peers
    import torch
except ModuleNotFoundError as error:
    sys.exit(f"{error}; the comparison needs torch: pip install 'tapeprop[peers]'")

DEFAULT = ("lenet", "resnet20", "vgg")
TRAINED = 3
#: Of outputs from torch's in float64, relative to the largest. float32 rounds at 6e-8; sums of up to 4,096 terms and up
#: to 20 layers one after another multiply that by some tens.
TOLERANCE = 1e-5


def built(network: Network, threads: int) -> LayerGraph:
    """The graph after a few training steps: running statistics as they begin would hide what is made of them."""
    graph = network.graph().build(network.shape, workers=threads)
    graph.set_optimizer(SGD(peers.RATE, momentum=peers.MOMENTUM))
    x, y = network.data()
    for _ in range(TRAINED):
        graph.train_step(x, y, CrossEntropy())
    return graph


def check(network: Network, outputs: dict[str, np.ndarray], exact: np.ndarray) -> dict[str, float]:
    """{side: difference of its output from the exact one}. ArithmeticError beyond TOLERANCE."""
    worst = {side: peers.difference(output, exact) for side, output in outputs.items()}
    if not all(value <= TOLERANCE for value in worst.values()):
        raise ArithmeticError(f"{network.name}: outputs differ from torch's in float64 by {worst}")
    return worst


def measure(network: Network, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one network at one number of threads."""
    torch.set_num_threads(threads)
    jax = peers.jax(threads) if args.jax else None
    graph = built(network, threads)
    network = replace(network, shape=(args.batch, *network.shape[1:]))
    x, _ = network.data(seed=1)

    def its_forward(channels_last: bool, compiled: bool) -> peers.Call:
        module = peers.copied(graph, network.name).eval()
        return peers.forward_of(torch.compile(module) if compiled else module, x, channels_last)

    ours = [Contender("forward", lambda: graph.forward(x)), Contender("predict", lambda: graph.predict(x))]
    others = [Contender("jax", jax.forward_of(graph, network.name, x))] if jax else []
    torchs, compile_seconds = peers.contenders(its_forward, network, args.compile)
    outputs = {each.name: np.asarray(each.call()) for each in (*ours, *torchs, *others)}
    exact = peers.forward_of(peers.copied(graph, network.name).double(), x)().numpy()
    differences = check(network, outputs, exact)
    flops = peers.flops(its_forward(False, False))
    found = compare.figures(network, threads, args.seconds, ours, torchs, others, flops)
    return {**found, "compile_seconds": compile_seconds, "output_difference": differences}


def main() -> None:
    """Prints the table and writes the figures."""
    parser = compare.parser(__doc__, DEFAULT, 1.5)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="samples of a call (default: 1)")
    args = parser.parse_args()
    kind = "infer" if set(args.network) == set(DEFAULT) else f"infer-{'-'.join(args.network)}"
    kind += f"-batch{args.batch}" if args.batch != 1 else ""
    if found := compare.run(kind, args, measure, ("forward", "predict")):
        worst = max(value for each in found for value in each["output_difference"].values())
        print(f"outputs differ from torch's in float64 by at most {worst:.1e} of the largest")


if __name__ == "__main__":
    main()
