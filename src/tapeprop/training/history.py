"""What a fit has seen, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

Mode = Literal["auto", "min", "max"]
HIGHER_IS_BETTER = ("accuracy", "acc", "precision", "recall", "f1", "auc", "r2")
SHOWN = 10  # epochs that a table shows: the first and the last five


def direction(monitor: str, mode: Mode = "auto") -> Literal["min", "max"]:
    """Whether a figure is to fall or to rise. "auto" goes by its name: accuracy, f1, r2, ... rise, all others fall."""
    if mode not in ("auto", "min", "max"):
        raise ValueError(f'mode must be "auto", "min" or "max"; received {mode!r}')
    if mode != "auto":
        return mode
    return "max" if any(monitor.endswith(name) for name in HIGHER_IS_BETTER) else "min"


class History:
    """The figures of each epoch: `history.history` is {name: list of floats}, one entry per epoch in `history.epochs`.

    Every list can be had as an attribute or by key as well: history.loss, history["val_accuracy"]. seconds: the wall
    time of each epoch, validation included; compile_seconds: what preparing the tapes took before the first. stopped:
    why training ended before its last epoch, or None.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epochs: list[int] = []
        self.seconds: list[float] = []
        self.compile_seconds = 0.0
        self.stopped: str | None = None

    def append(self, epoch: int, logs: Mapping[str, float], seconds: float = 0.0) -> None:
        """Adds an epoch. A figure that is new, or missing this time, is NaN where it was not measured."""
        for name in logs:
            self.history.setdefault(name, [math.nan] * len(self.epochs))
        for name, values in self.history.items():
            values.append(float(logs.get(name, math.nan)))
        self.epochs.append(epoch)
        self.seconds.append(seconds)

    def __getitem__(self, name: str) -> list[float]:
        try:
            return self.history[name]
        except KeyError:
            raise KeyError(
                f"no figure {name!r} was measured; there are {', '.join(self.history) or 'none yet'}"
            ) from None

    def __getattr__(self, name: str) -> list[float]:
        if name.startswith("_") or name == "history":
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __len__(self) -> int:
        return len(self.epochs)

    def best(self, monitor: str | None = None, mode: Mode = "auto") -> dict[str, float]:
        """The figures of the best epoch, "epoch" among them; the earliest of equals. Epochs with NaN do not count.

        monitor: None takes "val_loss" where it was measured, else "loss". KeyError for one that was not measured,
        ValueError where no epoch has a value.
        """
        monitor = monitor or ("val_loss" if "val_loss" in self.history else "loss")
        sign = -1 if direction(monitor, mode) == "max" else 1
        places = [i for i, value in enumerate(self[monitor]) if not math.isnan(value)]
        if not places:
            raise ValueError(f"no epoch has a value of {monitor!r}")
        place = min(places, key=lambda i: sign * self[monitor][i])
        return {"epoch": self.epochs[place], **{name: values[place] for name, values in self.history.items()}}

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epochs)"
        names = list(self.history)
        rows = [
            [str(epoch), *(_text(self.history[name][i]) for name in names), f"{self.seconds[i]:.2f}"]
            for i, epoch in enumerate(self.epochs)
        ]
        if len(rows) > SHOWN:
            half = SHOWN // 2
            rows = [*rows[:half], ["..."] * (len(names) + 2), *rows[-half:]]
        table = [["epoch", *names, "seconds"], *rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in table)


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}" if abs(value) < 1e-3 and value else f"{value:.4f}"
