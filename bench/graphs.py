"""What a graph costs before it runs, and what several losses, edits and threads cost.

    python bench/graphs.py [--seconds 2]

Seconds to declare and build chains of three sizes, up to 20,000 nodes, and to their first run, which plans. Seconds to
build a graph of 1,000 nodes again after an edit, to the first forward and the first training step after it, and the
kernels that were linked for that. A training step with two losses beside the same with one loss and the second head
alone. Two graphs trained in two threads beside one after the other. A default run takes about a minute.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from measure import Contender, alternate, machine, machine_text, results_path, write_results
from networks import CLASSES, NETWORKS, Network, chain

from tapeprop import LayerGraph, LayerNode
from tapeprop.cli.output import seconds_text, table
from tapeprop.layers import Dense, Identity, Layer, Sequential
from tapeprop.losses import MSE, CrossEntropy
from tapeprop.optimizers import SGD
from tapeprop.runtime import linker

SHAPE = (8, 16)
SIZES: dict[str, tuple[Callable[[], Layer], tuple[int, ...], float]] = {
    "Identity": (Identity, (5_000, 10_000, 20_000), 1.0),
    "Dense(16, 16)": (lambda: Dense(16, 16), (1_250, 2_500, 5_000), 5.0),
}
EDITED_NODES, EDITS = 1_000, 5
TWO_LOSSES, THREADED = ("mlp", "lenet"), ("mlp", "chain")
#: Small, since long chains multiply what a step changes.
RATE = 1e-6


class Clock:
    """Collects the seconds of one thing after another."""

    def __init__(self) -> None:
        gc.collect()
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """What went by since the last lap went into `name`."""
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


# ---- building


def build_seconds(make: Callable[[], Layer], count: int) -> dict[str, float]:
    """Seconds of each part of the way from layers to the end of the first run of a chain of `count` nodes."""
    layers = [make() for _ in range(count)]
    x = np.ones(SHAPE, np.float32)
    clock = Clock()
    nodes = [LayerNode(layer) for layer in layers]
    edges = {node: [following] for node, following in pairwise(nodes)}
    graph = LayerGraph({**edges, nodes[-1]: []}, root=nodes[0], term=nodes[-1], seed=0)
    clock.lap("declare")
    graph.build(SHAPE, workers=1)
    clock.lap("build")
    graph.forward(x)
    clock.lap("first forward")
    if any(graph.param_size):
        graph.set_optimizer(SGD(RATE, momentum=0.9))
        clock.lap("")
        graph.train_step(x, x, MSE())
        clock.lap("first step")
    clock.seconds.pop("", None)
    return clock.seconds


def building(repeats: int = 3) -> dict[str, dict[int, dict[str, float]]]:
    """{layer: {nodes: {part: the least seconds}}}."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name, (make, sizes, _) in SIZES.items():
        build_seconds(make, 100)  # imports, kernels
        found[name] = {}
        for count in sizes:
            runs = [build_seconds(make, count) for _ in range(repeats)]
            found[name][count] = {part: min(run[part] for run in runs) for part in runs[0]}
    return found


def building_rows(found: dict[str, dict[int, dict[str, float]]]) -> list[tuple[str, str, str]]:
    """Rows of the table: for each size, then how the time per node grows from the smallest to the largest."""
    rows = []
    for name, by_size in found.items():
        for count, parts in by_size.items():
            goal = f"{SIZES[name][2]:.0f} s" if count == max(by_size) else ""
            rows.append((f"build {count:,} {name} nodes", seconds_text(parts["build"]), goal))
            rows += [(f"    {part}", seconds_text(s), "") for part, s in parts.items() if part != "build"]
        small, large = min(by_size), max(by_size)
        growth = by_size[large]["build"] / large / (by_size[small]["build"] / small)
        rows.append((f"    build per node, {large:,} to {small:,} nodes", f"{growth:.2f}", "1"))
    return rows


# ---- editing


def edit_seconds(insert: Callable[[Layer], Layer]) -> dict[str, float]:
    """Median seconds of each part after a node was put into a chain of EDITED_NODES, and the kernels linked in all edits.

    insert: makes a layer to put in from the layer before it.
    """
    network = Network("chain", "", SHAPE, lambda: chain(EDITED_NODES - 1))
    graph, (x, y), loss = network.graph().build(SHAPE, workers=1), network.data(), CrossEntropy()
    graph.set_optimizer(SGD(RATE, momentum=0.9))
    graph.forward(x)
    graph.train_step(x, y, loss)
    nodes, before, compiling, runs = graph.nodes, len(linker._addresses), linker.compile_seconds(), []
    for place in np.linspace(1, len(nodes) - 2, EDITS).astype(int):
        a, b = nodes[place], nodes[place + 1]
        clock = Clock()
        graph.disconnect(a, b)
        graph.add_node(LayerNode(insert(a.layer)), [a], [b])
        clock.lap("the edit itself")
        graph.build(SHAPE, workers=1)
        clock.lap("build")
        graph.forward(x)
        clock.lap("first forward")
        graph.train_step(x, y, loss)
        clock.lap("first step")
        runs.append(clock.seconds)
    found = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    found["kernels"] = len(linker._addresses) - before
    found["compiling"] = linker.compile_seconds() - compiling
    return found


