"""Saved graphs: what comes back, what is refused when it is saved, and files that are not to be trusted."""

import copy
import functools
import inspect
import json
import pickle
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapeprop import ops
from tapeprop.errors import (
    CycleError,
    DisconnectedError,
    DuplicateNameError,
    GraphError,
    WeightFileError,
)
from tapeprop.graph import GraphStructure, LayerNode, MergeMode, SequentialNode
from tapeprop.interchange import load, safetensors, save
from tapeprop.interchange.describe import DEEPEST, MOST, describe, known_classes, public_layers
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
    Reshape,
    Sequential,
    initializers,
)


def network() -> GraphStructure:
    """Two inputs, two outputs, a layer in two nodes, a sequence, a graph inside, and every setting of a node."""
    shared = Conv2D(3, 3, (3, 1), padding=((1, 1), (0, 0)), bias=False, random_state=2**63)
    a, b = LayerNode(shared, name="left"), LayerNode(shared)
    inner_in, inner_out = LayerNode(BatchNorm2D(6, momentum=0.7)), LayerNode(Activation.LeakyReLU(0.2))
    inner = GraphStructure({inner_in: [inner_out]}, root=inner_in, term=inner_out)
    join = LayerNode(inner, MergeMode.CHCAT, name="join", checkpoint=True)
    head = SequentialNode(
        MaxPool2D(2), Flatten(), ("drop", Dropout(0.25, random_state=5)), Dense(96, 4), merge_mode="sub", name="head"
    )
    tail = LayerNode(Reshape(2, -1))
    head.frozen = True
    removed = LayerNode(Identity())
    graph = GraphStructure(
        {a: [join, removed], b: [join], removed: [], join: [head, head, tail]}, [a, b], [head, tail], seed=3
    )
    graph.remove_node(removed)
    graph.stop_gradient(b, join)
    return graph


def loaded(graph: GraphStructure, path: Path, **options: Any) -> GraphStructure:
    save(graph, path / "g.safetensors", **options)
    return load(path / "g.safetensors", **options)


def chain(*layers: Layer) -> GraphStructure:
    nodes = [LayerNode(layer) for layer in layers]
    graph = {node: [following] for node, following in zip(nodes, [*nodes[1:], nodes[-1]])}
    graph[nodes[-1]] = []
    return GraphStructure(graph, root=nodes[0], term=nodes[-1])


def same_state(a: GraphStructure, b: GraphStructure) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(np.array_equal(ours[key], theirs[key]) for key in ours)


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


class Mine(Layer):
    """A layer of the user's, with a layer inside and arguments of every kind."""

    def __init__(self, inside: Layer, *sizes: int, scale: float = 1.0, table: Any = None):
        self.inside, self.sizes, self.scale, self.table = inside, sizes, scale, table
        self.weight = self.parameter(sizes, "ones")

    def trace(self, x):
        return self.inside(x) * self.weight


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


# ---- what is not saved


class Overriding(GraphStructure):
    def trace(self, x):
        return x


class Forgetful(Layer):
    def __init__(self, size: int, scale: float = 1.0):
        self.size = size
        self.kept_elsewhere = scale


class Grown(Layer):
    def __init__(self, size: int):
        self.size = size


def tied() -> GraphStructure:
    graph = chain(Dense(2, 2), Dense(2, 2))
    first, second = (node.layer for node in graph)
    second.weight = first.weight
    return graph


def grown() -> GraphStructure:
    layer = Grown(2)
    layer.extra = Dense(2, 2)
    return chain(layer)


def holding_itself() -> GraphStructure:
    inside = Mine(Identity(), 1)
    inside.inside = Sequential(inside)
    return chain(inside)


def nested(depth: int) -> GraphStructure:
    return chain(functools.reduce(lambda layer, _: Sequential(layer), range(depth - 1), Identity()))


def doubled(times: int) -> GraphStructure:
    return chain(functools.reduce(lambda layer, _: Sequential(layer, layer), range(times), Identity()))


def cyclic() -> GraphStructure:
    a, b = LayerNode(Identity(), name="a"), LayerNode(Identity(), name="b")
    return GraphStructure({a: [b], b: [a]}, root=a, term=b)


def rootless() -> GraphStructure:
    graph = chain(Identity())
    graph.term = LayerNode(Identity(), name="lost")
    return graph


