"""The network of examples/digits.py on an NVIDIA GPU, and its results beside the CPU's: python examples/digits_cuda.py

Without a GPU, or without the extra `cuda`, it says what is missing and ends.
"""

import time

import numpy as np

import tapeprop as tp
from tapeprop.datasets import digits, train_test_split
from tapeprop.errors import DeviceError
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Dropout, Flatten, MaxPool2D


def network() -> tp.LayerGraph:
    """(N, 1, 8, 8) -> logits (N, 10)."""
    first = tp.SequentialNode(Conv2D(1, 16, 3, bias=False), BatchNorm2D(16), Activation.ReLU(), name="first")
    second = tp.SequentialNode(Conv2D(16, 32, 3, bias=False), BatchNorm2D(32), Activation.ReLU(), name="second")
    head = tp.SequentialNode(MaxPool2D(2), Flatten(), Dropout(0.3), Dense(32 * 4 * 4, 10), name="head")
    return tp.LayerGraph({first: [second], second: [head], head: []}, root=first, term=head, seed=0)


def main(epochs: int = 10, samples: int | None = None) -> float | None:
    """Trains on the GPU; the accuracy on digits that were held out, or None where there is no GPU."""
    X_train, X_test, y_train, y_test = train_test_split(*digits(), test_fraction=0.2, seed=0)
    X_train, y_train = X_train[:samples], y_train[:samples]
    try:
        graph = network().build((None, 1, 8, 8), device="cuda")
    except DeviceError as error:
        print(f"There is no GPU to run on: {error}")
        return None

    loss = tp.losses.CrossEntropy()
    start = time.perf_counter()
    history = graph.fit(
        X_train, y_train, loss=loss, optimizer=tp.optimizers.Adam(lr=0.003), epochs=epochs, seed=0, verbose=0
    )
    seconds = time.perf_counter() - start - history.compile_seconds
    print(f"loss of training {history.loss[0]:.4f} -> {history.loss[-1]:.4f}")
    print(f"{epochs * len(X_train) / seconds:,.0f} images/s, after {history.compile_seconds:.1f} s of compiling")

    found = graph.evaluate(X_test, y_test, loss=loss)["accuracy"]
    print(f"accuracy {found:.4f} on {len(y_test)} digits that it was not trained on")

    on_gpu = graph.predict(X_test[:64])
    on_cpu = graph.to("cpu").predict(X_test[:64])  # the weights come along
    print(f"the CPU's predictions differ by at most {np.abs(on_gpu - on_cpu).max():.1e}")
    return found


if __name__ == "__main__":
    main()
