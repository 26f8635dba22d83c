"""How the values of a model come about in a graph of layers: by a layer, by a merge, or by nodes that an `Operators` runs.

A `Plan` goes from the outputs backwards, with a `Step` for each value that is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.graph import MergeMode
from tapeprop.interchange.onnx.equivalents import dense, embedding, equivalent_of, merge_of
from tapeprop.interchange.onnx.importing import Importer
from tapeprop.interchange.onnx.model import Model, Node
from tapeprop.ir import Dim, Tensor
from tapeprop.layers import Identity, Layer

__all__ = ["Plan", "Step"]

#: Numbers worked out of sizes, with at most so many entries, are told as sizes of axes; larger ones are worked out anew.
MOST_SIZES = 64
#: Nodes that one layer runs, and how often all nodes of a model may stand in layers, on average.
MOST_NODES, MOST_COPIES = 1000, 20


@dataclass
class Step:
    """How a value comes about. nodes: of the model that it takes; data: the values that it reads, in the order of the operands."""

    nodes: list[Node]
    data: list[str]
    layer: Layer | None = None
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    merge: MergeMode | None = None
    initializers: list[str] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for steps that may share a layer: the same operators with the same initialisers."""
        return (
            tuple((node.op, repr(sorted(node.attributes.items(), key=str))) for node in self.nodes),
            tuple(self.initializers),
        )


