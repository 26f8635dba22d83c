"""Whole networks: the gradient of all parameters and the input at once, against central differences along a direction."""

import inspect

import numpy as np
import pytest

from tapeprop import zoo

pytestmark = pytest.mark.conformance

#: Where 32 x 32 is too small for pools, or leaves batch norm three numbers to a channel, which it divides by their tiny spread.
EXTENT = {"alexnet": 64, "inception_v3": 96, "lenet5": 28, "resnext50": 64, "xception": 64}


def made(name):
    """A narrow network without draws in float64, and a batch."""
    network = getattr(zoo, name)
    rates = {rate: 0.0 for rate in ("dropout_rate", "depth_rate") if rate in inspect.signature(network).parameters}
    narrow = {"width": 0.125} if "width" in inspect.signature(network).parameters else {}
    channels, extent = 1 if name == "lenet5" else 3, EXTENT.get(name, 32)
    graph = network(5, channels, seed=3, **narrow, **rates).build((3, channels, extent, extent), dtype="float64")
    return graph, np.random.default_rng(4).standard_normal((3, channels, extent, extent))


@pytest.mark.parametrize("name", sorted(zoo.__all__))
def test_gradient_along_a_direction(name):
    """Batch norm takes the statistics of the batch, as in training.

    A ReLU or a maximum that changes sides within a step makes the difference wrong, the less likely the smaller the step;
    the smallest ones round off. So steps shrink until two agree with each other, and the gradient has to agree with those.
    """
    graph, X = made(name)
    rng = np.random.default_rng(5)
    parameters = [p for _, p in graph.named_parameters() if p.trainable]
    before = [X, *(p.value.copy() for p in parameters)]
    # each array moves by its own size, and gradients of every array have about one weight in the sum
    directions = [rng.standard_normal(a.shape) * max(np.abs(a).mean(), 1e-2) for a in before]

    def value(step):
        for parameter, start, direction in zip(parameters, before[1:], directions[1:], strict=True):
            parameter.assign(start + step * direction)
        return float(np.sum(seed * graph.forward(X + step * directions[0], True)))

    seed = rng.standard_normal(graph.forward(X, True).shape)
    graph.zero_grad()
    value(0.0)
    gradients = [graph.backward(seed), *(p.grad.copy() for p in parameters)]
    parts = [float(np.sum(g * d)) for g, d in zip(gradients, directions, strict=True)]
    scale = float(np.abs(parts).sum())
    found = []
    for step in (1e-6, 1e-7, 3e-8, 1e-8, 3e-9):
        found.append((value(step) - value(-step)) / (2 * step))
        if len(found) > 1 and abs(found[-1] - found[-2]) <= 1e-5 * scale:
            break
    else:
        pytest.fail(f"no two steps agree: {found}")
    assert abs(sum(parts) - found[-1]) <= 1e-5 * scale
    assert min(np.abs(g).max() for g in gradients) > 0
