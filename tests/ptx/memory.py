"""Memory of a made-up GPU, which knows what may be touched, and by whom: one arena for global memory, one for each block's shared.

Every access is checked: inside live memory, on a boundary of its size, shared memory written before it is read, and no race, that
is no place which one thread writes and another touches with nothing between that orders the two. Accesses of one or two bytes are
compared among themselves, larger ones among themselves.

Who touched a place last is kept as in "FastTrack: Efficient and Precise Dynamic Race Detection" (Flanagan and Freund, 2009), for
the two orders that there are: between launches, and by a barrier between threads of a block.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["ATOMIC", "CONSTANT", "LOAD", "STORE", "Arena", "Fault", "Shared", "placed", "stamps"]

_GAP = 256  # bytes between two allocations
#: A stamp tells (run, epoch, who) in 23, 16 and 24 bits: what a thread did in an earlier run is known to all others, and what it did
#: before the last barrier of its block to those of its block. who: a thread, or one of these:
_SEVERAL = 1 << 23  # plus the number of a block: several of its threads
_WHO = (1 << 24) - 1  # threads of several blocks; and the part of a stamp that tells who
_KINDS = (np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64, np.float32, np.float64)
_OUTSIDE, _UNALIGNED, _UNWRITTEN, _RACE, _CHANGED = 1, 2, 3, 4, 5
#: Kinds of access. An atomic one races with plain stores alone: that the words of a tape's status are read plainly beside it, is meant.
LOAD, STORE, ATOMIC, CONSTANT = 0, 1, 2, 3


class Fault(Exception):
    """A kernel did what a GPU would punish, or leave to chance."""


def stamps(run: int, epochs: np.ndarray, threads: np.ndarray) -> np.ndarray:
    """Of threads, numbered through the launch, at an epoch each."""
    if threads[-1] >= _SEVERAL or epochs.max() >= 1 << 16:
        raise ValueError(
            f"a launch of more than {_SEVERAL} threads, or of more than {1 << 16} barriers one after another"
        )
    return (run % (1 << 23) << 40) | (epochs << 24) | threads


@njit
def _block_of(who, block):
    return who - _SEVERAL if who >= _SEVERAL else who // block


@njit
def _unordered(before, now, block):
    """Whether who stamped `before` is another than who stamps `now`, in the same run, with no barrier between."""
    if before >> 40 != now >> 40 or before & _WHO == now & _WHO:
        return False
    same_block = _block_of(before & _WHO, block) == _block_of(now & _WHO, block)
    return not (same_block and before >> 24 < now >> 24)


@njit
def _joined(before, now, block):
    """The stamp of two who read the same."""
    mine = _block_of(now & _WHO, block)
    several = _SEVERAL + mine if _block_of(before & _WHO, block) == mine else _WHO
    return (now & ~_WHO) | several


@njit
def _inspect(addresses, shifts, stamps, block, size, count, access, fresh, origin, live, grain, writes, reads):
    """(what is wrong or 0, in which lane): notes who touches `count` elements of `size` bytes from each address on.

    block: threads of a block. fresh: whether what nobody wrote may be read. origin, live: addresses are offsets from there into
    `live`; shifts are added for `writes` and `reads`, which hold the last stamps of each `grain` bytes.
    """
    for lane in range(addresses.size):
        offset = addresses[lane] - origin
        if offset < 0 or offset + size * count > live.size or not live[offset] or not live[offset + size * count - 1]:
            return _OUTSIDE, lane
        if offset % (size * count) != 0:
            return _UNALIGNED, lane
        now, first = stamps[lane], offset + shifts[lane]
        for place in range(first // grain, (first + size * count) // grain):
            before = writes[place]
            if access != STORE and not fresh and before == 0:
                return _UNWRITTEN, lane
            if access == CONSTANT and before >> 40 == now >> 40:
                return _CHANGED, lane
            if _unordered(before, now, block) or (access == STORE and _unordered(reads[place], now, block)):
                return _RACE, lane
            if access == STORE:
                writes[place] = now
            elif access != ATOMIC:
                before = reads[place]
                reads[place] = _joined(before, now, block) if _unordered(before, now, block) else now
    return 0, 0


class _Watched:
    """Bytes of memory, with what is known of them. live: which may be touched, told by their offset from `origin`."""

    def __init__(self, content: np.ndarray, live: np.ndarray, origin: int, fresh: bool):
        self.bytes = content
        self.live = live
        self.origin = origin
        self.fresh = fresh
        self._notes = {
            grain: (np.zeros(content.size // grain, np.int64), np.zeros(content.size // grain, np.int64))
            for grain in (1, 4)
        }
        self._views = {kind: content.view(kind) for kind in _KINDS}

    def elements(self, addresses, shifts, stamps, block: int, kind, count: int, access: int, what: str):
        """(numbers of the first elements at addresses, the array they are of), after a look at each access.

        addresses, shifts, stamps: int64, one for each lane. block: threads of a block. access: LOAD, STORE, ATOMIC, or CONSTANT, a load
        of what the launch does not change. Fault tells what is wrong.
        """
        size = np.dtype(kind).itemsize
        grain = 4 if size >= 4 else 1
        wrong, lane = _inspect(
            addresses, shifts, stamps, block, size, count, access, self.fresh, self.origin, self.live, grain, *self._notes[grain]
        )  # fmt: skip
        if wrong:
            told = {
                _OUTSIDE: f"address {addresses[lane]:#x} is in no live memory",
                _UNALIGNED: f"address {addresses[lane]:#x} is on no boundary of {size * count} bytes",
                _UNWRITTEN: "shared memory that nobody has written",
                _RACE: "another thread touches the same place, in no order",
                _CHANGED: "is read as what does not change, and the launch has written it",
            }
            raise Fault(f"{what}: thread {stamps[lane] & _WHO} of the launch: {told[wrong]}")
        return (addresses - self.origin + shifts) // size, self._views[kind]


class Arena(_Watched):
    """Global memory: `nbytes` bytes of the host from `address` on, of which allocations are parts with gaps between."""

    def __init__(self, nbytes: int = 1 << 28):
        raw = np.zeros(nbytes + 256, np.uint8)
        skip = -raw.ctypes.data % 256
        content = raw[skip : skip + nbytes]
        self.address = content.ctypes.data
        super().__init__(content, np.zeros(nbytes, np.bool_), self.address, fresh=True)
        self.runs = 0  # launches that have touched it
        self.free = [(0, nbytes)]  # (offset, bytes), in order
        self.sizes: dict[int, int] = {}  # {address: bytes asked for}

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


def placed(symbols, gap: int, begin: int) -> tuple[dict[str, int], np.ndarray]:
    """({name: offset}, which bytes are of a symbol) of memory with names, from `begin` on and with gaps between."""
    places: dict[str, int] = {}
    at, spans = begin, []
    for symbol in symbols:
        at = -(-at // symbol.align) * symbol.align
        places[symbol.name] = at
        spans.append((at, symbol.nbytes))
        at += symbol.nbytes + gap
    live = np.zeros(-(-at // 64) * 64, np.bool_)
    for first, nbytes in spans:
        live[first : first + nbytes] = True
    return places, live


class Shared(_Watched):
    """The shared memory of `blocks` blocks, its arrays with gaps between; addresses are offsets, the same in each block."""

    def __init__(self, symbols, blocks: int):
        self.places, live = placed(symbols, 64, 256)
        self.nbytes = live.size
        super().__init__(np.zeros(self.nbytes * blocks, np.uint8), live, 0, fresh=False)
