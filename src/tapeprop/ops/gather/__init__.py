"""Rows of a table by index, what is scattered back to them, and the counters and totals that a training tape keeps."""

from tapeprop.ops.gather.counters import accumulate, advance, count_correct
from tapeprop.ops.gather.rows import scatter_rows, take, take_rows

__all__ = ["accumulate", "advance", "count_correct", "scatter_rows", "take", "take_rows"]
