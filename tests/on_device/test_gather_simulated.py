"""CUDA kernels of gathering and counting: what is out of range, the order of sums, ties, tables beyond 2^31 elements."""

import dataclasses

import numpy as np
import pytest
from on_device.calls import on_cpu, on_cuda, reported
from on_device.launches import DEVICE, run_on

from tapeprop.ops import registry
from tapeprop.ops.gather.counters import CLASSES_OF_A_THREAD
from tapeprop.ops.gather.rows import CURSOR_OUT_OF_RANGE, INDEX_OUT_OF_RANGE
from tapeprop.ops.op import ArrayType, Call, Ref

pytestmark = pytest.mark.cuda

NAN = np.nan


# ---- rows of a table


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
@pytest.mark.parametrize("row", [(), (2, 5)])
def test_the_batch_at_the_cursor(dtype, row):
    table = np.arange(7 * int(np.prod(row, dtype=int))).reshape(7, *row).astype(dtype)
    indices = np.array([6, 0, 3, 3, 1, 2])
    for start in (0, 3):
        found = on_cuda("take_rows", table, indices, np.array([start]), batch=3)[0]
        np.testing.assert_array_equal(found, table[indices[start : start + 3]])


@pytest.mark.parametrize("start", [-1, 4, 2**63 - 1, -(2**63)])
def test_a_cursor_out_of_range_is_reported(start):
    arrays = np.zeros((5, 2)), np.zeros(6, np.int64), np.array([start])
    assert reported("take_rows", *arrays, batch=3)[1] == CURSOR_OUT_OF_RANGE


@pytest.mark.parametrize("index", [-1, 5, 2**40, -(2**62)])
def test_an_index_out_of_range_is_reported(index):
    table, indices, cursor = np.ones((5, 2)), np.array([0, 4, index]), np.array([0])
    assert reported("take_rows", table, indices, cursor, batch=3)[1] == INDEX_OUT_OF_RANGE
    assert reported("take", table, indices)[1] == INDEX_OUT_OF_RANGE
    assert reported("scatter_rows", np.ones((3, 2)), indices, rows=5)[1] == INDEX_OUT_OF_RANGE
    assert reported("take_rows", table, indices, cursor, batch=2)[1] == 0  # that index is not in the batch


def test_a_table_of_more_than_2_to_the_31_elements():
    rows, length = 2**31 // 1024 + 2, 1024
    last = np.arange(length).astype(np.uint8)  # of the table only this row exists, and only it is read
    indices, cursor, found = np.array([rows - 1, rows - 1]), np.array([0]), np.zeros((2, length), np.uint8)
    kinds = [ArrayType((rows, length), "uint8"), ArrayType((2,), "int64"), ArrayType((1,), "int64")]
    call = Call(tuple(kinds), (ArrayType((2, length), "uint8"),), {"batch": 2})
    launch = registry["take_rows"].cuda(call, DEVICE)
    table = Ref("operand", 0)
    before = dataclasses.replace(table, offset=-(rows - 1) * length)
    launch = dataclasses.replace(launch, fields=tuple(before if field == table else field for field in launch.fields))
    assert run_on({"operand": [last, indices, cursor], "result": [found]}, [launch]) == 0
    np.testing.assert_array_equal(found, [last, last])


def test_indices_of_2_to_the_31_and_more_are_divided(monkeypatch):
    monkeypatch.setattr("tapeprop.ops.gather.rows.NARROW", 0)
    table, indices = np.arange(21.0).reshape(7, 3), np.array([6, 0, 3, 3])
    np.testing.assert_array_equal(on_cuda("take", table, indices)[0], table[indices])
    np.testing.assert_array_equal(on_cuda("take_rows", table, indices, np.array([1]), batch=2)[0], table[[0, 3]])


# ---- scattering


@pytest.mark.parametrize("length", [1, 2, 3, 9])
@pytest.mark.parametrize("rows", [1, 3, 11])
def test_scatter_adds_in_the_order_of_the_indices(length, rows):
    random = np.random.default_rng(0)
    x = random.standard_normal((37, length)).astype("float32")
    indices = random.integers(0, rows, 37)
    indices[4:30] = rows // 2  # one row gets more than a chunk
    found = on_cuda("scatter_rows", x, indices, rows=rows)[0]
    np.testing.assert_array_equal(found, on_cpu("scatter_rows", x, indices, rows=rows)[0])


def test_scatter_in_one_block_for_several_rows_and_columns():
    x = np.array([1.0, 2.0**-24, 2.0**-24, 2.0**-24, 5.0, NAN], np.float32).reshape(6, 1)
    indices = np.array([2, 2, 2, 2, 0, 3])  # one after another each 2^-24 is lost beside 1
    for blocks in (1, 2, 5):
        device = dataclasses.replace(DEVICE, blocks=blocks)
        found = on_cuda("scatter_rows", x, indices, rows=5, device=device)[0]
        np.testing.assert_array_equal(found.reshape(-1), [5.0, 0.0, 1.0, NAN, 0.0])


# ---- counters and totals


@pytest.mark.parametrize("width", [3, CLASSES_OF_A_THREAD + 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_count_correct_takes_the_first_of_ties_and_a_nan_for_the_largest(width, dtype):
    rows = [[0, 2, 2], [1, 1, 1], [0, NAN, 9], [NAN, NAN, 1], [-np.inf, -np.inf, -np.inf], [3, 2, 1]]
    logits = np.full((6, width), -np.inf, dtype)
    logits[:, width - 3 :] = rows
    logits[4] = -np.inf
    first = logits.argmax(axis=1)
    for labels, expected in [(first, 6.0), (first + 1, 0.0), (np.where(np.arange(6) % 2, first, -1), 3.0)]:
        assert on_cuda("count_correct", logits, labels)[0] == expected
        if labels.min() >= 0 and labels.max() < width:
            one_hot = np.eye(width, dtype=dtype)[labels]
            assert on_cuda("count_correct", logits, one_hot)[0] == expected


def test_counters_in_their_own_place():
    (found,), _ = reported("advance", np.array([2**40, -1]), inplace=[(0, 0)], step=32)
    assert found.tolist() == [2**40 + 32, 31]
    value = np.array(0.1, np.float32)
    (found,), _ = reported("accumulate", np.array([2.0**40]), value, inplace=[(0, 0)], weight=3)
    assert found.tolist() == [2.0**40 + 3 * float(value)]
