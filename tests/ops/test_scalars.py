"""Blocks of scalar operations: how they are laid out, and their gradients, which are blocks again."""

import numpy as np
import pytest
from ops.kernel_harness import run_rows

from tapeprop.compiler.gradient import gradients
from tapeprop.compiler.interpret import call_of, interpret
from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Input, Program, Span, Tensor, Trace, reachable, recording
from tapeprop.ops.formulas import FORMULAS
from tapeprop.ops.op import Call, record
from tapeprop.ops.scalars import scalar_block
from tapeprop.ops.scalars.block import Block, Column, Kind, reverse
from tapeprop.targets.cpu.kernel import run_plain


def kind(name, count=None, **attributes):
    formula = FORMULAS[name]
    count = formula.operands(count)
    known = tuple(sorted(formula.complete(attributes).items()))
    return Kind(formula.expression(count, **attributes), count, (name, known, tuple(range(count))))


def value(block, *vectors):
    with recording(Trace("float64", True)):
        leaves = [Tensor(v.shape, "float64", source=Input(i)) for i, v in enumerate(vectors)]
        out = scalar_block(block, leaves)
    return evaluate([out], dict(zip(leaves, vectors, strict=True)))[0]


def evaluate(outputs, feeds):
    return interpret(Program([Span("all", reachable(outputs))], [], outputs), feeds)[0]


def test_regular_operands_need_no_table():
    """Two dot products of three: products read both vectors evenly, the sums read every third product."""
    products = [(0, (3 * j + i, 6 + i)) for j in range(2) for i in range(3)]
    first = [(1, (9 + 3 * j, 10 + 3 * j)) for j in range(2)]
    second = [(1, (15 + j, 11 + 3 * j)) for j in range(2)]
    block = Block([6, 3], [kind("multiply"), kind("add")], [*products, *first, *second], [17, 18])
    assert [(step.size, step.start) for step in block.plan.steps] == [(6, 0), (2, 6), (2, 8)]
    assert block.plan.steps[0].columns[0] == Column(0, 0, 1)
    assert block.plan.steps[0].columns[1].table is not None  # 0 1 2 0 1 2
    assert block.plan.steps[1].columns == (Column(-1, 0, 3), Column(-1, 1, 3))
    assert block.plan.steps[2].columns == (Column(-1, 6, 1), Column(-1, 2, 3))
    a, b = np.arange(6.0), np.array([1.0, 10.0, 100.0])
    np.testing.assert_array_equal(value(block, a, b), a.reshape(2, 3) @ b)


def test_numbers_that_differ_side_by_side_are_a_column():
    block = Block(
        [3], [kind("leaky_relu", alpha=a) for a in (0.5, 0.25, -0.0)], [(k, (k,)) for k in range(3)], [3, 4, 5]
    )
    (step,) = block.plan.steps
    assert step.size == 3
    assert len(step.columns) == 2
    np.testing.assert_array_equal(block.plan.literals, [0.5, 0.25, -0.0])
    assert np.signbit(block.plan.literals[2])
    np.testing.assert_array_equal(value(block, np.array([-1.0, -2.0, -4.0])), [-0.5, -0.5, 0.0])


def test_complicated_kinds_are_computed_in_steps():
    many = [kind("sum_of", 20), kind("maximum", 20), kind("product_of", 9)]
    nodes = [(0, tuple(range(20))), (1, tuple(range(20))), (2, tuple(range(9)))]
    block = Block([20], many, nodes, [20, 21, 22, 5])
    x = np.random.default_rng(0).uniform(0.5, 1.5, 20)
    np.testing.assert_allclose(value(block, x), [x.sum(), x.max(), x[:9].prod(), x[5]], rtol=1e-14)
    assert max(len(step.columns) for step in block.plan.steps) <= 2
    assert [step.terms for step in block.plan.steps if step.root is None] == [20]


def test_the_gradient_of_many_tied_operands_is_shared_equally():
    block = Block([12], [kind("maximum", 12)], [(0, tuple(range(12)))], [12])
    back = reverse(block, [True], (True, False))
    x = np.zeros(12)
    x[[2, 5, 11]] = 1.0
    bank = np.zeros(block.plan.size)
    bank[block.plan.position[0]] = 1.0
    found = value(back.block, x, bank, np.array([6.0]))
    np.testing.assert_allclose(found, np.where(x == 1, 2.0, 0.0))


def test_sums_of_values_from_several_vectors():
    block = Block([3, 3], [kind("sum_of", 6), kind("square")], [(1, (0,)), (0, (6, 1, 2, 3, 4, 5))], [7])
    x, y = np.array([3.0, 1.0, 2.0]), np.array([4.0, 5.0, 6.0])
    np.testing.assert_array_equal(value(block, x, y), [9.0 + 1 + 2 + 4 + 5 + 6])


def test_second_derivatives():
    """f = tanh(a b) + a^2 b: its Hessian-vector product, by a block of a block's gradient."""
    nodes = [(0, (0, 1)), (1, (2,)), (0, (0, 0)), (0, (4, 1)), (2, (3, 5))]
    block = Block([2], [kind("multiply"), kind("tanh"), kind("add")], nodes, [6])
    x, v = np.array([0.7, -0.4]), np.array([0.3, 1.1])
    with recording(Trace("float64", True)):
        leaf, along = (Tensor((2,), "float64", source=Input(i)) for i in range(2))
        one = Tensor((1,), "float64", source=Input(2))
        out = scalar_block(block, [leaf])
        slope = gradients({out: one}, [leaf])[leaf]
        curve = gradients({slope: along}, [leaf])[leaf]
    found, along_v = evaluate([slope, curve], {leaf: x, along: v, one: np.ones(1)})

    def gradient(a, b):
        inner = 1 - np.tanh(a * b) ** 2
        return np.array([inner * b + 2 * a * b, inner * a + a * a])

    np.testing.assert_allclose(found, gradient(*x), rtol=1e-14)
    step = 1e-6
    np.testing.assert_allclose(along_v, (gradient(*(x + step * v)) - gradient(*(x - step * v))) / (2 * step), rtol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_body_of_the_long_sum_as_plain_python(dtype):
    block = Block(
        [40], [kind("sum_of", 8)], [(0, tuple(range(k, k + 8))) for k in range(0, 40, 8)], list(range(40, 45))
    )
    x = np.random.default_rng(0).standard_normal(40).astype(dtype)
    with recording(Trace(dtype, True)):
        out = scalar_block(block, [Tensor((40,), dtype, source=Input(0))])
    call: Call = call_of(out.producer, {})
    arrays = [x, block.plan.literals.astype(dtype), block.plan.table]
    (sums,) = [row for row in out.producer.op.cpu_rows(call) if row.kernel.builder.endswith("ordered_sums")]
    compiled, plain = (run_rows([sums], call, arrays, 1, run=run)[1] for run in (None, run_plain))
    np.testing.assert_array_equal(compiled, plain)


def test_what_does_not_fit_is_refused():
    block = Block([3], [kind("square")], [(0, (0,))], [3])
    x, literals = Tensor((3,), "float64", source=Input(0)), Tensor((1,), "float64", source=Input(1))
    table = Tensor((1,), "int64", source=Input(2))
    with recording(Trace("float64", True)), pytest.raises(ShapeError, match=r"shapes \(3,\).*got \(2,\)"):
        scalar_block(block, [Tensor((2,), "float64", source=Input(0))])
    with recording(Trace("float64", True)), pytest.raises(DTypeError, match="int32"):
        record("scalar_block", [x, literals, table], {"block": block})
