"""Models as functions: weights, what is constant, and what is told of a model that cannot be read."""

import numpy as np
import pytest
from onnx_text import model, run

import tapeprop as tp
from tapeprop.errors import GraphError
from tapeprop.interchange.onnx import load_function
from tapeprop.interchange.onnx.importing import Importer
from tapeprop.interchange.onnx.model import Node

RANDOM = np.random.default_rng(11)
X = RANDOM.standard_normal((4, 3)).astype(np.float32)
WEIGHTS = {
    "w": RANDOM.standard_normal((5, 3)).astype(np.float32),
    "b": np.zeros(5, np.float32),
    "v": RANDOM.standard_normal((1, 5)).astype(np.float32),
}
NETWORK = "h = Gemm<transB = 1>(x, w, b) a = Tanh(h) y = Gemm<transB = 1>(a, v)"


def test_initialisers_are_trained():
    f = load_function(model(NETWORK, WEIGHTS, x="float[N,3]"))
    weights = {variable.name: variable for variable in f.variables}
    assert set(weights) == set(WEIGHTS)
    f.set_optimizer(tp.optimizers.SGD(lr=0.05))
    first = f(X).sum()
    for _ in range(5):
        f.value_and_grad(X)
        f.update()
    assert f(X).sum() < first
    assert all(np.any(variable.value != WEIGHTS[name]) for name, variable in weights.items())


def test_gradients_of_inputs_and_initialisers():
    f = load_function(model(NETWORK, WEIGHTS, x="float[N,3]"))
    _, (dx,) = f.value_and_grad(X)
    slope = (1 - np.tanh(X @ WEIGHTS["w"].T) ** 2) * WEIGHTS["v"]
    np.testing.assert_allclose(dx, slope @ WEIGHTS["w"], rtol=1e-5, atol=1e-6)
    found = {variable.name: variable.grad for variable in f.variables}
    np.testing.assert_allclose(found["w"], slope.T @ X, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["b"], slope.sum(0), rtol=1e-5, atol=1e-6)


def test_weights_may_stay_as_they_are():
    f = load_function(model(NETWORK, WEIGHTS, x="float[N,3]"), trainable=False)
    with pytest.raises(GraphError, match="reads no trainable variable"):
        f.set_optimizer(tp.optimizers.SGD(lr=0.05))


def test_an_embedding_is_a_weight_and_a_constant_is_none():
    body = "half = Constant<value_float = 0.5>() r = Gather(table, i) y = Mul(r, half)"
    table = RANDOM.standard_normal((6, 2)).astype(np.float32)
    f = load_function(model(body, {"table": table}, i="int32[N,3]"))
    assert [variable.name for variable in f.variables] == ["table"]
    i = np.array([[0, 5, 5]], np.int32)
    np.testing.assert_array_equal(f(i), table[i] / 2)
    f.value_and_grad(i)
    np.testing.assert_array_equal(f.variables[0].grad, [[0.5, 0.5], *[[0, 0]] * 4, [1, 1]])


def test_a_weight_that_meets_a_constant_is_still_trained():
    body = "two = Constant<value_float = 2.0>() w = Mul(s, two) y = Mul(x, w)"
    f = load_function(model(body, {"s": np.float32([1, 2, 3])}, x="float[N,3]"))
    f.value_and_grad(X)
    np.testing.assert_allclose(f.variables[0].grad, 2 * X.sum(0), rtol=1e-6)


def test_an_initialiser_that_meets_sizes_is_a_number():
    """The factor of an enlargement: sizes times 2 are sizes."""
    body = "s = Shape(x) f = Cast<to = 1>(s) m = Mul(f, k) i = Cast<to = 7>(m) y = Expand(c, i)"
    f = load_function(model(body, {"k": np.float32([1, 2]), "c": np.float32([[7]])}, x="float[N,3]"))
    np.testing.assert_array_equal(f(X), np.full((4, 6), 7))


def test_outputs_that_are_inputs_and_initialisers():
    f = load_function(model("y = Neg(x) z = Identity(y)", WEIGHTS, "x b y z", x="float[N,3]"))
    found = f(X)
    for result, wanted in zip(found, [X, WEIGHTS["b"], -X, -X], strict=True):
        np.testing.assert_array_equal(result, wanted)


def test_scalars():
    found = run("a = Add(x, z) y = Exp(a)", x=np.array(0.5, np.float32), z=np.array(1, np.float32))
    assert np.shape(found) == ()
    np.testing.assert_allclose(found, np.exp(1.5), rtol=1e-6)


def test_optional_inputs_and_outputs_may_be_left_out():
    labels = np.array([0, 2, 1, 1])
    loss = run("y = SoftmaxCrossEntropyLoss(x, t)", x=X, t=labels)
    both = run('y, l = SoftmaxCrossEntropyLoss(x, t, "")', outputs="y l", x=X, t=labels)
    np.testing.assert_allclose(loss, both[0], rtol=1e-6)
    np.testing.assert_array_equal(run('y = Clip(x, "", m)', {"m": np.float32(0)}, x=X), np.minimum(X, 0))


# ---- refusals: the reader has found names and numbers of inputs in order (test_model.py), the importer does not rely on it


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Node("Relu", "r", ("z",), ("y",)), "'r' \\(Relu\\): expected inputs that come before it, got 'z'"),
        (Node("Relu", "r", ("x",), ("x",)), "outputs with names of their own, got 'x'"),
        (Node("Relu", "r", ("x",), ("y", "z")), "at most 1 outputs, got output 'z'"),
        (Node("Relu", "r", ("x", "x"), ("y",)), "the inputs that the operator has, got 2 inputs"),
        (Node("Add", "a", ("x", ""), ("y",)), "'a' \\(Add\\): expected input 1, got none"),
        (Node("Relu", "r", ("x",), ("y",), {"alpha": 1.0}), "attributes that Relu has here, got alpha: leave them out"),
        (Node("Concat", "c", ("x", "x"), ("y",)), "an axis, got none"),
        (
            Node("Gelu", "g", ("x",), ("y",), domain="com.microsoft"),
            "'g': expected an operator .* got Gelu of com.microsoft",
        ),
        (
            Node("Softmax", "s", ("x",), ("y",), {"axis": "last"}),
            "inputs and attributes that fit together, got ValueError",
        ),
        (
            Node("Reshape", "r", ("x", "x"), ("y",)),
            "input 1 to be known .* got the tensor 'x': give it as an initialiser",
        ),
        (Node("Relu", "r", ("long",), ("y",)), "axes of at most 67108864 elements, got 'long'"),
    ],
)
def test_refusals(node, message):
    importer = Importer({"x": tp.placeholder((4, 3)), "long": tp.placeholder((2**30,))}, None)
    with pytest.raises(GraphError, match=message):
        importer.run((node,))
    assert "y" not in importer.values


def test_an_output_that_nothing_gives():
    with pytest.raises(GraphError, match="'y': expected a node that gives it, got none"):
        Importer({}, None).tensor("y")
