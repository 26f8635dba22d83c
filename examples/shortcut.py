"""A shortcut: what a convolution finds is added to what came in. Where edges meet, a node merges them, by default with SUM.

    image ----+-> conv -> relu --+-> sum
              +------------------+

python examples/shortcut.py
"""

import numpy as np

import tapeprop as tp
from tapeprop.layers import Activation, Conv2D, Identity


def network() -> tp.LayerGraph:
    """(N, 3, H, W) -> (N, 3, H, W)."""
    image = tp.LayerNode(Identity(), name="image")
    conv = tp.LayerNode(Conv2D(3, 3, 3), name="conv")
    relu = tp.LayerNode(Activation.ReLU(), name="relu")
    total = tp.LayerNode(Identity(), tp.MergeMode.SUM, name="sum")
    edges = {image: [conv, total], conv: [relu], relu: [total], total: []}
    return tp.LayerGraph(edges, root=image, term=total, seed=0)


def main(steps: int = 200) -> list[float]:
    """Trains; the loss at each step."""
    graph = network().build((None, 3, 8, 8))
    print(graph.summary())

    X = np.random.default_rng(0).standard_normal((16, 3, 8, 8))
    y = X + np.maximum(X[:, ::-1], 0)  # the channels in reverse order, to be found by the convolution
    print(f"x {X.shape} -> y {graph(X).shape}")

    graph.set_optimizer(tp.optimizers.SGD(lr=0.5, momentum=0.9))
    losses = [graph.train_step(X, y, tp.losses.MSE()) for _ in range(steps)]
    print(f"loss {losses[0]:.3g} -> {losses[-1]:.3g} in {steps} steps")
    return losses


if __name__ == "__main__":
    main()
