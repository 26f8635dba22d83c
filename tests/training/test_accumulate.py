"""Gradients accumulated over micro-batches: one native call, and the bits of separate calls."""

from __future__ import annotations

import numpy as np
import pytest
from rules.networks import assert_same_bits, images, labels, node_of, perceptron, rows, state, two_heads, vision

from tapeprop import LayerGraph
from tapeprop.errors import NumericsError
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam
from tapeprop.runtime import executable
from tapeprop.schedules import ExponentialLR, OneCycleLR

LOSS = CrossEntropy()
BATCH = 4


def whole(graph: LayerGraph) -> dict[str, np.ndarray]:
    """All that training changes: values, gradients, random state, step counts and slots."""
    units = {f"unit{i}": unit.scalars.array.copy() for i, unit in enumerate(graph.optimizer_units)}
    slots = {
        f"{unit.parameters[0].name} {i} {slot}": graph.optimizer_slot(p, slot, unit.rule).copy()
        for unit in graph.optimizer_units
        for i, p in enumerate(unit.parameters)
        for slot in unit.rule.slots
    }
    return state(graph) | units | slots | {"random": graph.random_counter.copy()}


def by_hand(graph: LayerGraph, x: np.ndarray, y: np.ndarray, accumulate: int, epochs: int) -> None:
    """forward, backward and update one after another."""
    starts = range(0, len(x), BATCH)
    for _ in range(epochs):
        for first in range(0, len(starts), accumulate):
            group = starts[first : first + accumulate]
            graph.zero_grad()
            for start in group:
                out = graph.forward(x[start : start + BATCH], True)
                graph.backward(LOSS.grad(y[start : start + BATCH], out) * (1 / len(group)))
            graph.update()


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """(rows, steps, rounds) of every native call."""
    made, run_bound = [], executable.run_bound

    def counted(bound, first, count, steps, workers, timing, rounds):
        made.append((count, steps, rounds))
        return run_bound(bound, first, count, steps, workers, timing, rounds)

    monkeypatch.setattr(executable, "run_bound", counted)
    return made


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("accumulate", "samples"), [(1, 18), (2, 16), (2, 20), (2, 14), (4, 32), (4, 30), (3, 24)])
def test_fit_has_the_bits_of_separate_calls(accumulate, samples, workers, monkeypatch) -> None:
    """Batch norm's statistics, dropout's counter and Adam's step counts included; the last group may be smaller or odd.

    Averaging over 3 scales gradients by a third, which the calls round once more than the tape does.
    """
    monkeypatch.setattr(executable, "WAKE_SECONDS", -1.0)  # else a tape as small as this runs on one worker
    x, y = images(3, (samples, 2, 6, 6)), labels(samples, 2)
    fitted, called = (vision(dtype="float64", workers=workers, clip_norm=0.5) for _ in range(2))
    for graph in (fitted, called):
        graph.set_optimizer(Adam(0.01))
    fitted.fit(x, y, loss=LOSS, epochs=2, batch_size=BATCH, accumulate=accumulate, shuffle=False, verbose=0)
    by_hand(called, x, y, accumulate, 2)
    if accumulate == 3:
        for name, value in whole(fitted).items():
            np.testing.assert_allclose(value, whole(called)[name], rtol=1e-9, atol=1e-12, err_msg=name)
    else:
        assert_same_bits(whole(fitted), whole(called))


def session_of(graph: LayerGraph, samples: int, accumulate: int):
    session = graph.fit_session(
        [rows_of(samples)], [labels(samples)], [LOSS], [1.0], BATCH, accuracy=True, accumulate=accumulate
    )
    session.start_epoch(np.arange(samples))
    return session


def rows_of(samples: int) -> np.ndarray:
    return images(1, (samples, 4))


def test_many_updates_are_one_native_call(calls) -> None:
    graph = perceptron(dtype="float64")
    graph.set_optimizer(Adam(0.1))
    session = session_of(graph, 7 * 3 * BATCH, 3)
    assert session.run(6) == 6
    assert session.run(1) == 3  # never less than an update
    assert session.run(1000) == 12
    assert [(steps, rounds.repeats) for _, steps, rounds in calls] == [(2, 3), (1, 3), (4, 3)]
    assert all(rounds.rows < count for count, _, rounds in calls)
    assert session.run(1) == 0
    (unit,) = graph.optimizer_units
    assert unit.scalar("beta1_power") == pytest.approx(0.9**7)
    assert session.totals()["samples"] == 84
    twin = perceptron(dtype="float64")
    twin.set_optimizer(Adam(0.1))
    other = session_of(twin, 7 * 3 * BATCH, 3)
    while other.run(1):
        pass
    assert_same_bits(whole(graph), whole(twin))
    assert session.totals() == other.totals()


