"""Learning rates and schedules of several optimizers: each has a base rate of its own, as PyTorch's parameter groups."""

from __future__ import annotations

import numpy as np
import pytest
from rules.networks import assert_same_bits, images, labels, node_of, perceptron, rows, state, two_heads, vision

from tapeprop import LayerGraph, LayerNode, load
from tapeprop.errors import GraphError, StateError
from tapeprop.layers import Dense
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam
from tapeprop.schedules import (
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LinearWarmup,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

LOSS, X, Y = CrossEntropy(), rows(), labels(5)
FIT = {"loss": LOSS, "batch_size": 3, "shuffle": False, "verbose": 0}


def heads(graph_lr: float = 0.5, a: float = 0.25, b: float = 0.125) -> LayerGraph:
    """A graph with an optimizer for its trunk and one for each head."""
    graph = two_heads(dtype="float64")
    graph.set_optimizer(SGD(graph_lr))
    for name, lr in (("a", a), ("b", b)):
        node_of(graph, name).set_optimizer(SGD(lr))
    return graph


def rates(graph: LayerGraph) -> list[float]:
    return [graph.lr, graph.learning_rate("a"), graph.learning_rate("b")]


def fit(graph: LayerGraph, epochs: int = 1, **options):
    return graph.fit(X, [Y, Y], epochs=epochs, **(FIT | options))


# ---- update_lr


def test_one_rate_for_all_or_for_one() -> None:
    graph = heads()
    assert rates(graph) == [0.5, 0.25, 0.125]
    graph.update_lr(0.0625, "a")
    graph.update_lr(0.03125, of=node_of(graph, "b"))
    assert rates(graph) == [0.5, 0.0625, 0.03125]
    graph.update_lr(2.0, graph.optimizer)
    assert rates(graph) == [2.0, 0.0625, 0.03125]
    before = graph.state_dict()
    graph.train_step(X, [Y, Y], LOSS)
    for name, p in graph.named_parameters():
        lr = {"t": 2.0, "a": 0.0625, "b": 0.03125}[name[0]]
        np.testing.assert_array_equal(p.value, before[name] - lr * p.grad)
    graph.update_lr(1.0)
    assert rates(graph) == [1.0] * 3
    assert list(graph.optimizers) == ["trunk.0.weight", "a.weight", "b.weight"]


def test_a_rate_reaches_every_part_of_an_optimizer() -> None:
    """Losses that reached some of its parameters only have split it; and one optimizer may serve two nodes."""
    graph, shared = heads(), Adam(0.1)
    for name in "ab":
        node_of(graph, name).set_optimizer(shared)
    graph.train_step(X, [Y, None], [LOSS, None])
    assert sum(unit.rule is shared for unit in graph.optimizer_units) == 2
    graph.update_lr(0.5, "a")
    assert {unit.scalar("lr") for unit in graph.optimizer_units if unit.rule is shared} == {0.5}
    assert rates(graph) == [0.5, 0.5, 0.5]


def test_an_optimizer_chosen_by_a_predicate_has_a_rate() -> None:
    graph, biases = perceptron(dtype="float64"), SGD(0.125)
    graph.set_optimizer(SGD(0.5))
    graph.set_optimizer(biases, where=lambda name, parameter: name.endswith("bias"))
    graph.update_lr(0.0, biases)
    before = graph.state_dict()
    graph.train_step(X, Y, LOSS)
    changed = {name for name, value in graph.state_dict().items() if (value != before[name]).any()}
    assert changed == {"first.weight", "second.weight"}


def test_no_weight_decay_on_biases_and_norms() -> None:
    graph, plain = vision(dtype="float64"), vision(dtype="float64")
    graph.set_optimizer(SGD(0.5, weight_decay=0.5))
    graph.set_optimizer(SGD(0.5), where=lambda name, parameter: parameter.value.ndim == 1)
    plain.set_optimizer(SGD(0.5))
    before = graph.state_dict()
    for g in (graph, plain):
        g.train_step(images(), labels(6), LOSS)
    decayed = {}
    for name, parameter in graph.named_parameters():
        lost = plain.state_dict()[name] - parameter.value
        decayed[name] = lost.any()
        np.testing.assert_allclose(lost, 0.25 * before[name] if lost.any() else 0, rtol=1e-9, atol=1e-12)
    assert {name for name, is_decayed in decayed.items() if is_decayed} == {"conv.weight", "head.weight"}


@pytest.mark.parametrize(
    ("of", "error", "text"),
    [
        ("trunk", GraphError, "node 'trunk' has no optimizer of its own"),
        ("c", GraphError, "there is no node 'c'; the nodes are trunk, a, b"),
        (SGD(0.1), GraphError, "SGD.* advances no parameter of this graph; expected one of"),
        (LayerNode(Dense(2, 2), name="other"), GraphError, "node 'other' has no optimizer of its own"),
        (3, GraphError, "expected an optimizer, a node or the name of a node, got 3"),
    ],
)
def test_what_has_no_rate_is_refused(of, error, text) -> None:
    graph = heads()
    for call in (
        lambda: graph.update_lr(0.1, of),
        lambda: graph.learning_rate(of),
        lambda: fit(graph, schedule={of: StepLR(1)}),
    ):
        before = state(graph)
        with pytest.raises(error, match=text):
            call()
        assert rates(graph) == [0.5, 0.25, 0.125]
        assert_same_bits(state(graph), before)
    with pytest.raises(ValueError, match="lr"):
        graph.update_lr(-1.0, "a")
    with pytest.raises(StateError, match="set_optimizer"):
        two_heads().update_lr(0.1)


# ---- one schedule for all


@pytest.mark.parametrize("by", ["epoch", "batch"])
def test_a_schedule_starts_from_each_optimizers_own_rate(by) -> None:
    graph = heads()
    schedule = ExponentialLR(0.5, by=by)
    history = fit(graph, 3, schedule=schedule)
    steps = 2 if by == "epoch" else 5  # before the last epoch, or batch
    assert rates(graph) == [0.5 * 0.5**steps, 0.25 * 0.5**steps, 0.125 * 0.5**steps]
    assert history.lr[-1] == graph.lr
    fit(graph, 1, schedule=schedule)  # it counts on
    assert graph.learning_rate("b") == schedule.lr(schedule.t - 1, 0.125)
    assert schedule.state_dict() == {
        "t": schedule.t, "base_lr": 0.5, "base_lrs": {"a.weight": 0.25, "b.weight": 0.125}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "name", "options"),
    [
        (lambda: CosineAnnealingLR(5, eta_min=0.01), "CosineAnnealingLR", {"T_max": 5, "eta_min": 0.01}),
        (lambda: StepLR(2, 0.5), "StepLR", {"step_size": 2, "gamma": 0.5}),
        (lambda: CyclicLR(0.01, 0.2, 2, by="epoch"), "CyclicLR",
         {"base_lr": 0.01, "max_lr": 0.2, "step_size_up": 2, "cycle_momentum": False}),
        (lambda: OneCycleLR(0.2, by="epoch"), "OneCycleLR",
         {"max_lr": 0.2, "total_steps": 6, "cycle_momentum": False}),
        (lambda: LinearWarmup(4, by="epoch"), "LinearLR", {"total_iters": 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_rates_are_those_of_pytorchs_parameter_groups(ours, name, options) -> None:
    torch = pytest.importorskip("torch")
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (0.5, 0.25, 0.125)]
    peer = torch.optim.SGD(groups, lr=1.0)
    theirs = getattr(torch.optim.lr_scheduler, name)(peer, **options)
    graph, schedule, whole = heads(), ours(), 6
    if isinstance(schedule, OneCycleLR):
        schedule.total_steps = whole
    for _ in range(whole):
        fit(graph, 1, schedule=schedule)
        np.testing.assert_allclose(rates(graph), [group["lr"] for group in peer.param_groups], rtol=1e-12)
        peer.step()
        theirs.step()


def test_a_plateau_reduces_each_rate() -> None:
    """The floor stops them one after another."""
    torch = pytest.importorskip("torch")
    peer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in (0.5, 0.25, 0.125)], lr=1.0)
    options = {"factor": 0.5, "patience": 0, "min_lr": 0.05}
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(peer, **options)
    ours = ReduceLROnPlateau(**options)
    ours.begin(0.5, epochs=9, batches_per_epoch=1)
    for lr in (0.25, 0.125):
        ours.join(str(lr), lr)
    for figure in (1.0, 1.0, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        ours.observe(figure)
        theirs.step(figure)
        found = [ours.current(), ours.current("0.25"), ours.current("0.125")]
        np.testing.assert_allclose(found, [group["lr"] for group in peer.param_groups], rtol=1e-12)
        again = ReduceLROnPlateau(**options)
        again.load_state_dict(ours.state_dict())
        assert [again.current(), again.current("0.25"), again.current("0.125")] == found


def test_states_of_one_optimizer_are_what_they_were() -> None:
    schedule = ReduceLROnPlateau(factor=0.5, patience=0)
    old = {"t": 4, "base_lr": 0.8, "reduced_lr": 0.2, "best": 1.0, "bad_epochs": 0, "cooling": 0}
    schedule.load_state_dict(old)
    assert (schedule.current(), schedule.reductions) == (0.2, 2)
    assert schedule.state_dict() == old
    schedule.observe(2.0)
    assert schedule.current() == 0.1
    several = StepLR(1)
    several.begin(1.0, epochs=1, batches_per_epoch=1)
    several.join("b", 0.5)
    held = several.state_dict()
    several.join("c", 0.25)
    assert held["base_lrs"] == {"b": 0.5}  # a copy
    several.load_state_dict({"t": 1, "base_lr": 1.0})
    assert (several.current("b"), several.base_lrs) == (0.1, {})


def test_a_run_that_is_resumed_goes_on_with_each_rate(tmp_path) -> None:
    straight, halves = heads(), heads()
    fit(straight, 4, schedule=ExponentialLR(0.5))
    first = ExponentialLR(0.5)
    fit(halves, 2, schedule=first)
    halves.save(tmp_path / "graph.safetensors")
    resumed, second = load(tmp_path / "graph.safetensors"), ExponentialLR(0.5)
    second.load_state_dict(first.state_dict())
    fit(resumed, 2, schedule=second)
    assert rates(resumed) == rates(straight)
    assert_same_bits(resumed.state_dict(), straight.state_dict())


# ---- schedules of their own


def test_schedules_for_some_optimizers() -> None:
    graph = heads()
    own, shared = StepLR(1, 0.5), ExponentialLR(0.1, by="batch")
    fit(graph, 2, schedule={graph.optimizer: own, node_of(graph, "a"): shared})
    assert rates(graph) == [0.25, 0.25 * 0.1**3, 0.125]
    assert (own.t, shared.t) == (2, 4)
    graph = heads()
    both = StepLR(1, 0.5)
    fit(graph, 3, schedule={"a": both, "b": both})
    assert rates(graph) == [0.5, 0.0625, 0.03125]
    assert both.t == 3
    assert both.state_dict() == {"t": 3, "base_lr": 0.25, "base_lrs": {"b.weight": 0.125}}


def test_schedules_for_an_optimizer_that_fit_sets() -> None:
    graph, optimizer = heads(), Adam(0.5)
    fit(graph, 2, optimizer=optimizer, schedule={optimizer: StepLR(1, 0.5)})
    assert rates(graph) == [0.25, 0.25, 0.125]


@pytest.mark.parametrize(
    ("schedule", "error", "text"),
    [
        (0.1, TypeError, "expected a tapeprop.schedules.Schedule, received 0.1"),
        ({"a": 0.1}, TypeError, "expected a tapeprop.schedules.Schedule, received 0.1"),
        ({"trunk": StepLR(1)}, GraphError, "node 'trunk' has no optimizer of its own"),
    ],
)
def test_schedules_that_are_none_are_refused(schedule, error, text) -> None:
    graph = heads()
    before, optimizer = state(graph), graph.optimizer
    with pytest.raises(error, match=text):
        fit(graph, schedule=schedule, optimizer=Adam(0.1))
    assert graph.optimizer is optimizer
    assert_same_bits(state(graph), before)


def test_one_optimizer_under_two_keys_is_refused() -> None:
    graph = heads()
    node = node_of(graph, "a")
    with pytest.raises(GraphError, match=r"each optimizer once, received SGD.* under two keys"):
        fit(graph, schedule={node: StepLR(1), node.optimizer: StepLR(2)})
