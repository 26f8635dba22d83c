"""State dicts: keys that differ, and loading that is all or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tapeprop.errors import DTypeError, DuplicateNameError, GraphError, NumericsError, ShapeError
from tapeprop.ir import Parameter
from tapeprop.layers.layer import Member

SHOWN = 5


def check_keys(members: Iterable[Member]) -> None:
    """DuplicateNameError where two parameters have one key, which dots in names make possible."""
    found: set[str] = set()
    for key, member in members:
        if isinstance(member, Parameter):
            if key in found:
                raise DuplicateNameError(
                    f"expected state keys that differ, got {key!r} for two parameters: rename a node"
                )
            found.add(key)


def load(parameters: Mapping[str, Parameter], state: Mapping[str, Any]) -> None:
    """Copies `state` into the parameters after every entry has been checked.

    GraphError for keys that are missing or unknown; ShapeError; DTypeError for what is no real number, or no integer
    where a counter is; NumericsError for a value that overflows the parameter's dtype.
    """
    missing = [key for key in parameters if key not in state]
    unknown = [key for key in state if key not in parameters]
    if missing or unknown:
        problems = [f"missing {_listed(missing)}"] * bool(missing) + [f"unknown {_listed(unknown)}"] * bool(unknown)
        raise GraphError(f"state: expected the {len(parameters)} keys of this graph, got {'; '.join(problems)}")
    arrays = {key: _checked(key, parameter, state[key]) for key, parameter in parameters.items()}
    for key, parameter in parameters.items():
        parameter.assign(arrays[key])


def _checked(key: str, parameter: Parameter, value: Any) -> np.ndarray:
    array, dtype = np.asarray(value), np.dtype(parameter.value.dtype)
    if array.dtype.kind not in ("iu" if dtype.kind == "i" else "fiub"):
        expected = "integers" if dtype.kind == "i" else "real numbers"
        raise DTypeError(f"state[{key!r}]: expected {expected}, got dtype {array.dtype}")
    if array.shape != parameter.shape:
        raise ShapeError(f"state[{key!r}]: expected shape {parameter.shape}, got {array.shape}")
    with np.errstate(over="ignore"):
        if dtype.kind == "f" and not np.array_equal(np.isfinite(array), np.isfinite(array.astype(dtype))):
            raise NumericsError(f"state[{key!r}]: expected values that fit {dtype}, got one that overflows")
    return array


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(map(repr, keys[:SHOWN])) + more
