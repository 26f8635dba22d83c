"""Looking inside: watch(), value() and gradient() show every node's result and gradient and do not change the run."""

from __future__ import annotations

import numpy as np
import pytest
from rules.networks import assert_same_bits, batches, images, perceptron, rows, state, two_heads, vision

from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.errors import GraphError, StateError
from tapeprop.layers import Activation, Identity
from tapeprop.optimizers import SGD


def split() -> tuple[LayerGraph, list[LayerNode]]:
    """t = tanh(a + b) with b = a, all in one memory but for the two tanh."""
    a, b, t = (LayerNode(Activation.Tanh()), LayerNode(Identity()), LayerNode(Activation.Tanh(), MergeMode.SUM))
    return LayerGraph({a: [b, t], b: [t]}, root=a, term=t).build(dtype="float64"), [a, b, t]


def test_nodes_that_share_memory_have_gradients_of_their_own():
    graph, (a, b, t) = split()
    graph.watch(a, b, t)
    x, d = rows(), images(1, (5, 4))
    y = graph.forward(x)
    np.testing.assert_allclose(graph.value(a), np.tanh(x), rtol=1e-14)
    np.testing.assert_array_equal(graph.value(b), graph.value(a))
    np.testing.assert_array_equal(graph.value(t), y)
    graph.backward(d)
    inner = d * (1 - y * y)
    np.testing.assert_array_equal(graph.gradient(t), d)
    np.testing.assert_allclose(graph.gradient(b), inner, rtol=1e-12)  # through b alone
    np.testing.assert_allclose(graph.gradient(a), 2 * inner, rtol=1e-12)


def test_what_is_read_is_a_copy():
    graph, nodes = split()
    graph.watch(*nodes)
    x, d = rows(), images(1, (5, 4))
    graph.forward(x)
    graph.backward(d)
    for read in (graph.value, graph.gradient):
        for node in nodes:
            kept = read(node)
            expected = kept.copy()
            kept[...] = np.nan
            d[...] = np.nan
            np.testing.assert_array_equal(read(node), expected)


@pytest.mark.parametrize("number", [0, 1])
def test_watching_changes_nothing_but_the_order_of_sums(number):
    """Where image ops lie in vector lanes, watched results have to be laid out plainly, which orders some sums otherwise."""
    plain, watched = (vision(dtype="float64") for _ in range(2))
    watched.watch(*watched.nodes)
    for graph in (plain, watched):
        graph.set_optimizer(SGD(0.1))
        y = graph.forward(batches(number), True)
        graph.backward(y)
        graph.update()
    found, expected = state(watched), state(plain)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13, err_msg=name)
    if number == 1:
        assert_same_bits(found, expected)


def test_an_output_that_gets_no_gradient_has_none():
    graph = two_heads(dtype="float64")
    graph.watch(*graph.terms)
    graph.forward(rows(), True)
    d = images(1, (5, 3))
    graph.backward([d, None])
    np.testing.assert_array_equal(graph.gradient(graph.terms[0]), d)
    assert not graph.gradient(graph.terms[1]).any()
    graph.backward([None, d])  # the last backward counts
    assert not graph.gradient(graph.terms[0]).any()


def test_what_is_not_there_is_an_error():
    graph = perceptron(dtype="float64")
    first, second, _ = graph.nodes
    graph.watch(first)
    for read in (graph.value, graph.gradient):
        with pytest.raises(StateError, match=r"forward\(\)"):
            read(first)
    graph.forward(rows())
    graph.value(first)
    with pytest.raises(StateError, match=r"backward\(\)"):
        graph.gradient(first)
    with pytest.raises(StateError, match=r"'tanh' is not watched"):
        graph.value(second)
    with pytest.raises(GraphError, match="expected a node of the graph"):
        graph.watch(LayerNode(Identity()))
    graph.watch()
    with pytest.raises(StateError, match=r"'first' is not watched"):
        graph.value(first)


def test_a_node_that_is_left_out_cannot_be_watched():
    root, end, dead = LayerNode(Identity()), LayerNode(Identity()), LayerNode(Identity(), name="dead")
    graph = LayerGraph({root: [end, dead]}, root=root, term=end).build(dtype="float64", allow_dead=True)
    with pytest.raises(GraphError, match="'dead' leads to no term"):
        graph.watch(end, dead)
    graph.forward(rows())
