"""Whole graphs whose results are known to sixteen digits, by the oracle in float64.

Weights are S(shape), inputs C(shape), output gradients R(shape); see `traced`.
"""

import numpy as np
import pytest
from traced import C, R, Run, S, run

from tapeprop.errors import ShapeError
from tapeprop.graph import GraphStructure, LayerNode, MergeMode, SequentialNode
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Identity, Lambda

X = C(2, 3, 8, 8)
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def conv(out_channels: int) -> Conv2D:
    layer = Conv2D(3, out_channels, 3)
    layer.weight.assign(S(out_channels, 3, 3, 3))
    layer.bias.assign(S(out_channels))
    return layer


def expect(got: list, known: list[float]) -> None:
    np.testing.assert_allclose(np.array(got, float), known, **CLOSE)


def forward_and_back(graph: GraphStructure) -> tuple[np.ndarray, np.ndarray, Run]:
    y = run(graph, [X], training=True).outputs[0]
    found = run(graph, [X], [R(*y.shape)], training=True)
    return found.outputs[0], found.inputs[0], found


def test_linear() -> None:
    layer, norm = conv(6), BatchNorm2D(6, epsilon=1e-9)
    c, b, r = LayerNode(layer), LayerNode(norm), LayerNode(Activation.ReLU())
    graph = GraphStructure({c: [b], b: [r]}, root=c, term=r)
    y, dx, found = forward_and_back(graph)
    expect(
        [y.sum(), (y * R(*y.shape)).sum(), np.abs(dx).sum(), dx.flat[0], np.abs(found.parameters[layer.weight]).sum()],
        [341.8627213989068, 7.660185540568555, 1029.462010478201, -1.8454106500377567, 231.67081340534145],
    )
    expect(
        [found.states[norm.running_mean][0], found.states[norm.running_var][0]],
        [0.0002124556201504464, 1.1745358712936071],
    )
    assert graph.out_shape((2, 3, 8, 8)) == (2, 6, 8, 8)
    assert (graph.param_size, graph.layer_count, len(graph), str(c)) == ((174, 6), 3, 3, "LayerNode")
    assert set(run(graph, [X], training=False).states) == set()


def test_shortcut_from_the_convolution() -> None:
    layer = conv(6)
    c, r, t = LayerNode(layer), LayerNode(Activation.ReLU()), LayerNode(Identity(), MergeMode.SUM)
    y, dx, found = forward_and_back(GraphStructure({c: [r, t], r: [t]}, root=c, term=t))
    weight, bias = found.parameters[layer.weight], found.parameters[layer.bias]
    expect(
        [y.sum(), np.abs(dx).sum(), np.abs(weight).sum(), bias[0]],
        [622.1141236267933, 1616.0421037834371, 334.40074898759065, 1.1216480516897394],
    )


def shortcut_from_the_input(layer: Conv2D) -> GraphStructure:
    r, c = LayerNode(Identity(), name="root"), LayerNode(layer, name="conv")
    a, t = LayerNode(Activation.ReLU(), name="relu"), LayerNode(Identity(), name="term")
    return GraphStructure({r: [c, t], c: [a], a: [t]}, root=r, term=t)


def test_shortcut_from_the_input() -> None:
    y, dx, _ = forward_and_back(shortcut_from_the_input(conv(3)))
    expect([y.sum(), np.abs(dx).sum()], [405.92937356233114, 857.8292589890833])
    with pytest.raises(ShapeError) as caught:
        shortcut_from_the_input(conv(6)).out_shape((2, 3, 8, 8))
    assert all(name in str(caught.value) for name in ("'term'", "'root' (2, 3, 8, 8)", "'relu' (2, 6, 8, 8)"))


def test_channel_concat() -> None:
    layers = [conv(6), conv(12), conv(18)]
    r, t = LayerNode(Identity()), LayerNode(Identity(), MergeMode.CHCAT)
    branches = [SequentialNode(layer, Activation.ReLU()) for layer in layers]
    graph = GraphStructure({r: branches, **{b: [t] for b in branches}}, root=r, term=t)
    y, dx, found = forward_and_back(graph)
    assert y.shape == (2, 36, 8, 8)
    assert graph.param_size == (972, 36)
    expect(
        [y.sum(), np.abs(dx).sum(), *(np.abs(found.parameters[layer.weight]).sum() for layer in layers)],
        [3592.4293410120245, 4040.626098357636, 184.45158360855498, 410.33432137392424, 503.21636310338204],
    )


def test_two_inputs() -> None:
    a, b, t = LayerNode(Identity()), LayerNode(Identity()), LayerNode(Identity())
    graph = GraphStructure({a: [t], b: [t]}, [a, b], t)
    found = run(graph, [np.arange(6.0).reshape(2, 3), np.array([[1.0, 1, 1], [0, 0, 0]])])
    assert found.outputs[0].tolist() == [[1, 2, 3], [3, 4, 5]]
    assert [dx.tolist() for dx in found.inputs] == [[[1, 1, 1], [1, 1, 1]]] * 2


def test_one_layer_in_two_nodes_shares_its_weights() -> None:
    layer = Dense(1, 1)
    layer.weight.assign([[2.0]])
    a, b = LayerNode(layer), LayerNode(layer)
    graph = GraphStructure({a: [b]}, a, b)
    found = run(graph, [np.array([[3.0]])])
    assert (found.outputs[0], found.inputs[0], found.parameters[layer.weight]) == (12, 4, 12)
    assert graph.param_size == (1, 1)
    assert [key for key, _ in graph.named_parameters()] == ["node0.weight", "node0.bias"]


def test_a_state_in_two_nodes_advances_twice() -> None:
    norm = BatchNorm2D(3, momentum=0.5)
    a, b = LayerNode(norm), LayerNode(norm)
    x = X + 1.0
    found = run(GraphStructure({a: [b]}, a, b), [x], training=True)
    expect([found.states[norm.running_mean]], [x.mean((0, 2, 3)) / 4])  # half of it, then half of that and half of 0
    assert norm.running_mean.value.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("d_out", "dw"),
    [
        ([1.0, None], [[8, 16], [16, 32]]),
        ([None, 1.0], [[3, -1], [6, -2]]),
        ([1.0, 1.0], [[11, 15], [22, 30]]),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_two_losses(d_out: list, dw: list, swapped: bool) -> None:
    layer = Dense(2, 2, bias=False)
    layer.weight.assign(np.array([[1.0, -1.0], [0.5, 1.0]]).T)
    A, B = np.array([[1.0], [2.0]]), np.array([[3.0], [-1.0]])
    r, h = LayerNode(layer), LayerNode(Activation.ReLU())
    la = LayerNode(Lambda(lambda x: (x @ A) * (x @ A)))
    lb = LayerNode(Lambda(lambda x: x @ B))
    order = -1 if swapped else 1
    graph = GraphStructure({r: [h], h: [la, lb][::order]}, r, [la, lb][::order])
    found = run(graph, [np.array([[1.0, 2.0]])], d_out[::order])
    assert [y.item() for y in found.outputs[::order]] == [16, 5]
    np.testing.assert_allclose(found.parameters[layer.weight].T, dw, rtol=1e-14)
