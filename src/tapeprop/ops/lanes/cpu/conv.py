"""CPU kernels of the convolutions whose vector lanes are images: rows of outputs, in tiles that read x and w where they lie.

Activations are (G, C, H, W, L), L images side by side in a pixel; weights are (O, C, KH, KW) and read one by one, as broadcasts.
`targets.cpu.lane_correlation` and `lane_weights` hold the microkernels, `tiles` chooses how they are cut. Only the filter's width,
the horizontal stride and the tile are compiled in.

The input's gradient is the same correlation, with the taps turned round: output pixels of one phase of the stride meet the same
taps, and each phase is a correlation of stride 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from tapeprop.ops.lanes.cpu.layout import vector_lanes
from tapeprop.ops.lanes.cpu.tiles import (
    correlation_tile,
    depth_of,
    gradient_grain,
    gradient_rows,
    gradient_tile,
    panel_step,
)
from tapeprop.ops.op import ITEM_BYTES, ArrayType, Attributes, Call, Launch, Ref, launch
from tapeprop.targets.cpu import machine
from tapeprop.targets.cpu.kernel import NumbaKernel

LONGEST = 11  # taps of a filter's row whose gradients are summed side by side

_GEOMETRY = (
    "groups", "channels", "height", "width", "filters", "height_out", "width_out", "taps_h", "stride_h", "top", "left",
)  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """The sizes of a convolution x (G, C, H, W, L), w (O, C, KH, KW) -> y (G, O, OH, OW, L)."""

    groups: int
    channels: int
    height: int
    width: int
    filters: int
    height_out: int
    width_out: int
    taps_h: int
    stride_h: int
    top: int
    left: int
    taps_w: int
    stride_w: int
    images: int

    @classmethod
    def of(cls, x: ArrayType, w: tuple[int, ...], y: ArrayType, attributes: Attributes) -> Geometry:
        (stride_h, stride_w), ((top, _), (left, _)) = attributes["stride"], attributes["padding"]
        groups, channels, height, width, images = x.shape
        filters, height_out, width_out = y.shape[1:4]
        return cls(
            groups, channels, height, width, filters, height_out, width_out, w[2], stride_h, top, left, w[3], stride_w,
            images,
        )  # fmt: skip

    @property
    def integers(self) -> list[int]:
        """The kernels' first integers, in the order of `_GEOMETRY`."""
        return [getattr(self, name) for name in _GEOMETRY]


def _flat(refs: list[tuple[Ref, ArrayType]]) -> list[tuple[Ref, tuple[int, ...]]]:
    """Arrays as the bodies see them: flat."""
    return [(ref, (kind.size,)) for ref, kind in refs]


# ---- correlations: forward and the input's gradient


