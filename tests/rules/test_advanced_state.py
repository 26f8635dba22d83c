"""A layer whose gradient reads state that its own forward advances: backward sees the value that forward read."""

import numpy as np
import pytest

import tapeprop as tp
from tapeprop import ops
from tapeprop.ir import Parameter
from tapeprop.layers import Dense, Identity, Layer, tracing

RNG = np.random.default_rng(5)
RTOL = 1e-12  # float64, a handful of operations


class Growing(Layer):
    """y = x s; in training s becomes 1.5 s. The gradient reads s, so it must be the s of before."""

    def __init__(self, shape=(), view=False):
        self.shape = shape
        self.view = view
        self.scale = Parameter(shape, np.full(shape, 2.0), trainable=False, name="scale")

    def trace(self, x):
        trace = tracing()
        s = trace.latest(self.scale)
        if trace.training:
            trace.store(self.scale, s * 1.5)
        return x * (ops.reshape(s, (1, *self.shape)) if self.view else s)


class Averaging(Layer):
    """y = x s^2; in training s becomes the mean of x and s: the new state depends on the data."""

    def __init__(self):
        self.scale = Parameter((), np.array(3.0), trainable=False, name="scale")

    def trace(self, x):
        trace = tracing()
        s = trace.latest(self.scale)
        if trace.training:
            trace.store(self.scale, (s + ops.mean(x)) * 0.5)
        return x * s * s


def build(layer, **options):
    dense, node = tp.LayerNode(Dense(3, 3), name="dense"), tp.LayerNode(layer, name="mine", **options)
    graph = tp.LayerGraph({dense: [node], node: []}, root=dense, term=node, seed=0)
    return graph.build((None, 3), dtype="float64"), dense.layer


FORMS = {
    "scalar": lambda: Growing(),
    "vector": lambda: Growing((3,)),
    "a view of it": lambda: Growing((3,), view=True),
}


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_backward_sees_the_state_that_forward_read(form, checkpoint):
    layer = FORMS[form]()
    graph, dense = build(layer, checkpoint=checkpoint)
    X, d = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 3))
    W, b = dense.weight.value.copy(), dense.bias.value.copy()
    for k in range(3):
        s = 2.0 * 1.5**k
        np.testing.assert_allclose(graph(X, is_train=True), (X @ W.T + b) * s, rtol=RTOL)
        np.testing.assert_allclose(layer.scale.value, s * 1.5, rtol=RTOL)
        for _ in range(2):  # as often as one likes
            graph.zero_grad()
            np.testing.assert_allclose(graph.backward(d), (d * s) @ W, rtol=RTOL)
            np.testing.assert_allclose(dense.weight.grad, (d * s).T @ X, rtol=RTOL)


@pytest.mark.parametrize("form", FORMS)
def test_a_training_step_sees_it_too(form):
    layer = FORMS[form]()
    graph, dense = build(layer)
    graph.set_optimizer(tp.optimizers.SGD(lr=0.1))
    X, y = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 3))
    for k in range(3):
        s, W, b = 2.0 * 1.5**k, dense.weight.value.copy(), dense.bias.value.copy()
        out = (X @ W.T + b) * s
        np.testing.assert_allclose(graph.train_step(X, y, tp.losses.MSE()), np.mean((out - y) ** 2), rtol=RTOL)
        slope = 2 * (out - y) / y.size * s
        np.testing.assert_allclose(dense.weight.value, W - 0.1 * slope.T @ X, rtol=RTOL)
        np.testing.assert_allclose(dense.bias.value, b - 0.1 * slope.sum(0), rtol=RTOL)
        np.testing.assert_allclose(layer.scale.value, s * 1.5, rtol=RTOL)


def test_steps_inside_one_native_call_see_it_each():
    layer, twin = Growing((3,)), Growing((3,))
    (graph, dense), (other, dense_other) = build(layer), build(twin)
    X, y = RNG.standard_normal((12, 3)), RNG.standard_normal((12, 3))
    for g in (graph, other):
        g.set_optimizer(tp.optimizers.SGD(lr=0.01))
    graph.fit(X, y, loss=tp.losses.MSE(), batch_size=4, epochs=2, shuffle=False, metrics=(), verbose=0)
    for k in [0, 4, 8] * 2:
        other.train_step(X[k : k + 4], y[k : k + 4], tp.losses.MSE())
    np.testing.assert_array_equal(dense.weight.value, dense_other.weight.value)
    np.testing.assert_array_equal(layer.scale.value, twin.scale.value)


def test_two_nodes_that_share_the_layer_each_see_their_own():
    layer = Averaging()
    first, second = tp.LayerNode(layer, name="first"), tp.LayerNode(layer, name="second")
    graph = tp.LayerGraph({first: [second], second: []}, root=first, term=second).build((None, 3), dtype="float64")
    X, d = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 3))
    graph(X, is_train=True)
    s1 = 3.0
    s2 = (s1 + X.mean()) / 2
    # the second state is made of x, but a state effect passes no gradient back except through y
    dh = d * s2 * s2
    dh_s2 = (d * X * s1 * s1 * 2 * s2).sum()  # y = h s2^2, and s2 = (s1 + mean x) / 2 is part of the formula
    np.testing.assert_allclose(graph.backward(d), dh * s1 * s1 + dh_s2 * 0.5 / X.size, rtol=1e-11)
    np.testing.assert_allclose(layer.scale.value, (s2 + (X * s1 * s1).mean()) / 2, rtol=RTOL)


def test_where_no_gradient_reads_the_state_nothing_is_copied():
    node = tp.LayerNode(Identity(), name="plain")
    norm = tp.LayerNode(tp.layers.BatchNorm1D(3), name="norm")
    graph = tp.LayerGraph({node: [norm], norm: []}, root=node, term=norm).build((4, 3))
    assert not [row for row in graph.tape if row["op"] == "copy"]
