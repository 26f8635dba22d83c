"""Times inference of networks in ONNX files, ours beside onnxruntime's: the output of one batch.

    python bench/onnx_inference.py [--network NAME ...] [--batch 1 32] [--threads 1 2] [--seconds 1.5] [--output PATH]

A network of the benchmarks, with the running statistics of a few training steps, is exported; onnxruntime and we read that model.
Outputs must agree. Then both are timed in alternating bursts of one run: `predict` of the imported graph, `function`, the
imported formula, and onnxruntime's session with all its optimizations. A ratio is onnxruntime's median over ours, above 1 where ours
is faster.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
from measure import Contender, alternate, machine, machine_text, results_path, write_results

from tapeprop.cli.output import seconds_text, table
from tapeprop.interchange import onnx
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD

try:
    import onnxruntime
except ModuleNotFoundError as error:
    sys.exit(f"{error}; the comparison needs onnxruntime: pip install 'tapeprop[peers]'")

DEFAULT = ("chain", "mlp", "lenet", "branches", "resnet20", "vgg")
TRAINED, BURST = 3, 0.05
#: onnxruntime's threads spin for some 55 ms after a call, on the cores that the next contender is timed on.
PAUSE = 0.1
#: Of outputs, relative to the largest: two ways to round sums of up to 4,096 terms through up to 20 layers.
TOLERANCE = 2e-5


def exported(network: networks.Network) -> bytes:
    """The network after a few training steps, as an ONNX model: statistics as they begin would hide what is made of them."""
    graph = network.graph().build(network.shape)
    graph.set_optimizer(SGD(0.01))
    x, y = network.data()
    for _ in range(TRAINED):
        graph.train_step(x, y, CrossEntropy())
    return onnx.to_model(graph, input_shape=(None, *network.shape[1:])).SerializeToString()


def session(model: bytes, threads: int) -> Any:
    """onnxruntime's, on so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(network: networks.Network, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """The figures of one network. ArithmeticError where outputs differ."""
    model = exported(network)
    x, _ = replace(network, shape=(batch, *network.shape[1:])).data(seed=1)
    graph = onnx.load(model).build((None, *network.shape[1:]), workers=threads)
    function = onnx.load_function(model, workers=threads)
    theirs = session(model, threads)
    name = theirs.get_inputs()[0].name
    contenders = [
        Contender("predict", lambda: graph.predict(x, batch_size=batch)),
        Contender("function", lambda: function(x)),
        Contender("onnxruntime", lambda: theirs.run(None, {name: x})[0]),
    ]
    *ours, expected = [np.asarray(each.call()) for each in contenders]
    difference = max(float(np.abs(y - expected).max() / np.abs(expected).max()) for y in ours)
    if not difference <= TOLERANCE:
        raise ArithmeticError(f"{network.name}: outputs differ by {difference:.1e} of the largest")
    alternate(contenders, seconds, BURST, PAUSE)
    medians = {each.name: each.median for each in contenders}
    least = {each.name: each.least for each in contenders}
    return {
        "network": network.name,
        "batch": batch,
        "threads": threads,
        "seconds": medians,
        "least_seconds": least,
        "bursts": len(contenders[0].times),
        "ratio": medians["onnxruntime"] / medians["predict"],
        "least_ratio": least["onnxruntime"] / least["predict"],
        "output_difference": difference,
    }


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", nargs="+", choices=list(networks.NETWORKS), default=list(DEFAULT), metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32], metavar="N")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each network, batch and number of threads")
    parser.add_argument("--output", type=Path, metavar="PATH", help="of the figures (default: bench/results/...)")
    args = parser.parse_args()
    host = {**machine(), "onnxruntime": onnxruntime.__version__}
    print(machine_text(host), f"onnxruntime {host['onnxruntime']}", sep=", ", flush=True)
    cases = [(name, batch, threads) for name in args.network for batch in args.batch for threads in args.threads]
    found = [measure(networks.NETWORKS[name], batch, threads, args.seconds) for name, batch, threads in cases]
    header = ("network", "batch", "threads", "predict", "function", "onnxruntime", "ratio", "least", "difference")
    lines = [
        (
            *(str(each[name]) for name in header[:3]),
            *(seconds_text(each["seconds"][name]) for name in header[3:6]),
            f"{each['ratio']:.2f}",
            f"{each['least_ratio']:.2f}",
            f"{each['output_difference']:.0e}",
        )
        for each in found
    ]
    print(table(header, lines, left=(0,)))
    write_results(args.output or results_path("onnx"), {"machine": host, "results": found})


if __name__ == "__main__":
    main()
