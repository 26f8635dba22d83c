"""What surrounds the arithmetic: the executor, plans, allocations, and how long a process takes to its first step.

    python bench/infrastructure.py [--cold]

--cold also starts a process with an empty kernel cache, which compiles everything: tens of seconds. Each figure is the
least of its repeats, beside what it is not to exceed; other work on the machine makes all of them larger.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from executor import KERNELS, ROWS, least, make_tape
from measure import machine, machine_text, results_path, write_results
from networks import NETWORKS, chain

from tapeprop import LayerGraph, LayerNode, SequentialNode
from tapeprop.cli.output import seconds_text, size_text, table
from tapeprop.layers import Activation, Dense, Identity
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD
from tapeprop.runtime.executor import BoundTape, aligned_words
from tapeprop.runtime.linker import load_text

ELEMENTS, NODES = 1_000_000, 64
STEPS = 1000
FIRST_STEP = Path(__file__).parent / "first_step.py"


def executor() -> dict[str, float]:
    """Seconds per instruction: of one that does nothing, and of one that adds 16 floats."""
    kernels = load_text(KERNELS, ("empty", "add16"), "the benchmark")
    vectors = aligned_words(3 * 8)
    return {name: least(BoundTape(*make_tape(k, False, vectors)).run, 0.2) / ROWS for name, k in kernels.items()}


def small() -> LayerGraph:
    """Two dense layers, whose arithmetic takes about a microsecond."""
    hidden, head = SequentialNode(Dense(16, 16), Activation.ReLU()), LayerNode(Dense(16, 10))
    return LayerGraph({hidden: [head], head: []}, root=hidden, term=head, seed=0)


def trained(graph: LayerGraph, shape: tuple[int, ...]) -> tuple[Callable[[], float], Any]:
    """(a training step of the graph on one thread, its executable)."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(shape, dtype=np.float32), rng.integers(0, 10, shape[0])
    loss = CrossEntropy()
    graph.build(shape, workers=1).set_optimizer(SGD(0.01, momentum=0.9))
    graph.train_step(x, y, loss)
    _, executable = graph._trainer.step_plan(*graph._step_arguments(x, y, loss, None))
    return lambda: graph.train_step(x, y, loss), executable


def step_overhead(graph: LayerGraph, shape: tuple[int, ...]) -> tuple[float, float]:
    """(seconds of train_step() beyond its native run, those of the native run)."""
    step, executable = trained(graph, shape)
    native = least(executable.run, 0.4)
    return least(step, 0.8) - native, native


def allocations(graph: LayerGraph, shape: tuple[int, ...]) -> dict[str, float]:
    """Bytes of a steady train_step(): kept for ever, in use at most while it runs, and growth of the process in all steps."""
    step, _ = trained(graph, shape)
    for _ in range(STEPS):
        step()
    gc.collect()
    before = _resident()
    for _ in range(STEPS):
        step()
    grown = _resident() - before
    tracemalloc.start()
    step()
    gc.collect()  # empties the free lists of tuples and the like, which count as memory in use
    base = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    step()
    peak = tracemalloc.get_traced_memory()[1]
    for _ in range(STEPS):
        step()
    gc.collect()
    now = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"kept_bytes_per_step": (now - base) / STEPS, "passing_bytes": peak - base, "resident_growth_bytes": grown}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def identity() -> float:
    """Seconds of forward and backward through a chain of Identity nodes: aliases, of which only the ends are copied."""
    nodes = [LayerNode(Identity()) for _ in range(NODES)]
    edges = {a: [b] for a, b in pairwise(nodes)}
    graph = LayerGraph({**edges, nodes[-1]: []}, root=nodes[0], term=nodes[-1])
    graph.build((1, ELEMENTS), dtype="float64", workers=1)
    x, d = np.ones((1, ELEMENTS)), np.ones((1, ELEMENTS))

    def both() -> None:
        graph.forward(x, True)
        graph.backward(d)

    both()
    return least(both, 1.0)


def plan() -> float:
    """Seconds to plan and bind ResNet-20's training step for a batch size that was not seen before."""
    network = NETWORKS["resnet20"]
    graph, loss = network.graph().build(network.shape, workers=1), CrossEntropy()
    graph.set_optimizer(SGD(0.01, momentum=0.9))
    x, y = network.data(2)
    seconds = []
    for batch in (
        64,
        32,
        48,
        80,
        96,
        112,
        128,
    ):  # the first two lower the structure and fill the memory of tile choices
        graph.synchronise_optimizers()
        arguments = graph._step_arguments(x[:batch], y[:batch], loss, None)
        start = time.perf_counter()
        _, executable = graph._trainer.step_plan(*arguments)
        executable.prepare()
        seconds.append(time.perf_counter() - start)
    return min(seconds[2:])


def first_step(cache: str | None = None, repeats: int = 1) -> dict[str, Any]:
    """What a fresh process reports of its way to the first step. cache: its kernel cache, else the usual one."""
    environment = {**os.environ, "TAPEPROP_QUIET": "1"}
    source = str(Path(__file__).parents[1] / "src")
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start would compile our sources
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
    if cache is not None:
        environment["TAPEPROP_CACHE_DIR"] = cache
    found = []
    for _ in range(repeats):
        command = [sys.executable, str(FIRST_STEP), str(time.monotonic())]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(run.stdout))
    return min(found, key=lambda report: report["total"])


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cold", action="store_true", help="start a process with an empty kernel cache, too")
    parser.add_argument("--output", type=Path, default=results_path("infrastructure"), metavar="PATH")
    args = parser.parse_args()
    host = machine()
    print(machine_text(host), flush=True)
    rows: list[tuple[str, str, str]] = []
    figures: dict[str, Any] = {}

    def add(name: str, seconds: float, limit: str = "", more: str = "") -> None:
        figures[name] = seconds
        rows.append((name, seconds_text(seconds) + more, limit))

    for kernel, seconds in executor().items():
        add(f"instruction, {kernel}", seconds)
    for name, graph, shape in (("small network", small(), (8, 16)), ("64-node chain", chain(), (8, 16))):
        beyond, native = step_overhead(graph, shape)
        figures[f"native step, {name}"] = native
        add(f"train_step() beyond its tape, {name}", beyond, "15 us", f" + {seconds_text(native)}")
    found = allocations(small(), (8, 16))
    figures |= found
    kept, passing = found["kept_bytes_per_step"], found["passing_bytes"]
    rows.append(("allocated by a steady train_step(), kept", f"{kept:.1f} B", "0 B"))
    rows.append(("allocated by a steady train_step(), in passing", size_text(int(passing)), ""))
    rows.append((f"growth of the process in {STEPS} steps", size_text(int(found["resident_growth_bytes"])), "0 B"))
    add(f"{NODES} Identity nodes, {ELEMENTS:,} float64, both ways", identity(), "20 ms")
    add("plan of ResNet-20 for a new batch size", plan(), "20 ms")
    starts = [("warm", first_step(repeats=4), "1 s")]
    if args.cold:
        with tempfile.TemporaryDirectory() as folder:
            starts.append(("cold", first_step(folder), "30 s"))
    for kind, report, limit in starts:
        add(f"{kind} process to ResNet-20's first step", report["total"], limit)
        figures[f"{kind} process"] = report
        rows += [(f"    {part}", seconds_text(seconds), "") for part, seconds in report["seconds"].items()]
        rows.append(("    compilers loaded", " ".join(report["loaded"]) or "none", ""))
    print(table(("what", "measured", "goal"), rows, left=(0,)))
    write_results(args.output, {"machine": host, "figures": figures})


if __name__ == "__main__":
    main()
