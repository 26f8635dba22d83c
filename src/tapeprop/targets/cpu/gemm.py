"""The microkernel of every matrix product and convolution, and the ways to lay out its operands.

`gemm_panel` computes C (m, n) = A (m, k) B (k, n) for a panel of at most two vectors of columns. Its tiles keep `height` x 2
vectors of sums in registers; each step loads one row of B and broadcasts one column of A (Goto and van de Geijn, "Anatomy of
High-Performance Matrix Multiplication", 2008; the tile is BLIS's). Neither operand has to be packed: A is read at two strides
or through a table of rows, B at one stride or through a table, which is what makes a convolution's column matrix implicit.
Sums run over k in rising order from zero, whatever the tile. This module imports numba.
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
    "A_ROWS",
    "B_TABLE",
    "NO_ADDEND",
    "PER_ROW",
    "ROWS",
    "STRIDED",
    "gemm_panel",
    "stage_plane",
    "transpose_panel",
    "weave_row",
]

#: How `gemm_panel` finds an element of A and a row of B.
STRIDED, B_TABLE, A_ROWS = 0, 1, 2
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

    def window(self, low: Value, high: Value) -> Value:
        """Lanes of i1: low <= lane number < high."""
        return self.builder.and_(self.lane_mask(high), self.builder.not_(self.lane_mask(low)))

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
    ROWS: addend[addend_start + i * addend_m + j] is added to the finished sum of C[i, j]; PER_ROW:
    addend[addend_start + i * addend_m]; neither where addend_m is negative.
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
    given["table"] = b.gep(given["table"], [given["table_start"]], source_etype=_I64)
    with b.if_else(b.icmp_signed(">", given["n"], _I64(e.lanes))) as branches:
        for vectors, branch in zip((2, 1), branches):
            with branch:
                # A table of rows takes a pointer for each. With twelve, LLVM 20 runs out of general registers on x86,
                # hoists the loads to free them, spills vectors in consequence, and halves the speed of two vectors.
                tallest = min(height, 8) if addressing == A_ROWS and vectors == 2 else height
                start = _I64(0)
                for rows in [tallest, *(h for h in (8, 4, 2, 1) if h < tallest)]:
                    loop = _Loop(b, f"rows{rows}", start)
                    (start,) = loop.values
                    after = b.add(start, _I64(rows))
                    loop.test(b.icmp_signed("<=", after, given["m"]))
                    tile = _Tile(e, given, rows, vectors, start)
                    tile.sum(addressing)
                    if addend_kind != NO_ADDEND:
                        tile.add(addend_kind)
                    tile.store()
                    loop.close(after)


class _Tile:
    """`rows` x `vectors` of C from row `first` on; `sums` holds its values row by row."""

    def __init__(self, e: _Emitter, given: dict[str, Value], rows: int, vectors: int, first: Value) -> None:
        self.e, self.given, self.rows, self.vectors, self.first = e, given, rows, vectors, first
        b = e.builder
        self.masks = [e.lane_mask(b.sub(given["n"], _I64(v * e.lanes))) for v in range(vectors)]
        self.sums: list[list[Value]] = []

    def sum(self, addressing: int) -> None:
        """The loop over k."""
        e, b, given, rows, vectors = self.e, self.e.builder, self.given, self.rows, self.vectors
        step, twice = given["a_m"], b.mul(given["a_m"], _I64(2))
        fixed: list[Value] = []  # pointers into A, one per row
        moving: list[Value] = []  # one per three rows: an address of x86 reaches p, p + step and p + 2 step
        if addressing == A_ROWS:
            entries = b.gep(given["table"], [self.first], source_etype=_I64)
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
        sums = []
        for r in range(rows):
            if addressing == A_ROWS:
                place = e.move(fixed[r], s)
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
        """Writes the columns that there are."""
        e, given = self.e, self.given
        row = e.move(given["c"], e.builder.mul(self.first, given["c_m"]))
        for sums in self.sums:
            for v, (x, mask) in enumerate(zip(sums, self.masks)):
                e.store(x, e.move(row, v * e.lanes), mask)
            row = e.move(row, given["c_m"])


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
    sums = np.zeros((m, n), c.dtype)
    for s in range(k):
        sums += left[:, s, None] * right[s]
    if addend_kind != NO_ADDEND and addend_m >= 0:
        places = addend_start + rows * addend_m
        sums += addend[places + columns if addend_kind == ROWS else places]
    c[c_start + rows * c_m + columns] = sums


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
def stage_plane(
    typing_context, lanes, x, x_start, x_row, x_step, top, bottom, low, high, y, y_start, rows, count
):  # fmt: skip
    """y[y_start + u * count + j] = x[x_start + u * x_row + j * x_step] where top <= u < bottom and low <= j < high, else 0.

    For u < rows, j < count. lanes: a literal int, the elements in a vector. x_step 1 and 2 are fast.
    """
    literal = _literals([lanes])
    if literal is None:
        return None
    signature = types.void(lanes, x, *[types.intp] * 7, y, *[types.intp] * 3)

    def codegen(context, builder, _signature, args):
        values = [
            _pointer(context, builder, x, args[1]),
            *args[2:9],
            _pointer(context, builder, y, args[9]),
            *args[10:],
        ]
        bits = x.dtype.bitwidth
        emit = lambda inner, parameters: _emit_staging(_Emitter(inner, bits, literal[0]), *parameters)  # noqa: E731
        _call(builder, f"stage_plane_{bits}_{literal[0]}", values, emit)
        return context.get_dummy_value()

    return signature, codegen


def _emit_staging(e, x, x_start, x_row, x_step, top, bottom, low, high, y, y_start, rows, count) -> None:
    """Vectors of columns one after another, so that their masks are made once, and down the rows of each."""
    b, zero, one, full = e.builder, _I64(0), _I64(1), _I64(e.lanes)
    high = b.select(b.icmp_signed("<", high, count), high, count)
    columns = _Loop(b, "columns", zero, e.move(x, x_start), e.move(y, y_start))
    j, x_top, y_top = columns.values
    columns.test(b.icmp_signed("<", j, count))
    first, end = b.sub(low, j), b.sub(high, j)
    written = e.lane_mask(b.sub(count, j))
    wanted = e.window(first, end)
    # Every other element: those wanted of two vectors, of which the last reaches no further than its last wanted one.
    first_pair, end_pair = b.mul(first, _I64(2)), b.sub(b.mul(end, _I64(2)), one)
    pairs = [e.window(first_pair, end_pair), e.window(b.sub(first_pair, full), b.sub(end_pair, full))]
    even = ir.Constant(ir.VectorType(ir.IntType(32), e.lanes), list(range(0, 2 * e.lanes, 2)))
    adjacent, alternate = (b.icmp_signed("==", x_step, _I64(n)) for n in (1, 2))
    down = _Loop(b, "down", zero, x_top, y_top)
    u, source, target = down.values
    down.test(b.icmp_signed("<", u, rows))
    inside = b.and_(b.icmp_signed("<=", top, u), b.icmp_signed("<", u, bottom))
    found: list[tuple[Value, Value]] = [(e.value(0.0), b.block)]
    join = b.append_basic_block("join")
    some, near, far, second, gathered = (
        b.append_basic_block(name) for name in ("some", "near", "far", "second", "gather")
    )
    b.cbranch(inside, some, join)
    b.position_at_end(some)
    b.cbranch(adjacent, near, far)
    b.position_at_end(near)
    found.append((e.load(source, wanted), near))
    b.branch(join)
    b.position_at_end(far)
    b.cbranch(alternate, second, gathered)
    b.position_at_end(second)
    halves = [e.load(e.move(source, half * e.lanes), mask) for half, mask in enumerate(pairs)]
    found.append((b.shuffle_vector(*halves, even), second))
    b.branch(join)
    b.position_at_end(gathered)
    value = e.gather(source, x_step, wanted)
    found.append((value, b.block))
    b.branch(join)
    b.position_at_end(join)
    value = b.phi(e.float)
    for one_value, block in found:
        value.add_incoming(one_value, block)
    e.store(value, target, written)
    down.close(b.add(u, one), e.move(source, x_row), e.move(target, count))
    columns.close(b.add(j, full), e.move(x_top, b.mul(full, x_step)), e.move(y_top, full))


@twin(stage_plane)
def _stage_plane(lanes, x, x_start, x_row, x_step, top, bottom, low, high, y, y_start, rows, count):
    x, plane = x.reshape(-1), y.reshape(-1)[y_start : y_start + rows * count].reshape(rows, count)
    plane[...] = 0
    columns = np.arange(max(low, 0), min(high, count))
    for u in range(max(top, 0), min(bottom, rows)):
        plane[u, columns] = x[x_start + u * x_row + columns * x_step]


@intrinsic(prefer_literal=True)
def weave_row(typing_context, lanes, x, x_start, x_step, phases, low, high, y, y_start):
    """y[y_start + e] = x[x_start + e % phases * x_step + e // phases] for 0 <= low <= e < high: phases side by side.

    lanes: a literal int, the elements in a vector. One and two phases are fast.
    """
    literal = _literals([lanes])
    if literal is None:
        return None
    signature = types.void(lanes, x, *[types.intp] * 5, y, types.intp)

    def codegen(context, builder, _signature, args):
        values = [_pointer(context, builder, x, args[1]), *args[2:7], _pointer(context, builder, y, args[7]), args[8]]
        bits = x.dtype.bitwidth
        emit = lambda inner, parameters: _emit_weaving(_Emitter(inner, bits, literal[0]), *parameters)  # noqa: E731
        _call(builder, f"weave_row_{bits}_{literal[0]}", values, emit)
        return context.get_dummy_value()

    return signature, codegen


def _emit_weaving(e: _Emitter, x, x_start, x_step, phases, low, high, y, y_start) -> None:
    b, zero, full = e.builder, _I64(0), _I64(e.lanes)
    x, y = e.move(x, x_start), e.move(y, y_start)
    numbers = range(2 * e.lanes)
    zipped = [n // 2 + (e.lanes if n % 2 else 0) for n in numbers]
    with b.if_else(b.icmp_signed("==", phases, _I64(2))) as (two, other):
        with two:
            loop = _Loop(b, "zip", zero)
            (j,) = loop.values
            at = b.mul(j, _I64(2))
            loop.test(b.icmp_signed("<", at, high))
            mask = e.lane_mask(b.sub(b.sdiv(b.add(high, _I64(1)), _I64(2)), j))
            pair = [e.load(e.move(x, j), mask), e.load(e.move(x, x_step, j), mask)]
            for half in range(2):
                order = zipped[half * e.lanes : (half + 1) * e.lanes]
                value = b.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), e.lanes), order))
                start = b.add(at, _I64(half * e.lanes))
                e.store(value, e.move(y, start), e.window(b.sub(low, start), b.sub(high, start)))
            loop.close(b.add(j, full))
        with other:
            outer = _Loop(b, "phases", zero)
            (phase,) = outer.values
            outer.test(b.icmp_signed("<", phase, phases))
            last = b.sub(phases, _I64(1))
            first, end = (b.sdiv(b.add(b.sub(edge, phase), last), phases) for edge in (low, high))
            loop = _Loop(b, "spread", zero)
            (j,) = loop.values
            loop.test(b.icmp_signed("<", j, end))
            mask = e.window(b.sub(first, j), b.sub(end, j))
            value = e.load(e.move(x, b.mul(phase, x_step), j), mask)
            target = e.move(y, phase, b.mul(j, phases))
            with b.if_else(b.icmp_signed("==", phases, _I64(1))) as (single, several):
                with single:
                    e.store(value, target, mask)
                with several:
                    e.scatter(value, target, phases, mask)
            loop.close(b.add(j, full))
            outer.close(b.add(phase, _I64(1)))


@twin(weave_row)
def _weave_row(lanes, x, x_start, x_step, phases, low, high, y, y_start):
    places = np.arange(low, high)
    y.reshape(-1)[y_start + places] = x.reshape(-1)[x_start + places % phases * x_step + places // phases]
