"""`PythonLayer`: NumPy between native rows, in every way a graph runs, and what its author can get wrong."""

import copy
import pickle
import threading

import numpy as np
import pytest

import tapeprop as tp
from tapeprop import ops
from tapeprop.errors import DTypeError, GraphError, NotBuiltError, NumericsError, ShapeError, StateError
from tapeprop.layers import BatchNorm1D, Conv2D, Dense, Identity, Lambda, Layer, PythonLayer

RNG = np.random.default_rng(11)
SMOOTH = 1e-6  # central differences of a smooth function in float64


class Waves(PythonLayer):
    """y = sin(x) w + b."""

    def __init__(self, in_features):
        self.in_features = in_features
        self.weight = self.parameter((in_features,), "ones", name="weight")
        self.bias = self.parameter((in_features,), "zeros", name="bias")

    def forward(self, x):
        self.x = x
        return np.sin(x) * self.weight.value + self.bias.value

    def backward(self, d_out):
        gradients = {"weight": (d_out * np.sin(self.x)).sum(0), "bias": d_out.sum(0)}
        return d_out * np.cos(self.x) * self.weight.value, gradients


class WavesInOps(Layer):
    """The same, native."""

    def __init__(self, in_features):
        self.weight = self.parameter((in_features,), "ones", name="weight")
        self.bias = self.parameter((in_features,), "zeros", name="bias")

    def trace(self, x):
        return ops.sin(x) * self.weight + self.bias


class Square(PythonLayer):
    """y = x ** 2; counts its calls, and spoils what it was given."""

    def __init__(self):
        self.calls = [0, 0]

    def forward(self, x):
        self.calls[0] += 1
        self.x = x.copy()
        y = x**2
        x[...] = np.nan
        return y

    def backward(self, d_out):
        self.calls[1] += 1
        dx = 2 * self.x * d_out
        d_out[...] = np.nan
        return dx


