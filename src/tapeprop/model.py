"""`LayerGraph`, the public class: a compiled graph with training, prediction and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop import interchange
from tapeprop.errors import DTypeError
from tapeprop.graph.graph import CompiledGraph, StepArguments
from tapeprop.layers.edits import edits
from tapeprop.profiler.collect import profile_trial
from tapeprop.profiler.profile import Profile
from tapeprop.schedules import Schedule
from tapeprop.training import evaluate as evaluation
from tapeprop.training import optimizer_state
from tapeprop.training.callbacks import Callback
from tapeprop.training.fit import fit
from tapeprop.training.history import History
from tapeprop.training.model import Model
from tapeprop.training.step import step_labels


class LayerGraph(CompiledGraph):
    """A network as a directed acyclic graph of `LayerNode`s: build() it, then run and train it.

    graph: {node: [next nodes]}, copied. root, term: a node, or a list of nodes for several inputs or outputs. seed: makes initial
    weights, dropout and the order of samples repeatable.

        a, b = LayerNode(Dense(4, 8)), LayerNode(Dense(8, 3))
        graph = LayerGraph({a: [b], b: []}, root=a, term=b).build()
        y = graph(np.zeros((2, 4)))

    A graph is itself a layer; it can be subclassed (`init_nodes`). One thread runs it at a time, others wait.
    """

    #: (number of edits, losses and weights, what a training step made of them); see `_model_and_objective`.
    _prepared: tuple[int, tuple, tuple[Model, evaluation.Objective]] | None = None

    def _new(self, **options: Any) -> LayerGraph:
        return LayerGraph(**options)

    def train_step(self, X: Any, y: Any, loss: Any, loss_weights: Any = None) -> float:
        """zero_grad, forward, loss, backward, clip and update in one native call; the (weighted) loss before the update.

        y, loss, loss_weights: one, or for several outputs a list (None: an output without a loss) or a dict by node name, which
        leaves such outputs out. Only what the losses reach is run and advanced. Labels are checked first: LabelError, and
        nothing is trained.
        """
        self._compiled("train_step()")
        return self.native_step(self._step_arguments(X, y, loss, loss_weights))

    def profile(self, X: Any, y: Any = None, loss: Any = None, repeats: int = 20, loss_weights: Any = None) -> Profile:
        """Where the time and the memory of a training step go, instruction by instruction; without y and loss, of predict().

        X, y, loss, loss_weights: as of train_step(). repeats: steps that are measured, after one that is not. Without an optimizer
        there is no update. Nothing is trained: weights, gradients, optimizer and random state are as before afterwards.
        ValueError for y without loss, or the other way round.
        """
        self._compiled("profile()")
        if y is None and loss is None:
            return profile_trial(self.trial_predict(self._inputs(X)), repeats)
        if y is None or loss is None:
            raise ValueError(
                "profile: expected y and loss for a training step, or neither for predict(); got one of them"
            )
        return profile_trial(self.trial_step(self._step_arguments(X, y, loss, loss_weights)), repeats)

    def _step_arguments(self, X: Any, y: Any, loss: Any, loss_weights: Any) -> StepArguments:
        arrays = self._inputs(X)
        model, objective = self._model_and_objective(loss, loss_weights)
        labels = step_labels(model, objective, y, self.output_shapes([a.shape for a in arrays]))
        return arrays, labels, objective.losses, objective.weights

    def _model_and_objective(self, loss: Any, loss_weights: Any) -> tuple[Model, evaluation.Objective]:
        """Those of the last call where they would be the same: making them takes as long as a small network's step."""
        now, asked = edits(), (_copied(loss), _copied(loss_weights))
        if self._prepared is not None and self._prepared[0] == now and self._prepared[1] == asked:
            return self._prepared[2]
        model = Model(self)
        found = model, evaluation.objective_of(model.outputs, loss, loss_weights)
        self._prepared = now, asked, found
        return found

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        loss: Any,
        optimizer: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: tuple[Any, Any] | None = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        seed: int | None = None,
        schedule: Schedule | Mapping[Any, Schedule] | None = None,
        metrics: Iterable[Any] = ("accuracy",),
        callbacks: Iterable[Callback] = (),
        loss_weights: Any = None,
        accumulate: int = 1,
        verbose: int = 1,
    ) -> History:
        """Trains on whole arrays and gives the figures of every epoch: see `tapeprop.training.fit.fit`."""
        self._compiled("fit()")
        return fit(
            self,
            X,
            y,
            loss=loss,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            validation_data=validation_data,
            validation_split=validation_split,
            shuffle=shuffle,
            seed=seed,
            schedule=schedule,
            metrics=metrics,
            callbacks=callbacks,
            loss_weights=loss_weights,
            accumulate=accumulate,
            verbose=verbose,
        )

    def predict(self, X: Any, batch_size: int = 256) -> Any:
        """The output for X in evaluation mode, batch by batch: fresh arrays, one per term where `term` is a list."""
        if type(batch_size) is int and self.is_batch(X, batch_size):
            # A small network takes less time for a sample than it takes to look at all else that X could be.
            (output,) = outputs = self.infer([X])
            evaluation.expect_rows(self, outputs, len(X))
            return np.asarray(output)
        self._compiled("predict()")
        return evaluation.predict(self, X, batch_size)

    def evaluate(
        self, X: Any, y: Any, *, loss: Any, metrics: Sequence[Any] = ("accuracy",), **options: Any
    ) -> dict[str, float]:
        """{"loss": ..., metric: ...} over whole arrays in evaluation mode."""
        self._compiled("evaluate()")
        return evaluation.evaluate(self, X, y, loss=loss, metrics=metrics, **options)

    # ---- files

    def save(self, path: Any, classes: Mapping[str, type] | None = None) -> None:
        """Writes structure, weights, running statistics, optimizer and random state to one safetensors file, atomically.

        classes: {name: class} of your own layers and optimizers; load() needs them too. GraphError where something cannot be
        written (a Lambda, say): keep its code, and save state_dict() instead.
        """
        with self._exclusive("save()"):
            interchange.save(self, path, classes)

    def optimizer_state_dict(self) -> dict[str, Any] | None:
        """Optimizer and random state as plain data, for load_optimizer_state_dict(); None before build()."""
        with self._exclusive("optimizer_state_dict()"):
            return optimizer_state.state_of(self)

    def load_optimizer_state_dict(self, state: Mapping[str, Any], classes: Mapping[str, type] | None = None) -> None:
        """Sets what optimizer_state_dict() gave. WeightFileError where it does not fit; nothing is set then.

        classes: {name: class} of optimizers of your own, where the graph does not have them yet.
        """
        self._compiled("load_optimizer_state_dict()")
        with self._exclusive("load_optimizer_state_dict()"):
            optimizer_state.restore(self, state, classes)


