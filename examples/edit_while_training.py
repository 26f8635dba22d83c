"""A network is edited while it is trained. What stays keeps its weights and its optimizer's state.

    1   hidden ---------------> head
    2   hidden -> deep --+----> head      a new layer, around which a shortcut leads
               +---------+
    3   the same, but hidden is frozen and deep has another activation

python examples/edit_while_training.py
"""

import numpy as np

import tapeprop as tp
from tapeprop.datasets import digits, train_test_split
from tapeprop.layers import Activation, Dense, Flatten, Identity, Sequential

LOSS = tp.losses.CrossEntropy()


def main(epochs: int = 5) -> list[float]:
    """Trains in three stages; the accuracy on digits that were held out after each."""
    X_train, X_test, y_train, y_test = train_test_split(*digits(), test_fraction=0.2, seed=0)
    hidden = tp.SequentialNode(Flatten(), Dense(64, 32), Activation.ReLU(), name="hidden")
    head = tp.LayerNode(Dense(32, 10), name="head")
    graph = tp.LayerGraph({hidden: [head]}, root=hidden, term=head, seed=0).build((None, 1, 8, 8))
    graph.set_optimizer(tp.optimizers.Adam(lr=0.002))
    found = []

    def train(stage: str) -> None:
        before = graph.evaluate(X_test, y_test, loss=LOSS)["accuracy"]
        graph.fit(X_train, y_train, loss=LOSS, epochs=epochs, verbose=0)
        found.append(graph.evaluate(X_test, y_test, loss=LOSS)["accuracy"])
        print(f"{stage:24} {len(graph)} nodes, accuracy {before:.3f} -> {found[-1]:.3f}")

    train("a hidden layer")

    # The new layer starts at zero, so the sum is what hidden gives, and nothing that was learned is lost.
    deep = tp.SequentialNode(Dense(32, 32, initializer="zeros"), Activation.Tanh(), name="deep")
    total = tp.LayerNode(Identity(), tp.MergeMode.SUM, name="total")
    graph.disconnect(hidden, head)
    graph.add_node(deep, prev_nodes=hidden, next_nodes=total)
    graph[hidden].append(total)  # the live list of what follows a node
    graph.connect(total, head)
    before = graph.state_dict()["hidden.1.weight"]
    graph.build((None, 1, 8, 8))
    assert np.array_equal(hidden.layer["1"].weight.value, before)
    train("a layer more")

    hidden.frozen = True  # neither gradient nor update: asks for no build
    deep.layer = Sequential(deep.layer["0"], Activation.ReLU())  # the weights of the old layer under a new activation
    graph.build((None, 1, 8, 8))
    train("one frozen, one changed")
    return found


if __name__ == "__main__":
    main()
