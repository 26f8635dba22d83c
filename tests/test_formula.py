"""Placeholders, variables, constants and functions: what a formula gives, and what is refused."""

import copy
import pickle
import threading

import numpy as np
import pytest

import tapeprop as tp
from tapeprop import ops
from tapeprop.errors import DTypeError, GraphError, ShapeError, StateError
from tapeprop.optimizers import SGD

# SEMANTICS: y = (sin(x1+1) + cos 2x2) tan(log x3) + (sin(x2+1) + cos 2x1) exp(1 + sin x3) at (.5, .25, .75)
POINT, VALUE = (0.5, 0.25, 0.75), 7.449141132070976
SLOPES = (-9.06565978051224, 1.9783692673873288, 8.575397065065648)


def scalars(names, dtype="float64"):
    return [tp.placeholder((), name=name, dtype=dtype) for name in names]


def published(x1, x2, x3):
    left = (ops.sin(x1 + 1) + ops.cos(2 * x2)) * ops.tan(ops.log(x3))
    return left + (ops.sin(x2 + 1) + ops.cos(2 * x1)) * ops.exp(1 + ops.sin(x3))


def test_the_published_formula():
    inputs = scalars(("x1", "x2", "x3"))
    f = tp.function(outputs=published(*inputs), inputs=inputs)
    assert f(*POINT) == pytest.approx(VALUE, rel=1e-12)
    value, grads = f.value_and_grad(*POINT)
    assert value == pytest.approx(VALUE, rel=1e-12)
    np.testing.assert_allclose(grads, SLOPES, rtol=1e-12)
    assert isinstance(value, float)
    assert value.shape == ()


def test_forward_backward_and_feeds():
    inputs = scalars(("x1", "x2", "x3"))
    middle = inputs[0] * inputs[1]
    f = tp.function(outputs=[middle + inputs[2], ops.sin(middle)], inputs=inputs, watch=[middle])
    first = f.forward({inputs[0]: 2.0, "x2": 3.0, inputs[2]: 1.0})
    assert first == [7.0, pytest.approx(np.sin(6.0))]
    assert f.value(middle) == 6.0
    assert f.value(f.outputs[0]) == 7.0
    np.testing.assert_allclose(f.backward([1.0, None]), [3.0, 2.0, 1.0])
    np.testing.assert_allclose(f.backward([None, 2.0]), np.array([3.0, 2.0, 0.0]) * 2 * np.cos(6.0))
    assert f.gradient(middle) == pytest.approx(2 * np.cos(6.0))
    assert f.gradient(inputs[1]) == pytest.approx(4 * np.cos(6.0))


def test_two_functions_of_one_formula_have_their_own_state():
    (x,) = scalars("x")
    y = x * x
    f, g = tp.function(y, x), tp.function(y, x)
    assert (f.forward(3.0), g.forward(5.0)) == (9.0, 25.0)
    assert (f.backward(), g.backward()) == (6.0, 10.0)


def test_arrays_broadcast_from_either_side_and_batches_are_open():
    x = tp.placeholder((None, 3), name="x", dtype="float64")
    scale = np.array([1.0, 2.0, 3.0])
    f = tp.function(scale * x + x * scale - 1 / x, x)
    rng = np.random.default_rng(0)
    for batch in (2, 5):
        given = rng.uniform(1, 2, (batch, 3))
        value, slope = f.value_and_grad(given)
        np.testing.assert_allclose(value, 2 * scale * given - 1 / given, rtol=1e-14)
        np.testing.assert_allclose(slope, 2 * scale + 1 / given**2, rtol=1e-14)
    assert f.cache_info().size == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_take_the_dtype_around_them(dtype):
    x = tp.placeholder((2, 3), name="x", dtype=dtype)
    matrix, whole, labels = np.arange(12.0).reshape(3, 4), np.array([1, 2, 3, 4]), np.array([3, 0])
    logits = ops.matmul(x, matrix) * whole + tp.constant([0.5] * 4)
    rows = ops.concat([ops.take(logits, np.array([1])), np.ones((1, 4))], axis=0)
    f = tp.function([ops.softmax_cross_entropy(logits, labels), rows], x)
    given = np.array([[0.1, 0.2, 0.3], [0.3, 0.1, -0.2]])
    loss, found = f(given)
    z = given @ matrix * whole + 0.5
    expected = np.mean(np.log(np.exp(z).sum(1)) - z[[0, 1], labels])
    assert loss.dtype == found.dtype == dtype
    tolerance = 1e-12 if dtype == "float64" else 1e-5  # a few roundings of sums of three and four
    assert loss == pytest.approx(expected, rel=tolerance)
    np.testing.assert_allclose(found, [z[1], np.ones(4)], rtol=tolerance)


