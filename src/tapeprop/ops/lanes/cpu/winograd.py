"""CPU kernels of the Winograd convolution: the filters' transform, and the correlation of images in batch lanes.

A grain is some tiles of one row of tiles: their points are made for all channels, multiplied point by point, and brought back, all in
the worker's scratch, which is cut to the second-level cache. `targets.cpu.winograd` holds the three steps.
"""

from __future__ import annotations

from tapeprop.ops.lanes.cpu.layout import vector_lanes
from tapeprop.ops.lanes.cpu.tiles import Blocks
from tapeprop.ops.op import ITEM_BYTES, Call, Launch, Ref, launch
from tapeprop.targets.cpu import machine
from tapeprop.targets.cpu.kernel import NumbaKernel

BLOCK = 64  # filters that are transformed side by side
NEAR = 288 << 10  # bytes of the second-level cache that the points of some tiles may fill


def filters_launch(call: Call) -> Launch:
    """The row of u (16, O, C) from w (O, C, 3, 3)."""
    w, u = call.operands[0], call.results[0]
    arrays = [(Ref("operand", 0), (w.size,)), (Ref("result"), (u.size,)), (Ref("scratch"), (1, 16 * BLOCK))]
    return launch(f"{__name__}:filters", call, arrays, scratch=(16 * BLOCK, u.dtype), dtype=u.dtype)


def filters(dtype: str) -> NumbaKernel:
    """u[:, filter] = G g G^T. A grain is a block of filters, whose points are made side by side and then written in rows.

    Written one by one, 16 points a power of two apart would take each other's place in the cache.
    """
    half, block = 0.5, BLOCK

    def body(w, u, scratch, worker, workers):
        count, made = u.size // 16, scratch[worker]
        blocks = (count + block - 1) // block
        for grain in range(blocks * worker // workers, blocks * (worker + 1) // workers):
            first = grain * block
            some = min(block, count - first)
            for n in range(some):
                g = w[9 * (first + n) : 9 * (first + n) + 9]
                for i in range(4):
                    a, b, c = g[0], g[1], g[2]
                    if i == 1:
                        a, b, c = half * ((a + g[6]) + g[3]), half * ((b + g[7]) + g[4]), half * ((c + g[8]) + g[5])
                    elif i == 2:
                        a, b, c = half * ((a + g[6]) - g[3]), half * ((b + g[7]) - g[4]), half * ((c + g[8]) - g[5])
                    elif i == 3:
                        a, b, c = g[6], g[7], g[8]
                    place = 4 * i * block + n
                    made[place] = a
                    made[place + block] = half * ((a + c) + b)
                    made[place + 2 * block] = half * ((a + c) - b)
                    made[place + 3 * block] = c
            for point in range(16):
                source = made[point * block : point * block + some]
                target = u[point * count + first : point * count + first + some]
                for n in range(some):
                    target[n] = source[n]

    return NumbaKernel(body, [("w", dtype, 1), ("u", dtype, 1)], scratch=dtype)


def correlation_launch(call: Call) -> Launch:
    """The row of y from x, u and a bias or none."""
    x, y = call.operands[0], call.results[0]
    groups, channels, height, width, images = x.shape
    outs, height_out, width_out = y.shape[1:4]
    (top, _), (left, _) = call["padding"]
    lanes = vector_lanes(y.dtype, images)
    parts = images // lanes
    room = machine.vector_registers() - (3 if machine.vector_registers() >= 32 else 2)
    split = Blocks(outs, -(-outs // max(room // parts - 1, 1)))
    tile_bytes = 16 * (channels + outs) * images * ITEM_BYTES[y.dtype]
    across = (width_out + 1) // 2
    some = min(max(NEAR // tile_bytes, 1), across)
    # distances of an odd number of pixels: at powers of two all points would lie in one set of the cache
    v_slot, m_slot = some * channels | 1, some * outs | 1
    elements = (1 + 16 * (v_slot + m_slot)) * images
    last = len(call.operands) - 1
    arrays: list[tuple[Ref, tuple[int, ...]]] = [(Ref("operand", i), (call.operands[i].size,)) for i in (0, 1, last)]
    arrays += [(Ref("result"), (y.size,)), (Ref("scratch"), (1, elements))]
    integers = [
        groups, channels, height, width, outs, height_out, width_out, top, left, int(last == 2),
        int(call["activation"] == "relu"), int(call["turned"]), split.tall, split.blocks, some, v_slot, m_slot,
    ]  # fmt: skip
    return launch(
        f"{__name__}:correlation",
        call,
        arrays,
        integers,
        scratch=(elements, y.dtype),
        dtype=y.dtype,
        lanes=lanes,
        images=images,
        most=split.size,
        fewer=split.fewer,
    )


def correlation(dtype: str, lanes: int, images: int, most: int, fewer: int) -> NumbaKernel:
    """y = activation(correlation of x with the filters whose points u holds + bias)."""
    from tapeprop.targets.cpu.winograd import point_products, points_to_tiles, tiles_to_points

    def body(
        x, u, bias, y, scratch, groups, channels, height, width, outs, height_out, width_out, top, left, has_bias, floor,
        turned, tall, blocks, some, v_slot, m_slot, worker, workers,
    ):  # fmt: skip
        points, size = scratch[worker], channels * outs
        for i in range(images):
            points[i] = 0  # the pixel that stands for those outside the image
        v, m = 1, 1 + 16 * v_slot
        down, across = (height_out + 1) // 2, (width_out + 1) // 2
        chunks = (across + some - 1) // some
        u_out, u_channel = (1, outs) if turned else (channels, 1)
        grains = groups * down * chunks
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            line, first = grain // chunks, grain % chunks * some
            group, row, tiles = line // down, line % down * 2, min(some, across - first)
            tiles_to_points(
                lanes, images, x, group * channels * height * width, height * width, height, width, row - top,
                2 * first - left, channels, tiles, 0, points, v, v_slot,
            )  # fmt: skip
            for point in range(16):
                i, j = point // 4, point % 4
                if turned:  # a filter turned round has the points 0 and 3 of each axis exchanged
                    i, j = (3 - i if i % 3 == 0 else i), (3 - j if j % 3 == 0 else j)
                for block in range(blocks):
                    o, use = block * most - max(block - tall, 0), most if block < tall else fewer
                    point_products(
                        lanes, images, most, fewer, use, points, v + point * v_slot, channels, tiles,
                        u, (4 * i + j) * size + o * u_out, u_out, u_channel, points, m + point * m_slot + o, outs,
                    )  # fmt: skip
            points_to_tiles(
                lanes, images, points, m, m_slot, outs, tiles, bias, has_bias, floor,
                y, group * outs * height_out * width_out, height_out * width_out, height_out, width_out, row, 2 * first,
            )  # fmt: skip

    arrays = [(name, dtype, 1) for name in ("x", "u", "bias", "y")]
    integers = (
        "groups", "channels", "height", "width", "outs", "height_out", "width_out", "top", "left", "has_bias", "floor",
        "turned", "tall", "blocks", "some", "v_slot", "m_slot",
    )  # fmt: skip
    return NumbaKernel(body, arrays, integers, scratch=dtype)
