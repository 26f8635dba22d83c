"""Saved graphs: what comes back. See `test_saved_refusals` for what is not saved, `test_saved_untrusted` for what is not read."""

import copy
import functools
import inspect
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interchange.saved_graphs import Built, Mine, built, chain, loaded, network, same_state

from tapeprop.errors import GraphError, WeightFileError
from tapeprop.graph import GraphStructure, LayerNode, MergeMode, SequentialNode
from tapeprop.interchange import load, safetensors, save
from tapeprop.interchange.describe import describe, public_layers
from tapeprop.layers import Activation, Dense, Dropout, Identity, Layer, initializers

# ---- what comes back


def test_structure_and_weights_come_back(tmp_path: Path) -> None:
    graph = network()
    again = loaded(graph, tmp_path)
    assert describe(again) == describe(graph)
    assert same_state(again, graph)
    assert list(again.labels.values()) == ["left", "node1", "join", "head", "node5"]
    left, right, join, head, tail = again.nodes
    assert left.layer is right.layer
    assert repr(left.layer) == repr(graph.nodes[0].layer)
    assert [str(node) for node in again.nodes] == ["left", "LayerNode", "join", "head", "LayerNode"]
    assert type(head) is SequentialNode
    assert (join.merge_mode, join.checkpoint, head.frozen) == (MergeMode.CHCAT, True, True)
    assert again[join] == [head, head, tail]
    assert (again.root, again.term, again.seed) == ([left, right], [head, tail], 3)
    assert again._stopped == {(right, join)}
    assert again.out_shape([(2, 3, 8, 8), (2, 3, 8, 8)]) == graph.out_shape([(2, 3, 8, 8), (2, 3, 8, 8)])
    assert all(parameter.storage is None for _, parameter in again.named_parameters())


