"""What the author of a `PythonLayer` can get wrong: results that do not fit, exceptions, calls of its own graph, NaN."""

import numpy as np
import pytest
from layers.python_layers import RNG, Waves, chain, data, ready

import tapeprop as tp
from tapeprop.errors import DTypeError, GraphError, NumericsError, ShapeError, StateError
from tapeprop.layers import BatchNorm1D, Dense, Identity, PythonLayer


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
