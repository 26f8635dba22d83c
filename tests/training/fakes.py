"""A graph in plain NumPy that offers what training asks for: y = x W per output, SGD, cross-entropy or squared error.

It lets the loop, the callbacks and the data checks be tested for what they are, without a compiler.
"""

from __future__ import annotations

import numpy as np

from tapeprop.losses import MSE, CrossEntropy


class PlainCrossEntropy(CrossEntropy):
    """Cross-entropy whose value is NumPy's."""

    def __call__(self, y_true, y_pred):
        labels = self.labels(y_true, y_pred.shape, str(y_pred.dtype))
        return cross_entropy(y_pred, labels)[0]


class PlainMSE(MSE):
    """Mean squared error whose value is NumPy's."""

    def __call__(self, y_true, y_pred):
        return float(np.square(y_pred - self.labels(y_true, y_pred.shape, str(y_pred.dtype))).mean())


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """(mean loss, gradient) for class ids or one-hot labels."""
    truth = labels if labels.ndim == 2 else np.eye(logits.shape[1], dtype=logits.dtype)[labels]
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-(truth * logs).sum() / len(logits)), (np.exp(logs) - truth) / len(logits)


class Node:
    """What stands for a graph's node."""

    def __init__(self, name: str):
        self.name = name

    def __str__(self) -> str:
        return self.name


class PlainGraph:
    """x (N, features) -> one output (N, classes) per name in `outputs`, from one shared input."""

    def __init__(self, features=4, classes=3, outputs=("out",), dtype="float64", listed=False, lr=0.5, seed=None):
        self.root = Node("in")
        nodes = [Node(name) for name in outputs]
        self.term = nodes if listed or len(nodes) > 1 else nodes[0]
        self.roots, self.terms = [self.root], nodes
        self.labels = {node: node.name for node in [self.root, *nodes]}
        self.dtype, self.built_, self.seed = dtype, True, seed
        random = np.random.default_rng(1)
        self.weights = [random.standard_normal((features, classes)).astype(dtype) * 0.1 for _ in nodes]
        self._lr = lr
        self.lrs: list[float] = []  # of every step
        self.batches: list[np.ndarray] = []  # the rows of every step
        self.calls: list[int] = []  # the steps of every native call
        self.inferred = self.sessions_closed = 0
        self.optimizer = None
        self.now = self.step_seconds = 0.0  # a made clock, and what each step adds to it

    def on_device(self, array, dtypes, what):
        return None

    def output_shapes(self, shapes):
        return [(shapes[0][0], w.shape[1]) for w in self.weights]

    def infer(self, arrays):
        self.inferred += len(arrays[0])
        return [arrays[0] @ w for w in self.weights]

    def set_optimizer(self, optimizer):
        self.optimizer = optimizer
        if optimizer is not None:
            self._lr = optimizer.lr

    @property
    def optimizers(self):
        return {"w0": self.optimizer}

    @property
    def lr(self):
        return self._lr

    def learning_rate(self, of):
        assert of is self.optimizer
        return self._lr

    def update_lr(self, lr, of):
        assert of is self.optimizer
        self._lr = lr

    def state_dict(self):
        return {f"w{i}": w.copy() for i, w in enumerate(self.weights)}

    def load_state_dict(self, state):
        self.weights = [state[f"w{i}"].copy() for i in range(len(self.weights))]

    def save(self, path, classes=None):
        np.savez(path, **self.state_dict())

    def fit_session(self, arrays, labels, losses, weights, batch_size, *, accuracy, accumulate):
        assert [a.dtype for a in arrays] == [np.dtype(self.dtype)]
        return PlainSession(self, arrays[0], labels, losses, weights, batch_size, accuracy, accumulate)


class PlainSession:
    """The session of a `PlainGraph`."""

    def __init__(self, graph, X, labels, losses, weights, batch_size, accuracy, accumulate):
        self.graph, self.X, self.labels = graph, X, labels
        self.losses, self.factors, self.batch_size = losses, weights, batch_size
        self.accuracy, self.accumulate = accuracy, accumulate

    def start_epoch(self, order):
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), np.arange(len(self.X)))
        self.order, self.at = order, 0
        self.loss, self.correct, self.samples = 0.0, 0, 0

    def run(self, steps):
        done = 0
        while done < steps and self.at < len(self.order):
            rows = self.order[self.at : self.at + self.batch_size]
            if done and len(rows) < self.batch_size:
                break  # the smaller batch takes a call of its own
            self._step(rows)
            self.at += len(rows)
            done += 1
        self.graph.calls.append(done)
        return done

    def _step(self, rows):
        graph, x = self.graph, self.X[rows]
        graph.batches.append(rows.copy())
        graph.lrs.append(graph.lr)
        graph.now += graph.step_seconds
        labels = iter(self.labels)
        for i, (loss, factor) in enumerate(zip(self.losses, self.factors, strict=True)):
            if loss is None:
                continue
            y, z = next(labels)[rows], x @ graph.weights[i]
            if isinstance(loss, MSE):
                value, gradient = float(np.square(z - y).mean()), 2 * (z - y) / z.size
            else:
                value, gradient = cross_entropy(z, y)
                self.correct += int((z.argmax(1) == (y if y.ndim == 1 else y.argmax(1))).sum())
            self.loss += factor * value * len(rows)
            graph.weights[i] = graph.weights[i] - graph.lr * factor * x.T @ gradient
        self.samples += len(rows)

    def totals(self):
        found = {"loss": self.loss / max(self.samples, 1), "samples": self.samples}
        if self.accuracy:
            found["accuracy"] = self.correct / max(self.samples, 1)
        return found

    def close(self):
        self.graph.sessions_closed += 1


def blobs(samples=90, features=4, classes=3, seed=0):
    """X (samples, features) float64 and class ids: well separated."""
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, samples)
    centres = np.random.default_rng(7).standard_normal((classes, features)) * 3
    return centres[y] + random.standard_normal((samples, features)), y
