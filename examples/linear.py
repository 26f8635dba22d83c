"""A graph without branches: convolution, batch norm, ReLU.

    conv -> norm -> relu

It learns to give what another convolution with ReLU gives: python examples/linear.py
"""

import numpy as np

import tapeprop as tp
from tapeprop.layers import Activation, BatchNorm2D, Conv2D


def network() -> tp.LayerGraph:
    """(N, 3, H, W) -> (N, 6, H, W)."""
    conv = tp.LayerNode(Conv2D(3, 6, 3), name="conv")
    norm = tp.LayerNode(BatchNorm2D(6), name="norm")
    relu = tp.LayerNode(Activation.ReLU(), name="relu")
    return tp.LayerGraph({conv: [norm], norm: [relu], relu: []}, root=conv, term=relu, seed=0)


def main(steps: int = 200) -> list[float]:
    """Trains; the loss at each step."""
    graph = network().build((None, 3, 8, 8))
    print(graph.summary())

    # A layer in a graph of its own is a function, too.
    teacher = tp.LayerNode(tp.layers.Sequential(Conv2D(3, 6, 3), Activation.ReLU()))
    function = tp.LayerGraph({teacher: []}, root=teacher, term=teacher, seed=1).build((None, 3, 8, 8))
    X = np.random.default_rng(0).standard_normal((16, 3, 8, 8))
    y = function(X)
    print(f"x {X.shape} -> y {graph(X).shape}")

    graph.set_optimizer(tp.optimizers.Adam(lr=0.02))
    losses = [graph.train_step(X, y, tp.losses.MSE()) for _ in range(steps)]
    print(f"loss {losses[0]:.3g} -> {losses[-1]:.3g} in {steps} steps")
    return losses


if __name__ == "__main__":
    main()
