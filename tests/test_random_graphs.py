"""Random graphs of layers and merges, compiled, against the oracles: the NumPy interpreter, and torch where it is installed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume
from random_graphs import Built, Recipe, build, for_random_graphs
from rules.networks import assert_same_bits, state
from torch_twin import TorchTwin
from traced import Run, run

from tapeprop.losses import MSE
from tapeprop.optimizers import Adam

TOLERANCE = 1e-9


def oracle(case: Built, inputs=None) -> Run:
    """The same run, traced without optimisation and interpreted in NumPy."""
    case.graph._random.assign(np.zeros(2))  # the seed and the counter with which `run` begins
    return run(case.graph, case.inputs if inputs is None else inputs, case.d_out, training=case.training)


def figures(found: Run, frozen) -> list[np.ndarray]:
    """All arrays of a run that a compiled one has too."""
    gradients = [g for p, g in found.parameters.items() if p not in frozen]
    return [*found.outputs, *found.inputs, *gradients, *found.states.values()]


def compiled(case: Built, expected: Run, frozen) -> list[np.ndarray]:
    """The arrays of the compiled run in the same order."""
    graph = case.graph
    outputs = graph.forward(case.inputs if isinstance(graph.root, list) else case.inputs[0], case.training)
    inputs = graph.backward(case.d_out)
    gradients = [p.grad for p in expected.parameters if p not in frozen]
    states = [(graph._random if p.dtype == "int64" else p).value for p in expected.states]
    return [*outputs, *(inputs if isinstance(graph.root, list) else [inputs]), *gradients, *states]


def furthest(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The largest difference, relative to the size of the array that it stands in (at least 1)."""
    return max(float(np.abs(x - y).max() / max(1.0, np.abs(y).max())) for x, y in zip(a, b, strict=True))


@for_random_graphs(80)
def test_compiled_graphs_are_what_the_interpreter_says(recipe: Recipe) -> None:
    case = build(recipe)
    frozen = case.graph.frozen_parameters()
    expected = oracle(case)
    wanted = figures(expected, frozen)
    found = compiled(case, expected, frozen)
    assert [x.shape for x in found] == [y.shape for y in wanted]
    error = furthest(found, wanted)
    if error > TOLERANCE:  # unless the network magnifies rounding itself: a kink, or a norm of equal values
        nudged = oracle(case, [x * (1 + 1e-13) for x in case.inputs])
        assert furthest(figures(nudged, frozen), wanted) > TOLERANCE, error


@for_random_graphs(50)
def test_compiled_graphs_are_what_torch_says(recipe: Recipe) -> None:
    torch = pytest.importorskip("torch")
    case = build(recipe, dropout=0.0)
    graph, frozen = case.graph, case.graph.frozen_parameters()

    def peer(inputs) -> tuple[list[np.ndarray], dict]:
        outputs, gradients, parameters = TorchTwin(torch, case.training).run(graph, inputs, case.d_out)
        return [*outputs, *gradients], {p: g for p, g in parameters.items() if p not in frozen}

    arrays, gradients = peer(case.inputs)
    outputs = graph.forward(case.inputs if isinstance(graph.root, list) else case.inputs[0], case.training)
    inputs = graph.backward(case.d_out)
    found = [*outputs, *(inputs if isinstance(graph.root, list) else [inputs]), *(p.grad for p in gradients)]
    error = furthest(found, [*arrays, *gradients.values()])
    if error > TOLERANCE:
        again, more = peer([x * (1 + 1e-13) for x in case.inputs])
        assert furthest([*again, *more.values()], [*arrays, *gradients.values()]) > TOLERANCE, error
    for _, parameter in graph.named_parameters():
        assert not parameter.trainable or parameter in gradients or not parameter.grad.any()