def test_open_sizes_enter_reshape_and_mean():
    x = tp.placeholder((None, 4), name="x", dtype="float64")
    y = tp.placeholder((None, 2, 2), name="y", dtype="float64")
    f = tp.function(ops.mean(ops.reshape(x, (-1, 2, 2)) * y), [x, y])
    a, b = np.arange(12.0).reshape(3, 4), np.ones((3, 2, 2))
    value, (da, db) = f.value_and_grad(a, b)
    assert value == pytest.approx(5.5)
    np.testing.assert_allclose(da, np.full((3, 4), 1 / 12))
    np.testing.assert_allclose(db, a.reshape(3, 2, 2) / 12)


def test_variables_train():
    x, target = (tp.placeholder((None, 2), name=n, dtype="float64") for n in ("x", "target"))
    weight = tp.variable([[0.5, 0.0], [0.0, 0.5]], name="weight", dtype="float64")
    fixed = tp.variable([1.0, 1.0], dtype="float64", trainable=False)
    loss = ops.mean(ops.square(ops.matmul(x, weight) * fixed - target))
    f = tp.function(loss, [x, target])
    with pytest.raises(StateError, match="optimizer"):
        f.update()
    f.set_optimizer(SGD, lr=0.5)
    rng = np.random.default_rng(1)
    a, wanted = rng.standard_normal((32, 2)), np.array([[1.0, -2.0], [0.5, 3.0]])
    before = weight.value.copy()
    f.value_and_grad(a, a @ wanted)
    expected = a.T @ (a @ before - a @ wanted) * 2 / 64
    np.testing.assert_allclose(weight.grad, expected, rtol=1e-10)
    np.testing.assert_array_equal(f.gradient(weight), weight.grad)
    f.update()
    np.testing.assert_allclose(weight.value, before - 0.5 * expected, rtol=1e-10)
    for _ in range(60):
        f.value_and_grad(a, a @ wanted)
        f.update()
    np.testing.assert_allclose(weight.value, wanted, atol=1e-3)
    np.testing.assert_array_equal(fixed.value, [1.0, 1.0])
    weight.assign(np.eye(2))
    assert f(a, a) == pytest.approx(0.0)


def test_value_and_grad_adds_to_what_is_pending_as_backward_does():
    x = tp.placeholder((3,), name="x", dtype="float64")
    w = tp.variable([1.0, 2.0, 3.0], dtype="float64")
    f = tp.function(ops.sum(x * w), x)
    f.value_and_grad([1.0, 1.0, 1.0])
    f.forward([2.0, 0.0, 1.0])
    f.backward()
    np.testing.assert_array_equal(w.grad, [3.0, 1.0, 2.0])
    f.zero_grad()
    np.testing.assert_array_equal(w.grad, [0.0, 0.0, 0.0])


def test_the_rows_are_timed_and_nothing_is_changed():
    x = tp.placeholder((3,), name="x", dtype="float64")
    w = tp.variable([1.0, 2.0, 3.0], dtype="float64")
    f = tp.function(ops.sum(x * w), x)
    f.value_and_grad([1.0, 1.0, 1.0])
    rows = f.profile([5.0, 5.0, 5.0], repeats=3).figures()
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    np.testing.assert_array_equal(w.grad, [1.0, 1.0, 1.0])
    f.value_and_grad([1.0, 1.0, 1.0])
    np.testing.assert_array_equal(w.grad, [2.0, 2.0, 2.0])


