"""A matrix product as an op describes it to `targets.cuda.gemm`: where the elements of a, b and c lie.

So a convolution reads its images where they lie, as the matrix that they would be if every pixel were copied for each tap
("implicit" im2col). What an op says of places are device functions, which are part of the kernel's loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeprop.targets.cuda.language import cuda
from tapeprop.targets.cuda.library import SIMULATED

__all__ = ["FAR", "SIZES", "Operand", "Product", "beyond", "divide", "i32", "inline", "u32", "u64"]

#: What makes an element's place lie outside of all limits: added where m, n or k is past its end.
FAR = 1 << 29
#: The integers that every product's row begins with. part: elements of a part of k, in c; bias_*: steps in the bias, the last
#: after every `alike` products.
SIZES = ("m", "n", "tiles_m", "tiles_n", "splits", "part", "biased", "bias_m", "bias_n", "bias_batch", "alike")

i32, u32, u64 = np.int32, np.uint32, np.uint64
# The simulator's device functions take a lock at each call: functions without `cuda` in them stay plain there.
inline: Any = (lambda function: function) if SIMULATED else cuda.jit(device=True, forceinline=True)


@dataclass(frozen=True)
class Operand:
    """How the elements of a or b are found. x is the row m of a or the column n of b; all are device functions.

    outer(sizes, place, x) -> (distance, u, v): what x contributes to an element's place.
    inner(sizes, place, entry) -> (distance, u, v): what k contributes; entry is (k, u, 0, 0), u being FAR where k is past its
    end, which has to go into the result's u; or what `Product.terms` gives, if `tabulated`.
    limits(sizes) -> (U, V): with the sums of distances, u and v, the element is memory[distance] if 0 <= u < U and 0 <= v < V,
    else 0. along_k: whether elements with neighbouring k are neighbours in memory; else those with neighbouring x are.
    """

    along_k: bool
    outer: Callable
    inner: Callable
    limits: Callable
    tabulated: bool = False


@dataclass(frozen=True)
class Product:
    """A product's addressing. sizes: the row's integers by name; batch: which of several products a block works on.

    place(sizes, batch) -> `places` int64, which the other functions get as `place`. depth(sizes, place): terms of a sum.
    row(sizes, place, m), column(sizes, place, n): their sum is the result's index; a negative column is left out.
    terms(sizes, place, k) -> four int32, tabulated in shared memory for many k at a time, so that it may divide; where k is
    past its end, all are FAR.
    """

    places: int
    place: Callable
    depth: Callable
    left: Operand
    right: Operand
    row: Callable
    column: Callable
    terms: Callable | None = None


@inline
def beyond(u):
    """FAR if u is that of a k past its end, else 0."""
    return FAR if u >= FAR // 2 else 0


@inline
def divide(number, size):
    """number // size for 0 <= number < 2^32, 0 < size < 2^32: a division of 64 bits would be a call, and take registers for it."""
    return np.int64(u32(number) // u32(size))
