"""The walk of the gradient in the weights: rows of taps on panels of filters, summed over bands of all images."""

from __future__ import annotations

from tapeprop.ops.conv.cpu.rows import band_stager, conv_kernel, tiled_launch
from tapeprop.ops.conv.geometry import BLOCK_ROWS, PIXELS, ROW_GRAIN, Geometry, band_rows, pitch, scratch_layout
from tapeprop.ops.op import ITEM_BYTES, Call, Launch, Ref
from tapeprop.targets.cpu.kernel import NumbaKernel
from tapeprop.targets.cpu.tiles import microtile


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
    return tiled_launch(f"{__name__}:weight_grad", call, refs, g, integers, elements)


def weight_grad(dtype: str, lanes: int, height: int) -> NumbaKernel:
    """dw[o, c, kh, kw] = sum over n, pixels of x[n, c, at the pixel's tap] dy[n, o, pixel].

    A grain is a few rows (c, kh, kw) on a panel of filters o; a worker does its grains of one panel together, up to a block
    of rows: per band (rows, pixels) times (pixels, filters), the gradients transposed so that filters lie in vectors. The sums
    of the bands, each a block of terms or two, are added in order.
    """
    from tapeprop.targets.cpu.gemm import A_ROWS, ROWS, gemm_panel
    from tapeprop.targets.cpu.panels import transpose_panel

    width, addressing, addend, stage, row_grain = 2 * lanes, A_ROWS, ROWS, band_stager(lanes), ROW_GRAIN

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
