"""CPU kernels of convolutions whose groups have a single channel: three walks without matrix products.

A band of the channel's plane is staged in the worker's scratch, its padding around it and the phases of the horizontal stride apart:
then what a tap meets is a vector at a fixed distance, and a vector of pixels takes a load and a multiply-add for each tap. The walks
beside this one copy a plane for each column of the filter, and multiply by a matrix of one row.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

from tapeprop.ops.conv.cpu.input_grad import input_places
from tapeprop.ops.conv.cpu.rows import conv_kernel, conv_launch
from tapeprop.ops.conv.geometry import GRAINS, Geometry, band_rows, scratch_layout
from tapeprop.ops.op import ITEM_BYTES, Call, Launch, Ref
from tapeprop.targets.cpu import machine
from tapeprop.targets.cpu.kernel import NumbaKernel

STAGED_BYTES = 24 * 1024  # of a band: it and the result share the first-level cache


def _launch(name: str, call: Call, refs: list[Ref], g: Geometry, integers: list[int], elements: int) -> Launch:
    return conv_launch(
        f"{__name__}:{name}", call, refs, g, integers, elements, lanes=machine.lanes(call.results[0].dtype)
    )


def _band(g: Geometry, dtype: str, parts: int) -> tuple[int, list[int]]:
    """(rows of a band, [phases, elements of a line, of a plane]) where x is staged."""
    phases = min(g.taps_w, g.stride_w // gcd(g.stride_w, g.step_w))
    line = g.width_out + (g.taps_w - 1) * g.step_w // g.stride_w
    reach = (g.taps_h - 1) * g.step_h
    row_bytes = g.taps_d * phases * line * g.stride_h * ITEM_BYTES[dtype]
    band = band_rows(g.height_out, -(-reach // g.stride_h), row_bytes, parts, staged=STAGED_BYTES)
    return band, [phases, line, ((band - 1) * g.stride_h + reach + 1) * line]


def _stager(lanes: int) -> Callable:
    """The compiled function that stages a band of a channel for `forward` and `weight_grad`, and that which notes the taps' places."""
    import numba

    from tapeprop.targets.cpu.panels import stage_plane

    @numba.njit(error_model="numpy")
    def stage(
        x, start, depth_in, height_in, width_in, taps_d, stride_w, left, step_d, step_w, phases, line,
        first_depth, first_h, rows, planes, plane,
    ):  # fmt: skip
        for kd in range(taps_d):
            depth = first_depth + kd * step_d
            end = height_in - first_h if 0 <= depth < depth_in else -first_h
            for phase in range(phases):
                w = phase * step_w % stride_w - left
                stage_plane(
                    lanes, x, start + (depth * height_in + first_h) * width_in + w, width_in, stride_w, -first_h, end,
                    (stride_w - 1 - w) // stride_w, (width_in - 1 - w) // stride_w + 1,
                    planes, (kd * phases + phase) * plane, rows, line,
                )  # fmt: skip

    return stage


def _placer() -> Callable:
    """The compiled function that notes where the taps' vectors begin in what `stage` lays out."""
    import numba

    @numba.njit(error_model="numpy")
    def places(table, table_start, taps_d, taps_h, taps_w, stride_w, step_h, step_w, phases, line, plane):
        entry = table_start
        for kd in range(taps_d):
            for kh in range(taps_h):
                for kw in range(taps_w):
                    number = kd * phases + kw % phases
                    table[entry] = number * plane + kh * step_h * line + kw * step_w // stride_w
                    entry += 1

    return places


# ---- forward


