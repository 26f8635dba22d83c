"""The walk of a convolution: bands of rows of an image, blocks of filters on each."""

from __future__ import annotations

from tapeprop.ops.conv.cpu.rows import band_stager, conv_kernel, tiled_launch
from tapeprop.ops.conv.geometry import GRAINS, Geometry, band_rows, block_of, pitch, scratch_layout
from tapeprop.ops.op import ITEM_BYTES, Call, Launch, Ref
from tapeprop.targets.cpu.kernel import NumbaKernel


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
    return tiled_launch(f"{__name__}:forward", call, refs, g, integers, elements)


def forward(dtype: str, lanes: int, height: int) -> NumbaKernel:
    """y = conv(x, w) + bias.

    A grain is a block of filters on a band of rows of one image: (filters, taps of all channels) times (taps, pixels).
    """
    from tapeprop.targets.cpu.gemm import B_TABLE, PER_ROW, gemm_panel

    width, addressing, addend, stage = 2 * lanes, B_TABLE, PER_ROW, band_stager(lanes)

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
