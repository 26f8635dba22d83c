"""Lines of Python for instructions of PTX: how operands are read and results are kept, whatever the instruction."""

from __future__ import annotations

import re

__all__ = ["Piece", "kept_as", "local", "size_of"]

_SIZE = {"8": 1, "16": 2, "32": 4, "64": 8}
_INTEGER = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)U?$")


def size_of(kind: str) -> int:
    """Bytes of a type such as "s32"."""
    return _SIZE[kind[1:]]


def kept_as(kind: str) -> str:
    """Bits without a meaning are numbers without sign."""
    return f"u{kind[1:]}" if kind[0] == "b" else kind


def local(number: int) -> str:
    """The local variable of a register."""
    return f"r{number}"


class Piece:
    """The source of a block while it is written: lines of Python, in which registers are local variables.

    kinds: what each register is kept as; numbers: its place in R. first_read, written: registers that the lines take from before, and set.
    """

    def __init__(self, kinds: dict[str, str], numbers: dict[str, int]):
        self.kinds = kinds
        self.numbers = numbers
        self.lines: list[str] = []
        self.first_read: dict[str, None] = {}  # before it is written here
        self.written: dict[str, None] = {}

    def register(self, name: str) -> str:
        if name not in self.written:
            self.first_read[name] = None
        return local(self.numbers[name])

    def value(self, text: str, kind: str) -> str:
        """Source of an operand as `kind`: u8 to u64, s8 to s64, b8 to b64, f32, f64 or pred."""
        kind = kept_as(kind)
        if text in self.kinds:
            kept, name = self.kinds[text], self.register(text)
            if kept == kind:
                return name
            if "pred" in (kept, kind):
                raise ValueError(f"{text} is a {kept}, wanted as {kind}")
            if size_of(kept) == size_of(kind):
                return f"{name}.view({kind})"
            if size_of(kept) > size_of(kind):
                return f"{name}.view(u{size_of(kept) * 8}).astype(u{size_of(kind) * 8}).view({kind})"
            raise ValueError(f"{text} is a {kept}, wanted as {kind}")
        if text[:2] in ("0f", "0F"):
            return f"u32(0x{text[2:]}).view(f32)"
        if text[:2] in ("0d", "0D"):
            return f"u64(0x{text[2:]}).view(f64)"
        if _INTEGER.match(text):
            number = int(text.rstrip("U"), 0)
            if kind == "pred":
                return f"pred({number != 0})"
            bits = size_of(kind) * 8
            return f"u{bits}({number % (1 << bits)}).view({kind})"
        if text.startswith("param:"):
            return f"u64(machine.parameters[{int(text[6:])}])"
        if text.startswith("%"):
            raise ValueError(f"{text} is not known")
        return f"u64(machine.place({text!r}))"

    def address(self, text: str) -> str:
        inside = text.strip()[1:-1]
        found = re.fullmatch(r"([^+\-]+?)\s*(?:([+\-])\s*(-?\d+))?", inside)
        if not found:
            raise ValueError(text)
        name, sign, offset = found.groups()
        base = self.value(name, "u64")
        number = int(offset or 0) * (-1 if sign == "-" else 1)
        return base if number == 0 else f"({base} + u64({number % (1 << 64)}))"

    def set(self, name: str, kind: str, source: str) -> None:
        """name = source, an array of `kind`: seen as the register keeps it, or widened."""
        kind = kept_as(kind)
        if name not in self.kinds:
            raise ValueError(f"no register {name}")
        kept = self.kinds[name]
        if kept != kind:
            if "pred" in (kept, kind):
                raise ValueError(f"{name} is a {kept}, got {kind}")
            if size_of(kept) == size_of(kind):
                source = f"({source}).view({kept})"
            elif size_of(kept) > size_of(kind):  # loads and conversions fill a wider register, by their sign
                source = f"({source}).astype({kind[0]}{size_of(kept) * 8}).view({kept})"
            else:
                raise ValueError(f"{name} is a {kept}, got {kind}")
        self.lines.append(f"{local(self.numbers[name])} = {source}")
        self.written[name] = None
