"""Rules 1 to 4: identity is the object, order is declaration, eight merges of any number of operands, fan-out adds."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from rules.networks import chain, images, merged, rows

from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.layers import Activation, Conv2D, Dense, Identity, Lambda, Sequential

# ---- eight merges, one to four operands, against NumPy


def ties_shared(x: list[np.ndarray], d: np.ndarray, best: np.ndarray) -> list[np.ndarray]:
    count = sum((a == best).astype(float) for a in x)
    return [np.where(a == best, d / count, 0.0) for a in x]


def product_without(x: list[np.ndarray], i: int) -> np.ndarray:
    return functools.reduce(np.multiply, [a for j, a in enumerate(x) if j != i], np.ones_like(x[0]))


def chain_of_products(x: list[np.ndarray], d: np.ndarray) -> list[np.ndarray]:
    found = []
    for i in range(len(x)):
        left = functools.reduce(np.matmul, x[:i], np.eye(x[i].shape[-2]))
        right = functools.reduce(np.matmul, x[i + 1 :], np.eye(x[i].shape[-1]))
        found.append(np.swapaxes(left, -1, -2) @ d @ np.swapaxes(right, -1, -2))
    return found


MERGES = {
    MergeMode.SUM: (lambda x: functools.reduce(np.add, x), lambda x, d: [d] * len(x)),
    MergeMode.AVG: (lambda x: functools.reduce(np.add, x) / len(x), lambda x, d: [d / len(x)] * len(x)),
    MergeMode.HADAMARD: (
        lambda x: functools.reduce(np.multiply, x),
        lambda x, d: [d * product_without(x, i) for i in range(len(x))],
    ),
    MergeMode.SUB: (lambda x: functools.reduce(np.subtract, x), lambda x, d: [d] + [-d] * (len(x) - 1)),
    MergeMode.MAX: (
        lambda x: functools.reduce(np.maximum, x),
        lambda x, d: ties_shared(x, d, functools.reduce(np.maximum, x)),
    ),
    MergeMode.MIN: (
        lambda x: functools.reduce(np.minimum, x),
        lambda x, d: ties_shared(x, d, functools.reduce(np.minimum, x)),
    ),
    MergeMode.CHCAT: (
        lambda x: np.concatenate(x, 1),
        lambda x, d: np.split(d, np.cumsum([a.shape[1] for a in x])[:-1], 1),
    ),
    MergeMode.DOT: (lambda x: functools.reduce(np.matmul, x), chain_of_products),
}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", MergeMode)
def test_any_number_of_operands(mode, count):
    graph = merged(mode, count, dtype="float64")
    shape = (3, 3) if mode is MergeMode.DOT else (3, 4)
    x = [np.round(images(i, shape) * 2) / 2 for i in range(count)]  # with ties
    value, gradient = MERGES[mode]
    y = graph.forward(x)
    np.testing.assert_allclose(y, value(x), rtol=1e-12, atol=1e-12)
    d = images(9, y.shape)
    for found, expected in zip(graph.backward(d), gradient(x, d), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def folded(d: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The sum of d over the axes that were broadcast from `shape`."""
    d = d.sum(axis=tuple(range(d.ndim - len(shape))))
    return d.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


BROADCAST = [(2, 3, 4, 4), (2, 3, 1, 1), (1, 3, 4, 1)]


@pytest.mark.parametrize("mode", [m for m in MergeMode if m not in (MergeMode.CHCAT, MergeMode.DOT)])
def test_broadcast_gradients_are_sums(mode):
    value, gradient = MERGES[mode]
    for order in ([0, 1, 2], [2, 1, 0]):
        graph = merged(mode, 3, dtype="float64")
        x = [images(i, BROADCAST[i]) for i in order]
        y = graph.forward(x)
        np.testing.assert_allclose(y, value(x), rtol=1e-12, atol=1e-13)
        d = images(9, y.shape)
        wide = [np.broadcast_to(a, y.shape) for a in x]
        for a, found, whole in zip(x, graph.backward(d), gradient(wide, d), strict=True):
            assert found.shape == a.shape
            np.testing.assert_allclose(found, folded(whole, a.shape), rtol=1e-12, atol=1e-12)


