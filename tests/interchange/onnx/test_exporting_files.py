"""ONNX models as they are written: headers, state, files and their rights, what is read back; and what is refused."""

import os
import stat
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_export import (
    SHAPES,
    Doubled,
    checked,
    function_oracle,
    graph_of,
    input_for,
    network,
    operators,
    oracle,
    referee,
)

import tapeprop as tp
from tapeprop import layers, ops
from tapeprop.errors import GraphError, ShapeError
from tapeprop.interchange.onnx import exporting, load_function, save, to_model
from tapeprop.layers import Activation, Conv2D, Dense, Dropout, Flatten, Lambda, Layer

# ---- the model, its state, and files


def test_the_header():
    model = to_model(graph_of(Dense(3, 2)), input_shape=(None, 3))
    assert (model.producer_name, model.producer_version) == ("tapeprop", tp.__version__)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 23)]
    assert model.ir_version == 11
    assert (model.doc_string, len(model.metadata_props)) == ("", 0)
    old = to_model(graph_of(Dense(3, 2)), input_shape=(None, 3), opset=17)
    assert (old.opset_import[0].version, old.ir_version) == (17, 8)


def test_training_leaves_nothing_behind_and_is_not_disturbed():
    node = tp.SequentialNode(Dense(3, 4), layers.BatchNorm1D(4), Dropout(0.5, random_state=3), name="a")
    graph = tp.LayerGraph({node: []}, root=node, term=node, seed=0).build((None, 3))
    random = np.random.default_rng(0)
    graph.load_state_dict({key: random.uniform(1, 2, a.shape).astype(a.dtype) for key, a in graph.state_dict().items()})
    graph.set_random_counter([7, 11])
    state, counter = graph.state_dict(), graph.random_counter.copy()
    model = checked(to_model(graph))
    assert operators(model) == ["Gemm", "BatchNormalization"]
    for key, value in graph.state_dict().items():
        np.testing.assert_array_equal(value, state[key])
    np.testing.assert_array_equal(graph.random_counter, counter)
    assert graph.built_
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert set(weights) == {key for key in state if "counter" not in key}
    for key, value in weights.items():
        np.testing.assert_array_equal(value, state[key])


def test_a_norm_that_build_adds_is_exported():
    first, act = tp.LayerNode(Conv2D(3, 4, 3), name="first"), tp.LayerNode(Activation.ReLU(), name="act")
    graph = tp.LayerGraph({first: [act], act: []}, root=first, term=act, seed=0)
    graph.build((None, 3, 5, 5), auto_batch_norm=True)
    model = checked(to_model(graph))
    assert operators(model) == ["Conv", "BatchNormalization", "Relu"]
    assert "first.auto_norm.running_mean" in {tensor.name for tensor in model.graph.initializer}


