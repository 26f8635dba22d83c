"""What the walks of the convolutions share: the row of an instruction, the kernel of a body, and the staging of a band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tapeprop.ops.conv.geometry import FIELDS, Geometry
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


def tiled_launch(
    builder: str, call: Call, refs: Sequence[Ref], geometry: Geometry, integers: Sequence[int], elements: int
) -> Launch:
    """As `conv_launch`, for a builder that takes the sizes of the microtile."""
    sizes = microtile(call.results[0].dtype)
    return conv_launch(builder, call, refs, geometry, integers, elements, **sizes)


def conv_kernel(body: Callable, dtype: str, arrays: Sequence[str], integers: Sequence[str]) -> NumbaKernel:
    """The kernel of a body whose row `conv_launch` makes."""
    kinds = [(name, dtype, 1) for name in arrays]
    kinds += [("scratch", dtype, 2), ("words", "int64", 2)]
    return NumbaKernel(body, kinds, (*FIELDS, *integers))


def band_stager(lanes: int) -> Callable:
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
