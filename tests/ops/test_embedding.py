"""Embedding: floating and whole tokens, the row without gradient, what stops a run."""

import numpy as np
import pytest
from ops.kernel_harness import run_launch
from ops.op_runner import gradient, run, trace

from tapeprop import ops
from tapeprop.compiler.interpret import call_of
from tapeprop.errors import ShapeError
from tapeprop.ir import Input, Tensor
from tapeprop.ops.embedding import NOT_WHOLE
from tapeprop.ops.gather import scatter_rows
from tapeprop.ops.op import failure_text, record
from tapeprop.targets.cpu.kernel import run_plain

WEIGHT = np.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize("kind", ["float64", "int64"])
def test_rows_and_their_gradient(kind):
    tokens = np.array([[1, 1], [3, 1]]).astype(kind)
    np.testing.assert_array_equal(run(ops.embedding, WEIGHT, tokens), WEIGHT[tokens.astype(int)])
    flow = np.arange(12.0).reshape(2, 2, 3)
    expected = np.zeros((4, 3))
    np.add.at(expected, tokens.astype(int), flow)
    np.testing.assert_array_equal(gradient(ops.embedding, WEIGHT, tokens, flow=flow)[0], expected)
    expected[1] = 0
    padded = gradient(lambda w, t: ops.embedding(w, t, 1), WEIGHT, tokens, flow=flow)[0]
    np.testing.assert_array_equal(padded, expected)


def test_the_row_without_gradient_has_no_second_one_either():
    tokens = np.array([1, 0, 1])
    (dx, _) = gradient(lambda x, i: scatter_rows(x, i, 2, skip=1), np.ones((3, 2)), tokens, flow=2.0)
    np.testing.assert_array_equal(dx, [[0, 0], [2, 2], [0, 0]])


@pytest.mark.parametrize("number", [0.5, -0.25, 1e6 + 0.5, np.nan])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_number_that_is_not_whole_is_reported(number, dtype):
    tokens = np.array([0, number], dtype)
    _, (output,) = trace(lambda t: record("whole_numbers", [t])[0], [tokens])
    call = call_of(output.producer, {})
    for execute in (None, run_plain):
        with pytest.raises(AssertionError, match=f"reported {NOT_WHOLE}$"):
            run_launch(output.producer.op.cpu(call), call, [tokens], 1, run=execute)
    assert failure_text(NOT_WHOLE)[0] == "index"


def test_refusals():
    tokens = Tensor((2,), "float64", source=Input(1))
    with pytest.raises(ShapeError, match=r"a weight \(R, features\)"):
        ops.embedding(Tensor((4,), "float64", source=Input(0)), tokens)
    with pytest.raises(ShapeError, match="padding_idx from 0 to 3, got 4"):
        ops.embedding(Tensor((4, 2), "float64", source=Input(0)), tokens, 4)
