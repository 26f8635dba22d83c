"""The nodes of a model as instructions: `Importer` runs them in order, on tensors and on known numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from tapeprop import ops
from tapeprop.errors import DeviceError, GraphError
from tapeprop.interchange.onnx.converters import CONVERTERS
from tapeprop.interchange.onnx.model import Node
from tapeprop.ir import Tensor

__all__ = ["Importer"]

#: What a name of the model stands for while it is read: a tensor, or numbers that are there already.
Content = Tensor | np.ndarray


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
        self._initial = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        self._weight = weight
        self._tensors: dict[str, Tensor] = {}

    def run(self, nodes: tuple[Node, ...]) -> None:
        """Adds the outputs of the nodes. GraphError, naming the node, for what cannot be read."""
        for node in nodes:
            self._run(node)

    def tensor(self, name: str) -> Tensor:
        """A value as a tensor: known numbers become a constant, an initialiser becomes a weight."""
        value = self.values[name]
        if isinstance(value, Tensor):
            return value
        if name not in self._tensors:
            if name in self._initial and value.dtype.kind == "f":
                self._tensors[name] = self._weight(name, value)
            else:
                self._tensors[name] = ops.as_tensor(value)
        return self._tensors[name]

    def _run(self, node: Node) -> None:
        found = CONVERTERS.get(node.op) if not node.domain else None
        if found is None:
            where = f" of {node.domain}" if node.domain else ""
            raise GraphError(
                f"ONNX node {node.name!r}: expected an operator that tapeprop reads (docs/onnx.md), got {node.op}{where}"
            )
        try:
            result = found.function(node, *[self._argument(node, found, place) for place in range(len(node.inputs))])
        except GraphError as error:
            if repr(node.name) in str(error):
                raise
            raise type(error)(f"ONNX node {node.name!r} ({node.op}): {error}") from None
        except (DeviceError, MemoryError):
            raise
        except Exception as error:  # whatever a converter says to numbers that it was not written for
            raise node.fail("inputs that fit the operator", f"{type(error).__name__}: {error}") from error
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(node.outputs, results):
            if name:
                self.values[name] = value
        for name in node.outputs[len(results) :]:
            if name:
                raise node.fail(f"at most {len(results)} outputs", f"output {name!r}")

    def _argument(self, node: Node, found: Any, place: int) -> Content | None:
        name = node.inputs[place]
        if not name:
            return None
        if name not in self.values:
            raise node.fail("inputs that come before it", repr(name))
        if not found.needs(place):
            return self.tensor(name)
        value = self.values[name]
        if isinstance(value, Tensor):
            raise node.fail(
                f"input {place} to be known when the model is read", f"the tensor {name!r}", "give it as an initialiser"
            )
        return value
