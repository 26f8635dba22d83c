"""Callbacks: what happens between the native calls of a fit.

`fit` sets `callback.run` (a `Run`) and calls the hooks in the order in which the callbacks were given. A hook sees a
state that is never half updated. `on_train_end` is called in every case, after an error or an interrupt too.
"""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tapeprop.training.history import History, Mode, direction

Logs = Mapping[str, float]

__all__ = ["CSVLogger", "Callback", "Checkpoint", "EarlyStopping", "Progress", "Run"]


class Run:
    """What a callback can look at while a fit runs.

    graph: what is trained. epochs, batches, samples: epochs in all, batches and samples of each. validated: whether
    there is validation data. history: the epochs so far.
    """

    def __init__(self, graph: Any, epochs: int, batches: int, samples: int, validated: bool):
        self.graph = graph
        self.epochs = epochs
        self.batches = batches
        self.samples = samples
        self.validated = validated
        self.history = History()

    def stop(self, reason: str) -> None:
        """Ends training after this epoch; `reason` goes into `history.stopped`."""
        self.history.stopped = reason

    def figure(self, monitor: str | None, logs: Logs, who: str) -> tuple[str, float]:
        """(name, value) of a monitored figure; None takes "val_loss" where there is one, else "loss". ValueError if
        unknown.
        """
        name = monitor or ("val_loss" if "val_loss" in logs else "loss")
        if name not in logs:
            raise ValueError(f"{who}: there is no figure {name!r} to monitor; there are {', '.join(logs)}")
        return name, float(logs[name])


class Callback:
    """The base of all callbacks; every hook does nothing. logs: {"loss": ..., "accuracy": ..., "val_loss": ...}."""

    run: Run

    def on_train_begin(self) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, epoch: int) -> None:
        """Before epoch number `epoch`, counted from 0."""

    def on_batch_end(self, done: int, logs: Logs) -> None:
        """After each native call, some ten times a second: `done` batches of the epoch are over. logs: means so far."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """After an epoch, with its figures and those of the validation."""

    def on_train_end(self) -> None:
        """When training is over, whatever ended it."""


class EarlyStopping(Callback):
    """Stops when a figure has not become better by more than `min_delta` for `patience` epochs.

    monitor: None takes "val_loss" where there is validation data, else "loss". mode: "min", "max" or "auto" (by name).
    restore_best: at the end the graph gets back the state of its best epoch. NaN is never better.
    """

    def __init__(
        self,
        monitor: str | None = None,
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Mode = "auto",
        restore_best: bool = True,
    ):
        if patience < 0 or min_delta < 0:
            raise ValueError(
                f"EarlyStopping: patience and min_delta must be >= 0; received {patience!r} and {min_delta!r}"
            )
        direction("", mode)
        self.monitor, self.patience, self.min_delta, self.mode = monitor, patience, min_delta, mode
        self.restore_best = restore_best
        self.on_train_begin()

    def on_train_begin(self) -> None:
        self.best = math.inf
        self.best_epoch: int | None = None
        self.waited = 0
        self._state: dict[str, Any] | None = None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        name, value = self.run.figure(self.monitor, logs, "EarlyStopping")
        signed = -value if direction(name, self.mode) == "max" else value
        first = self.best_epoch is None and not math.isnan(signed)
        if first or signed < self.best - self.min_delta:
            self.best, self.best_epoch, self.waited = signed, epoch, 0
            if self.restore_best:
                self._state = self.run.graph.state_dict()
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.run.stop(f"{name} has not become better since epoch {self.best_epoch}")

    def on_train_end(self) -> None:
        last = self.run.history.epochs[-1] if self.run.history.epochs else None
        if self._state is not None and self.best_epoch != last:
            self.run.graph.load_state_dict(self._state)
        self._state = None


class Checkpoint(Callback):
    """Saves the graph after epochs: `graph.save(path, classes)`.

    path: may hold {epoch} and the figures' names, as in "net-{epoch:03d}-{val_loss:.3f}.safetensors"; its folder is
    made. save_best_only: only when the monitored figure is the best so far. every: after every so many epochs.
    classes: {name: class} of your own layers and optimizers, as of save().
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        monitor: str | None = None,
        mode: Mode = "auto",
        save_best_only: bool = False,
        every: int = 1,
        classes: Mapping[str, type] | None = None,
    ):
        if every < 1:
            raise ValueError(f"Checkpoint: every must be >= 1; received {every!r}")
        direction("", mode)
        self.path, self.monitor, self.mode = os.fspath(path), monitor, mode
        self.save_best_only, self.every, self.classes = save_best_only, every, classes
        self.best = math.inf

    def on_train_begin(self) -> None:
        self.best = math.inf

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.save_best_only:
            name, value = self.run.figure(self.monitor, logs, "Checkpoint")
            signed = -value if direction(name, self.mode) == "max" else value
            if not signed < self.best:
                return
            self.best = signed
        elif (epoch + 1) % self.every:
            return
        try:
            path = Path(self.path.format(epoch=epoch, **logs))
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"Checkpoint: {self.path!r} names {error}, but there are epoch, {', '.join(logs)}"
            ) from None
        path.parent.mkdir(parents=True, exist_ok=True)
        self.run.graph.save(path, self.classes)


