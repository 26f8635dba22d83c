"""The microkernels of convolutions channel by channel: sums over the taps of a filter, and sums over pixels for each tap.

A matrix product has one row there, so its tile of sums would be one high and wait for itself. Here a tile is `TILE` vectors of one
result: of one row of pixels, or of several rows where these are short. The image lies staged, with its padding around it, so that what
a tap meets is a distance. The last vector of a row begins early enough to end with the row: pixels that two vectors share are
computed twice, to the same bits, and no store has a mask but that of a row shorter than a vector. This module imports numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from tapeprop.targets.cpu.emission import I64, Emitter, Loop, call_function, literals, pointer
from tapeprop.targets.cpu.plain import twin

__all__ = ["window_products", "window_sums"]

Value = Any  # an llvmlite.ir value

TILE = 8  # vectors of sums: two multiply-adds begin in each cycle and take four
TAPS = 9  # of `window_products`, whose sums are in registers at a time

_SUMS = "w w_start terms table table_start x x_start x_row bias bias_start y y_start y_row rows columns".split()
_PRODUCTS = "x x_start x_row terms table table_start dy dy_start dy_row rows columns sums sums_start".split()


@intrinsic(prefer_literal=True)
def window_sums(
    typing_context, lanes, w, w_start, terms, table, table_start, x, x_start, x_row, bias, bias_start, y, y_start, y_row, rows, columns
):  # fmt: skip
    """y[y_start + i y_row + j] = sum over s < terms of w[w_start + s] x[x_start + table[table_start + s] + i x_row + j], + bias.

    For i < rows, j < columns, both >= 1. lanes: a literal int, the elements in a vector. bias[bias_start] is added to the finished sum,
    unless bias_start is negative. x and w are not written; of x up to `lanes` elements behind a row may be read if it has fewer columns.
    """
    return _intrinsic(
        "window_sums", lanes, _SUMS, locals(), {"w": w, "table": table, "x": x, "bias": bias, "y": y}, _emit_sums
    )


@intrinsic(prefer_literal=True)
def window_products(
    typing_context, lanes, x, x_start, x_row, terms, table, table_start, dy, dy_start, dy_row, rows, columns, sums, sums_start
):  # fmt: skip
    """sums[sums_start + s lanes + j % lanes] += x[x_start + table[table_start + s] + i x_row + j] dy[dy_start + i dy_row + j].

    For i < rows, j < columns, s < terms. lanes: a literal int, the elements in a vector.
    """
    return _intrinsic(
        "window_products", lanes, _PRODUCTS, locals(), {"x": x, "table": table, "dy": dy, "sums": sums}, _emit_products
    )


def _intrinsic(
    name: str, lanes: Any, names: list[str], given: dict[str, Any], arrays: dict[str, Any], emit: Any
) -> Any:
    """(signature, codegen) of a function that `emit(Emitter, {name: value})` writes; None before lanes is a literal."""
    literal = literals([lanes])
    if literal is None:
        return None
    signature = types.void(lanes, *[arrays.get(each, types.intp) for each in names])

    def codegen(context, builder, _signature, args):
        values = [
            pointer(context, builder, arrays[each], value) if each in arrays else value
            for each, value in zip(names, args[1:])
        ]
        bits = arrays["x"].dtype.bitwidth

        def fill(inner, parameters):
            emit(Emitter(inner, bits, literal[0]), dict(zip(names, parameters)))

        call_function(builder, f"{name}_{bits}_{literal[0]}", values, fill)
        return context.get_dummy_value()

    return signature, codegen


# ---- sums over taps


def _emit_sums(e: Emitter, given: dict[str, Value]) -> None:
    """Stretches of columns: as many vectors as a tile has, and in the last what is left, with as many rows as that leaves room for."""
    b, width = e.builder, TILE * e.lanes
    _begin(e, given, ("w", "x", "y"))
    b_start = given["bias_start"]
    with b.if_else(b.icmp_signed("<", b_start, I64(0))) as (without, with_):
        with without:
            nothing, no_block = e.value(0.0), b.block
        with with_:
            bias, bias_block = e.scalar(e.move(given["bias"], b_start)), b.block
    added = b.phi(e.float)
    added.add_incoming(nothing, no_block)
    added.add_incoming(bias, bias_block)
    given["added"], given["biased"] = added, b.icmp_signed(">=", b_start, I64(0))
    stretch = Loop(b, "stretch", I64(0))
    (first,) = stretch.values
    stretch.test(b.icmp_signed("<", first, given["columns"]))
    rest = b.sub(given["columns"], first)
    vectors = b.sdiv(b.add(rest, I64(e.lanes - 1)), I64(e.lanes))
    done = b.append_basic_block("done")
    whole = b.append_basic_block("whole")
    choice = b.switch(vectors, whole)
    for count in range(1, TILE):
        block = b.append_basic_block(f"vectors{count}")
        choice.add_case(I64(count), block)
        b.position_at_end(block)
        if count == 1:
            with b.if_else(b.icmp_signed("<", given["columns"], I64(e.lanes))) as (short, long):
                with short:
                    _emit_rows(e, given, 1, first, I64(0), e.lane_mask(rest))
                with long:
                    _emit_rows(e, given, 1, first, b.sub(rest, I64(e.lanes)), None)
        else:
            _emit_rows(e, given, count, first, b.sub(rest, I64(e.lanes)), None)
        b.branch(done)
    b.position_at_end(whole)
    most = b.select(b.icmp_signed("<", rest, I64(width)), rest, I64(width))
    _emit_rows(e, given, TILE, first, b.sub(most, I64(e.lanes)), None)
    b.branch(done)
    b.position_at_end(done)
    stretch.close(b.add(first, I64(width)))


def _begin(e: Emitter, given: dict[str, Value], names: tuple[str, ...]) -> None:
    for name in names:
        given[name] = e.move(given[name], given[f"{name}_start"])
    given["table"] = e.builder.gep(given["table"], [given["table_start"]], source_etype=I64)


def _emit_rows(e: Emitter, given: dict[str, Value], vectors: int, first: Value, last: Value, mask: Value) -> None:
    """All rows of a stretch of `vectors` vectors, the last of which begins at first + last: tiles of several rows, then single ones."""
    b, start = e.builder, I64(0)
    for height in sorted({TILE // vectors, 1}, reverse=True):
        loop = Loop(b, f"rows{height}", start)
        (start,) = loop.values
        after = b.add(start, I64(height))
        loop.test(b.icmp_signed("<=", after, given["rows"]))
        _emit_tile(e, given, height, vectors, start, first, last, mask)
        loop.close(after)


def _emit_tile(
    e: Emitter, given: dict[str, Value], height: int, vectors: int, row: Value, first: Value, last: Value, mask: Value
) -> None:
    b = e.builder
    offsets = [I64(v * e.lanes) for v in range(vectors - 1)] + [last]
    source = e.move(given["x"], b.mul(row, given["x_row"]), first)
    loop = Loop(b, "taps", I64(0), *[e.value(0.0)] * (height * vectors))
    s, sums = loop.values[0], loop.values[1:]
    loop.test(b.icmp_signed("<", s, given["terms"]))
    weight = e.scalar(e.move(given["w"], s))
    line = e.move(source, e.word(given["table"], s))
    following = []
    for r in range(height):
        for v in range(vectors):
            following.append(e.intrinsic("fmuladd", weight, e.load(e.move(line, offsets[v])), sums[r * vectors + v]))
        line = e.move(line, given["x_row"])
    loop.close(b.add(s, I64(1)), *following)
    target = e.move(given["y"], b.mul(row, given["y_row"]), first)
    for r in range(height):
        for v in range(vectors):
            value = sums[r * vectors + v]
            # -0 plus 0 would be 0: a sum to which nothing is added stays as it is.
            value = b.select(given["biased"], e.add(value, given["added"]), value)
            e.store(value, e.move(target, offsets[v]), mask)
        target = e.move(target, given["y_row"])


@twin(window_sums)
def _window_sums(
    lanes, w, w_start, terms, table, table_start, x, x_start, x_row, bias, bias_start, y, y_start, y_row, rows, columns
):  # fmt: skip
    w, table, x, bias, y = (array.reshape(-1) for array in (w, table, x, bias, y))
    i, j = np.arange(rows)[:, None], np.arange(columns)
    sums = np.zeros((rows, columns), y.dtype)
    for s in range(terms):
        sums += w[w_start + s] * x[x_start + table[table_start + s] + i * x_row + j]
    y[y_start + i * y_row + j] = sums + bias[bias_start] if bias_start >= 0 else sums


# ---- sums over pixels


def _emit_products(e: Emitter, given: dict[str, Value]) -> None:
    """Blocks of `TAPS` taps, and one of those that are left."""
    b = e.builder
    _begin(e, given, ("x", "dy", "sums"))
    loop = Loop(b, "blocks", I64(0))
    (first,) = loop.values
    loop.test(b.icmp_signed("<", first, given["terms"]))
    rest = b.sub(given["terms"], first)
    done, whole = b.append_basic_block("done"), b.append_basic_block("whole")
    choice = b.switch(rest, whole)
    for count in range(1, TAPS):
        block = b.append_basic_block(f"taps{count}")
        choice.add_case(I64(count), block)
        b.position_at_end(block)
        _emit_block(e, given, count, first)
        b.branch(done)
    b.position_at_end(whole)
    _emit_block(e, given, TAPS, first)
    b.branch(done)
    b.position_at_end(done)
    loop.close(b.add(first, I64(TAPS)))


def _emit_block(e: Emitter, given: dict[str, Value], count: int, first: Value) -> None:
    """The sums of `count` taps over all pixels: whole vectors of a row, then what is left of it."""
    b, full = e.builder, I64(e.lanes)
    distances = [e.word(given["table"], b.add(first, I64(t))) for t in range(count)]
    places = [e.move(given["sums"], b.mul(b.add(first, I64(t)), full)) for t in range(count)]
    rows = Loop(b, "rows", I64(0), given["x"], given["dy"], *[e.load(place) for place in places])
    row, x, dy = rows.values[:3]
    sums = rows.values[3:]
    rows.test(b.icmp_signed("<", row, given["rows"]))
    pixels = Loop(b, "pixels", I64(0), *sums)
    column, inner = pixels.values[0], pixels.values[1:]
    after = b.add(column, full)
    pixels.test(b.icmp_signed("<=", after, given["columns"]))
    pixels.close(after, *_added(e, x, dy, column, distances, inner, None))
    before = b.block
    with b.if_then(b.icmp_signed("<", column, given["columns"])):
        tail = _added(e, x, dy, column, distances, inner, e.lane_mask(b.sub(given["columns"], column)))
        tail_block = b.block
    following = []
    for old, new in zip(inner, tail):
        phi = b.phi(e.float)
        phi.add_incoming(old, before)
        phi.add_incoming(new, tail_block)
        following.append(phi)
    rows.close(b.add(row, I64(1)), e.move(x, given["x_row"]), e.move(dy, given["dy_row"]), *following)
    for value, place in zip(sums, places):
        e.store(value, place)


def _added(
    e: Emitter, x: Value, dy: Value, column: Value, distances: list[Value], sums: Any, mask: Value
) -> list[Value]:
    """The sums with a vector of pixels more. Lanes that the mask leaves out are zero in both factors: x may be infinite there."""
    gradient, line = e.load(e.move(dy, column), mask), e.move(x, column)
    return [
        e.intrinsic("fmuladd", e.load(e.move(line, distance), mask), gradient, total)
        for distance, total in zip(distances, sums)
    ]


@twin(window_products)
def _window_products(
    lanes, x, x_start, x_row, terms, table, table_start, dy, dy_start, dy_row, rows, columns, sums, sums_start
):  # fmt: skip
    x, table, dy, sums = (array.reshape(-1) for array in (x, table, dy, sums))
    i = np.arange(rows)[:, None]
    for s in range(terms):
        place = sums_start + s * lanes
        for first in range(0, columns, lanes):
            j = np.arange(first, min(first + lanes, columns))
            products = x[x_start + table[table_start + s] + i * x_row + j] * dy[dy_start + i * dy_row + j]
            sums[place : place + len(j)] += products.sum(0)
