"""Layers written in NumPy, and graphs of them, that tests of `PythonLayer` share."""

import numpy as np

import tapeprop as tp
from tapeprop import ops
from tapeprop.layers import Layer, PythonLayer

RNG = np.random.default_rng(11)


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
