"""How a reduction is cut for a GPU: the launches of the kernel `cuda.tiles`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tapeprop.ops.op import ITEM_BYTES, NARROW, Device, Launch, Ref, cuda_launch, inverse

__all__ = ["Place", "tiled"]

TERMS = 8  # of a thread, at least, where there are as many: below that, joining the lanes takes longer than the sum
MOST_TERMS = 32  # of a thread where blocks are left idle; then the terms are cut into parts
NARROWEST = 8  # outputs side by side in a tile: 32 bytes of float32, what memory gives at once


class Place(NamedTuple):
    """An operand, a result or scratch of `size` elements."""

    ref: Ref
    size: int
    dtype: str


def tiled(
    mode: str,
    source: Place,
    target: Place,
    kept: Sequence[int],
    reduced: Sequence[int],
    inner: int,
    device: Device,
    *,
    divisor: int = 1,
) -> list[Launch]:
    """target = source, read as (k0, r0, k1, r1, k2, r2, inner), reduced over all r: one launch, or two where there are parts.

    mode: "total", a sum in float64 divided by `divisor`; "squares", a sum of squares; "max", "min".
    """
    shape = [size for pair in zip(kept, reduced, strict=True) for size in pair]
    outputs, terms = target.size, math.prod(reduced)
    tile = tile_of(outputs, terms, inner, device)
    parts = parts_of(outputs, terms, tile, device)
    if parts == 1:
        return [_launch(mode, source, target, [*shape, inner], outputs, tile, 1, divisor, device)]
    size, dtype = parts * outputs, source.dtype if mode in ("max", "min") else "float64"
    scratch = Place(Ref("scratch"), size, dtype)
    joining = mode if mode in ("max", "min") else "total"
    tile_of_parts = tile_of(outputs, parts, outputs, device)
    nbytes = size * ITEM_BYTES[dtype]
    told: dict[str, Any] = {"label": f"{mode} of parts", "traffic": source.size * ITEM_BYTES[source.dtype] + nbytes}
    rest: dict[str, Any] = {"flops": size, "traffic": nbytes + target.size * ITEM_BYTES[target.dtype]}
    return [
        _launch(mode, source, scratch, [*shape, inner], outputs, tile, parts, 1, device, **told),
        _launch(
            joining,
            scratch,
            target,
            [1, 1, 1, 1, 1, parts, outputs],
            outputs,
            tile_of_parts,
            1,
            divisor,
            device,
            **rest,
        ),
    ]


def tile_of(outputs: int, terms: int, inner: int, device: Device) -> tuple[int, int]:
    """(width, lanes), powers of two whose product is a block: outputs of a tile, threads of each.

    Where terms lie side by side, so do lanes, and each output has them. Where outputs do, lanes only make up for outputs too
    few to busy the device.
    """
    most, wanted = device.block, -(-terms // TERMS)
    if inner > 1:
        most //= min(NARROWEST, device.block // 2, _power_of_two(inner))
        wanted = min(wanted, -(-device.block * device.blocks // max(outputs, 1)))
    lanes = min(_power_of_two(wanted), most)
    return device.block // lanes, lanes


def parts_of(outputs: int, terms: int, tile: tuple[int, int], device: Device) -> int:
    """Into how many parts the terms are cut, so that no block is idle: 1 where that is not worth a second launch."""
    width, lanes = tile
    tiles = -(-outputs // width)
    if terms <= MOST_TERMS * lanes or 2 * tiles > device.blocks:
        return 1
    return min(-(-2 * terms // (MOST_TERMS * lanes)), device.blocks // max(tiles, 1))


def _power_of_two(n: int) -> int:
    """The smallest that is not below n."""
    return 1 << (n - 1).bit_length()


def _launch(
    mode: str,
    source: Place,
    target: Place,
    shape: Sequence[int],
    outputs: int,
    tile: tuple[int, int],
    parts: int,
    divisor: int,
    device: Device,
    **told: Any,
) -> Launch:
    k0, r0, k1, r1, k2, r2, inner = shape
    width, lanes = tile
    tiles, terms = -(-outputs // width), r0 * r1 * r2
    across = inner > 1
    grid, block = device.rows(tiles * parts)
    scratch = next(((place.size, place.dtype) for place in (source, target) if place.ref.kind == "scratch"), None)
    integers = [outputs, tiles * parts, width, lanes, (width if across else lanes).bit_length() - 1]
    integers += [terms, -(-terms // parts), divisor, r0]
    for size in (tiles, inner, k1, r1, k2, r2):
        integers += [size, inverse(max(size, 1))]
    return cuda_launch(
        "tapeprop.ops.reduce.cuda:tiles",
        [(place.ref, (place.size,)) for place in (source, target)],
        integers,
        grid=grid,
        block=block,
        scratch=scratch,
        **told,
        source=source.dtype,
        to=target.dtype,
        mode=mode,
        even=k0 * r0 * k1 * r1 == 1,
        across=across,
        slots=device.block,
        wide=source.size >= NARROW,
    )
