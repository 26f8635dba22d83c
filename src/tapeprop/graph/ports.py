"""The inputs or outputs of a graph by place and by name: callers give and get a bare value, a list, or a dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tapeprop.errors import GraphError


class NamedList(list):
    """A list whose entries can also be had by the name of their node: `outputs["head"]`.

    names: one per entry, in order. Slices are plain lists. KeyError for a name that is not there.
    """

    def __init__(self, values: Sequence[Any], names: Sequence[str]):
        super().__init__(values)
        self.names = tuple(names)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.names:
                raise KeyError(f"there is no {key!r} here, only {', '.join(self.names)}")
            return super().__getitem__(self.names.index(key))
        return super().__getitem__(key)


@dataclass(frozen=True)
class Ports:
    """The names of a graph's inputs or outputs in order. listed: callers give and get a list, even of one."""

    names: tuple[str, ...]
    listed: bool

    def split(self, value: Any, what: str, partial: bool = False) -> list[Any]:
        """A caller's value as one entry per port: a dict by name, a list in order, or the one value itself.

        partial: a name that a dict leaves out gives None. GraphError where entries are missing, unknown or of another
        number.
        """
        if isinstance(value, Mapping):
            if len(set(self.names)) < len(self.names):
                raise GraphError(
                    f"{what}: a dict needs nodes with names that differ; these are {', '.join(self.names)}"
                )
            if not set(value) <= set(self.names) or not (partial or len(value) == len(self.names)):
                some = "some of " if partial else ""
                raise GraphError(
                    f"{what}: expected {some}the keys {', '.join(self.names)}, received "
                    f"{', '.join(map(str, value)) or 'none'}"
                )
            return [value.get(name) for name in self.names]
        if not self.listed:
            return [value]
        if not isinstance(value, list | tuple) or len(value) != len(self.names):
            received = f"{len(value)} entries" if isinstance(value, list | tuple) else type(value).__name__
            raise GraphError(
                f"{what}: expected a list of {len(self.names)} ({', '.join(self.names)}), received {received}"
            )
        return list(value)

    def join(self, values: Sequence[Any]) -> Any:
        """The reverse: a `NamedList` where callers expect a list, else the one value."""
        return NamedList(values, self.names) if self.listed else values[0]
