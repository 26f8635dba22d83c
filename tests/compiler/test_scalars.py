"""Formulas of many scalars: as one block and operation by operation they give the same bits, values and gradients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tapeprop as tp
from tapeprop import ops
from tapeprop.compiler import replay
from tapeprop.compiler.interpret import interpret
from tapeprop.compiler.scalars import phases
from tapeprop.ir import reachable

# What a random formula is made of: smooth and kinked ones, with and without numbers, of few and of many operands.
MAKERS = [
    lambda a, b, c: a * b,
    lambda a, b, c: a + b,
    lambda a, b, c: a - 0.5 * b,
    lambda a, b, c: a * c.number,
    lambda a, b, c: ops.tanh(a),
    lambda a, b, c: ops.relu(a - b),
    lambda a, b, c: ops.maximum(a, b, c.other),
    lambda a, b, c: ops.where(a < b, a, c.other),
    lambda a, b, c: ops.sum_of(a, b, *c.several),
    lambda a, b, c: ops.maximum(a, b, *c.several),
    lambda a, b, c: a,
    lambda a, b, c: ops.sigmoid(a) / (1.5 + ops.square(b)),
]


class Choice:
    """What a maker may take besides two tensors."""

    def __init__(self, rng, tensors):
        self.number = float(rng.choice([0.25, -1.5, 3.0]))
        self.other = tensors[rng.integers(len(tensors))]
        self.several = [tensors[k] for k in rng.integers(len(tensors), size=11)]


def formula(seed, inputs, length):
    """Tensors of a random formula, the latest last."""
    rng = np.random.default_rng(seed)
    tensors = list(inputs)
    for _ in range(length):
        recent = tensors[-12:]
        a, b = (recent[k] for k in rng.integers(len(recent), size=2))
        tensors.append(MAKERS[rng.integers(len(MAKERS))](a, b, Choice(rng, tensors)))
    return tensors


def program(fewest, seed, dtype):
    """(the program of values and gradients of a random formula, that of both by the NumPy references)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "FEWEST", fewest)
        patch.setattr(tp.formula.feeds, "FEWEST_TOGETHER", fewest)
        inputs = [tp.placeholder((), dtype=dtype) for _ in range(6)]
        tensors = formula(seed, inputs, 70)
        f = tp.function([tensors[-1], tensors[-20], tensors[-1] * 2], inputs)
        shapes = [(6,)] if fewest <= 6 else [()] * 6
        found = f._network.lowering.value_and_gradient(shapes, None, False, lambda p: True)
    values = np.random.default_rng(seed + 1).uniform(-1, 1, 6).astype(dtype)
    feeds = dict(zip(found.inputs, [values] if fewest <= 6 else values, strict=True))
    results = dict(zip(found.program.outputs, interpret(found.program, feeds)[0], strict=True))
    zeros = np.zeros(6 if fewest <= 6 else ())
    slopes = [results[found.gradients[x]] if x in found.gradients else zeros for x in found.inputs]
    return found.program, results[found.values[0]], np.hstack(slopes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_a_block_gives_the_bits_of_its_operations_one_by_one(dtype, seed):
    blocks, value, slopes = program(6, seed, dtype)
    none, value_apart, slopes_apart = program(10**9, seed, dtype)
    assert all(call.op.name != "scalar_block" for call in none.instructions)
    live = sum(len(call.attributes["block"].nodes) for call in blocks.instructions if call.op.name == "scalar_block")
    assert live >= 6 or len(none.instructions) < 12  # a formula of a few live operations needs no block
    np.testing.assert_array_equal(value, value_apart)
    np.testing.assert_array_equal(slopes, slopes_apart)


def last_tape(f):
    """The tape of a function's last value_and_grad()."""
    (tape,) = [plan[1].tape for key, plan in f._network.plans.items() if key[0] == "value_and_gradient"]
    return tape


def test_a_phase_ends_where_an_array_stands_between_scalars():
    x = tp.placeholder((), dtype="float64")
    first = ops.exp(x)
    array = ops.expand(first, (3,))
    second = ops.sin(ops.sum(array) + first)
    calls = reachable([second])
    found = {call.attributes.get("label", call.op.name): number for call, number in phases(calls, ()).items()}
    assert found == {"exp": 0, "expand": 1, "reduce": 1, "add": 1, "sin": 1}
    found = {call.attributes.get("label", call.op.name): number for call, number in phases(calls, {first}).items()}
    assert found["add"] == 1
    assert found["sin"] == 1


def test_blocks_on_both_sides_of_an_array(monkeypatch):
    monkeypatch.setattr(replay, "FEWEST", 4)
    inputs = [tp.placeholder((), dtype="float64") for _ in range(8)]
    total = inputs[0]
    for x in inputs[1:]:
        total = total * x
    norm = ops.sqrt(ops.sum(ops.square(ops.expand(total, (4,)))))
    for x in inputs:
        norm = norm + x / norm
    f = tp.function(norm, inputs)
    given = np.linspace(0.8, 1.2, 8)

    def plain(values):
        n = 2 * np.prod(values)
        for v in values:
            n = n + v / n
        return n

    value, grads = f.value_and_grad(*given)
    assert value == pytest.approx(plain(given), rel=1e-14)
    step = 1e-6 * np.eye(8)
    np.testing.assert_allclose(grads, [(plain(given + s) - plain(given - s)) / 2e-6 for s in step], rtol=1e-8)
    assert sum(row.label.startswith("scalars") for row in last_tape(f).rows) == len(
        [row for row in last_tape(f).rows if row.step.instruction.op.name == "scalar_block"]
    )


def network(inputs, width):
    """A dense layer written out: `width` neurons over 8 numbers, then their largest."""
    weights = iter(inputs)
    image = [0.1 * (k + 1) for k in range(8)]
    neurons = []
    for _ in range(width):
        total = next(weights)
        for pixel in image:
            total = total + next(weights) * pixel
        neurons.append(ops.relu(total))
    return ops.maximum(*neurons)


def test_neurons_side_by_side_are_one_row_each_step():
    inputs = [tp.placeholder((), dtype="float64") for _ in range(16 * 9)]
    f = tp.function(network(inputs, 16), inputs)
    values = np.random.default_rng(0).standard_normal(16 * 9)
    value, grads = f.value_and_grad(*values)
    table = values.reshape(16, 9)
    sums = table[:, 0] + table[:, 1:] @ (0.1 * np.arange(1, 9))
    assert value == pytest.approx(max(sums.max(), 0.0))
    expected = np.zeros((16, 9))
    expected[sums.argmax()] = [1.0, *0.1 * np.arange(1, 9)]
    np.testing.assert_allclose(np.reshape(grads, (16, 9)), expected, atol=1e-15)
    labels = [row.label for row in last_tape(f).rows]
    assert sum("[128]" in label for label in labels) >= 1  # all products at once
    assert len(labels) < 120  # of 290 operations and their gradients
