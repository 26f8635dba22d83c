"""CPU kernels of the conversions between images and batch lanes: blocks transposed in registers."""

from __future__ import annotations

from tapeprop.ops.op import Call, Launch, Ref, launch
from tapeprop.targets.cpu import machine
from tapeprop.targets.cpu.kernel import NumbaKernel

GRAIN = 512  # elements of an image that one worker moves at a time, a multiple of every number of lanes


def vector_lanes(dtype: str, images: int) -> int:
    """Elements of the vectors that pixels of `images` elements are cut into."""
    return min(machine.lanes(dtype), images)


def conversion_launch(builder: str, call: Call, groups: int, images: int) -> Launch:
    """The row that moves `groups` groups of `images` images from one layout to the other."""
    x, y = call.operands[0], call.results[0]
    arrays = [(Ref("operand", 0), (x.size,)), (Ref("result"), (y.size,))]
    integers = [groups, x.size // (groups * images)]
    name = f"{__name__}:{builder}"
    return launch(name, call, arrays, integers, dtype=x.dtype, lanes=vector_lanes(x.dtype, images), images=images)


def to_lanes(dtype: str, lanes: int, images: int) -> NumbaKernel:
    """y (groups, size, images) = x (groups, images, size)."""
    from tapeprop.targets.cpu.panels import transpose_panel

    grain_size = GRAIN

    def body(x, y, groups, size, worker, workers):
        chunks = (size + grain_size - 1) // grain_size
        grains = groups * chunks
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            group, first = grain // chunks, grain % chunks * grain_size
            place = group * size * images
            for image in range(0, images, lanes):
                transpose_panel(
                    lanes, x, place + image * size + first, size, lanes, min(grain_size, size - first),
                    y, place + first * images + image, images,
                )  # fmt: skip

    return NumbaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], ("groups", "size"))


def from_lanes(dtype: str, lanes: int, images: int) -> NumbaKernel:
    """y (groups, images, size) = x (groups, size, images)."""
    from tapeprop.targets.cpu.panels import transpose_panel

    grain_size = GRAIN

    def body(x, y, groups, size, worker, workers):
        chunks = (size + grain_size - 1) // grain_size
        grains = groups * chunks
        for grain in range(grains * worker // workers, grains * (worker + 1) // workers):
            group, first = grain // chunks, grain % chunks * grain_size
            place, end = group * size * images, min(first + grain_size, size)
            whole = end - (end - first) % lanes
            for i in range(first, whole, lanes):
                transpose_panel(lanes, x, place + i * images, images, lanes, images, y, place + i, size)
            # a vector would reach into the next image
            for image in range(images):
                for i in range(whole, end):
                    y[place + image * size + i] = x[place + i * images + image]

    return NumbaKernel(body, [("x", dtype, 1), ("y", dtype, 1)], ("groups", "size"))
