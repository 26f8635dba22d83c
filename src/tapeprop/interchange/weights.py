"""Weights under the names of another program: PyTorch's state dicts in safetensors files, to and fro.

Layers here have PyTorch's weight layouts, so that arrays go over as they are; only names differ. `names` says how, once for both
directions: {the graph's name: the other's}. A name stands for the key itself and for every key below it, the longest that fits counts,
and "" for all keys:

    names = {"stem": "conv1", "head.1": "fc", "head.0": "bn"}
    load_weights(graph, "resnet.safetensors", names)
    save_weights(graph, "mine.safetensors", names)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tapeprop.errors import GraphError, WeightFileError
from tapeprop.graph import GraphStructure
from tapeprop.interchange import safetensors
from tapeprop.interchange.safetensors import Path

__all__ = ["load_weights", "save_weights"]

#: The batches that a batch norm of PyTorch has seen, which count where its momentum is None: nothing of ours.
IGNORED = ".num_batches_tracked"


def load_weights(
    graph: GraphStructure, path: Path, names: Mapping[str, str] | None = None, *, strict: bool = True
) -> None:
    """Sets the graph's parameters and statistics from a safetensors file, or none of them.

    names: {the graph's name: the file's}, where they differ; see the module. strict: whether the file has to hold exactly what the
    graph has (PyTorch's num_batches_tracked apart); otherwise what stands in both is loaded. Float16 and bfloat16 are widened.
    GraphError for names that are not the graph's, or keys that are missing or unknown; ShapeError, DTypeError, NumericsError
    name the key; WeightFileError for a file that is none; OSError.
    """
    state = graph.state_dict()
    theirs = _renamed(state, names, "load_weights")
    arrays, _ = safetensors.read(path)
    found = {key: array for key, array in arrays.items() if not key.endswith(IGNORED)}
    wanted = set(theirs.values())
    missing = [
        f"{key!r} (here {name!r})" if key != name else repr(key) for name, key in theirs.items() if key not in found
    ]
    unknown = [repr(key) for key in found if key not in wanted]
    if strict and (missing or unknown):
        raise WeightFileError(
            f"{os.fspath(path)}: expected the {len(theirs)} arrays of this graph, got "
            f"{'; '.join([f'no {_few(missing)}'] * bool(missing) + [f'unknown {_few(unknown)}'] * bool(unknown))}: "
            "give names={the graph's name: the file's}, or strict=False to load what stands in both"
        )
    graph.load_state_dict({name: found.get(theirs[name], state[name]) for name in state})


def save_weights(graph: GraphStructure, path: Path, names: Mapping[str, str] | None = None) -> None:
    """Writes the graph's parameters and statistics as a safetensors file under PyTorch's names, whole or not at all.

    names: as for `load_weights`. GraphError for names that are not the graph's or that give two arrays one key; OSError.
    """
    state = graph.state_dict()
    theirs = _renamed(state, names, "save_weights")
    safetensors.write(path, {theirs[name]: array for name, array in state.items()}, {"format": "pt"})


def _renamed(state: Mapping[str, np.ndarray], names: Mapping[str, str] | None, what: str) -> dict[str, str]:
    """{key of the graph: key of the file}."""
    given: dict[str, Any] = dict(names or {})
    for ours, theirs in given.items():
        if not isinstance(ours, str) or not isinstance(theirs, str):
            raise GraphError(f"{what}: expected names of text, got {ours!r}: {theirs!r}")
    found, used = {}, set()
    for key in state:
        prefix = max((name for name in given if _covers(name, key)), key=len, default=None)
        if prefix is None:
            found[key] = key
            continue
        used.add(prefix)
        rest = key[len(prefix) :].lstrip(".")
        found[key] = ".".join(part for part in (given[prefix], rest) if part)
    if idle := [name for name in given if name not in used]:
        raise GraphError(
            f"{what}: expected names of this graph's arrays ({_few([repr(key) for key in state])}), got "
            f"{_few([repr(name) for name in idle])}"
        )
    owner: dict[str, str] = {}
    for name, key in found.items():
        if key in owner:
            raise GraphError(
                f"{what}: expected names that lead to different keys, got {key!r} for {owner[key]!r} and {name!r}"
            )
        owner[key] = name
    return found


def _covers(name: str, key: str) -> bool:
    return not name or key == name or key.startswith(f"{name}.")


def _few(listed: list[str]) -> str:
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
