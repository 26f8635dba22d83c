"""Files of graphs that are not to be trusted: whatever stands in one, a graph or a WeightFileError comes of it, and little memory."""

import copy
import functools
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interchange.saved_graphs import Built, built, chain, network, same_state

from tapeprop.errors import WeightFileError
from tapeprop.interchange import load, safetensors, save
from tapeprop.interchange.describe import MOST, describe
from tapeprop.layers import Dense


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
