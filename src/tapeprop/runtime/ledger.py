"""Counts of what this process has compiled and planned so far, for profiles: exact, and the same in each run of a program.

lowerings: programs made from a graph. plans, plan_hits: of calls, those that had to plan for their sizes, and those that found their
plan. seconds of all of that: lowering_seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_figures: dict[str, float] = {"lowerings": 0, "plans": 0, "plan_hits": 0, "lowering_seconds": 0.0}


def count(name: str) -> None:
    """One more of `name`."""
    _figures[name] += 1


@contextmanager
def lowering() -> Iterator[None]:
    """What happens inside is counted as time of lowering."""
    start = time.perf_counter()
    try:
        yield
    finally:
        _figures["lowering_seconds"] += time.perf_counter() - start


def figures() -> dict[str, float]:
    """All of them now."""
    from tapeprop.runtime.linker import compile_seconds

    return {**_figures, "compile_seconds": compile_seconds()}
