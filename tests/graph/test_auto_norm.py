"""build(auto_batch_norm=True): which layers get a norm, and what the graph keeps for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rules.networks import assert_same_bits, chain, images, labels, node_of, state

import tapeprop as tp
from tapeprop import LayerGraph, LayerNode, MergeMode, SequentialNode
from tapeprop.errors import DuplicateNameError, ShapeError, WeightFileError
from tapeprop.graph.auto_norm import norms_for
from tapeprop.interchange.construct import construct
from tapeprop.interchange.describe import describe
from tapeprop.layers import (
    Activation,
    BatchNorm1D,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Identity,
    Layer,
    MaxPool2D,
    Sequential,
)
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam

RELU = Activation.ReLU
X, Y = images(), labels(6)


class Held(Layer):
    """A layer of the user's: what reads its convolution stands in its trace alone."""

    def __init__(self) -> None:
        self.conv = Conv2D(3, 3, 3)

    def trace(self, x):
        return self.conv.trace(x)


def conv() -> Conv2D:
    return Conv2D(3, 3, 3)


def graph_of(*layers: Layer) -> LayerGraph:
    nodes = [LayerNode(layer) for layer in layers]
    return LayerGraph({node: nodes[i + 1 : i + 2] for i, node in enumerate(nodes)}, root=nodes[0], term=nodes[-1])


def fork(*readers: Layer, merge: MergeMode | None = None) -> LayerGraph:
    """A convolution whose result goes to each reader; `merge`: their results, or it alone, meet with it once more."""
    first, nodes = LayerNode(conv()), [LayerNode(reader) for reader in readers]
    edges: dict[LayerNode, list[LayerNode]] = {first: nodes, **{node: [] for node in nodes}}
    if merge is None:
        return LayerGraph(edges, root=first, term=nodes)
    last = LayerNode(RELU(), merge)
    edges = {first: [*nodes, last], **{node: [last] for node in nodes}}
    return LayerGraph(edges, root=first, term=last)


def twice(*between: Layer) -> LayerGraph:
    """One convolution in two places, activations behind both, or one."""
    shared = conv()
    return graph_of(shared, RELU(), shared, *between)


# what the graph is, and how many of its layers get a norm
PLACES: dict[str, tuple[Callable[[], LayerGraph], int]] = {
    "a node before an activation": (lambda: graph_of(conv(), RELU()), 1),
    "in a Sequential": (lambda: graph_of(Sequential(conv(), Activation.GELU(), conv())), 1),
    "the last of a Sequential": (lambda: graph_of(Sequential(conv()), Sequential(Sequential(), RELU())), 1),
    "a dense layer": (lambda: graph_of(Dense(4, 3), Activation.Tanh(), Dense(3, 2), Activation.Sigmoid()), 2),
    "before a softmax": (lambda: graph_of(Dense(4, 3), Activation.Softmax()), 0),
    "before nothing": (lambda: graph_of(conv()), 0),
    "with a norm already": (lambda: graph_of(conv(), BatchNorm2D(3), RELU()), 0),
    "before a pool": (lambda: graph_of(conv(), MaxPool2D(), RELU()), 0),
    "before dropout": (lambda: graph_of(conv(), Dropout(0.5), RELU()), 0),
    "through what does nothing": (lambda: graph_of(conv(), Identity(), Activation.Linear(), RELU()), 1),
    "before two activations": (lambda: fork(RELU(), Activation.Tanh()), 1),
    "before an activation and another layer": (lambda: fork(RELU(), conv()), 0),
    "into a merge": (lambda: fork(merge=MergeMode.SUM), 1),  # of one operand, which passes as it is
    "into a merge as well": (lambda: fork(RELU(), merge=MergeMode.SUM), 0),
    "in a graph inside": (lambda: graph_of(graph_of(conv(), RELU(), conv()), RELU()), 2),
    "an activation first in a graph inside": (lambda: graph_of(conv(), graph_of(Sequential(RELU(), conv()))), 1),
    "in a layer of the user's": (lambda: graph_of(Held(), RELU()), 0),
    "shared, activations behind both": (lambda: twice(RELU()), 1),
    "shared, nothing behind one": (lambda: twice(), 0),
}


