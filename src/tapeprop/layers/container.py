"""Layers made of layers, and of functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tapeprop import ops
from tapeprop.errors import DuplicateNameError, GraphError
from tapeprop.ir import Tensor, at_node
from tapeprop.layers.layer import Layer, Member, check_layer, traced, tracing


class Sequential(Layer):
    """Layers one after another: Sequential(layer, layer, ...) or Sequential(("name", layer), ...), or both.

    The parameters of an unnamed layer are found under its index. Indexing gives a layer, by index or name. GraphError
    for what is no layer; DuplicateNameError for a name that comes twice.
    """

    def __init__(self, *layers: Layer | tuple[str, Layer]):
        named: dict[str, Layer] = {}
        for i, item in enumerate(layers):
            name, layer = item if isinstance(item, tuple) and len(item) == 2 else (str(i), item)
            if not isinstance(name, str) or not name or "." in name:
                raise GraphError(f"Sequential: expected a name without dots for layer {i}, got {name!r}")
            if name in named:
                raise DuplicateNameError(f"Sequential: expected names that differ, got {name!r} for layer {i} again")
            named[name] = check_layer(layer, f"Sequential, layer {name!r}")
        self._layers = named

    def members(self) -> Iterator[Member]:
        """(name or index, layer) in order."""
        yield from self._layers.items()

    def expected_input(self) -> tuple[int | None, ...] | None:
        """What the first layer that knows expects, as long as those before it keep the shape."""
        for _, child in self.children():
            expected = child.expected_input()
            if expected is not None or not child.keeps_shape:
                return expected
        return None

    def trace(self, x: Tensor) -> Tensor:
        """The last layer's result; x itself where there is none.

        Instructions and errors bear the names `<node>.<name>`.
        """
        node = tracing().node
        for name, layer in self._layers.items():
            with at_node(f"{node}.{name}" if node else name):
                x = traced(layer, x)
        return x

    def __getitem__(self, key: int | str) -> Layer:
        try:
            return self._layers[key] if isinstance(key, str) else list(self._layers.values())[key]
        except (KeyError, IndexError):
            raise type_of_miss(key)(f"Sequential has the layers {', '.join(self._layers)}, not {key!r}") from None

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    def __repr__(self) -> str:
        shown = [
            repr(layer) if name == str(i) else f"({name!r}, {layer!r})"
            for i, (name, layer) in enumerate(self._layers.items())
        ]
        return f"Sequential({', '.join(shown)})"


def type_of_miss(key: int | str) -> type[LookupError]:
    """What a container raises for a key that it does not have."""
    return KeyError if isinstance(key, str) else IndexError


class Lambda(Layer):
    """A function of one tensor, made of `tapeprop.ops`, as a layer: Lambda(lambda x: ops.tanh(x) * x).

    It is called when the graph is traced, not in every run. Parameters belong into a Layer of their own.
    """

    def __init__(self, function: Callable[[Tensor], Any]):
        if not callable(function):
            raise GraphError(f"Lambda: expected a function of a tensor, got {function!r}")
        self.function = function

    def trace(self, x: Tensor) -> Tensor:
        """x: any shape. Gives the function's result, a number or array as a constant."""
        return ops.as_tensor(self.function(x))

    def __repr__(self) -> str:
        return f"Lambda({getattr(self.function, '__name__', repr(self.function))})"
