"""The nodes of a model as instructions: `Importer` runs them in order, on tensors and on known numbers.

A value is a tensor, or numbers that are there already: initialisers, constants, the sizes of tensors, and what is calculated from
these alone. An operator on known numbers is worked out at once, where `converters.known` does it: so sizes never enter the tape. Floating
initialisers are weights, which are tensors, save where they meet sizes (the factors of an enlargement) or have to be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np

from tapeprop import ops
from tapeprop.errors import GraphError
from tapeprop.interchange.onnx.converters import CONVERTERS, KNOWN, Converter
from tapeprop.interchange.onnx.model import Node
from tapeprop.ir import Tensor, UndecidedError, current

__all__ = ["Importer"]

#: What a name of the model stands for while it is read: a tensor, or numbers that are there already.
Content = Tensor | np.ndarray

#: Elements of all known numbers that the nodes of a model make: what is larger are data.
MOST_IN_ALL = 2**26
#: Sizes that data may have: tables as long as an axis are made for windows and borders before any data is there.
LONGEST_AXIS = 2**26


class Importer:
    """Gives every value of a model by its name.

    values: {name: content} that are there at the beginning. weight: makes the tensor of an initialiser that a converter wants as one,
    once for each name. sizes: those of the values that are sizes of tensors, or were calculated from such.
    """

    def __init__(
        self,
        values: Mapping[str, Content],
        weight: Callable[[str, np.ndarray], Tensor],
        sizes: Collection[str] = (),
    ):
        self.values: dict[str, Content] = dict(values)
        self._weights = {
            name for name, value in values.items() if isinstance(value, np.ndarray) and value.dtype.kind == "f"
        }
        self._sizes = set(sizes)  # known numbers that are sizes, or were calculated from such
        self._weight = weight
        self._tensors: dict[str, Tensor] = {}
        self._made = 0

    def run(self, nodes: tuple[Node, ...]) -> None:
        """Adds the outputs of the nodes. GraphError, naming the node, for what cannot be read."""
        for node in nodes:
            self._run(node)

    def tensor(self, name: str) -> Tensor:
        """A value as a tensor: known numbers become a constant, an initialiser becomes a weight. GraphError for open sizes."""
        if name not in self.values:
            raise GraphError(f"ONNX value {name!r}: expected a node that gives it, got none")
        value = self.values[name]
        if isinstance(value, Tensor):
            return value
        if value.dtype == object:
            raise GraphError(
                f"ONNX value {name!r}: expected numbers to calculate with, got the open sizes {value.tolist()}; give shapes={{...}}"
            )
        if name not in self._tensors:
            self._tensors[name] = self._weight(name, value) if name in self._weights else ops.as_tensor(value)
        return self._tensors[name]

    def _run(self, node: Node) -> None:
        found = CONVERTERS.get(node.op) if not node.domain else None
        known = KNOWN.get(node.op) if not node.domain and self._is_known(node) else None
        if found is None and known is None:
            where = f" of {node.domain}" if node.domain else ""
            raise GraphError(
                f"ONNX node {node.name!r}: expected an operator that tapeprop reads (docs/onnx.md), got {node.op}{where}"
            )
        results = self._results(node, known or found)
        unread = sorted(set(node.attributes) - node.asked)
        if unread:
            raise node.fail(f"attributes that {node.op} has here", ", ".join(unread), "leave them out")
        for name in node.outputs[len(results) :]:
            if name:
                raise node.fail(f"at most {len(results)} outputs", f"output {name!r}")
        from_sizes = node.op in ("Shape", "Size") or any(name in self._sizes for name in node.inputs)
        for name, value in zip(node.outputs, results):
            if name and value is None:
                raise node.fail("outputs that tapeprop gives", repr(name))
            if name in self.values:
                raise node.fail("outputs with names of their own", repr(name))
            if name:
                self.values[name] = value
                if from_sizes and not isinstance(value, Tensor):
                    self._sizes.add(name)

    def _results(self, node: Node, found: Converter | None) -> tuple[Content, ...]:
        assert found is not None
        if not found.takes(len(node.inputs)):
            raise node.fail("the inputs that the operator has", f"{len(node.inputs)} inputs")
        arguments = [self._argument(node, found, place) for place in range(len(node.inputs))]
        try:
            result = found.function(node, *arguments)
        except UndecidedError as question:
            if current() is not None:  # the program is recorded again, with the sizes of the call
                raise
            raise node.fail(f"sizes that decide whether {question}", "an open one", "give shapes={...}") from None
        except GraphError as error:
            if repr(node.name) in str(error):
                raise
            raise type(error)(f"ONNX node {node.name!r} ({node.op}): {error}") from None
        except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
            raise node.fail("inputs and attributes that fit together", f"{type(error).__name__}: {error}") from error
        results = result if isinstance(result, tuple) else (result,)
        self._made += sum(math.prod(value.shape) for value in results if isinstance(value, np.ndarray))
        if self._made > MOST_IN_ALL:
            raise node.fail(f"at most {MOST_IN_ALL} known numbers in all", self._made, "make them data")
        return results

    def _is_known(self, node: Node) -> bool:
        """Whether all inputs are numbers, and none is a weight that is to be trained."""
        names = [name for name in node.inputs if name]
        if not names or not all(isinstance(self.values.get(name), np.ndarray) for name in names):
            return False
        return not self._weights.intersection(names) or bool(self._sizes.intersection(names))

    def _argument(self, node: Node, found: Converter, place: int) -> Content | None:
        name = node.inputs[place]
        if not name:
            if found.wants(place):
                raise node.fail(f"input {place}", "none")
            return None
        if name not in self.values:
            raise node.fail("inputs that come before it", repr(name))
        value = self.values[name]
        if found.needs(place):
            if isinstance(value, Tensor):
                raise node.fail(
                    f"input {place} to be known when the model is read",
                    f"the tensor {name!r}",
                    "give it as an initialiser",
                )
            return value
        if place in found.either:
            return value
        tensor = self.tensor(name)
        if name not in self._weights and any(isinstance(size, int) and size > LONGEST_AXIS for size in tensor.shape):
            raise node.fail(f"axes of at most {LONGEST_AXIS} elements", f"{name!r} of shape {tensor.shape}")
        return tensor
