"""Graphs and functions as ONNX models: every layer, merges, names, open sizes, files."""

import inspect
import os
import stat
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_export import (
    LAYERS,
    OPEN,
    REFUSED,
    cases,
    checked,
    function_oracle,
    graph_of,
    input_for,
    oracle,
    referee,
    runtime,
    sized,
    with_weights,
)

import tapeprop as tp
from tapeprop import layers, ops
from tapeprop.errors import DuplicateNameError, GraphError, ShapeError
from tapeprop.interchange.onnx import exporting, load_function, save, to_model
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
    PythonLayer,
)

#: Cases that ONNX' own evaluator cannot run or runs in float32; onnxruntime judges the first.
NO_GROUPS = {("ConvTranspose2D", 1)}
FLOAT32_ERF = {("Activation", i) for i, (make, _) in enumerate(LAYERS["Activation"]) if make is Activation.GELU}


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type != "Constant"]


# ---- every layer


def test_every_layer_has_a_case():
    names = {name for name in layers.__all__ if inspect.isclass(getattr(layers, name))}
    assert names - set(LAYERS) == set(REFUSED)


@pytest.mark.parametrize(("name", "case"), cases())
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_layer(name, case, dtype, tolerance):
    make, shape = LAYERS[name][case]
    graph = graph_of(make())
    if dtype == "float64":
        graph.build(shape, dtype=dtype)
    model = checked(to_model(graph, input_shape=shape))
    if (name, case) in FLOAT32_ERF:
        tolerance = 1e-6
    for batch in (1, 3):
        x = input_for(name, shape, batch, dtype)
        (wanted,) = oracle(graph, [x], dtype)
        if (name, case) not in NO_GROUPS:
            (found,) = referee(model, [x])
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "case"), cases())
def test_layer_in_onnxruntime(name, case):
    pytest.importorskip("onnxruntime")
    make, shape = LAYERS[name][case]
    graph = graph_of(make())
    model = to_model(graph, input_shape=shape)
    x = input_for(name, shape, 2)
    np.testing.assert_allclose(runtime(model, [x])[0], oracle(graph, [x])[0], rtol=1e-5, atol=1e-5)


#: {case: the operators that other programs know it by}
KNOWN_BY = {
    ("BatchNorm1D", 1): ["BatchNormalization"],
    ("BatchNorm2D", 0): ["BatchNormalization"],
    ("Conv1D", 0): ["Conv"],
    ("Conv3D", 0): ["Conv"],
    ("Dense", 0): ["Gemm"],
    ("MaxPool1D", 0): ["MaxPool"],
    ("MaxPool3D", 0): ["MaxPool"],
    ("AvgPool3D", 1): ["AveragePool"],
    ("LayerNorm", 0): ["LayerNormalization"],
    ("LayerNorm", 2): ["LayerNormalization"],
    ("RMSNorm", 0): ["RMSNormalization"],
    ("GroupNorm", 0): ["GroupNormalization"],
    ("GroupNorm", 1): ["GroupNormalization"],
    ("InstanceNorm", 0): ["InstanceNormalization"],
    ("InstanceNorm", 1): ["InstanceNormalization"],
    ("GlobalAvgPool2D", 0): ["GlobalAveragePool"],
    **{("Upsample2D", case): ["Resize"] for case in range(6)},
    **{(f"ConvTranspose{rank}D", 0): ["ConvTranspose"] for rank in (1, 2, 3)},
    **{("Pad", case): ["Pad"] for case in range(4)},
    ("Pool2D", 0): ["AveragePool"],
    ("DepthConv1D", 0): ["Conv"],
    ("Dropout", 0): ["Identity"],
    ("StochasticDepth", 0): ["Identity"],
}


@pytest.mark.parametrize(("name", "case"), KNOWN_BY)
def test_layer_is_its_operator(name, case):
    make, shape = LAYERS[name][case]
    assert operators(to_model(graph_of(make()), input_shape=shape)) == KNOWN_BY[name, case]


