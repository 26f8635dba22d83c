"""A training step of every network beside the same network in torch: weights by name, float64, images of reduced size.

Needs torch and torchvision, of the extra `peers`.
"""

import inspect

import numpy as np
import pytest

import tapeprop as tp
from tapeprop import zoo

torch_models = pytest.importorskip("zoo.torch_models", reason="needs torch and torchvision")
torch = torch_models.torch

#: Pixels at which the last convolutions still see 2 x 2: a batch norm over few values keeps little but signs.
PIXELS = {"lenet5": 28, "resnet20": 32, "alexnet": 127, "inception_v3": 139, "xception": 107}
CLASSES, BATCH, RATE = 10, 3, 0.01


def pair(name):
    """(our graph, built and with torch's weights; the torch module)."""
    torch.manual_seed(0)
    model = torch_models.torch_model(name, CLASSES).double().train()
    for key, weight in model.named_parameters():
        if key.endswith("layer_scale"):  # of 1e-6: no block would show in the result
            torch.nn.init.ones_(weight)
    network = getattr(zoo, name)
    rates = {rate: 0.0 for rate in ("dropout_rate", "depth_rate") if rate in inspect.signature(network).parameters}
    graph = network(CLASSES, seed=0, **rates).build(dtype="float64")
    graph.load_state_dict({k: v.numpy() for k, v in model.state_dict().items() if "num_batches" not in k})
    return graph, model


@pytest.mark.parametrize("name", sorted(zoo.__all__))
def test_a_training_step_is_torchs(name):
    """1e-9 of the loss; 1e-7 of the largest change of each weight: rounding errors pass up to 121 batch norms of few values.

    1e-14 besides: a bias in front of a batch norm has a gradient of rounding errors alone.
    """
    graph, model = pair(name)
    pixels, rng = PIXELS.get(name, 64), np.random.default_rng(0)
    X = rng.standard_normal((BATCH, 1 if name == "lenet5" else 3, pixels, pixels))
    y = rng.integers(0, CLASSES, BATCH)
    before = {key: value.copy() for key, value in graph.state_dict().items()}

    expected = torch.nn.functional.cross_entropy(model(torch.tensor(X)), torch.tensor(y))
    expected.backward()
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    graph.set_optimizer(tp.optimizers.SGD(lr=RATE))
    assert graph.train_step(X, y, tp.losses.CrossEntropy()) == pytest.approx(expected.item(), rel=1e-9)

    theirs, ours = model.state_dict(), graph.state_dict()
    for key, old in before.items():
        if key.endswith("running_var"):
            continue  # torch keeps the unbiased variance there
        moved = theirs[key].numpy() - old
        np.testing.assert_allclose(
            ours[key] - old, moved, rtol=1e-7, atol=1e-7 * np.abs(moved).max() + 1e-14, err_msg=key
        )
