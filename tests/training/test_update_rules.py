"""Update rules of the user's own: over elements and over whole parameters, and what is said of a wrong one."""

from __future__ import annotations

import numpy as np
import pytest
from rules.networks import assert_same_bits, labels, node_of, perceptron, rows, state, step_by_step

from tapeprop import LayerGraph, ops
from tapeprop.errors import DTypeError, GraphError, ShapeError
from tapeprop.losses import CrossEntropy
from tapeprop.ops.scalar import inputs
from tapeprop.optimizers import SGD, Adam, Optimizer

LOSS, X, Y = CrossEntropy(), rows(), labels(5)


class Clipped(Optimizer):
    """Ops on Scalars: where with both kinds of condition, maximum, sqrt, sign, clip, comparisons of ops."""

    slots = ("largest",)

    def rule(self, weight, gradient, slots, scalars):
        largest = ops.maximum(0.9 * slots["largest"], ops.abs(gradient))
        step = ops.where(gradient < 0, -1.0, ops.sign(gradient)) * ops.sqrt(largest)
        step = ops.where(ops.greater(largest, 0.2), ops.clip(step, -0.3, 0.3), 0.5 * step)
        return weight - scalars["lr"] * step, {"largest": largest}


class LARS(Optimizer):
    """Rates by layer (You et al. 2017, https://arxiv.org/abs/1708.03888, equation 6), with momentum."""

    elementwise = False
    slots = ("momentum",)

    def __init__(self, lr: float = 0.1, trust: float = 0.02, momentum: float = 0.9):
        super().__init__(lr)
        self.trust, self.momentum = trust, momentum

    def rule(self, weight, gradient, slots, scalars):
        weights, gradients = ops.sqrt(ops.sum(weight * weight)), ops.sqrt(ops.sum(gradient * gradient))
        ratio = ops.where(weights * gradients > 0, self.trust * weights / (gradients + 1e-9), 1.0)
        buffer = self.momentum * slots["momentum"] + scalars["lr"] * ratio * gradient
        return weight - buffer, {"momentum": buffer}


class LAMB(Adam):
    """Adam with rates by layer (You et al. 2020, https://arxiv.org/abs/1904.00962, algorithm 2), without weight decay."""

    elementwise = False

    def rule(self, weight, gradient, slots, scalars):
        new, states = super().rule(weight, gradient, slots, scalars)
        step = weight - new
        ratio = ops.sqrt(ops.sum(weight * weight)) / (ops.sqrt(ops.sum(step * step)) + 1e-9)
        return weight - scalars["lr"] * ratio * step, states


class Centralized(Optimizer):
    """SGD whose gradients have mean 0 for each output (Yong et al. 2020, https://arxiv.org/abs/2004.01461)."""

    elementwise = False

    def rule(self, weight, gradient, slots, scalars):
        if gradient.ndim > 1:
            gradient = gradient - ops.mean(gradient, axis=tuple(range(1, gradient.ndim)), keepdims=True)
        return weight - scalars["lr"] * gradient, {}


class Previous(Optimizer):
    """Hands state on as it is: the weight before the step, and the gradient."""

    elementwise = False
    slots = ("weight", "gradient")

    def rule(self, weight, gradient, slots, scalars):
        return weight - scalars["lr"] * (gradient + slots["gradient"]), {"weight": weight, "gradient": gradient}


def written(optimizer: Optimizer, weights: dict, gradients: list[dict]) -> dict[str, np.ndarray]:
    """The weights after these steps, by NumPy."""
    found = {}
    for name, w in weights.items():
        m = v = previous = np.zeros_like(w)
        for t, step in enumerate(gradients, 1):
            g = step[name]
            if isinstance(optimizer, Clipped):
                m = np.maximum(0.9 * m, np.abs(g))
                s = np.sign(g) * np.sqrt(m)
                w = w - optimizer.lr * np.where(m > 0.2, np.clip(s, -0.3, 0.3), 0.5 * s)
            elif isinstance(optimizer, LARS):
                norms = np.linalg.norm(w), np.linalg.norm(g)
                m = 0.9 * m + optimizer.lr * (0.02 * norms[0] / (norms[1] + 1e-9) if norms[0] * norms[1] else 1.0) * g
                w = w - m
            elif isinstance(optimizer, LAMB):
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                s = optimizer.lr / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
                w = w - optimizer.lr * np.linalg.norm(w) / (np.linalg.norm(s) + 1e-9) * s
            elif isinstance(optimizer, Centralized):
                w = w - optimizer.lr * (g - g.mean(1, keepdims=True) if g.ndim > 1 else g)
            else:
                w, previous = w - optimizer.lr * (g + previous), g
        found[name] = w
    return found


RULES = [Clipped(0.1), LARS(), LAMB(0.1), Centralized(0.1), Previous(0.1)]


