"""Callbacks for `fit`: early stopping, checkpoints, CSV logs, progress; subclass `Callback` for your own."""

from tapeprop.training.callbacks import Callback, Checkpoint, CSVLogger, EarlyStopping, Progress, Run

__all__ = ["CSVLogger", "Callback", "Checkpoint", "EarlyStopping", "Progress", "Run"]