def test_a_loaded_graph_is_saved_as_the_same_bytes(tmp_path: Path) -> None:
    save(network(), tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numbers_of_removed_nodes_are_not_given_again(tmp_path: Path) -> None:
    again, new = loaded(network(), tmp_path), LayerNode(Identity())
    again.add_node(new)
    assert list(again.labels.values()) == ["left", "node1", "join", "head", "node5", "node6"]


def test_a_loaded_graph_is_copied_like_any(tmp_path: Path) -> None:
    again = loaded(network(), tmp_path)
    for other in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        assert same_state(other, again)
        assert other.labels.keys().isdisjoint(again.labels)
        assert list(other.labels.values()) == list(again.labels.values())


def test_loading_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(network(), tmp_path / "g")

    def drawn(*arguments: Any) -> np.ndarray:
        raise AssertionError("a weight was drawn")

    monkeypatch.setattr(initializers, "draw", drawn)
    assert len(load(tmp_path / "g").state_dict()) == 8


def test_any_safetensors_reader_finds_the_weights(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    graph = network()
    save(graph, tmp_path / "g")
    found = numpy.load_file(tmp_path / "g")
    assert {key: value.tolist() for key, value in found.items()} == {
        k: v.tolist() for k, v in graph.state_dict().items()
    }


def test_a_graph_without_nodes(tmp_path: Path) -> None:
    again = loaded(GraphStructure(), tmp_path)
    assert (len(again), again.root, again.term) == (0, None, None)


def test_a_long_chain(tmp_path: Path) -> None:
    graph = chain(*(Identity() for _ in range(5000)))
    again = loaded(graph, tmp_path)
    assert len(again.check().order) == 5000


def test_a_node_and_a_layer_in_two_graphs_stay_one(tmp_path: Path) -> None:
    dense = Dense(4, 4)
    node = LayerNode(dense)
    inner = GraphStructure({node: []}, root=node, term=node)
    outer = LayerNode(inner, name="outer")
    again = loaded(GraphStructure({node: [outer]}, root=node, term=outer), tmp_path)
    first, second = again.nodes
    assert isinstance(second.layer, GraphStructure)
    assert second.layer.nodes == [first]
    assert list(again.state_dict()) == ["node0.weight", "node0.bias"]


def test_hyperparameters_are_saved_as_they_are_now(tmp_path: Path) -> None:
    graph = chain(Dense(2, 2), Dropout(0.5))
    graph.nodes[1].layer.dropout_rate = 0.125
    graph.nodes[0].layer.weight.trainable = False
    again = loaded(graph, tmp_path)
    assert again.nodes[1].layer.dropout_rate == 0.125
    assert [parameter.trainable for _, parameter in again.named_parameters()] == [False, True]


@pytest.mark.parametrize("initializer", ["orthogonal", initializers.glorot])
def test_a_named_initializer_comes_back_by_its_name(tmp_path: Path, initializer: Any) -> None:
    again = loaded(chain(Dense(3, 3, initializer=initializer)), tmp_path)
    assert again.nodes[0].layer.initializer == getattr(initializer, "__name__", initializer)


def test_an_initializer_of_the_user_s_is_left_out_but_not_what_it_drew(tmp_path: Path) -> None:
    graph = chain(Dense(3, 3, initializer=functools.partial(initializers.normal, std=0.01)))
    again = loaded(graph, tmp_path)
    assert same_state(again, graph)
    assert again.nodes[0].layer.initializer == "he"


@pytest.mark.parametrize("value", [np.float32(0.1), np.int64(1), np.float64(0.25), float(1 / 3)])
def test_numbers_come_back_exactly(tmp_path: Path, value: Any) -> None:
    again = loaded(chain(Activation.ELU(value)), tmp_path)
    assert again.nodes[0].layer.alpha == float(value)


def test_a_class_of_the_user_s(tmp_path: Path) -> None:
    dense = Dense(2, 2)
    graph = chain(dense, Mine(dense, 2, scale=float("inf"), table={"a": (1, None, "x", (2.5, True))}))
    again = loaded(graph, tmp_path, classes={"Mine": Mine})
    mine = again.nodes[1].layer
    assert type(mine) is Mine
    assert mine.inside is again.nodes[0].layer
    assert (mine.sizes, mine.scale, mine.table) == ((2,), float("inf"), {"a": (1, None, "x", (2.5, True))})
    assert same_state(again, graph)
    with pytest.raises(WeightFileError, match=r"expected a class of tapeprop.layers, got 'Mine': .*classes="):
        load(tmp_path / "g.safetensors")


def test_a_graph_that_only_builds_its_nodes_is_saved_as_a_graph(tmp_path: Path) -> None:
    class Net(GraphStructure):
        def __init__(self, width: int):
            self.width = width
            super().__init__()

        def init_nodes(self) -> None:
            a, b = LayerNode(Dense(2, self.width)), LayerNode(Dense(self.width, 2))
            self.graph, self.root, self.term = {a: [b]}, a, b

    graph = Net(5)
    again = loaded(graph, tmp_path)
    assert type(again) is GraphStructure
    assert same_state(again, graph)


# ---- every layer that there is

#: What a constructor is given for an argument without a default.
GIVEN = {
    "in_channels": 4,
    "out_channels": 4,
    "in_features": 4,
    "out_features": 4,
    "filter_size": 3,
    "groups": 2,
    "normalized_shape": (4,),
    "out_size": 2,
    "shape": (4,),
    "size": 3,
    "layers": (),
    "num_embeddings": 4,
    "features": 4,
    "p": 2,
    "axes": (0, 1),
    "starts": (None, 1),
    "padding": ((1, 1), (0, 2)),
}


def example(cls: type[Layer], **instead: Any) -> Layer:
    arguments: list[Any] = []
    named: dict[str, Any] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.default is not inspect.Parameter.empty and name not in instead:
            continue
        assert name in GIVEN, f"give an example of {cls.__qualname__}'s argument {name!r} in GIVEN"
        value = instead.get(name, GIVEN[name])
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            arguments.extend(value)
        else:
            named[name] = value
    return cls(*arguments, **named)


def test_public_layers() -> None:
    found = public_layers()
    assert {"Conv2D", "Dense", "Sequential", "Activation.ReLU", "BatchNorm2D"} <= found.keys()
    assert not {"Layer", "Lambda", "Activation", "tracing"} & found.keys()
    assert all(cls.__qualname__ == name for name, cls in found.items())


@pytest.mark.parametrize("name", public_layers())
def test_every_layer_comes_back(tmp_path: Path, name: str) -> None:
    graph = chain(example(public_layers()[name]))
    again = loaded(graph, tmp_path)
    assert repr(again.nodes[0].layer) == repr(graph.nodes[0].layer)
    assert same_state(again, graph)


@pytest.mark.parametrize("name", public_layers())
def test_a_layer_of_any_size_costs_nothing_until_it_is_drawn(name: str) -> None:
    """What load() relies on: sizes in a file are compared with its tensors after the layers are made."""
    cls = public_layers()[name]
    sizes = [key for key in inspect.signature(cls).parameters if isinstance(GIVEN.get(key), int)]
    tracemalloc.start()
    try:
        example(cls, **dict.fromkeys(sizes, 10**9))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# ---- built graphs and optimizers


def test_a_built_graph_is_built_again(tmp_path: Path) -> None:
    save(built(input_shape=[(None, 2)], dtype="float64", device="elsewhere", clip_norm=0.5), tmp_path / "g")
    again = load(tmp_path / "g", graph_class=Built)
    assert again.options == {"input_shape": ((None, 2),), "dtype": "float64", "device": "cpu", "clip_norm": 0.5}
    given = load(tmp_path / "g", graph_class=Built, device="there", clip_norm=None)
    assert given.options == {"input_shape": ((None, 2),), "dtype": "float64", "device": "there", "clip_norm": None}
    assert not load(tmp_path / "g", graph_class=Built, build=False).built_


def test_an_unbuilt_graph_is_not_built_unless_asked(tmp_path: Path) -> None:
    save(chain(Dense(2, 2)), tmp_path / "g")
    assert not load(tmp_path / "g", graph_class=Built).built_
    assert load(tmp_path / "g", graph_class=Built, dtype="float64").options["dtype"] == "float64"
    with pytest.raises(GraphError, match=r"GraphStructure has no build\(\)"):
        load(tmp_path / "g", dtype="float64")


def test_options_that_build_does_not_take(tmp_path: Path) -> None:
    save(built(), tmp_path / "g")
    with pytest.raises(TypeError, match=r"expected options of build.* got bananas"):
        load(tmp_path / "g", graph_class=Built, bananas=3)


def test_optimizer_state_comes_back(tmp_path: Path) -> None:
    graph = built()
    save(graph, tmp_path / "g")
    again = load(tmp_path / "g", graph_class=Built)
    assert again.memory.pop("node0.weight.m").tobytes() == graph.memory["node0.weight.m"].tobytes()
    assert again.memory == {"lr": 0.1, "steps": 7, "names": ("a", "b")}
    assert load(tmp_path / "g", graph_class=Built, build=False).memory is None
    assert "optimizer/node0.weight.m" in safetensors.read(tmp_path / "g")[0]


def test_a_state_key_that_looks_like_the_optimizer_s(tmp_path: Path) -> None:
    graph = built()
    graph.nodes[0].name = "optimizer/node0.weight"
    assert list(loaded(graph, tmp_path).state_dict()) == [
        "optimizer/node0.weight.weight",
        "optimizer/node0.weight.bias",
    ]
    graph.memory["node0.weight.bias"] = np.ones(3)
    with pytest.raises(GraphError, match=r"got 'optimizer/node0.weight.bias': rename the node"):
        save(graph, tmp_path / "g")
