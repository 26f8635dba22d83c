"""Callbacks for `fit`: early stopping, checkpoints, CSV logs, progress, a live display; subclass `Callback` for your own."""

from tapeprop.profiler.live import Live
from tapeprop.training.callbacks import Callback, Checkpoint, CSVLogger, EarlyStopping, Progress, Run

__all__ = ["CSVLogger", "Callback", "Checkpoint", "EarlyStopping", "Live", "Progress", "Run"]
