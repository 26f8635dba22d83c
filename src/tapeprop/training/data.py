"""A caller's X and y as lists of arrays, checked before anything is trained; nothing is copied that fits as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tapeprop.errors import DTypeError, LabelError, ShapeError
from tapeprop.runtime.mirror import DeviceView

if TYPE_CHECKING:
    from tapeprop.losses import Loss
    from tapeprop.training.model import Model


def labels_for(model: Model, loss: Loss, value: Any, shape: Sequence[int], where: str) -> Any:
    """The labels of an output as its loss takes them. shape: the output's. LabelError.

    Labels that lie on the graph's device are read where they lie: their shape and dtype are checked here, and class ids out of range
    where they are used.
    """
    given = model.on_device(value, (model.dtype, "int64"), where)
    try:
        if given is None:
            return loss.labels(value, shape, model.dtype)
        # right answers of that kind: what the loss makes of them it would make of these labels
        right = np.zeros(given.shape, given.dtype) if given.dtype.kind == "i" else np.ones(given.shape, given.dtype)
        wanted = loss.labels(right, shape, model.dtype)
    except LabelError as error:
        raise LabelError(f"{where}: {error}") from None
    if wanted.dtype != given.dtype or wanted.size != given.size:
        raise LabelError(
            f"{where}: expected labels on the device as {wanted.dtype} of shape {wanted.shape}, got {given.dtype} of shape "
            f"{given.shape}; convert them there first"
        )
    return given.reshape(wanted.shape)


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
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1:
        raise ShapeError(
            f"{what}: expected arrays of one length, received lengths {', '.join(map(str, sorted(lengths)))}"
        )
    return lengths.pop()


def raw_labels(value: Any, name: str, samples: int, what: str) -> Any:
    """The labels of output `name` as an array of `samples` entries, otherwise as they came. LabelError."""
    where = f"{what} of node {name!r}"
    if value is None:
        raise LabelError(f"{where}: expected labels for its loss, received None; give them, or give it no loss")
    try:
        labels = value if isinstance(value, DeviceView) else np.asarray(value)
    except ValueError as error:
        raise LabelError(f"{where}: expected an array, received rows of unequal length ({error})") from None
    if labels.ndim == 0 or len(labels) != samples:
        raise LabelError(f"{where}: expected {samples} labels, one per sample, received shape {labels.shape}")
    return labels
