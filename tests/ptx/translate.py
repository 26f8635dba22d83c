"""Basic blocks of PTX to functions of Python, which do for many lanes what the instructions do for one.

A block becomes `block(R, who, machine)`. R: a list of arrays, one for each register, an element a lane. who: the lanes that run, or
None for all. It gives the predicate of the jump it ends with, for those lanes.
"""

from __future__ import annotations

from collections.abc import Callable

from ptx import arithmetic
from ptx.instructions import CARRY, SPECIAL, slot_of, write
from ptx.piece import Piece, local
from ptx.program import Block, Program, Unknown

__all__ = ["Code"]


class Code:
    """A program's blocks as functions. numbers: {register: place in R}; kinds: what each is kept as, in that order.

    Unknown for an instruction that is not understood.
    """

    def __init__(self, program: Program):
        self.program = program
        self.kinds = dict.fromkeys(SPECIAL, "u32") | {CARRY: "pred"} | dict(program.registers)
        self._slots(program)
        self.numbers = {name: i for i, name in enumerate(self.kinds)}
        written = [self._block(block) for block in program.blocks]
        outside = {name for piece, _, waits in written for name in (*piece.first_read, *waits)}
        source = "\n".join(
            _source(block.number, piece, answer, outside)
            for block, (piece, answer, _) in zip(program.blocks, written, strict=True)
        )
        scope = dict(arithmetic.SCOPE) | {"np": arithmetic.np, "put": _put}
        exec(compile(source, f"<{program.name}>", "exec"), scope)
        self.blocks: list[Callable] = [scope[f"block{block.number}"] for block in program.blocks]

    def _slots(self, program: Program) -> None:
        """Parameters of functions that are called are registers of their own."""
        places: dict[str, set[str]] = {"ld": set(), "st": set()}
        for item in (item for block in program.blocks for item in block.body if item.parts[1:2] == ("param",)):
            place = item.operands[1 if item.parts[0] == "ld" else 0].strip("[]")
            if place.startswith("slot:"):
                kind = item.parts[-1]
                places[item.parts[0]].add(slot_of(place))
                self.kinds.setdefault(slot_of(place), kind if kind[0] == "f" else f"u{kind[1:]}")
        if places["ld"] - places["st"]:
            raise Unknown(f"parameters that are read and nowhere written: {sorted(places['ld'] - places['st'])}")

    def _block(self, block: Block) -> tuple[Piece, str, list[str]]:
        """(its lines, the source of its answer, the registers that whoever ends its waiting reads)."""
        piece = Piece(self.kinds, self.numbers)
        for item in block.body:
            write(piece, item)
        end = block.end
        if end is None:
            return piece, "None", []
        if end.condition is not None:
            name, negated = end.condition
            return piece, ("~" if negated else "") + piece.register(name), []
        names = [name.lstrip("!") for operand in end.operands for name in operand.split("|")]
        return piece, "None", [name for name in names if name in self.kinds]


def _source(number: int, piece: Piece, answer: str, outside: set[str]) -> str:
    """A block's function. outside: the registers that are read before they are written somewhere; no others are kept."""
    taken = [piece.numbers[name] for name in piece.first_read]
    kept = [piece.numbers[name] for name in piece.written if name in outside]
    lines = [
        *_either([f"{local(n)} = R[{n}]" for n in taken], [f"{local(n)} = R[{n}][who]" for n in taken]),
        *piece.lines,
        *_either(
            [f"R[{n}] = machine.full({local(n)}, R[{n}].dtype)" for n in kept],
            [f"put(R, {n}, who, {local(n)})" for n in kept],
        ),
        f"return {answer}",
    ]
    return "\n".join([f"def block{number}(R, who, machine):", *(f"    {line}" for line in lines)])


def _either(everyone: list[str], some: list[str]) -> list[str]:
    """Lines for all lanes, and those for some."""
    if not everyone:
        return []
    return ["if who is None:", *(f"    {line}" for line in everyone), "else:", *(f"    {line}" for line in some)]


def _put(registers: list, number: int, who, value) -> None:
    """A register's new value in some lanes; never in place, since registers may share an array."""
    kept = registers[number].copy()
    kept[who] = value
    registers[number] = kept
