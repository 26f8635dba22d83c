"""The roofs of the machine, and the least time that a row needs under them.

The roofline model (Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures",
CACM 2009), with a roof for each cache (Ilic, Pratas and Sousa, "Cache-aware roofline model: upgrading the loft", IEEE CAL 2014).
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from tapeprop.profiler.profile import Roofs
from tapeprop.runtime.roofs import WELL_INSIDE, measure_roofs

__all__ = ["RowRoof", "level_names", "machine_roofs", "most_measured", "roof_seconds", "row_roof"]

_lock = threading.Lock()
_T = TypeVar("_T")
_measured: dict[int, Roofs] = {}


def machine_roofs(workers: int) -> Roofs:
    """What this machine reaches with one worker and with `workers`; measured once per process, in 0.2 to 0.5 s.

    What could not be measured is left out: where another thread keeps the team busy, all with several workers.
    ValueError for a number of workers that the team cannot have.
    """
    with _lock:
        if workers not in _measured:
            found = measure_roofs(workers)
            roofs = Roofs(found.flops, found.bandwidth)
            if workers not in found.bandwidth:
                return roofs  # next time the team may be free
            _measured[workers] = roofs
        return _measured[workers]


def _after_fork() -> None:
    # Whoever held it in the parent is not there to let go.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def level_names(levels: int) -> list[str]:
    """What to call so many levels of `Roofs.bandwidth`: "L1", "L2", ..., and the last one "memory"."""
    return [f"L{i + 1}" for i in range(levels - 1)] + ["memory"] * (levels > 0)


@dataclass(frozen=True)
class RowRoof:
    """The least time of a row.

    seconds: 0 where the row neither computes nor moves anything, or nothing was measured. bound: "compute" or "bandwidth", whichever
    takes longer; "" for neither. level: where its data fit, "L1", "L2", ... or "memory", "" where not measured. peak: operations per
    second; bandwidth: bytes per second, of that level; both of all workers, NaN where not measured.
    """

    seconds: float
    bound: str
    level: str
    peak: float
    bandwidth: float


def row_roof(roofs: Roofs, flops: int, traffic: int, dtype: str, workers: int) -> RowRoof:
    """The least time in which `workers` workers could do `flops` operations of `dtype` and move `traffic` bytes.

    The larger of flops / peak and traffic / bandwidth, as if one hid behind the other. The bandwidth is that of the nearest level that
    holds traffic / workers bytes: what the row reads may lie farther away, so a row can need longer, and should not need less.
    A row that one worker does alone has one, however many the tape has. Where so many workers were not measured, the most measured
    below count; where the dtype was not, operations cost nothing.
    """
    peak = most_measured({n: rate for (kind, n), rate in roofs.flops.items() if kind == dtype}, workers, math.nan)
    levels = most_measured(roofs.bandwidth, workers, ())
    place = _level(levels, traffic / max(workers, 1))
    bandwidth = levels[place][1] if levels else math.nan
    level = level_names(len(levels))[place] if levels else ""
    computing = flops / peak if peak > 0 else 0.0
    moving = traffic / bandwidth if bandwidth > 0 else 0.0
    seconds = max(computing, moving)
    bound = "" if not seconds else "compute" if computing > moving else "bandwidth"
    return RowRoof(seconds, bound, level, peak, bandwidth)


def roof_seconds(roofs: Roofs, flops: int, traffic: int, dtype: str, workers: int) -> float:
    """`row_roof(...).seconds`."""
    return row_roof(roofs, flops, traffic, dtype, workers).seconds


def most_measured(measured: Mapping[int, _T], workers: int, otherwise: _T) -> _T:
    """What was measured with so many workers, or with the most below."""
    counts = [n for n in measured if n <= workers]
    return measured[max(counts)] if counts else otherwise


def _level(levels: tuple[tuple[int, float], ...], nbytes: float) -> int:
    """The number of the nearest level that holds so many bytes; the last one holds any."""
    for i, (size, _) in enumerate(levels[:-1]):
        if nbytes <= WELL_INSIDE * size:
            return i
    return max(len(levels) - 1, 0)
