"""Rules 9 and 10: several inputs and outputs, backward from any of them, and an optimizer for every node."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from rules.networks import assert_same_bits, images, labels, node_of, perceptron, rows, state, two_heads

from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.errors import StateError
from tapeprop.layers import Activation, Dense, Identity, Sequential
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam, RMSProp

LOSS = CrossEntropy()


def three_outputs() -> LayerGraph:
    """Two inputs and three outputs; the middle one is used further on, and every weight matters to some outputs only."""
    left, right = LayerNode(Dense(4, 4), name="left"), LayerNode(Dense(4, 4), name="right")
    middle = LayerNode(Activation.Tanh(), MergeMode.HADAMARD, name="middle")
    end, side = LayerNode(Dense(4, 3), name="end"), LayerNode(Dense(4, 2), name="side")
    edges = {left: [middle], right: [middle, side], middle: [end]}
    graph = LayerGraph(edges, root=[left, right], term=[end, middle, side], seed=0)
    return graph.build(dtype="float64")


SEEDS = [images(1, (5, 3)), images(2, (5, 4)), images(3, (5, 2))]


def run(graph, calls):
    """The sums of the gradients of several backwards after one forward."""
    graph.zero_grad()
    graph.forward([rows(0), rows(1)], True)
    found = [graph.backward(call) for call in calls]
    parameters = {name: p.grad.copy() for name, p in graph.named_parameters()}
    return [sum(parts) for parts in zip(*found, strict=True)], parameters


def test_any_subset_in_any_order_adds_up():
    graph = three_outputs()
    single = [[SEEDS[i] if i == j else None for i in range(3)] for j in range(3)]
    parts = [run(graph, [call]) for call in single]
    for count in (1, 2, 3):
        for chosen in itertools.permutations(range(3), count):
            together = [[SEEDS[i] if i in chosen else None for i in range(3)]]
            for calls in ([single[j] for j in chosen], together):
                inputs, parameters = run(graph, calls)
                for k, found in enumerate(inputs):
                    expected = sum(parts[j][0][k] for j in chosen)
                    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
                for name, found in parameters.items():
                    expected = sum(parts[j][1][name] for j in chosen)
                    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13, err_msg=name)


def test_an_output_reaches_only_what_leads_to_it():
    _, parameters = run(three_outputs(), [[None, None, SEEDS[2]]])
    reached = {name for name, gradient in parameters.items() if gradient.any()}
    assert reached == {"right.weight", "right.bias", "side.weight", "side.bias"}


def test_no_output_at_all_is_no_gradient():
    inputs, parameters = run(three_outputs(), [[None, None, None]])
    assert not any(gradient.any() for gradient in [*inputs, *parameters.values()])


def test_dicts_name_inputs_outputs_and_gradients():
    graph = three_outputs()
    as_lists, by_list = run(graph, [[SEEDS[0], None, SEEDS[2]]])
    graph.zero_grad()
    graph.forward({"right": rows(1), "left": rows(0)}, True)
    as_dicts = graph.backward({"side": SEEDS[2], "end": SEEDS[0]})
    for a, b in zip(as_dicts, as_lists, strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same_bits({name: p.grad for name, p in graph.named_parameters()}, by_list)


def test_lists_of_one_are_lists():
    node = LayerNode(Identity())
    graph = LayerGraph({node: []}, root=[node], term=[node]).build(dtype="float64")
    (y,) = graph.forward([rows()])
    (dx,) = graph.backward([2 * y])
    np.testing.assert_array_equal(dx, 2 * rows())
    (p,) = graph.predict([rows()])
    np.testing.assert_array_equal(p, rows())


def test_one_node_as_root_and_term():
    node = LayerNode(Dense(4, 3), name="all")
    graph = LayerGraph({node: []}, root=node, term=node, seed=0).build(dtype="float64")
    np.testing.assert_allclose(graph.forward(rows()), rows() @ node.layer.weight.value.T, rtol=1e-12)


# ---- a loss that reaches a part advances that part


def adam(weight, gradients, lr=0.1):
    """The trajectory of torch.optim.Adam: one step for every gradient that is not None."""
    mean = square = np.zeros_like(weight)
    count = 0
    for gradient in gradients:
        if gradient is None:
            continue
        count += 1
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient * gradient
        corrected = mean / (1 - 0.9**count), square / (1 - 0.999**count)
        weight = weight - lr * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    return weight


def test_step_counts_are_those_of_each_parameter():
    """As in torch, a parameter without a gradient is passed over: its moments stand still and its count does not grow."""
    graph = two_heads(dtype="float64")
    graph.set_optimizer(Adam(0.1))
    initial, seen = graph.state_dict(), {name: [] for name in graph.state_dict()}
    for i, which in enumerate(["ab", "a", "a", "b", "ab", "b"]):
        graph.zero_grad()
        graph.forward(rows(i), True)
        graph.backward([images(10 + i, (5, 3)) if name in which else None for name in "ab"])
        for name, parameter in graph.named_parameters():
            seen[name].append(parameter.grad.copy() if name[0] in which + "t" else None)
        graph.update()
    for name, value in graph.state_dict().items():
        np.testing.assert_allclose(value, adam(initial[name], seen[name]), rtol=1e-9, atol=1e-11, err_msg=name)


def test_one_optimizer_stepping_through_torch():
    torch = pytest.importorskip("torch")
    graph = two_heads(dtype="float64")
    graph.set_optimizer(Adam(0.1))
    twins = {name: torch.tensor(v, requires_grad=True) for name, v in graph.state_dict().items()}
    peer = torch.optim.Adam(list(twins.values()), lr=0.1)
    for i, which in enumerate(["ab", "a", "a", "b", "ab", "b"]):
        x, y = rows(i), labels(5, i)
        losses = [LOSS if name in which else None for name in "ab"]
        graph.train_step(x, [y if loss else None for loss in losses], losses)
        peer.zero_grad(set_to_none=True)
        h = torch.tanh(torch.tensor(x) @ twins["trunk.0.weight"].T + twins["trunk.0.bias"])
        total = sum(
            torch.nn.functional.cross_entropy(h @ twins[f"{n}.weight"].T + twins[f"{n}.bias"], torch.tensor(y))
            for n in which
        )
        total.backward()
        peer.step()
    for name, value in graph.state_dict().items():
        np.testing.assert_allclose(value, twins[name].detach().numpy(), rtol=1e-9, atol=1e-11, err_msg=name)


# ---- an optimizer for every node


def test_nodes_take_their_own_optimizer_and_others_the_graphs():
    graph = two_heads(dtype="float64")
    graph.set_optimizer(SGD(0.5))
    node_of(graph, "a").set_optimizer(SGD, lr=0.25)
    node_of(graph, "b").set_optimizer(SGD(1.0), lr=0.125)
    graph.forward(rows(), True)
    graph.backward()
    before, gradients = graph.state_dict(), {name: p.grad.copy() for name, p in graph.named_parameters()}
    graph.update()
    for name, value in graph.state_dict().items():
        lr = {"t": 0.5, "a": 0.25, "b": 0.125}[name[0]]
        np.testing.assert_array_equal(value, before[name] - lr * gradients[name])


def test_node_optimizers_alone_advance_their_nodes_alone():
    graph = two_heads(dtype="float64")
    node_of(graph, "a").set_optimizer(SGD(0.5))
    before = graph.state_dict()
    graph.train_step(rows(), [labels(5)] * 2, LOSS)
    changed = {name for name, value in graph.state_dict().items() if (value != before[name]).any()}
    assert changed == {"a.weight", "a.bias"}


def test_where_chooses_parameters():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.5))
    graph.set_optimizer(SGD(0.0), where=lambda name, parameter: name.endswith("bias"))
    before = graph.state_dict()
    graph.train_step(rows(), labels(5), LOSS)
    changed = {name for name, value in graph.state_dict().items() if (value != before[name]).any()}
    assert changed == {"first.weight", "second.weight"}


def test_what_was_set_for_a_predicate_is_replaced_and_taken_away():
    graph = perceptron()

    def biases(name, parameter):
        return name.endswith("bias")

    graph.set_optimizer(SGD(0.1))
    graph.set_optimizer(Adam(0.2), where=biases)
    graph.set_optimizer(RMSProp(0.3), where=biases)
    assert [optimizer.lr for optimizer in graph.optimizers.values()] == [0.1, 0.3]
    graph.set_optimizer(None, where=biases)
    assert [optimizer.lr for optimizer in graph.optimizers.values()] == [0.1]


@pytest.mark.parametrize("call", [lambda g: g.update(), lambda g: g.train_step(rows(), labels(5), LOSS)])
def test_an_update_without_any_optimizer_is_an_error(call):
    graph = perceptron(dtype="float64")
    graph.forward(rows(), True)
    graph.backward()
    before = state(graph)
    with pytest.raises(StateError, match=r"set_optimizer"):
        call(graph)
    assert_same_bits(state(graph), before)
    graph.set_optimizer(SGD(0.1))  # the gradients are still there
    graph.update()
    assert (graph.state_dict()["first.weight"] != before["first.weight"]).any()


def test_an_optimizer_that_is_taken_away_is_missed():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(SGD(0.1))
    graph.train_step(rows(), labels(5), LOSS)
    graph.set_optimizer(None)
    with pytest.raises(StateError, match=r"set_optimizer"):
        graph.train_step(rows(), labels(5), LOSS)


def test_a_new_optimizer_starts_afresh_and_one_that_stays_goes_on():
    graph, twin = (perceptron(dtype="float64") for _ in range(2))
    graph.set_optimizer(Adam(0.1))
    node_of(graph, "second").set_optimizer(RMSProp(0.05))
    for i in range(3):
        graph.train_step(rows(i), labels(5, i), LOSS)
    twin.load_state_dict(graph.state_dict())
    graph.set_optimizer(Adam(0.1))  # another object: another state, for what has none of its own
    twin.set_optimizer(Adam(0.1))
    for g in (graph, twin):
        g.train_step(rows(5), labels(5, 5), LOSS)
    for name in ("first.weight", "first.bias"):
        np.testing.assert_array_equal(graph.state_dict()[name], twin.state_dict()[name])
    assert (graph.state_dict()["second.weight"] != twin.state_dict()["second.weight"]).any()


# ---- frozen nodes


def test_frozen_nodes_stand_still_and_let_gradients_through():
    graph, free = (perceptron(dtype="float64") for _ in range(2))
    node_of(graph, "second").frozen = True
    for g in (graph, free):
        g.set_optimizer(Adam(0.1))
        g.forward(rows(), True)
        dx = g.backward(SEEDS[0])
        if g is graph:
            expected = dx
    np.testing.assert_array_equal(dx, expected)
    second, first = node_of(graph, "second").layer, node_of(graph, "first").layer
    assert not second.weight.grad.any()
    np.testing.assert_array_equal(first.weight.grad, node_of(free, "first").layer.weight.grad)
    before = graph.state_dict()
    graph.update()
    graph.train_step(rows(), labels(5), LOSS)
    graph.fit(rows(), labels(5), loss=LOSS, verbose=0)
    changed = {name for name, value in graph.state_dict().items() if (value != before[name]).any()}
    assert changed == {"first.weight", "first.bias"}


def test_thawing_goes_on_where_it_stood():
    """Adam's count of the frozen node did not grow meanwhile."""
    graph = perceptron(dtype="float64")
    graph.set_optimizer(Adam(0.1))
    node = node_of(graph, "second")
    start, seen = graph.state_dict()["second.weight"], []
    for i in range(6):
        node.frozen = i in (2, 3)
        graph.zero_grad()
        graph.forward(rows(i), True)
        graph.backward(SEEDS[0])
        seen.append(None if node.frozen else node.layer.weight.grad.copy())
        graph.update()
    np.testing.assert_allclose(node.layer.weight.value, adam(start, seen), rtol=1e-9, atol=1e-11)