def forward_launch(call: Call) -> Launch:
    """The row of y = activation(conv(x, w) + b)."""
    x, w = call.operands[:2]
    y, has_bias = call.results[0], len(call.operands) == 3
    g = Geometry.of(x, w.shape, y, call.attributes)
    row = (g.width_out, g.width, -g.left, g.taps_w, g.stride_w)
    lanes = vector_lanes(y.dtype, g.images)
    split, pixels = correlation_tile(machine.vector_registers(), g.images // lanes, g.filters, *row)
    depth = depth_of(ITEM_BYTES[y.dtype], g.channels, g.taps_h, g.taps_w, g.images, split.size, pixels)
    step = panel_step(g.width, split.blocks)
    elements = max(depth * g.taps_h * step * g.images, 1)
    last = len(call.operands) - 1
    arrays = _flat([*((Ref("operand", i), call.operands[i]) for i in (0, 1, last)), (Ref("result"), y)])
    return launch(
        f"{__name__}:forward",
        call,
        [*arrays, (Ref("scratch"), (1, elements))],
        [*g.integers, int(has_bias), int(call["activation"] == "relu"), split.tall, split.blocks, depth, step],
        scratch=(elements, y.dtype),
        dtype=y.dtype,
        lanes=lanes,
        images=g.images,
        outs=split.size,
        fewer=split.fewer,
        pixels=pixels,
        taps=g.taps_w,
        stride=g.stride_w,
    )


def forward(
    dtype: str, lanes: int, images: int, outs: int, fewer: int, pixels: int, taps: int, stride: int
) -> NumbaKernel:
    """y = conv(x, w) + bias, negative numbers made 0 where `floor` is not 0. A grain is a row of a block of channels."""
    from tapeprop.targets.cpu.lane_correlation import BIAS, NOTHING, RESULT, correlate_row
    from tapeprop.targets.cpu.lanes import copy_rows

    forwards = 1

    def body(
        x, w, bias, y, panels, groups, channels, height, width, filters, height_out, width_out, taps_h, stride_h, top,
        left, has_bias, floor, tall, blocks, deep, step, worker, workers,
    ):  # fmt: skip
        plane, plane_out, filter_size = height * width, height_out * width_out, taps_h * taps
        grains = groups * height_out * blocks
        grain, end = grains * worker // workers, grains * (worker + 1) // workers
        while grain < end:
            line, first_block = grain // blocks, grain % blocks
            end_block = min(blocks, first_block + end - grain)
            grain += end_block - first_block
            group, h = line // height_out, line % height_out
            # the rows of the filter that meet the image, from the first of them on
            low, high = max(top - h * stride_h, 0), min(taps_h, height + top - h * stride_h)
            rows, row = max(high - low, 0), h * stride_h - top + low
            # what the next row of outputs sees that this one does not; each block asks for some channels of it
            known, ahead = max(rows - stride_h, 0), stride_h * width
            if h + 1 == height_out:
                known, ahead = 0, channels * plane - row * width
            for c in range(0, channels, deep):
                some, source = min(deep, channels - c), (group * channels + c) * plane + row * width
                begin = RESULT if c > 0 else (BIAS if has_bias else NOTHING)
                cut = floor if c + deep >= channels else 0
                image, x_channel, x_line = x, plane, width
                if step > 0:
                    image, x_channel, x_line = panels[worker], rows * step, step
                    for i in range(some):
                        copy_rows(lanes, images, x, source + i * plane, width, rows, width, image, i * x_channel, step)
                    source = 0
                for block in range(first_block, end_block):
                    o, size = block * outs - max(block - tall, 0), outs if block < tall else fewer
                    first = some * block // blocks
                    share, fresh, old = some * (block + 1) // blocks - first, rows - known, known
                    if step > 0:  # a panel is near already
                        share = 0
                    depth, inner, x_row, w_row = some, rows, x_line, taps
                    if taps_h == 1:  # the inner loop runs over channels
                        depth, inner, x_row, w_row = rows, some, x_channel, filter_size
                        first, share, old, fresh = old, fresh, first, share
                    correlate_row(
                        lanes, images, outs, fewer, pixels, taps, taps, stride, forwards, size, taps,
                        image, source, x_channel, x_row, width, -left,
                        w, (o * channels + c) * filter_size + low * taps, channels * filter_size, filter_size, w_row,
                        depth, inner, bias, o, begin, cut,
                        y, (group * filters + o) * plane_out + h * width_out, plane_out, 1, width_out,
                        ahead, first, share, old, fresh,
                    )  # fmt: skip

    arrays = [(name, dtype, 1) for name in ("x", "w", "bias", "y")]
    integers = (*_GEOMETRY, "has_bias", "floor", "tall", "blocks", "deep", "step")
    return NumbaKernel(body, arrays, integers, scratch=dtype)


# ---- the input's gradient


def input_grad_launch(call: Call) -> Launch:
    """The row of dx from dy, w."""
    dy, w = call.operands
    dx = call.results[0]
    g = Geometry.of(dx, w.shape, dy, call.attributes)
    # a row of the phase of column 0
    taps, count = -(-(g.taps_w - g.left % g.stride_w) // g.stride_w), -(-g.width // g.stride_w)
    row = (count, g.width_out, g.left // g.stride_w - taps + 1, max(taps, 1), 1)
    lanes = vector_lanes(dx.dtype, g.images)
    split, pixels = correlation_tile(machine.vector_registers(), g.images // lanes, g.channels, *row)
    rows = -(-g.taps_h // g.stride_h)
    depth = depth_of(ITEM_BYTES[dx.dtype], g.filters, rows, row[3], g.images, split.size, pixels)
    step = panel_step(g.width_out, split.blocks)
    elements = max(depth * rows * step * g.images, 1)
    arrays = _flat([(Ref("operand", 0), dy), (Ref("operand", 1), w), (Ref("result"), dx)])
    return launch(
        f"{__name__}:input_grad",
        call,
        [*arrays, (Ref("scratch"), (1, elements))],
        [*g.integers, split.tall, split.blocks, depth, step],
        scratch=(elements, dx.dtype),
        dtype=dx.dtype,
        lanes=lanes,
        images=g.images,
        outs=split.size,
        fewer=split.fewer,
        pixels=pixels,
        taps=g.taps_w,
        stride=g.stride_w,
    )


def input_grad(
    dtype: str, lanes: int, images: int, outs: int, fewer: int, pixels: int, taps: int, stride: int
) -> NumbaKernel:
    """dx[c, h, w] = sum over o, kh, kw of w[o, c, kh, kw] dy[o, (h + top - kh) / stride, ...], whole quotients only.

    Row h + top = stride u + phase meets taps kh = phase, phase + stride, ..., the last of which reads the first row of dy.
    A grain is a row of a block of channels.
    """
    from tapeprop.targets.cpu.lane_correlation import NOTHING, RESULT, correlate_row
    from tapeprop.targets.cpu.lanes import copy_rows

    most, one, backwards = -(-taps // stride), 1, -stride  # taps of the first phases; of the others one less
    least = max(taps // stride, 1)

    def body(
        dy, w, dx, panels, groups, channels, height, width, filters, height_out, width_out, taps_h, stride_h, top, left,
        tall, blocks, deep, step, worker, workers,
    ):  # fmt: skip
        plane, plane_out, filter_size = height * width, height_out * width_out, taps_h * taps
        grains = groups * height * blocks
        grain, end = grains * worker // workers, grains * (worker + 1) // workers
        while grain < end:
            line, first_block = grain // blocks, grain % blocks
            end_block = min(blocks, first_block + end - grain)
            grain += end_block - first_block
            group, h = line // height, line % height
            phase_h = (h + top) % stride_h
            count_h = (taps_h - phase_h + stride_h - 1) // stride_h
            start = (h + top) // stride_h - count_h + 1
            low, high = max(-start, 0), min(count_h, height_out - start)
            rows, row = max(high - low, 0), start + low
            # the row of dy after these, or the first one of the next images
            known, ahead = max(rows - 1, 0), width_out
            if row + rows >= height_out:
                known, ahead = 0, filters * plane_out - row * width_out
            for f in range(0, filters, deep):
                some, source = min(deep, filters - f), (group * filters + f) * plane_out + row * width_out
                begin = RESULT if f > 0 else NOTHING
                image, dy_channel, dy_line = dy, plane_out, width_out
                if step > 0:
                    image, dy_channel, dy_line = panels[worker], rows * step, step
                    for i in range(some):
                        copy_rows(
                            lanes, images, dy, source + i * plane_out, width_out, rows, width_out, image, i * dy_channel, step
                        )  # fmt: skip
                    source = 0
                for block in range(first_block, end_block):
                    c, size = block * outs - max(block - tall, 0), outs if block < tall else fewer
                    first = some * block // blocks
                    share, fresh, old = some * (block + 1) // blocks - first, rows - known, known
                    if step > 0:  # a panel is near already
                        share = 0
                    depth, inner, dy_row, w_row = some, rows, dy_line, -stride_h * taps
                    if taps_h <= stride_h:  # one row at most: the inner loop runs over channels
                        depth, inner, dy_row, w_row = rows, some, dy_channel, channels * filter_size
                        first, share, old, fresh = old, fresh, first, share
                    w_first = (f * channels + c) * filter_size + (phase_h + stride_h * (count_h - 1 - low)) * taps
                    for phase_w in range(stride):
                        left_out = (phase_w - left) % stride
                        count_w = (taps - phase_w + stride - 1) // stride
                        seen = depth if count_w > 0 else 0
                        correlate_row(
                            lanes, images, outs, fewer, pixels, most, least, one, backwards, size, max(count_w, 1),
                            image, source, dy_channel, dy_row, width_out, (left_out + left) // stride - count_w + 1,
                            w, w_first + phase_w + stride * (count_w - 1), filter_size, channels * filter_size, w_row,
                            seen, inner, w, 0, begin, 0,
                            dx, (group * channels + c) * plane + h * width + left_out, plane, stride,
                            (width - left_out + stride - 1) // stride,
                            ahead, first, share, old, fresh,
                        )  # fmt: skip

    arrays = [(name, dtype, 1) for name in ("dy", "w", "dx")]
    return NumbaKernel(body, arrays, (*_GEOMETRY, "tall", "blocks", "deep", "step"), scratch=dtype)


# ---- the weights' gradient


def weight_grad_launch(call: Call) -> Launch:
    """The row of dw from x, dy."""
    x, dy = call.operands
    dw = call.results[0]
    g = Geometry.of(x, dw.shape, dy, call.attributes)
    taps = g.taps_w if g.taps_w <= LONGEST else 1
    split, ins = gradient_tile(machine.vector_registers(), g.filters, g.channels, taps)
    lanes = vector_lanes(dw.dtype, g.images)
    deep, apart = gradient_grain(split, ins, g.channels, g.taps_h)
    row = (deep * g.width * g.stride_h + split.size * g.width_out) * g.images * ITEM_BYTES[dw.dtype]
    rows = gradient_rows(row)
    elements = -(-split.blocks // apart) * split.size * deep * g.taps_w * lanes
    arrays = _flat([(Ref("operand", 0), x), (Ref("operand", 1), dy), (Ref("result"), dw)])
    arrays.append((Ref("scratch"), (1, elements)))
    return launch(
        f"{__name__}:weight_grad",
        call,
        arrays,
        [*g.integers, g.taps_w, split.tall, split.blocks, deep, apart, rows],
        scratch=(elements, dw.dtype),
        dtype=dw.dtype,
        lanes=lanes,
        images=g.images,
        outs=split.size,
        fewer=split.fewer,
        ins=ins,
        taps=taps,
        stride=g.stride_w,
    )


def weight_grad(
    dtype: str, lanes: int, images: int, outs: int, fewer: int, ins: int, taps: int, stride: int
) -> NumbaKernel:
    """dw[o, c, kh, kw] = sum over images, pixels of x[c, at the pixel's tap] dy[o, pixel].

    A grain is one row of the filters of `deep` input channels and of a part of the output channels. It is summed lane by lane, some
    rows of pixels after another: those of x stay in the second-level cache while the blocks of output channels pass. The lanes are summed
    last. `taps` of a filter's row are summed at a time.
    """
    from tapeprop.targets.cpu.lane_weights import weight_rows
    from tapeprop.targets.cpu.lanes import lane_sums

    def body(
        x, dy, dw, scratch, groups, channels, height, width, filters, height_out, width_out, taps_h, stride_h, top, left,
        taps_w, tall, blocks, deep, apart, some_rows, worker, workers,
    ):  # fmt: skip
        sums, plane, plane_out, runs = scratch[worker], height * width, height_out * width_out, taps_w // taps
        block_size = outs * deep * taps
        grains = (channels + deep - 1) // deep * apart * taps_h
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            kh, part, c = grain % taps_h, grain // taps_h % apart, grain // taps_h // apart * deep
            tiles, first_block, end_block = (
                min(deep, channels - c) // ins,
                blocks * part // apart,
                blocks * (part + 1) // apart,
            )
            # the rows of dy that see this row of the filters inside the image
            low = max((top - kh + stride_h - 1) // stride_h, 0)
            high = max(min((height - 1 + top - kh) // stride_h + 1, height_out), low)
            for group in range(groups):
                for row in range(low, max(high, low + 1), some_rows):  # once at least, to write zeros
                    for run in range(runs):
                        # the pixels whose taps of this run all lie inside the image
                        first = run * taps - left
                        before = min(max((stride - 1 - first) // stride, 0), width_out)
                        inside = min(max((width - taps - first) // stride + 1, before), width_out)
                        for block in range(first_block, end_block):
                            o, size = block * outs - max(block - tall, 0), outs if block < tall else fewer
                            weight_rows(
                                lanes, images, outs, fewer, ins, taps, stride, size,
                                x, (group * channels + c) * plane + (row * stride_h - top + kh) * width, plane,
                                stride_h * width, width, first,
                                dy, (group * filters + o) * plane_out + row * width_out, plane_out, width_out,
                                before, inside, width_out, min(some_rows, high - row), tiles,
                                group == 0 and row == low, sums, ((block - first_block) * runs + run) * block_size,
                            )  # fmt: skip
            for block in range(first_block, end_block):
                o, size = block * outs - max(block - tall, 0), outs if block < tall else fewer
                for run in range(runs):
                    place = ((block - first_block) * runs + run) * block_size
                    for tile in range(tiles):
                        for m in range(size):
                            for i in range(ins):
                                channel = c + tile * ins + i
                                target = (((o + m) * channels + channel) * taps_h + kh) * taps_w + run * taps
                                lane_sums(lanes, sums, place, taps, dw, target)
                                place += taps

    arrays = [(name, dtype, 1) for name in ("x", "dy", "dw")]
    integers = (*_GEOMETRY, "taps_w", "tall", "blocks", "deep", "apart", "some_rows")
    return NumbaKernel(body, arrays, integers, scratch=dtype)
