"""The numbers that say what is right: worked cases with known answers, in both dtypes.

S(shape) has flat element k = sin(k), C cos(k), R cos(0.1 k). Tolerance: 1e-9 relative in float64, 2e-4 in float32 (sums of up to
5,000 terms that partly cancel).
"""

import itertools

import numpy as np
import pytest

from tapeprop import LayerGraph, LayerNode, MergeMode, ops
from tapeprop.errors import DisconnectedError, MergeError, StateError
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Identity, Lambda, Sequential
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD

TOLERANCE = {"float64": 1e-9, "float32": 2e-4}


def flat(function, shape):
    return function(np.arange(np.prod(shape), dtype=np.float64)).reshape(shape)


def S(*shape):
    return flat(np.sin, shape)


def C(*shape):
    return flat(np.cos, shape)


def R(*shape):
    return flat(lambda k: np.cos(0.1 * k), shape)


def l1(array):
    return np.abs(array.astype(np.float64)).sum()


def conv(inputs, outputs):
    layer = Conv2D(inputs, outputs, 3)
    layer.weight.assign(S(outputs, inputs, 3, 3))
    layer.bias.assign(S(outputs))
    return layer


def total(array):
    return float(array.astype(np.float64).sum())


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return request.param


def close(dtype):
    return lambda value, expected: value == pytest.approx(expected, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])


def run(graph, x, d=None, is_train=False):
    y = graph.forward(x, is_train)
    return y, graph.backward(R(*y.shape) if d is None else d)


def test_sum_of_two_inputs(dtype):
    a, b, t = LayerNode(Identity()), LayerNode(Identity()), LayerNode(Identity(), MergeMode.SUM)
    graph = LayerGraph({a: [t], b: [t], t: []}, root=[a, b], term=t).build(dtype=dtype)
    y = graph.forward([np.array([[0, 1, 2], [3, 4, 5]]), np.array([[1, 1, 1], [0, 0, 0]])])
    np.testing.assert_array_equal(y, [[1, 2, 3], [3, 4, 5]])
    assert y.dtype == dtype
    for gradient in graph.backward(np.ones((2, 3))):
        np.testing.assert_array_equal(gradient, np.ones((2, 3)))


def test_linear(dtype):
    same = close(dtype)
    nodes = [LayerNode(conv(3, 6)), LayerNode(BatchNorm2D(6, epsilon=1e-9)), LayerNode(Activation.ReLU())]
    graph = LayerGraph(dict(zip(nodes, [[nodes[1]], [nodes[2]], []], strict=True)), root=nodes[0], term=nodes[2])
    graph.build((2, 3, 8, 8), dtype=dtype)
    y, dx = run(graph, C(2, 3, 8, 8), is_train=True)
    assert same(total(y), 341.8627213989068)
    assert same(total(y * R(*y.shape)), 7.660185540568555)
    assert same(l1(dx), 1029.462010478201)
    assert same(dx.reshape(-1)[0], -1.8454106500377567)
    norm = nodes[1].layer
    assert same(l1(nodes[0].layer.weight.grad), 231.67081340534145)
    assert same(norm.running_mean.value[0], 0.0002124556201504464)
    assert same(norm.running_var.value[0], 1.1745358712936071)
    assert graph.out_shape((2, 3, 8, 8)) == (2, 6, 8, 8)
    assert graph.param_size == (174, 6)
    assert graph.layer_count == 3
    assert len(graph) == 3
    assert bool(graph) is True
    assert str(graph) == "LayerGraph"
    assert str(nodes[0]) == "LayerNode"


def test_shortcut_as_the_readme_writes_it(dtype):
    same = close(dtype)
    root, relu, term = LayerNode(conv(3, 6)), LayerNode(Activation.ReLU()), LayerNode(Identity(), MergeMode.SUM)
    graph = LayerGraph({root: [relu, term], relu: [term]}, root=root, term=term).build((2, 3, 8, 8), dtype=dtype)
    y, dx = run(graph, C(2, 3, 8, 8))
    assert same(total(y), 622.1141236267933)
    assert same(l1(dx), 1616.0421037834371)
    assert same(l1(root.layer.weight.grad), 334.40074898759065)
    assert same(root.layer.bias.grad[0], 1.1216480516897394)


