"""The walk of the gradient in the images: a correlation of stride 1 for each phase of the stride, woven into rows."""

from __future__ import annotations

from math import gcd

from tapeprop.ops.conv.cpu.rows import conv_kernel, tiled_launch
from tapeprop.ops.conv.geometry import GRAINS, Geometry, band_rows, block_of, pitch, scratch_layout
from tapeprop.ops.op import ITEM_BYTES, Call, Launch, Ref
from tapeprop.targets.cpu.kernel import NumbaKernel
from tapeprop.targets.cpu.tiles import microtile


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
    return tiled_launch(f"{__name__}:input_grad", call, refs, g, integers, elements)


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
