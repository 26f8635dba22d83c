"""PTX text, as NVIDIA's compiler prints it, to a program of basic blocks. Functions that a kernel calls are copied into it.

Instructions follow "PTX ISA" (NVIDIA, version 9). What this reader does not know raises `Unknown` with the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Block", "Instruction", "Program", "Symbol", "Unknown", "read"]

#: {type of a register: what it is kept as}
CANONICAL = {
    "pred": "pred", "b16": "u16", "u16": "u16", "s16": "u16", "b32": "u32", "u32": "u32", "s32": "u32",
    "b64": "u64", "u64": "u64", "s64": "u64", "f32": "f32", "f64": "f64",
}  # fmt: skip
_NAME = r"[%$A-Za-z_][\w$.]*"
_TOKEN = re.compile(_NAME)


class Unknown(Exception):
    """Text that is not understood."""


@dataclass(frozen=True)
class Instruction:
    """One instruction. parts: its opcode, as ("ld", "global", "f32"). condition: (predicate, whether it is negated) of a jump.

    operands: as written, registers and labels under names that are unique in the program.
    """

    parts: tuple[str, ...]
    operands: tuple[str, ...]
    condition: tuple[str, bool] | None
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass
class Block:
    """Instructions of which only the last may jump or wait. number: place in the program, where what is textually first is first."""

    number: int
    body: list[Instruction]
    end: Instruction | None = None
    target: int | None = None  # of a jump


@dataclass(frozen=True)
class Symbol:
    """Memory with a name. content: of a constant in global memory, or None."""

    name: str
    nbytes: int
    align: int
    content: bytes | None = None


@dataclass
class Program:
    """A kernel. registers: {name: type it is kept as}; parameters: names; shared, local, constants: memory by name."""

    name: str
    parameters: list[str]
    registers: dict[str, str] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    shared: dict[str, Symbol] = field(default_factory=dict)
    local: dict[str, Symbol] = field(default_factory=dict)
    constants: dict[str, Symbol] = field(default_factory=dict)


@dataclass(frozen=True)
class _Function:
    name: str
    parameters: list[str]
    results: list[str]
    body: str


def read(text: str) -> Program:
    """The program of PTX text with one kernel. Unknown for what it does not understand."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/|\x00", "", text, flags=re.S)
    functions, entry, outside = _functions(text)
    program = Program(entry.name, entry.parameters)
    for statement in outside.split(";"):
        if re.search(r"\.(global|shared|const)\b", statement):
            _declare_memory(statement.strip(), program.shared if ".shared" in statement else program.constants)
    items: list[str | Instruction] = []
    copier = _Copier(program, functions, items)
    copier.copy(entry, {name: f"param:{i}" for i, name in enumerate(entry.parameters)}, None)
    program.blocks = _blocks(items)
    return program


_HEADER = re.compile(
    r"\.(?:visible |weak )?\s*\.?(entry|func)\s*(\((?P<results>[^)]*)\))?\s*(?P<name>[\w$]+)\s*\((?P<parameters>[^)]*)\)"
)


def _functions(text: str) -> tuple[dict[str, _Function], _Function, str]:
    """Functions by name, the kernel, and the text outside of them."""
    functions, entries, outside, at = {}, [], [], 0
    for header in _HEADER.finditer(text):
        if header.start() < at:
            continue
        outside.append(text[at : header.start()])
        begin = text.index("{", header.end()) if "{" in text[header.end() :] else len(text)
        end_of_declaration = text.find(";", header.end())
        if -1 < end_of_declaration < begin:  # a declaration, whose body comes later
            at = end_of_declaration + 1
            continue
        depth, at = 0, begin
        while True:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
            if depth == 0:
                break
        made = _Function(
            header["name"], _formal(header["parameters"]), _formal(header["results"] or ""), text[begin + 1 : at - 1]
        )
        functions[made.name] = made
        if header[1] == "entry":
            entries.append(made)
    outside.append(text[at:])
    if len(entries) != 1:
        raise Unknown(f"expected one kernel, got {len(entries)}")
    return functions, entries[0], " ".join(outside)


