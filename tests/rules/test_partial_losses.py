"""Rules 9 and 16: losses of some outputs alone, by list and by name; what they do not reach is neither run nor advanced."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from rules.networks import assert_same_bits, labels, node_of, rows, state, two_heads

from tapeprop import LayerGraph, LayerNode
from tapeprop.errors import GraphError, LabelError
from tapeprop.layers import Activation, Dense, Sequential
from tapeprop.losses import MSE, CrossEntropy
from tapeprop.optimizers import SGD, Adam
from tapeprop.runtime import executable

LOSS, Y = CrossEntropy(), labels(5)
BOTH = {"a": LOSS, "b": LOSS}


def own_heads() -> LayerGraph:
    """Two heads, each with an Adam of its own, as the trunk has."""
    graph = two_heads(dtype="float64")
    graph.set_optimizer(Adam(0.1))
    for name in "ab":
        node_of(graph, name).set_optimizer(Adam(0.05))
    return graph


def rows_of(graph: LayerGraph, losses: dict, y: dict) -> Counter[tuple[str, str]]:
    """{(span, node): rows} of the tape of a training step; layers inside a node count as the node."""
    (tape,) = graph.profile(rows(), y, losses, repeats=1).tapes
    return Counter((row.phase, row.node) for row in tape.rows)


def counts(graph: LayerGraph) -> dict[str, float]:
    """{parameter: how many steps its Adam has counted}."""
    graph.synchronise_optimizers()
    names = {p: name for name, p in graph.named_parameters()}
    return {
        names[p]: round(np.log(unit.scalar("beta1_power")) / np.log(0.9))
        for unit in graph.optimizer_units
        for p in unit.parameters
    }


# ---- instructions


def test_a_step_runs_only_the_rows_that_its_losses_reach() -> None:
    graph = own_heads()
    both = rows_of(graph, BOTH, {"a": Y, "b": Y})
    for name, other in ("ab", "ba"):
        alone = rows_of(graph, {name: LOSS}, {name: Y})
        assert not any(node == other for _, node in alone)
        for span in ("forward", "loss", "backward"):
            assert alone[span, name] == both[span, name] > 0
        assert alone["forward", "trunk"] == both["forward", "trunk"]
        # two rows per optimizer: its scalars, and the one stretch of its weights
        assert (alone["update", ""], both["update", ""]) == (4, 6)
    # what both losses add is the sum of their gradients, and of their values
    extra = both - rows_of(graph, {"a": LOSS}, {"a": Y}) - rows_of(graph, {"b": LOSS}, {"b": Y})
    assert set(extra) <= {("loss", ""), ("backward", "trunk"), ("backward", "")}


def test_behind_a_stopped_edge_nothing_runs_backwards() -> None:
    graph = own_heads()
    trunk, a = node_of(graph, "trunk"), node_of(graph, "a")
    graph.stop_gradient(trunk, a)
    graph.build((None, 4), dtype="float64")
    alone = rows_of(graph, {"a": LOSS}, {"a": Y})
    assert ("backward", "trunk") not in alone
    assert alone["forward", "trunk"] > 0
    assert alone["update", ""] == 2  # that of the head
    before = counts(graph)
    graph.train_step(rows(), {"a": Y}, {"a": LOSS})
    assert {name: n - before[name] for name, n in counts(graph).items()} == {
        "trunk.0.weight": 0, "trunk.0.bias": 0, "a.weight": 1, "a.bias": 1, "b.weight": 0, "b.bias": 0
    }  # fmt: skip
    assert not trunk.layer["0"].weight.grad.any()


def test_backward_from_one_output_is_a_tape_of_its_own() -> None:
    graph = two_heads(dtype="float64")
    graph.forward(rows(), True)
    network, _ = graph._compiled("test")
    sizes, nodes = {}, {}
    for which in ("a", "b", "ab"):
        graph.backward({name: np.ones((5, 3)) for name in which})
        executable = list(network.live("test").backward.values())[-1][0]
        sizes[which] = len(executable.tape.rows)
        nodes[which] = {row.step.instruction.node.split(".")[0] for row in executable.tape.rows}
    assert nodes["a"] - {""} == {"trunk", "a"}
    assert nodes["b"] - {""} == {"trunk", "b"}
    assert sizes["a"] == sizes["b"] < sizes["ab"] < 2 * sizes["a"]


def test_two_losses_are_one_native_call(monkeypatch) -> None:
    graph, run_bound, steps = own_heads(), executable.run_bound, []

    def counted(bound, first, count, number, *rest):
        steps.append((count, number))
        return run_bound(bound, first, count, number, *rest)

    monkeypatch.setattr(executable, "run_bound", counted)
    graph.train_step(rows(), {"a": Y, "b": Y}, BOTH, loss_weights={"b": 0.5})
    assert len(steps) == 1
    steps.clear()
    graph.fit(rows(), {"a": Y, "b": Y}, loss=BOTH, batch_size=1, epochs=2, metrics=(), verbose=0)
    assert sum(number for _, number in steps) == 10
    assert len({count for count, _ in steps}) == 1  # whole steps, nothing beside them


# ---- optimizers


def test_a_loss_advances_only_the_optimizers_that_it_reaches() -> None:
    graph = own_heads()
    for which in ({"a": LOSS}, {"a": LOSS}, {"b": LOSS}, BOTH):
        before = graph.state_dict()
        graph.train_step(rows(), dict.fromkeys(which, Y), which)
        still = {name[0] for name, value in graph.state_dict().items() if (value == before[name]).all()}
        assert still == {"a", "b"} - set(which)
    assert counts(graph) == {
        "trunk.0.weight": 4, "trunk.0.bias": 4, "a.weight": 3, "a.bias": 3, "b.weight": 2, "b.bias": 2
    }  # fmt: skip


# ---- names


@pytest.mark.parametrize("call", ["train_step", "fit", "evaluate"])
def test_a_dict_leaves_out_what_a_list_has_none_for(call) -> None:
    found = []
    for y, loss, weights in (
        ([None, Y], [None, LOSS], [1, 2]),
        ({"b": Y}, {"b": LOSS}, {"b": 2}),
        ({"b": Y, "a": None}, {"b": LOSS}, [None, 2]),
        ([None, Y], {"b": LOSS, "a": None}, {"b": 2}),
    ):
        graph = own_heads()
        if call == "train_step":
            value = graph.train_step(rows(), y, loss, loss_weights=weights)
        elif call == "fit":
            value = graph.fit(rows(), y, loss=loss, loss_weights=weights, batch_size=2, seed=0, verbose=0).history
        else:
            value = graph.evaluate(rows(), y, loss=loss, loss_weights=weights)
            assert set(value) == {"loss", "b_loss", "b_accuracy"}
        found.append((value, state(graph)))
    for value, after in found[1:]:
        assert repr(value) == repr(found[0][0])
        assert_same_bits(after, found[0][1])


def test_a_list_of_losses_that_is_edited_counts_at_once() -> None:
    graph, losses = own_heads(), [LOSS, None]
    graph.train_step(rows(), [Y, None], losses)
    losses.reverse()
    before = graph.state_dict()
    graph.train_step(rows(), [None, Y], losses)
    assert (graph.state_dict()["a.weight"] == before["a.weight"]).all()
    assert (graph.state_dict()["b.weight"] != before["b.weight"]).any()


@pytest.mark.parametrize(
    ("y", "loss", "error", "text"),
    [
        ({"a": Y}, BOTH, LabelError, "y of node 'b': expected labels for its loss, received None"),
        ([Y, None], BOTH, LabelError, "y of node 'b': expected labels for its loss, received None"),
        ({"a": Y, "c": Y}, {"a": LOSS}, GraphError, "y: expected some of the keys a, b, received a, c"),
        ({"a": Y}, {"c": LOSS}, GraphError, "loss: expected some of the keys a, b, received c"),
        ({"a": Y}, {}, ValueError, "a loss for at least one output"),
    ],
)
def test_names_that_are_wrong_are_refused(y, loss, error, text) -> None:
    graph = own_heads()
    before = state(graph)
    calls = (
        lambda: graph.train_step(rows(), y, loss),
        lambda: graph.fit(rows(), y, loss=loss, verbose=0),
        lambda: graph.evaluate(rows(), y, loss=loss),
    )
    for call in calls:
        with pytest.raises(error, match=text):
            call()
    assert_same_bits(state(graph), before)


def test_outputs_can_be_had_by_name() -> None:
    graph = two_heads(dtype="float64")
    for outputs in (graph.forward(rows()), graph.predict(rows()), graph(rows()), graph.predict(rows(), batch_size=2)):
        assert isinstance(outputs, list)
        np.testing.assert_array_equal(outputs["b"], outputs[1])
        np.testing.assert_array_equal(outputs["a"], outputs[0])
    assert graph.out_shape((5, 4))["b"] == (5, 3)
    left, right = LayerNode(Dense(4, 3), name="left"), LayerNode(Dense(4, 3), name="right")
    end = LayerNode(Activation.Tanh(), name="end")
    pair = LayerGraph({left: [end], right: [end]}, root=[left, right], term=end, seed=0).build(dtype="float64")
    y = pair.forward({"right": rows(1), "left": rows(0)})
    np.testing.assert_array_equal(y, pair.predict([rows(0), rows(1)]))
    dx = pair.backward(np.ones((5, 3)))
    np.testing.assert_array_equal(dx["right"], dx[1])
    assert (dx["left"] != dx["right"]).any()


# ---- outputs that feed one another


def test_an_output_that_feeds_another() -> None:
    """Its gradient is that of its own loss and that of what it feeds, and each alone where the other has none."""

    def make() -> LayerGraph:
        body = LayerNode(Sequential(Dense(4, 4), Activation.Tanh()), name="body")
        middle, end = LayerNode(Dense(4, 3), name="middle"), LayerNode(Dense(3, 3), name="end")
        graph = LayerGraph({body: [middle], middle: [end]}, root=body, term=[end, middle], seed=0)
        graph.build((None, 4), dtype="float64")
        graph.set_optimizer(SGD(0.0))
        return graph

    graph, target = make(), rows(3)[:, :3]
    losses, y = {"middle": MSE(), "end": LOSS}, {"middle": target, "end": Y}
    gradients = {}
    for which in (("middle",), ("end",), ("middle", "end"), ("end", "middle")):
        graph.train_step(rows(), {n: y[n] for n in which}, {n: losses[n] for n in which})
        gradients[which] = {name: p.grad.copy() for name, p in graph.named_parameters()}
        by_hand = make()
        out = by_hand.forward(rows(), True)
        for name in which:  # several times, in any order
            by_hand.backward({name: losses[name].grad(y[name], out[name])})
        for name, p in by_hand.named_parameters():
            np.testing.assert_allclose(gradients[which][name], p.grad, rtol=1e-12, atol=1e-15)
    assert not gradients["middle",]["end.weight"].any()
    for name, total in gradients["middle", "end"].items():
        np.testing.assert_array_equal(total, gradients["end", "middle"][name])
        np.testing.assert_allclose(total, gradients["middle",][name] + gradients["end",][name], rtol=1e-12, atol=1e-15)
    assert len(graph.fit(rows(), y, loss=losses, epochs=2, verbose=0).history["middle_loss"]) == 2
