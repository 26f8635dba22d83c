"""ResNet-20 for 32x32 images with 10 classes, as for CIFAR-10: python examples/resnet20.py [folder of the CIFAR-10 files]

He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2, with projections where the shape changes. Without a
folder it learns random labels of random images by heart for a few steps.
"""

import sys
import time

import numpy as np

import tapeprop as tp
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Flatten, GlobalAvgPool2D, Layer


def resnet20(seed: int | None = 0) -> tp.LayerGraph:
    """(N, 3, 32, 32) -> logits (N, 10); not built yet."""
    graph = tp.LayerGraph(seed=seed)

    def add(name: str, *layers: Layer, after: list[tp.LayerNode]) -> tp.LayerNode:
        node = tp.SequentialNode(*layers, name=name)
        graph.add_node(node, prev_nodes=after)
        return node

    def conv(before: int, channels: int, size: int, stride: int = 1) -> list[Layer]:
        return [Conv2D(before, channels, size, stride, bias=False), BatchNorm2D(channels)]

    x = graph.root = add("stem", *conv(3, 16, 3), Activation.ReLU(), after=[])
    before = 16
    for stage, channels in enumerate((16, 32, 64), start=1):
        for block in range(1, 4):
            name, stride = f"stage{stage}_{block}", 1 if channels == before else 2
            inner = add(f"{name}_first", *conv(before, channels, 3, stride), Activation.ReLU(), after=[x])
            inner = add(f"{name}_second", *conv(channels, channels, 3), after=[inner])
            short = x if stride == 1 else add(f"{name}_short", *conv(before, channels, 1, stride), after=[x])
            x = add(name, Activation.ReLU(), after=[inner, short])  # merges by SUM
            before = channels
    graph.term = add("head", GlobalAvgPool2D(), Flatten(), Dense(64, 10), after=[x])
    return graph


def data(folder: str | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's training images, or `count` random ones."""
    if folder is not None:
        return tp.datasets.cifar10(folder)
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 3, 32, 32), dtype=np.float32), rng.integers(0, 10, count)


def main(folder: str | None = None, count: int = 128, epochs: int = 4, batch_size: int = 32) -> list[float]:
    """Trains; the loss of each epoch."""
    X, y = data(folder, count)
    graph = resnet20().build((None, 3, 32, 32))
    weights, biases = graph.param_size
    print(f"{len(graph)} nodes, {graph.layer_count} layers, {weights + biases:,} weights; {X.shape} -> (N, 10)")
    optimizer = tp.optimizers.SGD(lr=0.05, momentum=0.9, weight_decay=1e-4)
    start = time.perf_counter()
    history = graph.fit(
        X, y, loss=tp.losses.CrossEntropy(), optimizer=optimizer, epochs=epochs, batch_size=batch_size, seed=0
    )
    print(f"loss {history.loss[0]:.4f} -> {history.loss[-1]:.4f} in {time.perf_counter() - start:.1f} s")
    return history.loss


if __name__ == "__main__":
    main(*sys.argv[1:2])
