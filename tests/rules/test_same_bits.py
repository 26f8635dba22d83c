"""Rule 15: the same seed gives the same bits, for any number of workers, any PYTHONHASHSEED, any batch history, planned or not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_graphs import Recipe, build, for_random_graphs
from rules.networks import assert_same_bits, images, labels, state, vision

from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Dropout, Flatten, Identity, Sequential
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import Adam
from tapeprop.runtime.network import Network
from tapeprop.runtime.plans import Options

LOSS = CrossEntropy()
TESTS = Path(__file__).parent.parent


def residual(seed: int = 0, **build_options) -> LayerGraph:
    """Branches, a shortcut, a concatenation, dropout, two heads: (N, 2, 6, 6) -> (N, 3) twice."""
    stem = LayerNode(Sequential(Conv2D(2, 4, 3), BatchNorm2D(4), Activation.ReLU()), name="stem")
    left = LayerNode(Sequential(Conv2D(4, 4, 3), Activation.ReLU()), name="left")
    right = LayerNode(Conv2D(4, 4, 1), name="right")
    join = LayerNode(Activation.ReLU(), MergeMode.SUM, name="join")
    wide = LayerNode(Dropout(0.3), MergeMode.CHCAT, name="wide")
    flat = LayerNode(Flatten(), name="flat")
    a, b = LayerNode(Dense(288, 3), name="a"), LayerNode(Dense(288, 3), name="b")
    edges = {stem: [left, right, join], left: [join], right: [join, wide], join: [wide], wide: [flat], flat: [a, b]}
    graph = LayerGraph(edges, root=stem, term=[a, b], seed=seed)
    return graph.build((None, 2, 6, 6), **{"dtype": "float64", **build_options})


def trained(make=residual, steps=3, sizes=(16, 6), **options) -> dict[str, np.ndarray]:
    """State and outputs after some steps of either kind."""
    graph = make(**options)
    graph.set_optimizer(Adam(0.02))
    found = {}
    listed = isinstance(graph.term, list)
    for i in range(steps):
        size = sizes[i % len(sizes)]
        x, y = images(i, (size, 2, 6, 6)), labels(size, i)
        found[f"loss {i}"] = np.array(graph.train_step(x, [y, y] if listed else y, LOSS))
        out = graph.forward(x, True)
        found[f"dx {i}"] = graph.backward()
        graph.update()
        for k, z in enumerate(out if listed else [out]):
            found[f"y{k} {i}"] = z
    x, y = images(9, (40, 2, 6, 6)), labels(40)
    graph.fit(x, [y, y] if listed else y, loss=LOSS, batch_size=16, epochs=2, seed=3, verbose=0)
    predicted = graph.predict(x, batch_size=7)
    for k, z in enumerate(predicted if listed else [predicted]):
        found[f"predicted {k}"] = z
    return found | state(graph)


@pytest.fixture
def every_worker_counts(monkeypatch):
    """Small tapes would go to one worker."""
    monkeypatch.setattr("tapeprop.runtime.executable.worthwhile_workers", lambda tape, workers: workers)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_any_number_of_workers(dtype, every_worker_counts):
    expected = trained(dtype=dtype, workers=1)
    for workers in (2, 3, 5, 8):
        assert_same_bits(trained(dtype=dtype, workers=workers), expected)


def test_the_default_number_of_workers_too():
    assert_same_bits(trained(vision, dtype="float64"), trained(vision, dtype="float64", workers=1))


@for_random_graphs(20)
def test_any_number_of_workers_on_random_graphs(recipe: Recipe) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tapeprop.runtime.executable.worthwhile_workers", lambda tape, workers: workers)
        alone, together = (outcome(build(recipe, workers=workers)) for workers in (1, 3))
    assert_same_bits(together, alone)


def outcome(case) -> dict[str, np.ndarray]:
    graph = case.graph
    outputs = graph.forward(case.inputs if isinstance(graph.root, list) else case.inputs[0], case.training)
    inputs = graph.backward(case.d_out)
    inputs = inputs if isinstance(graph.root, list) else [inputs]
    named = {f"y{i}": y for i, y in enumerate(outputs)} | {f"dx{i}": dx for i, dx in enumerate(inputs)}
    return named | state(graph)


@for_random_graphs(20)
def test_planned_memory_is_memory_of_ones_own(recipe: Recipe) -> None:
    planned = build(recipe)
    expected = outcome(planned)
    apart = build(recipe)
    unshare(apart.graph)
    assert_same_bits(outcome(apart), expected)


def unshare(graph: LayerGraph) -> None:
    """Gives the built graph a network that lets no two values share memory."""
    network = Network(
        graph.trace_all,
        Options(graph.dtype, workers=1, share_memory=False),
        graph._random,
        graph._frozen_parameters,
    )
    graph._network = network
    graph._trainer.network = network


def test_training_planned_and_unplanned():
    def apart(**options):
        graph = residual(**options)
        unshare(graph)
        return graph

    sizes = []
    for make in (residual, apart):
        graph = make()
        graph.forward(images(0, (16, 2, 6, 6)), True)
        sizes.append(graph._network.retained_arena.array.nbytes)
    assert sizes[0] < sizes[1]  # there was something to share
    assert_same_bits(trained(apart), trained())


def test_the_same_seed_twice_and_another_one():
    first, second, other = trained(), trained(), trained(seed=1)
    assert_same_bits(first, second)
    assert (first["loss 0"] != other["loss 0"]).any()


def test_what_ran_before_does_not_matter():
    """Plans, arenas and caches of other sizes and modes leave no trace in the numbers."""
    plain, busy = residual(), residual()
    busy.forward(images(1, (24, 2, 6, 6)), False)
    busy.backward()
    busy.predict(images(2, (33, 2, 6, 6)), batch_size=5)
    busy.zero_grad()
    for graph in (plain, busy):
        graph.set_optimizer(Adam(0.02))
        for i in range(2):
            graph.train_step(images(i, (16, 2, 6, 6)), [labels(16, i)] * 2, LOSS)
    assert_same_bits(state(plain), state(busy))


def digest() -> str:
    """Of everything that training leaves."""
    found = trained(steps=2)
    text = b"".join(name.encode() + value.tobytes() for name, value in found.items())
    return hashlib.sha256(text).hexdigest()


def test_any_hash_seed():
    """In processes of their own: no set or dict of hashes decides an order."""
    program = "import sys; sys.path[:0] = sys.argv[1:]; from rules.test_same_bits import digest; print(digest())"
    found = {digest()}
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(TESTS), str(TESTS.parent / "src")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout.strip())
    assert len(found) == 1, found


def test_identity_chains_keep_every_bit():
    nodes = [LayerNode(Identity()) for _ in range(10)]
    graph = LayerGraph(dict(zip(nodes, [[n] for n in nodes[1:]] + [[]], strict=True)), root=nodes[0], term=nodes[-1])
    graph.build(dtype="float32")
    x = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint32).view(np.float32).reshape(8, 8)
    x[np.isnan(x)] = np.float32(1.5)
    assert graph.forward(x).tobytes() == x.tobytes()
    assert graph.backward(x).tobytes() == x.tobytes()