def test_float64_keeps_an_epsilon_that_an_attribute_would_round():
    graph = with_weights(graph_of(BatchNorm2D(3, epsilon=1e-3))).build((None, 3, 2, 2), dtype="float64")
    for key, parameter in graph.named_parameters():
        if key.endswith("running_var"):
            parameter.assign(np.full(3, 1e-12))
    x = np.random.default_rng(0).standard_normal((2, 3, 2, 2))
    np.testing.assert_allclose(referee(to_model(graph), [x])[0], oracle(graph, [x], "float64")[0], rtol=1e-13)


# ---- merges, several ends, names


@pytest.mark.parametrize("mode", [mode.value for mode in tp.MergeMode])
@pytest.mark.parametrize("count", [2, 3])
def test_merge(mode, count):
    ends = [tp.LayerNode(Identity(), name=f"in{i}") for i in range(count)]
    join = tp.LayerNode(Identity(), merge_mode=mode, name="join")
    graph = tp.LayerGraph({**{end: [join] for end in ends}, join: []}, root=ends, term=join)
    shapes = [(None, 1 if mode not in ("dot", "chcat") and i == 1 else 3, 3) for i in range(count)]
    model = checked(to_model(graph, input_shape=shapes))
    arrays = [np.random.default_rng(i).standard_normal(sized(shape, 2)).astype("f") for i, shape in enumerate(shapes)]
    np.testing.assert_allclose(referee(model, arrays)[0], oracle(graph, arrays)[0], rtol=1e-5, atol=1e-6)
    assert [value.name for value in model.graph.input] == [f"in{i}" for i in range(count)]
    assert [value.name for value in model.graph.output] == ["join"]


def network() -> tp.LayerGraph:
    """Two roots, two terms, a graph inside, a layer in two nodes, a sequence with dropout."""
    shared = Conv2D(3, 4, 3)
    left, right = tp.LayerNode(shared, name="left"), tp.LayerNode(shared, name="right")
    inner_in, inner_out = tp.LayerNode(BatchNorm2D(4), name="norm"), tp.LayerNode(Activation.ReLU(), name="act")
    inner = tp.LayerGraph({inner_in: [inner_out]}, root=inner_in, term=inner_out)
    block = tp.LayerNode(inner, name="block")
    head = tp.SequentialNode(Flatten(), ("drop", Dropout(0.5)), Dense(144, 5), name="head")
    other = tp.LayerNode(Lambda(lambda x: ops.mean(x, (2, 3))), name="other")
    edges = {left: [block], right: [block], block: [head, other], head: [], other: []}
    return with_weights(tp.LayerGraph(edges, root=[left, right], term=[head, other], seed=0))


SHAPES = [(None, 3, 6, 6)] * 2


