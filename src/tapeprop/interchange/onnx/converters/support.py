"""What converters share: axes, whole numbers, and truth values as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop import ops
from tapeprop.interchange.onnx.model import Node
from tapeprop.ir import Dim, Tensor

__all__ = ["FLOATS", "MOST", "as_mask", "axes_of", "axis_of", "check_size", "check_table", "number", "whole"]

FLOATS = ("float32", "float64")
#: Elements of an array of known numbers: more are data, which a file a few bytes long must not ask for.
MOST = 2**24
#: Sizes, axes or bounds of one node: a shape has not as many axes, but positions may be listed.
_MOST_WHOLE = 2**16
#: Elements of a table that is made while the model is read.
_LONGEST_TABLE = 2**22


def axis_of(node: Node, axis: Any, rank: int) -> int:
    """An axis of a tensor of this rank, counted from the front. GraphError where there is none such."""
    found = int(axis) + (rank if axis < 0 else 0)
    if not 0 <= found < rank:
        raise node.fail(f"an axis from {-rank} to {rank - 1}", int(axis))
    return found


def axes_of(node: Node, axes: Any, rank: int) -> list[int]:
    """Axes, each once and counted from the front, in the order in which they are given. GraphError."""
    given = [int(axis) for axis in np.ravel(axes)]
    found = [axis_of(node, axis, rank) for axis in given]
    if len(set(found)) < len(found):
        raise node.fail("each axis once", given)
    return found


def whole(node: Node, array: np.ndarray) -> list[Any]:
    """Known numbers as ints, open sizes among them. GraphError for fractions, and for more than a list should hold."""
    if array.size > _MOST_WHOLE:
        raise node.fail(f"at most {_MOST_WHOLE} numbers", array.size)
    found: list[Any] = []
    for value in np.ravel(array):
        if not isinstance(value, Dim):
            if int(value) != value:
                raise node.fail("whole numbers", value)
            value = int(value)
        found.append(value)
    return found


def check_size(node: Node, shape: Sequence[int]) -> None:
    """GraphError where an array would be larger than known numbers are."""
    if math.prod(shape) > MOST:
        raise node.fail(f"at most {MOST} known numbers", f"shape {tuple(shape)}", "make it data")


def check_table(node: Node, *sizes: int) -> None:
    """GraphError where a table for windows, borders or Resize would be so long that making it takes seconds."""
    if math.prod(sizes) > _LONGEST_TABLE:
        raise node.fail(f"axes of at most {_LONGEST_TABLE} elements here", " x ".join(map(str, sizes)))


def number(node: Node, what: str, array: np.ndarray) -> Any:
    """The one number of a known array; an int, a float or an open size. GraphError for several."""
    if array.size != 1:
        raise node.fail(f"one number as {what}", f"shape {array.shape}")
    value = np.ravel(array)[0]
    return value if isinstance(value, Dim) else value.item()


def as_mask(x: Tensor, dtype: str = "float32") -> Tensor:
    """Truth values as numbers to calculate with: bytes are cast, those that were calculated are of a floating dtype already."""
    return x if x.dtype in FLOATS else ops.cast(x, dtype)
