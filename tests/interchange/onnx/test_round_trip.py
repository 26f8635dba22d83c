"""What is exported is read again and gives the same: every layer, every network of the examples and of the zoo."""

import importlib.util
import inspect

import numpy as np
import onnx
import pytest
from onnx_export import (
    LAYERS,
    cases,
    checked,
    function_oracle,
    graph_of,
    input_for,
    oracle,
    referee,
    runtime,
    with_weights,
)
from random_graphs import build, for_random_graphs
from test_examples import TESTED as EXAMPLES
from test_examples import load as example

import tapeprop as tp
from tapeprop import zoo
from tapeprop.interchange.onnx import load, load_function, save, to_model
from tapeprop.interchange.onnx.exporting import OLDEST_OPSET
from tapeprop.layers import AvgPool2D, Conv2D, MaxPool2D, PythonLayer

pytestmark = pytest.mark.conformance

TOLERANCE = 1e-6
RUNTIME = importlib.util.find_spec("onnxruntime") is not None


def agree(found, wanted) -> None:
    """To 1e-6 of the largest element."""
    for a, b in zip(found, wanted, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("opset", [None, 17])
@pytest.mark.parametrize(("name", "case"), cases())
def test_layer(name, case, opset):
    make, shape = LAYERS[name][case]
    graph = graph_of(make())
    model = to_model(graph, input_shape=shape, opset=opset)
    function, layers = load_function(model), load(model, build=False)
    for batch in (1, 3):
        x = input_for(name, shape, batch)
        wanted = oracle(graph, [x])
        agree(function_oracle(function, [x]), wanted)
        agree(oracle(layers, [x]), wanted)


@pytest.mark.parametrize("opset", range(OLDEST_OPSET, onnx.defs.onnx_opset_version() + 1))
def test_every_opset(opset):
    """That ONNX' checker takes every layer in it, and onnxruntime runs it."""
    if not RUNTIME:
        pytest.skip("onnxruntime is not installed")
    for name, case in cases():
        make, shape = LAYERS[name][case]
        graph = graph_of(make())
        model = checked(to_model(graph, input_shape=shape, opset=opset))
        assert model.opset_import[0].version == opset
        x = input_for(name, shape, 2)
        np.testing.assert_allclose(
            runtime(model, [x])[0], oracle(graph, [x])[0], rtol=1e-5, atol=1e-5, err_msg=f"{name} {case}"
        )


# ---- networks

#: {network of the zoo: (channels, size) of its images}, as small as it goes.
IMAGES = {"lenet5": (1, 28), "resnet20": (3, 32), "alexnet": (3, 96), "inception_v3": (3, 107)}


def zoo_network(name: str) -> tuple[tp.LayerGraph, tuple[int | None, ...]]:
    network = getattr(zoo, name)
    options = {"width": 0.25} if "width" in inspect.signature(network).parameters else {}
    channels, size = IMAGES.get(name, (3, 64))
    return with_weights(network(7, seed=0, **options)), (None, channels, size, size)


@pytest.mark.parametrize("name", zoo.__all__)
def test_zoo(name, tmp_path):
    graph, shape = zoo_network(name)
    save(graph, tmp_path / "net.onnx", input_shape=shape)
    checked(to_model(graph, input_shape=shape))
    x = np.random.default_rng(0).standard_normal((2, *shape[1:])).astype("f")
    wanted = oracle(graph, [x])
    agree(function_oracle(load_function(tmp_path / "net.onnx"), [x]), wanted)
    again = load(tmp_path / "net.onnx", build=False)
    agree(oracle(again, [x]), wanted)
    assert sum(again.param_size) == sum(graph.param_size)
    if not RUNTIME:
        pytest.skip("onnxruntime is not installed")
    for found, expected in zip(runtime(to_model(graph, input_shape=shape), [x]), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def example_networks() -> dict[str, tuple[tp.LayerGraph, tuple[int | None, ...]]]:
    """{example: its graph, an input shape}; gan has two and both behind one another."""
    image = (None, 1, 8, 8)
    colours = (None, 3, 8, 8)
    generator, discriminator, both = example("gan").networks()
    noise = (None, example("gan").NOISE)
    slow = example("why_is_it_slow")
    found = {
        "linear": (example("linear").network(), colours),
        "shortcut": (example("shortcut").network(), colours),
        "concat": (example("concat").network(), colours),
        "digits": (example("digits").network(), image),
        "digits_cuda": (example("digits_cuda").network(), image),
        "recurrent": (example("recurrent").network(), image),
        "two_heads": (example("two_heads").network(), image),
        "onnx_round_trip": (example("onnx_round_trip").network(), image),
        "resnet20": (example("resnet20").resnet20(), (None, 3, 32, 32)),
        "gan": (generator, noise),
        "gan, discriminator": (discriminator, image),
        "gan, both": (both, noise),
        "why_is_it_slow": (slow.network(slow.swish), image),
    }
    return {name: (with_weights(graph), shape) for name, (graph, shape) in found.items()}


def test_every_example_is_here():
    """But for formulas, whose gradients ONNX has not, and a network that grows step by step."""
    assert {name.split(",")[0] for name in example_networks()} == EXAMPLES - {"formula", "edit_while_training"}


@pytest.mark.parametrize("name", example_networks())
def test_example(name):
    graph, shape = example_networks()[name]
    assert not any(isinstance(layer, PythonLayer) for _, layer in graph.walk())
    model = checked(to_model(graph, input_shape=shape))
    x = np.random.default_rng(0).standard_normal((3, *shape[1:])).astype("f")
    wanted = oracle(graph, [x])
    agree(function_oracle(load_function(model), [x]), wanted)
    agree(oracle(load(model, build=False), [x]), wanted)


@pytest.mark.parametrize("padding", [((0, 1), (0, 1)), ((1, 0), (1, 0)), ((1, 2), (0, 1)), ((1, 1), (1, 1))])
@pytest.mark.parametrize("layer", ["Conv2D", "MaxPool2D", "AvgPool2D"])
def test_padding_that_differs_from_side_to_side(layer, padding):
    """As a graph of layers, in which one pair would be one number for each axis."""
    make = {
        "Conv2D": lambda: Conv2D(3, 2, 4, 2, padding),
        "MaxPool2D": lambda: MaxPool2D(4, 2, padding),
        "AvgPool2D": lambda: AvgPool2D(4, 2, padding),
    }
    graph = graph_of(make[layer]())
    x = input_for("", (None, 3, 9, 8), 2)
    again = load(to_model(graph, input_shape=(None, 3, 9, 8)), build=False)
    agree(oracle(again, [x]), oracle(graph, [x]))


@for_random_graphs(60)
def test_random_graph(recipe):
    """In float32 and with the batch open; read again, and in onnxruntime where that is installed."""
    case = build(recipe, dtype="float32")
    shapes = [(None, *x.shape[1:]) for x in case.inputs]
    model = checked(to_model(case.graph, input_shape=shapes if isinstance(case.graph.root, list) else shapes[0]))
    arrays = [x.astype("f") for x in case.inputs]
    wanted = oracle(case.graph, arrays)
    nudged = oracle(case.graph, [x * np.float32(1 + 1e-5) for x in arrays])
    found = [
        ("a function", function_oracle(load_function(model), arrays)),
        ("a graph", oracle(load(model, build=False), arrays)),
    ]
    if RUNTIME:
        found.append(("onnxruntime", runtime(model, arrays)))
    for who, values in found:
        for a, b, c in zip(values, wanted, nudged, strict=True):
            magnified = 10 * np.abs(b - c).max()  # by the network itself, of a nudge of 1e-5: a kink, or a large slope
            np.testing.assert_allclose(
                a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(b).max())) + magnified, err_msg=who
            )


