"""A recurrent network reads digits row by row, from top to bottom. The same two layers work at every step of time.

    row 0 -> W -> h0 -> U --+
    row 1 -> W -------------+-> h1 -> U --+
    row 2 -> W ---------------------------+-> h2 -> ...            h7 -> out

h[t] = tanh(W row[t] + U h[t - 1]): Elman 1990, https://doi.org/10.1207/s15516709cog1402_1.

python examples/recurrent.py
"""

import tapeprop as tp
from tapeprop.datasets import digits, train_test_split
from tapeprop.layers import Activation, Dense, Lambda, Reshape

ROWS, PIXELS, HIDDEN = 8, 8, 48


def network() -> tp.LayerGraph:
    """(N, 1, 8, 8) -> logits (N, 10), unrolled over the rows."""
    W = Dense(PIXELS, HIDDEN)  # one layer in many nodes: its weights are shared, and its gradients add up
    U = Dense(HIDDEN, HIDDEN, bias=False, initializer="orthogonal")
    image = tp.LayerNode(Reshape(ROWS, PIXELS), name="image")
    graph = tp.LayerGraph({image: []}, root=image, seed=0)
    state = None
    for t in range(ROWS):
        row = tp.LayerNode(Lambda(lambda x, t=t: x[:, t]), name=f"row{t}")
        inward = tp.LayerNode(W, name=f"W{t}")
        graph.add_node(row, prev_nodes=image, next_nodes=inward)
        before = [inward]
        if state is not None:
            before.append(tp.LayerNode(U, name=f"U{t}"))
            graph.connect(state, before[-1])
        state = tp.LayerNode(Activation.Tanh(), name=f"h{t}")  # the sum of what leads to it
        graph.add_node(state, prev_nodes=before)
    graph.term = tp.LayerNode(Dense(HIDDEN, 10), name="out")
    graph.connect(state, graph.term)
    return graph


def main(epochs: int = 20) -> float:
    """Trains; the accuracy on digits that were held out."""
    X_train, X_test, y_train, y_test = train_test_split(*digits(), test_fraction=0.2, seed=0)
    graph = network().build((None, 1, ROWS, PIXELS), workers=1)  # steps this small gain nothing from a second thread
    loss = tp.losses.CrossEntropy()
    weights, biases = graph.param_size
    print(f"{len(graph)} nodes over {ROWS} steps of time share {weights} weights and {biases} biases")

    history = graph.fit(X_train, y_train, loss=loss, optimizer=tp.optimizers.Adam(lr=0.005), epochs=epochs, verbose=0)
    accuracy = graph.evaluate(X_test, y_test, loss=loss)["accuracy"]
    print(f"loss {history.loss[0]:.3f} -> {history.loss[-1]:.3f} in {epochs} epochs")
    print(f"accuracy {accuracy:.3f} on {len(y_test)} digits that it was not trained on")
    return accuracy


if __name__ == "__main__":
    main()
