"""`PythonLayer`: NumPy between native rows, in every way a graph runs. `test_python_mistakes` has what its author can get wrong."""

import copy
import pickle
import threading

import numpy as np
import pytest
from layers.python_layers import RNG, Pairs, Square, Waves, WavesInOps, chain, data, ready

import tapeprop as tp
from tapeprop import ops
from tapeprop.errors import GraphError, NotBuiltError
from tapeprop.layers import Conv2D, Dense, Identity, Lambda, PythonLayer

SMOOTH = 1e-6  # central differences of a smooth function in float64


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
