"""`build(debug_nan=True)` names the first instruction and node that made a NaN or an infinity, says whether its operands were finite and
where those that were not came from, and leaves the state as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rules.networks import assert_same_bits, chain, images, labels, merged, node_of

import tapeprop as tp
from tapeprop import LayerGraph, LayerNode, MergeMode, ops
from tapeprop.errors import NumericsError
from tapeprop.layers import Activation, BatchNorm1D, Conv2D, Dense, Lambda, PythonLayer, Sequential
from tapeprop.losses import MSE, CrossEntropy
from tapeprop.optimizers import SGD, Adam

LOSS = CrossEntropy()
X, Y = np.random.default_rng(0).standard_normal((22, 4)), labels(22)
BAD = X.copy()
BAD[17, 2] = np.nan
FED = r"operand 0 already held a NaN, first at index \(17, 2\): it came in with the input"


def plain(*layers: Any, names: list[str] | None = None, **build: Any) -> LayerGraph:
    """A chain over (N, 4), float64, with an optimizer whose moments and step count have moved."""
    graph = chain(*layers, names=names, seed=0).build((None, 4), dtype="float64", debug_nan=True, **build)
    graph.set_optimizer(Adam(0.01))
    return graph


def network() -> LayerGraph:
    graph = plain(Dense(4, 6), BatchNorm1D(6), Activation.Tanh(), Dense(6, 3), names=["in", "norm", "tanh", "out"])
    graph.train_step(X[:5], Y[:5], LOSS)
    return graph


def whole(graph: LayerGraph) -> dict[str, np.ndarray]:
    """Values, running statistics, the random counter, moments and step counts."""
    memory = graph.optimizer_state_dict()
    return graph.state_dict() | {name: value for name, value in memory.items() if isinstance(value, np.ndarray)}


def refused(graph: LayerGraph, call: Callable[[], Any], match: str) -> str:
    """The error's text; the state is as before."""
    before = whole(graph)
    with pytest.raises(NumericsError, match=match) as error:
        call()
    assert_same_bits(whole(graph), before)
    return str(error.value)


FIT = {"loss": LOSS, "batch_size": 22, "verbose": 0, "metrics": ()}


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("node 'in': row 0, dense .forward.", lambda g: g.forward(BAD)),
        ("node 'in': row 0, dense .forward.", lambda g: g.forward(BAD, True)),
        ("node 'in': row 0, dense .forward.", lambda g: g.predict(BAD)),
        ("node 'in': row 0, dense .forward.", lambda g: g.evaluate(BAD, Y, loss=LOSS)),
        ("node 'in': row 0, dense .forward.", lambda g: g.train_step(BAD, Y, LOSS)),
        ("^row 0, take_rows .gather.", lambda g: g.fit(BAD, Y, **FIT)),
        ("^row 0, take_rows .gather.", lambda g: g.fit(BAD, Y, **{**FIT, "batch_size": 8}, accumulate=3)),
    ],
    ids=["forward", "training forward", "predict", "evaluate", "train_step", "fit", "accumulate"],
)
def test_a_nan_that_is_fed(where: str, call: Callable[[LayerGraph], Any]) -> None:
    graph = network()
    refused(graph, lambda: call(graph), f"{where}.*{FED}")
    graph.train_step(X, Y, LOSS)


def test_an_infinity_that_is_fed() -> None:
    graph, bad = network(), X.copy()
    bad[1, 0] = np.inf
    refused(
        graph, lambda: graph.forward(bad), r"made an infinity.*6 of 132 elements; operand 0 already held an infinity"
    )


def test_a_d_out_with_a_nan() -> None:
    graph, d_out = network(), np.ones((22, 3))
    d_out[3, 1] = np.nan
    graph.forward(X, True)
    text = refused(graph, lambda: graph.backward(d_out), r"node 'out': .*\(backward\)")
    assert "first at index (3, 1): it came in with d_out" in text
    graph.backward(np.ones((22, 3)))  # of the forward that still stands
    graph.update()


def test_a_parameter_that_holds_one() -> None:
    graph = network()
    node_of(graph, "out").layer.bias.value[1] = np.nan
    refused(graph, lambda: graph.forward(X), "operand 2 already held a NaN.*it is the value of 'out.bias'")
    refused(graph, lambda: graph.train_step(X, Y, LOSS), "node 'out'.*it is the value of 'out.bias'")


