"""Ops that cut and join arrays: concat, split, slice, pad, and the reading of `x[1:3, ..., None]`."""

from tapeprop.ops.join.indexing import index, slice
from tapeprop.ops.join.parts import concat, split
from tapeprop.ops.join.regions import pad, place

__all__ = ["concat", "index", "pad", "place", "slice", "split"]
