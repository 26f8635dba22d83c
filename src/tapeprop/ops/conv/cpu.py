"""CPU kernels of the convolutions: three walks around one microkernel, without a column matrix.

A band of rows of the image is staged in the worker's scratch as zero-padded planes, one for each phase of the stride, so that
every tap of the filter reads a plane at a fixed distance. Pixels are numbered along a whole plane, padding included; then a
vector of neighbouring pixels is a vector of memory for every tap, and the product's table of distances is the only trace of
the filter's shape. Columns that fall into the padding between two rows are computed and dropped. (The idea is the shifted
product of Anderson et al., "Low-memory GEMM-based convolution algorithms", 2017, with a microkernel that sums over taps.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from tapeprop.ops.op import ITEM_BYTES, ArrayType, Attributes, Call, Launch, Ref, launch
from tapeprop.targets.cpu.kernel import NumbaKernel
from tapeprop.targets.cpu.tiles import microtile

STAGED_BYTES = 192 * 1024  # of a band: planes and the weights that meet them share the second-level cache
GRAINS = 8  # that a convolution is cut into where its shape allows
PIXELS = 512  # of a band whose gradients the weight gradient lays out anew
BLOCK_ROWS = 72  # of the weight gradient that share one such layout, at most

_GEOMETRY = (
    "images", "groups", "channels", "height_in", "width_in", "filters", "taps_h", "taps_w", "stride_h", "stride_w",
    "top", "left", "step_h", "step_w", "height_out", "width_out",
)  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """The sizes of a convolution x (N, C, H, W), w (O, C / groups, KH, KW) -> y (N, O, OH, OW).

    channels and filters are those of one group; step is the dilation.
    """

    images: int
    groups: int
    channels: int
    height_in: int
    width_in: int
    filters: int
    taps_h: int
    taps_w: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    step_h: int
    step_w: int
    height_out: int
    width_out: int

    @classmethod
    def of(cls, x: ArrayType, w: ArrayType, y: ArrayType, attributes: Attributes) -> Geometry:
        groups, ((top, _), (left, _)) = attributes["groups"], attributes["padding"]
        return cls(
            x.shape[0], groups, w.shape[1], *x.shape[2:], w.shape[0] // groups, *w.shape[2:], *attributes["stride"],
            top, left, *attributes["dilation"], *y.shape[2:],
        )  # fmt: skip

    @property
    def integers(self) -> list[int]:
        """The kernels' first integers, in the order of `_GEOMETRY`."""
        return [getattr(self, name) for name in _GEOMETRY]

    @property
    def taps(self) -> int:
        return self.taps_h * self.taps_w

    @property
    def halo(self) -> tuple[int, int]:
        """How far the last tap lies below and to the right of the first, in pixels of y."""
        return (self.taps_h - 1) * self.step_h // self.stride_h, (self.taps_w - 1) * self.step_w // self.stride_w

    @property
    def slots(self) -> tuple[int, int]:
        """How many phases of the stride the taps read, along each axis: tap k reads slot k % slots."""
        return (
            min(self.taps_h, self.stride_h // gcd(self.stride_h, self.step_h)),
            min(self.taps_w, self.stride_w // gcd(self.stride_w, self.step_w)),
        )

    @property
    def direct(self) -> bool:
        """Whether x can be read where it lies, its rows being the planes': no padding, no stride."""
        inside = self.height_out + self.halo[0] <= self.height_in and self.width_out + self.halo[1] <= self.width_in
        return (self.stride_h, self.stride_w, self.top, self.left) == (1, 1, 0, 0) and inside


def _bands(rows: int, halo: int, row_bytes: int, units: int, limit: int | None = None) -> int:
    """Rows of a band: few enough to stage and to give every worker a band where `units` are few; at least 1."""
    most = max(STAGED_BYTES // max(row_bytes, 1) - halo, 4)
    if limit is not None:
        most = min(most, limit)
    wanted = max(1, min(-(-GRAINS // units), rows // 4))
    return max(1, min(rows, most, -(-rows // wanted)))


def _blocks(count: int, units: int) -> int:
    """Channels that one worker computes from a staged band: all, where there are bands enough."""
    parts = max(1, min(-(-GRAINS // units), count // 16))
    return -(-count // (parts * 4)) * 4 if parts > 1 else count


def _whole(elements: int) -> int:
    """Elements rounded up to whole cache lines, with a vector of slack behind them."""
    return -(-elements // 16) * 16 + 16


def _scratch(dtype: str, *parts: int, table: int) -> tuple[list[int], int, int]:
    """(start of each part, start of the table in int64 words, elements in all) of a worker's scratch."""
    starts, total = [], 0
    for part in parts:
        starts.append(total)
        total += _whole(part)
    words = total * ITEM_BYTES[dtype] // 8
    return starts, words, total + _whole(table * 8 // ITEM_BYTES[dtype])


def _launch(
    builder: str, call: Call, refs: Sequence[Ref], geometry: Geometry, integers: Sequence[int], elements: int
) -> Launch:
    """A row: arrays flat, then scratch twice, as elements and as int64 words."""
    dtype = call.results[0].dtype
    types = {"operand": call.operands, "result": call.results}
    arrays: list = [(ref, (types[ref.kind][ref.index].size,)) for ref in refs]
    arrays += [(Ref("scratch"), (1, elements)), (Ref("scratch"), (1, elements * ITEM_BYTES[dtype] // 8))]
    return launch(
        f"{__name__}:{builder}",
        call,
        arrays,
        [*geometry.integers, *integers],
        scratch=(elements, dtype),
        dtype=dtype,
        **microtile(dtype),
    )


def _kernel(body, dtype: str, arrays: Sequence[str], integers: Sequence[str]) -> NumbaKernel:
    kinds = [(name, dtype, 1) for name in arrays]
    kinds += [("scratch", dtype, 2), ("words", "int64", 2)]
    return NumbaKernel(body, kinds, (*_GEOMETRY, *integers))


# ---- forward


def forward_launch(call: Call) -> Launch:
    """The row of y = conv(x, w) + b."""
    x, w = call.operands[:2]
    y, g = call.results[0], Geometry.of(*call.operands[:2], call.results[0], call.attributes)
    item, (halo_h, halo_w), (slots_h, slots_w) = ITEM_BYTES[y.dtype], g.halo, g.slots
    pitch = g.width_in if g.direct else g.width_out + halo_w
    planes = g.channels * slots_h * slots_w
    band = _bands(g.height_out, halo_h, planes * pitch * item, g.images * g.groups)
    bands = -(-g.height_out // band)
    plane = g.height_in * g.width_in if g.direct else (band + halo_h) * pitch
    block = _blocks(g.filters, g.images * g.groups * bands)
    (start,), words, elements = _scratch(y.dtype, 0 if g.direct else planes * plane, table=g.channels * g.taps)
    assert start == 0
    bias = Ref("operand", len(call.operands) - 1)
    integers = [slots_h, slots_w, band, block, pitch, plane, int(g.direct), 1 if len(call.operands) == 3 else -1, words]
    return _launch("forward", call, [Ref("operand", 0), Ref("operand", 1), bias, Ref("result")], g, integers, elements)


def forward(dtype: str, lanes: int, height: int) -> NumbaKernel:
    """y = conv(x, w) + bias. A grain is a block of filters on a band of rows of one image: per image (filters, taps of all
    channels) times (taps, pixels)."""
    from tapeprop.targets.cpu.gemm import B_TABLE, PER_ROW, gemm_panel, stage_row

    width, addressing, addend = 2 * lanes, B_TABLE, PER_ROW

    def body(
        x, w, bias, y, scratch, words, images, groups, channels, height_in, width_in, filters, taps_h, taps_w,
        stride_h, stride_w, top, left, step_h, step_w, height_out, width_out,
        slots_h, slots_w, band, block, pitch, plane, direct, bias_m, table_start, worker, workers,
    ):  # fmt: skip
        planes, table = scratch[worker], words[worker]
        depth = channels * taps_h * taps_w
        entry = table_start
        for c in range(channels):
            for kh in range(taps_h):
                for kw in range(taps_w):
                    slot = (c * slots_h + kh % slots_h) * slots_w + kw % slots_w
                    table[entry] = slot * plane + kh * step_h // stride_h * pitch + kw * step_w // stride_w
                    entry += 1
        bands, blocks = (height_out + band - 1) // band, (filters + block - 1) // block
        halo = (taps_h - 1) * step_h // stride_h
        grains = images * groups * bands * blocks
        staged = -1
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            place = grain // blocks
            first_filter = (grain - place * blocks) * block
            image_group = place // bands
            first_row = (place - image_group * bands) * band
            rows = min(band, height_out - first_row)
            source_image = image_group * channels * height_in * width_in
            source, source_start = planes, 0
            if direct:
                source, source_start = x, source_image + first_row * width_in
            elif place != staged:
                staged = place
                for c in range(channels):
                    for slot in range(slots_h * slots_w):
                        phase_h, phase_w = slot // slots_w * step_h % stride_h, slot % slots_w * step_w % stride_w
                        target = (c * slots_h * slots_w + slot) * plane
                        low = (left - phase_w + stride_w - 1) // stride_w
                        high = (width_in - 1 + left - phase_w) // stride_w + 1
                        for u in range(rows + halo):
                            h = (first_row + u) * stride_h + phase_h - top
                            line = source_image + (c * height_in + h) * width_in + phase_w - left
                            last = high if 0 <= h < height_in else low
                            stage_row(lanes, x, line, stride_w, low, last, planes, target + u * pitch, pitch)
            o = image_group % groups * filters + first_filter
            target = ((image_group // groups * groups * filters + o) * height_out + first_row) * width_out
            pixels = (rows - 1) * pitch + width_out
            for q in range(0, pixels, width):
                row = q // pitch
                gemm_panel(
                    lanes, height, addressing, addend, min(block, filters - first_filter), min(width, pixels - q), depth,
                    w, o * depth, depth, 1, source, source_start + q, 0, table, table_start, 0, bias, o, bias_m,
                    y, target + row * width_out, height_out * width_out, row * pitch - q, width_out, pitch, width_out,
                )  # fmt: skip

    integers = ("slots_h", "slots_w", "band", "block", "pitch", "plane", "direct", "bias_m", "table_start")
    return _kernel(body, dtype, ("x", "w", "bias", "y"), integers)


# ---- the input's gradient


def input_grad_launch(call: Call) -> Launch:
    """The row of dx from dy, w."""
    dy, w = call.operands
    dx = call.results[0]
    g = Geometry.of(dx, w, dy, call.attributes)
    item, (halo_h, halo_w), tile = ITEM_BYTES[dx.dtype], g.halo, microtile(dx.dtype)
    first_u, first_v = g.top // g.stride_h, g.left // g.stride_w
    count_u = (g.height_in - 1 + g.top) // g.stride_h - first_u + 1
    count_v = (g.width_in - 1 + g.left) // g.stride_w - first_v + 1
    pitch = count_v + halo_w
    band = _bands(count_u, halo_h, g.filters * pitch * item, g.images * g.groups)
    bands = -(-count_u // band)
    plane = (band + halo_h) * pitch
    block = _blocks(g.channels, g.images * g.groups * bands)
    padded = -(-g.channels // tile["lanes"]) * tile["lanes"]
    parts = (g.filters * plane, g.filters * g.taps * padded, block * 2 * tile["lanes"])
    (_, weights, tile_start), words, elements = _scratch(dx.dtype, *parts, table=g.filters * g.taps)
    integers = [first_u, count_u, first_v, count_v, band, block, pitch, plane, padded, weights, tile_start, words]
    refs = [Ref("operand", 0), Ref("operand", 1), Ref("result")]
    return _launch("input_grad", call, refs, g, integers, elements)


def input_grad(dtype: str, lanes: int, height: int) -> NumbaKernel:
    """dx[n, c, h, w] = sum over o, kh, kw of w[o, c, kh, kw] dy[n, o, (h + top - kh step) / stride, ...], whole quotients only.

    Pixels h + top = stride u + phase of one phase meet the same taps, and tap kh reads row u - kh step // stride: each phase
    is a correlation of stride 1. A grain is a block of channels on a band of u of one image.
    """
    from tapeprop.targets.cpu.gemm import B_TABLE, NO_ADDEND, gemm_panel, spread_row, stage_row, transpose_panel

    width, addressing, addend = 2 * lanes, B_TABLE, NO_ADDEND

    def body(
        dy, w, dx, scratch, words, images, groups, channels, height_in, width_in, filters, taps_h, taps_w,
        stride_h, stride_w, top, left, step_h, step_w, height_out, width_out,
        first_u, count_u, first_v, count_v, band, block, pitch, plane, padded, weights, tile, table_start,
        worker, workers,
    ):  # fmt: skip
        planes, table = scratch[worker], words[worker]
        halo_h, halo_w = (taps_h - 1) * step_h // stride_h, (taps_w - 1) * step_w // stride_w
        taps = taps_h * taps_w
        bands, blocks = (count_u + band - 1) // band, (channels + block - 1) // block
        grains = groups * images * bands * blocks
        staged, packed = -1, -1
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            place = grain // blocks
            first_channel = (grain - place * blocks) * block
            group_image = place // bands
            group, u0 = group_image // images, first_u + (place - group_image * bands) * band
            image, end_u = group_image - group * images, min(u0 + band, first_u + count_u)
            if group != packed:
                # the taps of a phase one after another, and for each a row of weights, one for every channel
                packed = group
                entry = 0
                for phase in range(stride_h * stride_w):
                    for o in range(filters):
                        source = (group * filters + o) * channels * taps
                        for kh in range(taps_h):
                            for kw in range(taps_w):
                                if kh * step_h % stride_h * stride_w + kw * step_w % stride_w == phase:
                                    shift_h, shift_w = kh * step_h // stride_h, kw * step_w // stride_w
                                    distance = (halo_h - shift_h) * pitch + halo_w - shift_w
                                    table[table_start + entry] = o * plane + distance
                                    for c in range(0, channels, lanes):
                                        transpose_panel(
                                            lanes, w, source + c * taps + kh * taps_w + kw, taps,
                                            min(lanes, channels - c), 1, planes, weights + entry * padded + c, padded,
                                        )  # fmt: skip
                                    entry += 1
            if place != staged:
                staged = place
                skipped = halo_w - first_v
                for o in range(filters):
                    line = ((image * groups + group) * filters + o) * height_out
                    for u in range(end_u - u0 + halo_h):
                        h = u0 - halo_h + u
                        high = width_out + skipped if 0 <= h < height_out else skipped
                        stage_row(
                            lanes, dy, (line + h) * width_out - skipped, 1, skipped, high, planes, o * plane + u * pitch,
                            pitch,
                        )  # fmt: skip
            rows = min(block, channels - first_channel)
            target = ((image * groups + group) * channels + first_channel) * height_in
            entry = 0
            for phase in range(stride_h * stride_w):
                phase_h, phase_w = phase // stride_w, phase % stride_w
                depth_h, depth_w = 0, 0
                for kh in range(taps_h):
                    depth_h += kh * step_h % stride_h == phase_h
                for kw in range(taps_w):
                    depth_w += kw * step_w % stride_w == phase_w
                depth = filters * depth_h * depth_w
                low_u = max(u0, (top - phase_h + stride_h - 1) // stride_h)
                high_u = min(end_u, (height_in - 1 + top - phase_h) // stride_h + 1)
                low_v = max(first_v, (left - phase_w + stride_w - 1) // stride_w)
                high_v = min(first_v + count_v, (width_in - 1 + left - phase_w) // stride_w + 1)
                length = high_v - low_v
                pixels = (high_u - low_u - 1) * pitch + length if high_u > low_u and length > 0 else 0
                source = (low_u - u0) * pitch + low_v - first_v
                h = low_u * stride_h + phase_h - top
                corner = (target + h) * width_in + low_v * stride_w + phase_w - left
                for q in range(0, pixels, width):
                    row, columns = q // pitch, min(width, pixels - q)
                    # stride 1: straight to dx, run by run; else through a tile, whose pixels are then spread
                    c, c_start, c_m, run = dx, corner + row * width_in, height_in * width_in, row * pitch - q
                    run_length = length
                    if stride_h * stride_w > 1:
                        c, c_start, c_m, run, run_length = planes, tile, width, 0, width
                    gemm_panel(
                        lanes, height, addressing, addend, rows, columns, depth,
                        planes, weights + entry * padded + first_channel, 1, padded, planes, source + q, 0,
                        table, table_start + entry, 0, planes, 0, -1,
                        c, c_start, c_m, run, run_length, max(pitch, run_length), width_in,
                    )  # fmt: skip
                    if stride_h * stride_w > 1:
                        low = row * pitch - q
                        while low < columns:
                            first, last = max(low, 0), min(low + length, columns)
                            if first < last:
                                place_in = corner + row * stride_h * width_in + (first - low) * stride_w
                                for i in range(rows):
                                    spread_row(
                                        lanes, planes, tile + i * width + first, last - first,
                                        dx, place_in + i * height_in * width_in, stride_w,
                                    )  # fmt: skip
                            low += pitch
                            row += 1
                entry += depth

    integers = (
        "first_u", "count_u", "first_v", "count_v", "band", "block", "pitch", "plane", "padded", "weights", "tile",
        "table_start",
    )  # fmt: skip
    return _kernel(body, dtype, ("dy", "w", "dx"), integers)


# ---- the weights' gradient


def weight_grad_launch(call: Call) -> Launch:
    """The row of dw from x, dy."""
    x, dy = call.operands
    dw = call.results[0]
    g = Geometry.of(x, dw, dy, call.attributes)
    item, (halo_h, halo_w), (slots_h, slots_w) = ITEM_BYTES[dw.dtype], g.halo, g.slots
    width, rows = 2 * microtile(dw.dtype)["lanes"], g.channels * g.taps
    blocks = max(1, min(-(-rows // 24), max(4, -(-rows // BLOCK_ROWS))))
    block = -(-rows // (8 * blocks)) * 8
    staged = min(g.channels, (block - 2) // g.taps + 2)  # channels that a block of rows may touch
    pitch = g.width_in if g.direct else g.width_out + halo_w
    row_bytes = staged * slots_h * slots_w * pitch * item
    band = _bands(g.height_out, halo_h, row_bytes, GRAINS, max(1, PIXELS // g.width_out))
    plane = g.height_in * g.width_in if g.direct else (band + halo_h) * pitch
    planes = 0 if g.direct else staged * slots_h * slots_w * plane
    parts = (planes, band * g.width_out * width, block * width)
    (_, panel, sums), words, elements = _scratch(dw.dtype, *parts, table=band * g.width_out + block)
    integers = [slots_h, slots_w, band, block, pitch, plane, int(g.direct), panel, sums, words]
    refs = [Ref("operand", 0), Ref("operand", 1), Ref("result")]
    return _launch("weight_grad", call, refs, g, integers, elements)


def weight_grad(dtype: str, lanes: int, height: int) -> NumbaKernel:
    """dw[o, c, kh, kw] = sum over n, pixels of x[n, c, at the pixel's tap] dy[n, o, pixel].

    A grain is a block of rows (c, kh, kw) on a panel of filters o: per band (rows, pixels) times (pixels, filters), the
    gradients transposed so that filters lie in vectors. The sums of the bands are added in order.
    """
    from tapeprop.targets.cpu.gemm import A_TABLE, ROWS, gemm_panel, stage_row, transpose_panel

    width, addressing, addend = 2 * lanes, A_TABLE, ROWS

    def body(
        x, dy, dw, scratch, words, images, groups, channels, height_in, width_in, filters, taps_h, taps_w,
        stride_h, stride_w, top, left, step_h, step_w, height_out, width_out,
        slots_h, slots_w, band, block, pitch, plane, direct, panel, sums, table_start, worker, workers,
    ):  # fmt: skip
        planes, table = scratch[worker], words[worker]
        taps = taps_h * taps_w
        depth = channels * taps
        rows_start = table_start + band * width_out
        for h in range(band):
            for v in range(width_out):
                table[table_start + h * width_out + v] = h * pitch + v
        halo, slots = (taps_h - 1) * step_h // stride_h, slots_h * slots_w
        panels, blocks = (filters + width - 1) // width, (depth + block - 1) // block
        grains = groups * panels * blocks
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            place = grain // blocks
            first = (grain - place * blocks) * block
            group = place // panels
            first_filter = (place - group * panels) * width
            rows, columns = min(block, depth - first), min(width, filters - first_filter)
            first_channel, end_channel = first // taps, (first + rows - 1) // taps + 1
            for i in range(rows):
                c, tap = (first + i) // taps - first_channel, (first + i) % taps
                kh, kw = tap // taps_w, tap % taps_w
                slot = (c * slots_h + kh % slots_h) * slots_w + kw % slots_w
                table[rows_start + i] = slot * plane + kh * step_h // stride_h * pitch + kw * step_w // stride_w
            for image in range(images):
                source_image = ((image * groups + group) * channels + first_channel) * height_in * width_in
                gradients = (image * groups + group) * filters + first_filter
                for first_row in range(0, height_out, band):
                    band_rows = min(band, height_out - first_row)
                    pixels = band_rows * width_out
                    source, source_start = planes, 0
                    if direct:
                        source, source_start = x, source_image + first_row * width_in
                    else:
                        for c in range(end_channel - first_channel):
                            for slot in range(slots):
                                phase_h, phase_w = (
                                    slot // slots_w * step_h % stride_h,
                                    slot % slots_w * step_w % stride_w,
                                )
                                target = (c * slots + slot) * plane
                                low = (left - phase_w + stride_w - 1) // stride_w
                                high = (width_in - 1 + left - phase_w) // stride_w + 1
                                for u in range(band_rows + halo):
                                    h = (first_row + u) * stride_h + phase_h - top
                                    line = source_image + (c * height_in + h) * width_in + phase_w - left
                                    last = high if 0 <= h < height_in else low
                                    stage_row(lanes, x, line, stride_w, low, last, planes, target + u * pitch, pitch)
                    for j in range(0, columns, lanes):
                        line = ((gradients + j) * height_out + first_row) * width_out
                        transpose_panel(
                            lanes,
                            dy,
                            line,
                            height_out * width_out,
                            min(lanes, columns - j),
                            pixels,
                            planes,
                            panel + j,
                            width,
                        )
                    fresh = image == 0 and first_row == 0
                    gemm_panel(
                        lanes, height, addressing, addend, rows, columns, pixels, source, source_start, 0, 0,
                        planes, panel, width, table, table_start, rows_start, planes, sums, -1 if fresh else width,
                        planes, sums, width, 0, columns, columns, 0,
                    )  # fmt: skip
            for j in range(columns):
                target = (group * filters + first_filter + j) * depth + first
                for i in range(rows):
                    dw[target + i] = planes[sums + i * width + j]

    integers = (
        "slots_h", "slots_w", "band", "block", "pitch", "plane", "direct", "panel", "sums", "table_start",
    )  # fmt: skip
    return _kernel(body, dtype, ("x", "dy", "dw"), integers)
