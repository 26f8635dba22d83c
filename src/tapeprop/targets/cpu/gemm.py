"""The microkernel of every matrix product and convolution, and the two ways to lay out its operands.

`gemm_panel` computes C (m, n) = A (m, k) B (k, n) for a panel of at most two vectors of columns. Its tiles keep `height` x 2
vectors of accumulators in registers, load one row of B and broadcast one column of A per step (Goto and van de Geijn,
"Anatomy of High-Performance Matrix Multiplication", 2008; the tile is BLIS's). Neither operand needs to be packed: A is read
at two strides or through tables of offsets, B at one stride or through a table, which is what makes a convolution's column
matrix implicit. Sums run over k in rising order from zero, whatever the tile. This module imports numba.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.extending import intrinsic

from tapeprop.targets.cpu.plain import twin
from tapeprop.targets.cpu.vector_arithmetic import VectorArithmetic

__all__ = [
    "A_TABLE",
    "B_TABLE",
    "NO_ADDEND",
    "PER_ROW",
    "ROWS",
    "STRIDED",
    "gemm_panel",
    "stage_row",
    "transpose_panel",
]

#: How `gemm_panel` finds an element of A and a row of B.
STRIDED, B_TABLE, A_TABLE = 0, 1, 2
#: What it adds to the sums: nothing, rows of vectors, or one number per row.
NO_ADDEND, ROWS, PER_ROW = 0, 1, 2

Value = Any  # an llvmlite.ir value
_I64 = ir.IntType(64)
_POINTER = ir.PointerType()


class _Emitter(VectorArithmetic):
    """Vector arithmetic with pointers that move by elements."""

    def move(self, place: Value, *offsets: Value | int) -> Value:
        """`place` plus offsets in elements."""
        for offset in offsets:
            index = _I64(offset) if isinstance(offset, int) else offset
            place = self.builder.gep(place, [index], source_etype=self.float_scalar)
        return place

    def scalar(self, place: Value) -> Value:
        """The element at `place` in every lane."""
        return self.broadcast(self.builder.load(place, typ=self.float_scalar, align=self.bits // 8))

    def word(self, table: Value, index: Value | int) -> Value:
        """table[index] of an int64 table."""
        index = _I64(index) if isinstance(index, int) else index
        return self.builder.load(self.builder.gep(table, [index], source_etype=_I64), typ=_I64)


class _Loop:
    """A loop whose values live in phis: `values` holds them, `test` opens the body, `close` gives their next values.

    After `close` the builder stands behind the loop, where `values` are those of the last test.
    """

    def __init__(self, builder: ir.IRBuilder, name: str, *initial: Value) -> None:
        self.builder, self.name = builder, name
        before = builder.block
        self.head = builder.append_basic_block(name)
        builder.branch(self.head)
        builder.position_at_end(self.head)
        self.values = [builder.phi(value.type) for value in initial]
        for phi, value in zip(self.values, initial):
            phi.add_incoming(value, before)

    def test(self, condition: Value) -> None:
        body, self.end = (self.builder.append_basic_block(f"{self.name}.{part}") for part in ("body", "end"))
        self.builder.cbranch(condition, body, self.end)
        self.builder.position_at_end(body)

    def close(self, *following: Value) -> None:
        for phi, value in zip(self.values, following, strict=True):
            phi.add_incoming(value, self.builder.block)
        self.builder.branch(self.head)
        self.builder.position_at_end(self.end)


def _literals(kinds: Sequence[Any]) -> list[int] | None:
    """The values of integer literal types, or None where one is none; a body passes ints from its closure."""
    if not all(isinstance(kind, types.IntegerLiteral) for kind in kinds):
        return None
    return [kind.literal_value for kind in kinds]


def _pointer(context: Any, builder: ir.IRBuilder, kind: Any, array: Value) -> Value:
    """The address of an array's first element as an opaque pointer (llvmlite's bitcast would leave Numba's typed one)."""
    return builder.inttoptr(builder.ptrtoint(context.make_array(kind)(context, builder, array).data, _I64), _POINTER)


