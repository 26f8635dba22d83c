"""Gathering, scattering, counters: cursors, indices out of range, NaN logits, order of sums."""

import numpy as np
import pytest
from ops.kernel_harness import run_launch
from ops.op_runner import gradient, run, trace

from tapeprop import ops
from tapeprop.compiler.interpret import call_of
from tapeprop.errors import DTypeError, ShapeError
from tapeprop.ir import Dim, Input, Tensor
from tapeprop.ops.gather.rows import CURSOR_OUT_OF_RANGE, INDEX_OUT_OF_RANGE
from tapeprop.ops.op import failure_text
from tapeprop.targets.cpu.kernel import run_plain

N = Dim.symbol("N")


def tensor(*shape, dtype="float64"):
    return Tensor(shape, dtype, source=Input(0))


def assert_reports(code, function, *arrays):
    """The kernel of a one-row function leaves the code in the status word, compiled and as plain Python."""
    _, (output,) = trace(function, arrays)
    call = call_of(output.producer, {})
    for execute in (None, run_plain):
        with pytest.raises(AssertionError, match=f"reported {code}$"):
            run_launch(output.producer.op.cpu(call), call, arrays, 1, run=execute)


# ---- batches


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
@pytest.mark.parametrize("row", [(), (3,), (2, 5)])
def test_take_rows_gathers_the_batch_at_the_cursor(dtype, row):
    table = np.arange(7 * int(np.prod(row, dtype=int))).reshape(7, *row).astype(dtype)
    indices = np.array([6, 0, 3, 3, 1, 2])
    for start in (0, 1, 3):
        found = run(lambda t, i, c: ops.take_rows(t, i, c, 3), table, indices, np.array([start]), workers=2)
        np.testing.assert_array_equal(found, table[indices[start : start + 3]])


def test_take_rows_of_an_open_batch():
    x = ops.take_rows(tensor(100, 3, 8), tensor(40, dtype="int64"), tensor(1, dtype="int64"), N)
    assert x.shape == (N, 3, 8)
    assert ops.advance(tensor(1, dtype="int64"), N).producer.attributes["step"] == N


@pytest.mark.parametrize("start", [-1, 4, 100])
def test_a_cursor_out_of_range_is_reported(start):
    table, indices = np.zeros((5, 2)), np.zeros(6, np.int64)
    assert_reports(CURSOR_OUT_OF_RANGE, lambda t, i, c: ops.take_rows(t, i, c, 3), table, indices, np.array([start]))
    assert "cursor" in failure_text(CURSOR_OUT_OF_RANGE)[1]


@pytest.mark.parametrize("index", [-1, 5, 2**40, -(2**62)])
def test_an_index_out_of_range_is_reported(index):
    table, indices = np.zeros((5, 2)), np.array([0, 4, index])
    cursor = np.array([0])
    assert_reports(INDEX_OUT_OF_RANGE, lambda t, i, c: ops.take_rows(t, i, c, 3), table, indices, cursor)
    assert_reports(INDEX_OUT_OF_RANGE, lambda t, i: ops.take(t, i), table, indices)
    assert_reports(INDEX_OUT_OF_RANGE, lambda x, i: ops.scatter_rows(x, i, 5), np.zeros((3, 2)), indices)
    assert "rows of the table" in failure_text(INDEX_OUT_OF_RANGE)[1]
    run(lambda t, i, c: ops.take_rows(t, i, c, 2), table, indices, cursor)  # that index is not in the batch


# ---- embedding


