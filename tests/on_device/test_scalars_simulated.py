"""Blocks of scalar operations on CUDA: long sums in order, columns of every kind, gradients of blocks."""

import numpy as np
import pytest
from on_device.launches import DEVICE, run_launches
from ops.test_scalars import kind

from tapeprop.ops import registry
from tapeprop.ops.op import ArrayType, Call
from tapeprop.ops.scalars.block import Block, reverse

pytestmark = pytest.mark.cuda


def check(block, *vectors):
    """The outputs of a block, which have the bits of the reference where only sums and products are made."""
    dtype, plan = vectors[0].dtype, block.plan
    arrays = [*vectors, plan.literals.astype(dtype), plan.table]
    results = [ArrayType((n,), str(dtype)) for n in (len(block.outputs), plan.size)]
    call = Call(tuple(ArrayType(a.shape, str(a.dtype)) for a in arrays), tuple(results), {"block": block})
    op = registry["scalar_block"]
    found = run_launches(op.cuda_rows(call, DEVICE), call, arrays)
    for value, expected in zip(found, op.reference(call, *arrays), strict=True):
        np.testing.assert_array_equal(value, expected)
    return found[0], found[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_sums_run_from_left_to_right(dtype):
    """Bit by bit: another order would round differently."""
    random = np.random.default_rng(0)
    x = random.standard_normal(60).astype(dtype)
    nodes = [(0, tuple(int(k) for k in random.permutation(60)[:20])) for _ in range(11)]
    block = Block([60], [kind("sum_of", 20)], nodes, [60, 66, 70, 3])
    assert [step.terms for step in block.plan.steps if step.root is None] == [20]
    check(block, x)


def test_columns_that_run_backwards_stand_still_or_jump():
    x, y = np.random.default_rng(0).standard_normal((2, 23))
    products = [(0, (22 - 2 * k, 23 + 5)) for k in range(11)]  # every second from the end, by one number
    block = Block([23, 23], [kind("multiply"), kind("add")], [*products, (1, (46, 50))], [57, 46, 3])
    steps = [column.stride for step in block.plan.steps for column in step.columns]
    assert -2 in steps
    assert 0 in steps
    check(block, x, y)


def test_the_gradient_of_a_block():
    nodes = [(0, (0, 1)), (0, (2, 0)), (1, (3, 1, 0, 2))]
    block = Block([2], [kind("multiply"), kind("sum_of", 4)], nodes, [4])
    x = np.array([3.0, 2.0])
    out, bank = check(block, x)
    assert out == [18.0 + 2 + 3 + 6]
    back = reverse(block, [True], (True, False))
    slope, _ = check(back.block, x, bank, np.ones(1))
    np.testing.assert_array_equal(slope, [2 * 6 + 1 + 2, 9 + 1 + 3])  # of x0^2 x1 + x1 + x0 + x0 x1
