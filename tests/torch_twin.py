"""A graph computed by torch, node by node: an oracle that shares no line with the library's own rules of differentiation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop import LayerGraph, LayerNode, MergeMode
from tapeprop.ir import Parameter
from tapeprop.layers import (
    Activation,
    AvgPool2D,
    BatchNorm1D,
    BatchNorm2D,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Identity,
    Layer,
    MaxPool2D,
    Pool2D,
    Reshape,
    Sequential,
)


class TorchTwin:
    """Runs a graph in torch, float64, without dropout. torch: the module, which callers import if it is there."""

    def __init__(self, torch: Any, training: bool):
        self.torch = torch
        self.F = torch.nn.functional
        self.training = training
        self.parameters: dict[Parameter, Any] = {}
        self.results: dict[LayerNode, Any] = {}  # of each node of the outer graph

    def run(
        self, graph: LayerGraph, inputs: Sequence[np.ndarray], d_out: Sequence[np.ndarray | None]
    ) -> tuple[list[np.ndarray], list[np.ndarray], dict[Parameter, np.ndarray]]:
        """(outputs, gradients of the inputs, {parameter: gradient}); parameters that none reaches are left out."""
        leaves = [self.torch.tensor(x, requires_grad=True) for x in inputs]
        outputs = self.graph(graph, leaves, self.results)
        total = sum((y * self.torch.tensor(d)).sum() for y, d in zip(outputs, d_out, strict=True) if d is not None)
        total.backward()
        found = {p: t.grad.numpy() for p, t in self.parameters.items() if t.grad is not None}
        zeros = [np.zeros_like(x) if t.grad is None else t.grad.numpy() for x, t in zip(inputs, leaves, strict=True)]
        return [y.detach().numpy() for y in outputs], zeros, found

    def graph(self, graph: LayerGraph, inputs: Sequence[Any], keep: dict[LayerNode, Any] | None = None) -> list[Any]:
        """The tensor of each term. keep: takes the result of each node, with its gradient."""
        traversal, values = graph.check(), dict(zip(graph.roots, inputs, strict=True))
        for node in traversal.order:
            if node not in values:
                before = traversal.operands[node]
                operands = [values[a].detach() if (a, node) in graph._stopped else values[a] for a in before]
                values[node] = self.merge(node.merge_mode, operands)
            values[node] = self.layer(node.layer, values[node])
            if keep is not None:
                # a tensor of its own: an Identity's gradient is not that of what it is given
                y = values[node].view_as(values[node])
                values[node] = keep[node] = y if y.requires_grad else y.detach().requires_grad_()
                values[node].retain_grad()
        return [values[node] for node in graph.terms]

    def parameter(self, parameter: Parameter) -> Any:
        if parameter not in self.parameters:
            self.parameters[parameter] = self.torch.tensor(parameter.value, requires_grad=parameter.trainable)
        return self.parameters[parameter]

    def merge(self, mode: MergeMode, operands: Sequence[Any]) -> Any:
        torch, first = self.torch, operands[0]
        if mode is MergeMode.CHCAT:
            return torch.cat(operands, 1)
        if mode in (MergeMode.MAX, MergeMode.MIN):
            stacked = torch.stack(torch.broadcast_tensors(*operands))
            return stacked.amax(0) if mode is MergeMode.MAX else stacked.amin(0)  # both share ties
        for operand in operands[1:]:
            if mode is MergeMode.HADAMARD:
                first = first * operand
            elif mode is MergeMode.DOT:
                first = first @ operand
            else:
                first = first - operand if mode is MergeMode.SUB else first + operand
        return first / len(operands) if mode is MergeMode.AVG else first

    def layer(self, layer: Layer, x: Any) -> Any:
        F, A = self.F, Activation
        if isinstance(layer, Sequential):
            for inner in layer:
                x = self.layer(inner, x)
            return x
        if isinstance(layer, LayerGraph):
            return self.graph(layer, [x])[0]
        if isinstance(layer, Conv2D):
            _, padding, _, _ = layer.geometry()
            assert all(before == after for before, after in padding)
            sides = tuple(before for before, _ in padding)
            return F.conv2d(x, self.parameter(layer.weight), self.parameter(layer.bias), layer.stride, sides)
        if isinstance(layer, Dense):
            return F.linear(x, self.parameter(layer.weight), self.parameter(layer.bias))
        if isinstance(layer, BatchNorm1D | BatchNorm2D):
            statistics = self.torch.tensor(layer.running_mean.value), self.torch.tensor(layer.running_var.value)
            scale = self.parameter(layer.weight), self.parameter(layer.bias)
            return F.batch_norm(x, *statistics, *scale, self.training, 0.0, layer.epsilon)
        if isinstance(layer, MaxPool2D | AvgPool2D | Pool2D):
            size, stride, padding = layer.geometry()
            sides = tuple(before for before, _ in padding)
            largest = isinstance(layer, MaxPool2D) or (isinstance(layer, Pool2D) and layer.mode == "max")
            return (F.max_pool2d if largest else F.avg_pool2d)(x, size, stride, sides)
        simple = {
            A.ReLU: F.relu, A.Tanh: self.torch.tanh, A.Sigmoid: self.torch.sigmoid, A.LeakyReLU: F.leaky_relu,
            A.Softplus: lambda x: F.softplus(x, threshold=1000), A.GELU: F.gelu, A.ReLU6: F.relu6,
            A.Softmax: lambda x: F.softmax(x, -1), Identity: lambda x: x, Dropout: lambda x: x,
            Flatten: lambda x: x.flatten(1), GlobalAvgPool2D: lambda x: x.mean((2, 3), keepdim=True),
            Reshape: lambda x: x.reshape(len(x), *layer.shape),  # type: ignore[attr-defined]
        }  # fmt: skip
        return simple[type(layer)](x)
