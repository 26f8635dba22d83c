"""Weights under other names: files as PyTorch writes and reads them."""

import re

import numpy as np
import pytest

import tapeprop as tp
from tapeprop.errors import GraphError, ShapeError, WeightFileError
from tapeprop.interchange import load_weights, safetensors, save_weights
from tapeprop.layers import Activation, BatchNorm1D, Dense

#: The graph's name: the file's.
NAMES = {"first": "features", "first.1": "norm", "last": "classifier.0"}
KEYS = ["features.0.weight", "features.0.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
KEYS += ["classifier.0.weight", "classifier.0.bias"]


def network(seed=0):
    first = tp.SequentialNode(Dense(4, 3), BatchNorm1D(3), Activation.ReLU(), name="first")
    last = tp.LayerNode(Dense(3, 2), name="last")
    return tp.LayerGraph({first: [last], last: []}, root=first, term=last, seed=seed).build((None, 4))


def numbers(graph):
    return {key: value.copy() for key, value in graph.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def test_there_and_back_under_other_names(path):
    graph, other = network(0), network(1)
    save_weights(graph, path, NAMES)
    assert sorted(safetensors.read(path)[0]) == sorted(KEYS)
    load_weights(other, path, NAMES)
    assert same(numbers(other), numbers(graph))
    X = np.random.default_rng(0).standard_normal((5, 4))
    assert np.array_equal(other(X), graph(X))


def test_without_names_keys_are_those_of_the_state_dict(path):
    graph, other = network(0), network(1)
    save_weights(graph, path)
    assert safetensors.read(path)[0].keys() == graph.state_dict().keys()
    load_weights(other, path)
    assert same(numbers(other), numbers(graph))


def test_a_prefix_for_all_and_one_that_is_dropped(path):
    graph = network()
    save_weights(graph, path, {"": "model", "last": ""})
    assert {"model.first.0.weight", "weight", "bias"} <= safetensors.read(path)[0].keys()


def test_what_pytorch_counts_is_passed_over_and_half_floats_are_widened(path):
    graph = network()
    arrays = {key: value.astype(np.float16) for key, value in numbers(graph).items()}
    arrays["first.1.num_batches_tracked"] = np.array(7)
    safetensors.write(path, arrays)
    other = network(1)
    load_weights(other, path)
    assert same(numbers(other), {k: v.astype(np.float16).astype(np.float32) for k, v in numbers(graph).items()})


def test_missing_and_unknown_arrays(path):
    arrays = numbers(network(0))
    arrays["extra.weight"] = arrays.pop("last.bias")
    safetensors.write(path, arrays)
    graph = network(1)
    before = numbers(graph)
    with pytest.raises(
        WeightFileError, match=r"expected the 8 arrays .* no 'last.bias'; unknown 'extra.weight': give names="
    ):
        load_weights(graph, path)
    assert same(numbers(graph), before)
    load_weights(graph, path, strict=False)
    after = numbers(graph)
    assert np.array_equal(after["last.bias"], before["last.bias"])
    assert np.array_equal(after["last.weight"], arrays["last.weight"])


def test_an_array_of_another_shape_changes_nothing(path):
    arrays = numbers(network(0))
    arrays["last.weight"] = arrays["last.weight"].T.copy()
    safetensors.write(path, arrays)
    graph = network(1)
    before = numbers(graph)
    with pytest.raises(ShapeError, match=re.escape("'last.weight'")):
        load_weights(graph, path)
    assert same(numbers(graph), before)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"frist": "conv"}, "expected names of this graph's arrays .* got 'frist'"),
        ({"first.0": "a", "last": "a"}, "got 'a.weight' for 'first.0.weight' and 'last.weight'"),
        ({"first": 3}, "expected names of text, got 'first': 3"),
    ],
)
def test_names_that_make_no_sense(names, message, path):
    with pytest.raises(GraphError, match=message):
        save_weights(network(), path, names)
    assert not path.exists()
    save_weights(network(), path)
    with pytest.raises(GraphError, match=message):
        load_weights(network(), path, names)
