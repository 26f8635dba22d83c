"""A call that fails leaves all as it was: training goes on as if it had not been made."""

from __future__ import annotations

import numpy as np
import pytest
from rules.networks import CALL_SECONDS, assert_same_bits, chain, labels

from tapeprop import LayerGraph
from tapeprop.errors import NumericsError
from tapeprop.layers import Activation, BatchNorm1D, Dense, Dropout, PythonLayer
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import Adam

LOSS, BATCH = CrossEntropy(), 4
X, Y = np.random.default_rng(0).standard_normal((22, 4)), labels(22)


class Failing(PythonLayer):
    """The identity, which raises in the call whose number is `at`, counting those of `where` from 0."""

    where, at = "", -1

    def forward(self, x):
        return self._count("forward", x)

    def backward(self, d_out):
        return self._count("backward", d_out)

    def _count(self, what: str, array):
        if what == self.where:
            Failing.at -= 1
            if Failing.at == -1:
                raise RuntimeError(what)
        return array


@pytest.fixture(params=["forward", "backward"])
def failing(request):
    """Called with a number: lets that call of forward or backward raise."""
    Failing.where = request.param

    def after(calls: int) -> None:
        Failing.at = calls

    yield after
    Failing.where, Failing.at = "", -1


def network(**build) -> LayerGraph:
    layers = [
        Dense(4, 6),
        BatchNorm1D(6),
        Dropout(0.2),
        Failing(),
        Dense(6, 6),
        BatchNorm1D(6),
        Activation.Tanh(),
        Dense(6, 3),
    ]
    graph = chain(*layers, seed=0).build((None, 4), workers=1, **build)
    graph.set_optimizer(Adam(0.01))
    graph.train_step(X[:5], Y[:5], LOSS)
    return graph


def whole(graph: LayerGraph) -> dict[str, np.ndarray]:
    """Values, running statistics, the random counter, moments and step counts."""
    memory = graph.optimizer_state_dict()
    return graph.state_dict() | {name: value for name, value in memory.items() if isinstance(value, np.ndarray)}


def test_a_training_step(failing) -> None:
    graph, other = network(), network()
    before = whole(graph)
    failing(0)
    with pytest.raises(RuntimeError):
        graph.train_step(X[:8], Y[:8], LOSS)
    assert_same_bits(whole(graph), before)
    for one in (graph, other):
        one.train_step(X[:8], Y[:8], LOSS)
    assert_same_bits(whole(graph), whole(other))


def test_forward() -> None:
    graph, other = network(), network()
    Failing.where, Failing.at = "forward", 0
    with pytest.raises(RuntimeError):
        graph.forward(X, True)
    Failing.where = ""
    np.testing.assert_array_equal(graph.forward(X, True), other.forward(X, True))
    assert_same_bits(whole(graph), whole(other))


@pytest.mark.parametrize(("accumulate", "call"), [(1, 0), (1, 3), (2, 2), (2, 3), (3, 4), (3, 5)])
@pytest.mark.parametrize("seconds", CALL_SECONDS)
def test_fit(accumulate: int, call: int, seconds: float, failing, monkeypatch) -> None:
    """The updates before the failed one stand. Batches are 4, 4, 4, 4, 4, 2."""
    monkeypatch.setattr("tapeprop.training.fit.CALL_SECONDS", seconds)
    graph, other = network(), network()
    failing(call)
    options = {
        "loss": LOSS,
        "batch_size": BATCH,
        "accumulate": accumulate,
        "shuffle": False,
        "verbose": 0,
        "metrics": (),
    }
    with pytest.raises(RuntimeError):
        graph.fit(X, Y, **options)
    Failing.where = ""
    done = call // accumulate * accumulate * BATCH
    if done:
        other.fit(X[:done], Y[:done], **options)
    assert_same_bits(whole(graph), whole(other))
    for one in (graph, other):
        one.train_step(X[:8], Y[:8], LOSS)
    assert_same_bits(whole(graph), whole(other))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_debug_nan(accumulate: int) -> None:
    bad = X.copy()
    bad[-1] = np.inf
    graph, other = network(debug_nan=True), network(debug_nan=True)
    options = {
        "loss": LOSS,
        "batch_size": BATCH,
        "accumulate": accumulate,
        "shuffle": False,
        "verbose": 0,
        "metrics": (),
    }
    with pytest.raises(NumericsError):
        graph.fit(bad, Y, **options)
    done = 20 // (accumulate * BATCH) * accumulate * BATCH
    other.fit(X[:done], Y[:done], **options)
    assert_same_bits(whole(graph), whole(other))


def test_an_update_that_overflows_is_not_made() -> None:
    graph = network(debug_nan=True)
    graph.update_lr(1e308)
    before = whole(graph)
    with pytest.raises(NumericsError, match="update"):
        graph.train_step(X[:8], Y[:8], LOSS)
    assert_same_bits(whole(graph), before)
    graph.forward(X[:8], True)
    before = whole(graph)
    graph.backward(np.ones((8, 3)))
    with pytest.raises(NumericsError, match="update"):
        graph.update()
    assert_same_bits(whole(graph), before)
