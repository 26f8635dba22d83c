"""Two networks in a game: a generator draws digits from noise, a discriminator tells them from real ones.

    noise -> generator -> discriminator -> real?

Both are graphs, and a third graph has them for nodes: there the discriminator is frozen, so that a step of that graph
advances the generator alone, by what the discriminator tells it. Goodfellow et al. 2014,
https://arxiv.org/abs/1406.2661, with the generator's loss of section 3 that does not saturate.

python examples/gan.py [picture.pgm]
"""

import sys
from pathlib import Path

import numpy as np

import tapeprop as tp
from tapeprop.datasets import digits
from tapeprop.layers import Activation, Dense, Dropout, Flatten, Reshape

NOISE, BATCH = 16, 64


def chain(name: str, *layers: tp.layers.Layer, seed: int) -> tp.LayerGraph:
    """A graph of one node."""
    node = tp.SequentialNode(*layers, name=name)
    return tp.LayerGraph({node: []}, root=node, term=node, seed=seed)


def networks() -> tuple[tp.LayerGraph, tp.LayerGraph, tp.LayerGraph]:
    """The generator, the discriminator, and both in a row."""
    generator = chain(
        "draw", Dense(NOISE, 128), Activation.ReLU(), Dense(128, 64), Activation.Sigmoid(), Reshape(1, 8, 8), seed=1
    )
    discriminator = chain(
        "judge", Flatten(), Dense(64, 128), Activation.LeakyReLU(0.2), Dropout(0.3), Dense(128, 1), seed=2
    )
    first, second = tp.LayerNode(generator, name="generator"), tp.LayerNode(discriminator, name="discriminator")
    second.frozen = True  # as a node of this graph; the discriminator's own graph trains it
    return generator, discriminator, tp.LayerGraph({first: [second]}, root=first, term=second, seed=3)


def write_picture(path: str, images: np.ndarray, columns: int = 16, scale: int = 6) -> None:
    """Images (N, 1, 8, 8) of numbers from 0 to 1 side by side, as a binary PGM: black ink on white."""
    framed = np.pad(images[:, 0], ((0, 0), (1, 1), (1, 1)))
    rows = framed.reshape(-1, columns, 10, 10).swapaxes(1, 2).reshape(-1, 10 * columns)
    pixels = np.rint(255 * (1 - rows)).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
    height, width = pixels.shape
    Path(path).write_bytes(b"P5 %d %d 255\n" % (width, height) + pixels.tobytes())


def main(steps: int = 5000, picture: str = "gan.pgm") -> np.ndarray:
    """Trains and writes the picture; 64 digits that were drawn, (64, 1, 8, 8)."""
    X, _ = digits()
    generator, discriminator, both = networks()
    # Networks as small as these gain nothing from a second thread.
    both.build((BATCH, NOISE), workers=1).set_optimizer(tp.optimizers.Adam(lr=0.001, beta1=0.5))
    generator.build((BATCH, NOISE), workers=1)  # with the weights that are in the graph of both
    discriminator.build((2 * BATCH, 1, 8, 8), workers=1).set_optimizer(tp.optimizers.Adam(lr=0.001, beta1=0.5))
    loss, random = tp.losses.BinaryCrossEntropy(), np.random.default_rng(0)
    ones, answers = np.ones((BATCH, 1)), np.repeat([[0.9], [0.0]], BATCH, axis=0)  # real: 0.9, drawn: 0

    for step in range(1, steps + 1):
        real = X[random.integers(0, len(X), BATCH)]
        drawn = generator(random.standard_normal((BATCH, NOISE)))
        told = discriminator.train_step(np.concatenate([real, drawn]), answers, loss)
        fooled = both.train_step(random.standard_normal((BATCH, NOISE)), ones, loss)
        if step % (steps // 4) == 0:
            print(f"step {step}: loss of the discriminator {told:.3f}, of the generator {fooled:.3f}")

    samples = generator(random.standard_normal((64, NOISE)))
    write_picture(picture, np.concatenate([samples, np.zeros_like(samples[:16]), X[:64]]))
    print(f"{picture}: 64 digits that were drawn, above 64 real ones")
    return samples


if __name__ == "__main__":
    main(picture=sys.argv[1] if len(sys.argv) > 1 else "gan.pgm")
