"""What a training step may cost in exact figures: instructions, arithmetic, bytes moved, memory, barriers, and work done before it runs.

The figures repeat from run to run and from machine to machine, so a budget is what the step costs now. A figure above its budget fails:
something has become dearer; find out what, and raise the budget only where that is worth it. A figure that undercuts its budget by more
than SLACK fails as well: lower the budget to what was won, so that it stays won.

Batches are of 16, since vector lanes hold 16 samples whatever the machine's vectors hold; then only scratch memory depends on them.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import tapeprop as tp
from tapeprop.initializers import uniform
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Flatten, GlobalAvgPool2D, Layer, MaxPool2D
from tapeprop.ops import tanh
from tapeprop.profiler.profile import Profile
from tapeprop.targets.cpu.machine import is_x86, vector_bits, vector_registers

SLACK = 0.05

ROOT = Path(__file__).parents[2]


class Residual(Layer):
    """x + tanh(Dense(x))."""

    def __init__(self, width: int):
        bound = 1 / math.sqrt(width)
        self.dense = Dense(width, width, initializer=partial(uniform, low=-bound, high=bound))

    def trace(self, x):
        return x + tanh(self.dense(x))


def line(*nodes: tp.LayerNode) -> tp.LayerGraph:
    edges = {a: [b] for a, b in pairwise(nodes)}
    return tp.LayerGraph({**edges, nodes[-1]: []}, root=nodes[0], term=nodes[-1], seed=0)


def chain() -> tp.LayerGraph:
    steps = [tp.LayerNode(Residual(16), name=f"step{i}") for i in range(64)]
    return line(*steps, tp.LayerNode(Dense(16, 10), name="head"))


def mlp() -> tp.LayerGraph:
    first = tp.SequentialNode(Dense(784, 256), Activation.ReLU(), name="first")
    second = tp.SequentialNode(Dense(256, 128), Activation.ReLU(), name="second")
    return line(first, second, tp.LayerNode(Dense(128, 10), name="head"))


def lenet() -> tp.LayerGraph:
    return line(
        tp.SequentialNode(Conv2D(1, 6, 5), Activation.ReLU(), MaxPool2D(2), name="first"),
        tp.SequentialNode(Conv2D(6, 16, 5, padding="valid"), Activation.ReLU(), MaxPool2D(2), Flatten(), name="second"),
        tp.SequentialNode(Dense(400, 120), Activation.ReLU(), name="third"),
        tp.SequentialNode(Dense(120, 84), Activation.ReLU(), name="fourth"),
        tp.LayerNode(Dense(84, 10), name="head"),
    )


def resnet20() -> tp.LayerGraph:
    graph = tp.LayerGraph(seed=0)

    def add(name: str, *layers: Layer, after: list[tp.LayerNode]) -> tp.LayerNode:
        node = tp.SequentialNode(*layers, name=name)
        graph.add_node(node, prev_nodes=after)
        return node

    def conv(before: int, channels: int, size: int, stride: int = 1) -> list[Layer]:
        return [Conv2D(before, channels, size, stride, bias=False), BatchNorm2D(channels)]

    x = graph.root = add("stem", *conv(3, 16, 3), Activation.ReLU(), after=[])
    before = 16
    for channels in (16, 32, 64):
        for block in range(3):
            name, stride = f"block{channels}_{block}", 1 if channels == before else 2
            inner = add(f"{name}_first", *conv(before, channels, 3, stride), Activation.ReLU(), after=[x])
            inner = add(f"{name}_second", *conv(channels, channels, 3), after=[inner])
            short = x if stride == 1 else add(f"{name}_short", *conv(before, channels, 1, stride), after=[x])
            x = add(name, Activation.ReLU(), after=[inner, short])
            before = channels
    graph.term = add("head", GlobalAvgPool2D(), Flatten(), Dense(64, 10), after=[x])
    return graph


NETWORKS: dict[str, tuple[Callable[[], tp.LayerGraph], tuple[int, ...]]] = {
    "chain": (chain, (16, 16)),
    "mlp": (mlp, (16, 784)),
    "lenet": (lenet, (16, 1, 28, 28)),
    "resnet20": (resnet20, (16, 3, 32, 32)),
}
BUDGETS = {
    "chain": {"instructions": 390, "barriers": 261, "flops": 2_290_224, "bytes": 1_608_092, "arena_bytes": 132_864},
    "mlp": {"instructions": 18, "barriers": 13, "flops": 17_086_128, "bytes": 7_103_388, "arena_bytes": 41_728},
    "lenet": {"instructions": 35, "barriers": 26, "flops": 36_991_536, "bytes": 6_776_700, "arena_bytes": 970_240},
    "resnet20": {
        "instructions": 154, "barriers": 128, "flops": 3_977_942_512, "bytes": 224_000_668, "arena_bytes": 25_373_568,
    },
}  # fmt: skip
#: Of each worker, by the width of vectors where there are 16 of them: tiles follow both. Others are held to twice the larger of these.
SCRATCH = {
    "chain": {128: 512, 256: 1_024},
    "mlp": {128: 25_088, 256: 50_176},
    "lenet": {128: 28_800, 256: 25_600},
    "resnet20": {128: 101_376, 256: 52_224},
}
#: What comes before the first step: one program, planned once. Later ones find both.
FRESH = {"lowerings": 1, "plans": 1, "plan_hits": 0}
FOUND = {"lowerings": 0, "plans": 0, "plan_hits": 1}


def breaches(figures: Mapping[str, int], budget: Mapping[str, int]) -> list[str]:
    """What is above its budget or so far below that the budget ought to follow; empty where all is well."""
    found = []
    for name, most in budget.items():
        if figures[name] > most:
            found.append(f"{name}: {figures[name]:,} is above the budget of {most:,}")
        elif figures[name] < (1 - SLACK) * most:
            found.append(f"{name}: {figures[name]:,} is far below the budget of {most:,}; lower it")
    return found


def fresh_graph(name: str, workers: int) -> tp.LayerGraph:
    make, shape = NETWORKS[name]
    graph = make().build(shape, workers=workers)
    graph.set_optimizer(tp.optimizers.SGD(0.1, momentum=0.9))
    return graph


def profiled(name: str, graph: tp.LayerGraph) -> Profile:
    shape, rng = NETWORKS[name][1], np.random.default_rng(0)
    X, y = rng.standard_normal(shape, dtype=np.float32), rng.integers(0, 10, shape[0])
    return graph.profile(X, y, tp.losses.CrossEntropy(), repeats=2)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_keeps_to_its_budget(name: str) -> None:
    profile = profiled(name, fresh_graph(name, 1))
    assert breaches(profile.counters, BUDGETS[name]) == []
    known, bits = SCRATCH[name], vector_bits()
    if bits in known and vector_registers() == 16:
        assert breaches(profile.counters, {"scratch_bytes": known[bits]}) == []
    else:
        assert profile.counters["scratch_bytes"] <= 2 * max(known.values())
    assert {key: profile.counters[key] for key in FRESH} == FRESH


@pytest.mark.parametrize("name", NETWORKS)
def test_figures_repeat_in_another_graph_and_with_other_workers(name: str) -> None:
    """Scratch memory belongs to workers; all else is the same however many there are."""
    first, again, two = (profiled(name, fresh_graph(name, workers)) for workers in (1, 1, 2))
    assert again.counters == first.counters
    assert again.tapes[0].rows == first.tapes[0].rows
    workers = two.tapes[0].workers
    assert workers == (1 if name == "chain" else 2)  # the rows of the chain are shorter than a barrier
    assert two.counters == {**first.counters, "scratch_bytes": workers * first.counters["scratch_bytes"]}


@pytest.mark.parametrize("name", ["chain", "lenet"])
def test_a_second_profile_finds_what_the_first_has_made(name: str) -> None:
    graph = fresh_graph(name, 1)
    first, second = profiled(name, graph), profiled(name, graph)
    assert second.counters == {**first.counters, **FOUND}


@pytest.mark.slow
def test_budgets_hold_on_narrower_vectors() -> None:
    """The same tests in a process that is held to 128 bits."""
    if vector_bits() == 128 or not is_x86():
        pytest.skip("no narrower vectors here")
    chosen = [f"{__file__}::test_a_step_keeps_to_its_budget[{name}]" for name in ("chain", "mlp", "lenet")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={ROOT}", f"-c={ROOT / 'pyproject.toml'}", *chosen],
        env={**os.environ, "TAPEPROP_VECTOR_BITS": "128"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (100, []),
        (95, []),
        (94, ["flops: 94 is far below the budget of 100; lower it"]),
        (101, ["flops: 101 is above the budget of 100"]),
    ],
)
def test_budgets_are_kept_from_both_sides(figure: int, expected: list[str]) -> None:
    assert breaches({"flops": figure, "bytes": 7}, {"flops": 100, "bytes": 7}) == expected
