"""Models as graphs of layers: they calculate what the function of the same model does, train, and are saved."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx_models import convolutional, drawn, mlp, model, node, squeeze_and_excite, transformer

import tapeprop as tp
from tapeprop.errors import GraphError
from tapeprop.interchange.onnx import load, load_function
from tapeprop.interchange.onnx.operators import Operators
from tapeprop.layers import (
    Activation,
    BatchNorm2D,
    Conv2D,
    Dense,
    DenseND,
    DepthConv2D,
    Dropout,
    Embedding,
    Flatten,
    Identity,
    LayerNorm,
    Reshape,
)

SOURCE = Path(__file__).parents[3] / "src"
# One operation may be done in another order: by a layer's own op, where the function has the formula.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def results(value):
    return [np.asarray(y) for y in (value if isinstance(value, list | tuple) else [value])]


def inputs_of(proto, batch=3):
    """Numbers for each input; words like "N" are the batch."""
    rng = np.random.default_rng(5)
    found = []
    for value in proto.graph.input:
        shape = [dim.dim_value or batch for dim in value.type.tensor_type.shape.dim]
        whole = value.type.tensor_type.elem_type != TensorProto.FLOAT
        found.append(rng.integers(0, 5, shape) if whole else rng.standard_normal(shape).astype(np.float32))
    return found


def check(proto, **options):
    """The graph, which gives what the function gives."""
    graph, given = load(proto, **options), inputs_of(proto)
    found = results(graph(given if isinstance(graph.root, list) else given[0]))
    wanted = results(load_function(proto)(*given))
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
        assert ours.shape == theirs.shape
    return graph


def layers_of(graph):
    return {graph.label_of(n): n.layer for n in graph.nodes}


# ---- what becomes what


def test_dense_layers_and_their_keys() -> None:
    graph = check(mlp())
    found = layers_of(graph)
    assert list(found) == ["x", "first", "relu_r", "second"]
    assert [type(layer) for layer in found.values()] == [Identity, Dense, Activation.ReLU, Dense]
    state = graph.state_dict()
    assert list(state) == ["first.weight", "first.bias", "second.weight", "second.bias"]
    np.testing.assert_array_equal(state["second.weight"], drawn(8, 3).T)


def test_a_residual_network_of_layers() -> None:
    found = layers_of(check(convolutional()))
    assert not any(isinstance(layer, Operators) for layer in found.values())
    assert isinstance(found["conv_c1"], Conv2D)
    assert isinstance(found["conv_c2"], DepthConv2D)
    assert isinstance(found["batchnormalization_n1"], BatchNorm2D)
    assert found["batchnormalization_n1"].momentum == 0.8
    assert isinstance(found["flatten_f"], Flatten)


@pytest.mark.parametrize("pads", [[0, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool", "ConvTranspose"])
def test_pads_are_of_sides(op: str, pads: list[int]) -> None:
    weight = "w" if op.startswith("Conv") else ""
    nodes = [node(op, f"x {weight}", "y", "it", kernel_shape=[3, 2], pads=pads, strides=[2, 1])]
    graph = check(model(nodes, {"x": ("N", 4, 7, 8)}, ["y"], {"w": drawn(4, 4, 3, 2)}))
    assert not isinstance(layers_of(graph)["it"], Operators)


def test_numbers_that_are_no_initialisers_are_not_trained() -> None:
    """A product with a constant is a dense layer all the same."""
    nodes = [
        node("Constant", "", "table", value=numpy_helper.from_array(drawn(6, 4))),
        node("MatMul", "x table", "a", "fixed"),
        node("MatMul", "a w", "y", "trained"),
    ]
    graph = check(model(nodes, {"x": ("N", 6)}, ["y"], {"w": drawn(4, 3)}))
    found = layers_of(graph)
    assert [type(found[name]) for name in ("fixed", "trained")] == [Dense, Dense]
    assert graph.param_size == (12, 0)
    assert not found["fixed"].weight.trainable


def test_squeeze_and_excite() -> None:
    graph = check(squeeze_and_excite())
    assert [graph.label_of(n) for n in graph.nodes if n.merge_mode is tp.MergeMode.HADAMARD] == ["mul_y"]
    assert isinstance(layers_of(graph)["hardsigmoid_h"], Operators)


def test_a_transformer_s_block() -> None:
    graph = check(transformer())
    found = layers_of(graph)
    assert isinstance(found["layernormalization_n"], LayerNorm)
    assert isinstance(found["/block/q/MatMul"], DenseND)
    assert isinstance(found["reshape_q2"], Reshape)
    assert [n.merge_mode for n in graph.nodes if graph.label_of(n) in ("matmul_scores", "matmul_mixed")] == [
        tp.MergeMode.DOT
    ] * 2
    assert "mul_scaled.scale" in graph.state_dict()


def test_tokens() -> None:
    nodes = [node("Gather", "table ids", "e"), node("ReduceMean", "e axes", "y", keepdims=0)]
    proto = model(nodes, {"ids": (("N", 4), TensorProto.INT64)}, ["y"], {"table": drawn(5, 3), "axes": [1]}, opset=18)
    assert isinstance(layers_of(check(proto))["gather_e"], Embedding)


def test_whole_numbers_that_something_else_reads(tmp_path: Path) -> None:
    nodes = [
        node("Gather", "line ids", "a"),
        node("Gather", "table ids", "e"),
        node("ReduceSum", "e axes", "s", keepdims=0),
    ]
    nodes += [node("Add", "a s", "y")]
    proto = model(
        nodes, {"ids": (("N", 4), TensorProto.INT32)}, ["y"], {"line": drawn(5), "table": drawn(5, 3), "axes": [-1]}
    )
    graph = check(proto)
    assert list(graph.state_dict()) == ["gather_a.line", "gather_e.weight"]
    graph.save(tmp_path / "g")
    (ids,) = inputs_of(proto)
    np.testing.assert_array_equal(tp.load(tmp_path / "g")(ids), graph(ids))


def test_several_inputs_and_outputs() -> None:
    nodes = [
        node("MatMul", "b wb", "hb"),
        node("MatMul", "a wa", "ha"),
        node("Sub", "ha hb", "d"),
        node("Concat", "hb d ha", "c", axis=-1),
        node("Relu", "d", "r"),
        node("Add", "r r", "twice"),
    ]
    proto = model(
        nodes, {"a": ("N", 3), "b": ("N", 2)}, ["twice", "c", "d", "ha"], {"wa": drawn(3, 4), "wb": drawn(2, 4)}
    )
    graph = check(proto)
    assert [graph.label_of(n) for n in graph.roots] == ["a", "b"]
    assert [graph.label_of(n) for n in graph.terms] == ["add_twice", "concat_c", "sub_d", "matmul_ha"]


@pytest.mark.parametrize("op", ["Sum", "Max", "Min", "Mean"])
def test_merges_of_three(op: str) -> None:
    nodes = [node("Tanh", "x", "a"), node("Sigmoid", "x", "b"), node(op, "b x a", "y", "it")]
    graph = check(model(nodes, {"x": ("N", 3)}, ["y"]))
    assert isinstance(layers_of(graph)["it"], Identity)


def test_operators_take_in_what_they_need() -> None:
    """x / (|x| + 1): both operands come from x, and no merge divides."""
    nodes = [node("Abs", "x", "a"), node("Add", "a one", "b"), node("Div", "x b", "y"), node("Exp", "b", "z")]
    graph = check(model(nodes, {"x": ("N", 3)}, ["y", "z"], {"one": np.ones(3, np.float32)}))
    assert repr(layers_of(graph)["div_y"]) == "Operators(Abs, Add, Div)"
    assert list(graph.state_dict()) == ["add_b.one"]  # in two nodes, and one parameter


def test_each_result_of_a_node_is_its_own() -> None:
    nodes = [node("Split", "x", "a b", axis=1, num_outputs=2), node("Tanh", "b", "t"), node("Mul", "a t", "y")]
    graph = check(model(nodes, {"x": ("N", 6)}, ["y"], opset=18))
    assert [name for name, layer in layers_of(graph).items() if isinstance(layer, Operators)] == [
        "split_a",
        "split_a_2",
    ]


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    nodes = [
        node("Gemm", "x w", "a", "one", transB=1),
        node("Gemm", "a w", "b", "two", transB=1),
        node("MatMul", "b v", "c", "three"),
        node("Transpose", "v", "vt", perm=[1, 0]),
        node("MatMul", "c vt", "y", "four"),
    ]
    graph = check(model(nodes, {"x": ("N", 4)}, ["y"], {"w": drawn(4, 4), "v": drawn(4, 4)}))
    assert list(graph.state_dict()) == ["one.weight", "three.v"]
    assert graph.param_size == (32, 0)
    graph.save(tmp_path / "g")
    assert list(tp.load(tmp_path / "g").state_dict()) == ["one.weight", "three.v"]


def test_what_leads_nowhere_is_left_out() -> None:
    nodes = [node("Relu", "x", "y"), node("Exp", "x", "dead"), node("Tanh", "unused", "gone")]
    proto = model(nodes, {"x": ("N", 3), "unused": ("N", 3)}, ["y"])
    graph = load(proto)
    assert list(layers_of(graph)) == ["x", "relu_y"]
    assert graph([np.float32([[-1, 0, 2]])]).tolist() == [[0, 0, 2]]


def test_an_input_can_be_an_output() -> None:
    check(model([node("Relu", "x", "y")], {"x": ("N", 3)}, ["x", "y", "y"]))


def test_names_are_made_fit() -> None:
    nodes = [node("Relu", "x.0", "a", "net.0"), node("Tanh", "a", "b", "net.0"), node("Exp", "b", "y", "x_0")]
    assert list(layers_of(check(model(nodes, {"x.0": ("N", 3)}, ["y"])))) == ["x_0", "net_0", "net_0_2", "x_0_2"]


def test_a_batch_that_the_model_fixes_is_kept() -> None:
    nodes = [node("Reshape", "x shape", "r"), node("Relu", "r", "y")]
    proto = model(nodes, {"x": (2, 3, 4)}, ["y"], {"shape": np.array([2, 12])})
    assert load(proto)(np.ones((2, 3, 4))).shape == (2, 12)
    opened = model(nodes, {"x": (2, 3, 4)}, ["y"], {"shape": np.array([-1, 12])})
    assert load(opened)(np.ones((5, 3, 4))).shape == (5, 12)


def test_sizes_that_the_file_leaves_open_are_given() -> None:
    proto = model([node("Relu", "x", "y")], {"x": None}, ["y"])
    with pytest.raises(GraphError, match=r"input 'x': expected a shape, got none: give shapes"):
        load(proto)
    assert load(proto, shapes={"x": (None, 3)})(np.ones((2, 3))).shape == (2, 3)


@pytest.mark.parametrize(
    ("nodes", "outputs", "text"),
    [
        ([node("Pow", "a b", "y", "it")], ["y"], r"'it' \(Pow\): expected an operator that reads one input.*'a', 'b': use load_function"),
        ([node("Relu", "a", "r"), node("Shape", "b", "y")], ["r", "y"], "output 'y': expected a value that is calculated"),
        ([node("Relu", "a", "r"), node("Relu", "w", "y")], ["r", "y"], "output 'y': expected a value that is calculated"),
        ([node("Celu", "a", "r"), node("NonZero", "r", "y", "it")], ["y"], "'it'.*NonZero"),
    ],
)  # fmt: skip
def test_models_that_are_no_graph_of_layers(nodes, outputs, text) -> None:
    with pytest.raises(GraphError, match=text):
        load(model(nodes, {"a": ("N", 3), "b": ("N", 3)}, outputs, {"w": drawn(3)}))


@pytest.mark.parametrize("read", [load, load_function])
def test_shapes_of_inputs_that_are_not_there(read) -> None:
    with pytest.raises(GraphError, match=r"shapes: expected inputs of the model \('x'\), got 'y'"):
        read(mlp(), shapes={"y": (1, 6)})


def test_long_models_are_loaded_or_refused_in_time() -> None:
    """A long chain and a long sum of branches; two chains that meet in a quotient again and again are refused."""
    chain = [node("Relu", f"x{i}", f"x{i + 1}") for i in range(1500)]
    assert len(load(model(chain, {"x0": ("N", 2)}, ["x1500"]), build=False).nodes) == 1501
    sums = [node("Add", f"x{i} x{i // 2}", f"x{i + 1}") for i in range(1500)]
    assert len(load(model(sums, {"x0": ("N", 2)}, ["x1500"]), build=False).nodes) == 1501
    twins = [node(op, f"{name}{i}", f"{name}{i + 1}") for i in range(500) for op, name in (("Tanh", "a"), ("Sin", "b"))]
    twins += [node("Div", f"a{i} b{i}", f"y{i}") for i in range(1, 500)]
    twins += [node("Identity", "x", name) for name in ("a0", "b0")]
    with pytest.raises(GraphError, match="use load_function"):
        load(model(twins, {"x": ("N", 2)}, [f"y{i}" for i in range(1, 500)]), build=False)


# ---- training


def test_it_trains() -> None:
    graph = load(convolutional())
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((32, 3, 8, 8)), rng.integers(0, 5, 32)
    before = graph.state_dict()
    training = {"epochs": 40, "batch_size": 16, "seed": 0, "verbose": 0}
    history = graph.fit(X, y, loss=tp.losses.CrossEntropy(), optimizer=tp.optimizers.Adam(0.02), **training)
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    after = graph.state_dict()
    assert all(np.any(before[key] != after[key]) for key in before)


def test_running_statistics_advance_as_onnx_says() -> None:
    nodes = [node("BatchNormalization", "x s b m v", "y", "it", momentum=0.75)]
    weights = {"s": drawn(3), "b": drawn(3, seed=1), "m": drawn(3, seed=2), "v": np.ones(3, np.float32)}
    graph = check(model(nodes, {"x": ("N", 3)}, ["y"], weights))
    x = drawn(16, 3, seed=4)
    graph.forward(x, is_train=True)
    state = graph.state_dict()
    np.testing.assert_allclose(state["it.running_mean"], 0.75 * weights["m"] + 0.25 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["it.running_var"], 0.75 + 0.25 * x.var(0), rtol=1e-5)
    assert sum(parameter.trainable for _, parameter in graph.named_parameters()) == 2


def test_dropout_drops_in_training_alone() -> None:
    proto = model([node("Dropout", "x ratio", "y mask", "it")], {"x": ("N", 100)}, ["y"], {"ratio": np.float32(0.25)})
    graph = check(proto)
    assert isinstance(layers_of(graph)["it"], Dropout)
    found = graph.forward(np.ones((4, 100)), is_train=True)
    assert 0 < np.mean(found == 0) < 0.5


@pytest.mark.parametrize("make", [mlp, squeeze_and_excite, transformer])
def test_gradients_are_those_of_the_function(make) -> None:
    proto = make()
    graph, function = load(proto), load_function(proto)
    (x,) = inputs_of(proto)
    graph.forward(x)
    dx = graph.backward()
    _, wanted = function.value_and_grad(x)
    np.testing.assert_allclose(
        dx, np.asarray(wanted if not isinstance(wanted, list | tuple) else wanted[0]), rtol=1e-4, atol=1e-5
    )
    theirs = {v.name: v.grad for v in function.variables}
    ours = {}
    for step, parameter in graph.named_parameters():
        ours[step] = parameter.grad
    for name, gradient in theirs.items():
        same = [g for g in ours.values() if g.shape in (gradient.shape, gradient.T.shape)]
        assert any(
            np.allclose(g, part, rtol=1e-4, atol=1e-5)
            for g in same
            for part in (gradient, gradient.T)
            if g.shape == part.shape
        ), name


def test_float64_gradients_by_differences() -> None:
    proto = transformer()
    graph = load(proto, dtype="float64")
    assert tp.gradcheck(graph, inputs_of(proto)[0], samples=8) < 1e-6


def test_weights_can_stay_as_they_are() -> None:
    graph = load(transformer(), trainable=False)
    assert graph.param_size == (0, 0)
    assert load(mlp(), build=False).built_ is False


# ---- files


@pytest.mark.parametrize("make", [mlp, convolutional, squeeze_and_excite, transformer])
def test_graphs_are_saved_and_loaded(make, tmp_path: Path) -> None:
    proto = make()
    graph, (x,) = load(proto), inputs_of(proto)
    graph.save(tmp_path / "g")
    again = tp.load(tmp_path / "g")
    np.testing.assert_array_equal(again(x), graph(x))
    assert [(key, p.trainable) for key, p in again.named_parameters()] == [
        (key, p.trainable) for key, p in graph.named_parameters()
    ]


def test_files_are_loaded_before_anything_of_onnx_is(tmp_path: Path) -> None:
    load(transformer()).save(tmp_path / "g")
    program = (
        "import sys, tapeprop as tp; assert 'tapeprop.interchange.onnx' not in sys.modules; "
        "tp.load(sys.argv[1], build=False); assert 'tapeprop.interchange.onnx' in sys.modules"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")])),
    }
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "g")], check=True, env=environment)


def test_two_inputs_are_saved_and_loaded(tmp_path: Path) -> None:
    graph = check(model([node("Mul", "a b", "y")], {"a": ("N", 3), "b": ("N", 3)}, ["y"]))
    graph.save(tmp_path / "g")
    assert tp.load(tmp_path / "g")([np.ones((2, 3)), np.full((2, 3), 2.0)]).tolist() == [[2, 2, 2]] * 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"nodes": ({"op": "Relu"},), "input": "x", "output": "y"},
        {"nodes": (3,), "input": "x", "output": "y"},
        {"nodes": (), "input": "x", "output": "y", "weights": {"w": 3}},
        {"nodes": (), "input": "x", "output": "y", "constants": {"w": {"dtype": "float32", "shape": (2**40,), "values": ()}}},
        {"nodes": (), "input": "x", "output": "y", "constants": {"w": {"dtype": "O", "shape": (), "values": (1,)}}},
        {"nodes": (), "input": "x", "output": "y", "sizes": {"w": {"dtype": "int64", "shape": (1,), "values": ({"axis": -1},)}}},
    ],
)  # fmt: skip
def test_operators_are_made_of_sound_arguments_alone(arguments) -> None:
    with pytest.raises(GraphError, match="Operators: expected"):
        Operators(**arguments)