def twice_named() -> GraphStructure:
    a, b = LayerNode(Dense(2, 2), name="a"), LayerNode(Dense(2, 2), name="a")
    return GraphStructure({a: [b]}, root=a, term=b)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no graph": (lambda: Dense(2, 2), GraphError, "expected a graph, got Dense"),
    "a Lambda": (lambda: chain(Lambda(ops.tanh)), GraphError, r"node 'node0'.*got Lambda\(.*state_dict\(\)"),
    "a class of one's own": (
        lambda: chain(Sequential(("mine", Grown(2)))),
        GraphError,
        r"node 'node0'.mine: .*Grown, a class of your own: give classes=.*state_dict\(\), and rebuild the graph in code",
    ),
    "a graph that computes in its own way": (lambda: Overriding(), GraphError, "Overriding, which has its own trace"),
    "an argument that is not kept": (lambda: chain(Forgetful(2)), GraphError, "'scale' as self.scale"),
    "an argument of no form": (
        lambda: chain(Mine(Identity(), 1, table={1, 2})),
        GraphError,
        "node0': table: expected numbers",
    ),
    "parameters tied by hand": (
        tied,
        GraphError,
        "'node1.weight': expected .* got nothing; .*use one layer in two nodes",
    ),
    "a layer put in later": (grown, GraphError, "'node0.extra': expected .* nothing, got Dense"),
    "a layer that holds itself": (holding_itself, CycleError, "layers that do not hold themselves"),
    "too deep": (lambda: nested(DEEPEST), GraphError, f"nested at most {DEEPEST} deep"),
    "too many": (lambda: doubled(20), GraphError, f"at most {MOST:,} layers"),
    "a cycle": (cyclic, CycleError, "a -> b -> a"),
    "a term that is no node": (rootless, DisconnectedError, "expected term to be in the graph, got lost"),
    "one name twice": (twice_named, DuplicateNameError, "got 'a' for both"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_down_is_refused(tmp_path: Path, case: str) -> None:
    make, kind, message = REFUSED[case]
    classes = {cls.__name__: cls for cls in (Forgetful, Mine)}
    if case == "a layer put in later":
        classes["Grown"] = Grown
    with pytest.raises(kind, match=message):
        save(make(), tmp_path / "g", classes)
    assert list(tmp_path.iterdir()) == []


def test_as_deep_as_it_goes(tmp_path: Path) -> None:
    assert repr(loaded(nested(DEEPEST - 1), tmp_path).nodes[0].layer).count("Sequential") == DEEPEST - 2


@pytest.mark.parametrize("classes", [{"Mine": 3}, {"Mine": int}, {"Dense": Mine}, {"Net": Overriding}])
def test_classes_are_layers_under_names_of_their_own(tmp_path: Path, classes: Any) -> None:
    with pytest.raises(GraphError, match="classes: "):
        save(chain(Identity()), tmp_path / "g", classes)


def test_known_classes_do_not_shadow_public_ones() -> None:
    assert known_classes({"Mine": Mine}) == {**known_classes(None), "Mine": Mine}


# ---- built graphs and optimizers


class Built(GraphStructure):
    """What LayerGraph offers to be saved whole."""

    def build(
        self, input_shape: Any = None, *, dtype: str = "float32", device: str = "cpu", clip_norm: Any = None
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise GraphError(f"dtype {dtype}")
        self.options = {"input_shape": input_shape, "dtype": dtype, "device": device, "clip_norm": clip_norm}
        self._built = True

    def build_options(self) -> Any:
        return self.options if self.built_ else None

    def optimizer_state_dict(self) -> Any:
        return self.memory if self.built_ else None

    def load_optimizer_state_dict(self, state: Any, classes: Any = None) -> None:
        if "lr" not in state:
            raise KeyError("lr")
        self.memory = state

    memory: Any = None


def built(**options: Any) -> Built:
    node = LayerNode(Dense(2, 3))
    graph = Built({node: []}, root=node, term=node)
    graph.build(**options)
    graph.memory = {"lr": 0.1, "steps": 7, "names": ["a", "b"], "node0.weight.m": np.ones((3, 2), np.float32)}
    return graph


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


@pytest.mark.parametrize("key", ["build", "optimizer"])
@pytest.mark.parametrize(
    "value", ['{"x": 1}', "[]", '{"dtype": "float8"}', '{"device": "cuda"}', '{"a": {"layer": 0}}']
)
def test_build_and_optimizer_are_checked(tmp_path: Path, key: str, value: str) -> None:
    save(built(), tmp_path / "g")
    tensors, metadata = safetensors.read(tmp_path / "g")
    del metadata["sha256"]
    safetensors.write(tmp_path / "g", tensors, {**metadata, key: value})
    with pytest.raises(WeightFileError):
        load(tmp_path / "g", graph_class=Built)


# ---- files that are not to be trusted


def rewritten(path: Path, edit: Callable[[dict[str, Any]], object], **metadata: str) -> None:
    """Saves `network()`, its description edited, and no digest."""
    graph = network()
    save(graph, path)
    tensors, told = safetensors.read(path)
    description = json.loads(told["graph"])
    edit(description)
    safetensors.write(path, tensors, {"format": "tapeprop", "graph": json.dumps(description), **metadata})


def put(*keys: Any) -> Callable[[dict[str, Any]], None]:
    """Sets description[keys[0]][keys[1]]... to the last of keys."""

    def edit(description: dict[str, Any]) -> None:
        *way, last, value = keys
        functools.reduce(lambda place, key: place[key], way, description)[last] = value

    return edit


def layer(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class": name, "arguments": arguments}


def bomb(description: dict[str, Any]) -> None:
    first = len(description["layers"]) - 1
    outer = description["layers"].pop()
    description["layers"] += [
        {"class": "Sequential", "children": [["a", first + i - 1], ["b", first + i - 1]]} for i in range(50)
    ]
    description["layers"].append(outer)


def numbered(description: dict[str, Any]) -> None:
    outer = description["layers"].pop()
    lists = {key: [] for key in ("nodes", "numbers", "edges", "root", "term", "stopped")}
    empty = {"class": "LayerGraph", **lists, "next_number": 1, "seed": None, "allow_dead": False}
    description["layers"] += [empty, {**empty, "next_number": MOST}, outer]


TOP = -1  # the graph is the last of the layers
HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another version": (put("version", 2), "version 1, got 2"),
    "a version that is true": (put("version", True), "version 1, got True"),
    "no layers": (put("layers", []), "a LayerGraph as its last entry"),
    "more keys": (put("more", 1), "an object with the keys version, layers, nodes, got"),
    "a last layer that is no graph": (
        lambda d: d["layers"].append(layer("Identity")),
        "a LayerGraph as its last entry",
    ),
    "a layer that is a number": (put("layers", 0, 5), r"layers\[0\]: expected an object"),
    "a module": (put("layers", 0, "class", "os.system"), "a class of tapeprop.layers, got 'os.system'"),
    "a base class": (put("layers", 0, "class", "Layer"), "a class of tapeprop.layers, got 'Layer'"),
    "a Lambda": (put("layers", 0, layer("Lambda", function="print")), "a class of tapeprop.layers, got 'Lambda'"),
    "a function of the layers": (put("layers", 0, layer("tracing")), "a class of tapeprop.layers"),
    "a class that is a list": (put("layers", 0, "class", ["Dense"]), "a class of tapeprop.layers"),
    "arguments that are a list": (put("layers", 0, "arguments", []), "an object of arguments"),
    "huge": (
        put("layers", 0, "arguments", "in_channels", 10**9),
        r"'left.weight': expected F64 .* of shape \(3, 1000000000, 3, 1\)",
    ),
    "huge in two ways": (
        put("layers", 0, layer("Conv2D", in_channels=10**9, out_channels=10**9, filter_size=10**9, bias=False)),
        "'left.weight': expected F64",
    ),
    "beyond all measure": (put("layers", 0, "arguments", "in_channels", 10**40), "an int of at most 128 bits"),
    "negative": (
        put("layers", 0, "arguments", "in_channels", -3),
        r"\(Conv2D\): expected arguments that it takes, got",
    ),
    "a string for a size": (put("layers", 0, "arguments", "in_channels", "3"), "arguments that it takes"),
    "an unknown argument": (put("layers", 0, "arguments", "bananas", 3), "arguments that it takes, got TypeError"),
    "no arguments": (put("layers", 0, "arguments", {}), "arguments that it takes, got TypeError"),
    "a dunder for an argument": (
        put("layers", 0, "arguments", "__class__", 3),
        "arguments that it takes, got TypeError",
    ),
    "an initializer that is code": (put("layers", 0, "arguments", "initializer", "exec"), "arguments that it takes"),
    "tuples too deep": (
        put("layers", 0, "arguments", "padding", functools.reduce(lambda x, _: [x], range(50), 0)),
        "nested at most 8 deep",
    ),
    "an unknown form of argument": (
        put("layers", 0, "arguments", "stride", {"eval": "1"}),
        '"float", "layer" or "dict"',
    ),
    "a layer to come": (put("layers", 0, "arguments", "stride", {"layer": 0}), "expected nothing, got 0"),
    "children that are numbers": (
        put("layers", 0, {"class": "Sequential", "children": [0]}),
        "pairs of a name and a place",
    ),
    "a child that holds itself": (
        put("layers", 1, {"class": "Sequential", "children": [["a", 1]]}),
        "from 0 to 0, got 1",
    ),
    "a child with a dot": (put("layers", 1, {"class": "Sequential", "children": [["a.b", 0]]}), "a name without dots"),
    "doubling": (bomb, "at most 500,000 layers"),
    "numbers without end": (put("layers", TOP, "next_number", 10**12), "next_number: expected an int from 0 to 500000"),
    "many numbers in many graphs": (numbered, "at most 500,000 layers and numbers"),
    "a number twice": (put("layers", TOP, "numbers", [0, 0, 1, 3, 4]), "5 numbers that differ"),
    "a number too large": (put("layers", TOP, "numbers", [0, 1, 2, 3, 99]), "numbers: expected an int from 0"),
    "too few numbers": (put("layers", TOP, "numbers", [0, 1, 3, 4]), "5 numbers that differ"),
    "a node twice": (put("layers", TOP, "nodes", 0, 1), "nodes that differ"),
    "a node out of range": (put("layers", TOP, "nodes", 0, 100), "nodes: expected an int"),
    "a graph in itself": (put("nodes", 0, "layer", 11), "layer: expected an int"),
    "a negative place": (put("layers", TOP, "nodes", 0, -1), "nodes: expected an int"),
    "edges for fewer nodes": (put("layers", TOP, "edges", [[]]), "edges: expected 5 lists, got 1"),
    "an edge to nowhere": (put("layers", TOP, "edges", 0, [77]), "edges: expected an int from 0 to 4, got 77"),
    "a cycle": (put("layers", TOP, "edges", 4, [0]), "edges: expected no cycle"),
    "a loop": (put("layers", TOP, "edges", 4, [4]), "edges: expected no cycle"),
    "a root that is a string": (put("layers", TOP, "root", "left"), "root: expected an int"),
    "a seed that is a string": (put("layers", TOP, "seed", "1"), "seed: expected null or an int"),
    "a seed below zero": (put("layers", TOP, "seed", -1), "seed: expected null or an int"),
    "a stopped edge that is none": (put("layers", TOP, "stopped", [[0, 1]]), "pairs of nodes with an edge"),
    "a stopped edge that is a number": (put("layers", TOP, "stopped", [0]), "pairs of nodes with an edge"),
    "allow_dead that is a number": (put("layers", TOP, "allow_dead", 1), "true or false, got 1"),
    "a class of nodes": (put("nodes", 0, "class", "GraphStructure"), "a class out of LayerNode, SequentialNode"),
    "a name that is a list": (put("nodes", 0, "name", []), "a name or null"),
    "an empty name": (put("nodes", 0, "name", ""), "a name or null"),
    "one name twice": (put("nodes", 1, "name", "left"), "names that differ within a graph"),
    "another name": (put("nodes", 0, "name", "right"), "'left.weight': expected a parameter of the graph"),
    "an unknown merge": (put("nodes", 0, "merge_mode", "xor"), "a merge_mode out of sum, "),
    "a merge that is a list": (put("nodes", 0, "merge_mode", []), "a merge_mode out of sum, "),
    "a checkpoint that is null": (put("nodes", 0, "checkpoint", None), "true or false, got None"),
    "frozen that is a string": (put("nodes", 0, "frozen", "no"), "true or false, got 'no'"),
    "a layer without a tensor": (
        put("layers", 0, layer("Conv2D", in_channels=3, out_channels=3, filter_size=[3, 1])),
        "'left.bias': .*got nothing",
    ),
    "a layer of no parameters": (
        put("layers", 0, layer("Identity")),
        "'left.weight': expected a parameter of the graph",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_description_is_refused_at_no_cost(tmp_path: Path, case: str) -> None:
    edit, message = HOSTILE[case]
    path = tmp_path / "g"
    rewritten(path, edit)
    tracemalloc.start()
    try:
        with pytest.raises(WeightFileError, match=message) as caught:
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "got tensors without a structure"),
        ({"format": "pt"}, "got tensors without a structure"),
        ({"format": "tapeprop"}, "got tensors without a structure"),
        ({"format": "tapeprop", "graph": ""}, "metadata 'graph': expected JSON without faults"),
        ({"format": "tapeprop", "graph": "[" * 100_000}, "nested too deep"),
        ({"format": "tapeprop", "graph": '{"version":1,"version":1}'}, "the key 'version' twice"),
        ({"format": "tapeprop", "graph": "[]"}, "expected an object"),
        ({"format": "tapeprop", "graph": "{}"}, "an object with the keys"),
        ({"format": "tapeprop", "graph": "{}", "trainable": "3"}, "metadata 'trainable': expected an object"),
    ],
)
def test_metadata_that_describe_no_graph(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    safetensors.write(tmp_path / "g", {"x": np.ones(3)}, metadata)
    with pytest.raises(WeightFileError, match=message):
        load(tmp_path / "g")


@pytest.mark.parametrize(
    "changes", ['{"left.weight": 1}', '{"right.weight": true}', '{"head.drop.counter": true}', '{"left.weight": null}']
)
def test_trainable_is_checked(tmp_path: Path, changes: str) -> None:
    rewritten(tmp_path / "g", lambda d: None, trainable=changes)
    with pytest.raises(WeightFileError, match="trainable: expected weights and true or false"):
        load(tmp_path / "g")


def test_a_counter_is_an_integer(tmp_path: Path) -> None:
    save(network(), tmp_path / "g")
    tensors, metadata = safetensors.read(tmp_path / "g")
    tensors["head.drop.counter"] = tensors["head.drop.counter"].astype(np.float64)
    safetensors.write(tmp_path / "g", tensors, metadata)
    with pytest.raises(WeightFileError, match=r"'head.drop.counter': expected I64 of shape \(2,\), got F64"):
        load(tmp_path / "g")


def test_halved_weights_are_taken_where_no_digest_says_otherwise(tmp_path: Path) -> None:
    graph = chain(Dense(2, 2, initializer="ones"))
    save(graph, tmp_path / "g")
    tensors, metadata = safetensors.read(tmp_path / "g")
    halved = {key: array.astype(np.float16) for key, array in tensors.items()}
    safetensors.write(tmp_path / "g", halved, metadata)
    with pytest.raises(WeightFileError, match="expected contents with sha256"):
        load(tmp_path / "g")
    del metadata["sha256"]
    safetensors.write(tmp_path / "g", halved, metadata)
    assert same_state(load(tmp_path / "g"), graph)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    graph, rng, path = network(), random.Random(5), tmp_path / "g"
    save(graph, path)
    valid, description = path.read_bytes(), describe(graph)
    for _ in range(300):
        data = bytearray(valid)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            again = load(path)
        except WeightFileError:
            continue
        assert describe(again) == description
        assert same_state(again, graph)


def test_mutated_descriptions_are_refused_or_load(tmp_path: Path) -> None:
    """Whatever value stands anywhere in the description, the answer is a graph or a WeightFileError, and little memory."""
    path, rng = tmp_path / "g", random.Random(3)
    save(network(), path)
    valid = path.read_bytes()
    length = int.from_bytes(valid[:8], "little")
    header, data = json.loads(valid[8 : 8 + length]), valid[8 + length :]
    description = json.loads(header["__metadata__"]["graph"])
    places: list[tuple[Any, Any]] = []

    def visit(value: Any, way: tuple[Any, ...]) -> None:
        if way:
            places.append((way[:-1], way[-1]))
        for key, item in (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        ):
            visit(item, (*way, key))

    visit(description, ())
    values = [
        0,
        1,
        2,
        5,
        -1,
        10**9,
        2**63,
        2**127,
        1.5,
        1e308,
        None,
        True,
        "",
        "Dense",
        "max",
        "same",
        [],
        [0],
        [[0]],
        {},
    ]
    values += [{"layer": 0}, {"float": "nan"}, {"dict": {"a": 1}}, [10**9, 10**9], [["a", 0]], "sum"]
    outcomes = {"refused": 0, "loaded": 0}
    tracemalloc.start()
    for _ in range(700):
        edited = copy.deepcopy(description)
        for _ in range(rng.choice([1, 1, 2])):
            way, key = rng.choice(places)
            try:
                place = functools.reduce(lambda found, step: found[step], way, edited)
                place[key] = copy.deepcopy(rng.choice(values))
            except (KeyError, IndexError, TypeError):  # the first edit took the second's place away
                continue
        header["__metadata__"] = {"format": "tapeprop", "graph": json.dumps(edited)}
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        tracemalloc.reset_peak()
        try:
            load(path)
            outcomes["loaded"] += 1
        except WeightFileError:
            outcomes["refused"] += 1
        assert tracemalloc.get_traced_memory()[1] < 10_000_000, edited
    tracemalloc.stop()
    assert min(outcomes.values()) > 20, outcomes
