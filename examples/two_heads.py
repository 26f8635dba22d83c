"""One body, two heads: which digit it is, and where its ink lies. Each head has a loss and an optimizer of its own.

                +-> digit    10 logits, cross-entropy, Adam
    body -------+
                +-> centre   row and column, squared error, SGD with momentum

python examples/two_heads.py
"""

import numpy as np

import tapeprop as tp
from tapeprop.datasets import digits, train_test_split
from tapeprop.layers import Activation, Dense, Flatten


def centres(images: np.ndarray) -> np.ndarray:
    """Row and column of the centre of the ink, in pixels from the middle: (N, 1, 8, 8) -> (N, 2)."""
    ink, places = images[:, 0], np.arange(8) - 3.5
    mass = ink.sum(axis=(1, 2))
    return np.stack([ink.sum(axis=2) @ places, ink.sum(axis=1) @ places], axis=1) / mass[:, None]


def network() -> tp.LayerGraph:
    """(N, 1, 8, 8) -> digit (N, 10), centre (N, 2)."""
    body = tp.SequentialNode(Flatten(), Dense(64, 64), Activation.ReLU(), name="body")
    digit, centre = tp.LayerNode(Dense(64, 10), name="digit"), tp.LayerNode(Dense(64, 2), name="centre")
    centre.set_optimizer(tp.optimizers.SGD(lr=0.02, momentum=0.9))
    return tp.LayerGraph({body: [digit, centre]}, root=body, term=[digit, centre], seed=0)


def main(epochs: int = 15) -> tuple[float, float]:
    """Trains; the accuracy of the digits and the mean error of the centres in pixels, on images that were held out."""
    graph = network().build((None, 1, 8, 8))
    graph.set_optimizer(tp.optimizers.Adam(lr=0.002))  # of all nodes that have none themselves
    print(graph.summary())

    X_train, X_test, y_train, y_test = train_test_split(*digits(), test_fraction=0.2, seed=0)
    history = graph.fit(
        X_train,
        {"digit": y_train, "centre": centres(X_train)},
        loss={"digit": tp.losses.CrossEntropy(), "centre": tp.losses.MSE()},
        loss_weights={"digit": 1.0, "centre": 0.5},
        epochs=epochs,
        verbose=0,
    )
    print(f"weighted sum of the losses {history.loss[0]:.3f} -> {history.loss[-1]:.3f} in {epochs} epochs")

    logits, found = graph.predict(X_test)
    accuracy = float((logits.argmax(axis=1) == y_test).mean())
    error = float(np.abs(found - centres(X_test)).mean())
    print(
        f"{len(y_test)} digits that it was not trained on: accuracy {accuracy:.3f}, centres off by {error:.3f} pixels"
    )
    return accuracy, error


if __name__ == "__main__":
    main()