def test_products_broadcast_their_leading_axes():
    graph = merged(MergeMode.DOT, 3, dtype="float64")
    x = [images(0, (2, 1, 3, 4)), images(1, (1, 5, 4, 2)), images(2, (2, 2))]
    y = graph.forward(x)
    np.testing.assert_allclose(y, x[0] @ x[1] @ x[2], rtol=1e-12, atol=1e-12)
    d = images(3, y.shape)
    first, second, third = graph.backward(d)
    back = d @ x[2].T
    np.testing.assert_allclose(first, (back @ x[1].swapaxes(-1, -2)).sum(1, keepdims=True), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(second, (x[0].swapaxes(-1, -2) @ back).sum(0, keepdims=True), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(third, ((x[0] @ x[1]).swapaxes(-1, -2) @ d).sum((0, 1)), rtol=1e-12, atol=1e-12)


def test_concatenated_channels_may_differ_in_number():
    graph = merged(MergeMode.CHCAT, 3, dtype="float64")
    x = [images(i, (2, n, 3, 3)) for i, n in enumerate((1, 4, 2))]
    y = graph.forward(x)
    np.testing.assert_array_equal(y, np.concatenate(x, 1))
    d = images(9, y.shape)
    for found, expected in zip(graph.backward(d), np.split(d, [1, 5], 1), strict=True):
        np.testing.assert_array_equal(found, expected)


# ---- order


@pytest.mark.parametrize("keys", list(itertools.permutations(range(3))))
def test_operands_come_in_the_order_of_the_keys(keys):
    """Whatever the depth of a branch, and whatever the order in which the root lists its followers."""
    root = LayerNode(Identity())
    term = LayerNode(Identity(), MergeMode.CHCAT)
    ends, edges = [], {}
    for depth, factor in ((0, 2.0), (1, 3.0), (3, 5.0)):
        nodes = [LayerNode(Lambda(lambda x, f=factor: x * f)), *(LayerNode(Identity()) for _ in range(depth))]
        edges[root] = [nodes[0], *edges.get(root, [])]
        ends.append((nodes, factor))
    declared = {root: edges[root]}
    for i in keys:
        nodes, _ = ends[i]
        for a, b in itertools.pairwise([*nodes, term]):
            declared[a] = [b]
    # the keys of the last nodes decide: put them last, in this order
    for i in keys:
        last = ends[i][0][-1]
        declared[last] = declared.pop(last)
    graph = LayerGraph(declared, root=root, term=term).build(dtype="float64")
    np.testing.assert_array_equal(graph.forward(np.ones((1, 1))), [[ends[i][1] for i in keys]])


def test_an_operand_listed_twice_stands_twice_in_its_place():
    a, b = LayerNode(Identity(), name="a"), LayerNode(Identity(), name="b")
    meet = LayerNode(Identity(), MergeMode.CHCAT)
    graph = LayerGraph({a: [meet, meet], b: [meet]}, root=[a, b], term=meet).build(dtype="float64")
    x, z = np.array([[1.0]]), np.array([[5.0]])
    np.testing.assert_array_equal(graph.forward([x, z]), [[1, 1, 5]])
    np.testing.assert_array_equal(graph.backward(np.array([[1.0, 10, 100]])), [[[11]], [[100]]])


def test_subtracting_a_node_from_itself_is_nothing():
    a, b = LayerNode(Identity()), LayerNode(Identity(), MergeMode.SUB)
    graph = LayerGraph({a: [b, b, b]}, root=a, term=b).build(dtype="float64")
    np.testing.assert_array_equal(graph.forward(rows()), -rows())  # x - x - x
    np.testing.assert_array_equal(graph.backward(), np.full((5, 4), -1.0))


@pytest.mark.parametrize("mode", [MergeMode.MAX, MergeMode.MIN])
def test_an_edge_listed_three_times_shares_its_tie_with_itself(mode):
    a, b = LayerNode(Identity()), LayerNode(Identity(), mode)
    graph = LayerGraph({a: [b, b, b]}, root=a, term=b).build(dtype="float64")
    np.testing.assert_array_equal(graph.forward(rows()), rows())
    np.testing.assert_allclose(graph.backward(), np.ones((5, 4)), rtol=1e-15)


# ---- identity


def test_equal_names_and_equal_layers_do_not_make_two_nodes_one():
    """Two unnamed nodes of equal layers, drawn from one random_state, are still two sets of weights."""
    layers = [Dense(4, 4, random_state=1) for _ in range(2)]
    graph = chain(*layers).build(dtype="float64")
    np.testing.assert_array_equal(layers[0].weight.value, layers[1].weight.value)
    graph.forward(rows())
    graph.backward()
    assert len(list(graph.named_parameters())) == 4
    assert (layers[0].weight.grad != layers[1].weight.grad).any()


@pytest.mark.parametrize("where", ["nodes", "Sequential", "nested graph"])
def test_a_shared_layer_adds_its_gradients(where):
    layer = Dense(4, 4, random_state=0)
    if where == "nodes":
        graph = chain(layer, Activation.Tanh(), layer)
    elif where == "Sequential":
        graph = chain(Sequential(layer, Activation.Tanh()), Sequential(layer))
    else:
        graph = chain(chain(layer, Activation.Tanh()), layer)
    graph.build(dtype="float64")
    assert graph.param_size == (16, 4)
    x, d = rows(), images(1, (5, 4))
    graph.forward(x)
    dx = graph.backward(d)
    w = layer.weight.value
    h = np.tanh(x @ w.T + layer.bias.value)
    inner = (d @ w) * (1 - h * h)
    np.testing.assert_allclose(layer.weight.grad, d.T @ h + inner.T @ x, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(layer.bias.grad, (d + inner).sum(0), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(dx, inner @ w, rtol=1e-12, atol=1e-13)


def test_a_layer_shared_by_two_graphs_has_one_set_of_weights_and_gradients():
    layer = Dense(4, 4, random_state=0)
    first, second = (chain(layer).build(dtype="float64") for _ in range(2))
    x = rows()
    np.testing.assert_array_equal(first.forward(x), second.forward(x))
    first.backward()
    once = layer.weight.grad.copy()
    second.backward()
    np.testing.assert_array_equal(layer.weight.grad, 2 * once)


def test_a_node_in_two_graphs_is_known_to_both():
    node, other = LayerNode(Dense(4, 4), name="both"), LayerNode(Activation.Tanh())
    alone = LayerGraph({node: []}, root=node, term=node, seed=0).build(dtype="float64")
    chained = LayerGraph({node: [other]}, root=node, term=other).build(dtype="float64")
    np.testing.assert_allclose(np.tanh(alone.forward(rows())), chained.forward(rows()), rtol=1e-14)


# ---- fan-out


def test_fan_out_adds_every_branch():
    root = LayerNode(Identity())
    branches = [LayerNode(Lambda(lambda x, k=k: x * k)) for k in (1.0, 2.0, 3.0, 4.0, 5.0)]
    term = LayerNode(Identity(), MergeMode.SUM)
    graph = LayerGraph({root: branches} | {b: [term] for b in branches}, root=root, term=term).build(dtype="float64")
    np.testing.assert_allclose(graph.forward(rows()), 15 * rows(), rtol=1e-15)
    np.testing.assert_array_equal(graph.backward(), np.full((5, 4), 15.0))


def test_gradients_of_a_fan_out_add_in_an_order_of_their_own_not_of_chance():
    """Numbers of very different size show the order of a sum: two graphs declared alike agree to the last bit."""

    def gradient():
        root = LayerNode(Conv2D(2, 2, 3, random_state=0))
        branches = [LayerNode(Lambda(lambda x, k=k: x * 10.0**k)) for k in (8, -8, 3, -3, 0)]
        term = LayerNode(Identity(), MergeMode.SUM)
        edges = {root: branches} | {b: [term] for b in branches}
        graph = LayerGraph(edges, root=root, term=term).build(dtype="float64")
        graph.forward(images())
        return graph.backward(images(1, (6, 2, 6, 6))).tobytes(), root.layer.weight.grad.tobytes()

    assert gradient() == gradient()
