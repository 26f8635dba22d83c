"""A caller's X and y as lists of arrays, checked before anything is trained; nothing is copied that fits as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, GraphError, LabelError, ShapeError


@dataclass(frozen=True)
class Ports:
    """The names of a graph's inputs or outputs in order. listed: callers give and get a list, even of one."""

    names: tuple[str, ...]
    listed: bool

    def split(self, value: Any, what: str) -> list[Any]:
        """A caller's value as one entry per port: a dict by name, a list in order, or the one value itself.

        GraphError where entries are missing, unknown or of another number.
        """
        if isinstance(value, Mapping):
            if len(set(self.names)) < len(self.names):
                raise GraphError(
                    f"{what}: a dict needs nodes with names that differ; these are {', '.join(self.names)}"
                )
            if set(value) != set(self.names):
                raise GraphError(
                    f"{what}: expected the keys {', '.join(self.names)}, received "
                    f"{', '.join(map(str, value)) or 'none'}"
                )
            return [value[name] for name in self.names]
        if not self.listed:
            return [value]
        if not isinstance(value, list | tuple) or len(value) != len(self.names):
            received = f"{len(value)} entries" if isinstance(value, list | tuple) else type(value).__name__
            raise GraphError(
                f"{what}: expected a list of {len(self.names)} ({', '.join(self.names)}), received {received}"
            )
        return list(value)

    def join(self, values: Sequence[Any]) -> Any:
        """The reverse: a list where callers expect one, else the one value."""
        return list(values) if self.listed else values[0]


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


def raw_labels(value: Any, ports: Ports, samples: int, what: str) -> list[np.ndarray]:
    """The labels of each output as arrays of `samples` entries, otherwise as they came. LabelError, GraphError."""
    found = []
    for name, part in zip(ports.names, ports.split(value, what), strict=True):
        where = f"{what} of node {name!r}"
        try:
            labels = np.asarray(part)
        except ValueError as error:
            raise LabelError(f"{where}: expected an array, received rows of unequal length ({error})") from None
        if labels.ndim == 0 or len(labels) != samples:
            raise LabelError(f"{where}: expected {samples} labels, one per sample, received shape {labels.shape}")
        found.append(labels)
    return found
