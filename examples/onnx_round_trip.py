"""A trained network to ONNX and back: as a function, and as a graph whose head is replaced and trained on.

    conv - batch norm - relu - pool - flatten - head 10   ->  digits.onnx  ->  the same, head 2: even or odd

Needs the package onnx: pip install "tapeprop[onnx]". python examples/onnx_round_trip.py
"""

import sys

import numpy as np

import tapeprop as tp
from tapeprop.datasets import digits, train_test_split
from tapeprop.interchange import onnx
from tapeprop.layers import Activation, BatchNorm2D, Conv2D, Dense, Flatten, MaxPool2D


def network() -> tp.LayerGraph:
    """(N, 1, 8, 8) -> (N, 10)."""
    body = tp.SequentialNode(Conv2D(1, 16, 3), BatchNorm2D(16), Activation.ReLU(), MaxPool2D(2), Flatten(), name="body")
    head = tp.LayerNode(Dense(16 * 4 * 4, 10), name="head")
    return tp.LayerGraph({body: [head]}, root=body, term=head, seed=0)


def main(path: str = "digits.onnx", epochs: int = 8) -> tuple[float, float, float]:
    """Accuracies on images that were held out: of the network, of the function read back, of even or odd."""
    X_train, X_test, y_train, y_test = train_test_split(*digits(), test_fraction=0.2, seed=0)
    training = {"loss": tp.losses.CrossEntropy(), "optimizer": tp.optimizers.Adam(0.003), "seed": 0, "verbose": 0}
    graph = network().build((None, 1, 8, 8))
    graph.fit(X_train, y_train, epochs=epochs, **training)
    before = float((graph.predict(X_test).argmax(axis=1) == y_test).mean())

    onnx.save(graph, path)
    function = onnx.load_function(path)
    after = float((np.asarray(function(X_test.astype(np.float32))).argmax(axis=1) == y_test).mean())
    print(f"accuracy {before:.3f} as trained, {after:.3f} as a function of {path}")

    again = onnx.load(path)
    head = again.term
    head.layer = Dense(16 * 4 * 4, 2)
    for node in again.nodes:
        node.frozen = node is not head
    again.build((None, 1, 8, 8))
    print(again.summary())
    again.fit(X_train, y_train % 2, epochs=epochs, **training)
    parity = float((again.predict(X_test).argmax(axis=1) == y_test % 2).mean())
    print(f"accuracy {parity:.3f} at even or odd, with the body of before")
    return before, after, parity


if __name__ == "__main__":
    main(*sys.argv[1:2])
