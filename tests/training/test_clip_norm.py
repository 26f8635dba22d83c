"""build(clip_norm=...): torch's clip_grad_norm_ over all gradients that an update consumes, whoever advances them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rules.networks import chain, labels, node_of, rows

from tapeprop import LayerGraph
from tapeprop.layers import Activation, Dense
from tapeprop.losses import CrossEntropy
from tapeprop.optimizers import SGD, Adam, AdamW, RMSProp

LOSS = CrossEntropy()
NAMES = ("a", "b", "c", "d")


def network(clip_norm: float | None, frozen: bool = False) -> LayerGraph:
    """Four dense layers; b and c have optimizers of their own, the biases of the others as well."""
    layers = [
        Dense(4, 8),
        Activation.Tanh(),
        Dense(8, 8),
        Activation.Tanh(),
        Dense(8, 8),
        Activation.Tanh(),
        Dense(8, 3),
    ]
    names = ["a", "t0", "b", "t1", "c", "t2", "d"]
    graph = chain(*layers, names=names, seed=0).build((None, 4), dtype="float64", clip_norm=clip_norm)
    graph.set_optimizer(SGD(0.3, momentum=0.9))
    graph.set_optimizer(RMSProp(0.01), where=lambda name, parameter: name.endswith("bias"))
    node_of(graph, "b").set_optimizer(Adam(0.02))
    node_of(graph, "c").set_optimizer(AdamW(0.02, weight_decay=0.1))
    node_of(graph, "a").frozen = frozen
    return graph


class Peer:
    """The same in torch: one call of clip_grad_norm_, then four optimizers."""

    def __init__(self, torch: Any, graph: LayerGraph, frozen: bool):
        self.torch, self.skip = torch, ("a",) if frozen else ()
        self.layers = {name: torch.nn.Linear(1, 1) for name in NAMES}
        for name, layer in self.layers.items():
            own = node_of(graph, name).layer
            layer.weight = torch.nn.Parameter(torch.tensor(own.weight.value))
            layer.bias = torch.nn.Parameter(torch.tensor(own.bias.value))
        a, b, c, d = self.layers.values()
        self.optimizers = [
            torch.optim.SGD([a.weight, d.weight], 0.3, momentum=0.9),
            torch.optim.RMSprop([a.bias, d.bias], 0.01, alpha=0.9, eps=1e-8),
            torch.optim.Adam(b.parameters(), 0.02),
            torch.optim.AdamW(c.parameters(), 0.02, weight_decay=0.1),
        ]

    def step(self, x: np.ndarray, y: np.ndarray, clip_norm: float) -> float:
        """The norm before clipping."""
        h = self.torch.tensor(x)
        for layer in self.layers.values():
            h = layer(h) if layer is self.layers["d"] else self.torch.tanh(layer(h))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.torch.nn.functional.cross_entropy(h, self.torch.tensor(y)).backward()
        for name in self.skip:
            self.layers[name].weight.grad = self.layers[name].bias.grad = None
        norm = self.torch.nn.utils.clip_grad_norm_([p for m in self.layers.values() for p in m.parameters()], clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        return float(norm)

    def state(self) -> dict[str, np.ndarray]:
        found = {name: dict(layer.named_parameters()) for name, layer in self.layers.items()}
        return {f"{name}.{key}": p.detach().numpy() for name, ps in found.items() for key, p in ps.items()}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("clip_norm", [0.05, 1.0, 1e6])
def test_clipping_is_torchs_over_several_optimizers(clip_norm: float, frozen: bool) -> None:
    torch = pytest.importorskip("torch")
    graph = network(clip_norm, frozen)
    peer = Peer(torch, graph, frozen)
    norms = []
    for i in range(6):
        x, y = rows(i), labels(5, i)
        norms.append(peer.step(x, y, clip_norm))
        graph.train_step(x, y, LOSS)
        for key, value in peer.state().items():
            np.testing.assert_allclose(graph.state_dict()[key], value, rtol=1e-11, atol=1e-12, err_msg=f"{i} {key}")
    clipped = {norm > clip_norm for norm in norms}
    assert clipped == {0.05: {True}, 1.0: {True, False}, 1e6: {False}}[clip_norm]


def test_a_step_is_its_parts_with_several_optimizers_and_clipping() -> None:
    one, many = network(0.3), network(0.3)
    for i in range(5):
        x, y = rows(i), labels(5, i)
        one.train_step(x, y, LOSS)
        many.zero_grad()
        many.backward(LOSS.grad(y, many.forward(x, True)))
        many.update()
        for key, value in one.state_dict().items():
            assert value.tobytes() == many.state_dict()[key].tobytes(), key


def test_clipping_is_by_the_norm_of_what_one_update_consumes() -> None:
    """Gradients stay as they were: it is the update that is scaled."""
    graph = network(0.01)
    for node in graph.nodes:
        node.set_optimizer(SGD(1.0))
    graph.set_optimizer(SGD(1.0), where=lambda name, parameter: True)
    x, y = rows(), labels(5)
    before = graph.state_dict()
    graph.backward(LOSS.grad(y, graph.forward(x, True)))
    gradients = {key: p.grad.copy() for key, p in graph.named_parameters()}
    norm = np.sqrt(sum(np.square(g).sum() for g in gradients.values()))
    graph.update()
    for key, p in graph.named_parameters():
        moved = before[key] - p.value
        np.testing.assert_allclose(moved, gradients[key] * 0.01 / (norm + 1e-6), rtol=1e-9, atol=1e-15)
        np.testing.assert_array_equal(p.grad, gradients[key])