def shortcut(channels):
    root, body = LayerNode(Identity()), LayerNode(Sequential(conv(3, channels), Activation.ReLU()))
    term = LayerNode(Identity(), MergeMode.SUM, name="joined")
    return LayerGraph({root: [body, term], body: [term]}, root=root, term=term), body


def test_shortcut_as_drawn(dtype):
    same = close(dtype)
    graph, _ = shortcut(3)
    y, dx = run(graph.build((2, 3, 8, 8), dtype=dtype), C(2, 3, 8, 8))
    assert same(total(y), 405.92937356233114)
    assert same(l1(dx), 857.8292589890833)


def test_shortcut_of_other_channels_is_refused():
    graph, _ = shortcut(6)
    with pytest.raises(MergeError, match="joined") as refusal:
        graph.build((2, 3, 8, 8))
    assert "(2, 3, 8, 8)" in str(refusal.value)
    assert "(2, 6, 8, 8)" in str(refusal.value)
    assert not graph.built_


def test_channel_concat(dtype):
    same = close(dtype)
    root, term = LayerNode(Identity()), LayerNode(Identity(), MergeMode.CHCAT)
    convs = [conv(3, n) for n in (6, 12, 18)]
    branches = [LayerNode(Sequential(c, Activation.ReLU())) for c in convs]
    graph = LayerGraph({root: branches, **{b: [term] for b in branches}}, root=root, term=term)
    y, dx = run(graph.build((2, 3, 8, 8), dtype=dtype), C(2, 3, 8, 8))
    assert y.shape == (2, 36, 8, 8)
    assert graph.param_size == (972, 36)
    assert same(total(y), 3592.4293410120245)
    assert same(l1(dx), 4040.626098357636)
    expected = (184.45158360855498, 410.33432137392424, 503.21636310338204)
    for layer, value in zip(convs, expected, strict=True):
        assert same(l1(layer.weight.grad), value)


A, B, D = np.array([[1.0, 5.0]]), np.array([[2.0, 3.0]]), np.array([[0.0, 9.0]])
MERGES = [
    (MergeMode.HADAMARD, [[0, 135]], ([[0, 270]], [[0, 450]], [[2, 150]])),
    (MergeMode.AVG, [[1, 17 / 3]], ([[1 / 3, 10 / 3]],) * 3),
    (MergeMode.MAX, [[2, 9]], ([[0, 0]], [[1, 0]], [[0, 10]])),
    (MergeMode.MIN, [[0, 3]], ([[0, 0]], [[0, 10]], [[1, 0]])),
    (MergeMode.SUB, [[-1, -7]], ([[1, 10]], [[-1, -10]], [[-1, -10]])),
    (MergeMode.SUM, [[3, 17]], ([[1, 10]],) * 3),
]