def test_a_gradient_that_holds_one() -> None:
    graph = network()
    graph.forward(X, True)
    graph.backward(np.ones((22, 3)))
    node_of(graph, "out").layer.weight.grad[1, 2] = np.nan
    refused(graph, graph.update, r"^the value of 'out.weight': row \d, adam .*it is the gradient of 'out.weight'")


def test_running_statistics_that_hold_one() -> None:
    """The row writes them over: they are looked at before it runs."""
    graph = network()
    node_of(graph, "norm").layer.running_mean.value[3] = np.inf
    refused(
        graph,
        lambda: graph.forward(X, True),
        "node 'norm'.*first at index .3,.: it is the value of 'norm.running_mean'",
    )


def test_a_moment_that_holds_one() -> None:
    graph = network()
    state = graph.optimizer_state_dict()
    name = next(key for key, value in state.items() if isinstance(value, np.ndarray) and value.size > 20)
    state[name].flat[0] = np.inf
    graph.load_optimizer_state_dict(state)
    text = refused(graph, lambda: graph.train_step(X, Y, LOSS), r"the value of 'in.weight': row \d+, adam \(update\)")
    assert "operand 2 already held an infinity, first at index (0,): it is stored as 'slot mean'" in text


# ---- made inside, of finite operands


def test_forward_makes_one() -> None:
    graph = plain(Dense(4, 3), Lambda(lambda x: ops.log(x)), Dense(3, 3), names=["in", "log", "out"])
    for call in (lambda: graph.forward(X), lambda: graph.predict(X), lambda: graph.train_step(X, Y, LOSS)):
        refused(graph, call, r"node 'log': row 1, log \(forward\), made a NaN.*its operands were finite")