def test_a_variable_belongs_to_any_number_of_functions_and_to_layers():
    x = tp.placeholder((2,), name="x", dtype="float64")
    w = tp.variable([1.0, 2.0], name="w", dtype="float64")
    f, g = tp.function(ops.sum(x * w), x), tp.function(ops.sum(x + w), x)
    f.value_and_grad([3.0, 4.0])
    g.value_and_grad([3.0, 4.0])
    np.testing.assert_array_equal(w.grad, [4.0, 5.0])

    class Scaled(tp.layers.Layer):
        def __init__(self):
            self.scale = w

        def trace(self, x):
            return x * self.scale

    node = tp.LayerNode(Scaled(), name="scaled")
    graph = tp.LayerGraph({node: []}, root=node, term=node)
    assert graph.out_shape((3, 2)) == node.out_shape((3, 2)) == (3, 2)
    with refused(DTypeError, "'scaled'", "one floating dtype", "float32, float64"):
        graph.build((None, 2))
    graph.build((None, 2), dtype="float64")
    np.testing.assert_array_equal(graph(np.ones((1, 2))), [[1.0, 2.0]])
    assert list(graph.state_dict()) == ["scaled.scale"]


def test_dropout_draws_in_training_and_the_same_for_one_seed():
    x = tp.placeholder((64,), name="x")
    y = ops.dropout(x, 0.5)
    ones = np.ones(64, np.float32)
    runs = []
    for _ in range(2):
        f = tp.function(y, x, seed=3)
        np.testing.assert_array_equal(f(ones), ones)
        made = [f.forward(ones, is_train=True) for _ in range(2)]
        np.testing.assert_array_equal(f.backward(), made[1])  # the mask of the last forward, scaled
        runs.append(np.stack(made))
    np.testing.assert_array_equal(*runs)
    assert set(np.unique(runs[0])) == {0.0, 2.0}
    assert (runs[0][0] != runs[0][1]).any()


def test_a_network_of_ops():
    x, labels = tp.placeholder((None, 2, 6, 6), name="x"), tp.placeholder((None,), name="labels", dtype="int64")
    rng = np.random.default_rng(0)
    w = tp.variable(rng.standard_normal((4, 2, 3, 3)) * 0.2)
    v = tp.variable(rng.standard_normal((3, 4)) * 0.2)
    h = ops.relu(ops.conv2d(x, w, padding=1))
    logits = ops.matmul(ops.mean(h, (2, 3)), v, transpose_b=True)
    f = tp.function([ops.softmax_cross_entropy(logits, labels), logits], [x, labels])
    image, truth = rng.standard_normal((5, 2, 6, 6)).astype("f"), rng.integers(0, 3, 5)
    f.set_optimizer(SGD, lr=1.0)
    losses = []
    for _ in range(5):
        f.forward(image, truth)
        f.backward([1.0, None])
        f.update()
        losses.append(f(image, truth)[0])
    assert losses == sorted(losses, reverse=True)
    assert f(image[:3], truth[:3])[1].shape == (3, 3)


def long_sum(count, dtype):
    inputs = [tp.placeholder((), dtype=dtype) for _ in range(count)]
    total = inputs[0] * 0.5
    for k, x in enumerate(inputs[1:], 1):
        total = total + x * (0.5 + k)
    return inputs, total


def test_many_scalars_become_vectors():
    inputs, total = long_sum(200, "float64")
    root = ops.tanh(total) * inputs[3]
    f = tp.function([root, total], inputs, watch=[total])
    given = np.random.default_rng(2).uniform(-0.01, 0.01, 200)
    weights = 0.5 + np.arange(200)
    expected = given @ weights
    value, grads = f.value_and_grad(*given.tolist())
    assert value == pytest.approx([np.tanh(expected) * given[3], expected])
    slope = weights * (given[3] / np.cosh(expected) ** 2 + 1)
    slope[3] += np.tanh(expected)
    np.testing.assert_allclose(grads, slope, rtol=1e-10)
    assert f.forward(*given) == value
    np.testing.assert_allclose(f.backward([1.0, None])[:3], slope[:3] - weights[:3], rtol=1e-9)
    assert f.value(total) == value[1]
    assert f.gradient(total) == pytest.approx(given[3] / np.cosh(expected) ** 2)
    assert f.gradient(inputs[0]) == pytest.approx(slope[0] - weights[0], rel=1e-9)
    assert "scalars[" in str(f.tape)