# ---- two losses


class _Bias(Layer):
    """x + bias: what learns it asks for the gradient of x, as the network before a head does."""

    def __init__(self, features: int):
        self.features = features
        self.bias = self.parameter((features,), "zeros", name="bias")

    def trace(self, x):
        return x + self.bias


def native_step(graph: LayerGraph, x: np.ndarray, y: Any) -> Callable[[], None]:
    """The native run of a training step, on one thread."""
    loss = CrossEntropy()
    graph.build(x.shape, workers=1).set_optimizer(SGD(RATE, momentum=0.9))
    graph.train_step(x, y, loss)
    return graph._trainer.step_plan(*graph._step_arguments(x, y, loss, None))[1].run


def two_losses(network: Network, seconds: float) -> dict[str, float]:
    """Seconds of the native step with one loss, with two, and of the second head alone; medians of bursts in turn."""
    x, y = network.data()
    one, two = network.graph(), network.graph()
    features = two.term.layer.in_features
    (last,) = [node for node in two.nodes if two.term in two[node]]
    two.connect(last, extra := LayerNode(Dense(features, CLASSES)))
    two.term = [two.term, extra]
    head = LayerNode(Sequential(_Bias(features), Dense(features, CLASSES)))
    alone = LayerGraph({head: []}, root=head, term=head, seed=0)
    inner = np.random.default_rng(0).standard_normal((network.batch, features), dtype=np.float32)
    contenders = [
        Contender("one loss", native_step(one, x, y)),
        Contender("two losses", native_step(two, x, [y, y])),
        Contender("second head alone", native_step(alone, inner, y)),
    ]
    alternate(contenders, seconds)
    return {contender.name: contender.median for contender in contenders}


# ---- threads


def threads(network: Network, seconds: float) -> dict[str, float]:
    """Seconds of a step of each of two graphs, one after the other and in two threads; of train_step() and of fit()."""
    x, y = network.data(20)
    batch, loss = network.batch, CrossEntropy()
    graphs = [network.graph().build(network.shape, workers=1) for _ in range(2)]
    for graph in graphs:
        graph.set_optimizer(SGD(RATE, momentum=0.9))

    def steps(graph: LayerGraph) -> None:
        for start in range(0, len(x), batch):
            graph.train_step(x[start : start + batch], y[start : start + batch], loss)

    def epochs(graph: LayerGraph) -> None:
        graph.fit(x, y, loss=loss, batch_size=batch, epochs=5, metrics=(), verbose=0)

    contenders = []
    with ThreadPoolExecutor(2) as pool:
        for name, work, count in (("train_step", steps, 20), ("fit", epochs, 100)):
            one_by_one: Callable[[], object] = lambda work=work: [work(graph) for graph in graphs]  # noqa: E731
            at_once: Callable[[], object] = lambda work=work: list(pool.map(work, graphs))  # noqa: E731
            contenders += [
                Contender(f"{name}, one after the other", one_by_one, count),
                Contender(f"{name}, in two threads", at_once, count),
            ]
        alternate(contenders, 2 * seconds, length=0.2)
    return {contender.name: contender.median for contender in contenders}


# ---- the table


def edit_rows(name: str, found: dict[str, float]) -> Sequence[tuple[str, str, str]]:
    """Rows of the table for one kind of edit."""
    kernels = f"{found['kernels']:.0f} kernels linked, {seconds_text(found['compiling'])} compiling"
    return [
        (f"build {EDITED_NODES:,} nodes again, {name} put in", seconds_text(found["build"]), "200 ms"),
        *(
            (f"    {part}", seconds_text(found[part]), "")
            for part in ("the edit itself", "first forward", "first step")
        ),
        (f"    in all {EDITS} edits", kernels, "0"),
    ]


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each comparison of steps (default: 2)")
    parser.add_argument("--output", type=Path, default=results_path("graphs"), metavar="PATH")
    args = parser.parse_args()
    host = machine()
    print(machine_text(host), flush=True)
    built = building()
    figures: dict[str, Any] = {"building": built, "editing": {}, "two losses": {}, "threads": {}}
    rows = building_rows(built)
    for name, insert in (("an Identity", lambda _: Identity()), ("a copy of a node", copy.deepcopy)):
        found = figures["editing"][name] = edit_seconds(insert)
        rows += edit_rows(name, found)
    for name in TWO_LOSSES:
        found = figures["two losses"][name] = two_losses(NETWORKS[name], args.seconds)
        share = found["two losses"] / (found["one loss"] + found["second head alone"])
        rows.append((f"step of {name} with two losses, to one loss + head alone", f"{share:.3f}", "1.05"))
        rows += [(f"    {part}", seconds_text(seconds), "") for part, seconds in found.items()]
    for name in THREADED:
        found = figures["threads"][name] = threads(NETWORKS[name], args.seconds)
        for call in ("train_step", "fit"):
            gain = found[f"{call}, one after the other"] / found[f"{call}, in two threads"]
            rows.append((f"throughput of two {name} graphs in two threads, {call}", f"x {gain:.2f}", ""))
    print(table(("what", "measured", "goal"), rows, left=(0,)))
    write_results(args.output, {"machine": host, "figures": figures})


if __name__ == "__main__":
    main()
