"""Times training steps on a GPU: replayed as one captured graph, launched row by row, and torch's on the same GPU.

    python bench/cuda.py [--network NAME ...] [--seconds 1.5] [--rows] [--output PATH]

`step`: train_step() on one batch of the host. `fit`: a session of many steps per host call on data that stays on the device.
`plain`: the same as `fit`, each row a launch of its own. Where torch finds the GPU it trains the same network from the same
weights there, eager and on a batch that lies on the device, with and without TF32; the losses of the first steps must agree.
Also printed: microseconds per launch and per node of a graph, and what the capture of a step costs. `--rows` adds the time
of each instruction.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import Contender, alternate, machine, machine_text, results_path, write_results
from networks import NETWORKS, Network, without_dropout

from tapeprop import LayerGraph
from tapeprop.cli.output import seconds_text, table
from tapeprop.errors import DeviceError
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD
from tapeprop.runtime.cuda_cache import open_device
from tapeprop.targets.cuda.driver import Driver

RATE, MOMENTUM = 0.01, 0.9
FIT_STEPS = 50
TOLERANCE = 2e-3


def built(network: Network) -> LayerGraph:
    """The graph on the GPU, ready to train; without dropout, which two frameworks draw differently."""
    graph = without_dropout(network.graph()).build(network.shape, device="cuda")
    graph.set_optimizer(SGD(RATE, momentum=MOMENTUM))
    return graph


def fit_contender(name: str, network: Network) -> Contender:
    """Steps on batches of an array that stays on the device, `FIT_STEPS` of them in a host call."""
    graph = built(network)
    x, y = network.data(FIT_STEPS)
    session = graph.fit_session([x], [y], [CrossEntropy()], [1.0], network.batch)
    order = np.random.default_rng(0).permutation(len(x))

    def call() -> None:
        session.start_epoch(order)
        if session.run(FIT_STEPS) != FIT_STEPS:
            raise RuntimeError("the session ran fewer steps than asked for")

    return Contender(name, call, FIT_STEPS)


class PlainLaunches:
    """Inside its block nothing is captured: every row is launched by itself."""

    def __init__(self, driver: Driver):
        self.driver = driver

    def __enter__(self) -> None:
        self.driver.capture_failure = "switched off by the benchmark"

    def __exit__(self, *_: object) -> None:
        self.driver.capture_failure = None


def plain_contender(network: Network, driver: Driver) -> Contender:
    """As `fit_contender`, every row launched by itself."""
    inner = fit_contender("plain", network)

    def call() -> None:
        with PlainLaunches(driver):
            inner.call()

    return Contender("plain", call, FIT_STEPS)


def torch_contenders(network: Network, losses: list[float]) -> list[Contender]:
    """torch on the same GPU, with and without TF32; none where it finds no GPU. losses: ours of the first steps, to compare."""
    try:
        import torch
    except ModuleNotFoundError:
        return []
    if not torch.cuda.is_available():
        return []
    found = []
    for name, tf32 in (("torch", False), ("torch tf32", True)):
        step = _torch_step(network, tf32)
        if not tf32:
            theirs = [float(step()) for _ in losses]
            if not np.allclose(losses, theirs, rtol=TOLERANCE):
                raise RuntimeError(f"{network.name}: our losses {losses}, torch's {theirs}")

        def call(step: Callable[[], Any] = step) -> None:
            step()
            torch.cuda.synchronize()

        found.append(Contender(name, call))
    return found


def _torch_step(network: Network, tf32: bool) -> Callable[[], Any]:
    import peers
    import torch

    module = peers.copied(without_dropout(network.graph()).build(network.shape), network.name)
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    module = module.cuda()
    x, y = (torch.from_numpy(a).cuda() for a in network.data())
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=MOMENTUM)

    def step() -> Any:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(module(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def overheads(network: Network, driver: Driver) -> dict[str, float]:
    """Microseconds: of a capture of the step, of one replay per node on the host, and of a plain launch per row."""
    graph = built(network)
    x, y = network.data()
    begin = time.perf_counter()
    graph.train_step(x, y, CrossEntropy())
    first = time.perf_counter() - begin
    (plan,) = [p for key, p in graph._network.plans.items() if isinstance(p, tuple) and p[1].name == "train_step"]
    executable = plan[1]
    rows = len(executable.tape.rows)
    launch = executable._launch_of(0, rows)
    for _ in range(3):
        launch()
    driver.synchronize()
    begin = time.perf_counter()
    for _ in range(20):
        launch()
    queued = time.perf_counter() - begin
    driver.synchronize()
    whole = time.perf_counter() - begin
    begin = time.perf_counter()
    executable._launch_rows(range(rows))
    plain = time.perf_counter() - begin
    driver.synchronize()
    return {
        "rows": rows,
        "first step ms": 1e3 * first,
        "replay host us": 1e6 * queued / 20,
        "replay us per node": 1e6 * whole / 20 / rows,
        "plain host us per launch": 1e6 * plain / rows,
    }


def measure(network: Network, driver: Driver, seconds: float, rows: bool) -> dict[str, Any]:
    """The figures of one network."""
    graph = built(network)
    x, y = network.data()
    losses = [graph.train_step(x, y, CrossEntropy()) for _ in range(3)]
    ours = [
        Contender("step", lambda: graph.train_step(x, y, CrossEntropy())),
        fit_contender("fit", network),
        plain_contender(network, driver),
    ]
    theirs = torch_contenders(network, losses)
    alternate([*ours, *theirs], seconds)
    found: dict[str, Any] = {"network": network.name, "batch": network.batch, "losses": losses}
    found["seconds"] = {contender.name: contender.median for contender in (*ours, *theirs)}
    found["overheads"] = overheads(network, driver)
    if theirs:
        found["ratio"] = min(c.median for c in theirs if "tf32" not in c.name) / found["seconds"]["fit"]
    if rows:
        profile = graph.profile(x, y, CrossEntropy(), repeats=20)
        print(profile.table("instruction", top=40))
        found["rows"] = [{"op": row.label, "node": row.node} for row in profile.tapes[0].rows]
    return found


def main() -> int:
    """Measures, prints, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each network")
    parser.add_argument("--rows", action="store_true", help="print the time of each instruction")
    parser.add_argument("--output", type=Path, metavar="PATH", help="of the figures (default: bench/results/...)")
    args = parser.parse_args()
    try:
        driver = open_device("bench")
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 1
    if driver.simulated:
        print("times in the simulator say nothing; unset NUMBA_ENABLE_CUDASIM", file=sys.stderr)
        return 1
    figures: dict[str, Any] = {**machine(), "gpu": driver.describe(), "networks": []}
    print(machine_text(figures))
    print(figures["gpu"])
    for name in args.network:
        found = measure(NETWORKS[name], driver, args.seconds, args.rows)
        figures["networks"].append(found)
        cells = [[label, seconds_text(value)] for label, value in found["seconds"].items()]
        cells += [[label, f"{value:.2f}"] for label, value in found["overheads"].items()]
        print(f"\n{NETWORKS[name].title}" + (f": torch / fit {found['ratio']:.2f}" if "ratio" in found else ""))
        print(table(["", ""], cells))
    write_results(args.output or results_path("cuda"), figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
