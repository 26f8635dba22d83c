"""`graph.diagnose()`: what it tells of a tape that has not run, where, why and what to do; and that it is silent where all is fine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tapeprop import LayerGraph, LayerNode, ops
from tapeprop.cli.digits import digits_network
from tapeprop.compiler.layout import batch_lanes
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Flatten, Lambda, PythonLayer, Sequential
from tapeprop.runtime import diagnosis

KEYS = {"row", "span", "op", "node", "why", "remedy"}


class Same(PythonLayer):
    """The identity in NumPy."""

    def forward(self, x):
        return x

    def backward(self, d_out):
        return d_out


@ops.kernel
class AloneTwice:
    """2 x by one worker."""

    def kernel(x, y):
        for i in range(x.size):
            y[i] = 2 * x[i]

    flat = True

    def gradient(dy):
        return dy * 2


def line(*layers: Any, **build: Any) -> LayerGraph:
    nodes = [LayerNode(layer, name=f"n{i}") for i, layer in enumerate(layers)]
    edges = {node: nodes[i + 1 : i + 2] for i, node in enumerate(nodes)}
    graph = LayerGraph(edges, root=nodes[0], term=nodes[-1], seed=0)
    return graph.build(build.pop("shape", None), **build)


def findings(graph: LayerGraph) -> list[dict[str, str]]:
    found = graph.diagnose()
    rows = list(found)
    assert len(found) == len(rows)
    assert all(set(row) == KEYS and row["why"] and row["remedy"] for row in rows)
    text = " ".join(str(found).split())
    assert all(" ".join(row["why"].split()) in text for row in rows)
    return rows


@pytest.mark.parametrize("batch", [16, 32])
def test_silent_where_all_is_fine(batch: int) -> None:
    graph = digits_network().build((batch, 1, 8, 8), workers=2)
    assert findings(graph) == []
    assert str(graph.diagnose()).splitlines() == [
        f"training tape, input ({batch}, 1, 8, 8)",
        f"all {len(graph.tape)} instructions run natively",
    ]


def test_open_sizes_are_said() -> None:
    graph = digits_network().build((None, 1, 8, 8))
    assert findings(graph) == []
    assert "sizes are open" in str(graph.diagnose())
    graph.forward(np.zeros((7, 1, 8, 8)), True)
    assert ["a batch of 7" in row["why"] for row in findings(graph)] == [True]


@pytest.mark.parametrize(("dtype", "batch"), [("float32", 20), ("float32", 1), ("float64", 13), ("float64", 41)])
def test_a_batch_that_fills_no_lanes(dtype: str, batch: int) -> None:
    graph = line(Conv2D(2, 4, 3), Activation.ReLU(), Conv2D(4, 2, 3), shape=(batch, 2, 5, 5), dtype=dtype)
    (finding,) = findings(graph)
    assert f"a batch of {batch} does not fill the vector lanes of {dtype}" in finding["why"]
    assert (finding["row"], finding["node"]) == ("", "")
    offered = [int(word) for word in finding["remedy"].replace(":", "").split() if word.isdigit()][1:-1]
    assert offered
    assert all(batch_lanes(dtype, size) is not None for size in offered)
    assert min(abs(size - batch) for size in offered) < 16


def test_batches_that_no_convolution_would_gain_from() -> None:
    assert findings(line(Dense(4, 3), shape=(7, 4))) == []
    assert findings(line(Conv2D(4, 4, 3, groups=2), shape=(7, 4, 5, 5))) == []


def test_workers_that_are_not_worth_it() -> None:
    asked = line(Dense(4, 3), shape=(7, 4), workers=2)
    (finding,) = findings(asked)
    assert finding["why"].startswith("2 workers were asked for and one is used")
    assert "larger batch than 7" in finding["remedy"]
    assert findings(line(Dense(4, 3), shape=(7, 4), workers=1)) == []
    assert findings(line(Dense(4, 3), shape=(7, 4))) == []  # nobody asked
    assert findings(line(Dense(512, 512), shape=(256, 512), workers=2)) == []


def test_python_rows() -> None:
    rows = findings(line(Dense(4, 3), Same(), shape=(None, 4)))
    assert [(row["op"], row["span"], row["node"]) for row in rows] == [
        ("python", "forward", "n1"),
        ("python_grad", "backward", "n1"),
    ]
    assert "@tapeprop.ops.kernel" in rows[0]["remedy"]


def test_conversions_in_the_middle() -> None:
    """A layer between two convolutions that takes plain images: there and back, forward and backward."""
    layers = [Conv2D(4, 4, 1), Same(), Conv2D(4, 4, 1)]
    rows = [row for row in findings(line(*layers, shape=(16, 4, 8, 8))) if "lanes" in row["op"]]
    assert [(row["op"], row["span"]) for row in rows] == [
        ("from_lanes", "forward"),
        ("to_lanes", "forward"),
        ("from_lanes", "backward"),
        ("to_lanes", "backward"),
    ]
    first, second, *_ = rows
    assert "python of node 'n1' takes plain images, conv2d" in first["why"]
    assert "of node 'n0' gives vector lanes along the batch" in first["why"]
    assert "python of node 'n1' gives plain images" in second["why"]
    assert "batch norm" in first["remedy"]
    assert "no multiple of 8" in first["remedy"]
    odd = findings(line(*layers, shape=(15, 4, 8, 8)))
    assert not [row for row in odd if "lanes" in row["op"]]


def test_conversions_that_do_not_matter_or_cannot_be_helped() -> None:
    """At the network's own ends, and before a small head."""
    layers = [Conv2D(2, 2, 1), BatchNorm2D(2), Activation.ReLU()]
    assert findings(line(*layers, shape=(16, 2, 8, 8))) == []
    head = [
        Conv2D(4, 16, 3),
        BatchNorm2D(16),
        Activation.ReLU(),
        Conv2D(16, 4, 3),
        Sequential(Flatten(), Dense(256, 10)),
    ]
    assert findings(line(*head, shape=(16, 4, 8, 8))) == []