def test_a_graph_of_everything():
    graph = network()
    model = checked(to_model(graph, input_shape=SHAPES))
    for batch in (1, 3):
        arrays = [input_for("", shape, batch + i)[:batch] for i, shape in enumerate(SHAPES)]
        for found, wanted in zip(referee(model, arrays), oracle(graph, arrays), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_names():
    graph = network()
    model = to_model(graph, input_shape=SHAPES).graph
    assert [value.name for value in model.input] == ["left", "right"]
    assert [value.name for value in model.output] == ["head", "other"]
    weights = {tensor.name for tensor in model.initializer if not tensor.name.split("/")[-1].startswith("constant")}
    assert weights == {key for key, p in graph.named_parameters() if "counter" not in key}
    assert "block.norm.running_mean" in weights
    assert "right.weight" not in weights  # shared: exported once
    places = [node.name for node in model.node]
    assert places == [
        "left/Conv", "right/Conv", "block/Add", "block.norm/BatchNormalization", "block.act/Relu", "head.0/Reshape",
        "head.2/Gemm", "other/ReduceMean",
    ]  # fmt: skip
    inner = {name for node in model.node for name in node.output}
    assert all(name.split("/")[0].split(".")[0] in {"left", "right", "block", "head", "other"} for name in inner)


def test_one_node_is_input_and_output():
    model = checked(to_model(graph_of(Dense(3, 2)), input_shape=(None, 3)))
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["layer", "layer/output"]


def test_an_output_that_is_asked_for_twice_or_is_an_input():
    a, b = tp.LayerNode(Identity(), name="a"), tp.LayerNode(Activation.Tanh(), name="b")
    c = tp.LayerNode(Identity(), name="c")
    graph = tp.LayerGraph({a: [b], b: [c], c: []}, root=a, term=[a, b, c])
    model = checked(to_model(graph, input_shape=(None, 2)))
    assert [value.name for value in model.graph.output] == ["a/output", "b", "c"]
    x = np.ones((2, 2), "f")
    for found, wanted in zip(referee(model, [x]), [x, np.tanh(x), np.tanh(x)], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_names_that_no_file_holds_are_refused():
    with pytest.raises(GraphError, match=r"expected names in UTF-8, got '\\ud800"):
        to_model(graph_of(Dense(2, 2), name="\ud800"), input_shape=(None, 2))


def test_duplicate_names_are_refused():
    a, b = tp.LayerNode(Dense(2, 2), name="a"), tp.LayerNode(Dense(2, 2), name="a")
    with pytest.raises(DuplicateNameError):
        to_model(tp.LayerGraph({a: [b], b: []}, root=a, term=b), input_shape=(None, 2))


# ---- shapes


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_open_sizes_are_named():
    graph = graph_of(Conv2D(3, 4, 3, stride=2))
    model = to_model(graph, input_shape=OPEN)
    assert shape_of(model.graph.input[0]) == ["N", 3, "H", "W"]
    assert shape_of(model.graph.output[0])[:2] == ["N", 4]
    assert all(isinstance(size, str) for size in shape_of(model.graph.output[0])[2:])
    assert shape_of(to_model(graph, input_shape=(2, 3, 8, 9)).graph.output[0]) == [2, 4, 4, 5]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.reshape(
            x, (x.shape[0] * x.shape[2], x.shape[1] * x.shape[3])
        ),  # two open sizes that no operand has
        lambda x: ops.reshape(x, (x.shape[3], x.shape[2], x.shape[0] * 3)),
        lambda x: ops.reshape(
            ops.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0))), (x.shape[2] + 2, x.shape[0] * 3 * x.shape[3])
        ),
        lambda x: ops.expand(ops.mean(x, (2, 3), keepdims=True), x.shape, mean=True),
        lambda x: ops.expand(ops.reshape(ops.mean(x), (1, 1)), (x.shape[2] // 2, x.shape[0])),
        lambda x: ops.pad(x, ((0, 0), (1, 0), (2, 1), (0, 3)), 0.5),
        lambda x: x[:, :, : x.shape[2], ::-1],
        lambda x: ops.max_pool2d(x, 2, 2)[:, 1:, : x.shape[2] // 2],
        lambda x: ops.place(x[:, :, :1], x.shape, (0, 0, x.shape[2] - 1, 0), (1, 1, 1, 1)),
        lambda x: ops.sum(x) / 2.0 + ops.max(x, 3, keepdims=True),
    ],
)
def test_arithmetic_of_open_sizes(function):
    graph = graph_of(Lambda(function))
    model = checked(to_model(graph, input_shape=OPEN))
    for shape in ((1, 3, 4, 6), (3, 3, 7, 5)):
        x = np.random.default_rng(0).standard_normal(shape).astype("f")
        np.testing.assert_allclose(referee(model, [x])[0], oracle(graph, [x])[0], rtol=1e-5, atol=1e-6)


def test_an_open_size_that_decides_is_refused():
    graph = graph_of(layers.Upsample2D(2))
    with pytest.raises(ShapeError, match=r"expected sizes that decide .*; give input_shape with these sizes"):
        to_model(graph, input_shape=OPEN)


def test_the_input_shape_is_that_of_build():
    graph = graph_of(Dense(3, 2))
    with pytest.raises(GraphError, match=r"give input_shape, such as"):
        to_model(graph)
    assert shape_of(to_model(graph.build((4, 3))).graph.input[0]) == [4, 3]
    assert shape_of(to_model(graph, input_shape=(None, 3)).graph.input[0]) == ["N", 3]


# ---- functions


def test_a_function():
    x, n = tp.placeholder((None, 3), "x"), tp.placeholder((None,), "n", "int64")
    w = tp.variable(np.ones((4, 3)), "w")
    f = tp.function([ops.take(w, n) * x, ops.dropout(x, 0.5)], [x, n])
    model = checked(to_model(f))
    assert [value.name for value in model.graph.output] == ["output0", "output1"]
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]
    arrays = [np.ones((2, 3), "f"), np.array([3, 0])]
    for found in referee(model, arrays):
        np.testing.assert_array_equal(found, np.ones((2, 3)))
    closed = to_model(f, input_shape=[(5, 3), (5,)])
    assert [shape_of(value) for value in closed.graph.input] == [[5, 3], [5]]
    with pytest.raises(ShapeError, match="placeholder 'x': expected a shape that fits"):
        to_model(f, input_shape=[(5, 4), (5,)])
    with pytest.raises(ShapeError, match="an input_shape for each of 2 inputs"):
        to_model(f, input_shape=(5, 3))