def test_scalars_and_arrays_mix_among_the_inputs():
    inputs, total = long_sum(100, "float64")
    x, n = tp.placeholder((None,), name="x", dtype="float64"), tp.placeholder((), name="n", dtype="int64")
    f = tp.function([ops.sum(x * total) * ops.cast(n, "float64"), total], [x, *inputs, n])
    given = np.random.default_rng(2).uniform(-1, 1, 100)
    weights = 0.5 + np.arange(100)
    (y, again), grads = f.value_and_grad([1.0, 2.0], *given, 3)
    assert y == pytest.approx(9 * again)
    assert again == pytest.approx(weights @ given)
    np.testing.assert_allclose(grads[0], [3 * again, 3 * again])
    np.testing.assert_allclose(grads[1:-1], 10 * weights)


def refused(error, *words):
    return pytest.raises(error, match=".*".join(words))


def test_what_is_refused():
    x, y = scalars("xy")
    f = tp.function(x * y, [x, y])
    z = tp.placeholder((None, 2), name="z", dtype="float64")
    t = tp.placeholder((None, 2), name="t", dtype="float64")
    with refused(GraphError, "expected 2 inputs", "'x', 'y'", "got 1"):
        f(1.0)
    with refused(GraphError, "'y'", "missing"):
        f({x: 1.0})
    with refused(GraphError, "'x', 'y' alone", "got 'z'"):
        f.forward({x: 1.0, y: 2.0, z: 3.0})
    with refused(GraphError, "every placeholder", "'y'"):
        tp.function(x * y, [x])
    with refused(GraphError, "placeholders as inputs", "constant"):
        tp.function(x * 2, [tp.constant(2.0)])
    with refused(GraphError, "tensors as outputs"):
        tp.function("x", [x])
    with refused(GraphError, "at least one output"):
        tp.function([], [x])
    single = tp.placeholder((), "single")
    with refused(DTypeError, "one floating dtype", "'x'", "'single'"):
        tp.function([x, single], [x, single])
    with refused(ShapeError, "'x'", r"expected shape \(\)", r"got \(2,\)"):
        f([1.0, 2.0], 3.0)
    g = tp.function(z + t, [z, t])
    with refused(ShapeError, "'z'", r"\(N, 2\)", r"got \(4, 3\)"):
        g(np.zeros((4, 3)), np.zeros((4, 2)))
    with refused(ShapeError, "'t'", "batch of 4", "'z'", "got 5"):
        g(np.zeros((4, 2)), np.zeros((5, 2)))
    with refused(DTypeError, "'z'", "real numbers"):
        g(np.zeros((4, 2), complex), np.zeros((4, 2)))
    k = tp.placeholder((), "k", "int64")
    with refused(DTypeError, "'k'", "whole numbers"):
        tp.function(k, k)(0.5)
    with refused(ShapeError, "sizes >= 1"):
        tp.placeholder((0, 2))
    with refused(DTypeError, "placeholder", "float32", "got 'float16'"):
        tp.placeholder((), dtype="float16")
    with refused(DTypeError, "variable", "real numbers"):
        tp.variable(["a"])
    assert f(2.0, 3.0) == 6.0  # as it was


def test_a_size_that_would_have_to_be_known():
    x = tp.placeholder((None, 3), name="x", dtype="float64")
    with refused(ShapeError, "add", "N == 4", "instead of None"):
        x + np.ones((4, 3))
    assert tp.function(x + np.ones((1, 3)), x)(np.zeros((4, 3))).shape == (4, 3)


def test_a_tensor_has_no_truth():
    x = tp.placeholder((), name="x")
    with pytest.raises(TypeError, match=r"truth of Tensor.*ops.where"):
        assert x < 1