class Pairs(PythonLayer):
    """The sums of neighbours: (N, C) -> (N, C // 2)."""

    def out_shape(self, in_shape):
        return (in_shape[0], in_shape[1] // 2)

    def forward(self, x):
        return x.reshape(len(x), -1, 2).sum(-1)

    def backward(self, d_out):
        return np.repeat(d_out, 2, axis=1)


def chain(*layers, shape=(None, 3), dtype="float64", graph_seed=0, **options):
    nodes = [tp.LayerNode(layer, name=f"n{i}") for i, layer in enumerate(layers)]
    edges = {node: [*nodes[i + 1 : i + 2]] for i, node in enumerate(nodes)}
    graph = tp.LayerGraph(edges, root=nodes[0], term=nodes[-1], seed=graph_seed)
    return graph.build(shape, dtype=dtype, **options)


def ready(*layers, **options):
    graph = chain(*layers, **options)
    graph.set_optimizer(tp.optimizers.Adam(lr=0.01))
    return graph


def data(count=10):
    return RNG.standard_normal((count, 3)), RNG.integers(0, 2, count)


# ---- what it computes


def test_gradients_of_input_and_parameters_equal_central_differences():
    graph = chain(Dense(3, 4), Waves(4), Pairs(), Square())
    assert tp.gradcheck(graph, RNG.standard_normal((5, 3))) < SMOOTH
    assert tp.gradcheck(graph, RNG.standard_normal((2, 3))) < SMOOTH  # another batch of the same lowering


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_trains_as_its_native_twin_does(dtype):
    X, y = data()
    loss, rtol = tp.losses.CrossEntropy(), 1e-4 if dtype == "float32" else 1e-10  # sin of NumPy is not the tape's
    python, native = (ready(Dense(3, 4), layer, Dense(4, 2), dtype=dtype) for layer in (Waves(4), WavesInOps(4)))
    for graph in (python, native):
        graph.fit(X, y, loss=loss, epochs=3, batch_size=4, verbose=0, seed=1)  # 4 + 4 + 2 samples: two plans
        graph.fit(X, y, loss=loss, epochs=2, batch_size=2, accumulate=2, verbose=0, seed=1)
        graph.train_step(X, y, loss)
        graph.forward(X, is_train=True)
        graph.backward()
        graph.update()
    for name, value in native.state_dict().items():
        np.testing.assert_allclose(python.state_dict()[name], value, rtol=rtol, atol=rtol)
        assert python.state_dict()[name].dtype == dtype
    np.testing.assert_allclose(python.predict(X, batch_size=4), native.predict(X), rtol=rtol, atol=rtol)
    found, expected = (graph.evaluate(X, y, loss=loss) for graph in (python, native))
    assert found == pytest.approx(expected, rel=rtol)


def test_a_step_equals_its_parts_and_any_number_of_workers_gives_the_same_bits():
    X, y = data()
    loss, bits = tp.losses.CrossEntropy(), set()
    for workers in (1, 3):
        graph, apart = (ready(Dense(3, 4), Waves(4), Dense(4, 2), workers=workers) for _ in range(2))
        graph.train_step(X, y, loss)
        out = apart.forward(X, is_train=True)
        apart.backward(loss.grad(y, out))
        apart.update()
        for state in (graph.state_dict(), apart.state_dict()):
            bits.add(b"".join(value.tobytes() for value in state.values()))
    assert len(bits) == 1


def test_the_arrays_it_gets_are_its_own():
    layer = Square()
    graph = chain(Identity(), layer, Identity())
    X, d = RNG.standard_normal((4, 3)), RNG.standard_normal((4, 3))
    before, flow = X.copy(), d.copy()
    for _ in range(2):
        np.testing.assert_array_equal(graph(X), before**2)
        np.testing.assert_array_equal(graph.predict(X), before**2)
        np.testing.assert_array_equal(graph.backward(d), 2 * before * flow)
        np.testing.assert_array_equal(graph.backward(d), 2 * before * flow)  # again after one forward
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(d, flow)


def test_what_it_returns_is_copied():
    kept = np.ones((2, 3))

    class Same(PythonLayer):
        def forward(self, x):
            return kept

        def backward(self, d_out):
            return kept

    graph = chain(Same(), Lambda(lambda x: x * 2.0))
    graph(np.zeros((2, 3)))
    graph.backward()
    np.testing.assert_array_equal(kept, 1)


def test_one_layer_in_several_nodes_keeps_what_each_call_left():
    class Scaled(PythonLayer):
        def __init__(self):
            self.w = self.parameter((), "ones", name="w")

        def forward(self, x):
            self.x, self.size = x, x.shape[-1]
            return np.sin(x) * self.w.value

        def backward(self, d_out):
            assert self.size == self.x.shape[-1]
            return d_out * np.cos(self.x) * self.w.value, {"w": (d_out * np.sin(self.x)).sum()}

    layer = Scaled()
    graph = chain(layer, Dense(3, 2), layer, Dense(2, 3), layer)
    assert tp.gradcheck(graph, RNG.standard_normal((4, 3))) < SMOOTH


def test_counters_that_forward_assigns_go_on():
    class Counting(PythonLayer):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * 1.0

        def backward(self, d_out):
            self.seen = self.calls
            return d_out

    layer = Counting()
    graph = chain(layer, layer)
    for k in (1, 2):
        graph(np.ones((1, 3)))
        assert layer.calls == 2 * k
        graph.backward()
        assert (layer.calls, layer.seen) == (2 * k, 2 * k - 1)  # the first node's backward comes last


def test_two_graphs_in_two_threads_share_a_layer():
    layer = Waves(3)
    graphs = [chain(Identity(), layer), chain(layer, Identity())]
    X = [RNG.standard_normal((n, 3)) for n in (4, 7)]
    wrong = []

    def run(graph, x):
        for _ in range(30):
            graph(x)
            if not np.allclose(graph.backward(), np.cos(x)):
                wrong.append(x.shape)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(graphs, X, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_is_train_says_which_behaviour_is_wanted():
    class Training(PythonLayer):
        def forward(self, x):
            return x * (2.0 if self.is_train else 1.0)

        def backward(self, d_out):
            return d_out * (2.0 if self.is_train else 1.0)

    layer = Training()
    graph = chain(layer)
    ones = np.ones((2, 3))
    for training, factor in ((True, 2.0), (False, 1.0)):
        np.testing.assert_array_equal(graph(ones, is_train=training), factor * ones)
        np.testing.assert_array_equal(graph.predict(ones), ones)
        np.testing.assert_array_equal(graph.backward(ones), factor * ones)
    assert layer.is_train is False


def test_several_outputs_and_a_backward_from_some_of_them():
    dense, square = tp.LayerNode(Dense(3, 4), name="dense"), tp.LayerNode(Square(), name="square")
    waves = tp.LayerNode(Waves(4), name="waves")
    graph = tp.LayerGraph({dense: [square, waves]}, root=dense, term=[square, waves], seed=0)
    graph.build((None, 3), dtype="float64")
    X = RNG.standard_normal((4, 3))
    assert tp.gradcheck(graph, X) < SMOOTH
    graph(X)
    before = list(square.layer.calls)
    graph.backward([None, np.ones((4, 4))])
    assert square.layer.calls == before  # no gradient goes through it
    together = graph.backward([np.ones((4, 4))] * 2)
    apart = graph.backward([np.ones((4, 4)), None]) + graph.backward([None, np.ones((4, 4))])
    np.testing.assert_allclose(together, apart, rtol=1e-13)


def test_in_a_checkpointed_node_forward_is_called_once():
    class Noise(PythonLayer):
        """Gives something else every time, so that calling it again would show."""

        def __init__(self):
            self.random = np.random.default_rng(3)
            self.calls = [0]

        def forward(self, x):
            self.calls[0] += 1
            self.mask = self.random.standard_normal(x.shape)
            return x * self.mask

        def backward(self, d_out):
            return d_out * self.mask

    results = []
    for checkpoint in (False, True):
        layer = Noise()
        node = tp.SequentialNode(
            Lambda(ops.tanh), layer, Lambda(lambda x: ops.sin(x) * x), name="node", checkpoint=checkpoint
        )
        graph = tp.LayerGraph({node: []}, root=node, term=node).build((None, 3), dtype="float64")
        results.append(graph(np.full((2, 3), 0.5), is_train=True))
        results.append(graph.backward())
        assert layer.calls == [1]
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[3])


def test_inside_a_nested_graph_a_sequential_and_beside_open_sizes():
    inner = tp.LayerNode(tp.layers.Sequential(Waves(4), Pairs()), name="inner")
    block = tp.LayerNode(tp.LayerGraph({inner: []}, root=inner, term=inner), name="block")
    dense = tp.LayerNode(Dense(3, 4), name="dense")
    graph = tp.LayerGraph({dense: [block], block: []}, root=dense, term=block, seed=0)
    assert graph.out_shape((None, 3)) == (None, 2)
    graph.build(dtype="float64")
    assert tp.gradcheck(graph, RNG.standard_normal((4, 3))) < SMOOTH
    nodes = [row["node"] for row in graph.diagnose()]
    assert nodes == ["block.inner.0", "block.inner.1", "block.inner.1", "block.inner.0"]


def test_behind_a_convolution_in_batch_lanes():
    python, native = (
        chain(Conv2D(3, 4, 3), layer, shape=(16, 3, 5, 5), dtype="float32")
        for layer in (Square(), Lambda(lambda x: x * x))
    )
    assert "conv2d_lanes" in str(python.tape)
    X = RNG.standard_normal((16, 3, 5, 5)).astype("float32")
    rtol = 1e-5  # float32; the layout may differ, and with it the order of sums
    np.testing.assert_allclose(python(X), native(X), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(python.backward(), native.backward(), rtol=rtol, atol=rtol)


def test_where_nothing_before_it_is_trained_backward_is_not_called():
    layer = Square()
    graph = ready(layer, Dense(3, 2))
    X, y = data(4)
    graph.train_step(X, y, tp.losses.CrossEntropy())
    assert layer.calls == [1, 0]


def test_a_frozen_layer_keeps_its_parameters():
    graph = ready(Dense(3, 4), Waves(4), Dense(4, 2))
    graph.nodes[1].frozen = True
    before = graph.state_dict()
    X, y = data(4)
    graph.train_step(X, y, tp.losses.CrossEntropy())
    changed = {name for name, value in graph.state_dict().items() if not np.array_equal(value, before[name])}
    assert changed == {"n0.weight", "n0.bias", "n2.weight", "n2.bias"}


def test_zeros_may_be_given_as_none():
    class Stop(PythonLayer):
        def __init__(self):
            self.w = self.parameter((2,), "ones", name="w")

        def forward(self, x):
            return x * 3.0

        def backward(self, d_out):
            return None, {"w": None}

    layer = Stop()
    graph = chain(layer)
    graph(np.ones((2, 3)))
    np.testing.assert_array_equal(graph.backward(), 0)
    np.testing.assert_array_equal(layer.w.grad, 0)


def test_attributes_may_be_edited_between_steps():
    class Times(PythonLayer):
        def __init__(self, factor=2.0):
            self.factor = factor

        def forward(self, x):
            return x * self.factor

        def backward(self, d_out):
            return d_out * self.factor

    layer = Times()
    graph = chain(layer)
    assert graph(np.ones((1, 3))).sum() == 6
    layer.factor = 5.0
    assert graph.built_
    assert graph(np.ones((1, 3))).sum() == 15
    layer.weight = layer.parameter((3,), "ones")  # a parameter is an edit of the structure
    with pytest.raises(NotBuiltError, match="build"):
        graph(np.ones((1, 3)))


# ---- what its author can get wrong


class Given(PythonLayer):
    """Returns what it is told to."""

    def __init__(self, y, dx=None):
        self.y, self.dx = y, dx

    def forward(self, x):
        return self.y(x)

    def backward(self, d_out):
        return self.dx(d_out)


@pytest.mark.parametrize(
    ("y", "error", "text"),
    [
        (lambda x: x[:, :2], ShapeError, r"node 'n1' \(Given\): forward\(\): expected shape \(2, 3\), got \(2, 2\); .*out_shape"),
        (lambda x: x.astype("float32"), DTypeError, r"expected dtype float64, got float32; return array.astype\('float64'\)"),
        (lambda x: x > 0, DTypeError, "expected dtype float64, got bool"),
        (lambda x: None, DTypeError, "expected a NumPy array .* got NoneType; return an array"),
        (lambda x: x.tolist(), DTypeError, "got list"),
    ],
)  # fmt: skip
def test_a_wrong_result_of_forward(y, error, text):
    graph = chain(Identity(), Given(y))
    with pytest.raises(error, match=text):
        graph(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("dx", "error", "text"),
    [
        (lambda d: d.sum(0), ShapeError, r"node 'n0' \(Given\): backward\(\): expected shape \(2, 3\), got \(3,\)"),
        (lambda d: d.astype(int), DTypeError, "expected dtype float64, got int64"),
        (lambda d: (d, {"w": d}), GraphError, r"expected backward\(\) to return dx, got \(dx, {'w': '...'}\)"),
        (lambda d: (d, d, d), GraphError, "got a tuple of 3: ndarray, ndarray, ndarray"),
    ],
)
def test_a_wrong_result_of_backward(dx, error, text):
    graph = chain(Given(lambda x: x, dx))
    graph(np.ones((2, 3)))
    with pytest.raises(error, match=text):
        graph.backward()


def test_a_gradient_that_is_missing():
    class Forgets(Waves):
        def backward(self, d_out):
            return super().backward(d_out)[0]

    graph = chain(Forgets(3))
    graph(np.ones((2, 3)))
    with pytest.raises(GraphError, match=r"return \(dx, {'weight': gradient, 'bias': gradient}\), got ndarray alone"):
        graph.backward()


@pytest.mark.parametrize("shape", [None, (0, 3), (2, "3"), (2, None, None)])
def test_an_out_shape_that_is_none(shape):
    class Odd(PythonLayer):
        def out_shape(self, in_shape):
            return shape

    with pytest.raises(ShapeError, match=r"'n0'.*expected out_shape\(\(N, 3\)\) to give a tuple of sizes >= 1"):
        chain(Odd())


def test_a_method_that_is_missing():
    class Empty(PythonLayer):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty defines no forward\(self, x\)"):
        chain(Empty())(np.ones((1, 3)))


class Fails(PythonLayer):
    """Raises in the given call of forward or backward."""

    def __init__(self, where, call=1):
        self.where, self.left = where, [call]

    def _count(self, where):
        if where == self.where:
            self.left[0] -= 1
            if not self.left[0]:
                raise KeyError("no such thing")

    def forward(self, x):
        self._count("forward")
        return x * 1.0

    def backward(self, d_out):
        self._count("backward")
        return d_out * 1.0


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_exception_reaches_the_caller_and_the_step_does_not_update(where):
    graph = ready(Dense(3, 4), Fails(where), BatchNorm1D(4), Dense(4, 2))
    X, y = data(4)
    before = graph.state_dict()
    loss = tp.losses.CrossEntropy()
    with pytest.raises(KeyError, match="no such thing") as caught:
        graph.train_step(X, y, loss)
    assert caught.value.__notes__ == [f"raised in {where}() of node 'n1' (Fails)"]
    trained = [name for name in before if "running" not in name]
    for name in trained:
        np.testing.assert_array_equal(graph.state_dict()[name], before[name])
    assert not graph.nodes[0].layer.weight.grad.any()
    twin = ready(Dense(3, 4), Identity(), BatchNorm1D(4), Dense(4, 2))
    graph.train_step(X, y, loss)  # goes on as if nothing had been
    twin.train_step(X, y, loss)
    for name in trained:
        np.testing.assert_array_equal(graph.state_dict()[name], twin.state_dict()[name])


def test_gradients_are_as_before_a_backward_that_failed():
    graph = ready(Fails("backward", call=2), Dense(3, 2))
    X = RNG.standard_normal((4, 3))
    graph(X)
    graph.backward()
    before = graph.nodes[1].layer.weight.grad.copy()
    with pytest.raises(KeyError, match="no such thing"):
        graph.backward()
    np.testing.assert_array_equal(graph.nodes[1].layer.weight.grad, before)
    graph.backward()  # the forward still stands
    np.testing.assert_allclose(graph.nodes[1].layer.weight.grad, 2 * before, rtol=1e-14)


class Calling(PythonLayer):
    """The identity; calls a function in between."""

    call = staticmethod(lambda: None)

    def forward(self, x):
        self.call()
        return x

    def backward(self, d_out):
        self.call()
        return d_out


def test_the_graph_that_it_runs_in_is_not_to_be_called_from_it():
    X, y = data(6)
    loss = tp.losses.CrossEntropy()
    graph, twin = ready(Dense(3, 2), Calling()), ready(Dense(3, 2), Calling())
    layer = graph.nodes[1].layer
    calls = [lambda: graph(X), lambda: graph.predict(X), lambda: graph.train_step(X, y, loss), lambda: graph.backward()]
    graph(X)  # so that backward() has what it needs
    for call in calls:
        layer.call = call
        for outer in (lambda: graph.backward(), lambda: graph.predict(X)):
            with pytest.raises(StateError, match="a PythonLayer called the graph that it runs in"):
                outer()

    refused = []

    def caught():
        try:
            graph.predict(X)
        except StateError as error:
            refused.append(error)
        return twin.predict(X)  # another graph may run

    layer.call = caught
    for one in (graph, twin):
        one.train_step(X, y, loss)
    assert len(refused) == 2
    for name, value in twin.state_dict().items():
        np.testing.assert_array_equal(graph.state_dict()[name], value)


def test_an_exception_in_fit_leaves_whole_steps_behind():
    X, y = data(12)
    loss = tp.losses.CrossEntropy()
    graph = ready(Dense(3, 2), Fails("backward", call=3))
    with pytest.raises(KeyError, match="no such thing"):
        graph.fit(X, y, loss=loss, batch_size=4, shuffle=False, verbose=0)
    twin = ready(Dense(3, 2), Identity())
    for k in (0, 4):
        twin.train_step(X[k : k + 4], y[k : k + 4], loss)
    for name, value in twin.state_dict().items():
        np.testing.assert_array_equal(graph.state_dict()[name], value)


def test_a_nan_that_it_makes_is_found():
    graph = chain(Dense(3, 3), Given(lambda x: x * np.nan, lambda d: d), debug_nan=True)
    with pytest.raises(NumericsError, match=r"'n1'.*row 1, python \(forward\), made a NaN"):
        graph(np.ones((2, 3)))


# ---- looking at it, and keeping it


def test_diagnose_lists_it_with_the_reason():
    graph = chain(Dense(3, 3), Square())
    rows = list(graph.diagnose())
    assert [(row["op"], row["node"], row["span"]) for row in rows] == [
        ("python", "n1", "forward"), ("python_grad", "n1", "backward"),
    ]  # fmt: skip
    text = str(graph.diagnose())
    assert "forward() of Square is Python" in text
    assert "2 of 6 instructions leave native code" in text
    assert "python_grad" in str(graph.tape)


def test_diagnose_of_a_graph_that_is_all_native():
    found = chain(Dense(3, 3)).diagnose()
    assert list(found) == []
    assert str(found).endswith("instructions run natively")


def test_rows_are_timed_and_the_state_is_put_back():
    graph = ready(Dense(3, 4), Waves(4), Dense(4, 2))
    before = graph.state_dict()
    X, y = data(4)
    rows = graph.profile(X, y, tp.losses.CrossEntropy(), repeats=3).figures()
    assert {"python", "python_grad"} <= {row.op for row in rows if row.seconds > 0}
    for name, value in graph.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_saved_and_loaded_with_its_class(tmp_path):
    graph = ready(Dense(3, 4), Waves(4))
    X = RNG.standard_normal((4, 3))
    graph(X)
    graph.save(tmp_path / "net.safetensors", classes={"Waves": Waves})
    again = tp.load(tmp_path / "net.safetensors", classes={"Waves": Waves})
    np.testing.assert_array_equal(again(X), graph(X))
    with pytest.raises(GraphError, match="Waves, a class of your own"):
        graph.save(tmp_path / "other.safetensors")


def test_copied_and_pickled():
    graph = chain(Dense(3, 4), Waves(4))
    X = RNG.standard_normal((4, 3))
    expected = graph(X)
    for again in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        np.testing.assert_array_equal(again.build((None, 3), dtype="float64")(X), expected)
        assert again.nodes[1].layer is not graph.nodes[1].layer