@pytest.mark.parametrize(("mode", "value", "gradients"), MERGES)
def test_merges_of_three(mode, value, gradients, dtype):
    roots = [LayerNode(Identity()) for _ in range(3)]
    term = LayerNode(Identity(), mode)
    graph = LayerGraph({r: [term] for r in roots} | {term: []}, root=roots, term=term).build(dtype=dtype)
    np.testing.assert_allclose(graph.forward([A, B, D]), value, rtol=1e-6)
    for found, expected in zip(graph.backward(np.array([[1.0, 10.0]])), gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def scale(factor):
    return LayerNode(Lambda(lambda x: x * factor))


@pytest.mark.parametrize(("swapped", "expected"), [(False, 8), (True, -8)])
def test_subtraction_over_unequal_depth_follows_declaration(swapped, expected):
    r, t = LayerNode(Identity()), LayerNode(Identity(), MergeMode.SUB)
    first, second, short = scale(3), scale(5), scale(7)
    ends = {short: [t], second: [t]} if swapped else {second: [t], short: [t]}
    graph = LayerGraph({r: [first, short], first: [second], **ends}, root=r, term=t).build(dtype="float64")
    np.testing.assert_array_equal(graph.forward(np.array([[1.0]])), [[expected]])
    np.testing.assert_array_equal(graph.backward(), [[expected]])


def test_concat_over_unequal_depth():
    r, t = LayerNode(Identity()), LayerNode(Identity(), MergeMode.CHCAT)
    first, second, short = scale(3), LayerNode(Lambda(lambda x: x[:, 0:1])), scale(7)
    graph = LayerGraph({r: [first, short], first: [second], second: [t], short: [t]}, root=r, term=t)
    graph.build(dtype="float64")
    np.testing.assert_array_equal(graph.forward(np.array([[1.0, 1.0]])), [[3, 7, 7]])
    np.testing.assert_array_equal(graph.backward(np.array([[1.0, 10.0, 100.0]])), [[73, 700]])


def test_one_layer_in_two_nodes_adds_its_gradients(dtype):
    layer = Dense(1, 1)
    layer.weight.assign([[2.0]])
    layer.bias.assign([0.0])
    a, b = LayerNode(layer), LayerNode(layer)
    graph = LayerGraph({a: [b], b: []}, root=a, term=b).build(dtype=dtype)
    np.testing.assert_array_equal(graph.forward(np.array([[3.0]])), [[12]])
    np.testing.assert_array_equal(graph.backward(), [[4]])
    np.testing.assert_array_equal(layer.weight.grad, [[12]])


def test_broadcast_product_sums_over_broadcast_axes(dtype):
    a, b, t = LayerNode(Identity()), LayerNode(Identity()), LayerNode(Identity(), MergeMode.HADAMARD)
    graph = LayerGraph({a: [t], b: [t], t: []}, root=[a, b], term=t).build(dtype=dtype)
    x, s = np.arange(1.0, 7.0).reshape(1, 2, 3), np.array([[[2.0], [3.0]]])
    graph.forward([x, s])
    dx, ds = graph.backward()
    np.testing.assert_array_equal(ds.ravel(), [6, 15])
    np.testing.assert_array_equal(dx[0], [[2, 2, 2], [3, 3, 3]])


def test_an_edge_listed_twice_counts_twice(dtype):
    a, b = LayerNode(Identity()), LayerNode(Identity(), MergeMode.SUM)
    graph = LayerGraph({a: [b, b]}, root=a, term=b).build(dtype=dtype)
    np.testing.assert_array_equal(graph.forward(np.array([[1.5, 2.0]])), [[3, 4]])
    np.testing.assert_array_equal(graph.backward(), [[2, 2]])


def test_matrix_square(dtype):
    a, b = LayerNode(Identity()), LayerNode(Identity(), MergeMode.DOT)
    graph = LayerGraph({a: [b, b]}, root=a, term=b).build(dtype=dtype)
    np.testing.assert_array_equal(graph.forward(np.array([[1.0, 2.0], [3.0, 4.0]])), [[7, 10], [15, 22]])
    np.testing.assert_array_equal(graph.backward(), [[7, 11], [9, 13]])


def test_a_dead_end_is_refused_or_left_out():
    r, t, x = LayerNode(Identity()), LayerNode(Identity()), LayerNode(Identity(), name="dead")
    graph = LayerGraph({r: [t, x]}, root=r, term=t)
    with pytest.raises(DisconnectedError, match="dead"):
        graph.build()
    graph.build(allow_dead=True)
    np.testing.assert_array_equal(graph.forward(np.array([[1.0]])), [[1]])
    np.testing.assert_array_equal(graph.backward(), [[1]])


def two_losses():
    layer = Dense(2, 2, bias=False)
    layer.weight.assign(np.array([[1, -1], [0.5, 1]]).T)
    trunk = LayerNode(Sequential(layer, Activation.ReLU()))
    la = LayerNode(Lambda(lambda h: ops.sum(ops.square(ops.matmul(h, np.array([[1.0], [2.0]]))))))
    lb = LayerNode(Lambda(lambda h: ops.sum(ops.matmul(h, np.array([[3.0], [-1.0]])))))
    graph = LayerGraph({trunk: [la, lb]}, root=trunk, term=[la, lb]).build(dtype="float64")
    a, b = graph.forward(np.array([[1.0, 2.0]]), True)
    assert (float(a), float(b)) == (16, 5)
    return graph, layer


ONE, TWO = np.array([[8.0, 16], [16, 32]]), np.array([[3.0, -1], [6, -2]])


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([[1.0, None]], ONE),
        ([[None, 1.0]], TWO),
        ([[1.0, None], [None, 1.0]], ONE + TWO),
        ([[None, 1.0], [1.0, None]], ONE + TWO),
        ([None], ONE + TWO),
    ],
)
def test_two_losses_in_any_order(calls, expected):
    graph, layer = two_losses()
    for d_out in calls:
        graph.backward(d_out)
    np.testing.assert_allclose(layer.weight.grad.T, expected, rtol=1e-12)