def test_everything_frozen_trains_nothing():
    graph = perceptron(dtype="float64")
    graph.set_optimizer(Adam(0.1))
    for node in graph.nodes:
        node.frozen = True
    before = graph.state_dict()
    x, y = rows(), labels(5)
    assert graph.train_step(x, y, LOSS) == LOSS(y, graph.forward(x, True))
    graph.backward()
    graph.update()
    assert_same_bits(graph.state_dict(), before)


def test_stop_gradient_cuts_one_edge():
    a, b, c = LayerNode(Dense(4, 4), name="a"), LayerNode(Dense(4, 4), name="b"), LayerNode(Identity(), name="c")
    graph = LayerGraph({a: [b, c], b: [c]}, root=a, term=c, seed=0)
    graph.build(dtype="float64")
    d = images(5, (5, 4))
    graph.forward(rows(), True)
    graph.backward(d)
    np.testing.assert_allclose(a.layer.bias.grad, (d + d @ b.layer.weight.value).sum(0), rtol=1e-12)
    graph.stop_gradient(a, b)
    graph.build(dtype="float64")
    graph.zero_grad()
    graph.forward(rows(), True)
    graph.backward(d)
    np.testing.assert_allclose(a.layer.bias.grad, d.sum(0), rtol=1e-12)
    assert b.layer.weight.grad.any()


def test_stop_gradient_right_behind_the_input():
    """What is kept for backward is then the input itself, under another name."""
    root, body = LayerNode(Identity()), LayerNode(Sequential(Dense(4, 3), Activation.Tanh()), name="body")
    graph = LayerGraph({root: [body]}, root=root, term=body, seed=0)
    graph.stop_gradient(root, body)
    graph.build(dtype="float64")
    y = graph.forward(rows(), True)
    assert not graph.backward(SEEDS[0]).any()
    gradient = (SEEDS[0] * (1 - y * y)).T @ rows()
    np.testing.assert_allclose(body.layer["0"].weight.grad, gradient, rtol=1e-12)
