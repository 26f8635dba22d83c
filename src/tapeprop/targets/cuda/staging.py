"""Uploads through page-locked memory: the caller's array is free at once, and the copy to the device goes on meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np

from tapeprop.targets.cuda.nvidia_calls import Calls

__all__ = ["Staging"]

#: Bytes of a slot, and how many there are: small uploads lie side by side in one, a large one goes through several.
SLOT_BYTES = 4 << 20
SLOTS = 4
_LINE = 64


class Staging:
    """A ring of slots. A slot is written again once the copies out of it are done, which an event tells.

    memory: page-locked, uint8 (slots * slot_bytes,). The caller sees to it that one thread at a time is inside.
    """

    def __init__(self, calls: Calls, stream: Any, memory: np.ndarray, slot_bytes: int = SLOT_BYTES):
        self._calls = calls
        self._stream = stream
        self._memory = memory
        self._address = memory.__array_interface__["data"][0]
        self._slot_bytes = slot_bytes
        self._slots = memory.nbytes // slot_bytes
        untimed = int(calls.bindings.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self._events = [calls("cuEventCreate", untimed) for _ in range(self._slots)]
        self._left = [False] * self._slots  # whether an event has been recorded
        self._slot = self._at = 0

    def send(self, address: int, content: np.ndarray) -> None:
        """Copies bytes, uint8 (n,), to the device; `content` may change when this returns."""
        done = 0
        while done < content.nbytes:
            if self._at >= self._slot_bytes:
                self._turn()
            count = min(self._slot_bytes - self._at, content.nbytes - done)
            begin = self._slot * self._slot_bytes + self._at
            self._memory[begin : begin + count] = content[done : done + count]
            self._calls("cuMemcpyHtoDAsync", address + done, self._address + begin, count, self._stream)
            self._at += -(-count // _LINE) * _LINE
            done += count

    def _turn(self) -> None:
        """On to the next slot, once it is free."""
        self._calls("cuEventRecord", self._events[self._slot], self._stream)
        self._left[self._slot] = True
        self._slot = (self._slot + 1) % self._slots
        self._at = 0
        if self._left[self._slot]:
            self._calls("cuEventSynchronize", self._events[self._slot])
