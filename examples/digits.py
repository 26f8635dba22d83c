"""A small convolutional network learns 1,797 real handwritten digits, which ship inside: python examples/digits.py"""

import tapeprop as tp
from tapeprop.callbacks import EarlyStopping
from tapeprop.datasets import digits, train_test_split
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Dropout, Flatten, MaxPool2D


def network() -> tp.LayerGraph:
    """(N, 1, 8, 8) -> logits (N, 10)."""
    first = tp.SequentialNode(Conv2D(1, 16, 3, bias=False), BatchNorm2D(16), Activation.ReLU(), name="first")
    second = tp.SequentialNode(Conv2D(16, 32, 3, bias=False), BatchNorm2D(32), Activation.ReLU(), name="second")
    head = tp.SequentialNode(MaxPool2D(2), Flatten(), Dropout(0.3), Dense(32 * 4 * 4, 10), name="head")
    return tp.LayerGraph({first: [second], second: [head], head: []}, root=first, term=head, seed=0)


def main(epochs: int = 10) -> float:
    """Trains; the accuracy on digits that were held out."""
    X_train, X_test, y_train, y_test = train_test_split(*digits(), test_fraction=0.2, seed=0)
    graph = network().build((None, 1, 8, 8))
    print(graph.summary())
    loss = tp.losses.CrossEntropy()
    history = graph.fit(
        X_train,
        y_train,
        loss=loss,
        optimizer=tp.optimizers.Adam(lr=0.003),
        epochs=epochs,
        batch_size=32,
        validation_split=0.1,
        callbacks=[EarlyStopping(patience=3)],
    )
    found = graph.evaluate(X_test, y_test, loss=loss)
    print(f"loss of training {history.loss[0]:.4f} -> {history.loss[-1]:.4f}")
    print(f"accuracy {found['accuracy']:.4f} on {len(y_test)} digits that it was not trained on")
    return found["accuracy"]


if __name__ == "__main__":
    main()