def test_take_and_its_gradient():
    table = np.arange(12.0).reshape(4, 3)
    indices = np.array([[1, 1], [3, 1]])
    np.testing.assert_array_equal(run(lambda t, i: ops.take(t, i), table, indices), table[indices])
    flow = np.arange(12.0).reshape(2, 2, 3)
    d_table, _ = gradient(lambda t, i: ops.take(t, i), table, indices, flow=flow)
    expected = np.zeros((4, 3))
    np.add.at(expected, indices, flow)
    np.testing.assert_array_equal(d_table, expected)
    assert ops.take(tensor(9, 4), tensor(N, 7, dtype="int64")).shape == (N, 7, 4)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_scatter_adds_in_the_order_of_the_indices(workers):
    x = np.array([1.0, 2.0**-24, 2.0**-24, 2.0**-24, 5.0], np.float32).reshape(5, 1)
    # one after another each 2^-24 is lost beside 1; in any other order their sum would show
    indices = np.array([2, 2, 2, 2, 0])
    found = run(lambda v, i: ops.scatter_rows(v, i, 3), x, indices, workers=workers)
    np.testing.assert_array_equal(found.reshape(-1), [5.0, 0.0, 1.0])


# ---- counters and totals


def test_advance():
    assert run(lambda c: ops.advance(c, 32), np.array([2**40])) == 2**40 + 32


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_count_correct_takes_the_first_of_ties_and_a_nan_for_the_largest(dtype):
    nan = np.nan
    logits = np.array([[0, 2, 2], [1, 1, 1], [0, nan, 9], [nan, nan, 1], [-np.inf, -np.inf, -np.inf], [3, 2, 1]], dtype)
    np.testing.assert_array_equal(logits.argmax(axis=1), [1, 0, 1, 0, 0, 0])
    for labels, expected in [([1, 0, 1, 0, 0, 0], 6.0), ([2, 1, 2, 1, 1, 0], 1.0), ([-1, 3, 3, 3, 3, 3], 0.0)]:
        labels = np.array(labels)
        found = run(lambda z, y: ops.count_correct(z, y), logits, labels)
        assert found == expected
        assert found.dtype == np.float64
        if labels.min() >= 0 and labels.max() < 3:
            one_hot = np.eye(3, dtype=dtype)[labels]
            assert run(lambda z, y: ops.count_correct(z, y), logits, one_hot) == expected


@pytest.mark.parametrize("weight", [3, 3.0, np.array(3.0)])
def test_accumulate_adds_in_float64(weight):
    value = np.array(0.1, np.float32)
    found = run(lambda t, v: ops.accumulate(t, v, weight), np.array([2.0**40]), value)
    assert found.dtype == np.float64
    assert found.shape == (1,)
    assert found[0] == 2.0**40 + 3 * np.float64(value)


def test_an_open_weight():
    y = ops.accumulate(tensor(1), tensor(dtype="float32"), N)
    assert y.producer.attributes["weight"] == N


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.take(tensor(), tensor(3, dtype="int64")), ShapeError, "axis of rows"),
        (lambda: ops.take(tensor(4), tensor(3)), DTypeError, "int64"),
        (lambda: ops.take(tensor(0, 3), tensor(3, dtype="int64")), ShapeError, "(0, 3)"),
        (
            lambda: ops.take_rows(tensor(4), tensor(3, dtype="int64"), tensor(2, dtype="int64"), 2),
            ShapeError,
            "cursor of shape (1,)",
        ),
        (
            lambda: ops.take_rows(tensor(4), tensor(3, dtype="int64"), tensor(1, dtype="int64"), 0),
            ShapeError,
            "at least 1",
        ),
        (lambda: ops.scatter_rows(tensor(3, 2), tensor(4, dtype="int64"), 5), ShapeError, "(4,)"),
        (lambda: ops.advance(tensor(1)), DTypeError, "int64"),
        (lambda: ops.count_correct(tensor(3, 2), tensor(4, dtype="int64")), ShapeError, "labels (4,)"),
        (lambda: ops.count_correct(tensor(3), tensor(3, dtype="int64")), ShapeError, "(N, C)"),
        (lambda: ops.count_correct(tensor(3, 2), tensor(3, 2, dtype="float32")), DTypeError, "one floating dtype"),
        (lambda: ops.accumulate(tensor(1, dtype="float32"), tensor()), DTypeError, "float64"),
        (lambda: ops.accumulate(tensor(1), tensor(2)), ShapeError, "single numbers"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