def test_rows_that_one_worker_does_alone() -> None:
    graph = line(Lambda(lambda x: AloneTwice(x)), Dense(64, 8), shape=(4096, 64), workers=3)
    (finding,) = [row for row in findings(graph) if "AloneTwice" in row["op"]]
    assert "only 1 of 3 workers can do it" in finding["why"]
    assert "the other 2 wait" in finding["why"]
    assert "take worker and workers" in finding["remedy"]
    graph = line(Lambda(lambda x: AloneTwice(x)), Dense(64, 8), shape=(4096, 64), workers=1)
    assert findings(graph) == []


def test_a_sum_of_everything_is_one_workers() -> None:
    graph = line(Lambda(lambda x: x * ops.mean(ops.exp(x))), shape=(512, 512), workers=2)
    (finding,) = [row for row in findings(graph) if row["op"].startswith("reduce") and row["span"] == "forward"]
    assert "only 1 of 2 workers can do it" in finding["why"]
    assert "the other waits" in finding["why"]
    assert "in two steps" in finding["remedy"]


def test_batch_norm_of_few_channels_is_shared_by_channels() -> None:
    graph = line(BatchNorm2D(2), shape=(64, 2, 64, 64), workers=4)
    rows = findings(graph)
    assert {row["op"] for row in rows} >= {"batch_norm", "batch_norm_grad"}
    assert all("only 2 of 4 workers" in row["why"] for row in rows)
    assert findings(line(BatchNorm2D(8), shape=(64, 8, 32, 32), workers=4)) == []


def test_debug_nan() -> None:
    rows = findings(line(Dense(4, 3), shape=(7, 4), debug_nan=True))
    assert ["debug_nan=True" in row["why"] for row in rows] == [True]
    rows = findings(line(Dense(4, 3), shape=(None, 4), debug_nan=True))
    assert ["debug_nan=True" in row["why"] for row in rows] == [True]


def test_the_tape_shown_is_the_one_that_debug_nan_runs() -> None:
    """Row numbers in its errors can be looked up."""
    layers = [Dense(4, 3), Activation.Tanh(), Lambda(lambda x: x * x + 1)]
    fused, plain = line(*layers, shape=(7, 4)), line(*layers, shape=(7, 4), debug_nan=True)
    assert len(plain.tape) > len(fused.tape)
    assert [row["op"] for row in plain.tape][:4] == ["dense", "tanh", "multiply", "add"]


def test_float64_is_a_remark_only() -> None:
    graph = line(Dense(4, 3), shape=(7, 4), dtype="float64")
    assert findings(graph) == []
    assert "half as many as of float32" in str(graph.diagnose())


def test_lines_are_short_and_node_names_are_quoted() -> None:
    node = LayerNode(Same(), name="<script>ñ")
    graph = LayerGraph({node: []}, root=node, term=node).build((7, 4))
    text = str(graph.diagnose())
    assert "node '<script>ñ'" in text
    assert max(map(len, text.splitlines())) <= diagnosis.WIDTH