def _formal(text: str) -> list[str]:
    return [re.sub(r"\[\d+\]$", "", item.split()[-1]) for item in text.split(",") if item.strip()]


_MEMORY = re.compile(
    r"\.(?:visible )?\s*\.?(?P<space>global|shared|local|const)\s+(?:\.align (?P<align>\d+) )?\.[bufs](?P<bits>\d+)\s+(?P<name>[\w$]+)"
    r"(?:\[(?P<count>\d+)\])?(?:\s*=\s*\{(?P<content>[^}]*)\})?$"
)


def _declare_memory(statement: str, into: dict[str, Symbol], name: str | None = None) -> None:
    found = _MEMORY.search(statement)
    if not found:
        raise Unknown(statement)
    size = int(found["count"] or 1) * int(found["bits"]) // 8
    content = None
    if found["space"] in ("global", "const"):
        numbers = [int(item, 0) for item in (found["content"] or "").split(",") if item.strip()]
        if found["bits"] != "8" and numbers:
            raise Unknown(statement)
        content = bytes(numbers).ljust(size, b"\0")
    align = int(found["align"] or int(found["bits"]) // 8)
    into[name or found["name"]] = Symbol(name or found["name"], size, align, content)


def _statements(body: str) -> Iterator[str]:
    """Statements, "{", "}" of scopes, and labels as "name:". Braces inside a statement are of its operands."""
    at, pending = 0, ""
    while at < len(body):
        if not pending.strip():
            label = re.match(rf"\s*({_NAME}):", body[at:])
            if label:
                yield label[1] + ":"
                at += label.end()
                continue
            if body[at] in "{}":
                yield body[at]
                at += 1
                continue
        if body[at] == ";":
            yield " ".join(pending.split())
            pending = ""
        else:
            pending += body[at]
        at += 1
    if pending.strip():
        raise Unknown(f"text after the last statement: {pending.strip()!r}")


class _Copier:
    """Copies a function's statements to `items`, every register under a name of its own for each copy and scope."""

    def __init__(self, program: Program, functions: dict[str, _Function], items: list[str | Instruction]):
        self.program = program
        self.functions = functions
        self.items = items
        self.count = 0

    def copy(self, function: _Function, arguments: dict[str, str], after: str | None) -> None:
        """arguments: {formal: where it is kept}. after: the label behind the call; None in the kernel itself."""
        self.count += 1
        prefix = f"f{self.count}"
        scopes: list[dict[str, str]] = [{}]
        ranges: list[dict[str, tuple[str, str]]] = [{}]
        memory = dict(arguments)
        for statement in _statements(function.body):
            if statement == "{":
                scopes.append({})
                ranges.append({})
                self.count += 1
            elif statement == "}":
                scopes.pop()
                ranges.pop()
            elif statement.endswith(":"):
                self.items.append(f"{prefix}:{statement[:-1]}:")
            elif statement.startswith(".reg"):
                self._registers(statement, f"{prefix}.{self.count}", scopes[-1], ranges[-1])
            elif statement.startswith(".param"):
                name = re.sub(r"\[\d+\]$", "", statement.split()[-1])
                memory[name] = f"slot:{prefix}.{self.count}.{name}"
            elif statement.startswith(".shared"):
                _declare_memory(statement, self.program.shared)
            elif statement.startswith(".local"):
                name = statement.split()[-1].partition("[")[0]
                memory[name] = f"local:{prefix}.{name}"
                _declare_memory(statement, self.program.local, memory[name])
            elif statement.startswith(".pragma"):
                pass
            elif statement.startswith("call"):
                self._call(statement, memory)
            else:
                self._instruction(statement, prefix, scopes, ranges, memory, after)

    def _registers(self, statement: str, prefix: str, scope: dict, ranged: dict) -> None:
        _, kind, *names = statement.replace(",", " ").split()
        kind = kind.lstrip(".")
        if kind not in CANONICAL:
            raise Unknown(statement)
        for name in names:
            many = re.fullmatch(r"(\S+)<(\d+)>", name)
            if many:
                ranged[many[1]] = (kind, prefix)
            else:
                scope[name] = f"{prefix}.{name}"
                self.program.registers[scope[name]] = CANONICAL[kind]

    def _name(self, name: str, prefix: str, scopes: list, ranges: list, memory: dict) -> str:
        """The unique name of a register, of memory or of a label; special registers and constants stay as they are."""
        for scope, ranged in zip(reversed(scopes), reversed(ranges), strict=True):
            if name in scope:
                return scope[name]
            stem = name.rstrip("0123456789")
            if stem != name and stem in ranged:
                kind, where = ranged[stem]
                scope[name] = f"{where}.{name}"
                self.program.registers[scope[name]] = CANONICAL[kind]
                return scope[name]
        if name in memory:
            return memory[name]
        if name.startswith("%") or name in self.program.shared or name in self.program.constants:
            return name
        return f"{prefix}:{name}"

    def _instruction(
        self, statement: str, prefix: str, scopes: list, ranges: list, memory: dict, after: str | None
    ) -> None:
        condition, text = None, statement
        guarded = re.match(rf"@(!?)({_NAME})\s+(.*)", statement)
        if guarded:
            condition = (self._name(guarded[2], prefix, scopes, ranges, memory), guarded[1] == "!")
            statement = guarded[3]
        opcode, _, rest = statement.partition(" ")
        parts = tuple(opcode.split("."))
        if parts[0] == "ret" and after is not None:
            parts, rest = ("bra",), after
        elif rest:
            rest = _TOKEN.sub(
                lambda token: (
                    token[0] if _inside_number(rest, token) else self._name(token[0], prefix, scopes, ranges, memory)
                ),
                rest,
            )
        self.items.append(Instruction(parts, _operands(rest), condition, text))

    def _call(self, statement: str, memory: dict) -> None:
        found = re.fullmatch(r"call(?:\.uni)?\s*(?:\(([^)]*)\)\s*,)?\s*([\w$]+)\s*(?:,\s*\(([^)]*)\))?", statement)
        if not found or found[2] not in self.functions:
            raise Unknown(statement)
        function = self.functions[found[2]]
        given = [item.strip() for part in (found[1], found[3]) for item in (part or "").split(",") if item.strip()]
        formal = [*function.results, *function.parameters]
        self.count += 1
        after = f"after:{self.count}"
        self.copy(function, {name: memory[item] for name, item in zip(formal, given, strict=True)}, after)
        self.items.append(f"{after}:")


def _inside_number(text: str, token: re.Match) -> bool:
    """Whether what looks like a name is the end of a number such as 0f3F800000."""
    return token.start() > 0 and text[token.start() - 1].isalnum()


def _operands(text: str) -> tuple[str, ...]:
    """Operands: commas inside braces or brackets do not part them."""
    found, depth, current = [], 0, ""
    for letter in text:
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += letter
    return (*found, current.strip()) if current.strip() else tuple(found)


def _blocks(items: list[str | Instruction]) -> list[Block]:
    """Basic blocks, and jumps by their numbers."""
    blocks = [Block(0, [])]
    places: dict[str, int] = {}
    for item in items:
        if isinstance(item, str):
            if blocks[-1].body:
                blocks.append(Block(len(blocks), []))
            if item[:-1] in places:
                raise Unknown(f"the label {item[:-1]!r} twice")
            places[item[:-1]] = blocks[-1].number
        elif item.condition is not None and item.parts[0] != "bra":
            raise Unknown(f"a condition on what is no jump: {item}")
        elif item.parts[0] in ("bra", "ret", "exit", "bar", "barrier", "shfl"):
            blocks[-1].end = item
            blocks.append(Block(len(blocks), []))
        else:
            blocks[-1].body.append(item)
    for block in blocks:
        if block.end is not None and block.end.parts[0] == "bra":
            block.target = places[block.end.operands[0]]
    return blocks