@pytest.mark.conformance
@for_random_graphs(10)
def test_gradients_are_central_differences_along_a_direction(recipe: Recipe) -> None:
    """Of all inputs and parameters at once. Two steps have to agree on the difference, or else a kink lies between them."""
    case = build(replace(recipe, stopped=None, frozen=None), dropout=0.0)  # a stopped gradient is no difference
    graph, rng = case.graph, np.random.default_rng(recipe.seed)
    parameters = [p for _, p in graph.named_parameters() if p.trainable]
    before = [*case.inputs, *(p.value.copy() for p in parameters)]
    directions = [rng.uniform(-1, 1, a.shape) for a in before]
    pairs = [d for d in case.d_out if d is not None]

    def phi(step: float) -> float:
        moved = [a + step * d for a, d in zip(before, directions, strict=True)]
        inputs = moved[: len(case.inputs)]
        for parameter, value in zip(parameters, moved[len(inputs) :], strict=True):
            parameter.assign(value)
        found = graph.forward(inputs if isinstance(graph.root, list) else inputs[0], case.training)
        seeded = [y for y, d in zip(found, case.d_out, strict=True) if d is not None]
        return sum(float(np.sum(d * y)) for d, y in zip(pairs, seeded, strict=True))

    phi(0.0)
    inputs = graph.backward(case.d_out)
    gradients = [*(inputs if isinstance(graph.root, list) else [inputs]), *(p.grad.copy() for p in parameters)]
    slope = sum(float(np.sum(g * d)) for g, d in zip(gradients, directions, strict=True))
    one, other = ((phi(h) - phi(-h)) / (2 * h) for h in (1e-5, 3e-6))
    scale = max(1.0, *(float(np.abs(g).sum()) for g in gradients))
    assume(abs(one - other) <= 1e-6 * scale)
    assert abs(slope - other) <= 1e-5 * scale


@for_random_graphs(25)
def test_what_is_watched_is_what_torch_says(recipe: Recipe) -> None:
    """Every node's result, and the gradient of every node's result, whatever memory they share."""
    torch = pytest.importorskip("torch")
    case = build(recipe, dropout=0.0)
    graph = case.graph
    graph.watch(*graph.nodes)
    graph.forward(case.inputs if isinstance(graph.root, list) else case.inputs[0], case.training)
    graph.backward(case.d_out)

    def peer(inputs) -> list[np.ndarray]:
        twin = TorchTwin(torch, case.training)
        twin.run(graph, inputs, case.d_out)
        results = [twin.results[node] for node in graph.nodes]
        gradients = [torch.zeros_like(y) if y.grad is None else y.grad for y in results]
        return [y.detach().numpy() for y in (*results, *gradients)]

    expected = peer(case.inputs)
    found = [*map(graph.value, graph.nodes), *map(graph.gradient, graph.nodes)]
    error = furthest(found, expected)
    if error > TOLERANCE:
        assert furthest(peer([x * (1 + 1e-13) for x in case.inputs]), expected) > TOLERANCE, error


@for_random_graphs(20)
def test_a_training_step_is_its_parts(recipe: Recipe) -> None:
    """train_step against forward, loss, loss.grad, backward and update, to the last bit, statistics and dropout included."""
    whole, parts = build(recipe), build(recipe)
    assume(whole.graph.param_size != (0, 0))  # nothing to train is an error
    loss = MSE()
    losses = [None if d is None else loss for d in whole.d_out]
    for i in range(2):
        inputs = [x * (i + 1) for x in whole.inputs]
        inputs = inputs if isinstance(whole.graph.root, list) else inputs[0]
        for graph in (whole.graph, parts.graph):
            graph.set_optimizer(Adam(0.01))
        value = whole.graph.train_step(inputs, whole.d_out, losses)
        outputs = parts.graph.forward(inputs, True)
        triples = [(loss, d, y) for d, y in zip(parts.d_out, outputs, strict=True) if d is not None]
        assert np.array_equal(value, sum(loss(d, y) for loss, d, y in triples), equal_nan=True)
        parts.graph.zero_grad()
        parts.graph.backward(
            [None if d is None else loss.grad(d, y) for d, y in zip(parts.d_out, outputs, strict=True)]
        )
        parts.graph.update()
        assert_same_bits(state(whole.graph), state(parts.graph))


@for_random_graphs(40)
def test_predict_is_forward_in_evaluation(recipe: Recipe) -> None:
    """With norms folded into weights, and without; to the rounding of sums that the running means cancel."""
    case = build(recipe, auto_batch_norm=True)  # or else few norms would stand where they can be folded
    graph, rng = case.graph, np.random.default_rng(recipe.seed)
    for key, parameter in graph.named_parameters():
        if "running" in key:
            parameter.assign(rng.uniform(0.5, 2, parameter.shape))

    def outputs(run, inputs) -> list[np.ndarray]:
        found = run(inputs if isinstance(graph.root, list) else inputs[0])
        return found if isinstance(graph.term, list) else [found]

    expected = outputs(graph.forward, case.inputs)
    error = furthest(outputs(graph.predict, case.inputs), expected)
    if error > TOLERANCE:
        nudged = outputs(graph.forward, [x * (1 + 1e-13) for x in case.inputs])
        assert furthest(nudged, expected) > TOLERANCE, error
