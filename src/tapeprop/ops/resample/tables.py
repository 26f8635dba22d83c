"""Which elements of an axis, with which weights, make each element of a resampled one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tapeprop.errors import ShapeError

#: ONNX' names (Resize, coordinate_transformation_mode): where in the operand element i of the result lies.
COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
NEAREST_MODES = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
#: Keys 1981 has -0.5; torch and ONNX take this.
CUBIC_COEFF_A = -0.75


@dataclass(frozen=True, eq=False)
class Table:
    """A linear map of an axis of `length` elements: y[i] = sum of weights[t] x[sources[t]], offsets[i] <= t < offsets[i + 1].

    offsets: (outputs + 1,) int64 from 0 on; sources: (terms,) int64, 0 <= each < length; weights: (terms,) float64. Every output
    may have another number of terms, also none.
    """

    length: int
    offsets: np.ndarray
    sources: np.ndarray
    weights: np.ndarray

    @property
    def outputs(self) -> int:
        """The number of elements of the result."""
        return self.offsets.size - 1

    @cached_property
    def transposed(self) -> Table:
        """The transposed map; the terms of each of its results in the order of what they read."""
        rows = np.repeat(np.arange(self.outputs), np.diff(self.offsets))
        order = np.argsort(self.sources, kind="stable")
        counts = np.bincount(self.sources, minlength=self.length)
        return Table(self.outputs, _offsets(counts), rows[order], self.weights[order])


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _table(length: int, sources: np.ndarray, weights: np.ndarray) -> Table:
    """Of arrays (outputs, terms); places outside of the axis are those at its ends."""
    outputs, terms = sources.shape
    inside = np.clip(sources, 0, length - 1).astype(np.int64)
    return Table(length, _offsets(np.full(outputs, terms)), inside.reshape(-1), weights.reshape(-1).astype(np.float64))


def picking(length: int, sources: np.ndarray) -> Table:
    """y[i] = x[sources[i]]."""
    return _table(length, np.asarray(sources)[:, None], np.ones((len(sources), 1)))


def adaptive(length: int, outputs: int) -> Table:
    """Means of the windows floor(i length / outputs) to ceil((i + 1) length / outputs) (torch.nn.AdaptiveAvgPool1d)."""
    i = np.arange(outputs)
    first, last = i * length // outputs, -((i + 1) * -length // outputs)
    counts = last - first
    sources = np.concatenate([np.arange(a, b) for a, b in zip(first, last)])
    return Table(length, _offsets(counts), sources.astype(np.int64), np.repeat(1.0 / counts, counts))


def coordinates(length: int, outputs: int, scale: float | None, how: str) -> np.ndarray:
    """Where in an axis of `length` elements each of `outputs` lies, as ONNX' Resize says; scale None: outputs / length.

    ShapeError for a way that is none of `COORDINATES`.
    """
    i = np.arange(outputs, dtype=np.float64)

    def shrunk(places: np.ndarray) -> np.ndarray:
        # divided once, so that whole places are exact: 49 * (1 / 49) is not 1
        return places * length / outputs if scale is None else places / scale

    if how == "asymmetric":
        return shrunk(i)
    if how == "half_pixel":
        return shrunk(i + 0.5) - 0.5
    if how == "pytorch_half_pixel":
        return shrunk(i + 0.5) - 0.5 if outputs > 1 else np.zeros(outputs)
    if how == "align_corners":
        return i * (length - 1) / (outputs - 1) if outputs > 1 else np.zeros(outputs)
    if how == "half_pixel_symmetric":
        adjustment = 1.0 if scale is None else outputs / (length * scale)
        return length / 2 * (1 - adjustment) + shrunk(i + 0.5) - 0.5
    raise ShapeError(f"resize: expected coordinates to be one of {', '.join(COORDINATES)}, got {how!r}")


def nearest(length: int, places: np.ndarray, rounding: str) -> Table:
    """The element nearest to each place. ShapeError for a rounding that is none of `NEAREST_MODES`."""
    if rounding == "floor":
        found = np.floor(places)
    elif rounding == "ceil":
        found = np.ceil(places)
    elif rounding == "round_prefer_floor":
        found = np.ceil(places - 0.5)
    elif rounding == "round_prefer_ceil":
        found = np.floor(places + 0.5)
    else:
        raise ShapeError(f"resize: expected nearest_mode to be one of {', '.join(NEAREST_MODES)}, got {rounding!r}")
    return picking(length, found)


def linear(length: int, places: np.ndarray) -> Table:
    """The two neighbours of each place, weighted by their nearness."""
    places = np.clip(places, 0, length - 1)  # beyond the ends both neighbours are the end
    low = np.minimum(np.floor(places), max(length - 2, 0))
    part = places - low
    return _table(length, np.stack([low, low + 1], 1), np.stack([1 - part, part], 1))


def cubic(length: int, places: np.ndarray, a: float) -> Table:
    """The four neighbours of each place by cubic convolution (Keys 1981, eq. 4 with -1/2 = a); ends are repeated."""
    low = np.floor(places)
    part = places - low

    def near(t: np.ndarray) -> np.ndarray:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: np.ndarray) -> np.ndarray:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    weights = np.stack([far(part + 1), near(part), near(1 - part), far(2 - part)], 1)
    return _table(length, low[:, None] + np.arange(-1, 3), weights)


def reflecting(length: int, before: int, after: int) -> Table:
    """Padding with what lies behind the ends, the ends themselves left out."""
    places = np.abs(np.arange(-before, length + after))
    return picking(length, np.where(places < length, places, 2 * (length - 1) - places))


def replicating(length: int, before: int, after: int) -> Table:
    """Padding with the elements at the ends."""
    return picking(length, np.arange(-before, length + after))  # held within the axis


def circular(length: int, before: int, after: int) -> Table:
    """Padding with the other end."""
    return picking(length, np.arange(-before, length + after) % length)
