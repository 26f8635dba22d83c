"""The operators that are read: each is a function from a node and its inputs to tensors, written in `tapeprop.ops`.

    @converter("Softmax")
    def softmax(node, x):
        return ops.softmax(x, node.get("axis", -1))

    @converter("Reshape", known=[1])
    def reshape(node, x, shape): ...

A converter gets one argument for each input, None for an omitted one: a `Tensor`; at the places in `known` a NumPy array whose
numbers are there already (sizes, axes, pads); at the places in `either` such an array where the numbers are there, else a tensor.
It gives a tensor, or a tuple of them, or arrays of known numbers. Every attribute of a node has to be asked for: one that is not is
refused, as it was not honoured.

    @on_known("Concat")
    def concat(node, *arrays): ...

reads the operator where all inputs are known numbers: it is worked out at once (see `known`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["CONVERTERS", "KNOWN", "Converter", "converter", "on_known"]

ALL = "all"


@dataclass(frozen=True)
class Converter:
    """How one operator is read. known: the places of inputs whose numbers have to be known, or "all"; either: may be known."""

    function: Callable[..., Any]
    known: tuple[int, ...] | str = ()
    either: tuple[int, ...] = ()

    def needs(self, place: int) -> bool:
        """Whether the input at a place has to be known."""
        return self.known == ALL or place in self.known

    def wants(self, place: int) -> bool:
        """Whether the input at a place must not be left out: the function's parameter has no default, or there are any number."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        found = parameters[place] if place < len(parameters) else parameters[-1]
        return found.kind is found.VAR_POSITIONAL or found.default is found.empty

    def takes(self, count: int) -> bool:
        """Whether a node may have so many inputs."""
        try:
            inspect.signature(self.function).bind(None, *[None] * count)
        except TypeError:
            return False
        return True


#: {operator of the domain "" : how it is read}.
CONVERTERS: dict[str, Converter] = {}
#: {operator: how it is worked out where all its inputs are known numbers}.
KNOWN: dict[str, Converter] = {}

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def converter(*names: str, known: Sequence[int] | str = (), either: Sequence[int] = ()) -> Decorator:
    """Decorator: the function reads these operators."""

    def registered(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            assert name not in CONVERTERS, name
            places = known if isinstance(known, str) else tuple(known)
            CONVERTERS[name] = Converter(function, places, tuple(either))
        return function

    return registered


def on_known(*names: str) -> Decorator:
    """Decorator: the function works these operators out where all inputs are known numbers."""

    def registered(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            assert name not in KNOWN, name
            KNOWN[name] = Converter(function, ALL)
        return function

    return registered