@pytest.mark.parametrize(("make", "count"), PLACES.values(), ids=PLACES)
def test_which_layers_get_a_norm(make: Callable[[], LayerGraph], count: int) -> None:
    graph = make()
    found = norms_for(graph)
    assert len(found) == count
    for layer, norm in found:
        assert type(norm) is (BatchNorm2D if isinstance(layer, Conv2D) else BatchNorm1D)


def test_an_output_is_read_by_the_caller() -> None:
    first, second = LayerNode(conv()), LayerNode(RELU())
    assert norms_for(LayerGraph({first: [second]}, root=first, term=[first, second])) == ()
    assert len(norms_for(LayerGraph({first: [second]}, root=first, term=second))) == 1


def test_dead_ends_neither_read_nor_get_a_norm() -> None:
    first, relu, dead = LayerNode(conv()), LayerNode(RELU()), SequentialNode(conv(), RELU())
    graph = LayerGraph({first: [relu, dead]}, root=first, term=relu)
    graph.build(allow_dead=True, auto_batch_norm=True)
    assert [layer for layer, _ in norms_for(graph)] == [first.layer]


def network(seed: int = 0) -> LayerGraph:
    """Normed: a node's own layer, one in a Sequential, one in a graph inside. (N, 2, 6, 6) -> (N, 3)."""
    first, relu = LayerNode(Conv2D(2, 4, 3), name="first"), LayerNode(RELU(), name="relu")
    body = SequentialNode(Flatten(), ("hidden", Dense(144, 8)), Activation.Tanh(), name="body")
    inner = LayerNode(Dense(8, 8), name="inner"), LayerNode(RELU())
    block = LayerNode(LayerGraph({inner[0]: [inner[1]]}, root=inner[0], term=inner[1]), name="block")
    head = LayerNode(Dense(8, 3), name="head")
    edges = {first: [relu], relu: [body], body: [block], block: [head], head: []}
    return LayerGraph(edges, root=first, term=head, seed=seed)


SHAPE = (None, 2, 6, 6)
KEYS = ("first", "body.hidden", "block.inner")


def by_hand() -> LayerGraph:
    """The same with norms of the user's own."""
    layers = [
        Conv2D(2, 4, 3), BatchNorm2D(4), RELU(), Flatten(), Dense(144, 8), BatchNorm1D(8), Activation.Tanh(),
        Dense(8, 8), BatchNorm1D(8), RELU(), Dense(8, 3),
    ]  # fmt: skip
    return chain(*layers)


def built(**options: Any) -> LayerGraph:
    return network().build(SHAPE, **{"dtype": "float64", "auto_batch_norm": True, **options})


def test_it_trains_as_the_same_network_by_hand() -> None:
    graph, peer = built(), by_hand().build(SHAPE, dtype="float64")
    keys = list(graph.state_dict())
    peer.load_state_dict(dict(zip(peer.state_dict(), graph.state_dict().values(), strict=True)))
    for each in (graph, peer):
        each.set_optimizer(Adam(0.01))
    for _ in range(3):
        assert graph.train_step(X, Y, CrossEntropy()) == peer.train_step(X, Y, CrossEntropy())
    assert_same_bits(graph.state_dict(), dict(zip(keys, peer.state_dict().values(), strict=True)))
    assert graph.state_dict()["first.auto_norm.running_mean"].any()
    np.testing.assert_array_equal(graph(X), peer(X))
    np.testing.assert_array_equal(graph.predict(X), peer.predict(X))


