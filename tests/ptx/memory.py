"""Memory of a made-up GPU, which knows what may be touched, and by whom: one arena for global memory, one for each block's shared.

Every access is checked: inside live memory, on a boundary of its size, shared memory written before it is read, and no race, that
is no element which one thread writes and another touches with nothing between that orders the two.
"""

from __future__ import annotations

import numpy as np

__all__ = ["Arena", "Fault", "Shared", "Watch"]

_GAP = 256  # bytes between two allocations
_SEVERAL = 1 << 23  # in place of a thread, plus the number of a block: several of its threads
_WHO = np.uint64((1 << 24) - 1)  # the part of a stamp that tells who; all of its bits: threads of several blocks


class Fault(Exception):
    """A kernel did what a GPU would punish, or leave to chance."""


class Watch:
    """Who touched each element of some memory last, and when; elements are told by the number of the word they begin in.

    A stamp is (run, epoch, who) in 24, 16 and 24 bits: what a thread did in an earlier run is known to all others, and what it did
    before the last barrier of its block to those of its block. who: a thread, several threads of a block, or several of many.
    """

    def __init__(self, words: int):
        self.writes = np.zeros(words, np.uint64)
        self.reads = np.zeros(words, np.uint64)

    @staticmethod
    def stamps(run: int, epochs: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Of threads (from 0) at an epoch each."""
        if threads[-1] >= _SEVERAL:
            raise ValueError(f"a launch of more than {_SEVERAL} threads")
        return np.uint64(run << 40) | (epochs.astype(np.uint64) << np.uint64(24)) | threads.astype(np.uint64)

    def read(self, words: np.ndarray, stamps: np.ndarray, block: int) -> np.ndarray:
        """Notes reads; which of them race with a write. block: threads of a block."""
        races = _unordered(self.writes[words], stamps, block)
        before = self.reads[words]
        beside = _unordered(before, stamps, block)
        self.reads[words] = np.where(beside, _merged(before, stamps, block), stamps)
        there = self.reads[words]
        beside = _unordered(there, stamps, block)  # by others in this very step
        if beside.any():
            self.reads[words[beside]] = _merged(there[beside], stamps[beside], block)
        return races

    def write(self, words: np.ndarray, stamps: np.ndarray, block: int) -> np.ndarray:
        """Notes writes; which of them race with a read or a write."""
        races = _unordered(self.writes[words], stamps, block) | _unordered(self.reads[words], stamps, block)
        self.writes[words] = stamps
        return races | (self.writes[words] != stamps)


def _unordered(before: np.ndarray, now: np.ndarray, block: int) -> np.ndarray:
    """Which of the threads that stamp `now` had others beside them in `before`: in the same run, with no barrier between."""
    who, thread = before & _WHO, now & _WHO
    same_block = _block_of(who, block) == thread // np.uint64(block)
    later = (before >> np.uint64(24)) < (now >> np.uint64(24))  # the epoch: the run is the same
    return (before >> np.uint64(40) == now >> np.uint64(40)) & (who != thread) & ~(same_block & later)


def _block_of(who: np.ndarray, block: int) -> np.ndarray:
    return np.where(who >= _SEVERAL, who - np.uint64(_SEVERAL), who // np.uint64(block))


def _merged(before: np.ndarray, now: np.ndarray, block: int) -> np.ndarray:
    """The stamp of both."""
    mine = (now & _WHO) // np.uint64(block)
    several = np.where(_block_of(before & _WHO, block) == mine, np.uint64(_SEVERAL) + mine, _WHO)
    return (now & ~_WHO) | several


class Arena:
    """Global memory: `nbytes` bytes of the host from `address` on, of which allocations are parts with gaps between."""

    def __init__(self, nbytes: int = 1 << 28):
        raw = np.zeros(nbytes + 256, np.uint8)
        skip = -raw.ctypes.data % 256
        self.bytes = raw[skip : skip + nbytes]
        self.address = self.bytes.ctypes.data
        self.live = np.zeros(nbytes, np.bool_)
        self.watch = Watch(nbytes // 4)
        self.runs = 0  # launches that have touched it
        self.free = [(0, nbytes)]  # (offset, bytes), in order
        self.sizes: dict[int, int] = {}  # {address: bytes asked for}
        self._views = {kind: self.bytes.view(kind) for kind in _KINDS}

    def allocate(self, nbytes: int) -> int:
        """The address of zeroed memory on a boundary of 256 bytes. MemoryError where there is no room."""
        wanted = -(-max(nbytes, 1) // 256) * 256 + _GAP
        for i, (offset, size) in enumerate(self.free):
            if size >= wanted:
                self.free[i : i + 1] = [(offset + wanted, size - wanted)] if size > wanted else []
                self.bytes[offset : offset + nbytes] = 0
                self.live[offset : offset + nbytes] = True
                self.sizes[self.address + offset] = nbytes
                return self.address + offset
        raise MemoryError

    def release(self, address: int) -> None:
        """Takes memory back; nothing where it has been."""
        nbytes = self.sizes.pop(address, None)
        if nbytes is None:
            return
        offset = address - self.address
        self.live[offset : offset + nbytes] = False
        self.free.append((offset, -(-max(nbytes, 1) // 256) * 256 + _GAP))
        self.free.sort()
        merged: list[tuple[int, int]] = []
        for begin, size in self.free:
            if merged and sum(merged[-1]) == begin:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((begin, size))
        self.free = merged

    def elements(self, addresses: np.ndarray, kind, count: int, what: str) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the elements at addresses, the array they are of). Fault where `count` of them may not be touched."""
        size = np.dtype(kind).itemsize
        offsets = addresses - np.uint64(self.address)
        inside = offsets <= np.uint64(self.bytes.size - size * count)
        safe = np.where(inside, offsets, np.uint64(0))
        inside &= self.live[safe] & self.live[safe + np.uint64(size * count - 1)]
        if not inside.all():
            raise Fault(f"{what}: address {int(addresses[~inside][0]):#x} is in no live memory")
        if (offsets % np.uint64(size * count)).any():
            raise Fault(f"{what}: an address is on no boundary of {size * count} bytes")
        return offsets // np.uint64(size), self._views[kind]


_KINDS = (np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64, np.float32, np.float64)


class Shared:
    """The shared memory of `blocks` blocks, an array each of theirs with a gap behind it; addresses are offsets, from 256 on."""

    def __init__(self, symbols, blocks: int):
        self.places: dict[str, int] = {}
        at = 256
        spans = []
        for symbol in symbols:
            at = -(-at // symbol.align) * symbol.align
            self.places[symbol.name] = at
            spans.append((at, symbol.nbytes))
            at += symbol.nbytes + 64
        self.nbytes = -(-at // 64) * 64
        self.live = np.zeros(self.nbytes, np.bool_)
        for begin, nbytes in spans:
            self.live[begin : begin + nbytes] = True
        self.bytes = np.zeros(self.nbytes * blocks, np.uint8)
        self.watch = Watch(self.nbytes * blocks // 4)
        self._views = {kind: self.bytes.view(kind) for kind in _KINDS}

    def elements(self, addresses: np.ndarray, kind, count: int, block: np.ndarray, what: str):
        """As `Arena.elements`; block: which block's memory is meant, for each address."""
        size = np.dtype(kind).itemsize
        inside = addresses <= np.uint64(self.nbytes - size * count)
        safe = np.where(inside, addresses, np.uint64(0))
        inside &= self.live[safe] & self.live[safe + np.uint64(size * count - 1)]
        if not inside.all():
            raise Fault(f"{what}: offset {int(addresses[~inside][0])} is in no shared array")
        if (addresses % np.uint64(size * count)).any():
            raise Fault(f"{what}: an offset is on no boundary of {size * count} bytes")
        return (addresses + block.astype(np.uint64) * np.uint64(self.nbytes)) // np.uint64(size), self._views[kind]