def test_outputs_that_nothing_computes():
    x, w = tp.placeholder((None, 3), "x"), tp.variable(np.arange(3.0), "w")
    model = checked(to_model(tp.function([w, tp.constant(2.5), x], [x])))
    found = referee(model, [np.ones((2, 3), "f")])
    assert [a.tolist() for a in found] == [[0, 1, 2], 2.5, [[1, 1, 1]] * 2]
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]


def test_the_same_function_gives_the_same_bytes():
    def model():
        x, y = tp.placeholder(OPEN, "x"), tp.placeholder((None, 1, None, None), "y")
        return to_model(tp.function(ops.sum(x, (2, 3)) * ops.sum(y, (2, 3)), [x, y]))

    assert model().SerializeToString(deterministic=True) == model().SerializeToString(deterministic=True)
    assert [shape_of(value) for value in model().graph.input] == [["N", 3, "H", "W"], ["N", 1, "H1", "W1"]]


def test_variables_keep_their_names():
    x = tp.placeholder((2,), "x")
    a, b, c, d = (tp.variable(np.ones(2), name) for name in ("Mul", "w", "w", "x"))
    model = checked(to_model(tp.function(x * a * b * c * d, [x])))
    assert [tensor.name for tensor in model.graph.initializer] == ["Mul", "w", "w_1", "x_1"]


def test_many_scalars_are_inputs_of_their_own():
    scalars = [tp.placeholder((), f"x{i}", "float64") for i in range(70)]
    f = tp.function(ops.sin(ops.sum_of(*scalars)), scalars)
    model = checked(to_model(f))
    assert len(model.graph.input) == 70
    values = np.linspace(0, 0.02, 70)
    np.testing.assert_allclose(referee(model, list(values))[0], np.sin(values.sum()), rtol=1e-12)


def test_inputs_of_one_name_are_told_apart():
    x, y = tp.placeholder((), "x"), tp.placeholder((), "x")
    assert [value.name for value in checked(to_model(tp.function(x - y, [x, y]))).graph.input] == ["x", "x_1"]


def test_a_gradient_has_no_counterpart():
    x = tp.placeholder((2, 3, 4, 4), "x")
    (slope,) = tp.gradients(ops.sum(ops.max_pool2d(x, 2)), [x])
    with pytest.raises(
        GraphError, match="op max_pool2d_grad: expected an op that ONNX has, got max_pool2d_grad: it is part of"
    ):
        to_model(tp.function(slope, [x]))


# ---- what is refused


class Doubled(PythonLayer):
    def forward(self, x):
        return 2 * x

    def backward(self, d_out):
        return 2 * d_out


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
