"""The fit loop: epochs of native calls, and what happens between them.

One native call runs as many steps as take about 0.1 s; signals, progress, schedules and callbacks come between calls,
so none of them ever sees a half-updated state. Everything that a caller can get wrong is refused before the graph is
touched.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tapeprop.errors import StateError
from tapeprop.schedules import Schedule
from tapeprop.training.callbacks import Callback, Progress, Run
from tapeprop.training.evaluate import (
    BATCH,
    Objective,
    Samples,
    figures,
    objective_of,
    predict_arrays,
    samples_of,
    whole_number,
)
from tapeprop.training.history import History
from tapeprop.training.metrics import Metric, listed
from tapeprop.training.model import Model, Session
from tapeprop.training.rates import Rates

CALL_SECONDS = 0.1


def fit(
    graph: Any,
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
    metrics: Iterable[str | Metric] = ("accuracy",),
    callbacks: Iterable[Callback] = (),
    loss_weights: Any = None,
    accumulate: int = 1,
    verbose: int = 1,
) -> History:
    """Trains a built graph and gives the figures of every epoch.

    X: (N, ...), or a list or dict (by node name) of such arrays where the graph has several roots. Real numbers, cast
    to the graph's dtype, uncopied where they fit; do not change them meanwhile. y: labels as the losses take them.
    loss: one for all outputs, or a list or dict with None for outputs to leave alone. loss_weights: their factors.
    optimizer: becomes the graph's; None keeps the one that the graph has.
    batch_size: the last, smaller batch of an epoch is trained on like the others. accumulate: batches per update; the
    gradients of their mean losses are averaged.
    validation_data: (X, y). validation_split: in [0, 1), the part taken from the END of X and y, before any shuffling.
    seed: of the order of the samples, another one in every epoch. None takes the graph's seed, or chance where it has
    none.
    schedule: sets the learning rate of every optimizer in the graph, from that optimizer's own, before each epoch or
    update; or {optimizer, node or node's name: schedule} for some of them.
    metrics: names or functions (y_true, y_pred) -> float. Loss and accuracy of training are counted while the weights
    change; other metrics cost a prediction of the training data after each epoch.
    verbose: 0 nothing, 1 a progress bar on a terminal that has tqdm, else lines, 2 lines.

    Raises GraphError, ShapeError, DTypeError, LabelError, ValueError or TypeError before anything is trained;
    StateError where there is no optimizer.
    """
    epochs, batch_size = whole_number("epochs", epochs), whole_number("batch_size", batch_size)
    accumulate = whole_number("accumulate", accumulate)
    metrics, callbacks = listed(metrics), _callbacks(callbacks, verbose)
    model = Model(graph)
    rates = Rates(model, schedule)
    objective = objective_of(model.outputs, loss, loss_weights)
    training, validation = _data(model, X, y, objective, validation_data, validation_split)
    seed = _seed(seed, graph)
    native = "accuracy" in metrics and _counts_accuracy(objective, model, training)
    extra = [m for m in metrics if not (native and m == "accuracy")]

    batch_size = min(batch_size, len(training))
    batches = math.ceil(len(training) / batch_size)
    run = Run(graph, epochs, batches, len(training), validation is not None)
    start = time.perf_counter()
    with model.advanced_by(optimizer):
        session = model.session(training.arrays, training.labels, objective, batch_size, native, accumulate)
        rates.begin(epochs, math.ceil(batches / accumulate))
    with contextlib.closing(session):
        if validation is not None:
            _warm_up(model, validation, objective)
        run.history.compile_seconds = time.perf_counter() - start
        with _between(callbacks, run):
            for epoch in range(epochs):
                start = time.perf_counter()
                for callback in callbacks:
                    callback.on_epoch_begin(epoch)
                rows = (
                    np.random.default_rng([seed, epoch]).permutation(len(training))
                    if shuffle
                    else np.arange(len(training))
                )
                session.start_epoch(rows.astype(np.int64, copy=False))
                _train(session, run, rates, callbacks)
                logs = _totals(session)
                if extra:
                    measured = figures(model, training, objective, extra)
                    logs |= {name: value for name, value in measured.items() if name != "loss"}
                if validation is not None:
                    found = figures(model, validation, objective, metrics)
                    logs |= {f"val_{name}": value for name, value in found.items()}
                if rates:
                    logs["lr"] = model.lr
                    rates.advance("epoch", logs)
                run.history.append(epoch, logs, time.perf_counter() - start)
                for callback in callbacks:
                    callback.on_epoch_end(epoch, logs)
                if run.history.stopped:
                    break
    return run.history


def _train(session: Session, run: Run, rates: Rates, callbacks: Sequence[Callback]) -> None:
    """One epoch of native calls."""
    rates.apply("epoch")
    done, steps = 0, 1
    while done < run.batches:
        rates.apply("batch")
        start = time.perf_counter()
        ran = session.run(1 if rates.each_batch else min(steps, run.batches - done))
        seconds = time.perf_counter() - start
        if ran < 1:
            raise StateError(
                f"fit: the epoch ended after {done} of {run.batches} batches; was the graph edited meanwhile?"
            )
        done += ran
        # At most four times as many as before: the first calls of a process are slow and say little.
        steps = max(1, min(4 * steps, int(CALL_SECONDS * ran / max(seconds, 1e-9))))
        logs = _totals(session)
        rates.advance("batch", logs)
        for callback in callbacks:
            callback.on_batch_end(done, logs)


def _totals(session: Session) -> dict[str, float]:
    return {name: float(value) for name, value in session.totals().items() if name != "samples"}


@contextlib.contextmanager
def _between(callbacks: Sequence[Callback], run: Run) -> Iterator[None]:
    """`on_train_begin` before, `on_train_end` after in every case, for those that began; the first error is what
    comes out.
    """
    begun: list[Callback] = []
    failed = True
    try:
        for callback in callbacks:
            callback.run = run
            begun.append(callback)
            callback.on_train_begin()
        yield
        failed = False
    finally:
        errors = []
        for callback in begun:
            try:
                callback.on_train_end()
            except Exception as error:
                errors.append(error)
        if errors and not failed:
            raise errors[0]


def _callbacks(callbacks: Iterable[Callback], verbose: int) -> list[Callback]:
    found = list(callbacks)
    for callback in found:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks: expected tapeprop.callbacks.Callback objects, received {callback!r}")
    if verbose not in (0, 1, 2):
        raise ValueError(f"verbose: expected 0, 1 or 2, received {verbose!r}")
    if verbose and not any(isinstance(callback, Progress) for callback in found):
        found.append(Progress(bar=None if verbose == 1 else False))
    return found


def _data(
    model: Model, X: Any, y: Any, objective: Objective, validation_data: Any, validation_split: float
) -> tuple[Samples, Samples | None]:
    if not 0 <= validation_split < 1:
        raise ValueError(f"validation_split: expected a number in [0, 1), received {validation_split!r}")
    if validation_data is not None and validation_split:
        raise ValueError("validation: expected validation_data or validation_split, received both")
    samples = samples_of(model, X, y, objective)
    if validation_data is not None:
        if not isinstance(validation_data, list | tuple) or len(validation_data) != 2:
            raise TypeError(f"validation_data: expected a pair (X, y), received {type(validation_data).__name__}")
        names = ("validation X", "validation y")
        return samples, samples_of(model, validation_data[0], validation_data[1], objective, names)
    if not validation_split:
        return samples, None
    if len(samples) < 2:
        raise ValueError(f"validation_split: needs at least 2 samples, received {len(samples)}")
    held = min(max(round(len(samples) * validation_split), 1), len(samples) - 1)
    return samples.part(slice(None, -held)), samples.part(slice(-held, None))


def _seed(seed: int | None, graph: Any) -> int:
    if seed is None:
        seed = getattr(graph, "seed", None)
    if seed is None:
        return int(np.random.SeedSequence().entropy)  # type: ignore[arg-type]
    return whole_number("seed", seed, least=0)


def _counts_accuracy(objective: Objective, model: Model, training: Samples) -> bool:
    """Whether the tape itself can count right answers: one output (N, C) whose largest entry is each sample's answer."""
    loss = objective.single
    if loss is None or loss.accuracy != "argmax" or loss.ignore_index is not None:
        return False
    return len(model.output_shapes([a.shape for a in training.arrays])[0]) == 2


def _warm_up(model: Model, samples: Samples, objective: Objective) -> None:
    """Compiles what a validation runs, so that the epochs' times are of work alone."""
    count = len(samples)
    for rows in {min(BATCH, count), count % BATCH} - {0}:
        part = samples.part(slice(0, rows))
        for loss, output, labels in zip(objective.losses, predict_arrays(model, part.arrays), part.labels, strict=True):
            if loss is not None:
                loss(np.asarray(labels), output)
