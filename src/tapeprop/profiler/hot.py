"""The hottest instructions of a fit that is running, from samples of its native calls."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tapeprop.runtime.recorder import RecordedRun, Recorder, listen, stop_listening

if TYPE_CHECKING:
    from tapeprop.runtime.executable import Executable

__all__ = ["HotRow", "Sampler"]


@dataclass(frozen=True)
class HotRow:
    """The instructions of one op in one layer and phase. seconds: of a step, of the busiest worker. share: of all instructions."""

    phase: str
    op: str
    layer: str
    seconds: float
    share: float


class _Listener(Recorder):
    """Hears the fit of the thread that made it, and keeps no spans."""

    def __init__(self) -> None:
        super().__init__(limit=1)
        self._thread = threading.get_ident()

    def add(self, run: RecordedRun) -> None:
        if run.executable.name == "fit" and threading.get_ident() == self._thread:
            super().add(run)


@dataclass
class _Heard:
    """Of one tape: seconds of each row in all, and steps."""

    seconds: np.ndarray
    steps: int = 0


class Sampler:
    """Records between start() and stop(), as often as wanted, and adds up.

    calls: native calls of steps that were recorded. arena: bytes of values of the largest tape that was met.
    """

    def __init__(self) -> None:
        self.calls = self.arena = 0
        self._heard: dict[Executable, _Heard] = {}
        self._listener: _Listener | None = None

    def start(self) -> None:
        """Records the runs of this thread from now on."""
        if self._listener is None:
            self._listener = _Listener()
            listen(self._listener)

    def stop(self) -> None:
        """Records no more, and adds what was recorded. Nothing where it does not record."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        stop_listening(listener)
        totals, _, _ = listener.heard()
        self.calls += bool(totals)
        for executable, found in totals.items():
            heard = self._heard.setdefault(executable, _Heard(np.zeros(len(found.calls))))
            heard.seconds += np.max(found.busy, axis=1, initial=0) * listener.seconds_per_tick
            heard.steps += int(found.calls[-1] or found.calls.max()) if len(found.calls) else 0
            self.arena = max(self.arena, executable.tape.arena_bytes)

    def top(self, count: int) -> list[HotRow]:
        """The `count` that take longest, longest first; fewer where less has been recorded.

        Of the tape that was recorded in most steps, which is that of whole batches: a smaller last one runs once in an epoch.
        """
        if not self._heard:
            return []
        executable, heard = max(self._heard.items(), key=lambda item: item[1].steps)
        groups: dict[tuple[str, str, str], float] = defaultdict(float)
        for row, seconds in zip(executable.tape.rows, heard.seconds.tolist(), strict=True):
            groups[row.step.span, row.label, row.step.instruction.node] += seconds
        total, steps = sum(groups.values()) or 1.0, max(heard.steps, 1)
        longest = sorted(groups.items(), key=lambda item: -item[1])[:count]
        return [HotRow(*key, seconds / steps, seconds / total) for key, seconds in longest if seconds > 0]
