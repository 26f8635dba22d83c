"""A model as a graph of layers: `load`.

Three steps, each over the nodes in their order. The `Importer` runs all of them once on open shapes, which tells the shape of every value,
what is known beforehand, and which initialisers are trained. `_Plan` then goes from the outputs backwards and says how each value that is
needed comes about: by a layer, by a merge, or by nodes that an `Operators` runs. `_Build` makes the nodes of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tapeprop.errors import GraphError
from tapeprop.graph import LayerNode, MergeMode
from tapeprop.interchange.onnx.equivalents import dense, embedding, equivalent_of, merge_of
from tapeprop.interchange.onnx.functions import check_names, float_dtype
from tapeprop.interchange.onnx.importing import Importer
from tapeprop.interchange.onnx.model import Model, Node, Source, read
from tapeprop.interchange.onnx.operators import Operators, Weight, plain, plain_node
from tapeprop.ir import Dim, Parameter, Tensor, Trace, UndecidedError, recording
from tapeprop.layers import Embedding, Identity, Layer
from tapeprop.layers.sizes import open_shape
from tapeprop.model import LayerGraph

__all__ = ["load"]

Shape = tuple[int | None, ...]
#: Numbers worked out of sizes, with at most so many entries, are told as sizes of axes; larger ones are worked out anew.
MOST_SIZES = 64
#: Nodes that one layer runs, and how often all nodes of a model may stand in layers, on average.
MOST_NODES, MOST_COPIES = 1000, 20
#: What inputs that are no floats are while the nodes are run once: a graph is fed numbers of its own dtype.
_DTYPES = {"i": "int64", "u": "int64", "b": "uint8"}
_WHOLE = {"int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"}
INT64 = 7  # TensorProto.INT64


def load(
    source: Source,
    *,
    shapes: Mapping[str, Sequence[int | None]] | None = None,
    trainable: bool = True,
    build: bool = True,
    **options: Any,
) -> LayerGraph:
    """The model as a graph of layers, built: each input a root, each output a term, in their order.

    source: a path, the bytes of a file, or an onnx.ModelProto. shapes: {input: shape}, where the file gives none or others are wanted;
    None for an open size. Axis 0 is taken to be the batch and left open, where the model allows it. trainable: whether weights are
    trained. build: False gives structure and weights alone. options: of build(); dtype is the model's own by default.

    A node becomes the layer that does exactly the same, with its weights as that layer's parameters, a merge, or an `Operators`, whose
    parameters have the names of the initialisers; docs/onnx.md has the rules. Nodes and inputs that lead to no output are left out.

    GraphError, naming the node, for operators that are not read, and for models that are no graph of layers: those `load_function`
    takes. WeightFileError for a file that is no sound model.
    """
    model = read(source)
    check_names(shapes or {}, model)
    dtype = options.pop("dtype", None) or float_dtype(model)
    importer, asked, found_shapes = _run(model, dict(shapes or {}), dtype)
    plan = _Plan(model, importer, asked)
    graph = _Build(plan, trainable).graph()
    if build:
        kept = [found_shapes[name] for name in plan.inputs]
        graph.build(kept if isinstance(graph.root, list) else kept[0], dtype=dtype, **options)
    return graph


# ---- the nodes on open shapes


def _run(model: Model, given: dict[str, Any], dtype: str) -> tuple[Importer, set[str], dict[str, Shape]]:
    """(the importer that has run, the initialisers that it wanted as tensors, the shape of each input)."""
    declared = {value.name: _declared(value, given.get(value.name)) for value in model.inputs}
    opened = {name: (None, *shape[1:]) if shape and name not in given else shape for name, shape in declared.items()}
    try:
        return *_run_on(model, opened, dtype), opened
    except GraphError:
        if opened == declared:
            raise
    return *_run_on(model, declared, dtype), declared  # a batch size that is written into the model


def _declared(value: Any, given: Sequence[int | None] | None) -> Shape:
    if given is not None:
        return tuple(given)
    if value.shape is None:
        raise GraphError(
            f"ONNX input {value.name!r}: expected a shape, got none: give shapes={{{value.name!r}: (None, 3, 224, 224)}}"
        )
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _run_on(model: Model, shapes: Mapping[str, Shape], dtype: str) -> tuple[Importer, set[str]]:
    asked: set[str] = set()
    with recording(Trace(dtype, training=False)) as trace:

        def weight(name: str, array: np.ndarray) -> Tensor:
            asked.add(name)
            return trace.parameter(Parameter(array.shape, array, name=name))

        kinds = {value.name: _DTYPES.get(np.dtype(value.dtype).kind) for value in model.inputs}
        inputs = {
            name: trace.input(i, open_shape(shape, i), kinds[name]) for i, (name, shape) in enumerate(shapes.items())
        }
        importer = Importer({**inputs, **model.initializers}, weight)
        try:
            importer.run(model.nodes)
        except UndecidedError as question:
            raise GraphError(
                f"expected sizes that decide whether {question}, got an open one: give shapes={{input: shape}}"
            ) from None
    return importer, asked


# ---- how each value comes about


@dataclass
class _Step:
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


class _Plan:
    """{value: step} of all that the outputs need, in the order of the model. users: {initialiser: what reads it}."""

    def __init__(self, model: Model, importer: Importer, asked: set[str]):
        self.model = model
        self.values = importer.values
        self.asked = asked
        self.maker = {name: place for place, node in enumerate(model.nodes) for name in node.outputs if name}
        self.from_data = self._from_data()
        self.readers = self._count_readers()
        self.steps: dict[str, _Step] = {}
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

    def _step(self, node: Node, output: str) -> _Step:
        data, given = self.data_of(node), [name for name in node.inputs if name]
        tensors = [self.values[name] for name in data]
        if len(data) > 1 and len(data) == len(given) and output == node.outputs[0]:
            merge = merge_of(node, tensors)  # type: ignore[arg-type]
            if merge is not None:
                return _Step([node], data, Identity(), merge=merge)
        alone = output == node.outputs[0] and not any(self.readers.get(name) for name in node.outputs[1:])
        if alone and len(data) == 1 and node.inputs[0] == data[0]:
            exact = self._exact(node, data[0], output)
            if exact is not None:
                return exact
        return self._biased(node, data) or self._rows(node, data) or self._operators(node, output)

    def _exact(self, node: Node, data: str, output: str) -> _Step | None:
        others = node.inputs[1:]
        if node.op != "Reshape" and not self.from_data.isdisjoint(others):
            return None
        arrays = [self.values[name] if name else None for name in others]
        if any(isinstance(array, Tensor) for array in arrays):  # a weight that is worked out of others
            return None
        found = equivalent_of(node, self.values[data], self.values[output], arrays)  # type: ignore[arg-type]
        if found is None:
            return None
        return _Step([node], [data], found[0], found[1], initializers=self._weights(others))

    def _weights(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.model.initializers and name in self.asked]

    def _biased(self, node: Node, data: list[str]) -> _Step | None:
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
        return _Step([product, node], [product.inputs[0]], *found, initializers=[weight, bias])

    def _rows(self, node: Node, data: list[str]) -> _Step | None:
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
        return _Step([node], data, *embedding(weight), initializers=[node.inputs[0]])  # type: ignore[misc]

    # ---- nodes that stay operators

    def _operators(self, node: Node, output: str) -> _Step:
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
        return _Step(nodes, list(found.data), initializers=self._weights(list(read)), sizes=sizes)

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

    def __init__(self, plan: _Plan):
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


# ---- the graph


class _Build:
    """Makes layers and nodes of a plan."""

    def __init__(self, plan: _Plan, trainable: bool):
        self.plan = plan
        self.trainable = trainable
        self.layers: dict[Any, Layer] = {}
        self.weights: dict[str, Weight] = {}
        self.names: set[str] = set()
        self.edges: dict[LayerNode, list[LayerNode]] = {}
        self.places: dict[LayerNode, int] = {}
        self.nodes: dict[str, LayerNode] = {}
        state = [node.inputs[3:5] for node in plan.model.nodes if node.op == "BatchNormalization"]
        self.state = {name for names in state for name in names}

    def graph(self) -> LayerGraph:
        plan = self.plan
        for name in plan.inputs:
            self.nodes[name] = self._node(self._root(name), name)
        roots = list(self.nodes.values())
        for output, step in plan.steps.items():
            layer = step.layer if step.layer is not None else self._operators(step, output)
            if step.layer is not None and step.initializers:
                layer = self.layers.setdefault(step.signature, layer)
            trained = self._has_weights(step)
            for key, array in step.parameters.items():
                parameter = getattr(layer, key)
                parameter.assign(array)
                # numbers of Constant nodes, which no exporter meant to be trained; state that never is stays so
                parameter.trainable = parameter.trainable and trained
            label = step.nodes[-1].name if step.merge or len(step.nodes) == 1 else self._label(step)
            merge = step.merge or MergeMode.SUM
            operands = self._in_order(step)
            node = self.nodes[output] = self._node(layer, label, merge)
            for operand in operands:
                self.edges[operand].append(node)
        terms: dict[LayerNode, None] = {}
        for value in plan.model.outputs:
            node = self.nodes[value.name]
            terms[self._again(node) if node in terms else node] = None
        if not self.trainable:
            for weight in self.weights.values():
                weight.trainable = False
        graph = LayerGraph(
            self.edges,
            root=roots[0] if len(plan.model.inputs) == 1 else roots,
            term=next(iter(terms)) if len(terms) == 1 else list(terms),
        )
        if not self.trainable:
            for _, parameter in graph.named_parameters():
                parameter.trainable = False
        return graph

    def _root(self, name: str) -> Layer:
        """What stands at an input. A graph is fed floats; where something other than an embedding reads tokens they become whole again."""
        (value,) = [value for value in self.plan.model.inputs if value.name == name]
        readers = [step.layer for step in self.plan.steps.values() if name in step.data]
        if value.dtype not in _WHOLE or all(isinstance(layer, Embedding) for layer in readers):
            return Identity()
        cast = Node("Cast", f"{name}/Cast", (name,), ("whole",), {"to": INT64}, self.plan.model.opset)
        return Operators([plain_node(cast)], name, "whole")

    def _has_weights(self, step: _Step) -> bool:
        given = self.plan.model.initializers
        return any(name in given and given[name].dtype.kind == "f" for node in step.nodes for name in node.inputs)

    def _label(self, step: _Step) -> str:
        """A dense layer bears its product's name, operators that of the last."""
        return step.nodes[0 if step.layer is not None else -1].name

    def _node(self, layer: Layer, name: str, merge: MergeMode = MergeMode.SUM) -> LayerNode:
        fit = "".join("_" if letter == "." or not letter.isprintable() else letter for letter in name) or "node"
        label, count = fit, 1
        while label in self.names:
            count += 1
            label = f"{fit}_{count}"
        self.names.add(label)
        node = LayerNode(layer, merge, label)
        self.places[node] = len(self.edges)
        self.edges[node] = []
        return node

    def _in_order(self, step: _Step) -> list[LayerNode]:
        """The nodes of the operands. A graph takes operands in the order of its nodes: one that comes too early goes through another."""
        found = [self.nodes[name] for name in step.data]
        commutes = len(found) == 2 and step.merge in (
            MergeMode.SUM,
            MergeMode.HADAMARD,
            MergeMode.AVG,
            MergeMode.MAX,
            MergeMode.MIN,
        )
        if len(found) < 2 or commutes:
            return found
        last = -1
        for i, node in enumerate(found):
            if self.places[node] < last:
                found[i] = node = self._again(node)
            last = self.places[node]
        return found

    def _again(self, node: LayerNode) -> LayerNode:
        """A new node that gives the same."""
        again = self._node(Identity(), f"{node.name}_again")
        self.edges[node].append(again)
        return again

    def _operators(self, step: _Step, output: str) -> Operators:
        initializers, values = self.plan.model.initializers, {}
        for node in step.nodes:
            for name in node.inputs:
                if name in initializers and name not in step.initializers:
                    values[name] = plain(initializers[name])
        weights = {}
        for name in step.initializers:
            if name not in self.weights:
                self.weights[name] = Weight(initializers[name].shape, name not in self.state)
                self.weights[name].weight.assign(initializers[name])
            weights[name] = self.weights[name]
        return Operators([plain_node(node) for node in step.nodes], step.data[0], output, weights, values, step.sizes)
