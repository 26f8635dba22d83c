"""The steps of a Winograd convolution F(2 x 2, 3 x 3) on pixels whose vector lanes are images, for Numba bodies.

Four neighbouring results of a 3 x 3 filter come from a tile of 4 x 4 pixels by 16 products instead of 36 (Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks", 2016, section 4.1): y = A^T [(G g G^T) * (B^T d B)] A, with

    B^T = 1  0 -1  0     G = 1    0    0     A^T = 1  1  1  0
          0  1  1  0         1/2  1/2  1/2         0  1 -1 -1
          0 -1  1  0         1/2 -1/2  1/2
          0  1  0 -1         0    0    1

As whole images lie in the lanes, a transform is additions of vectors, with no shuffle. `tiles_to_points` makes B^T d B, `point_products`
sums its products with the filters over the channels, one of the 16 points at a time, and `points_to_tiles` makes y. Points are `slot`
pixels apart; within a point tile follows tile, in each channel follows channel. This module imports numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapeprop.targets.cpu.emission import I64, call_function, literals, pointer
from tapeprop.targets.cpu.lanes import LaneEmitter, pixels_of
from tapeprop.targets.cpu.machine import vector_registers
from tapeprop.targets.cpu.plain import twin

__all__ = ["INPUT", "OUTPUT", "point_products", "points_to_tiles", "tiles_to_points"]

Value = Any  # an llvmlite.ir value

INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])  # B^T
OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])  # A^T


def _function(name: str, kinds: tuple[Any, ...], arrays: dict[str, Any], names: str, emit: Any) -> Any:
    """(signature, codegen) of emit(e, given), for literal arguments lanes, width, ... and then `names`."""
    literal = literals(kinds)
    if literal is None:
        return None
    fields = names.split()
    bits = next(iter(arrays.values())).dtype.bitwidth

    def codegen(context, builder, _signature, args):
        values = [
            pointer(context, builder, arrays[field], value) if field in arrays else value
            for field, value in zip(fields, args[len(kinds) :])
        ]

        def fill(inner, parameters):
            emit(LaneEmitter(inner, bits, literal[0], literal[1]), dict(zip(fields, parameters)), *literal[2:])

        call_function(builder, f"{name}_{bits}_{'_'.join(map(str, literal))}", values, fill)
        return context.get_dummy_value()

    return types.void(*kinds, *[arrays.get(field, types.intp) for field in fields]), codegen


def _combined(e: LaneEmitter, factors: np.ndarray, values: list[Value]) -> Value:
    """The sum of values times factors of 1, 0 and -1, in rising order; the first that counts may be negative."""
    terms = [(factor, value) for factor, value in zip(factors, values) if factor]
    terms.sort(key=lambda term: -term[0])  # so that none begins with a negation
    total = terms[0][1]
    for factor, value in terms[1:]:
        total = e.add(total, value) if factor > 0 else e.sub(total, value)
    return total


# ---- tiles of pixels to points


_SPREAD = "x x_start x_channel rows columns row column channels tiles zero v v_start slot"


@intrinsic(prefer_literal=True)
def tiles_to_points(
    typing_context, lanes, width, x, x_start, x_channel, rows, columns, row, column, channels, tiles, zero, v, v_start, slot
):  # fmt: skip
    """v[point, t, c] = B^T d B, d the 4 x 4 pixels of channel c from (row, column + 2 t) on; what lies outside the image is 0.

    x: an image of rows x columns pixels from x_start on, channels x_channel pixels apart. zero: the place in v of a pixel of zeros.
    v: the pixel at v_start + point slot + t channels + c. Starts and distances count pixels.
    """
    return _function("tiles_to_points", (lanes, width), {"x": x, "v": v}, _SPREAD, _emit_spreading)


def _emit_spreading(e: LaneEmitter, given: dict[str, Value]) -> None:
    b = e.builder
    x, v = e.step(given["x"], given["x_start"]), e.step(given["v"], given["v_start"])
    zero = e.step(given["v"], given["zero"])
    lines = [b.add(given["row"], I64(r)) for r in range(4)]
    seen = [b.icmp_unsigned("<", line, given["rows"]) for line in lines]
    # channel by channel: the rows of one are read from end to end
    with cgutils.for_range(b, given["channels"], intp=I64) as c:
        image = e.step(x, b.mul(c.index, given["x_channel"]))
        starts = [e.step(image, b.mul(line, given["columns"])) for line in lines]
        with cgutils.for_range(b, given["tiles"], intp=I64) as t:
            column = b.add(given["column"], b.mul(t.index, I64(2)))
            places = [b.add(column, I64(k)) for k in range(4)]
            within = [b.icmp_unsigned("<", place, given["columns"]) for place in places]
            pixels = [
                [b.select(b.and_(there, inside), e.step(start, k), zero) for k, inside in zip(places, within)]
                for start, there in zip(starts, seen)
            ]
            point = e.step(v, b.mul(t.index, given["channels"]), c.index)
            slots = [b.mul(given["slot"], I64(i)) for i in range(16)]
            for part in range(e.parts):
                offset = part * e.lanes
                for i, factors in enumerate(INPUT):
                    used = {r: [e.load(e.move(p, offset)) for p in pixels[r]] for r in range(4) if factors[r]}
                    mixed = [_combined(e, factors[list(used)], [line[k] for line in used.values()]) for k in range(4)]
                    for j, others in enumerate(INPUT):
                        e.store(_combined(e, others, mixed), e.move(e.step(point, slots[4 * i + j]), offset))


@twin(tiles_to_points)
def _tiles_to_points(
    lanes, width, x, x_start, x_channel, rows, columns, row, column, channels, tiles, zero, v, v_start, slot
):  # fmt: skip
    x, v = pixels_of(x, width), pixels_of(v, width)
    for t in range(tiles):
        for c in range(channels):
            d = np.zeros((4, 4, width), x.dtype)
            for r, k in np.ndindex(4, 4):
                if 0 <= row + r < rows and 0 <= column + 2 * t + k < columns:
                    d[r, k] = x[x_start + c * x_channel + (row + r) * columns + column + 2 * t + k]
            points = np.einsum("ir,rkl,jk->ijl", INPUT.astype(x.dtype), d, INPUT.astype(x.dtype))
            v[v_start + np.arange(16) * slot + t * channels + c] = points.reshape(16, width)


# ---- the products of a point


_PRODUCTS = "v v_start channels tiles u u_start u_out u_channel m m_start m_tile"


@intrinsic(prefer_literal=True)
def point_products(
    typing_context, lanes, width, outs, fewer_outs, use_outs,
    v, v_start, channels, tiles, u, u_start, u_out, u_channel, m, m_start, m_tile,
):  # fmt: skip
    """m[t, o] = the sum over channels c, in rising order, of v[t, c] u[o, c], for `use_outs` channels o and `tiles` tiles t.

    outs, fewer_outs: literal ints, the two values that use_outs may have. v: the pixel at v_start + t channels + c. u: the element at
    u_start + o u_out + c u_channel. m: the pixel at m_start + t m_tile + o.
    """
    literal = literals([lanes, width, outs, fewer_outs])
    if literal is None:
        return None
    arrays, fields = {"v": v, "u": u, "m": m}, _PRODUCTS.split()
    lanes_, width_, *tiles_ = literal
    bits = v.dtype.bitwidth

    def codegen(context, builder, _signature, args):
        values = [
            pointer(context, builder, arrays[field], value) if field in arrays else value
            for field, value in zip(fields, args[5:])
        ]
        for size in sorted(set(tiles_)):

            def emit(inner, parameters, size=size):
                _emit_products(LaneEmitter(inner, bits, lanes_, width_), dict(zip(fields, parameters)), size)

            with builder.if_then(builder.icmp_signed("==", args[4], I64(size))):
                call_function(builder, f"point_products_{bits}_{lanes_}_{width_}_{size}", values, emit)
        return context.get_dummy_value()

    signature = types.void(
        lanes, width, outs, fewer_outs, types.intp, *[arrays.get(field, types.intp) for field in fields]
    )
    return signature, codegen


UNROLLED = 4  # channels in one turn of the loop


def _emit_products(e: LaneEmitter, given: dict[str, Value], outs: int) -> None:
    b = e.builder
    v, m = e.step(given["v"], given["v_start"]), e.step(given["m"], given["m_start"])
    u, twice = e.move(given["u"], given["u_start"]), b.mul(given["u_out"], I64(2))
    # one pointer for three rows: x86 addresses reach u, u + step and u + 2 step
    thirds = [e.move(u, b.mul(given["u_out"], I64(o))) for o in range(0, outs, 3)]
    whole = b.sub(given["channels"], b.srem(given["channels"], I64(UNROLLED)))
    with cgutils.for_range(b, given["tiles"], intp=I64) as t:
        source = e.step(v, b.mul(t.index, given["channels"]))
        target = e.step(m, b.mul(t.index, given["m_tile"]))
        sums = [[e.slot() for _ in range(e.parts)] for _ in range(outs)]
        for slot in (slot for row in sums for slot in row):
            b.store(e.value(0.0), slot)

        def add(c: Value, source: Value = source, sums: list[list[Value]] = sums) -> None:
            if vector_registers() < 32:
                e.keep_order()
            pixel, shift = e.step(source, c), b.mul(c, given["u_channel"])
            vectors = [e.load(e.move(pixel, part * e.lanes)) for part in range(e.parts)]
            for o, row in enumerate(sums):
                weight = e.scalar(e.move(thirds[o // 3], shift, *([], [given["u_out"]], [twice])[o % 3]))
                for slot, vector in zip(row, vectors):
                    b.store(e.fma(weight, vector, e.get(slot)), slot)

        with cgutils.for_range_slice(b, I64(0), whole, I64(UNROLLED), I64) as (c, _):
            for i in range(UNROLLED):
                add(b.add(c, I64(i)))
        with cgutils.for_range_slice(b, whole, given["channels"], I64(1), I64) as (c, _):
            add(c)
        for o, row in enumerate(sums):
            for part, slot in enumerate(row):
                e.store(e.get(slot), e.move(e.step(target, o), part * e.lanes))


@twin(point_products)
def _point_products(
    lanes, width, outs, fewer_outs, use_outs,
    v, v_start, channels, tiles, u, u_start, u_out, u_channel, m, m_start, m_tile,
):  # fmt: skip
    v, m, u = pixels_of(v, width), pixels_of(m, width), u.reshape(-1)
    t, o, c = np.arange(tiles)[:, None], np.arange(use_outs), np.arange(channels)
    weights = u[u_start + o[:, None] * u_out + c * u_channel]
    m[m_start + t * m_tile + o] = np.einsum("tcl,oc->tol", v[v_start + t * channels + c], weights)


# ---- points to tiles of results


_GATHER = "m m_start slot outs tiles bias has_bias floor y y_start y_channel rows columns row column"


@intrinsic(prefer_literal=True)
def points_to_tiles(
    typing_context, lanes, width, m, m_start, slot, outs, tiles, bias, has_bias, floor,
    y, y_start, y_channel, rows, columns, row, column,
):  # fmt: skip
    """The 2 x 2 pixels A^T m A from (row, column + 2 t) on of channels o < outs, as far as they lie in the rows x columns of y.

    m: the pixel at m_start + point slot + t outs + o. bias[o] is added where has_bias is not 0; floor: where not 0, negative results
    become 0. y: as x in `tiles_to_points`.
    """
    return _function("points_to_tiles", (lanes, width), {"m": m, "bias": bias, "y": y}, _GATHER, _emit_gathering)


def _emit_gathering(e: LaneEmitter, given: dict[str, Value]) -> None:
    b = e.builder
    m, y = e.step(given["m"], given["m_start"]), e.step(given["y"], given["y_start"])
    has_bias = b.icmp_signed("!=", given["has_bias"], I64(0))
    is_floor = b.icmp_signed("!=", given["floor"], I64(0))
    floor = b.select(is_floor, e.float_scalar(0.0), e.float_scalar(float("-inf")))
    lines = [b.add(given["row"], I64(r)) for r in range(2)]
    seen = [b.icmp_signed("<", line, given["rows"]) for line in lines]
    slots = [b.mul(given["slot"], I64(i)) for i in range(16)]
    with cgutils.for_range(b, given["outs"], intp=I64) as o:
        image = e.step(y, b.mul(o.index, given["y_channel"]))
        starts = [e.step(image, b.mul(line, given["columns"])) for line in lines]
        value = b.load(e.move(given["bias"], b.select(has_bias, o.index, I64(0))), typ=e.float_scalar)
        shift = e.broadcast(b.select(has_bias, value, e.float_scalar(0.0)))
        with cgutils.for_range(b, given["tiles"], intp=I64) as t:
            column = b.add(given["column"], b.mul(t.index, I64(2)))
            places = [b.add(column, I64(k)) for k in range(2)]
            within = [b.icmp_signed("<", place, given["columns"]) for place in places]
            source = e.step(m, b.mul(t.index, given["outs"]), o.index)
            for part in range(e.parts):
                offset = part * e.lanes
                mixed = []
                for i in range(4):
                    line = [e.load(e.move(e.step(source, slots[4 * i + j]), offset)) for j in range(4)]
                    mixed.append([_combined(e, factors, line) for factors in OUTPUT])
                least = e.broadcast(floor)
                for r, factors in enumerate(OUTPUT):
                    for k in range(2):
                        made = e.add(_combined(e, factors, [line[k] for line in mixed]), shift)
                        made = e.select(e.compare("<", made, least), least, made)  # a NaN compares false and stays
                        with b.if_then(b.and_(seen[r], within[k])):
                            e.store(made, e.move(e.step(starts[r], places[k]), offset))


@twin(points_to_tiles)
def _points_to_tiles(
    lanes, width, m, m_start, slot, outs, tiles, bias, has_bias, floor,
    y, y_start, y_channel, rows, columns, row, column,
):  # fmt: skip
    m, y = pixels_of(m, width), pixels_of(y, width)
    factors = OUTPUT.astype(m.dtype)
    for t in range(tiles):
        for o in range(outs):
            points = m[m_start + np.arange(16) * slot + t * outs + o].reshape(4, 4, width)
            made = np.einsum("ri,ijl,kj->rkl", factors, points, factors) + (bias.reshape(-1)[o] if has_bias else 0)
            made = np.where(made < 0, 0, made) if floor else made
            for r, k in np.ndindex(2, 2):
                if row + r < rows and column + 2 * t + k < columns:
                    y[y_start + o * y_channel + (row + r) * columns + column + 2 * t + k] = made[r, k]