def _call(builder: ir.IRBuilder, name: str, values: Sequence[Value], emit: Callable[[ir.IRBuilder, Any], None]) -> None:
    """Calls function `name` of the module, which `emit(builder, parameters)` fills at the first call.

    A function of its own, never inlined: LLVM would copy the tiles for every condition around them that a loop does not
    change, and compile for thrice as long (numba 0.68.1).
    """
    module = builder.module
    function = module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        function = ir.Function(module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        function.attributes.add("optsize")
        inner = ir.IRBuilder(function.append_basic_block("entry"))
        emit(inner, function.args)
        inner.ret_void()
    builder.call(function, values)


# ---- the product


_PRODUCT = (
    "m n k a a_start a_m a_k b b_start b_k table table_start rows_start addend addend_start addend_m "
    "c c_start c_m run_first run_length run_pitch run_step"
).split()


@intrinsic(prefer_literal=True)
def gemm_panel(
    typing_context, lanes, height, addressing, addend_kind,
    m, n, k, a, a_start, a_m, a_k, b, b_start, b_k, table, table_start, rows_start,
    addend, addend_start, addend_m, c, c_start, c_m, run_first, run_length, run_pitch, run_step,
):  # fmt: skip
    """C (m, n) = A (m, k) B (k, n) + addend, for 1 <= n <= 2 * lanes columns and any m, k >= 0.

    The first four arguments are literal ints: elements in a vector, rows of the tallest tile, and how A, B and the addend are
    read. Arrays are C-contiguous, of one floating dtype (table: int64); starts, strides and table entries count elements.

    STRIDED: A[i, s] = a[a_start + i * a_m + s * a_k], row s of B begins at b[b_start + s * b_k].
    B_TABLE: row s of B begins at b[b_start + table[table_start + s]] instead.
    A_TABLE: A[i, s] = a[a_start + table[rows_start + i] + table[table_start + s]] instead.
    ROWS: addend[addend_start + i * addend_m + j] is added to the finished sum of C[i, j]; PER_ROW:
    addend[addend_start + i * addend_m]; neither where addend_m is negative.

    Columns are stored in runs: run r covers columns first + r * pitch up to, not including, that + length, and puts
    them at c[c_start + i * c_m + r * run_step], from the run's first column on, be it column 0 or not. Columns between runs
    are dropped. A whole panel is one run: first 0, length and pitch n.
    """
    literal = _literals([lanes, height, addressing, addend_kind])
    if literal is None:
        return None
    kinds = {"a": a, "b": b, "table": table, "addend": addend, "c": c}
    signature = types.void(lanes, height, addressing, addend_kind, *[kinds.get(name, types.intp) for name in _PRODUCT])

    def codegen(context, builder, _signature, args):
        values = [
            _pointer(context, builder, kinds[name], value) if name in kinds else value
            for name, value in zip(_PRODUCT, args[4:])
        ]

        def emit(inner, parameters):
            e = _Emitter(inner, a.dtype.bitwidth, literal[0])
            _emit_product(e, dict(zip(_PRODUCT, parameters)), *literal[1:])

        _call(builder, f"gemm_panel_{a.dtype.bitwidth}_{'_'.join(map(str, literal))}", values, emit)
        return context.get_dummy_value()

    return signature, codegen


def _emit_product(e: _Emitter, given: dict[str, Value], height: int, addressing: int, addend_kind: int) -> None:
    """All the rows: tiles of `height`, then of the powers of two below it, each as often as it fits."""
    b = e.builder
    for name in ("a", "b", "addend", "c"):
        given[name] = e.move(given[name], given[f"{name}_start"])
    rows_of = b.gep(given["table"], [given["rows_start"]], source_etype=_I64)
    given["table"] = b.gep(given["table"], [given["table_start"]], source_etype=_I64)
    with b.if_else(b.icmp_signed(">", given["n"], _I64(e.lanes))) as branches:
        for vectors, branch in zip((2, 1), branches):
            with branch:
                # Tables take a pointer per row. With twelve, LLVM 20 runs out of general registers on x86, hoists the
                # loads to free them, spills vectors in consequence, and halves the speed of two vectors.
                tallest = min(height, 8) if addressing == A_TABLE and vectors == 2 else height
                start = _I64(0)
                for rows in [tallest, *(h for h in (8, 4, 2, 1) if h < tallest)]:
                    loop = _Loop(b, f"rows{rows}", start)
                    (start,) = loop.values
                    after = b.add(start, _I64(rows))
                    loop.test(b.icmp_signed("<=", after, given["m"]))
                    tile = _Tile(e, given, rows, vectors, start, rows_of)
                    tile.sum(addressing)
                    if addend_kind != NO_ADDEND:
                        tile.add(addend_kind)
                    tile.store()
                    loop.close(after)


class _Tile:
    """`rows` x `vectors` of C from row `first` on; `sums` holds its values row by row."""

    def __init__(
        self, e: _Emitter, given: dict[str, Value], rows: int, vectors: int, first: Value, rows_of: Value
    ) -> None:
        self.e, self.given, self.rows, self.vectors, self.first, self.rows_of = e, given, rows, vectors, first, rows_of
        b = e.builder
        self.masks = [e.lane_mask(b.sub(given["n"], _I64(v * e.lanes))) for v in range(vectors)]
        self.sums: list[list[Value]] = []

    def sum(self, addressing: int) -> None:
        """The loop over k."""
        e, b, given, rows, vectors = self.e, self.e.builder, self.given, self.rows, self.vectors
        step, twice = given["a_m"], b.mul(given["a_m"], _I64(2))
        fixed: list[Value] = []  # of A, one pointer per row
        moving: list[Value] = []  # of A, one per three rows: x86 addresses reach p, p + step and p + 2 step
        if addressing == A_TABLE:
            entries = b.gep(self.rows_of, [self.first], source_etype=_I64)
            fixed = [e.move(given["a"], e.word(entries, r)) for r in range(rows)]
        else:
            top = e.move(given["a"], b.mul(self.first, step))
            moving = [e.move(top, b.mul(step, _I64(r))) for r in range(0, rows, 3)]
        line = [] if addressing == B_TABLE else [given["b"]]
        loop = _Loop(b, "k", _I64(0), *line, *moving, *[e.value(0.0)] * (rows * vectors))
        s, values = loop.values[0], loop.values[1:]
        line_now, values = values[: len(line)], values[len(line) :]
        moving_now, flat = values[: len(moving)], values[len(moving) :]
        self.sums = [flat[r * vectors : (r + 1) * vectors] for r in range(rows)]
        loop.test(b.icmp_signed("<", s, given["k"]))
        start = line_now[0] if line_now else e.move(given["b"], e.word(given["table"], s))
        columns = [e.load(e.move(start, v * e.lanes), mask) for v, mask in enumerate(self.masks)]
        shift = e.word(given["table"], s) if addressing == A_TABLE else None
        sums = []
        for r in range(rows):
            if addressing == A_TABLE:
                place = e.move(fixed[r], shift)
            else:
                place = e.move(moving_now[r // 3], *([], [step], [twice])[r % 3])
            value = e.scalar(place)
            sums += [e.intrinsic("fmuladd", value, column, sum) for column, sum in zip(columns, self.sums[r])]
        next_line = [e.move(p, given["b_k"]) for p in line_now]
        loop.close(b.add(s, _I64(1)), *next_line, *[e.move(p, given["a_k"]) for p in moving_now], *sums)

    def add(self, kind: int) -> None:
        """Adds the addend, where there is one."""
        e, b, given = self.e, self.e.builder, self.given
        before, plain = b.block, self.sums
        with b.if_then(b.icmp_signed(">=", given["addend_m"], _I64(0))):
            place, added = e.move(given["addend"], b.mul(self.first, given["addend_m"])), []
            for sums in plain:
                if kind == PER_ROW:
                    added.append([e.add(x, e.scalar(place)) for x in sums])
                else:
                    terms = [e.load(e.move(place, v * e.lanes), mask) for v, mask in enumerate(self.masks)]
                    added.append([e.add(x, term) for x, term in zip(sums, terms)])
                place = e.move(place, given["addend_m"])
            inside = b.block
        self.sums = []
        for old, new in zip(plain, added):
            phis = [b.phi(e.float) for _ in old]
            for phi, x, y in zip(phis, old, new):
                phi.add_incoming(x, before)
                phi.add_incoming(y, inside)
            self.sums.append(phis)

    def store(self) -> None:
        """Writes the runs."""
        e, b, given = self.e, self.e.builder, self.given
        place = e.move(given["c"], b.mul(self.first, given["c_m"]))
        loop = _Loop(b, "runs", given["run_first"], place)
        low, place = loop.values
        loop.test(b.icmp_signed("<", low, given["n"]))
        high = b.add(low, given["run_length"])
        high = b.select(b.icmp_signed("<", high, given["n"]), high, given["n"])
        window = []
        for v in range(self.vectors):
            below, skipped = (e.lane_mask(b.sub(end, _I64(v * e.lanes))) for end in (high, low))
            window.append(b.and_(below, b.not_(skipped)))
        row = e.move(place, b.neg(low))  # where column 0 would lie
        for sums in self.sums:
            for v, (x, mask) in enumerate(zip(sums, window)):
                e.store(x, e.move(row, v * e.lanes), mask)
            row = e.move(row, given["c_m"])
        loop.close(b.add(low, given["run_pitch"]), e.move(place, given["run_step"]))


@twin(gemm_panel)
def _gemm_panel(
    lanes, height, addressing, addend_kind,
    m, n, k, a, a_start, a_m, a_k, b, b_start, b_k, table, table_start, rows_start,
    addend, addend_start, addend_m, c, c_start, c_m, run_first, run_length, run_pitch, run_step,
):  # fmt: skip
    a, b, table, addend, c = (array.reshape(-1) for array in (a, b, table, addend, c))
    rows, steps, columns = np.arange(m), np.arange(k), np.arange(n)
    offsets = table[table_start : table_start + k] if addressing != STRIDED else steps
    if addressing == A_TABLE:
        left = a[a_start + table[rows_start : rows_start + m, None] + offsets]
    else:
        left = a[a_start + rows[:, None] * a_m + steps * a_k]
    lines = b_start + (offsets if addressing == B_TABLE else steps * b_k)
    right = b[lines[:, None] + columns]
    sums = np.zeros((m, n), c.dtype)
    for s in range(k):
        sums += left[:, s, None] * right[s]
    if addend_kind != NO_ADDEND and addend_m >= 0:
        places = addend_start + rows[:, None] * addend_m
        sums += addend[places + columns if addend_kind == ROWS else places]
    for r, low in enumerate(range(run_first, n, run_pitch)):
        for column in range(max(low, 0), min(low + run_length, n)):
            c[c_start + rows * c_m + r * run_step + column - low] = sums[:, column]


# ---- laying out operands


@intrinsic(prefer_literal=True)
def transpose_panel(typing_context, lanes, x, x_start, x_step, rows, count, y, y_start, y_step):
    """y[y_start + s * y_step + i] = x[x_start + i * x_step + s] for i < rows <= lanes, s < count; rows >= 1.

    lanes: a literal int, the elements in a vector. Rows of y are written as whole vectors: what lies beyond `rows` up to
    `lanes` is overwritten. Blocks of lanes x lanes are transposed in registers.
    """
    literal = _literals([lanes])
    if literal is None:
        return None
    signature = types.void(lanes, x, *[types.intp] * 4, y, types.intp, types.intp)

    def codegen(context, builder, _signature, args):
        values = [_pointer(context, builder, x, args[1]), *args[2:6], _pointer(context, builder, y, args[6]), *args[7:]]
        bits = x.dtype.bitwidth
        emit = lambda inner, parameters: _emit_transposition(_Emitter(inner, bits, literal[0]), *parameters)  # noqa: E731
        _call(builder, f"transpose_panel_{bits}_{literal[0]}", values, emit)
        return context.get_dummy_value()

    return signature, codegen


def _emit_transposition(e: _Emitter, x, x_start, x_step, rows, count, y, y_start, y_step) -> None:
    """Blocks of lanes x lanes one after another; the last row stands in for those that are missing."""
    b, lines = e.builder, []
    for i in range(e.lanes):
        row = b.select(b.icmp_signed("<", _I64(i), rows), _I64(i), b.sub(rows, _I64(1)))
        lines.append(b.mul(row, x_step))
    loop = _Loop(b, "transpose", _I64(0), e.move(x, x_start), e.move(y, y_start))
    done, source, target = loop.values
    loop.test(b.icmp_signed("<", done, count))
    rest = b.sub(count, done)
    mask = e.lane_mask(rest)
    for s, row in enumerate(_transposed(e, [e.load(e.move(source, line), mask) for line in lines])):
        wanted = e.broadcast(b.icmp_signed("<", _I64(s), rest))
        e.store(row, e.move(target, b.mul(y_step, _I64(s))), wanted)
    loop.close(b.add(done, _I64(e.lanes)), e.move(source, e.lanes), e.move(target, b.mul(y_step, _I64(e.lanes))))


def _transposed(e: _Emitter, block: list[Value]) -> list[Value]:
    """The transpose of a square block of vectors: halves, quarters, ... trade places across the diagonal."""
    block, distance = list(block), e.lanes // 2
    while distance:
        low = [i if not i & distance else e.lanes + i - distance for i in range(e.lanes)]
        high = [i + distance if not i & distance else e.lanes + i for i in range(e.lanes)]
        for i in range(e.lanes):
            if not i & distance:
                pair = block[i], block[i + distance]
                block[i], block[i + distance] = (
                    e.builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), e.lanes), order))
                    for order in (low, high)
                )
        distance //= 2
    return block