def test_a_function_without_inputs_and_outputs_that_are_leaves():
    w = tp.variable([1.0, 2.0], dtype="float64")
    x = tp.placeholder((), name="x", dtype="float64")
    f = tp.function(ops.sum(w * w), [])
    assert f() == 5.0
    assert f.value_and_grad() == (5.0, [])
    np.testing.assert_array_equal(w.grad, [2.0, 4.0])
    g = tp.function([x, 2.0, w, x], x, watch=[x])
    (first, second, third, fourth), slope = g.value_and_grad(3.0)
    assert (first, second, fourth, slope) == (3.0, 2.0, 3.0, 2.0)
    np.testing.assert_array_equal(third, [1.0, 2.0])
    g.forward(3.0)
    assert g.backward([1.0, 5.0, None, 1.0]) == g.gradient(x) == 2.0


def test_an_output_that_is_asked_for_twice_counts_twice():
    x = tp.placeholder((2,), name="x", dtype="float64")
    y = x * x
    f = tp.function([y, y, ops.sum(y)], x)
    _, slope = f.value_and_grad([1.0, 3.0])
    np.testing.assert_array_equal(slope, [6.0, 18.0])
    f.forward([1.0, 3.0])
    np.testing.assert_array_equal(f.backward(), slope)


def test_the_wrong_one_of_many_scalars_is_named():
    inputs, total = long_sum(80, "float32")
    f = tp.function(total, inputs)
    values = [0.0] * 80
    for bad, error in ((1j, DTypeError), ("text", DTypeError), ([1.0, 2.0], ShapeError)):
        given = list(values)
        given[7] = bad
        with refused(error, repr(inputs[7].name)):
            f(*given)
    assert f(*values) == 0.0


def test_gradients_that_are_not_there():
    (x,) = scalars("x")
    middle, two = x * x, tp.constant(2.0, dtype="float64")
    f = tp.function(middle * two, x, watch=[])
    with refused(StateError, "forward"):
        f.backward()
    f.forward(3.0)
    with refused(StateError, "backward"):
        f.gradient(x)
    with refused(StateError, "not watched", "watch="):
        f.value(middle)
    with refused(GraphError, "constant", "placeholder or a variable"):
        f.gradient(two)
    with refused(ShapeError, "gradient of the output's shape"):
        f.backward([1.0, 2.0])


def test_functions_of_one_formula_run_in_threads_at_once():
    x = tp.placeholder((4096,), name="x", dtype="float64")
    y = ops.sum(ops.exp(ops.sin(x)))
    functions = [tp.function(y, x, workers=1) for _ in range(2)]
    given = [np.full(4096, 0.1), np.full(4096, 0.7)]
    expected = [f.value_and_grad(a)[0] for f, a in zip(functions, given, strict=True)]
    found: list[list[float]] = [[], []]

    def run(k):
        found[k] += [functions[k].value_and_grad(given[k])[0] for _ in range(50)]

    threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [set(values) for values in found] == [{expected[0]}, {expected[1]}]


def test_another_threads_forward_is_not_taken_for_ones_own():
    x = tp.placeholder((), name="x", dtype="float64")
    f = tp.function(x * x, x)
    f.forward(3.0)
    thread = threading.Thread(target=f.forward, args=(5.0,))
    thread.start()
    thread.join()
    for ask in (f.backward, lambda: f.value(f.outputs[0])):
        with refused(StateError, "another thread"):
            ask()
    f.forward(3.0)
    assert (f.backward(), f.value(f.outputs[0]), f.gradient(x)) == (6.0, 9.0, 6.0)


def test_outputs_and_watched_tensors_of_the_other_floating_dtype():
    x = tp.placeholder((3,), name="x")
    wide = ops.cast(x, "float64") * 3.0
    f = tp.function([wide, ops.cast(ops.sum(wide), "float32")], x, watch=[wide])
    (value, total), slope = f.value_and_grad([1.0, 2.0, 4.0])
    assert (value.dtype, total, slope.dtype) == ("float64", 21.0, "float32")
    np.testing.assert_array_equal(slope, [6.0, 6.0, 6.0])
    f.forward([1.0, 2.0, 4.0])
    np.testing.assert_array_equal(f.backward([[1.0, 10.0, 100.0], 1.0]), [6.0, 33.0, 303.0])
    np.testing.assert_array_equal(f.gradient(wide), [2.0, 11.0, 101.0])