def test_keys_counts_and_the_summary() -> None:
    plain, graph = network().build(SHAPE), built()
    norms = [f"{key}.auto_norm.{name}" for key in KEYS for name in ("weight", "bias", "running_mean", "running_var")]
    keys = list(graph.state_dict())
    assert sorted(keys) == sorted([*plain.state_dict(), *norms])
    assert keys[:3] == ["first.weight", "first.bias", "first.auto_norm.weight"]
    assert graph.param_size == (plain.param_size[0] + 2 * (4 + 8 + 8), plain.param_size[1])
    assert graph.layer_count == plain.layer_count + 3
    lines = graph.summary().splitlines()
    assert [line.split()[0] for line in lines if "BatchNorm" in line] == [f"{key}.auto_norm" for key in KEYS]
    assert "5 nodes, 11 layers" in lines[-1]
    assert "auto_norm" not in plain.summary()


def test_nothing_of_the_callers_is_changed() -> None:
    graph = network()
    block = node_of(graph, "block").layer
    before = [list(dict(part.walk())) for part in (*[node.layer for node in graph.nodes], block)]
    edges = {node: list(following) for node, following in graph.graph.items()}
    graph.build(SHAPE, auto_batch_norm=True)
    assert [list(dict(part.walk())) for part in (*[node.layer for node in graph.nodes], block)] == before
    assert {node: list(following) for node, following in graph.graph.items()} == edges
    assert len(block.build((None, 8)).state_dict()) == 2  # a graph inside has no norms of its own for it


def test_a_layer_in_two_places_has_one_norm() -> None:
    shared = Dense(4, 4)
    graph = chain(shared, RELU(), shared, Activation.Tanh(), names=["a", "b", "c", "d"], seed=0)
    graph.build((None, 4), dtype="float64", auto_batch_norm=True)
    assert [key for key in graph.state_dict() if "running_mean" in key] == ["a.auto_norm.running_mean"]
    assert graph.layer_count == 6
    x, norm = images(1, (5, 4)), graph.state_dict()
    graph.forward(x, True)
    kept, mean = 0.9, x @ shared.weight.value.T + shared.bias.value
    y = np.maximum((mean - mean.mean(0)) / np.sqrt(mean.var(0) + 1e-5), 0) @ shared.weight.value.T + shared.bias.value
    expected = kept * (kept * norm["a.auto_norm.running_mean"] + (1 - kept) * mean.mean(0)) + (1 - kept) * y.mean(0)
    np.testing.assert_allclose(graph.state_dict()["a.auto_norm.running_mean"], expected, rtol=1e-12, atol=1e-15)


def test_rebuilding_keeps_weights_and_optimizer_state() -> None:
    graph, whole = built(), built()
    for each in (graph, whole):
        each.set_optimizer(SGD(0.1, momentum=0.9))
        each.train_step(X, Y, CrossEntropy())
    relu = node_of(graph, "relu")
    extra = LayerNode(Identity(), name="extra")
    graph.disconnect(node_of(graph, "first"), relu)
    graph.add_node(extra, [node_of(graph, "first")], [relu])
    graph.build(SHAPE, dtype="float64", auto_batch_norm=True)
    for each in (graph, whole):
        each.train_step(X, Y, CrossEntropy())
    assert_same_bits(state(graph), state(whole))


def test_a_build_without_it_takes_them_away() -> None:
    graph, plain = built(), network().build(SHAPE, dtype="float64")
    for each in (graph, plain):
        each.set_optimizer(SGD(0.1, momentum=0.9))
    graph.build(SHAPE, dtype="float64")
    for each in (graph, plain):
        each.train_step(X, Y, CrossEntropy())
    assert_same_bits(state(graph), state(plain))
    assert not any("auto_norm" in row["node"] for row in graph.tape)


def test_a_refused_build_leaves_the_norms() -> None:
    graph = built()
    before = graph.state_dict()
    with pytest.raises(ShapeError):
        graph.build((None, 3, 6, 6), dtype="float64")
    assert_same_bits(graph.state_dict(), before)
    assert graph.predict(X).shape == (6, 3)
    clashing = chain(Dense(4, 3), RELU(), BatchNorm1D(3), names=["a", "relu", "a.auto_norm"])
    with pytest.raises(DuplicateNameError, match=r"a\.auto_norm\.weight"):
        clashing.build(auto_batch_norm=True)
    assert clashing.build().predict(np.ones((2, 4))).shape == (2, 3)


