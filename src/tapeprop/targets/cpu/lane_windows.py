"""Rows of pooling windows whose vector lanes are images of a batch, for Numba bodies (the layout is that of `targets.cpu.lanes`).

Each function takes one row of `count` windows over `rows` image rows of `columns` pixels: window q covers columns first + q stride
up to that + size, as far as they lie inside the image. Size and stride are literal ints: a window inside the image is unrolled
along its row; another runs over the columns it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tapeprop.targets.cpu.emission import I64, call_function, literals, pointer
from tapeprop.targets.cpu.lanes import LaneEmitter, pixels_of
from tapeprop.targets.cpu.plain import twin

__all__ = ["lane_max", "lane_max_grad", "lane_mean", "lane_mean_grad"]

Value = Any  # an llvmlite.ir value
_PLACE = "x_start x_row columns first rows"  # of the image that windows slide over


class _Windows:
    """The loops over a row of windows; `given` holds what `_PLACE` names, and x and count."""

    def __init__(self, e: LaneEmitter, given: dict[str, Value], size: int, stride: int) -> None:
        self.e, self.given, self.size, self.stride = e, given, size, stride

    def run(
        self, begin: Callable[[Value, Value], Any], tap: Callable[[Any, Value], None], end: Callable[[Any], None]
    ) -> None:
        """state = begin(window, offset of its lanes), tap(state, place in x) for each pixel in row-major order, end(state)."""
        e, b, given = self.e, self.e.builder, self.given
        x = e.step(given["x"], given["x_start"])
        with (
            cgutils.for_range(b, given["count"], intp=I64) as q,
            cgutils.for_range(b, I64(e.parts), intp=I64) as part,
        ):
            offset = b.mul(part.index, I64(e.lanes))
            column = b.add(given["first"], b.mul(q.index, I64(self.stride)))
            low, high = self.reach(column)
            whole = b.icmp_signed("==", b.sub(high, low), I64(self.size))
            state = begin(q.index, offset)
            with cgutils.for_range(b, given["rows"], intp=I64) as row:
                line = e.step(e.move(x, offset), b.mul(row.index, given["x_row"]))
                with b.if_else(whole) as (inside, edge):
                    with inside:
                        for k in range(self.size):
                            tap(state, e.step(line, column, k))
                    with edge, cgutils.for_range_slice(b, low, high, I64(1), I64) as (j, _):
                        tap(state, e.step(line, j))
            end(state)

    def reach(self, column: Value) -> tuple[Value, Value]:
        """The first column inside the image of the window at `column`, and one past the last."""
        b, columns = self.e.builder, self.given["columns"]
        end = b.add(column, I64(self.size))
        low = b.select(b.icmp_signed("<", column, I64(0)), I64(0), column)
        return low, b.select(b.icmp_signed("<", columns, end), columns, end)

    def divisor(self, q: Value, divisor: Value) -> Value:
        """`divisor`, or where it is 0 the number of pixels of window q, in every lane."""
        e, b = self.e, self.e.builder
        low, high = self.reach(b.add(self.given["first"], b.mul(q, I64(self.stride))))
        pixels = b.mul(b.sub(high, low), self.given["rows"])
        number = b.select(b.icmp_signed("==", divisor, I64(0)), pixels, divisor)
        return e.broadcast(b.sitofp(number, e.float_scalar))


def _intrinsic(
    name: str,
    kinds: tuple[Any, ...],
    arrays: dict[str, Any],
    names: str,
    emit: Callable[[_Windows, dict[str, Value]], None],
) -> Any:
    """(signature, codegen) of a function whose literal arguments are lanes, width, size, stride, ..., then `names`."""
    literal = literals(kinds)
    if literal is None:
        return None
    fields = names.split()
    bits = arrays["x"].dtype.bitwidth

    def codegen(context, builder, _signature, args):
        values = [
            pointer(context, builder, arrays[field], value) if field in arrays else value
            for field, value in zip(fields, args[len(kinds) :])
        ]

        def fill(inner, parameters):
            given = dict(zip(fields, parameters))
            lanes, width, size, stride = literal[:4]
            emit(_Windows(LaneEmitter(inner, bits, lanes, width), given, size, stride), given)

        call_function(builder, f"{name}_{bits}_{'_'.join(map(str, literal))}", values, fill)
        return context.get_dummy_value()

    return types.void(*kinds, *[arrays.get(field, types.intp) for field in fields]), codegen


@intrinsic(prefer_literal=True)
def lane_max(
    typing_context, lanes, width, size, stride, x, x_start, x_row, columns, first, rows, y, y_start, count, floor
):
    """y[y_start + q] = the maximum of window q, and of 0 where floor is not 0; NaN where a pixel is; -inf of no pixels."""

    def emit(windows, given):
        e, b = windows.e, windows.e.builder
        best = e.slot()
        above_zero = b.icmp_signed("!=", given["floor"], I64(0))
        low = e.broadcast(b.select(above_zero, e.float_scalar(0.0), e.float_scalar(float("-inf"))))

        def begin(q, offset):
            b.store(e.value(float("-inf")), best)
            return e.move(e.step(given["y"], given["y_start"], q), offset)

        def end(place):
            value = e.get(best)
            e.store(e.select(e.compare("<", value, low), low, value), place)  # a NaN compares false and stays

        windows.run(begin, lambda _, place: b.store(e.maximum(e.get(best), e.load(place)), best), end)

    names = f"x {_PLACE} y y_start count floor"
    return _intrinsic("lane_max", (lanes, width, size, stride), {"x": x, "y": y}, names, emit)


@intrinsic(prefer_literal=True)
def lane_max_grad(
    typing_context, lanes, width, size, stride, alone,
    x, x_start, x_row, columns, first, rows, y, dy, dx, y_start, count,
):  # fmt: skip
    """dx += dy[y_start + q] at the first pixel of window q that holds its maximum, y[y_start + q], or at its first NaN.

    dx: as x. alone: a literal; where not 0 windows do not overlap, and dx is written over.
    """
    kinds = (lanes, width, size, stride, alone)

    def emit(windows, given):
        e, b = windows.e, windows.e.builder
        left = e.slot()

        def begin(q, offset):
            place = [e.move(e.step(given[name], given["y_start"], q), offset) for name in ("y", "dy")]
            b.store(e.load(place[1]), left)
            return e.load(place[0])

        def tap(best, place):
            value, flow = e.load(place), e.get(left)
            here = b.or_(e.compare("==", value, best), e.compare("!=", value, value))
            target = e.beside(place, given["x"], given["dx"])
            share = e.select(here, flow, 0.0)
            e.store(share if alone.literal_value else e.add(e.load(target), share), target)
            b.store(e.select(here, 0.0, flow), left)

        windows.run(begin, tap, lambda _: None)

    arrays = {"x": x, "y": y, "dy": dy, "dx": dx}
    return _intrinsic("lane_max_grad", kinds, arrays, f"x {_PLACE} y dy dx y_start count", emit)


@intrinsic(prefer_literal=True)
def lane_mean(
    typing_context, lanes, width, size, stride, x, x_start, x_row, columns, first, rows, y, y_start, count, divisor
):
    """y[y_start + q] = the sum of window q / divisor; divisor 0: the number of its pixels."""

    def emit(windows, given):
        e, b = windows.e, windows.e.builder
        total = e.slot()

        def begin(q, offset):
            b.store(e.value(0.0), total)
            return e.move(e.step(given["y"], given["y_start"], q), offset), windows.divisor(q, given["divisor"])

        def end(state):
            e.store(e.div(e.get(total), state[1]), state[0])

        windows.run(begin, lambda _, place: b.store(e.add(e.get(total), e.load(place)), total), end)

    names = f"x {_PLACE} y y_start count divisor"
    return _intrinsic("lane_mean", (lanes, width, size, stride), {"x": x, "y": y}, names, emit)


@intrinsic(prefer_literal=True)
def lane_mean_grad(
    typing_context, lanes, width, size, stride, alone,
    x, x_start, x_row, columns, first, rows, dy, y_start, count, divisor,
):  # fmt: skip
    """x += dy[y_start + q] / divisor at each pixel of window q; divisor 0: the number of its pixels.

    alone: a literal; where not 0 windows do not overlap, and x is written over.
    """
    kinds = (lanes, width, size, stride, alone)

    def emit(windows, given):
        e = windows.e

        def begin(q, offset):
            place = e.move(e.step(given["dy"], given["y_start"], q), offset)
            return e.div(e.load(place), windows.divisor(q, given["divisor"]))

        def tap(share, place):
            e.store(share if alone.literal_value else e.add(e.load(place), share), place)

        windows.run(begin, tap, lambda _: None)

    names = f"x {_PLACE} dy y_start count divisor"
    return _intrinsic("lane_mean_grad", kinds, {"x": x, "dy": dy}, names, emit)


# ---- twins


def _windows(
    size: int, stride: int, x_start: int, x_row: int, columns: int, first: int, rows: int, count: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(window, the places of its pixels in row-major order) of each window of a row."""
    for q in range(count):
        low = first + q * stride
        inside = np.arange(max(low, 0), min(low + size, columns))
        yield q, (x_start + np.arange(rows)[:, None] * x_row + inside).reshape(-1)