class CSVLogger(Callback):
    """Writes a line per epoch to a CSV file: epoch, then the figures of the first epoch in their order.

    append: goes on with a file that is there, whose columns have to be the same (ValueError); else the file starts
    anew. Every line is flushed when it is written.
    """

    def __init__(self, path: str | os.PathLike[str], append: bool = False):
        self.path, self.append = Path(path), append
        self._file: IO[str] | None = None
        self._columns: list[str] | None = None

    def on_train_begin(self) -> None:
        self._columns = None
        if self.append and self.path.exists():
            with self.path.open(newline="") as file:
                self._columns = next(csv.reader(file), None)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a" if self.append else "w", newline="")

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        assert self._file is not None
        columns = ["epoch", *logs]
        writer = csv.writer(self._file)
        if self._columns is None:
            self._columns = columns
            writer.writerow(columns)
        if columns != self._columns:
            raise ValueError(
                f"CSVLogger: {self.path} has the columns {', '.join(self._columns)}, this fit gives "
                f"{', '.join(columns)}; choose another file"
            )
        writer.writerow([epoch, *(repr(float(value)) for value in logs.values())])
        self._file.flush()

    def on_train_end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Progress(Callback):
    """Shows how far training is: a line per epoch, and before it, on a terminal where tqdm is installed, a bar.

    bar: False for lines alone; None decides as said. stream: stderr by default. A stream that breaks or
    closes ends the show, not the training.
    """

    def __init__(self, bar: bool | None = None, stream: IO[str] | None = None):
        self.bar, self.stream = bar, stream
        self._bar: Any = None
        self._start = 0.0
        self._broken = False

    def on_train_begin(self) -> None:
        self._broken = False
        self._make = _tqdm() if self.bar is not False and (self.bar or _is_terminal(self._out)) else None

    def on_epoch_begin(self, epoch: int) -> None:
        self._start = time.perf_counter()
        if self._make is not None and not self._broken:
            self._bar = self._quietly(
                self._make,
                total=self.run.batches,
                desc=self._title(epoch),
                unit="batch",
                file=self._out,
                leave=False,  # the epoch's line takes its place: a bar's figures are cut where the terminal is narrow
                dynamic_ncols=True,
            )

    def on_batch_end(self, done: int, logs: Logs) -> None:
        if self._bar is not None:
            self._quietly(self._bar.set_postfix_str, _figures(logs), refresh=False)
            self._quietly(self._bar.update, done - self._bar.n)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self._bar is not None:
            self._close()
        seconds = time.perf_counter() - self._start
        rate = self.run.samples / max(seconds, 1e-9)
        self._quietly(self._line, f"{self._title(epoch)}  {_figures(logs)}  {seconds:.2f} s  {rate:,.0f} samples/s")

    def on_train_end(self) -> None:
        self._close()
        if self.run.history.stopped:
            self._quietly(self._line, f"stopped: {self.run.history.stopped}")

    @property
    def _out(self) -> IO[str]:
        return self.stream or sys.stderr or io.StringIO()  # a windowed or daemonised process has no stderr

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch + 1:>{len(str(self.run.epochs))}}/{self.run.epochs}"

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def _close(self) -> None:
        if self._bar is not None:
            self._quietly(self._bar.close)
            self._bar = None

    def _quietly(self, function: Any, *args: Any, **more: Any) -> Any:
        if self._broken:
            return None
        try:
            return function(*args, **more)
        except (OSError, ValueError):  # a broken pipe; a file closed by its owner
            self._broken = True
            return None


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


def _is_terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def _figures(logs: Logs) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in logs.items())
