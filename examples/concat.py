"""Three branches that look at one image and are joined along the channels.

              +-> conv 6  --+
    image ----+-> conv 12 --+-> joined (36 channels)
              +-> conv 18 --+

python examples/concat.py
"""

import numpy as np

import tapeprop as tp
from tapeprop.layers import Activation, Conv2D, Identity


def network() -> tp.LayerGraph:
    """(N, 3, H, W) -> (N, 36, H, W)."""
    image = tp.LayerNode(Identity(), name="image")
    branches = [
        tp.SequentialNode(Conv2D(3, channels, 3), Activation.ReLU(), name=f"conv{channels}") for channels in (6, 12, 18)
    ]
    joined = tp.LayerNode(Identity(), tp.MergeMode.CHCAT, name="joined")
    # The operands of a merge come in the order in which the edges are declared: channels 0-5, 6-17, 18-35.
    edges = {image: branches, **{branch: [joined] for branch in branches}, joined: []}
    return tp.LayerGraph(edges, root=image, term=joined, seed=0)


def main(steps: int = 200) -> list[float]:
    """Trains; the loss at each step."""
    graph = network().build((None, 3, 8, 8))
    print(graph.summary())

    X = np.random.default_rng(0).standard_normal((16, 3, 8, 8))
    y = np.tile(np.maximum(X, 0), (1, 12, 1, 1))  # 36 channels
    print(f"x {X.shape} -> y {graph(X).shape}")

    graph.set_optimizer(tp.optimizers.Adam(lr=0.02))
    losses = [graph.train_step(X, y, tp.losses.MSE()) for _ in range(steps)]
    print(f"loss {losses[0]:.3g} -> {losses[-1]:.3g} in {steps} steps")
    return losses


if __name__ == "__main__":
    main()
