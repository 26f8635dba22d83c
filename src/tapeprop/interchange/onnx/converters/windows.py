"""Windows that slide over images, as Conv, ConvTranspose and the pools describe them: kernel, strides, dilations, pads, auto_pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tapeprop.interchange.onnx.model import Node
from tapeprop.ir import Dim, Size, Tensor, UndecidedError, current
from tapeprop.ir.dims import text

__all__ = ["Windows", "known_size", "single", "spatial_axes", "windows"]

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


@dataclass(frozen=True)
class Windows:
    """One number for each spatial axis, of pads a pair. ceil_mode: whether a last window may reach beyond the pads."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    ceil_mode: bool = False

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    @property
    def extents(self) -> tuple[int, ...]:
        """What a window covers of each axis, gaps included."""
        return tuple((taps - 1) * step + 1 for taps, step in zip(self.kernel, self.dilations))


def windows(node: Node, x: Tensor, kernel: Sequence[int]) -> Windows:
    """The windows of a node over x (N, C, *spatial). GraphError for attributes that make no sense.

    With auto_pad SAME there are ceil(size / stride) of them along an axis, whatever ceil_mode says; with VALID they lie within x.
    """
    rank = spatial_axes(node, x)
    kernel = numbers(node, "kernel_shape", kernel, rank, 1)
    strides = numbers(node, "strides", node.get("strides"), rank, 1)
    steps = numbers(node, "dilations", node.get("dilations"), rank, 1)
    auto = auto_pad(node)
    ceil_mode = bool(node.get("ceil_mode", 0)) and auto == "NOTSET"
    found = Windows(kernel, strides, steps, given_pads(node, rank), ceil_mode)
    if auto in ("NOTSET", "VALID"):
        return found
    sides = []
    for axis, (stride, extent) in enumerate(zip(strides, found.extents), start=2):
        total = extent - 1
        if stride > 1:
            size = known_size(node, x, axis)
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        less, more = total // 2, total - total // 2
        sides.append((less, more) if auto == "SAME_UPPER" else (more, less))
    return Windows(kernel, strides, steps, tuple(sides))


def spatial_axes(node: Node, x: Tensor) -> int:
    """How many axes x has behind (N, C). GraphError where there are not one to three."""
    if not 3 <= x.ndim <= 5:
        raise node.fail("a tensor (N, C, ...) with one to three axes more", f"shape {text(x.shape)}")
    return x.ndim - 2


def auto_pad(node: Node) -> str:
    """How padding is found. GraphError for an unknown way, and for pads beside one."""
    found = node.get("auto_pad", "NOTSET")
    if found not in AUTO_PADS:
        raise node.fail(f"auto_pad to be one of {', '.join(AUTO_PADS)}", repr(found))
    if found != "NOTSET" and any(node.get("pads", ())):
        raise node.fail("either pads or auto_pad", f"pads {node.get('pads')} and auto_pad {found!r}", "leave out one")
    return found


def given_pads(node: Node, rank: int) -> tuple[tuple[int, int], ...]:
    """The attribute pads, [starts..., ends...], as a pair for each axis; zeros where it is not given."""
    found = numbers(node, "pads", node.get("pads", [0] * 2 * rank), 2 * rank, 0)
    return tuple(zip(found[:rank], found[rank:]))


def numbers(node: Node, name: str, given: Any, count: int, least: int) -> tuple[int, ...]:
    """So many whole numbers; ones where none are given. GraphError."""
    found = (1,) * count if given is None else tuple(given)
    if len(found) != count or any(number < least for number in found):
        raise node.fail(f"{name} to be {count} numbers >= {least}", list(found))
    return found


def known_size(node: Node, x: Tensor, axis: int) -> int:
    """The size of an axis on which the computation itself depends. GraphError where the model leaves it open.

    In a trace UndecidedError instead, upon which the program is recorded with the sizes of the call.
    """
    size: Size = x.shape[axis]
    if not isinstance(size, Dim):
        return size
    if current() is not None:
        raise UndecidedError(f"the size {size} of axis {axis} for {node.op}")
    raise node.fail(
        f"axis {axis} of {text(x.shape)} to have a known size",
        f"the open size {size}",
        "give shapes={input: (None, 3, 224, 224)} when loading",
    )


def single(node: Node, reason: str) -> None:
    """GraphError where a second output is asked for."""
    if any(node.outputs[1:]):
        raise node.fail("the first output alone to be used", f"output {', '.join(node.outputs[1:])!r}", reason)