@twin(transpose_panel)
def _transpose_panel(lanes, x, x_start, x_step, rows, count, y, y_start, y_step):
    x, y = x.reshape(-1), y.reshape(-1)
    for s in range(count):
        line = y_start + s * y_step
        y[line : line + lanes] = x[x_start + np.minimum(np.arange(lanes), rows - 1) * x_step + s]


@intrinsic(prefer_literal=True)
def stage_row(typing_context, lanes, x, x_start, x_step, low, high, y, y_start, count):
    """y[y_start + j] = x[x_start + j * x_step] where low <= j < high, else 0, for j < count.

    lanes: a literal int, the elements in a vector. Written in whole vectors: up to lanes - 1 elements beyond `count` are
    overwritten with zeros, so rows have to be staged in rising order.
    """
    literal = _literals([lanes])
    if literal is None:
        return None
    signature = types.void(lanes, x, *[types.intp] * 4, y, types.intp, types.intp)

    def codegen(context, builder, _signature, args):
        _, x_, x_start_, x_step_, low_, high_, y_, y_start_, count_ = args
        e = _Emitter(builder, x.dtype.bitwidth, literal[0])
        source = e.move(_pointer(context, builder, x, x_), x_start_)
        target = e.move(_pointer(context, builder, y, y_), y_start_)
        high_ = builder.select(builder.icmp_signed("<", high_, count_), high_, count_)
        with builder.if_else(builder.icmp_signed("==", x_step_, _I64(1))) as branches:
            for branch, adjacent in zip(branches, (True, False)):
                with branch:
                    loop = _Loop(builder, "stage", _I64(0))
                    (j,) = loop.values
                    loop.test(builder.icmp_signed("<", j, count_))
                    below, skipped = (e.lane_mask(builder.sub(end, j)) for end in (high_, low_))
                    mask = builder.and_(below, builder.not_(skipped))
                    if adjacent:
                        value = e.load(e.move(source, j), mask)
                    else:
                        value = e.gather(e.move(source, builder.mul(j, x_step_)), x_step_, mask)
                    e.store(value, e.move(target, j))
                    loop.close(builder.add(j, _I64(e.lanes)))
        return context.get_dummy_value()

    return signature, codegen


