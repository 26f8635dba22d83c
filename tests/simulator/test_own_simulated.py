"""Users' own kernels on a device: the function of the CPU, each thread a worker."""

import numpy as np
import pytest

import tapeprop as tp
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


def graph_of(function, device):
    node = tp.LayerNode(Lambda(function), name="own")
    return tp.LayerGraph({node: []}, root=node, term=node).build(dtype="float64", device=device)


@pytest.mark.parametrize("function", [lambda x: Doubled(x), lambda x: Doubled(x, factor=-0.5), lambda x: Cubed(x)])
def test_both_devices_agree(function):
    X = np.random.default_rng(0).standard_normal((5, 7))
    host, device = (graph_of(function, name) for name in ("cpu", "cuda"))
    np.testing.assert_allclose(device.forward(X), host.forward(X), rtol=1e-12)
    np.testing.assert_allclose(device.backward(X), host.backward(X), rtol=1e-12)


def test_an_operand_may_not_be_written():
    graph = graph_of(lambda x: Writing(x), "cuda")
    with pytest.raises((ValueError, tp.errors.GraphError), match=r"read-only|readonly"):
        graph.forward(np.zeros((2, 3)))
