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
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from executor import ROWS, least, make_tape, mean
from measure import machine, machine_text, write_results
from networks import NETWORKS, Network

from tapeprop import LayerGraph, LayerNode
from tapeprop.cli.output import seconds_text, table
from tapeprop.layers import Identity
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD
from tapeprop.runtime.executor import BoundTape, aligned_words
from tapeprop.runtime.linker import load_text

ELEMENTS, NODES = 1_000_000, 64
START = Path(__file__).parent / "first_step.py"
LIMITS = {
    "instruction": 50e-9,
    "instruction, 16 floats added": 50e-9,
    "train_step beyond its tape": 15e-6,
    "64 Identity nodes, 1M float64, forward and backward": 20e-3,
    "plan of ResNet-20 for a new batch size": 20e-3,
    "warm process to the end of ResNet-20's first step": 1.0,
    "cold process to the end of ResNet-20's first step": 30.0,
}


def executor_seconds() -> dict[str, float]:
    """Per instruction: one that does nothing, and one that adds 16 floats."""
    from executor import KERNELS

    kernels = load_text(KERNELS, ("empty", "add16"), "the benchmark")
    vectors = aligned_words(3 * 8)
    names = {"empty": "instruction", "add16": "instruction, 16 floats added"}
    return {
        names[name]: least(BoundTape(*make_tape(kernel, False, vectors)).run, 0.2) / ROWS
        for name, kernel in kernels.items()
    }


def built(network: Network) -> tuple[LayerGraph, Callable[[], float]]:
    """(the graph with an optimizer, a training step of it on one thread)."""
    graph = network.graph().build(network.shape, workers=1)
    graph.set_optimizer(SGD(0.01, momentum=0.9))
    x, y = network.data()
    loss = CrossEntropy()
    return graph, lambda: graph.train_step(x, y, loss)


def step_overhead() -> float:
    """Seconds of train_step() that its tape does not take, for the digits network: checks, plan look-up, binding."""
    network = NETWORKS["mlp"]
    graph, step = built(network)
    x, y = network.data()
    step()
    session = graph.fit_session([x], [y], [CrossEntropy()], [1.0], network.batch)
    order = np.arange(len(x))
    del session, order
    whole = least(step, 1.0)
    native = min(_native_seconds(graph, x, y) for _ in range(5))
    return whole - native


def _native_seconds(graph: LayerGraph, x: np.ndarray, y: np.ndarray) -> float:
    return sum(row.seconds for row in graph.profile_rows(x, y, CrossEntropy(), repeats=50))


def identity_seconds() -> float:
    """Forward and backward through a chain of Identity nodes: aliases, so that nothing is copied in between."""
    nodes = [LayerNode(Identity()) for _ in range(NODES)]
    edges = {a: [b] for a, b in zip(nodes, nodes[1:])}
    graph = LayerGraph({**edges, nodes[-1]: []}, root=nodes[0], term=nodes[-1])
    graph.build((1, ELEMENTS), dtype="float64", workers=1)
    x, d = np.ones((1, ELEMENTS)), np.ones((1, ELEMENTS))

    def both() -> None:
        graph.forward(x, True)
        graph.backward(d)

    both()
    return least(both, 1.0)