def test_real_images_in_other_programs():
    """A trained network: ONNX' evaluator and onnxruntime agree with predict() to 1e-5."""
    X, y = tp.datasets.digits()
    graph = example("digits").network().build((None, 1, 8, 8))
    graph.fit(X, y, loss=tp.losses.CrossEntropy(), optimizer=tp.optimizers.Adam(), epochs=1, verbose=0)
    model = checked(to_model(graph))
    images = np.asarray(X[:64], "f")
    wanted = graph.predict(images)
    np.testing.assert_allclose(referee(model, [images])[0], wanted, rtol=1e-5, atol=1e-5)
    if RUNTIME:
        np.testing.assert_allclose(runtime(model, [images])[0], wanted, rtol=1e-5, atol=1e-5)


def test_a_network_as_it_runs():
    """With compiled kernels on both sides, the batch open."""
    graph, shape = example_networks()["digits"]
    graph.build(shape)
    again = load_function(to_model(graph))
    for batch in (1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, *shape[1:])).astype("f")
        agree([again(x)], [graph(x)])


def test_a_function_that_was_read_is_written_again():
    graph, shape = example_networks()["two_heads"]
    once = load_function(to_model(graph, input_shape=shape))
    twice = load_function(checked(to_model(once)))
    x = np.random.default_rng(0).standard_normal((2, *shape[1:])).astype("f")
    agree(function_oracle(twice, [x]), oracle(graph, [x]))
