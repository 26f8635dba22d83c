"""The operators that are read: each is a function from a node and its inputs to tensors, written in `tapeprop.ops`.

    @converter("Softmax")
    def softmax(node, x):
        return ops.softmax(x, node.get("axis", -1))

    @converter("Reshape", known=[1])
    def reshape(node, x, shape): ...

A converter gets one argument for each input, None for an omitted one: a `Tensor`, or, at the places in `known`, a NumPy array
whose numbers are there already (sizes, axes, pads). It gives a tensor, or a tuple of them, or arrays of known numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["CONVERTERS", "Converter", "converter"]

ALL = "all"


@dataclass(frozen=True)
class Converter:
    """How one operator is read. known: the places of inputs whose numbers have to be known, or "all"."""

    function: Callable[..., Any]
    known: tuple[int, ...] | str

    def needs(self, place: int) -> bool:
        """Whether the input at a place has to be known."""
        return self.known == ALL or place in self.known


#: {operator of the domain "" : how it is read}.
CONVERTERS: dict[str, Converter] = {}


def converter(*names: str, known: Sequence[int] | str = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function reads these operators."""

    def registered(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            assert name not in CONVERTERS, name
            CONVERTERS[name] = Converter(function, known if isinstance(known, str) else tuple(known))
        return function

    return registered