def test_a_norm_goes_with_its_layer() -> None:
    """Frozen with it, advanced by its optimizer, found by `where`."""
    graph = built()
    graph.set_optimizer(SGD(0.1))
    node_of(graph, "first").frozen = True
    node_of(graph, "body").set_optimizer(SGD(0.0))
    graph.set_optimizer(SGD(0.0), where=lambda name, parameter: name == "block.inner.auto_norm.bias")
    before = graph.state_dict()
    graph.train_step(X, Y, CrossEntropy())
    moved = {key for key, value in graph.state_dict().items() if not np.array_equal(value, before[key])}
    trained = {key for key in moved if "running" not in key}
    assert trained == {
        "block.inner.weight", "block.inner.bias", "block.inner.auto_norm.weight", "head.weight", "head.bias"
    }  # fmt: skip
    assert "first.auto_norm.running_mean" in moved  # statistics are no matter of training


def test_saved_and_loaded(tmp_path) -> None:
    graph = built()
    graph.set_optimizer(Adam(0.01))
    graph.train_step(X, Y, CrossEntropy())
    graph.save(tmp_path / "g")
    again = tp.load(tmp_path / "g")
    assert again.build_options() == graph.build_options()
    assert_same_bits(again.state_dict(), graph.state_dict())
    for each in (again, graph):
        each.train_step(X, Y, CrossEntropy())
    assert_same_bits(again.state_dict(), graph.state_dict())
    assert "first.auto_norm.weight" in tp.load(tmp_path / "g", build=False).state_dict()


def test_a_file_can_put_norms_behind_convolutions_and_dense_layers_alone() -> None:
    described = describe(built())
    relu = next(i for i, entry in enumerate(described["layers"]) if entry["class"] == "Activation.ReLU")
    with pytest.raises(WeightFileError, match="norms: expected places of convolutions and dense layers, got ReLU"):
        construct(described | {"norms": [relu]}, "file", None, LayerGraph)
    for norms in ([0, 0], [99], ["0"], 3):
        with pytest.raises(WeightFileError, match="norms: expected"):
            construct(described | {"norms": norms}, "file", None, LayerGraph)
    assert len(construct(described, "file", None, LayerGraph)._norms) == 3


def test_copies_sums_and_nesting_share_or_copy_as_layers_do() -> None:
    graph = built()
    graph.forward(X, True)
    twin = copy.deepcopy(graph)
    assert_same_bits(twin.state_dict(), graph.state_dict())
    twin.build(SHAPE, dtype="float64", auto_batch_norm=True).forward(X, True)
    assert not np.array_equal(*(g.state_dict()["first.auto_norm.running_mean"] for g in (twin, graph)))

    node = LayerNode(graph, name="all")
    outer = LayerGraph({node: []}, root=node, term=node)
    assert not any("auto_norm" in key for key in outer.build(SHAPE, dtype="float64").state_dict())
    outer.build(SHAPE, dtype="float64", auto_batch_norm=True)
    assert_same_bits({key.removeprefix("all."): v for key, v in outer.state_dict().items()}, graph.state_dict())
    np.testing.assert_array_equal(outer(X), graph(X))

    tail = LayerNode(RELU(), name="tail")
    joined = graph + LayerGraph({tail: []}, root=tail, term=tail)
    joined.build(SHAPE, dtype="float64", auto_batch_norm=True)
    assert joined.state_dict().keys() - graph.state_dict().keys() == {
        f"head.auto_norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    }
    joined.forward(X, True)  # of shared weights, the statistics are shared as well
    assert_same_bits({key: joined.state_dict()[key] for key in graph.state_dict()}, graph.state_dict())


def test_a_norm_stands_in_the_checkpoint_of_its_node() -> None:
    graph, again = built(), network()
    node_of(again, "body").checkpoint = True
    again.build(SHAPE, dtype="float64", auto_batch_norm=True)
    for each in (graph, again):
        each.set_optimizer(SGD(0.1))
        each.train_step(X, Y, CrossEntropy())
    assert_same_bits(state(again), state(graph))