def load(path: Any, classes: Mapping[str, type] | None = None, **options: Any) -> LayerGraph:
    """The graph that `LayerGraph.save` wrote, built as it was. options: of build(), in place of those in the file.

    WeightFileError for a file that is truncated, corrupt or hostile; nothing it names is imported or run.
    """
    return interchange.load(path, classes, graph_class=LayerGraph, **options)


def _copied(value: Any) -> Any:
    """What can be edited in place as a tuple, to be compared later."""
    if isinstance(value, dict):
        return (dict, *value.items())
    return (list, *value) if isinstance(value, list | tuple | np.ndarray) else value


def gradcheck(graph: LayerGraph, X: Any, *, eps: float = 1e-6, samples: int = 64, seed: int = 0) -> float:
    """The largest relative error between backward() and central differences, over inputs and parameters.

    graph: built with dtype float64, and deterministic (no dropout). eps: the step. samples: elements tried per array, drawn by `seed`.
    The error of an element is |backward - difference| / max(1, |difference|). Gradients are dropped afterwards.
    """
    graph._compiled("gradcheck()")
    if graph.dtype != "float64":
        raise DTypeError(f'gradcheck: expected a graph built with dtype="float64", got {graph.dtype}; build it anew')
    rng = np.random.default_rng(seed)
    listed = isinstance(graph.root, list)
    inputs = [np.array(x, dtype=graph.dtype) for x in graph.arrange_inputs(X, "X")]

    def outputs() -> list[np.ndarray]:
        found = graph.forward(inputs if listed else inputs[0], False)
        return found if isinstance(graph.term, list) else [found]

    seeds = [rng.standard_normal(y.shape) for y in outputs()]
    graph.zero_grad()
    found = graph.backward(seeds if isinstance(graph.term, list) else seeds[0])
    pairs = [(x, dx, lambda _: None) for x, dx in zip(inputs, found if listed else [found], strict=True)]
    frozen = graph._frozen_parameters()
    for _, p in graph.named_parameters():
        if p.trainable and p not in frozen:
            pairs.append((p.value.copy(), p.grad.copy(), p.assign))
    worst = 0.0
    for values, gradient, written in pairs:
        for place in rng.choice(values.size, size=min(values.size, samples), replace=False):
            index = np.unravel_index(place, values.shape)
            before, sides = values[index], []
            for step in (eps, -eps):
                values[index] = before + step
                written(values)
                sides.append(sum(float((s * y).sum()) for s, y in zip(seeds, outputs(), strict=True)))
            values[index] = before
            written(values)
            difference = (sides[0] - sides[1]) / (2 * eps)
            worst = max(worst, abs(float(gradient[index]) - difference) / max(1.0, abs(difference)))
    graph.zero_grad()
    return worst
