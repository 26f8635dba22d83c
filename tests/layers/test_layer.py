"""The protocol: parameters and layers inside, names, streams of randomness, shapes, description."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from traced import run

from tapeprop import ops
from tapeprop.errors import GraphError, ShapeError
from tapeprop.graph import GraphStructure, LayerNode, SequentialNode
from tapeprop.ir import Parameter
from tapeprop.layers import (
    Activation,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Identity,
    Lambda,
    Layer,
    MaxPool2D,
    Pool2D,
    Reshape,
    Sequential,
    tracing,
)


class Scale(Layer):
    """The example of the docstring, with all the places where parameters and layers may stand."""

    def __init__(self, in_features: int):
        self.in_features = in_features
        self.first = Dense(in_features, in_features)
        self.weight = self.parameter((in_features,), "ones", name="weight")
        self.many = [Parameter((1,), np.zeros(1)), {"key": Dense(in_features, 1)}]
        self.again = self.first

    def trace(self, x):
        return self.first(x) * self.weight + self.many[0]


class Counter(Layer):
    """A state that a training call advances."""

    def __init__(self):
        self.calls = Parameter((), np.zeros(()), trainable=False)

    def trace(self, x):
        trace = tracing()
        if trace.training:
            trace.store(self.calls, trace.latest(self.calls) + 1.0)
        return x


def test_parameters_come_in_definition_order_and_once() -> None:
    layer = Scale(3)
    keys = [name for name, _ in layer.named_parameters()]
    assert keys == ["first.weight", "first.bias", "weight", "many.0", "many.1.key.weight", "many.1.key.bias"]
    assert layer.param_size == (9 + 3 + 1 + 3, 3 + 1)
    assert [name for name, _ in layer.children()] == ["first", "many.1.key", "again"]
    assert layer.layer_count == 3


def test_a_layer_from_ops_runs_and_differentiates() -> None:
    layer = Scale(3)
    x = np.random.default_rng(0).standard_normal((2, 3))
    found = run(layer, [x])
    y = x @ layer.first.weight.value.T
    np.testing.assert_allclose(found.outputs[0], y, rtol=1e-14)
    np.testing.assert_allclose(found.parameters[layer.weight], y.sum(0), rtol=1e-14)


def test_state_advances_in_training_only() -> None:
    layer = Counter()
    assert run(layer, [np.zeros(2)], training=True).states[layer.calls] == 1
    assert run(Sequential(layer, layer), [np.zeros(2)], training=True).states[layer.calls] == 2
    assert run(layer, [np.zeros(2)]).states == {}


def test_out_shape() -> None:
    assert Conv2D(3, 6, 3).out_shape((2, 3, 8, 8)) == (2, 6, 8, 8)
    assert Conv2D(3, 6, 3, 2).out_shape((None, 3, 9, None)) == (None, 6, 5, None)
    assert Sequential(Conv2D(3, 6, 3), MaxPool2D(), Flatten()).out_shape((None, 3, 8, 8)) == (None, 96)
    with pytest.raises(ShapeError, match="give them"):
        Conv2D(3, 6, 3).out_shape((2, None, 8, 8))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, -1), (2, 1.5), 3, "23", (2, "3"), None])
def test_wrong_input_shapes(shape) -> None:
    with pytest.raises(ShapeError, match="give"):
        Identity().out_shape(shape)


def test_an_empty_batch_is_called_so() -> None:
    with pytest.raises(ShapeError, match="empty batch"):
        Identity().out_shape((0, 3))


def test_outside_of_a_graph() -> None:
    with pytest.raises(GraphError, match="outside"):
        tracing()
    with pytest.raises(NotImplementedError, match="trace"):
        Layer().out_shape((1,))


def test_random_state_makes_draws_repeatable() -> None:
    a, b, c = (Dense(5, 4, random_state=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.weight.value, b.weight.value)
    assert (a.weight.value != c.weight.value).all()
    by_hand = np.random.Generator(np.random.PCG64(1)).normal(0.0, np.sqrt(2 / 5), (4, 5))
    np.testing.assert_array_equal(a.weight.value, by_hand)
    assert a.weight.value.dtype == np.float64


def test_without_any_seed_draws_differ() -> None:
    assert (Dense(5, 4).weight.value != Dense(5, 4).weight.value).all()


class TwoDraws(Layer):
    def __init__(self, random_state: int | None = None):
        self.random_state = random_state
        self.a = self.parameter((3, 3), "he")
        self.b = self.parameter((3, 3), "he")

    def trace(self, x):
        return x


@pytest.mark.parametrize("seed", [7, None])
def test_draws_do_not_depend_on_their_order(seed: int | None) -> None:
    first, second = TwoDraws(seed), TwoDraws(seed)
    if seed is None:
        for layer in (first, second):
            layer.seed_streams(3, (0,))
    values = [first.a.value, first.b.value]
    np.testing.assert_array_equal([second.b.value, second.a.value], values[::-1])
    assert (values[0] != values[1]).all()


def seeded(seed: int | None, extra: bool = False) -> tuple[GraphStructure, list[Dense]]:
    layers = [Dense(2, 2), Dense(2, 2), Dense(2, 2), Dense(2, 2, random_state=9)]
    inner = LayerNode(layers[1])
    nodes = [
        LayerNode(layers[0]),
        SequentialNode(Identity(), GraphStructure({inner: []}, inner, inner), layers[2]),
        LayerNode(layers[3]),
    ]
    if extra:
        nodes.insert(3, LayerNode(Dense(2, 2)))
    graph = GraphStructure({a: [b] for a, b in itertools.pairwise(nodes)}, nodes[0], nodes[-1], seed=seed)
    return graph, layers


def test_the_seed_of_a_graph_reaches_every_layer() -> None:
    first, second, other = seeded(3)[1], seeded(3)[1], seeded(4)[1]
    values = [layer.weight.value for layer in first]
    np.testing.assert_array_equal([layer.weight.value for layer in second], values)
    assert all((a.weight.value != b).all() for a, b in zip(other[:3], values))
    np.testing.assert_array_equal(other[3].weight.value, values[3])
    assert len({value[0, 0] for value in values}) == 4


def test_a_layer_draws_by_its_place_not_by_what_stands_beside_it() -> None:
    first, second = seeded(3)[1], seeded(3, extra=True)[1]
    np.testing.assert_array_equal([a.weight.value for a in first], [b.weight.value for b in second])


def test_layers_that_come_in_later_are_seeded_at_build() -> None:
    values = []
    for _ in range(2):
        graph, layers = seeded(3)
        graph.nodes[0].layer = late = Dense(2, 2)
        graph.seed_layers()
        values.append(late.weight.value)
        assert (late.weight.value != layers[1].weight.value).all()
    np.testing.assert_array_equal(*values)


def test_a_layer_keeps_its_first_stream() -> None:
    _graph, layers = seeded(3)
    node = LayerNode(layers[0])
    GraphStructure({node: []}, node, node, seed=99)
    np.testing.assert_array_equal(layers[0].weight.value, seeded(3)[1][0].weight.value)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Conv2D(3, 6, 3), "Conv2D(3, 6, 3)"),
        (Conv2D(4, 6, (3, 1), stride=2, padding="valid", bias=False), None),
        (Dense(3, 4, bias=False), "Dense(3, 4, bias=False)"),
        (Dense(3, 4, initializer="glorot", random_state=0), "Dense(3, 4, initializer='glorot', random_state=0)"),
        (BatchNorm2D(6, epsilon=1e-9), "BatchNorm2D(6, epsilon=1e-09)"),
        (MaxPool2D(3), "MaxPool2D(filter_size=3)"),
        (Pool2D(mode="avg"), "Pool2D(mode='avg')"),
        (Dropout(), "Dropout()"),
        (Reshape(3, -1), "Reshape(3, -1)"),
        (Activation.LeakyReLU(0.2), "LeakyReLU(alpha=0.2)"),
        (Sequential(Identity(), ("end", Flatten())), "Sequential(Identity(), ('end', Flatten()))"),
        (Lambda(ops.relu), "Lambda(relu)"),
    ],
)
def test_repr_is_the_call_that_makes_it(layer: Layer, text: str | None) -> None:
    expected = text or "Conv2D(4, 6, (3, 1), stride=2, padding='valid', bias=False)"
    assert repr(layer) == expected


def test_constructor_arguments_make_an_equal_layer() -> None:
    layer = Conv2D(4, 6, (3, 1), stride=2, groups=2, bias=False, random_state=3)
    twin = Conv2D(**layer.constructor_arguments())
    assert twin.constructor_arguments() == layer.constructor_arguments()
    np.testing.assert_array_equal(twin.weight.value, layer.weight.value)
    assert twin.bias is None
    assert Dense(**Dense(2, 3).constructor_arguments()).bias is not None


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_layers_can_be_copied(clone) -> None:
    layer = Sequential(Dense(2, 2, random_state=1), Activation.GELU(approximate=True), Dropout(random_state=3))
    twin = clone(layer)
    np.testing.assert_array_equal(twin[0].weight.value, layer[0].weight.value)
    twin[0].weight.value[...] = 0
    assert layer[0].weight.value.any()
    assert repr(twin) == repr(layer)
