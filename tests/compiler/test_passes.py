"""Every pass leaves the values as they were: random programs before and after each pass, by the interpreter."""

import numpy as np
from compiler.programs import programs
from hypothesis import given, settings

from tapeprop import ops
from tapeprop.compiler.interpret import interpret
from tapeprop.compiler.passes import PASSES, merge_equal, optimize, remove_dead
from tapeprop.ir import Input, Program, Span, Tensor, reachable


@settings(max_examples=60)
@given(programs())
def test_each_pass_keeps_every_bit(case):
    program, feeds = case
    expected, effects = interpret(program, feeds)

    def check(name, after):
        values, stored = interpret(after, feeds)
        for a, b in zip(values, expected, strict=True):
            assert a.tobytes() == b.tobytes(), name
        assert [v.tobytes() for v in stored.values()] == [v.tobytes() for v in effects.values()], name

    optimize(program, check)


def scalar_chain(depth):
    x = Tensor((8,), "float32", source=Input(0))
    y = x
    for _ in range(depth):
        y = ops.tanh(ops.add(y, 1.0))
    return x, y


def test_a_chain_becomes_one_instruction():
    x, y = scalar_chain(4)
    program = optimize(Program([Span("all", reachable([y]))], [x], [y]))
    assert [call.op.name for call in program.instructions] == ["elementwise"]


def test_a_value_read_elsewhere_is_a_second_result_not_a_second_computation():
    x = Tensor((8,), "float32", source=Input(0))
    h = ops.tanh(x)
    y = ops.sum(h) + ops.relu(h)
    program = optimize(Program([Span("all", reachable([y, h]))], [x], [y, h]))
    labels = [call.attributes.get("label", call.op.name) for call in program.instructions]
    assert sum("tanh" in label for label in labels) == 1


def test_nothing_crosses_spans():
    x = Tensor((8,), "float32", source=Input(0))
    h = ops.tanh(x)
    y = ops.relu(h)
    first, second = h.producer, y.producer
    program = optimize(Program([Span("forward", [first]), Span("backward", [second])], [x], [y]))
    assert [len(span.instructions) for span in program.spans] == [1, 1]


def test_dead_and_equal_instructions_go():
    x = Tensor((8,), "float32", source=Input(0))
    a, b, unused = ops.tanh(x), ops.tanh(x), ops.exp(x)
    y = ops.add(a, b)
    calls = [a.producer, b.producer, unused.producer, y.producer]
    program = merge_equal(remove_dead(Program([Span("all", calls)], [x], [y])))
    assert len(program.instructions) == 2
    values, _ = interpret(program, {x: np.ones(8, np.float32)})
    np.testing.assert_allclose(values[0], 2 * np.tanh(np.float32(1)), rtol=1e-6)


def test_the_list_of_passes_has_names_for_messages():
    assert all(run.__doc__ for run in PASSES)
