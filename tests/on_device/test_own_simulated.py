"""Users' own kernels on a device: the function of the CPU, each thread a worker."""

import numba
import numpy as np
import pytest

import tapeprop as tp
from tapeprop import ops
from tapeprop.layers import Lambda

pytestmark = pytest.mark.cuda


@tp.ops.kernel
class Doubled:
    """y = factor * x by one thread alone."""

    def kernel(x, y, factor=2.0):
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                y[i, j] = factor * x[i, j]

    def gradient(dy, factor):
        return factor * dy


@tp.ops.kernel
class Cubed:
    """y = x ** 3, every thread a part."""

    flat = True

    def kernel(x, y, worker, workers):
        for i in range(x.size * worker // workers, x.size * (worker + 1) // workers):
            y[i] = x[i] * x[i] * x[i]

    def gradient(x, dy):
        return 3.0 * x * x * dy


@tp.ops.kernel
class Writing:
    """Writes to its operand."""

    flat = True

    def kernel(x, y):
        x[0] = 1.0
        y[0] = x[0]


@numba.njit
def largest(row):
    top = row[0]
    for value in row:
        top = max(top, value)
    return top


@tp.ops.kernel
class Peaks:
    """(The largest of each row, scaled; how many are as large), by a helper that takes an array."""

    results = ("top", "count")

    def kernel(x, top, count, worker, workers, weights=(2, 0.5), mode="scaled"):
        rows = x.shape[0]
        for i in range(rows * worker // workers, rows * (worker + 1) // workers):
            peak = largest(x[i])
            top[i] = weights[0] * weights[1] * peak if mode == "scaled" else peak
            count[i] = 0
            for j in range(x.shape[1]):
                count[i] += x[i, j] == peak

    def shape(x):
        return (x.shape[0],), (x.shape[0],)


@tp.ops.kernel
class Total:
    """y = the sum of x, a single number."""

    flat = True

    def kernel(x, y):
        y[0] = 0.0
        for value in x:
            y[0] += value

    def shape(x):
        return ()


@tp.ops.kernel
class Positive:
    """y = x; raises below 0."""

    flat = True

    def kernel(x, y, worker, workers):
        for i in range(x.size * worker // workers, x.size * (worker + 1) // workers):
            if x[i] < 0:
                raise ValueError("negative")
            y[i] = x[i]


def graph_of(function, device):
    node = tp.LayerNode(Lambda(function), name="own")
    return tp.LayerGraph({node: []}, root=node, term=node).build(dtype="float64", device=device)


@pytest.mark.parametrize("function", [lambda x: Doubled(x), lambda x: Doubled(x, factor=-0.5), lambda x: Cubed(x)])
def test_both_devices_agree(function):
    X = np.random.default_rng(0).standard_normal((5, 7))
    host, device = (graph_of(function, name) for name in ("cpu", "cuda"))
    np.testing.assert_allclose(device.forward(X), host.forward(X), rtol=1e-12)
    np.testing.assert_allclose(device.backward(X), host.backward(X), rtol=1e-12)


@pytest.mark.parametrize("mode", ["scaled", "plain"])
def test_several_results_helpers_and_attributes(mode):
    X = np.round(np.random.default_rng(0).standard_normal((11, 6)))  # more rows than threads, and ties

    def both(x):
        top, count = Peaks(x, weights=(4, 0.5), mode=mode)
        return ops.concat([ops.reshape(part, (x.shape[0], 1)) for part in (top, count)], axis=1)

    peak = X.max(1, keepdims=True)
    expected = np.concatenate([2 * peak if mode == "scaled" else peak, (peak == X).sum(1, keepdims=True)], axis=1)
    np.testing.assert_array_equal(graph_of(both, "cuda").forward(X), expected)


def test_a_result_without_axes():
    X = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(graph_of(lambda x: Total(x) + 0 * x, "cuda").forward(X), np.full((2, 3), 15.0))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_exception_is_told(device):
    graph = graph_of(lambda x: Positive(x), device)
    X = np.ones((3, 5))
    np.testing.assert_array_equal(graph.forward(X), X)
    X[2, 3] = -1.0
    with pytest.raises(tp.errors.GraphError, match=r"'own': Positive: the kernel raised an exception"):
        graph.forward(X)
    X[2, 3] = 1.0
    np.testing.assert_array_equal(graph.forward(X), X)


def test_an_operand_may_not_be_written():
    graph = graph_of(lambda x: Writing(x), "cuda")
    refused = (
        tp.errors.CompileError,
        tp.errors.GraphError,
    )  # of a GPU, of the simulator, which sees it when it happens
    with pytest.raises(refused, match=r"Writing.*(writes to an operand|raised an exception)"):
        graph.forward(np.zeros((2, 3)))