def test_the_same_graph_gives_the_same_bytes(tmp_path):
    for name in ("a.onnx", "b.onnx"):
        save(network(), tmp_path / name, input_shape=SHAPES)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_file_is_read_again(tmp_path):
    graph = graph_of(layers.Sequential(Dense(3, 4), Activation.Tanh(), Flatten()))
    save(graph, tmp_path / "net.onnx", input_shape=(None, 3))
    assert os.listdir(tmp_path) == ["net.onnx"]
    checked(onnx.load(tmp_path / "net.onnx"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")
    with pytest.raises(GraphError):
        save(graph_of(Doubled()), path, input_shape=(None, 3))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save(graph_of(Dense(3, 2)), path, input_shape=(None, 3))
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_large_weights_lie_beside_the_model(tmp_path, monkeypatch):
    graph = graph_of(layers.Sequential(Dense(3, 40), Dense(40, 2)))
    whole = to_model(graph, input_shape=(None, 3))
    monkeypatch.setattr(exporting, "MOST_INSIDE", 100)
    with pytest.raises(
        GraphError, match=r"expected weights of less than 100 bytes, got .*: write a file with save\(\)"
    ):
        to_model(graph, input_shape=(None, 3))
    path = tmp_path / "net.onnx"
    save(graph, path, input_shape=(None, 3))
    (beside,) = set(os.listdir(tmp_path)) - {"net.onnx"}
    assert beside.startswith("net.onnx.")
    assert beside.endswith(".data")
    onnx.checker.check_model(os.fspath(path), full_check=True)
    again = onnx.load(path)
    for ours, theirs in zip(whole.graph.initializer, again.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(ours), onnx.numpy_helper.to_array(theirs))
    for parameter in (p for _, p in graph.named_parameters()):
        parameter.assign(parameter.value + 1)
    save(graph, path, input_shape=(None, 3))
    assert len(os.listdir(tmp_path)) == 3  # the weights of the model before stay for whoever has it open


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX'")
def test_no_rights_beyond_the_umask(tmp_path):
    save(graph_of(Dense(3, 2)), tmp_path / "net.onnx", input_shape=(None, 3))
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(Path(tmp_path / "net.onnx").stat().st_mode) == 0o666 & ~mask


def test_a_model_is_read_back_as_a_function():
    graph = graph_of(layers.Sequential(Activation.Tanh(), layers.Transpose((0, 2, 1)), Activation.Softplus()))
    model = to_model(graph, input_shape=(None, 3, 2))
    x = input_for("", (None, 3, 2), 2)
    np.testing.assert_allclose(load_function(model)(x), oracle(graph, [x])[0], rtol=1e-6)


def test_a_cast_to_whole_numbers_is_read_back():
    """Towards zero, as ONNX has it: what `whole_numbers` was written as."""
    import onnx.parser

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (int64[N] y) { y = Cast<to = 7>(x) }'
    )
    x = np.array([-2.7, -0.5, 0.0, 0.9, 3.0, 1e9], "f")
    assert function_oracle(load_function(model), [x])[0].tolist() == [-2, 0, 0, 0, 3, 10**9]


def test_a_layer_of_the_users_in_ops():
    class Scale(Layer):
        def __init__(self):
            self.factor = tp.variable(np.full(3, 2.0), "factor")

        def trace(self, x):
            return x * self.factor + ops.sum(x, 1, keepdims=True)

    model = checked(to_model(graph_of(Scale()), input_shape=(None, 3)))
    x = np.ones((2, 3), "f")
    np.testing.assert_allclose(referee(model, [x])[0], oracle(graph_of(Scale()), [x])[0])


# ---- what is refused


def test_python_is_refused():
    with pytest.raises(
        GraphError, match=r"node 'layer' \(op python\): expected an op that ONNX has, got python: it is Python"
    ):
        to_model(graph_of(Doubled()), input_shape=(None, 3))


def test_an_op_of_the_users_is_refused():
    @ops.kernel
    class Tripled:
        flat = True

        def kernel(x, y):
            for i in range(x.size):
                y[i] = 3 * x[i]

    with pytest.raises(GraphError, match=r"node 'layer' \(op Tripled\): .*: it is an op of your own"):
        to_model(graph_of(Lambda(Tripled)), input_shape=(None, 3))


def test_a_class_of_the_users_is_refused_whatever_its_name():
    class Mine(type(ops.registry["copy"])):
        name = "layer_norm"  # as a pattern of ours is called

    op = Mine()
    graph = graph_of(Lambda(lambda x: ops.record(op, [x])[0]))
    with pytest.raises(GraphError, match=r"node 'layer' \(op layer_norm\): .*: it is an op of your own"):
        to_model(graph, input_shape=(None, 3))


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(GraphError, match=r'export: needs the package onnx, .* pip install "tapeprop\[onnx\]"'):
        to_model(graph_of(Dense(3, 2)), input_shape=(None, 3))


def test_what_is_no_graph():
    with pytest.raises(GraphError, match=r"expected a LayerGraph or a tapeprop\.Function, got Dense"):
        to_model(Dense(3, 2), input_shape=(None, 3))


@pytest.mark.parametrize("opset", [16, 99, 18.0, True, "18"])
def test_an_opset_that_is_none(opset):
    with pytest.raises(GraphError, match=f"expected opset to be an int from 17 to .*, got {opset!r}"):
        to_model(graph_of(Dense(3, 2)), input_shape=(None, 3), opset=opset)


def test_errors_of_layers_name_their_node():
    with pytest.raises(ShapeError, match="'layer'"):
        to_model(graph_of(Dense(3, 2)), input_shape=(None, 4))
