"""The graph of layers that a `Plan` of a model asks for: its layers with their weights, its nodes with names and edges."""

from __future__ import annotations

from typing import Any

from tapeprop.graph import LayerNode, MergeMode
from tapeprop.interchange.onnx.model import Node
from tapeprop.interchange.onnx.operators import Operators, Weight, plain, plain_node
from tapeprop.interchange.onnx.planning import Plan, Step
from tapeprop.layers import Embedding, Identity, Layer
from tapeprop.model import LayerGraph

__all__ = ["Build"]

_WHOLE = {"int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"}
INT64 = 7  # TensorProto.INT64


class Build:
    """Makes layers and nodes of a plan."""

    def __init__(self, plan: Plan, trainable: bool):
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

    def _has_weights(self, step: Step) -> bool:
        given = self.plan.model.initializers
        return any(name in given and given[name].dtype.kind == "f" for node in step.nodes for name in node.inputs)

    def _label(self, step: Step) -> str:
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

    def _in_order(self, step: Step) -> list[LayerNode]:
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

    def _operators(self, step: Step, output: str) -> Operators:
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