class Plan:
    """{value: step} of all that the outputs need, in the order of the model. users: {initialiser: what reads it}."""

    def __init__(self, model: Model, importer: Importer, asked: set[str]):
        self.model = model
        self.values = importer.values
        self.asked = asked
        self.maker = {name: place for place, node in enumerate(model.nodes) for name in node.outputs if name}
        self.from_data = self._from_data()
        self.readers = self._count_readers()
        self.steps: dict[str, Step] = {}
        self.copied = 0
        self._find_steps()
        self._share()

    def _from_data(self) -> set[str]:
        """The names of values that depend on an input, by its numbers or by its shape."""
        found = {value.name for value in self.model.inputs}
        for node in self.model.nodes:
            if not found.isdisjoint(node.inputs):
                found.update(filter(None, node.outputs))
        return found

    def _count_readers(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for names in (*(node.inputs for node in self.model.nodes), [value.name for value in self.model.outputs]):
            for name in names:
                counts[name] = counts.get(name, 0) + 1
        return counts

    def _find_steps(self) -> None:
        wanted = set()
        for value in self.model.outputs:
            if value.name not in self.from_data or not isinstance(self.values[value.name], Tensor):
                raise GraphError(
                    f"ONNX output {value.name!r}: expected a value that is calculated from an input, got a constant or sizes: "
                    "use load_function"
                )
            wanted.add(value.name)
        for node in reversed(self.model.nodes):
            for name in reversed(node.outputs):
                if name in wanted:
                    self.steps[name] = step = self._step(node, name)
                    wanted.update(step.data)
        self.steps = dict(reversed(self.steps.items()))
        self.inputs = [value.name for value in self.model.inputs if value.name in wanted]

    def data_of(self, node: Node) -> list[str]:
        """The inputs that are tensors made from data, as often as they are read."""
        return [name for name in node.inputs if name in self.from_data and isinstance(self.values[name], Tensor)]

    def _step(self, node: Node, output: str) -> Step:
        data, given = self.data_of(node), [name for name in node.inputs if name]
        tensors = [self.values[name] for name in data]
        if len(data) > 1 and len(data) == len(given) and output == node.outputs[0]:
            merge = merge_of(node, tensors)  # type: ignore[arg-type]
            if merge is not None:
                return Step([node], data, Identity(), merge=merge)
        alone = output == node.outputs[0] and not any(self.readers.get(name) for name in node.outputs[1:])
        if alone and len(data) == 1 and node.inputs[0] == data[0]:
            exact = self._exact(node, data[0], output)
            if exact is not None:
                return exact
        return self._biased(node, data) or self._rows(node, data) or self._operators(node, output)

    def _exact(self, node: Node, data: str, output: str) -> Step | None:
        others = node.inputs[1:]
        if node.op != "Reshape" and not self.from_data.isdisjoint(others):
            return None
        arrays = [self.values[name] if name else None for name in others]
        if any(isinstance(array, Tensor) for array in arrays):  # a weight that is worked out of others
            return None
        found = equivalent_of(node, self.values[data], self.values[output], arrays)  # type: ignore[arg-type]
        if found is None:
            return None
        return Step([node], [data], found[0], found[1], initializers=self._weights(others))

    def _weights(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.model.initializers and name in self.asked]

    def _biased(self, node: Node, data: list[str]) -> Step | None:
        """A product and the bias that is added to it as one dense layer, where nothing else reads the product."""
        if node.op != "Add" or len(data) != 1 or data[0] not in self.maker or self.readers[data[0]] > 1:
            return None
        product = self.model.nodes[self.maker[data[0]]]
        (bias,) = [name for name in node.inputs if name != data[0]] or [""]
        weight = product.inputs[1] if product.op == "MatMul" else ""
        w, b = (self.model.initializers.get(name) for name in (weight, bias))
        if (
            w is None
            or b is None
            or w.ndim != 2
            or b.shape != w.shape[1:]
            or self.data_of(product) != [product.inputs[0]]
        ):
            return None
        x = self.values[product.inputs[0]]
        found = dense(x, w.T, b)  # type: ignore[arg-type]
        if found is None:
            return None
        return Step([product, node], [product.inputs[0]], *found, initializers=[weight, bias])

    def _rows(self, node: Node, data: list[str]) -> Step | None:
        """Rows of a matrix, which tokens choose."""
        weight = self.model.initializers.get(node.inputs[0]) if node.op == "Gather" else None
        if (
            weight is None
            or weight.dtype.kind != "f"
            or weight.ndim != 2
            or data != [node.inputs[1]]
            or node.get("axis", 0)
        ):
            return None
        return Step([node], data, *embedding(weight), initializers=[node.inputs[0]])  # type: ignore[misc]

    # ---- nodes that stay operators

    def _operators(self, node: Node, output: str) -> Step:
        """The fewest nodes that end in the output and read one value that is made from data.

        Of several such values the latest is replaced by the node that makes it, until one is left.
        """
        found = _Set(self)
        found.take(self.maker[output])
        while (sizes := found.closed()) is None:
            latest = max(found.data, key=lambda name: self.maker.get(name, -1)) if found.data else ""
            if latest not in self.maker:
                names = ", ".join(map(repr, found.data)) or "none"
                raise node.fail("an operator that reads one input of the model", names, "use load_function")
            found.take(self.maker[latest])
            if len(found.places) > MOST_NODES:
                raise node.fail(f"an operator that at most {MOST_NODES} others lead to", "more", "use load_function")
        self.copied += len(found.places)
        if self.copied > MOST_COPIES * (len(self.model.nodes) + 100):
            raise node.fail(
                "a model that is no more than merges and chains", "too many of its nodes twice", "use load_function"
            )
        nodes = [self.model.nodes[place] for place in sorted(found.places)]
        read = dict.fromkeys(name for node in nodes for name in node.inputs)
        return Step(nodes, list(found.data), initializers=self._weights(list(read)), sizes=sizes)

    def told(self, name: str, shape: Sequence[Any]) -> Any:
        """Numbers that were worked out of sizes, by the sizes of an input of that shape; None where those do not tell."""
        array = self.values[name]
        if isinstance(array, Tensor) or array.size > MOST_SIZES or array.dtype.kind not in "iuO":
            return None
        values: list[Any] = []
        for value in array.ravel().tolist():
            if isinstance(value, Dim):
                if value not in shape:
                    return None
                value = {"axis": list(shape).index(value)}
            elif not isinstance(value, int):
                return None
            values.append(value)
        return {
            "dtype": "int64" if array.dtype == object else str(array.dtype),
            "shape": list(array.shape),
            "values": values,
        }

    # ---- shared weights

    def _share(self) -> None:
        """Layers whose initialisers something else reads too stay operators, which can share them."""
        users: dict[str, set[Any]] = {}
        for output, step in self.steps.items():
            for name in step.initializers:
                users.setdefault(name, set()).add(step.signature if step.layer is not None else output)
        for output, step in self.steps.items():
            if step.layer is not None and any(len(users[name]) > 1 for name in step.initializers):
                self.steps[output] = self._operators(self.model.nodes[self.maker[output]], output)


class _Set:
    """Nodes that one layer runs. data: the values that they read and that are made from data; places: theirs in the model."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.places: set[int] = set()
        self.data: dict[str, None] = {}
        self._made: set[str] = set()
        self._leaves: dict[str, None] = {}  # what they read beside, and other nodes make: constants and sizes

    def take(self, place: int) -> None:
        """Adds a node."""
        if place in self.places:
            return
        self.places.add(place)
        node = self.plan.model.nodes[place]
        for name in node.outputs:
            self._made.add(name)
            self.data.pop(name, None)
            self._leaves.pop(name, None)
        data = self.plan.data_of(node)
        self.data.update((name, None) for name in data if name not in self._made)
        self._leaves.update(
            (name, None)
            for name in node.inputs
            if name in self.plan.maker and name not in data and name not in self._made
        )

    def closed(self) -> dict[str, Any] | None:
        """Takes the nodes that make constants, and those of sizes that the one value of data does not tell.

        Gives the sizes; None while more than one value of data is left, or none.
        """
        plan = self.plan
        while len(self.data) <= 1:
            shape = plan.values[next(iter(self.data))].shape if self.data else ()
            sizes = {name: plan.told(name, shape) if name in plan.from_data else None for name in self._leaves}
            more = [name for name, told in sizes.items() if told is None]
            if not more:
                return sizes if self.data else None
            for name in more:
                self.take(plan.maker[name])
        return None