def test_the_odd_batch_of_the_last_group_is_a_call_of_its_own(calls) -> None:
    graph = perceptron(dtype="float64")
    graph.set_optimizer(Adam(0.1))
    session = session_of(graph, 5 * BATCH + 1, 3)
    assert [session.run(100), session.run(100), session.run(100)] == [3, 3, 0]
    assert [(steps, rounds and rounds.repeats) for _, steps, rounds in calls] == [(1, 3), (2, None), (1, None)]
    assert graph.optimizer_units[0].scalar("beta1_power") == pytest.approx(0.9**2)


def test_only_what_is_reached_is_advanced() -> None:
    graph = two_heads(dtype="float64")
    graph.set_optimizer(Adam(0.1))
    node_of(graph, "a").frozen = True
    before = graph.state_dict()
    graph.fit(rows_of(16), {"b": labels(16)}, loss={"b": LOSS}, batch_size=BATCH, accumulate=2, verbose=0)
    changed = {name for name, value in graph.state_dict().items() if (value != before[name]).any()}
    assert changed == {"trunk.0.weight", "trunk.0.bias", "b.weight", "b.bias"}
    for node in graph.nodes:
        node.frozen = True
    before = graph.state_dict()
    graph.fit(rows_of(18), {"b": labels(18)}, loss={"b": LOSS}, batch_size=BATCH, accumulate=2, verbose=0)
    assert_same_bits(graph.state_dict(), before)


def test_gradients_that_wait_are_dropped_and_those_without_an_optimizer_wait() -> None:
    graph, twin = (perceptron(dtype="float64") for _ in range(2))
    for g in (graph, twin):
        node_of(g, "first").set_optimizer(SGD(0.1))
    graph.forward(rows(), True)
    graph.backward()
    for g in (graph, twin):
        g.fit(rows_of(16), labels(16), loss=LOSS, batch_size=BATCH, accumulate=2, shuffle=False, verbose=0)
    assert_same_bits(state(graph), state(twin))
    total = node_of(graph, "second").layer.weight.grad.copy()
    graph.forward(rows(), True)
    graph.backward()  # adds to what no optimizer took
    twin.zero_grad()
    twin.forward(rows(), True)
    twin.backward()
    found = node_of(graph, "second").layer.weight.grad - node_of(twin, "second").layer.weight.grad
    np.testing.assert_allclose(found, total, rtol=1e-12, atol=1e-15)


def test_a_micro_batch_that_fails_updates_nothing() -> None:
    """The NaN stands in the second batch of the second update; what is row by row follows the same order."""
    graph = perceptron(dtype="float64", debug_nan=True)
    graph.set_optimizer(Adam(0.1))
    x = rows_of(16)
    x[13] = np.nan
    with pytest.raises(NumericsError, match=r"take_rows \(gather\), made a NaN"):
        graph.fit(x, labels(16), loss=LOSS, batch_size=BATCH, accumulate=2, shuffle=False, verbose=0)
    assert graph.optimizer_units[0].scalar("beta1_power") == 0.9
    assert not node_of(graph, "first").layer.weight.grad.any()
    twin = perceptron(dtype="float64")
    twin.set_optimizer(Adam(0.1))
    by_hand(twin, x[:8], labels(16)[:8], 2, 1)
    for name, value in graph.state_dict().items():
        np.testing.assert_allclose(value, twin.state_dict()[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("schedule", [ExponentialLR(0.5, by="batch"), OneCycleLR(1.0)])
def test_schedules_by_batch_count_updates(schedule) -> None:
    graph = perceptron(dtype="float64")
    graph.fit(
        rows_of(22), labels(22), loss=LOSS, optimizer=SGD(1.0), schedule=schedule, batch_size=BATCH, accumulate=2,
        epochs=2, verbose=0,
    )  # fmt: skip
    assert schedule.t == 6  # six batches an epoch, in three groups
    if isinstance(schedule, OneCycleLR):
        assert schedule.total_steps == 6
    assert graph.lr == schedule.lr(5, 1.0)