def trained(optimizer: Optimizer | None, **build) -> LayerGraph:
    graph = perceptron(**({"dtype": "float64"} | build))
    graph.set_optimizer(optimizer)
    return graph


@pytest.mark.parametrize("optimizer", RULES, ids=lambda rule: type(rule).__name__)
def test_is_the_written_formula(optimizer) -> None:
    graph = trained(optimizer)
    start, gradients = graph.state_dict(), []
    for i in range(4):
        step_by_step(graph, rows(i), labels(5, i), LOSS)
        gradients.append({name: p.grad.copy() for name, p in graph.named_parameters()})
    for name, value in written(optimizer, start, gradients).items():
        np.testing.assert_allclose(graph.state_dict()[name], value, rtol=1e-10, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("optimizer", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("build", [{}, {"dtype": "float32", "clip_norm": 0.1}], ids=str)
def test_separate_calls_train_steps_and_fit_have_the_same_bits(optimizer, build) -> None:
    called, stepped, fitted = (trained(optimizer, **build) for _ in range(3))
    x, y = np.concatenate([rows(i) for i in range(3)]), np.concatenate([labels(5, i) for i in range(3)])
    for i in range(0, 15, 5):
        step_by_step(called, x[i : i + 5], y[i : i + 5], LOSS)
        stepped.train_step(x[i : i + 5], y[i : i + 5], LOSS)
    fitted.fit(x, y, loss=LOSS, batch_size=5, shuffle=False, verbose=0)
    for graph in (stepped, fitted):
        assert_same_bits(state(graph), state(called))
        for _, p in graph.named_parameters():
            assert p.value.dtype == np.dtype(graph.dtype)


def test_clipping_comes_before_the_rule() -> None:
    graph = trained(Centralized(1.0), clip_norm=0.01)
    before = graph.state_dict()
    graph.train_step(X, Y, LOSS)
    gradients = {name: p.grad for name, p in graph.named_parameters()}
    scale = 0.01 / (np.sqrt(sum(np.square(g).sum() for g in gradients.values())) + 1e-6)
    for name, g in gradients.items():
        g = scale * (g - g.mean(1, keepdims=True) if g.ndim > 1 else g)
        np.testing.assert_allclose(graph.state_dict()[name], before[name] - g, rtol=1e-12)


def test_both_kinds_of_rules_in_one_graph() -> None:
    graph = trained(SGD(0.1))
    graph.set_optimizer(LARS(0.5), where=lambda name, parameter: name.endswith("weight"))
    before = graph.state_dict()
    graph.train_step(X, Y, LOSS)
    gradients = {name: p.grad.copy() for name, p in graph.named_parameters()}
    expected = written(LARS(0.5), before, [gradients])
    for name in ("first.bias", "second.bias"):
        expected[name] = before[name] - 0.1 * gradients[name]
    for name, value in graph.state_dict().items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("optimizer", [SGD(0.5), Centralized(0.5)], ids=lambda rule: type(rule).__name__)
def test_a_gradient_edited_in_place_is_what_update_takes(optimizer) -> None:
    graph = trained(optimizer)
    first = node_of(graph, "first").layer
    before = graph.state_dict()
    graph.forward(X, True)
    graph.backward(LOSS.grad(Y, graph.forward(X, True)))
    view = first.bias.grad
    view *= 0.25
    first.weight.grad[0] = 2.0  # a constant row: its mean is taken off where gradients are centralized
    edited = {name: p.grad.copy() for name, p in graph.named_parameters()}
    graph.update()
    expected = edited["first.weight"]
    if isinstance(optimizer, Centralized):
        expected = expected - expected.mean(1, keepdims=True)
    np.testing.assert_allclose(first.weight.value, before["first.weight"] - 0.5 * expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(first.bias.value, before["first.bias"] - 0.5 * edited["first.bias"])
    np.testing.assert_array_equal(first.bias.grad, edited["first.bias"])  # still there to be read


# ---- what is wrong with a rule


def element(answer, slots=(), whole=False) -> Optimizer:
    """A rule that gives `answer(weight, gradient)`."""
    name = "Whole" if whole else "Own"
    rule = {"rule": lambda self, w, g, s, c: answer(w, g), "slots": slots, "elementwise": not whole}
    return type(name, (Optimizer,), rule)(0.1)


def whole(answer, slots=()) -> Optimizer:
    return element(answer, slots, whole=True)


WRONG = [
    (element(lambda w, g: None), GraphError, r"Own.rule\(\): expected \(the new weight, .*\), got None"),
    (element(lambda w, g: w - g), GraphError, r"Own.rule\(\): expected \(the new weight, .*\), got Scalar"),
    (element(lambda w, g: (w, g, {})), GraphError, "got a tuple of 3"),
    (element(lambda w, g: (None, {})), GraphError, "the new weight: expected a Scalar.*, got None"),
    (element(lambda w, g: (np.zeros(3), {})), GraphError, "the new weight: expected a Scalar.*, got ndarray"),
    (element(lambda w, g: (g < 0, {})), GraphError, "expected a number, got a condition; choose with ops.where"),
    (element(lambda w, g: (w, {}), ("m",)), GraphError, "new values of the slots m, got none"),
    (element(lambda w, g: (w, {"m": w, "n": w}), ("m",)), GraphError, "of the slots m, got m, n"),
    (element(lambda w, g: (w, {"m": "w"}), ("m",)), GraphError, "slot 'm': expected a Scalar.*, got str"),
    (element(lambda w, g: (w, {}), "mean"), GraphError, r"Own.slots: expected a tuple of names .*, got 'mean'"),
    (element(lambda w, g: (w - ops.mean(g), {})), DTypeError, r"Own.rule\(\): .*elementwise = False.* gets Tensors"),
    (element(lambda w, g: (w - ops.matmul(g, g), {})), DTypeError, r"Own.rule\(\): .*elementwise = False"),
    (element(lambda w, g: (w - np.mean(g), {})), TypeError, "use tapeprop.ops instead of NumPy"),
    (whole(lambda w, g: None), GraphError, r"Whole.rule\(\) for 'first.weight': expected \(the new weight, .*got None"),
    (whole(lambda w, g: (1.0, {})), GraphError, "for 'first.weight': the new weight: expected a Tensor.*, got float"),
    (whole(lambda w, g: (ops.sum(w), {})), ShapeError, r"for 'first.weight'.* shape \(8, 4\), got \(\)"),
    (whole(lambda w, g: (w, {"m": w[0]}), ("m",)), ShapeError, r"'first.weight': slot 'm': .*\(8, 4\), got \(4,\)"),
    (whole(lambda w, g: (ops.cast(w, "float32"), {})), DTypeError, "'first.weight'.* dtype float64, got float32"),
    (whole(lambda w, g: (w if w.ndim > 1 else w * ops.reshape(w, (-1, 1)), {})), ShapeError, r"'first.bias'.*\(8, 8\)"),
    (whole(lambda w, g: (ops.matmul(w, w), {})), GraphError, r"Whole.rule\(\) for 'first.weight': matmul"),
]


@pytest.mark.parametrize(("optimizer", "error", "text"), WRONG, ids=[text for _, _, text in WRONG])
def test_a_wrong_rule_is_refused_before_anything_is_trained(optimizer, error, text) -> None:
    graph = trained(Adam(0.1))
    graph.train_step(X, Y, LOSS)
    good, before = graph.optimizer, state(graph)
    with pytest.raises(error, match=text):
        graph.fit(X, Y, loss=LOSS, optimizer=optimizer, verbose=0)
    assert graph.optimizer is good
    graph.set_optimizer(optimizer)
    graph.forward(X, True)
    graph.backward()
    before |= {name: value for name, value in state(graph).items() if name.startswith("d ")}
    for call in (graph.update, lambda: graph.train_step(X, Y, LOSS), lambda: graph.fit(X, Y, loss=LOSS, verbose=0)):
        with pytest.raises(error, match=text):
            call()
        assert_same_bits(state(graph), before)
    graph.set_optimizer(good)  # with the moments and the count that it had
    graph.update()
    twin = trained(Adam(0.1))
    twin.train_step(X, Y, LOSS)
    twin.forward(X, True)
    twin.backward()
    twin.update()
    assert_same_bits(state(graph), state(twin))


def test_an_error_inside_a_rule_says_where() -> None:
    graph = trained(element(lambda w, g: (w - g.shape[0], {})))
    with pytest.raises(AttributeError) as caught:
        graph.train_step(X, Y, LOSS)
    assert "in Own.rule()" in caught.value.__notes__[0]
    assert "elementwise = False" in caught.value.__notes__[0]


def test_prepare_is_checked_as_well() -> None:
    class Prepared(SGD):
        def prepare(self, scalars):
            return self.answer

    for answer, text in ((None, r"Prepared.prepare\(\): expected .*, got None"), ({"lr": 0.5}, "'lr': .*, got float")):
        rule = Prepared(0.1)
        rule.answer = answer
        with pytest.raises(GraphError, match=text):
            trained(rule).train_step(X, Y, LOSS)


def test_ops_choose_by_conditions_of_scalars() -> None:
    """As they do by tensors of 1 and 0; a constant condition too."""
    x, y = inputs(2)
    assert ops.where(x < y, x, y) is ops.where(ops.less(x, y), x, y)
    assert ops.where(1.0, x, y) is x
    assert ops.where(0.0, x, y) is y
