"""The microkernel of every matrix product and convolution, and the ways to lay out its operands.

`gemm_panel` computes C (m, n) = A (m, k) B (k, n) for a panel of at most two vectors of columns. Its tiles keep `height` x 2
vectors of sums in registers; each step loads one row of B and broadcasts one column of A (Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", 2008; the tile is BLIS's). Neither operand has to be packed: A is read at two strides
or through a table of rows, B at one stride or through a table, which is what makes a convolution's column matrix implicit.
Sums run over k in rising order from zero, whatever the tile, in blocks of about `TERMS`: the rows of B that a block reads stay in the
nearest cache from one tile to the next (16 KiB with vectors of 256 bits). This module imports numba.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from tapeprop.targets.cpu.emission import I64, Emitter, Loop, call_function, literals, pointer
from tapeprop.targets.cpu.machine import vector_bits
from tapeprop.targets.cpu.plain import twin

__all__ = ["A_ROWS", "B_TABLE", "NO_ADDEND", "PER_ROW", "ROWS", "STRIDED", "gemm_panel"]

#: Of a block of a sum, about: a sum of fewer than 1.5 times as many is one block.
TERMS = 256

#: How `gemm_panel` finds an element of A and a row of B.
STRIDED, B_TABLE, A_ROWS = 0, 1, 2
#: What it adds to the sums: nothing, rows of vectors, or one number per row.
NO_ADDEND, ROWS, PER_ROW = 0, 1, 2

Value = Any  # an llvmlite.ir value

_PRODUCT = "m n k a a_start a_m a_k b b_start b_k table table_start addend addend_start addend_m c c_start c_m".split()


@intrinsic(prefer_literal=True)
def gemm_panel(
    typing_context, lanes, height, addressing, addend_kind,
    m, n, k, a, a_start, a_m, a_k, b, b_start, b_k, table, table_start, addend, addend_start, addend_m, c, c_start, c_m,
):  # fmt: skip
    """C (m, n) = A (m, k) B (k, n) + addend, for 1 <= n <= 2 * lanes columns and any m, k >= 0.

    The first four arguments are literal ints: elements in a vector, rows of the tallest tile, how A and B are read, and what
    is added. Arrays are C-contiguous, of one floating dtype (table: int64); starts, strides and table entries count elements.

    STRIDED: A[i, s] = a[a_start + i * a_m + s * a_k], row s of B begins at b[b_start + s * b_k]. C[i, j] goes to
    c[c_start + i * c_m + j].
    B_TABLE: row s of B begins at b[b_start + table[table_start + s]] instead.
    A_ROWS: A[i, s] = a[a_start + table[table_start + i] + s] instead.
    ROWS: addend[addend_start + i * addend_m + j] is added to the sum of C[i, j]; PER_ROW: addend[addend_start + i * addend_m]; neither
    where addend_m is negative. It joins the sum of the first block of terms, to which those of the others are added one by one.
    """
    literal = literals([lanes, height, addressing, addend_kind])
    if literal is None:
        return None
    kinds = {"a": a, "b": b, "table": table, "addend": addend, "c": c}
    signature = types.void(lanes, height, addressing, addend_kind, *[kinds.get(name, types.intp) for name in _PRODUCT])

    def codegen(context, builder, _signature, args):
        values = [
            pointer(context, builder, kinds[name], value) if name in kinds else value
            for name, value in zip(_PRODUCT, args[4:])
        ]

        def emit(inner, parameters):
            e = Emitter(inner, a.dtype.bitwidth, literal[0])
            _emit_product(e, dict(zip(_PRODUCT, parameters)), *literal[1:])

        call_function(builder, f"gemm_panel_{a.dtype.bitwidth}_{'_'.join(map(str, literal))}", values, emit)
        return context.get_dummy_value()

    return signature, codegen


def _emit_product(e: Emitter, given: dict[str, Value], height: int, addressing: int, addend_kind: int) -> None:
    """All the rows of one block of terms after another."""
    b = e.builder
    for name in ("a", "b", "addend", "c"):
        given[name] = e.move(given[name], given[f"{name}_start"])
    given["table"] = b.gep(given["table"], [given["table_start"]], source_etype=I64)
    count = b.udiv(b.add(given["k"], I64(TERMS // 2)), I64(TERMS))
    count = b.select(b.icmp_unsigned("==", count, I64(0)), I64(1), count)
    loop = Loop(b, "block", I64(0))
    (number,) = loop.values
    loop.test(b.icmp_unsigned("<", number, count))
    following = b.add(number, I64(1))
    first, end = (b.udiv(b.mul(given["k"], n), count) for n in (number, following))
    later = b.icmp_unsigned(">", number, I64(0))
    block = dict(given, k=b.sub(end, first), later=later, addend_m=b.select(later, I64(-1), given["addend_m"]))
    block["a"] = e.move(given["a"], first if addressing == A_ROWS else b.mul(first, given["a_k"]))
    if addressing == B_TABLE:
        block["table"] = b.gep(given["table"], [first], source_etype=I64)
    else:
        block["b"] = e.move(given["b"], b.mul(first, given["b_k"]))
    _emit_block(e, block, height, addressing, addend_kind)
    loop.close(following)


def _emit_block(e: Emitter, given: dict[str, Value], height: int, addressing: int, addend_kind: int) -> None:
    """All the rows: tiles of `height`, then of the powers of two below it, each as often as it fits."""
    b = e.builder
    both = 2 * e.lanes
    with b.if_else(b.icmp_signed(">", given["n"], I64(e.lanes))) as (wide, narrow):
        with wide:
            if vector_bits() == 512:
                _emit_rows(e, given, height, addressing, addend_kind, vectors=2, masked=True)
            else:
                # Without mask registers a mask takes a vector register, and the sums would be spilled.
                with b.if_else(b.icmp_signed("==", given["n"], I64(both))) as (whole, partial):
                    with whole:
                        _emit_rows(e, given, height, addressing, addend_kind, vectors=2, masked=False)
                    with partial:
                        _emit_rows(e, given, height, addressing, addend_kind, vectors=2, masked=True)
        with narrow:
            _emit_rows(e, given, height, addressing, addend_kind, vectors=1, masked=True)


def _emit_rows(
    e: Emitter, given: dict[str, Value], height: int, addressing: int, addend_kind: int, vectors: int, masked: bool
) -> None:
    """The rows of a panel of one or two vectors: the tallest tile as often as it fits, then the lower ones."""
    b = e.builder
    # A table of rows takes a pointer for each. With twelve, LLVM 20 runs out of general registers on x86, hoists the loads
    # to free them, spills vectors in consequence, and halves the speed of two vectors.
    tallest = min(height, 8) if addressing == A_ROWS and vectors == 2 else height
    start = I64(0)
    for rows in [tallest, *(h for h in (8, 4, 2, 1) if h < tallest)]:
        loop = Loop(b, f"rows{rows}", start)
        (start,) = loop.values
        after = b.add(start, I64(rows))
        wanted = b.icmp_signed("<=", after, given["m"])
        if rows == 6:  # 8 rows are 4 and 4 rather than 6 and 2, whose few sums would wait for each other
            wanted = b.and_(wanted, b.icmp_signed("!=", b.sub(given["m"], start), I64(8)))
        loop.test(wanted)
        tile = _Tile(e, given, rows, vectors, masked, start)
        tile.sum(addressing)
        if addend_kind != NO_ADDEND:
            tile.add(addend_kind)
        tile.resume()
        tile.store()
        loop.close(after)


class _Tile:
    """`rows` x `vectors` of C from row `first` on; `sums` holds its values row by row."""

    def __init__(
        self, e: Emitter, given: dict[str, Value], rows: int, vectors: int, masked: bool, first: Value
    ) -> None:
        self.e, self.given, self.rows, self.vectors, self.first = e, given, rows, vectors, first
        rest = [e.builder.sub(given["n"], I64(v * e.lanes)) for v in range(vectors)]
        self.masks = [e.lane_mask(count) if masked else None for count in rest]
        self.sums: list[list[Value]] = []

    def sum(self, addressing: int) -> None:
        """The loop over k."""
        e, b, given, rows, vectors = self.e, self.e.builder, self.given, self.rows, self.vectors
        step, twice = given["a_m"], b.mul(given["a_m"], I64(2))
        fixed: list[Value] = []  # pointers into A, one per row
        moving: list[Value] = []  # one per three rows: an address of x86 reaches p, p + step and p + 2 step
        if addressing == A_ROWS:
            entries = b.gep(given["table"], [self.first], source_etype=I64)
            fixed = [e.move(given["a"], e.word(entries, r)) for r in range(rows)]
        else:
            top = e.move(given["a"], b.mul(self.first, step))
            moving = [e.move(top, b.mul(step, I64(r))) for r in range(0, rows, 3)]
        line = [] if addressing == B_TABLE else [given["b"]]
        loop = Loop(b, "k", I64(0), *line, *moving, *[e.value(0.0)] * (rows * vectors))
        s, values = loop.values[0], loop.values[1:]
        line_now, values = values[: len(line)], values[len(line) :]
        moving_now, flat = values[: len(moving)], values[len(moving) :]
        self.sums = [flat[r * vectors : (r + 1) * vectors] for r in range(rows)]
        loop.test(b.icmp_signed("<", s, given["k"]))
        start = line_now[0] if line_now else e.move(given["b"], e.word(given["table"], s))
        columns = [e.load(e.move(start, v * e.lanes), mask) for v, mask in enumerate(self.masks)]
        sums = []
        for r in range(rows):
            if addressing == A_ROWS:
                place = e.move(fixed[r], s)
            else:
                place = e.move(moving_now[r // 3], *([], [step], [twice])[r % 3])
            value = e.scalar(place)
            sums += [e.intrinsic("fmuladd", value, column, sum) for column, sum in zip(columns, self.sums[r])]
        next_line = [e.move(p, given["b_k"]) for p in line_now]
        loop.close(b.add(s, I64(1)), *next_line, *[e.move(p, given["a_k"]) for p in moving_now], *sums)

    def add(self, kind: int) -> None:
        """Adds the addend, where there is one."""
        e, given = self.e, self.given

        def addends() -> Iterator[list[Value]]:
            place = e.move(given["addend"], e.builder.mul(self.first, given["addend_m"]))
            for _ in range(self.rows):
                yield [e.scalar(place)] * self.vectors if kind == PER_ROW else self._row(place)
                place = e.move(place, given["addend_m"])

        self._add_where(e.builder.icmp_signed(">=", given["addend_m"], I64(0)), addends)

    def resume(self) -> None:
        """Adds what the blocks before have left in C."""
        self._add_where(self.given["later"], lambda: map(self._row, self._places()))

    def _add_where(self, condition: Value, addends: Callable[[], Iterable[list[Value]]]) -> None:
        """Adds the rows that `addends` gives one by one, where the condition holds; it is called inside that branch, for its loads."""
        b, before, plain, added = self.e.builder, self.e.builder.block, self.sums, []
        with b.if_then(condition):
            for sums, terms in zip(plain, addends()):
                added.append([self.e.add(x, term) for x, term in zip(sums, terms)])
            inside = b.block
        self.sums = []
        for old, new in zip(plain, added):
            phis = [b.phi(self.e.float) for _ in old]
            for phi, x, y in zip(phis, old, new):
                phi.add_incoming(x, before)
                phi.add_incoming(y, inside)
            self.sums.append(phis)

    def _row(self, place: Value) -> list[Value]:
        """A row of vectors from `place` on, as far as there are columns."""
        return [self.e.load(self.e.move(place, v * self.e.lanes), mask) for v, mask in enumerate(self.masks)]

    def _places(self) -> Iterator[Value]:
        """Where the rows of C begin."""
        row = self.e.move(self.given["c"], self.e.builder.mul(self.first, self.given["c_m"]))
        for _ in range(self.rows):
            yield row
            row = self.e.move(row, self.given["c_m"])

    def store(self) -> None:
        """Writes the columns that there are."""
        for row, sums in zip(self._places(), self.sums):
            for v, (x, mask) in enumerate(zip(sums, self.masks)):
                self.e.store(x, self.e.move(row, v * self.e.lanes), mask)


@twin(gemm_panel)
def _gemm_panel(
    lanes, height, addressing, addend_kind,
    m, n, k, a, a_start, a_m, a_k, b, b_start, b_k, table, table_start, addend, addend_start, addend_m, c, c_start, c_m,
):  # fmt: skip
    a, b, table, addend, c = (array.reshape(-1) for array in (a, b, table, addend, c))
    rows, steps, columns = np.arange(m)[:, None], np.arange(k), np.arange(n)
    if addressing == A_ROWS:
        left = a[a_start + table[table_start : table_start + m, None] + steps]
    else:
        left = a[a_start + rows * a_m + steps * a_k]
    lines = table[table_start : table_start + k] if addressing == B_TABLE else steps * b_k
    right = b[b_start + lines[:, None] + columns]
    found, blocks = np.zeros((m, n), c.dtype), max(1, (k + TERMS // 2) // TERMS)
    if addend_kind != NO_ADDEND and addend_m >= 0:
        places = addend_start + rows * addend_m
        found += addend[places + columns if addend_kind == ROWS else places]
    for block in range(blocks):
        sums = np.zeros((m, n), c.dtype)
        for s in range(k * block // blocks, k * (block + 1) // blocks):
            sums += left[:, s, None] * right[s]
        found += sums
    c[c_start + rows * c_m + columns] = found
