"""Graphs and functions as ONNX models: every layer, merges, names, open sizes. See `test_exporting_files` for files and refusals."""

import inspect

import numpy as np
import pytest
from onnx_export import (
    LAYERS,
    OPEN,
    REFUSED,
    SHAPES,
    cases,
    checked,
    graph_of,
    input_for,
    network,
    operators,
    oracle,
    referee,
    runtime,
    shape_of,
    sized,
    with_weights,
)

import tapeprop as tp
from tapeprop import layers, ops
from tapeprop.errors import DuplicateNameError, GraphError, ShapeError
from tapeprop.interchange.onnx import to_model
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Identity, Lambda

#: Cases that ONNX' own evaluator cannot run or runs in float32; onnxruntime judges the first.
NO_GROUPS = {("ConvTranspose2D", 1)}
FLOAT32_ERF = {("Activation", i) for i, (make, _) in enumerate(LAYERS["Activation"]) if make is Activation.GELU}


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
