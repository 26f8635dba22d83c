"""Whole networks of the zoo on a device with the tiles of a GPU: a step of training gives what the CPU gives."""

import numpy as np
import pytest

from tapeprop import zoo
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD
from tapeprop.targets.cuda.library import SIMULATED

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(SIMULATED, reason="would take hours in the simulator")]

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
#: {name: (graph, shape of a batch)}: products and convolutions of every kind, pools, norms, branches that meet, depthwise filters.
NETWORKS = {
    "lenet5": (zoo.lenet5, (8, 1, 28, 28)),
    "resnet20": (zoo.resnet20, (2, 3, 12, 12)),
    "vgg11": (lambda **options: zoo.vgg11(10, width=0.125, **options), (1, 3, 32, 32)),
    "mobilenet_v1": (lambda **options: zoo.mobilenet_v1(10, width=0.125, **options), (2, 3, 32, 32)),
}
#: Where deep norms see two values a channel, float32 differs by more from one order of a sum to the next.
CASES = [
    *((name, "float32") for name in ("lenet5", "resnet20", "vgg11")),
    ("resnet20", "float64"),
    ("mobilenet_v1", "float64"),
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_step_of_training(name, dtype):
    """Loss, weights and running statistics, relative to the largest of each, or 1; sums are taken in other orders."""
    make, shape = NETWORKS[name]
    random = np.random.default_rng(0)
    X, y = random.standard_normal(shape), random.integers(0, 10, shape[0])
    losses, states = [], []
    for device in ("cpu", "cuda"):
        graph = make(seed=0).build(dtype=dtype, device=device)
        graph.set_optimizer(SGD(0.05))
        losses.append(graph.train_step(X, y, CrossEntropy()))
        states.append(graph.state_dict())
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE[dtype])
    for key, value in states[0].items():
        largest = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(states[1][key], value, rtol=0, atol=TOLERANCE[dtype] * largest, err_msg=key)
