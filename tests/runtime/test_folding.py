"""Norms folded into weights for predict(): when that is done anew, that it is never missed, and what it saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from rules.networks import chain, images, labels

from tapeprop import LayerGraph, LayerNode
from tapeprop.layers import Activation, BatchNorm1D, BatchNorm2D, Conv2D, Dense, Flatten, Layer
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD
from tapeprop.runtime.memory import Buffer
from tapeprop.runtime.network import Network

X, Y = images(), labels(6)
SHAPE = (None, 2, 6, 6)


def layers(norms: bool = True) -> list[Layer]:
    found = [
        Conv2D(2, 4, 3, bias=False), BatchNorm2D(4), Activation.ReLU(), Conv2D(4, 4, 3), BatchNorm2D(4), Flatten(),
        Dense(144, 8), BatchNorm1D(8), Activation.Tanh(), Dense(8, 3),
    ]  # fmt: skip
    return [layer for layer in found if norms or not isinstance(layer, BatchNorm2D | BatchNorm1D)]


def network(dtype: str = "float64", **options) -> LayerGraph:
    """Norms whose running means are larger than the deviations, as folding likes it least."""
    graph = chain(*layers(), seed=0).build(SHAPE, dtype=dtype, **options)
    rng = np.random.default_rng(0)
    for key, parameter in graph.named_parameters():
        if "running_mean" in key:
            parameter.assign(10 * rng.standard_normal(parameter.shape))
        elif "running_var" in key or len(parameter.shape) == 1:
            parameter.assign(rng.uniform(0.2, 2, parameter.shape))
    graph.set_optimizer(SGD(0.01, momentum=0.9))
    return graph


def tape(graph: LayerGraph, x: np.ndarray) -> dict[str, list[str]]:
    """{span: ops} of the rows that predict() runs."""
    network = graph._network
    assert network is not None
    graph.predict(x)
    _, executable = network.plans["predict", (x.shape,)]  # type: ignore[misc]
    names = [span.name for span in executable.program.spans]
    rows = executable.tape.rows
    return {name: [row.step.instruction.op.name for row in rows if row.step.span == name] for name in names}


# float32: a sum of n terms is rounded in the measure of |w| |x|, here some ten times the result, n = 144 at most
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("batch", [6, 16])  # 16 fills vector lanes
def test_predict_is_forward_to_rounding(dtype: str, tolerance: float, batch: int) -> None:
    graph, x = network(dtype), images(1, (batch, 2, 6, 6), dtype)
    for _ in range(2):
        expected = graph.forward(x)
        np.testing.assert_allclose(graph.predict(x), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
        graph.train_step(x, labels(batch), CrossEntropy())


@pytest.mark.parametrize("batch", [6, 16])
def test_a_batch_takes_as_many_instructions_as_without_norms(batch: int) -> None:
    x = images(1, (batch, 2, 6, 6))
    plain = tape(chain(*layers(norms=False), seed=0).build(SHAPE, dtype="float64"), x)
    found = tape(network(), x)
    assert found["forward"] == plain["forward"]
    assert "fold" not in plain
    assert set(found["fold"]) == {"elementwise"}


def test_debug_nan_keeps_every_op_an_instruction() -> None:
    assert list(tape(network(debug_nan=True), X)) == ["forward"]


@contextmanager
def folds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Whether each run of a tape with a span "fold" ran that span."""
    found: list[bool] = []
    execute = Network.execute

    def watched(self, executable, first=None, last=None, steps=1):
        if executable.program.spans[0].name == "fold":
            found.append(first is None)
        return execute(self, executable, first, last, steps)

    with monkeypatch.context() as patch:
        patch.setattr(Network, "execute", watched)
        yield found


def first_weight(graph: LayerGraph):
    return graph.nodes[0].layer.weight


def edited_by_hand(graph: LayerGraph) -> None:
    first_weight(graph).value[0, 0] += 1


def a_view_of_a_view(graph: LayerGraph) -> None:
    view = first_weight(graph).value.reshape(-1)[3:].T
    graph.predict(X)
    view[5] = 7


def through_memory(graph: LayerGraph) -> None:
    memory = memoryview(graph.nodes[1].layer.running_mean.value)
    graph.predict(X)
    memory[2] = 7.0


def called_one_by_one(graph: LayerGraph) -> None:
    graph.zero_grad()
    graph.backward(CrossEntropy().grad(Y, graph.forward(X, True)))
    graph.update()


def by_another_graph(graph: LayerGraph) -> None:
    node = LayerNode(graph.nodes[0].layer)
    other = LayerGraph({node: []}, root=node, term=node).build(SHAPE, dtype="float64")
    other.set_optimizer(SGD(0.1))
    other.forward(X, True)
    other.backward()
    other.update()


WRITERS: list[Callable[[LayerGraph], object]] = [
    edited_by_hand,
    a_view_of_a_view,
    through_memory,
    called_one_by_one,
    by_another_graph,
    lambda graph: first_weight(graph).assign(np.ones((4, 2, 3, 3))),
    lambda graph: graph.load_state_dict({key: 0.9 * value for key, value in graph.state_dict().items()}),
    lambda graph: graph.train_step(X, Y, CrossEntropy()),
    lambda graph: graph.fit(X, Y, loss=CrossEntropy(), batch_size=3, verbose=0),
    lambda graph: graph.forward(X, True),  # the running statistics advance
]


@pytest.mark.parametrize("write", WRITERS)
def test_whatever_writes_is_seen(write: Callable[[LayerGraph], object], monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network()
    before = graph.predict(X)
    with folds(monkeypatch) as found:
        np.testing.assert_array_equal(graph.predict(X), before)
        assert found == [False]
        write(graph)
        found.clear()
        after = graph.predict(X)
        assert found == [True]
        np.testing.assert_allclose(after, graph.forward(X), rtol=1e-12, atol=1e-12)
        assert np.abs(after - before).max() > 1e-6
        graph.predict(X)
        assert found == [True, False]


def test_while_a_view_is_held_nothing_is_taken_for_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network()
    held = first_weight(graph).value
    with folds(monkeypatch) as found:
        for k in range(3):
            held[...] = k
            np.testing.assert_allclose(graph.predict(X), graph.forward(X), rtol=1e-12, atol=1e-12)
        part = held[0]
        del held
        graph.predict(X)
        del part
        graph.predict(X)
        graph.predict(X)
    assert found == [True] * 5 + [False]


def test_sizes_of_batch_share_what_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network()
    with folds(monkeypatch) as found:
        graph.predict(images(0, (11, 2, 6, 6)), batch_size=3)
        graph.evaluate(X, Y, loss=CrossEntropy(), batch_size=5)
    assert found == [True] + [False] * 5


def test_a_buffer_knows_who_may_write() -> None:
    buffer = Buffer("test.", 8, "float32")
    start = buffer.version
    view = buffer.lend(2, (2, 3))
    assert view.base is not None
    assert view.flags.writeable
    assert buffer.version is None
    view[1] = 5
    np.testing.assert_array_equal(buffer.array, [0, 0, 0, 0, 0, 5, 5, 5])
    del view
    assert buffer.version not in (None, start)
