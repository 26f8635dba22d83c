"""`tp.gradients`: gradients of formulas as formulas, with and without a trace, inside a layer, and what it refuses."""

import numpy as np
import pytest
from traced import evaluate, run

import tapeprop as tp
from tapeprop import LayerGraph, LayerNode, ops
from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.ir import Constant, Dim, Input, Parameter, Tensor, Trace, recording
from tapeprop.layers import Activation, Layer


def leaf(*shape, dtype="float64"):
    return Tensor(shape, dtype, source=Input(0))


def test_hessian_vector_product():
    x, vector = leaf(2), leaf(2)
    a, b = x[0], x[1]
    y = (1 - a) ** 2 + 100 * (b - a * a) ** 2  # Rosenbrock 1960
    (slope,) = tp.gradients(y, x)
    (product,) = tp.gradients(slope, x, seeds=vector)
    at, v = np.array([0.5, -0.3]), np.array([2.0, 3.0])
    hessian = np.array([[2 - 400 * (at[1] - 3 * at[0] ** 2), -400 * at[0]], [-400 * at[0], 200.0]])
    np.testing.assert_allclose(evaluate([product], {x: at, vector: v})[0], hessian @ v, rtol=1e-14)


def test_derivatives_of_any_order():
    x = leaf()
    y = ops.sin(x)
    for expected in (np.cos, lambda t: -np.sin(t), lambda t: -np.cos(t), np.sin, np.cos):
        (y,) = tp.gradients(y, x)
        np.testing.assert_allclose(evaluate([y], {x: np.array(0.7)})[0], expected(0.7), rtol=1e-14)


def test_seeds_of_every_kind():
    x, flow = leaf(3), leaf(3)
    outputs = [x * 2, x * 3, x * 5, x * 7, x * 11]
    seeds = [10, np.array([1, 2, 3]), flow, None, 0.5]
    values = {x: np.zeros(3), flow: np.array([4.0, 5.0, 6.0])}
    found = evaluate(tp.gradients(outputs, x, seeds), values)[0]
    np.testing.assert_array_equal(found, 20 + 3 * np.array([1, 2, 3]) + 5 * values[flow] + 5.5)
    np.testing.assert_array_equal(evaluate(tp.gradients(x * 2, x, [1, 2, 3]), values)[0], [2, 4, 6])
    np.testing.assert_array_equal(evaluate(tp.gradients(x * 2, x), values)[0], [2, 2, 2])


def test_an_output_that_is_listed_twice_counts_twice():
    x = leaf(2)
    y = x * 3
    assert evaluate(tp.gradients([y, y], [x, x], [1, np.array([1, 5])]), {x: np.zeros(2)})[1].tolist() == [6, 18]


