"""Rows of a table by index, of a batch and of an embedding, and what is scattered back to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.errors import ShapeError
from tapeprop.ir import Size, Tensor, UndecidedError
from tapeprop.ir.dims import at_least, same, text
from tapeprop.ops.elementwise import select as where
from tapeprop.ops.gather.rules import CUDA, HERE, check_integers, flat
from tapeprop.ops.op import (
    NARROW,
    Call,
    Device,
    Launch,
    Op,
    Ref,
    Sample,
    check_rank,
    cuda_launch,
    failure,
    inverse,
    launch,
    operand,
    record,
    register,
    same_dtype,
)
from tapeprop.ops.shape.rules import refuse_empty

INDICES_OF_A_THREAD = 4  # that a thread of a scattering block looks through at a time
INDEX_OUT_OF_RANGE = failure(
    2, "index", "an index is negative or not below the number of rows of the table; check the indices"
)
CURSOR_OUT_OF_RANGE = failure(
    3, "index", "the batch at the cursor does not lie within the indices; set the cursor back, or use a smaller batch"
)


def _check_table(name: str, table: Tensor) -> None:
    if table.ndim == 0:
        raise ShapeError(f"{name}: expected a table with an axis of rows, got shape ()")


def _split(shape: tuple[int, ...], at: int) -> tuple[int, int]:
    """The elements before and from axis `at` of a concrete shape."""
    return int(np.prod(shape[:at], dtype=np.int64)), int(np.prod(shape[at:], dtype=np.int64))


def _cuda_take(builder: str, call: Call, device: Device, *batch: int) -> Launch:
    """The launch that fills result 0 with rows of operand 0: a thread for each element."""
    table, y = call.operands[0], call.results[0]
    rows, length = _split(table.shape, 1)
    grid, block = device.spread(y.size)
    integers = (*batch, length, inverse(length), rows)
    wide = y.size >= NARROW
    return cuda_launch(f"{CUDA}:{builder}", flat(call), integers, grid=grid, block=block, dtype=table.dtype, wide=wide)


# ---- batches


@register
class TakeRows(Op):
    """y[i] = table[indices[cursor + i]] for 0 <= i < batch: the gathering of a batch inside the tape.

    Operands: table (R, *row) of any dtype, indices (M,) int64, cursor (1,) int64. An index that is no row, and a batch
    that ends past M, stop the run.
    """

    name = "take_rows"

    def infer(self, operands, attributes):
        table, indices, cursor = operands
        refuse_empty("take_rows", table.shape, indices.shape)
        _check_table("take_rows", table)
        for what, x in (("indices", indices), ("a cursor", cursor)):
            check_integers("take_rows", what, x)
            check_rank("take_rows", x, 1, "(M,)" if x is indices else "(1,)")
        if not same(cursor.shape[0], 1):
            raise ShapeError(f"take_rows: expected a cursor of shape (1,), got {text(cursor.shape)}")
        if not at_least(attributes["batch"], 1):
            raise ShapeError(f"take_rows: expected a batch of at least 1, got {attributes['batch']}")
        return [((attributes["batch"], *table.shape[1:]), table.dtype)]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        table, indices, cursor = arrays
        return [table[indices[cursor[0] : cursor[0] + call["batch"]]]]

    def cpu(self, call: Call) -> Launch:
        table, y = call.operands[0], call.results[0]
        arrays = [
            (Ref("result"), _split(y.shape, 1)),
            (Ref("operand", 0), _split(table.shape, 1)),
            operand(1, call),
            operand(2, call),
        ]
        return launch(f"{HERE}:take_rows", call, arrays, dtype=table.dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_take("take_rows", call, device, call["batch"])

    def flops(self, call: Call) -> int:
        return 0

    def traffic(self, call: Call) -> int:
        return 2 * call.results[0].nbytes + 8 * call["batch"]

    def samples(self):
        def case(rows, row, batch, start):
            def make(r):
                return [r.standard_normal((rows, *row)), r.integers(0, rows, 2 * batch), np.array([start])]

            return Sample(make, {"batch": batch}, gradient=())

        def bytes_of(r):
            return [r.integers(0, 256, (9, 12)).astype(np.uint8), r.integers(0, 9, 6), np.array([1])]

        def labels_of(r):
            return [r.integers(0, 10, 9), r.integers(0, 9, 6), np.array([1])]

        floats = [case(20, (3, 5), 4, 2), case(9, (), 7, 0), case(5, (33,), 1, 1)]
        return [*floats, *(Sample(make, {"batch": 5}, gradient=()) for make in (bytes_of, labels_of))]


def take_rows(table: Any, indices: Any, cursor: Any, batch: Size) -> Tensor:
    """(batch, *row): the rows indices[cursor], indices[cursor + 1], ... of a table (R, *row). Not differentiated.

    indices: (M,) int64; cursor: (1,) int64. A run stops with an error where an index or the cursor is out of range.
    """
    return record("take_rows", [table, indices, cursor], {"batch": batch})[0]


# ---- embedding


@register
class Take(Op):
    """y[i, ...] = table[indices[i, ...]]: an embedding. Operands: table (R, *row), indices of any shape, int64.

    skip, where it is given: a row to which no gradient flows.
    """

    name = "take"
    onnx = ("Gather",)

    def infer(self, operands, attributes):
        table, indices = operands
        refuse_empty("take", table.shape, indices.shape)
        _check_table("take", table)
        check_integers("take", "indices", indices)
        return [((*indices.shape, *table.shape[1:]), table.dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (table, indices) = gradients, call.operands
        skip = call.attributes.get("skip")
        return [None if g is None else scatter_rows(g, indices, table.shape[0], skip), None]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        table, indices = arrays
        return [table[indices]]

    def cpu(self, call: Call) -> Launch:
        table, indices = call.operands
        arrays = [
            (Ref("result"), _split(call.results[0].shape, len(indices.shape))),
            (Ref("operand", 0), _split(table.shape, 1)),
            (Ref("operand", 1), (indices.size,)),
        ]
        return launch(f"{HERE}:take", call, arrays, dtype=table.dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        return _cuda_take("take", call, device)

    def flops(self, call: Call) -> int:
        return 0

    def traffic(self, call: Call) -> int:
        return 2 * call.results[0].nbytes + call.operands[1].nbytes

    def samples(self):
        return [
            Sample(lambda r: [r.standard_normal((7, 5)), r.integers(0, 7, (2, 3))]),
            Sample(lambda r: [r.standard_normal((1, 2, 3)), r.integers(0, 1, (4,))]),
            Sample(lambda r: [r.standard_normal((50,)), r.integers(0, 50, ())]),
        ]


def take(x: Any, indices: Any, skip: int | None = None) -> Tensor:
    """Rows of x (R, *row) by indices of any shape, int64: (*indices.shape, *row).

    Indices run from 0 to R - 1; a run with another one stops with an error. skip: a row that gets no gradient.
    """
    return record("take", [x, indices], {} if skip is None else {"skip": int(skip)})[0]


@register
class ScatterRows(Op):
    """y[j] = sum of x[i] over the i with indices[i] = j, added in the order of i: the gradient of `take`.

    Operands: x (*I, *row) floating, indices (*I) int64; result (rows, *row). Each row of the result is one worker's.
    skip, where it is given: a row to which nothing is added.
    """

    name = "scatter_rows"

    def infer(self, operands, attributes):
        x, indices = operands
        refuse_empty("scatter_rows", x.shape, (attributes["rows"],))
        same_dtype("scatter_rows", [x])
        check_integers("scatter_rows", "indices", indices)
        if x.ndim < indices.ndim or not all(map(same, x.shape, indices.shape)):
            raise ShapeError(
                f"scatter_rows: expected values that begin with the axes of the indices, {text(indices.shape)}, "
                f"got {text(x.shape)}"
            )
        return [((attributes["rows"], *x.shape[indices.ndim :]), x.dtype)]

    def vjp(self, call, gradients, wanted):
        (g,), (_, indices), skip = gradients, call.operands, call.attributes.get("skip")
        if g is None:
            return [None, None]
        if skip is not None:
            rows = call.attributes["rows"]
            if not isinstance(rows, int):
                raise UndecidedError(f"the number of rows {rows}")
            kept = (np.arange(rows) != skip).astype(np.float64).reshape(rows, *[1] * (g.ndim - 1))
            g = where(kept, g, 0.0)
        return [take(g, indices), None]

    def reference(self, call: Call, *arrays: np.ndarray) -> Sequence[np.ndarray]:
        x, indices = arrays
        y = np.zeros(call.results[0].shape, x.dtype)
        np.add.at(y, indices, x)
        if "skip" in call.attributes:
            y[call["skip"]] = 0.0
        return [y]

    def cpu(self, call: Call) -> Launch:
        x, indices = call.operands
        arrays = [
            (Ref("result"), _split(call.results[0].shape, 1)),
            (Ref("operand", 0), _split(x.shape, len(indices.shape))),
            (Ref("operand", 1), (indices.size,)),
        ]
        return launch(f"{HERE}:scatter_rows", call, arrays, [call.attributes.get("skip", -1)], dtype=x.dtype)

    def cuda(self, call: Call, device: Device) -> Launch:
        rows, length = _split(call.results[0].shape, 1)
        column_blocks = -(-length // device.block)
        row_blocks = min(rows, max(1, device.blocks // column_blocks))
        return cuda_launch(
            f"{CUDA}:scatter_rows",
            flat(call),
            (rows, length, row_blocks, column_blocks, call.attributes.get("skip", -1)),
            grid=device.rows(row_blocks * column_blocks)[0],
            block=(device.block, 1, 1),
            dtype=call.operands[0].dtype,
            threads=device.block,
            each=INDICES_OF_A_THREAD,
        )

    def flops(self, call: Call) -> int:
        return call.operands[0].size

    def samples(self):
        return [
            Sample(lambda r: [r.standard_normal((2, 30, 5)), r.integers(0, 7, (2, 30))], {"rows": 7}, depth=60),
            Sample(lambda r: [r.standard_normal((4,)), r.integers(0, 1, (4,))], {"rows": 1}, depth=4),
            Sample(lambda r: [r.standard_normal((3, 2)), r.integers(0, 40, (3,))], {"rows": 40}, depth=3),
            Sample(lambda r: [r.standard_normal((9, 2)), r.integers(0, 3, (9,))], {"rows": 3, "skip": 1}, depth=9),
        ]


def scatter_rows(x: Any, indices: Any, rows: Size, skip: int | None = None) -> Tensor:
    """(rows, *row): the values x (*I, *row) added up at the rows that indices (*I) int64 name, zero elsewhere.

    skip: a row to which nothing is added.
    """
    return record("scatter_rows", [x, indices], {"rows": rows} | ({} if skip is None else {"skip": int(skip)}))[0]
