"""Runs programs of PTX: all threads of several blocks side by side, as lanes of NumPy arrays.

Of the lanes that can go on, those whose block of code is textually first do, together. Barriers and shuffles wait until all
whom they need are there; where these never come, that is a `Fault`, as are the accesses that `memory` refuses.
"""

from __future__ import annotations

import numpy as np
from ptx.instructions import SPECIAL
from ptx.memory import ATOMIC, CONSTANT, LOAD, STORE, Arena, Fault, Shared, placed, stamps
from ptx.program import Unknown
from ptx.traffic import WARP, Traffic
from ptx.translate import Code

__all__ = ["Machine"]

WAYS = ("bfly", "up", "down", "idx")
#: About so many threads run side by side: a NumPy call takes as long as some thousand numbers.
LANES = 8192
_DTYPES = {"pred": np.bool_, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "f32": np.float32, "f64": np.float64}


class Machine:
    """A GPU's multiprocessors. arena: its memory. traffic: where accesses to that are counted, or None."""

    def __init__(self, arena: Arena):
        self.arena = arena
        self.traffic: Traffic | None = None
        self._placed: dict[Code, dict[str, int]] = {}

    def run(self, code: Code, grid, block, parameters) -> None:
        """One launch. Fault says what a thread did wrong."""
        self.arena.runs += 1
        threads = block[0] * block[1] * block[2]
        total = grid[0] * grid[1] * grid[2]
        together = max(1, LANES // threads)
        constants = self._constants(code)
        for first in range(0, total, together):
            wave = _Wave(self, code, grid, block, parameters, (first, min(together, total - first)), constants)
            with np.errstate(all="ignore"):
                wave.run()

    def _constants(self, code: Code) -> dict[str, int]:
        """{name: address} of the program's constants, put into the arena once."""
        if code not in self._placed:
            self._placed[code] = {}
            for symbol in code.program.constants.values():
                place = self._placed[code][symbol.name] = self.arena.allocate(symbol.nbytes)
                offset = place - self.arena.address
                self.arena.bytes[offset : offset + symbol.nbytes] = np.frombuffer(symbol.content or b"", np.uint8)
        return self._placed[code]


def _unset(lanes: int, dtype) -> np.ndarray:
    """A register that nobody has written: NaN, -1 or true."""
    return np.full(lanes * np.dtype(dtype).itemsize, 0xFF if dtype is not np.bool_ else 1, np.uint8).view(dtype)


class _Wave:
    """The lanes of some blocks of a launch. span: (the first block, how many)."""

    def __init__(self, machine: Machine, code: Code, grid, block, parameters, span, constants):
        self.arena = machine.arena
        self.traffic = machine.traffic
        self.code = code
        self.parameters = parameters
        self.threads = block[0] * block[1] * block[2]
        self.blocks = span[1]
        self.lanes = self.blocks * self.threads
        self.everyone = np.arange(self.lanes)
        self.block_of = self.everyone // self.threads
        within = self.everyone % self.threads
        self.warps = -(-self.threads // WARP)
        self.warp_of = self.block_of * self.warps + within // WARP
        self.in_warp = within % WARP
        self.first_of_warp = self.everyone - self.in_warp
        self.thread = span[0] * self.threads + self.everyone  # in the whole launch
        self.epoch = np.zeros(self.blocks, np.int64)
        self.live = np.ones(self.lanes, np.bool_)
        self.shared = Shared(code.program.shared.values(), self.blocks)
        own, self.own_live = placed(code.program.local.values(), 16, 0)
        self.places = {**self.shared.places, **constants, **own}
        self.own = np.full((self.lanes, self.own_live.size), 0xFF, np.uint8)  # NaN, if it is read before it is written
        self.registers = [_unset(self.lanes, _DTYPES[kind]) for kind in code.kinds.values()]
        number = self.block_of + span[0]
        special = {
            "tid": (within % block[0], within // block[0] % block[1], within // (block[0] * block[1])),
            "ctaid": (number % grid[0], number // grid[0] % grid[1], number // (grid[0] * grid[1])),
        }
        for name in SPECIAL:
            kind, _, axis = name[1:].partition(".")
            if kind == "laneid":
                found = self.in_warp
            elif kind in special:
                found = special[kind]["xyz".index(axis)]
            else:
                found = np.full(self.lanes, (block if kind == "ntid" else grid)["xyz".index(axis)])
            self.registers[code.numbers[name]] = found.astype(np.uint32)
        self.ready: dict[int, list] = {0: [None]}  # {block of code: lanes, None for all}
        self.waiting: dict[int, list] = {}

    # ---- the order of things

    def run(self) -> None:
        """Until every lane has left."""
        program = self.code.program.blocks
        while self.ready or self.waiting:
            if not self.ready:
                self._release()
            number = min(self.ready)
            who = self._joined(self.ready.pop(number))
            where = program[number]
            answer = self.code.blocks[number](self.registers, who, self)
            end = where.end
            if end is None:
                self._go(number + 1, who)
            elif end.parts[0] == "bra":
                self._jump(where, who, answer)
            elif end.parts[0] in ("ret", "exit"):
                self.live[who if who is not None else slice(None)] = False
            else:
                self.waiting.setdefault(number, []).append(who)

    def _joined(self, groups: list):
        if any(group is None for group in groups):
            return None
        found = groups[0] if len(groups) == 1 else np.sort(np.concatenate(groups))
        return None if found.size == self.lanes else found

    def _go(self, number: int, who) -> None:
        if who is None or who.size:
            self.ready.setdefault(number, []).append(who)

    def _jump(self, where, who, answer) -> None:
        if answer is None:
            self._go(where.target, who)
            return
        lanes = self.everyone if who is None else who
        taken = np.broadcast_to(answer, lanes.shape)
        if taken.all():
            self._go(where.target, who)
        elif not taken.any():
            self._go(where.number + 1, who)
        else:
            self._go(where.target, lanes[taken])
            self._go(where.number + 1, lanes[~taken])

    def _release(self) -> None:
        """Lets go on who waits for nobody any more. Fault where nobody does."""
        moved = False
        for number, groups in list(self.waiting.items()):
            who = self._joined(groups)
            lanes = self.everyone if who is None else who
            end = self.code.program.blocks[number].end
            if end.parts[0] == "shfl":
                there = np.bincount(self.warp_of[lanes], minlength=self.blocks * self.warps)
                whole = there == np.bincount(self.warp_of, minlength=self.blocks * self.warps)
                done = whole[self.warp_of[lanes]]
            else:
                there = np.bincount(self.block_of[lanes], minlength=self.blocks)
                done = (there == self.threads)[self.block_of[lanes]]
            if not done.any():
                continue
            moved = True
            gone, rest = lanes[done], lanes[~done]
            if rest.size:
                self.waiting[number] = [rest]
            else:
                del self.waiting[number]
            if end.parts[0] == "shfl":
                self._shuffle(end, gone)
            else:
                self._barrier(end, gone)
            self._go(number + 1, None if gone.size == self.lanes else gone)
        if not moved:
            places = {str(self.code.program.blocks[n].end): self._joined(g) for n, g in self.waiting.items()}
            told = "; ".join(f"{self.lanes if w is None else w.size} threads wait at {t!r}" for t, w in places.items())
            raise Fault(
                f"{told}; {int((~self.live).sum())} of {self.lanes} threads have left: not all wait at one place"
            )

    def _barrier(self, end, lanes) -> None:
        """All threads of some blocks are there."""
        if end.parts in (("bar", "sync"), ("barrier", "sync"), ("barrier", "sync", "aligned")):
            (which,) = end.operands
        elif end.parts == ("bar", "red", "or", "pred"):
            to, which, given = end.operands
            negated, given = given.startswith("!"), given.lstrip("!")
            mine = self.registers[self.code.numbers[given]][lanes]
            some = np.zeros(self.blocks, np.bool_)
            np.logical_or.at(some, self.block_of[lanes], ~mine if negated else mine)
            self._put(to, lanes, some[self.block_of[lanes]])
        else:
            raise Unknown(str(end))
        if which != "0":
            raise Unknown(str(end))
        self.epoch[np.unique(self.block_of[lanes])] += 1

    def _shuffle(self, end, lanes) -> None:
        """shfl.sync of whole warps ("PTX ISA", shfl.sync)."""
        if end.parts[:2] != ("shfl", "sync") or end.parts[2] not in WAYS or end.parts[3:] != ("b32",):
            raise Unknown(str(end))
        to, a, b, c, mask = end.operands
        if (self._operand(mask, lanes) != 0xFFFFFFFF).any():
            raise Unknown(f"{end}: of a part of a warp")
        lane, source = self.in_warp[lanes], self._operand(b, lanes).astype(np.int64) & 31
        bounds = self._operand(c, lanes).astype(np.int64)
        clamp, segment = bounds & 31, bounds >> 8 & 31
        top = (lane & segment) | (clamp & ~segment)
        ways = {"bfly": lane ^ source, "up": lane - source, "down": lane + source}
        other = ways.get(end.parts[2], (lane & segment) | (source & ~segment))  # else idx
        valid = other >= top if end.parts[2] == "up" else other <= top
        whence = self.first_of_warp[lanes] + np.where(valid, other, lane)
        if ((whence >= self.lanes) | (self.warp_of[np.minimum(whence, self.lanes - 1)] != self.warp_of[lanes])).any():
            raise Fault(f"{end}: reads a lane that the warp does not have")
        value, _, told = to.partition("|")
        self._put(value, lanes, self._operand(a, self.everyone)[whence])
        if told in self.code.numbers:
            self._put(told, lanes, valid)

    def _operand(self, text: str, lanes) -> np.ndarray:
        if text in self.code.numbers:
            return self.registers[self.code.numbers[text]][lanes].view(np.uint32)
        return np.full(lanes.shape, int(text, 0) % (1 << 32), np.uint32)

    def _put(self, name: str, lanes, values) -> None:
        number = self.code.numbers[name]
        kept = self.registers[number].copy()
        kept[lanes] = values if values.dtype == np.bool_ else values.view(kept.dtype)
        self.registers[number] = kept

    # ---- what blocks of code ask for

    def full(self, value, dtype) -> np.ndarray:
        """A register of all lanes."""
        value = np.asarray(value)
        return np.full(self.lanes, value, dtype) if value.ndim == 0 else value

    def place(self, name: str) -> int:
        """The address of memory with a name."""
        return self.places[name]

    def _where(self, who, address):
        lanes = self.everyone if who is None else who
        return lanes, np.broadcast_to(np.asarray(address, np.uint64), lanes.shape).view(np.int64)

    def _elements(self, who, address, space: str, kind, count: int, access: int, what: str):
        """(numbers of elements, the array they are of) for an access, which is looked at."""
        lanes, addresses = self._where(who, address)
        block = self.block_of[lanes]
        if self.traffic is not None and space == "global":
            self.traffic.note(addresses, self.warp_of[lanes], count * np.dtype(kind).itemsize, what)
        memory, shifts = (self.shared, block * self.shared.nbytes) if space == "shared" else (self.arena, block * 0)
        now = stamps(self.arena.runs, self.epoch[block], self.thread[lanes])
        return memory.elements(addresses, shifts, now, self.threads, kind, count, access, what)

    def load(self, who, address, space: str, constant: bool, kind, count: int, what: str) -> list[np.ndarray]:
        """`count` elements of global or shared memory from an address for each lane. Fault where they may not be read.

        constant: nothing that runs changes them.
        """
        first, memory = self._elements(who, address, space, kind, count, CONSTANT if constant else LOAD, what)
        return [memory[first + i] for i in range(count)]

    def store(self, who, address, space: str, kind, values, what: str) -> None:
        """Elements to an address of global or shared memory for each lane. Fault where they may not be written."""
        first, memory = self._elements(who, address, space, kind, len(values), STORE, what)
        for i, value in enumerate(values):
            memory[first + i] = value

    def compare_and_swap(self, who, address, kind, expected, new, what: str) -> np.ndarray:
        """What was there; the new value is put where that is expected, a lane after another."""
        places, memory = self._elements(who, address, "global", kind, 1, ATOMIC, what)
        found = np.empty(places.shape, kind)
        expected, new = np.broadcast_to(expected, places.shape), np.broadcast_to(new, places.shape)
        for i, at in enumerate(places):
            found[i] = memory[at]
            if found[i] == expected[i]:
                memory[at] = new[i]
        return found

    def _own(self, who, address, kind, count: int, what: str):
        lanes, address = self._where(who, address)
        size = np.dtype(kind).itemsize
        inside = (address >= 0) & (address <= self.own_live.size - size * count)
        if not inside.all() or not (self.own_live[address] & self.own_live[address + size * count - 1]).all():
            raise Fault(f"{what}: outside of the thread's local memory")
        if (address % (size * count)).any():
            raise Fault(f"{what}: on no boundary of {size * count} bytes in the thread's local memory")
        return lanes, address // size, self.own.view(kind)

    def load_own(self, who, address, kind, count: int, what: str) -> list[np.ndarray]:
        """As load, of the thread's own memory."""
        lanes, first, memory = self._own(who, address, kind, count, what)
        return [memory[lanes, first + i] for i in range(count)]

    def store_own(self, who, address, kind, values, what: str) -> None:
        """As store, of the thread's own memory."""
        lanes, first, memory = self._own(who, address, kind, len(values), what)
        for i, value in enumerate(values):
            memory[lanes, first + i] = value