@twin(lane_max)
def _lane_max(lanes, width, size, stride, x, x_start, x_row, columns, first, rows, y, y_start, count, floor):
    x, y = pixels_of(x, width), pixels_of(y, width)
    for q, places in _windows(size, stride, x_start, x_row, columns, first, rows, count):
        best = x[places].max(0, initial=-np.inf)
        y[y_start + q] = np.where(best < 0, 0, best) if floor else best


@twin(lane_max_grad)
def _lane_max_grad(
    lanes, width, size, stride, alone, x, x_start, x_row, columns, first, rows, y, dy, dx, y_start, count
):
    x, y, dy, dx = (pixels_of(array, width) for array in (x, y, dy, dx))
    for q, places in _windows(size, stride, x_start, x_row, columns, first, rows, count):
        values, flow = x[places], dy[y_start + q]
        here = (values == y[y_start + q]) | (values != values)
        share = np.where(here & (np.cumsum(here, 0) == 1), flow, 0)
        dx[places] = share if alone else dx[places] + share


@twin(lane_mean)
def _lane_mean(lanes, width, size, stride, x, x_start, x_row, columns, first, rows, y, y_start, count, divisor):
    x, y = pixels_of(x, width), pixels_of(y, width)
    for q, places in _windows(size, stride, x_start, x_row, columns, first, rows, count):
        y[y_start + q] = x[places].sum(0) / x.dtype.type(divisor or places.size)


@twin(lane_mean_grad)
def _lane_mean_grad(
    lanes, width, size, stride, alone, x, x_start, x_row, columns, first, rows, dy, y_start, count, divisor
):
    x, dy = pixels_of(x, width), pixels_of(dy, width)
    for q, places in _windows(size, stride, x_start, x_row, columns, first, rows, count):
        share = dy[y_start + q] / x.dtype.type(divisor or places.size)
        x[places] = share if alone else x[places] + share
