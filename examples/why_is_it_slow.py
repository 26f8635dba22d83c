"""From "why is it slow" to the fix: three versions of one network, each profiled, each mending what the profile before it showed.

    as written      an activation in NumPy, batches of 50
    in ops          the activation as a formula of ops, which is compiled
    whole lanes     batches of 48, which fill the vector lanes

python examples/why_is_it_slow.py [folder for the profiles as HTML pages]
"""

import sys
from pathlib import Path

import numpy as np

import tapeprop as tp
from tapeprop import ops
from tapeprop.datasets import digits
from tapeprop.layers import Activation, Conv2D, Dense, Flatten, Lambda, Layer, MaxPool2D, PythonLayer


class NumpySwish(PythonLayer):
    """x * sigmoid(x), as one would write it first."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x, self.gate = x, 1 / (1 + np.exp(-x))
        return x * self.gate

    def backward(self, d_out: np.ndarray) -> np.ndarray:
        return d_out * self.gate * (1 + self.x * (1 - self.gate))


def swish() -> Layer:
    """The same as a formula: differentiated, fused and compiled."""
    return Lambda(lambda x: x * ops.sigmoid(x))


def network(activation: type[Layer] | type = NumpySwish, seed: int | None = 0) -> tp.LayerGraph:
    """(N, 1, 8, 8) -> logits (N, 10); activation: makes the layer behind the second convolution. Not built yet."""
    first = tp.SequentialNode(Conv2D(1, 24, 3), Activation.ReLU(), name="first")
    second = tp.SequentialNode(Conv2D(24, 24, 3), activation(), name="second")
    head = tp.SequentialNode(MaxPool2D(2), Flatten(), Dense(24 * 16, 10), name="head")
    return tp.LayerGraph({first: [second], second: [head], head: []}, root=first, term=head, seed=seed)


VERSIONS = {"as written": (NumpySwish, 50), "in ops": (swish, 50), "whole lanes": (swish, 48)}


def main(repeats: int = 50, folder: str | None = None) -> dict[str, tp.Profile]:
    """Profiles a training step of each version and prints what it says; the profiles."""
    X, y = digits()
    loss, found = tp.losses.CrossEntropy(), {}
    for name, (activation, batch) in VERSIONS.items():
        graph = network(activation).build((batch, 1, 8, 8))
        graph.set_optimizer(tp.optimizers.Adam(lr=0.003))
        found[name] = profile = graph.profile(X[:batch], y[:batch], loss, repeats=repeats)
        print(f"--- {name}: {1e6 * profile.step_seconds / batch:.1f} us per image")
        print(profile.table("op", top=5))
        print(profile.diagnose(), end="\n\n")
        if folder is not None:
            print(f"written to {profile.to_html(Path(folder) / f'{name}.html')}\n")
    return found


if __name__ == "__main__":
    main(folder=sys.argv[1] if len(sys.argv) > 1 else None)