def test_gradients_add_up_until_consumed():
    graph, layer = two_losses()
    graph.backward()
    graph.backward()
    np.testing.assert_allclose(layer.weight.grad.T, 2 * (ONE + TWO), rtol=1e-12)
    graph.zero_grad()
    graph.backward([1.0, None])
    np.testing.assert_allclose(layer.weight.grad.T, ONE, rtol=1e-12)
    graph.set_optimizer(SGD(lr=0.0))
    graph.update()
    np.testing.assert_allclose(layer.weight.grad.T, ONE, rtol=1e-12)
    graph.forward(np.array([[1.0, 2.0]]), True)
    graph.backward([None, 1.0])
    np.testing.assert_allclose(layer.weight.grad.T, TWO, rtol=1e-12)


def test_a_chain_of_20000_nodes():
    nodes = [LayerNode(Identity()) for _ in range(20_000)]
    graph = LayerGraph({a: [b] for a, b in itertools.pairwise(nodes)}, root=nodes[0], term=nodes[-1])
    graph.build((2, 3))
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(graph.forward(x), x)
    np.testing.assert_array_equal(graph.backward(), x)


def test_a_ladder_of_5000_levels_returns_its_input():
    half = Lambda(lambda x: x * 0.5)
    top = LayerNode(Identity())
    edges, here = {}, top
    for _ in range(5_000):
        left, right, below = LayerNode(half), LayerNode(half), LayerNode(Identity(), MergeMode.SUM)
        edges |= {here: [left, right], left: [below], right: [below]}
        here = below
    graph = LayerGraph(edges, root=top, term=here).build((2, 3), dtype="float64")
    x = S(2, 3)
    np.testing.assert_array_equal(graph.forward(x), x)
    np.testing.assert_array_equal(graph.backward(x), x)


def test_cross_entropy_values():
    y, z = np.array([[0.0, 1, 0], [1, 0, 0]]), np.array([[0.2, 1, -1], [0.5, 0.1, 2]])
    loss = CrossEntropy()
    assert loss(y, z) == pytest.approx(1.1385756338124233, rel=1e-12)
    assert loss(np.array([1, 0]), z) == pytest.approx(1.1385756338124233, rel=1e-12)
    assert loss(np.array([2]), np.array([[1000.0, 0, -1000]])) == 2000


def test_one_lowering_for_a_hundred_calls_of_one_shape():
    layer = Dense(3, 2)
    node = LayerNode(layer)
    graph = LayerGraph({node: []}, root=node, term=node, seed=0).build()
    graph.set_optimizer(SGD(lr=0.1))
    for _ in range(100):
        graph.forward(np.ones((4, 3)), True)
    assert (graph.cache_info().misses, graph.cache_info().hits) == (1, 99)
    graph.forward(np.ones((5, 3)), True)
    assert graph.cache_info().misses == 2
    graph.backward()
    graph.update()
    graph.forward(np.ones((4, 3)), True)
    assert graph.cache_info().misses == 2
    if graph.device == "cpu":
        layer.weight.value[...] = 0
        layer.bias.value[...] = 7
    else:  # where views are copies
        layer.weight.assign(np.zeros((2, 3)))
        layer.bias.assign(np.full(2, 7))
    np.testing.assert_array_equal(graph.forward(np.ones((4, 3)), True), np.full((4, 2), 7, np.float32))


def test_backward_without_forward_is_an_error():
    node = LayerNode(Dense(3, 2), name="only")
    graph = LayerGraph({node: []}, root=node, term=node).build()
    with pytest.raises(StateError, match="forward"):
        graph.backward(np.ones((1, 2)))