def test_feeds_and_settings_that_are_refused():
    x, other = tp.placeholder((), "x"), tp.placeholder((), "x")
    f = tp.function(x * other, [x, other])
    with refused(GraphError, "name of one input", "'x'", "that of 2", "give the placeholder"):
        f({"x": 1.0, other: 2.0})
    assert f({x: 2.0, other: 3.0}) == 6.0
    y = tp.placeholder((), "y")
    g = tp.function(y * 2, y, watch=y)
    with refused(GraphError, "one value for each input", "two for 'y'"):
        g({"y": 1.0, y: 2.0})
    with refused(GraphError, "every placeholder", "'y'"):
        tp.function(x, x, watch=[y])
    for workers in (0, -1, 1.5, "two"):
        with refused(GraphError, "workers", "int >= 1"):
            tp.function(x, x, workers=workers)
    with refused(GraphError, "trainable variable", "tapeprop.variable"):
        f.set_optimizer(SGD(lr=0.1))
    with refused(StateError, "not watched"):
        g.gradient(tp.variable(1.0))
    small, byte = tp.placeholder((), "small", "int32"), tp.placeholder((2,), "byte", "uint8")
    h = tp.function([small, byte], [small, byte])
    with refused(DTypeError, "'small'", "int32 holds", str(2**40)):
        h(2**40, [1, 2])
    with refused(DTypeError, "'byte'", "uint8 holds", "-1"):
        h(1, [255, -1])
    assert h(-(2**31), [0, 255])[0] == -(2**31)


def test_a_function_is_not_copied_and_a_variable_is():
    w = tp.variable([1.0, 2.0], name="w")
    f = tp.function(ops.sum(w), [])
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"cannot be copied or pickled.*tapeprop\.function"):
            way(f)
    for other in (copy.deepcopy(w), pickle.loads(pickle.dumps(w))):
        other.assign([5.0, 6.0])
        np.testing.assert_array_equal(w.value, [1.0, 2.0])
        assert tp.function(ops.sum(other), [])() == 11.0


def test_a_layer_does_not_read_a_formula_outside_of_its_graph():
    w = tp.variable([1.0, 2.0], name="w")
    outside = w * 2
    assert tp.function(outside, [])().tolist() == [2.0, 4.0]
    for leaf in (tp.placeholder((2,), name="p"), outside):
        node = tp.LayerNode(tp.layers.Lambda(lambda x, leaf=leaf: x * leaf), name="scaled")
        graph = tp.LayerGraph({node: []}, root=node, term=node)
        with refused(GraphError, leaf.name or "w", "formula outside", "inside trace"):
            graph.build((None, 2))(np.ones((1, 2)))


def test_watched_scalars_cut_a_formula_into_many_phases():
    inputs = scalars("ab")
    total, watched = inputs[0], []
    for k in range(300):
        total = ops.sin(total + inputs[k % 2])
        watched.append(total)
    f = tp.function(total, inputs, watch=watched)
    f.forward(0.3, 0.4)
    value, expected = 0.3, []
    for k in range(300):
        value = np.sin(value + (0.3, 0.4)[k % 2])
        expected.append(value)
    np.testing.assert_allclose([f.value(t) for t in watched], expected, rtol=1e-12)  # 300 roundings
    f.backward()
    assert f.gradient(watched[-1]) == 1.0
    assert f.gradient(watched[-2]) == pytest.approx(np.cos(expected[-2] + 0.4), rel=1e-12)


def test_the_dtype_of_a_function_without_floating_inputs():
    k = tp.placeholder((2,), "k", "int64")
    table = tp.constant([1.0, 1 / 3], dtype="float64")
    row = tp.function(ops.take(table, k), k)([1, 0])
    assert row.dtype == "float64"
    np.testing.assert_array_equal(row, [1 / 3, 1.0])
    found = tp.function([tp.constant([1.0, 2.0]), 3.0], [])()
    assert found[0].dtype == found[1].dtype == "float32"
    assert found[1] == 3.0
