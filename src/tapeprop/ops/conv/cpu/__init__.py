"""CPU kernels of the convolutions: three walks around one microkernel, without a column matrix.

A band of rows of the image is staged in the worker's scratch as planes: one for each column of the filter's taps, shifted by it,
zero-padded, strided, and as wide as the result. Pixels are numbered along a plane, so that a vector of neighbouring pixels is
a vector of memory, and a tap in another row of the filter lies whole rows further on; the product's table of distances is the
only trace of the filter's shape. Of im2col, which copies every pixel for each tap, this keeps the copies across a row only.

In 3-D each depth of the result is an image, whose channels are the pairs of a channel and a tap in depth, in just the order in which
the weights lie: (O, (C KD), KH, KW). Their planes come from other depths of x, or are zero; all else is as in 2-D, which is depth 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

from tapeprop.ops.conv.geometry import (
    BLOCK_ROWS,
    FIELDS,
    GRAINS,
    PIXELS,
    ROW_GRAIN,
    Geometry,
    band_rows,
    block_of,
    pitch,
    scratch_layout,
)
from tapeprop.ops.op import ITEM_BYTES, Call, Launch, Ref, launch
from tapeprop.targets.cpu.kernel import NumbaKernel
from tapeprop.targets.cpu.tiles import microtile


def conv_launch(
    builder: str,
    call: Call,
    refs: Sequence[Ref],
    geometry: Geometry,
    integers: Sequence[int],
    elements: int,
    **parameters: Any,
) -> Launch:
    """A row: arrays flat, then the scratch twice, as elements and as int64 words. parameters: of the builder, besides dtype."""
    dtype = call.results[0].dtype
    types = {"operand": call.operands, "result": call.results}
    arrays: list = [(ref, (types[ref.kind][ref.index].size,)) for ref in refs]
    arrays += [(Ref("scratch"), (1, elements)), (Ref("scratch"), (1, elements * ITEM_BYTES[dtype] // 8))]
    integers = [*geometry.integers, *integers]
    return launch(builder, call, arrays, integers, scratch=(elements, dtype), dtype=dtype, **parameters)


def _launch(
    builder: str, call: Call, refs: Sequence[Ref], geometry: Geometry, integers: Sequence[int], elements: int
) -> Launch:
    sizes = microtile(call.results[0].dtype)
    return conv_launch(f"{__name__}:{builder}", call, refs, geometry, integers, elements, **sizes)


def conv_kernel(body: Callable, dtype: str, arrays: Sequence[str], integers: Sequence[str]) -> NumbaKernel:
    """The kernel of a body whose row `conv_launch` makes."""
    kinds = [(name, dtype, 1) for name in arrays]
    kinds += [("scratch", dtype, 2), ("words", "int64", 2)]
    return NumbaKernel(body, kinds, (*FIELDS, *integers))


def _stager(lanes: int) -> Callable:
    """The compiled function that stages a band for `forward` and `weight_grad`: `count` pairs of a channel and a tap in depth.

    first: the first pair, counted from the channel of which depth 0 lies at `start`; first_depth: where the first tap reads.
    """
    import numba

    from tapeprop.targets.cpu.panels import stage_plane

    @numba.njit(error_model="numpy")
    def stage(
        x, start, first, count, depth_in, height_in, width_in, taps_d, taps_w, stride_h, stride_w, top, left,
        step_d, step_h, step_w, width_out, slots, first_depth, first_row, rows, planes, plane,
    ):  # fmt: skip
        for number in range(count):
            c = (first + number) // taps_d
            depth = first_depth + (first + number - c * taps_d) * step_d
            image = start + (c * depth_in + depth) * height_in * width_in
            for slot in range(slots):
                phase = slot * step_h % stride_h - top
                h = first_row * stride_h + phase
                first_u = (stride_h - 1 - phase) // stride_h - first_row
                end_u = (height_in - 1 - phase) // stride_h - first_row + 1 if 0 <= depth < depth_in else first_u
                for kw in range(taps_w):
                    w = kw * step_w - left
                    stage_plane(
                        lanes, x, image + h * width_in + w, stride_h * width_in, stride_w,
                        first_u, end_u, (stride_w - 1 - w) // stride_w, (width_in - 1 - w) // stride_w + 1,
                        planes, ((number * slots + slot) * taps_w + kw) * plane, rows, width_out,
                    )  # fmt: skip

    return stage


# ---- forward


def forward_launch(call: Call) -> Launch:
    """The row of y = conv(x, w) + b."""
    (x, w), y = call.operands[:2], call.results[0]
    g = Geometry.of(x, w, y, call.attributes)
    planes, units = g.channels * g.taps_d * g.slots * g.taps_w, g.images * g.groups * g.depth_out
    band = band_rows(g.height_out, g.halo, planes * g.width_out * ITEM_BYTES[y.dtype], -(-GRAINS // units))
    block = block_of(g.filters, units * -(-g.height_out // band))
    plane = g.height_in * g.width_in if g.direct else pitch((band + g.halo) * g.width_out, y.dtype)
    _, words, elements = scratch_layout(y.dtype, 0 if g.direct else planes * plane, table=g.channels * g.taps)
    biased = len(call.operands) == 3
    refs = [Ref("operand", 0), Ref("operand", 1), Ref("operand", 2 if biased else 1), Ref("result")]
    integers = [g.slots, band, block, plane, int(g.direct), 1 if biased else -1, words]
    return _launch("forward", call, refs, g, integers, elements)


def forward(dtype: str, lanes: int, height: int) -> NumbaKernel:
    """y = conv(x, w) + bias.

    A grain is a block of filters on a band of rows of one image: (filters, taps of all channels) times (taps, pixels).
    """
    from tapeprop.targets.cpu.gemm import B_TABLE, PER_ROW, gemm_panel

    width, addressing, addend, stage = 2 * lanes, B_TABLE, PER_ROW, _stager(lanes)

    def body(
        x, w, bias, y, scratch, words, images, groups, channels, depth_in, height_in, width_in, filters, taps_d, taps_h, taps_w,
        stride_d, stride_h, stride_w, front, top, left, step_d, step_h, step_w, depth_out, height_out, width_out,
        slots, band, block, plane, direct, bias_m, table_start, worker, workers,
    ):  # fmt: skip
        planes, table = scratch[worker], words[worker]
        terms = channels * taps_d * taps_h * taps_w
        for kh in range(taps_h):
            slot, row = kh % slots, kh * step_h // stride_h * width_out
            for c in range(channels * taps_d):
                for kw in range(taps_w):
                    number = (c * slots + slot) * taps_w + kw
                    table[table_start + (c * taps_h + kh) * taps_w + kw] = number * plane + row
        bands, blocks = (height_out + band - 1) // band, (filters + block - 1) // block
        halo = (taps_h - 1) * step_h // stride_h
        grains = images * groups * depth_out * bands * blocks
        staged = -1
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            place = grain // blocks
            first_filter = (grain - place * blocks) * block
            result = place // bands
            first_row = (place - result * bands) * band
            rows = min(band, height_out - first_row)
            image_group = result // depth_out
            depth = result - image_group * depth_out
            image = image_group * channels * depth_in * height_in * width_in
            source, source_start = planes, 0
            if direct:
                source, source_start = x, image + first_row * width_in
            elif place != staged:
                staged = place
                stage(
                    x, image, 0, channels * taps_d, depth_in, height_in, width_in, taps_d, taps_w, stride_h, stride_w,
                    top, left, step_d, step_h, step_w, width_out, slots, depth * stride_d - front, first_row,
                    rows + halo, planes, plane,
                )  # fmt: skip
            group = image_group % groups
            o = group * filters + first_filter
            target = ((((image_group - group) * filters + o) * depth_out + depth) * height_out + first_row) * width_out
            pixels = rows * width_out
            for q in range(0, pixels, width):
                gemm_panel(
                    lanes, height, addressing, addend, min(block, filters - first_filter), min(width, pixels - q), terms,
                    w, o * terms, terms, 1, source, source_start + q, 0, table, table_start, bias, o, bias_m,
                    y, target + q, depth_out * height_out * width_out,
                )  # fmt: skip

    integers = ("slots", "band", "block", "plane", "direct", "bias_m", "table_start")
    return conv_kernel(body, dtype, ("x", "w", "bias", "y"), integers)


# ---- the input's gradient


def input_places(g: Geometry) -> dict[str, int]:
    """Where the pixels of the input's gradient begin and how many there are in units of the stride; and the taps of its phases.

    Taps a period apart read one phase, rows a hop apart; slots_d: the most taps in depth that one depth meets.
    """
    first_u, first_v = g.top // g.stride_h, g.left // g.stride_w
    pairs = (g.stride_d, g.step_d), (g.stride_h, g.step_h), (g.stride_w, g.step_w)
    period_d, period_h, period_w = (stride // gcd(stride, step) for stride, step in pairs)
    return {
        "first_u": first_u,
        "count_u": (g.height_in - 1 + g.top) // g.stride_h - first_u + 1,
        "first_v": first_v,
        "count_v": (g.width_in - 1 + g.left) // g.stride_w - first_v + 1,
        "slots_d": -(-g.taps_d // period_d),
        "period_d": period_d,
        "period_h": period_h,
        "period_w": period_w,
        "hop_h": period_h * g.step_h // g.stride_h,
    }


def input_grad_launch(call: Call) -> Launch:
    """The row of dx from dy, w."""
    dy, w = call.operands
    dx = call.results[0]
    g, tile = Geometry.of(dx, w, dy, call.attributes), microtile(dx.dtype)
    at = input_places(g)
    count_u, count_v = at["count_u"], at["count_v"]
    planes, units = g.filters * at["slots_d"] * g.taps_w, g.images * g.groups * g.depth_in
    direct = g.direct and g.taps_h == 1
    band = band_rows(count_u, g.halo, planes * count_v * ITEM_BYTES[dx.dtype], -(-GRAINS // units))
    block = block_of(g.channels, units * -(-count_u // band))
    plane = g.height_out * g.width_out if direct else pitch((band + g.halo) * count_v, dx.dtype)
    padded = -(-g.channels // tile["lanes"]) * tile["lanes"]
    phases = g.stride_w if g.stride_h * g.stride_w > 1 else 0
    parts = (0 if direct else planes * plane, g.filters * g.taps * padded, phases * block * 2 * tile["lanes"])
    entries = g.filters * g.taps
    table = entries + g.stride_d * g.stride_h * g.stride_w + 1
    (_, weights, tiles), words, elements = scratch_layout(dx.dtype, *parts, table=table)
    integers = [*at.values(), band, block, plane, int(direct), padded, weights, tiles, words, words + entries]
    refs = [Ref("operand", 0), Ref("operand", 1), Ref("result")]
    return _launch("input_grad", call, refs, g, integers, elements)


def input_grad(dtype: str, lanes: int, height: int) -> NumbaKernel:
    """dx[n, c, h, w] = sum over o, kh, kw of w[o, c, kh, kw] dy[n, o, (h + top - kh step) / stride, ...], whole quotients only.

    Pixels h + top = stride u + phase of one phase meet the same taps, and tap kh reads row u - kh step // stride: each phase
    is a correlation of stride 1. A grain is a block of channels on a band of u of one image: (channels, taps of all filters)
    times (taps, pixels).
    """
    from tapeprop.targets.cpu.gemm import B_TABLE, NO_ADDEND, gemm_panel
    from tapeprop.targets.cpu.panels import stage_plane, transpose_panel, weave_row

    width, addressing, addend = 2 * lanes, B_TABLE, NO_ADDEND

    def body(
        dy, w, dx, scratch, words, images, groups, channels, depth_in, height_in, width_in, filters, taps_d, taps_h, taps_w,
        stride_d, stride_h, stride_w, front, top, left, step_d, step_h, step_w, depth_out, height_out, width_out,
        first_u, count_u, first_v, count_v, slots_d, period_d, period_h, period_w, hop_h, band, block, plane, direct,
        padded, weights, tiles, table_start, starts, worker, workers,
    ):  # fmt: skip
        planes, table = scratch[worker], words[worker]
        halo, taps, strided = (taps_h - 1) * step_h // stride_h, taps_d * taps_h * taps_w, stride_h * stride_w > 1
        phases, phases_h = stride_d * stride_h * stride_w, stride_h * stride_w
        bands, blocks = (count_u + band - 1) // band, (channels + block - 1) // block
        grains = groups * images * depth_in * bands * blocks
        staged, packed = -1, -1
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            place = grain // blocks
            first_channel = (grain - place * blocks) * block
            result = place // bands
            u0 = first_u + (place - result * bands) * band
            rows_u = min(band, first_u + count_u - u0)
            group_image = result // depth_in
            depth = result - group_image * depth_in
            group = group_image // images
            image_group = (group_image - group * images) * groups + group
            if group != packed:
                # The taps of a phase one after another, and for each a row of weights, one for every channel.
                packed, entry = group, 0
                for phase in range(phases):
                    table[starts + phase] = entry
                    first_d, first_h, first_w = 0, 0, 0
                    while first_d < taps_d and first_d * step_d % stride_d != phase // phases_h:
                        first_d += 1
                    while first_h < taps_h and first_h * step_h % stride_h != phase % phases_h // stride_w:
                        first_h += 1
                    while first_w < taps_w and first_w * step_w % stride_w != phase % stride_w:
                        first_w += 1
                    first_row = halo - first_h * step_h // stride_h
                    for o in range(filters):
                        weights_of, number = (group * filters + o) * channels * taps, o * slots_d
                        for kd in range(first_d, taps_d, period_d):
                            row = first_row
                            for kh in range(first_h, taps_h, period_h):
                                for kw in range(first_w, taps_w, period_w):
                                    table[table_start + entry] = (number * taps_w + kw) * plane + row * count_v
                                    tap = (kd * taps_h + kh) * taps_w + kw
                                    if phases > 1 or tap == 0:
                                        for c in range(0, channels, lanes):
                                            transpose_panel(
                                                lanes, w, weights_of + c * taps + tap, taps,
                                                min(lanes, channels - c), 1 if phases > 1 else taps,
                                                planes, weights + entry * padded + c, padded,
                                            )  # fmt: skip
                                    entry += 1
                                row -= hop_h
                            number += 1
                table[starts + phases] = entry
            phase_d = (depth + front) % stride_d
            source_image = image_group * filters * depth_out * height_out * width_out
            source, source_start = planes, 0
            if direct:
                source, source_start = dy, source_image + u0 * width_out
            elif place != staged:
                staged = place
                first_d = 0
                while first_d < taps_d and first_d * step_d % stride_d != phase_d:
                    first_d += 1
                for o in range(filters):
                    number = o * slots_d
                    for kd in range(first_d, taps_d, period_d):
                        met = (depth + front) // stride_d - kd * step_d // stride_d
                        line = source_image + ((o * depth_out + met) * height_out + u0 - halo) * width_out + first_v
                        end_u = height_out + halo - u0 if 0 <= met < depth_out else halo - u0
                        for kw in range(taps_w):
                            shift = kw * step_w // stride_w
                            stage_plane(
                                lanes, dy, line - shift, width_out, 1, halo - u0, end_u,
                                shift - first_v, width_out + shift - first_v,
                                planes, (number * taps_w + kw) * plane, rows_u + halo, count_v,
                            )  # fmt: skip
                        number += 1
            rows = min(block, channels - first_channel)
            target = ((image_group * channels + first_channel) * depth_in + depth) * height_in * width_in
            pixels = rows_u * count_v
            for phase_h in range(stride_h):
                for q in range(0, pixels, width):
                    columns = min(width, pixels - q)
                    for phase_w in range(stride_w):
                        phase = starts + (phase_d * stride_h + phase_h) * stride_w + phase_w
                        entry, terms = table[phase], table[phase + 1] - table[phase]
                        c, c_start, c_m = dx, target + (u0 - top) * width_in + q, depth_in * height_in * width_in
                        if strided:
                            c, c_start, c_m = planes, tiles + phase_w * block * width, width
                        gemm_panel(
                            lanes, height, addressing, addend, rows, columns, terms,
                            planes, weights + entry * padded + first_channel, 1, padded, source, source_start + q, 0,
                            table, table_start + entry, planes, 0, -1, c, c_start, c_m,
                        )  # fmt: skip
                    if strided:
                        # The phases of each row side by side, where they lie inside the image.
                        for row in range(q // count_v, (q + columns - 1) // count_v + 1):
                            h = (u0 + row) * stride_h + phase_h - top
                            first, last = max(row * count_v, q), min((row + 1) * count_v, q + columns)
                            w0 = (first_v + first - row * count_v) * stride_w - left
                            high = min((last - first) * stride_w, width_in - w0)
                            if 0 <= h < height_in:
                                for i in range(rows):
                                    weave_row(
                                        lanes, planes, tiles + i * width + first - q, block * width, stride_w,
                                        max(0, -w0), high, dx, target + (i * depth_in * height_in + h) * width_in + w0,
                                    )  # fmt: skip

    integers = (
        "first_u", "count_u", "first_v", "count_v", "slots_d", "period_d", "period_h", "period_w", "hop_h", "band", "block",
        "plane", "direct", "padded", "weights", "tiles", "table_start", "starts",
    )  # fmt: skip
    return conv_kernel(body, dtype, ("dy", "w", "dx"), integers)


# ---- the weights' gradient


def weight_grad_launch(call: Call) -> Launch:
    """The row of dw from x, dy."""
    x, dy = call.operands
    dw = call.results[0]
    g = Geometry.of(x, dw, dy, call.attributes)
    width, rows = 2 * microtile(dw.dtype)["lanes"], g.channels * g.taps
    block = min(-(-rows // ROW_GRAIN) * ROW_GRAIN, BLOCK_ROWS)
    touched = min(g.channels * g.taps_d, (block - 2) // (g.taps_h * g.taps_w) + 2)  # channels that a block may touch
    planes = touched * g.slots * g.taps_w
    row_bytes = planes * g.width_out * ITEM_BYTES[dw.dtype]
    band = band_rows(g.height_out, g.halo, row_bytes, limit=max(1, PIXELS // g.width_out))
    plane = g.height_in * g.width_in if g.direct else pitch((band + g.halo) * g.width_out, dw.dtype)
    parts = (0 if g.direct else planes * plane, band * g.width_out * width, block * width)
    (_, panel, sums), words, elements = scratch_layout(dw.dtype, *parts, table=block)
    integers = [g.slots, band, block, plane, int(g.direct), panel, sums, words]
    refs = [Ref("operand", 0), Ref("operand", 1), Ref("result")]
    return _launch("weight_grad", call, refs, g, integers, elements)


def weight_grad(dtype: str, lanes: int, height: int) -> NumbaKernel:
    """dw[o, c, kh, kw] = sum over n, pixels of x[n, c, at the pixel's tap] dy[n, o, pixel].

    A grain is a few rows (c, kh, kw) on a panel of filters o; a worker does its grains of one panel together, up to a block
    of rows: per band (rows, pixels) times (pixels, filters), the gradients transposed so that filters lie in vectors. The sums
    of the bands are added in order.
    """
    from tapeprop.targets.cpu.gemm import A_ROWS, ROWS, gemm_panel
    from tapeprop.targets.cpu.panels import transpose_panel

    width, addressing, addend, stage, row_grain = 2 * lanes, A_ROWS, ROWS, _stager(lanes), ROW_GRAIN

    def body(
        x, dy, dw, scratch, words, images, groups, channels, depth_in, height_in, width_in, filters, taps_d, taps_h, taps_w,
        stride_d, stride_h, stride_w, front, top, left, step_d, step_h, step_w, depth_out, height_out, width_out,
        slots, band, block, plane, direct, panel, sums, table_start, worker, workers,
    ):  # fmt: skip
        planes, table = scratch[worker], words[worker]
        taps, halo = taps_h * taps_w, (taps_h - 1) * step_h // stride_h
        terms = channels * taps_d * taps
        panels, per_panel = (filters + width - 1) // width, (terms + row_grain - 1) // row_grain
        grains = groups * panels * per_panel
        grain, last = grains * worker // workers, grains * (worker + 1) // workers
        while grain < last:
            place = grain // per_panel
            first = (grain - place * per_panel) * row_grain
            rows = min(block, (last - grain) * row_grain, terms - first)
            grain += (rows + row_grain - 1) // row_grain
            group = place // panels
            first_filter = (place - group * panels) * width
            columns = min(width, filters - first_filter)
            first_channel, end_channel = first // taps, (first + rows - 1) // taps + 1
            c, kh, kw = 0, first % taps // taps_w, first % taps_w
            for i in range(rows):
                number = (c * slots + kh % slots) * taps_w + kw
                table[table_start + i] = number * plane + kh * step_h // stride_h * width_out
                kw += 1
                if kw == taps_w:
                    kh, kw = kh + 1, 0
                    if kh == taps_h:
                        c, kh = c + 1, 0
            for image_depth in range(images * depth_out):
                image = image_depth // depth_out
                depth = image_depth - image * depth_out
                image_group = image * groups + group
                start = image_group * channels * depth_in * height_in * width_in
                gradients = (image_group * filters + first_filter) * depth_out + depth
                for first_row in range(0, height_out, band):
                    band_rows = min(band, height_out - first_row)
                    pixels = band_rows * width_out
                    source, source_start = planes, 0
                    if direct:
                        source, source_start = x, start + (first_channel * height_in + first_row) * width_in
                    else:
                        stage(
                            x, start, first_channel, end_channel - first_channel, depth_in, height_in, width_in,
                            taps_d, taps_w, stride_h, stride_w, top, left, step_d, step_h, step_w, width_out, slots,
                            depth * stride_d - front, first_row, band_rows + halo, planes, plane,
                        )  # fmt: skip
                    for j in range(0, columns, lanes):
                        transpose_panel(
                            lanes, dy, ((gradients + j * depth_out) * height_out + first_row) * width_out,
                            depth_out * height_out * width_out,
                            min(lanes, columns - j), pixels, planes, panel + j, width,
                        )  # fmt: skip
                    fresh = image_depth == 0 and first_row == 0
                    gemm_panel(
                        lanes, height, addressing, addend, rows, columns, pixels, source, source_start, 0, 0,
                        planes, panel, width, table, table_start, planes, sums, -1 if fresh else width,
                        planes, sums, width,
                    )  # fmt: skip
            for j in range(columns):
                target = (group * filters + first_filter + j) * terms + first
                for i in range(rows):
                    dw[target + i] = planes[sums + i * width + j]

    integers = ("slots", "band", "block", "plane", "direct", "panel", "sums", "table_start")
    return conv_kernel(body, dtype, ("x", "dy", "dw"), integers)