def forward_launch(call: Call) -> Launch:
    """The row of y = conv(x, w) + b."""
    (x, w), y = call.operands[:2], call.results[0]
    g = Geometry.of(x, w, y, call.attributes)
    band, sizes = _band(g, y.dtype, -(-GRAINS // (g.images * g.groups * g.depth_out)))
    biased = len(call.operands) == 3
    parts = g.taps_d * sizes[0] * sizes[2], machine.lanes(y.dtype)  # the last vector may begin at the last pixel
    _, words, elements = scratch_layout(y.dtype, *parts, table=g.taps)
    refs = [Ref("operand", 0), Ref("operand", 1), Ref("operand", 2 if biased else 1), Ref("result")]
    return _launch("forward", call, refs, g, [band, *sizes, int(biased), words], elements)


def forward(dtype: str, lanes: int) -> NumbaKernel:
    """y = conv(x, w) + bias. A grain is a band of rows of one image and channel."""
    from tapeprop.targets.cpu.depthwise import window_sums

    stage, places = _stager(lanes), _placer()

    def body(
        x, w, bias, y, scratch, words, images, groups, channels, depth_in, height_in, width_in, filters, taps_d, taps_h, taps_w,
        stride_d, stride_h, stride_w, front, top, left, step_d, step_h, step_w, depth_out, height_out, width_out,
        band, phases, line, plane, biased, table_start, worker, workers,
    ):  # fmt: skip
        planes, table = scratch[worker], words[worker]
        places(table, table_start, taps_d, taps_h, taps_w, stride_w, step_h, step_w, phases, line, plane)
        taps, reach = taps_d * taps_h * taps_w, (taps_h - 1) * step_h
        bands = (height_out + band - 1) // band
        grains = images * groups * depth_out * bands
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            result = grain // bands
            first_row = (grain - result * bands) * band
            rows = min(band, height_out - first_row)
            image_group = result // depth_out
            depth = result - image_group * depth_out
            stage(
                x, image_group * depth_in * height_in * width_in, depth_in, height_in, width_in, taps_d, stride_w, left,
                step_d, step_w, phases, line, depth * stride_d - front, first_row * stride_h - top,
                (rows - 1) * stride_h + reach + 1, planes, plane,
            )  # fmt: skip
            for i in range(filters):
                o = image_group % groups * filters + i
                target = (((image_group * filters + i) * depth_out + depth) * height_out + first_row) * width_out
                window_sums(
                    lanes, w, o * taps, taps, table, table_start, planes, 0, stride_h * line, bias, o if biased else -1,
                    y, target, width_out, rows, width_out,
                )  # fmt: skip

    integers = ("band", "phases", "line", "plane", "biased", "table_start")
    return conv_kernel(body, dtype, ("x", "w", "bias", "y"), integers)


# ---- the input's gradient


def input_grad_launch(call: Call) -> Launch:
    """The row of dx from dy, w."""
    dy, w = call.operands
    dx = call.results[0]
    g = Geometry.of(dx, w, dy, call.attributes)
    at = input_places(g)
    halo_w = (g.taps_w - 1) * g.step_w // g.stride_w
    line, planes = at["count_v"] + halo_w, g.filters * at["slots_d"]
    row_bytes = planes * line * ITEM_BYTES[dx.dtype]
    parts = -(-GRAINS // (g.images * g.groups * g.depth_in))
    band = band_rows(at["count_u"], g.halo, row_bytes, parts, staged=STAGED_BYTES)
    plane, entries = (band + g.halo) * line, g.filters * g.taps
    tile = band * at["count_v"] if g.stride_h * g.stride_w > 1 else 0
    table = entries + g.stride_d * g.stride_h * g.stride_w + 1
    sizes = planes * plane, entries, g.stride_w * tile, machine.lanes(dx.dtype)
    (_, weights, tiles, _), words, elements = scratch_layout(dx.dtype, *sizes, table=table)
    integers = [*at.values(), halo_w, band, line, plane, tile, weights, tiles, words, words + entries]
    return _launch("input_grad", call, [Ref("operand", 0), Ref("operand", 1), Ref("result")], g, integers, elements)


def input_grad(dtype: str, lanes: int) -> NumbaKernel:
    """dx as in `cpu.input_grad`, phase by phase of the stride. A grain is a band of u of one image and channel."""
    from tapeprop.targets.cpu.depthwise import window_sums
    from tapeprop.targets.cpu.panels import stage_plane, weave_row

    def body(
        dy, w, dx, scratch, words, images, groups, channels, depth_in, height_in, width_in, filters, taps_d, taps_h, taps_w,
        stride_d, stride_h, stride_w, front, top, left, step_d, step_h, step_w, depth_out, height_out, width_out,
        first_u, count_u, first_v, count_v, slots_d, period_d, period_h, period_w, hop_h, halo_w, band, line, plane, tile,
        weights, tiles, table_start, starts, worker, workers,
    ):  # fmt: skip
        planes, table = scratch[worker], words[worker]
        halo, taps, phases_h = (taps_h - 1) * step_h // stride_h, taps_d * taps_h * taps_w, stride_h * stride_w
        phases = stride_d * phases_h
        bands = (count_u + band - 1) // band
        grains = groups * images * depth_in * bands
        packed = -1
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            result = grain // bands
            u0 = first_u + (grain - result * bands) * band
            rows_u = min(band, first_u + count_u - u0)
            group_image = result // depth_in
            depth = result - group_image * depth_in
            group = group_image // images
            image_group = (group_image - group * images) * groups + group
            if group != packed:
                # The taps of a phase one after another, and their weights likewise.
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
                    for o in range(filters):
                        number = o * slots_d
                        for kd in range(first_d, taps_d, period_d):
                            for kh in range(first_h, taps_h, period_h):
                                for kw in range(first_w, taps_w, period_w):
                                    tap = (kd * taps_h + kh) * taps_w + kw
                                    planes[weights + entry] = w[(group * filters + o) * taps + tap]
                                    row, column = halo - kh * step_h // stride_h, halo_w - kw * step_w // stride_w
                                    table[table_start + entry] = number * plane + row * line + column
                                    entry += 1
                            number += 1
                table[starts + phases] = entry
            phase_d = (depth + front) % stride_d
            first_d = 0
            while first_d < taps_d and first_d * step_d % stride_d != phase_d:
                first_d += 1
            for o in range(filters):
                number = o * slots_d
                for kd in range(first_d, taps_d, period_d):
                    met = (depth + front) // stride_d - kd * step_d // stride_d
                    source = ((image_group * filters + o) * depth_out + met) * height_out + u0 - halo
                    stage_plane(
                        lanes, dy, source * width_out + first_v - halo_w, width_out, 1,
                        halo - u0, height_out + halo - u0 if 0 <= met < depth_out else halo - u0,
                        halo_w - first_v, width_out + halo_w - first_v, planes, number * plane, rows_u + halo, line,
                    )  # fmt: skip
                    number += 1
            target = (image_group * depth_in + depth) * height_in * width_in
            for phase_h in range(stride_h):
                for phase_w in range(stride_w):
                    phase = starts + (phase_d * stride_h + phase_h) * stride_w + phase_w
                    entry, terms = table[phase], table[phase + 1] - table[phase]
                    y, y_start, y_row = dx, target + (u0 - top) * width_in, width_in
                    if tile > 0:
                        y, y_start, y_row = planes, tiles + phase_w * tile, count_v
                    window_sums(
                        lanes, planes, weights + entry, terms, table, table_start + entry, planes, 0, line, planes, -1,
                        y, y_start, y_row, rows_u, count_v,
                    )  # fmt: skip
                if tile > 0:
                    w0 = first_v * stride_w - left
                    high = min(count_v * stride_w, width_in - w0)
                    for row in range(rows_u):
                        h = (u0 + row) * stride_h + phase_h - top
                        if 0 <= h < height_in:
                            weave_row(
                                lanes, planes, tiles + row * count_v, tile, stride_w, max(0, -w0), high,
                                dx, target + h * width_in + w0,
                            )  # fmt: skip

    integers = (
        "first_u", "count_u", "first_v", "count_v", "slots_d", "period_d", "period_h", "period_w", "hop_h", "halo_w", "band",
        "line", "plane", "tile", "weights", "tiles", "table_start", "starts",
    )  # fmt: skip
    return conv_kernel(body, dtype, ("dy", "w", "dx"), integers)


# ---- the weights' gradient


def weight_grad_launch(call: Call) -> Launch:
    """The row of dw from x, dy."""
    x, dy = call.operands
    dw = call.results[0]
    g, lanes = Geometry.of(x, dw, dy, call.attributes), machine.lanes(dw.dtype)
    band, sizes = _band(g, dw.dtype, 1)
    parts = g.taps_d * sizes[0] * sizes[2], g.filters * g.taps * lanes
    (_, sums), words, elements = scratch_layout(dw.dtype, *parts, table=g.taps)
    refs = [Ref("operand", 0), Ref("operand", 1), Ref("result")]
    return _launch("weight_grad", call, refs, g, [band, *sizes, sums, words], elements)


def weight_grad(dtype: str, lanes: int) -> NumbaKernel:
    """dw[o, tap] = sum over n, pixels of x[n, c, at the pixel's tap] dy[n, o, pixel].

    A grain is a channel: its images one after another, bands of rows likewise, every lane of a vector with a sum of its own.
    """
    from tapeprop.targets.cpu.depthwise import window_products

    stage, places = _stager(lanes), _placer()

    def body(
        x, dy, dw, scratch, words, images, groups, channels, depth_in, height_in, width_in, filters, taps_d, taps_h, taps_w,
        stride_d, stride_h, stride_w, front, top, left, step_d, step_h, step_w, depth_out, height_out, width_out,
        band, phases, line, plane, sums, table_start, worker, workers,
    ):  # fmt: skip
        planes, table = scratch[worker], words[worker]
        places(table, table_start, taps_d, taps_h, taps_w, stride_w, step_h, step_w, phases, line, plane)
        taps, reach = taps_d * taps_h * taps_w, (taps_h - 1) * step_h
        for group in range(groups * worker // workers, groups * (worker + 1) // workers):
            for i in range(filters * taps * lanes):
                planes[sums + i] = 0
            for image_depth in range(images * depth_out):
                image = image_depth // depth_out
                depth, image_group = image_depth - image * depth_out, image * groups + group
                for first_row in range(0, height_out, band):
                    rows = min(band, height_out - first_row)
                    stage(
                        x, image_group * depth_in * height_in * width_in, depth_in, height_in, width_in, taps_d, stride_w, left,
                        step_d, step_w, phases, line, depth * stride_d - front, first_row * stride_h - top,
                        (rows - 1) * stride_h + reach + 1, planes, plane,
                    )  # fmt: skip
                    for i in range(filters):
                        gradients = ((image_group * filters + i) * depth_out + depth) * height_out + first_row
                        window_products(
                            lanes, planes, 0, stride_h * line, taps, table, table_start, dy, gradients * width_out, width_out,
                            rows, width_out, planes, sums + i * taps * lanes,
                        )  # fmt: skip
            for i in range(filters * taps):
                total = planes[sums + i * lanes]
                for lane in range(1, lanes):
                    total += planes[sums + i * lanes + lane]
                dw[group * filters * taps + i] = total

    integers = ("band", "phases", "line", "plane", "sums", "table_start")
    return conv_kernel(body, dtype, ("x", "dy", "dw"), integers)
