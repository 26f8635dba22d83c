"""A caller's X and y as lists of arrays, checked before anything is trained; nothing is copied that fits as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, LabelError, ShapeError


def real_array(value: Any, dtype: str, what: str) -> np.ndarray:
    """`value` as a C-contiguous array of `dtype` with at least one sample; itself where it is one already.

    DTypeError for what is no array of real numbers, ShapeError for one without samples.
    """
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise DTypeError(
            f"{what}: expected an array of real numbers, received rows of unequal length ({error})"
        ) from None
    if given.dtype.kind not in "fiub":
        raise DTypeError(
            f"{what}: expected real numbers, received dtype {given.dtype}; convert the array to {dtype} first"
        )
    if given.ndim == 0 or given.size == 0:
        raise ShapeError(f"{what}: expected at least one sample along axis 0, received shape {given.shape}")
    return np.ascontiguousarray(given, dtype)


def same_length(arrays: Sequence[np.ndarray], what: str) -> int:
    """The length that all arrays share along axis 0. ShapeError."""
    lengths = sorted({len(array) for array in arrays})
    if len(lengths) > 1:
        raise ShapeError(f"{what}: expected arrays of one length, received lengths {', '.join(map(str, lengths))}")
    return lengths[0]


def raw_labels(value: Any, name: str, samples: int, what: str) -> np.ndarray:
    """The labels of output `name` as an array of `samples` entries, otherwise as they came. LabelError."""
    where = f"{what} of node {name!r}"
    if value is None:
        raise LabelError(f"{where}: expected labels for its loss, received None; give them, or give it no loss")
    try:
        labels = np.asarray(value)
    except ValueError as error:
        raise LabelError(f"{where}: expected an array, received rows of unequal length ({error})") from None
    if labels.ndim == 0 or len(labels) != samples:
        raise LabelError(f"{where}: expected {samples} labels, one per sample, received shape {labels.shape}")
    return labels