def rooted() -> LayerGraph:
    """The square root's derivative is infinite where ReLU gives 0."""
    layers = [Dense(4, 6), Lambda(lambda x: ops.sqrt(ops.relu(x))), Dense(6, 3)]
    return plain(*layers, names=["in", "root", "out"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_backward_makes_one(accumulate: int) -> None:
    graph = rooted()
    expected = r"node 'root': row \d+, sqrt' \(backward\), made an infinity.*its operands were finite"
    refused(graph, lambda: graph.train_step(X, Y, LOSS), expected)
    refused(graph, lambda: graph.fit(X, Y, **{**FIT, "batch_size": 8}, accumulate=accumulate), expected)
    graph.forward(X, True)
    refused(graph, graph.backward, expected)


def test_the_loss_makes_one() -> None:
    """It names the node whose output the loss looks at."""
    graph = plain(Dense(4, 3), names=["out"])
    truth = np.zeros((22, 3))
    truth[2, 1] = 1e200
    for call in (
        lambda: graph.train_step(X, truth, MSE()),
        lambda: graph.fit(X, truth, **{**FIT, "loss": MSE()}),
    ):
        text = refused(graph, call, r"node 'out': row \d, mse.* \(loss\), made an infinity.*its operands were finite")
        assert "1 of" in text


def test_the_update_makes_one() -> None:
    graph = plain(Dense(4, 3), names=["out"])
    graph.set_optimizer(SGD(1e308))
    far = np.full((22, 3), 1e6)
    text = refused(graph, lambda: graph.train_step(X, far, MSE()), r"row \d+, sgd \(update\), made an infinity")
    assert text.startswith("the value of 'out.")
    assert "its operands were finite" in text


def test_one_of_several_outputs() -> None:
    trunk = LayerNode(Dense(4, 3), name="trunk")
    good, bad = LayerNode(Dense(3, 3), name="good"), LayerNode(Lambda(lambda x: ops.log(x)), name="bad")
    graph = LayerGraph({trunk: [good, bad]}, root=trunk, term=[good, bad], seed=0)
    graph.build((None, 4), dtype="float64", debug_nan=True).set_optimizer(SGD(0.1))
    losses = {"good": LOSS, "bad": MSE()}
    refused(graph, lambda: graph.train_step(X, [Y, np.ones((22, 3))], losses), "node 'bad': .*log .forward.")
    refused(graph, lambda: graph.forward(X), "node 'bad': .*log .forward.")
    graph.train_step(X, {"good": Y}, {"good": LOSS})  # a step that does not reach it


def test_one_of_several_inputs() -> None:
    """Told by number: the order is that of the roots."""
    graph = merged(MergeMode.SUM, 3, dtype="float64", debug_nan=True)
    with pytest.raises(NumericsError, match=r"operand 1 already held a NaN, .*: it came in with the input number 1$"):
        graph.forward([X, BAD, X])


class Half(PythonLayer):
    """x / 2; a NaN in the call that is asked for."""

    def __init__(self, where: str):
        self.where = where

    def forward(self, x):
        return x * (np.nan if self.where == "forward" else 0.5)

    def backward(self, d_out):
        return d_out * (np.nan if self.where == "backward" else 0.5)


@pytest.mark.parametrize(("where", "op"), [("forward", "python"), ("backward", "python_grad")])
def test_a_python_layer_makes_one(where: str, op: str) -> None:
    graph = plain(Dense(4, 3), Half(where), Dense(3, 3), names=["in", "half", "out"])
    expected = rf"node 'half': row \d+, {op} \({where}\), made a NaN.*66 of 66 elements; its operands were finite"
    refused(graph, lambda: graph.train_step(X, Y, LOSS), expected)
    refused(graph, lambda: graph.fit(X, Y, **FIT), expected)


def test_what_a_checkpointed_node_computes_again() -> None:
    """Its backward runs forward again first; the error names the gradient's op, which made it, and its place in the node."""
    inside = Sequential(Dense(4, 6), Lambda(lambda x: ops.sqrt(ops.relu(x))))
    first, last = LayerNode(inside, name="inside", checkpoint=True), LayerNode(Dense(6, 3), name="out")
    graph = LayerGraph({first: [last]}, root=first, term=last, seed=0)
    graph.build((None, 4), dtype="float64", debug_nan=True).set_optimizer(Adam(0.01))
    assert sum(row["op"] == "dense" for row in graph.tape.rows) == 3  # two in forward, one again
    expected = r"node 'inside.1': row \d+, sqrt' \(backward\), made an infinity"
    refused(graph, lambda: graph.train_step(X, Y, LOSS), expected)
    graph.forward(X, True)
    refused(graph, graph.backward, expected)
    refused(graph, lambda: graph.forward(BAD, True), FED)


@pytest.mark.parametrize("math_mode", ["fp32", "winograd"])
def test_batches_in_lanes(math_mode: str) -> None:
    """Rows of an instruction that takes several are looked at when its last has run: before, the result is not yet written."""
    layers = [Conv2D(32, 32, 3), Activation.ReLU(), Lambda(lambda x: ops.log(ops.mean(x, (2, 3)) - 10))]
    graph = chain(*layers, names=["conv", "relu", "log"], seed=0)
    graph.build((16, 32, 4, 4), debug_nan=True, math_mode=math_mode).set_optimizer(SGD(0.1))
    x = images(shape=(16, 32, 4, 4), dtype="float32")
    refused(graph, lambda: graph.forward(x), r"node 'log': row \d+, log \(forward\), made a NaN")
    x[3, 2, 1, 0] = np.nan
    refused(graph, lambda: graph.forward(x), "already held a NaN")


def test_an_instruction_of_several_rows() -> None:
    """A formula of scalars is one instruction of many rows: a result is looked at when the last of them has run."""
    x, y = (tp.placeholder((), name=name, dtype="float64") for name in "xy")
    z = x
    for _ in range(30):
        z = ops.sin(z * y) + x
    formula = tp.function(ops.log(x) + z, [x, y])
    expected = formula(0.5, 0.25)
    formula._network.options = replace(formula._network.options, debug_nan=True)
    assert formula(0.5, 0.25) == expected
    (plan,) = formula._network.plans.values()
    last = len(plan[1].tape.rows) - 1
    assert last > 5
    with pytest.raises(NumericsError, match=rf"^row {last}, .*made a NaN.*its operands were finite"):
        formula(-0.5, 0.25)


def test_the_same_bits_as_without() -> None:
    """Looking changes nothing, with micro-batches that do not come out even too."""

    def trained(debug_nan: bool) -> dict[str, np.ndarray]:
        layers = [Dense(4, 6), BatchNorm1D(6), Activation.Tanh(), Dense(6, 3)]
        graph = chain(*layers, seed=0).build((None, 4), dtype="float64", debug_nan=debug_nan)
        graph.set_optimizer(Adam(0.01))
        graph.fit(X, Y, loss=LOSS, batch_size=4, epochs=2, accumulate=4, seed=0, verbose=0)
        return whole(graph)

    assert_same_bits(trained(True), trained(False))
