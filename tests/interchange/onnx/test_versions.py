"""Models of operators older than version 13: what onnx.version_converter does, and what it would get wrong."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tapeprop.errors import GraphError
from tapeprop.interchange.onnx import load_function

X = np.random.default_rng(3).standard_normal((2, 3, 4, 5)).astype(np.float32)
CUBE = np.random.default_rng(4).standard_normal((3, 3, 3, 3)).astype(np.float32)
SLOPES = np.array([0.1, 0.2, 0.3], np.float32)


def old(op, opset, inputs, initialisers=None, shape=("a", "b", "c", "d"), domain="", **attributes):
    """A ModelProto of one node, whose initialisers are inputs too, as they had to be."""
    initialisers = {name: np.asarray(array) for name, array in (initialisers or {}).items()}
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    given = [
        helper.make_tensor_value_info(name, kinds[array.dtype], array.shape)
        for name, array in {**inputs, **initialisers}.items()
    ]
    node = helper.make_node(op, [*inputs, *initialisers], ["y"], domain=domain, **attributes)
    graph = helper.make_graph([node], "old", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)])
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in initialisers.items())
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=3)


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_an_operand_in_the_middle_keeps_its_place(axis):
    """The sizes are equal, so that the converter sees no difference."""
    made = old("Mul", 6, {"x": CUBE}, {"s": SLOPES}, broadcast=1, axis=axis)
    wanted = CUBE * SLOPES.reshape([3 if place == axis % 4 else 1 for place in range(4)])
    np.testing.assert_allclose(load_function(made)(CUBE), wanted, rtol=1e-6)


def test_the_slopes_of_prelu_are_those_of_channels():
    made = old("PRelu", 6, {"x": CUBE}, {"s": SLOPES})
    np.testing.assert_allclose(load_function(made)(CUBE), np.where(CUBE < 0, CUBE * SLOPES[:, None, None], CUBE))


def test_softmax_was_over_all_axes_from_one_on():
    e = np.exp(X)
    found = load_function(old("Softmax", 11, {"x": X}, axis=2))(X)
    np.testing.assert_allclose(found, e / e.sum((2, 3), keepdims=True), rtol=1e-5)


@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_images_grew_from_their_corner(op, opset):
    x = np.array([[[[0, 1, 4]]]], np.float32)
    scales = {"s": np.array([1, 1, 1, 2], np.float32)}
    linear = load_function(old(op, opset, {"x": x}, scales, mode="linear"))(x)
    np.testing.assert_allclose(linear, [[[[0, 0.5, 1, 2.5, 4, 4]]]])
    near = load_function(old(op, opset, {"x": x}, scales, mode="nearest"))(x)
    np.testing.assert_array_equal(near, [[[[0, 0, 1, 1, 4, 4]]]])


def test_images_shrank_to_the_element_behind():
    """ONNX' case test_resize_downsample_nearest of version 10."""
    x = np.arange(1, 9, dtype=np.float32).reshape(1, 1, 2, 4)
    made = old("Resize", 10, {"x": x}, {"s": np.array([1, 1, 0.6, 0.6], np.float32)}, mode="nearest")
    np.testing.assert_array_equal(load_function(made)(x), [[[[1, 3]]]])


def test_weights_are_kept_through_the_conversion_under_their_names():
    weights = np.random.default_rng(5).standard_normal((40, 3, 3, 3)).astype(np.float32)
    made = old("Conv", 8, {"x": X}, {"kernel": weights}, pads=[1, 1, 1, 1])
    before = made.SerializeToString()
    f = load_function(made)
    (parameter,) = f._parameters()
    assert parameter.name == "kernel"
    np.testing.assert_array_equal(parameter.value, weights)
    assert f(X).shape == (2, 40, 4, 5)
    assert made.SerializeToString() == before


def test_weights_in_a_file_of_their_own(tmp_path):
    weights = np.random.default_rng(6).standard_normal((4, 3, 2, 2)).astype(np.float32)
    made = old("Conv", 9, {"x": X}, {"kernel": weights})
    expected = load_function(made)(X)
    onnx.save_model(made, tmp_path / "old.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size == weights.nbytes
    np.testing.assert_array_equal(load_function(tmp_path / "old.onnx")(X), expected)


ONES = {name: np.ones(3, np.float32) for name in "sbmv"}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: old("Relu", 5, {"x": X}), "got opset 5, of which only 6 and later are converted: export the model again"),
        (lambda: old("BatchNormalization", 6, {"x": X}, ONES), r"'BatchNormalization_0' .*the training mode of old versions"),
        (lambda: old("Dropout", 6, {"x": X}, is_test=0), "the training mode of old versions"),
        (lambda: old("BatchNormalization", 7, {"x": X}, ONES, spatial=0), "cannot convert.*spatial must have value 1"),
        (lambda: old("Hardmax", 11, {"x": X}), "over other axes in later versions"),
        (lambda: old("Less", 6, {"x": X, "z": X}), "cannot convert.*No Adapter From Version .6 for Less"),
        (lambda: old("Relu", 9, {"x": X}, alpha=1.0), "does not accept: Unrecognized attribute: alpha"),
        (lambda: old("Resize", 10, {"x": X}, {"s": np.float32([1, 1, 2, 0.5])}), "scales that all grow or all shrink"),
        (lambda: old("Resize", 10, {"x": X, "s": np.ones(4, np.float32)}), "expected scales that are known"),
        (lambda: old("Expand", 9, {"x": X, "s": np.zeros(10**7, np.int64)}), "more than 65,536 sizes"),
    ],
)  # fmt: skip
def test_refusals(made, message):
    with pytest.raises(GraphError, match=message) as found:
        load_function(made())
    assert "expected operators of version 13 or later" in str(found.value)