def test_inputs_may_be_results_and_outputs_themselves():
    x = leaf(2)
    inner = x * x
    y = ops.sum(inner * 5)
    to_x, to_inner, to_y = evaluate(tp.gradients(y, [x, inner, y]), {x: np.array([1.0, 2.0])})
    assert (to_x.tolist(), to_inner.tolist(), to_y.tolist()) == ([10, 20], [5, 5], 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_influence_the_gradient_is_zero(dtype):
    x, other = leaf(2, dtype=dtype), leaf(4, 3, dtype=dtype)
    for y in (x * 2, ops.stop_gradient(other) * x[0], x * (other[0, 0] > 0)):
        (found,) = tp.gradients(y, other)
        assert (found.shape, found.dtype) == ((4, 3), dtype)
        assert not evaluate([found], {x: np.ones(2), other: np.ones((4, 3))})[0].any()
        tp.gradients(found, other)


def test_numbers_take_the_dtype_of_the_tensors():
    x = leaf(3, dtype="float32")
    y = ops.maximum(0.0, x) + 2 * x**3 - 1 / (2 + x) + ops.where(x > 0, 1.0, x) + np.float64(2) * x
    for _ in range(3):
        (y,) = tp.gradients(y, x, 2.0)
        assert y.dtype == "float32"
    y32, y64 = leaf(dtype="float32"), leaf()
    found = tp.gradients([y32 * y32, ops.cast(y32, "float64") * y64], [y32, y64])
    assert [g.dtype for g in found] == ["float32", "float64"]


def test_a_number_of_another_dtype_has_a_gradient_of_that_dtype():
    x, rate = leaf(3, dtype="float32"), leaf()  # as hyper-parameters stand beside weights
    (y,) = ops.elementwise.compute(lambda a, b: a * b * b, x, rate, dtype="float32")
    values = {x: np.array([1, 2, 3], np.float32), rate: np.array(3.0)}
    (slope,) = tp.gradients(y, rate)
    (curvature,) = tp.gradients(slope, rate)
    assert (slope.dtype, curvature.dtype) == ("float64", "float64")
    assert [float(a) for a in evaluate([slope, curvature], values)] == [36, 12]


def test_open_sizes():
    n = Dim.symbol("N")
    x, w, unused = leaf(n, 3), leaf(3), leaf(n)
    (slope,) = tp.gradients(ops.mean((x * w) ** 3, 1), x)
    assert [g.shape for g in tp.gradients(slope, [x, w, unused])] == [(n, 3), (3,), (n,)]
    with pytest.raises(ShapeError, match=r"seed of shape \(N, 3\) for output 0, got \(2, 3\)"):
        tp.gradients(x * w, w, np.ones((2, 3)))


class Critic(Layer):
    """The penalty of Gulrajani et al. 2017 on the slope of a score, for each sample: (N, 3) -> (N, 1)."""

    def __init__(self):
        self.weight = self.parameter((3,), "normal", name="weight")

    def trace(self, x):
        score = ops.sum((x * self.weight) ** 3)
        (slope,) = tp.gradients(score, x)
        return (ops.sqrt(ops.sum(slope**2, 1, keepdims=True)) - 1) ** 2


def test_gradient_penalty_in_a_graph():
    before, node = LayerNode(Activation.LeakyReLU(0.5)), LayerNode(Critic())
    graph = LayerGraph({before: [node], node: []}, before, node, seed=0).build(dtype="float64")
    x = np.random.default_rng(0).standard_normal((5, 3))
    assert tp.gradcheck(graph, x) < 1e-7
    weight = node.layer.weight.value
    slope = 3 * weight * (np.where(x > 0, x, 0.5 * x) * weight) ** 2
    np.testing.assert_allclose(graph(x), (np.sqrt((slope**2).sum(1, keepdims=True)) - 1) ** 2, rtol=1e-12)


class WeightPenalty(Layer):
    """x plus what a step along the gradient of sum((x w)^2) by w would change."""

    def __init__(self):
        self.weight = self.parameter((3,), "ones", name="weight")

    def trace(self, x):
        (slope,) = tp.gradients(ops.sum((x * self.weight) ** 2), self.weight)
        return x + slope


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_of_a_layer(dtype):
    x = np.array([[1.0, 2.0, 3.0]])
    found = run(WeightPenalty(), [x], dtype=dtype)
    np.testing.assert_allclose(found.outputs[0], x + 2 * x**2)
    np.testing.assert_allclose(found.inputs[0], 1 + 4 * x)
    assert found.inputs[0].dtype == dtype


def test_the_instructions_bear_the_name_of_the_node():
    with recording(Trace("float32", True)) as trace:
        trace.node = "mine"
        x = trace.input(0, (2, 3))
        (slope,) = tp.gradients(ops.sum(ops.sin(x)), x)
    assert slope.producer.node == "mine"


CONSTANT = Tensor((2,), "float64", source=Constant(np.ones(2)))
X, WHOLE = leaf(2), leaf(2, dtype="int64")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((X * 2, CONSTANT), GraphError, r"input 0 is a constant"),
        ((X * 2, [X, CONSTANT]), GraphError, r"input 1 is a constant"),
        ((X * 2, 3.0), GraphError, r"expected a tensor as input 0, got float 3.0"),
        ((np.ones(2), X), GraphError, r"expected a tensor as output 0, got ndarray"),
        (([X, None], X), GraphError, r"expected a tensor as output 1, got NoneType"),
        ((X * 2, WHOLE), DTypeError, r"floating tensor as input 0, got .*int64"),
        ((WHOLE, X), DTypeError, r"floating tensor as output 0, got .*int64"),
        ((X * 2, X, leaf(3)), ShapeError, r"seed of shape \(2,\) for output 0, got \(3,\)"),
        ((X * 2, X, np.ones((1, 2))), ShapeError, r"seed of shape \(2,\) for output 0, got \(1, 2\)"),
        ((X * 2, X, leaf(2, dtype="float32")), DTypeError, r"seed of dtype float64 for output 0, got float32"),
        ((X * 2, X, "ones"), DTypeError, r"as the seed of output 0, got str"),
        ((X * 2, X, np.ones(2) * 1j), DTypeError, r"as the seed of output 0, got ndarray \(complex128\)"),
        (([X * 2, X], X, 1.0), GraphError, r"a list of seeds, one for each of the 2 outputs, got float"),
        (([X * 2, X], X, [1.0]), GraphError, r"one for each of the 2 outputs, got a list of 1"),
        ((ops.accumulate(leaf(1), ops.sum(X)), X), GraphError, r"accumulate has no gradient.*write the formula"),
        ((X * 2, Parameter((2,), np.ones(2))), GraphError, r"used outside a graph"),
    ],
)
def test_what_is_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        tp.gradients(*arguments)