@twin(stage_row)
def _stage_row(lanes, x, x_start, x_step, low, high, y, y_start, count):
    x, y = x.reshape(-1), y.reshape(-1)
    y[y_start : y_start + -(-count // lanes) * lanes] = 0
    for j in range(max(low, 0), min(high, count)):
        y[y_start + j] = x[x_start + j * x_step]


@intrinsic(prefer_literal=True)
def spread_row(typing_context, lanes, x, x_start, count, y, y_start, y_step):
    """y[y_start + j * y_step] = x[x_start + j] for j < count. lanes: a literal int, the elements in a vector."""
    literal = _literals([lanes])
    if literal is None:
        return None
    signature = types.void(lanes, x, types.intp, types.intp, y, types.intp, types.intp)

    def codegen(context, builder, _signature, args):
        _, x_, x_start_, count_, y_, y_start_, y_step_ = args
        e = _Emitter(builder, x.dtype.bitwidth, literal[0])
        source = e.move(_pointer(context, builder, x, x_), x_start_)
        target = e.move(_pointer(context, builder, y, y_), y_start_)
        loop = _Loop(builder, "spread", _I64(0))
        (j,) = loop.values
        loop.test(builder.icmp_signed("<", j, count_))
        mask = e.lane_mask(builder.sub(count_, j))
        e.scatter(e.load(e.move(source, j), mask), e.move(target, builder.mul(j, y_step_)), y_step_, mask)
        loop.close(builder.add(j, _I64(e.lanes)))
        return context.get_dummy_value()

    return signature, codegen


@twin(spread_row)
def _spread_row(lanes, x, x_start, count, y, y_start, y_step):
    y.reshape(-1)[y_start + np.arange(count) * y_step] = x.reshape(-1)[x_start : x_start + count]
