"""Basic blocks of PTX to functions of Python, which do for many lanes what the instructions do for one.

A block becomes `block(R, who, machine)`. R: a list of arrays, one for each register, an element a lane. who: the lanes that run, or
None for all. It gives the predicate of the jump it ends with, for those lanes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ptx import arithmetic
from ptx.program import Block, Instruction, Program, Unknown

__all__ = ["SPECIAL", "Code", "translate"]

#: Registers that tell a thread its place.
SPECIAL = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"] + ["%laneid"]
_SIZE = {"8": 1, "16": 2, "32": 4, "64": 8}
_UNSIGNED = {"b": "u", "u": "u", "s": "u"}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}  # fmt: skip
_INTEGER = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)U?$")
_CARRY = "carry"


def _size(kind: str) -> int:
    return _SIZE[kind[1:]]


class Code:
    """A program's blocks as functions. numbers: {register: place in R}; kinds: what each is kept as."""

    def __init__(self, program: Program):
        self.program = program
        self.kinds = {name: "u32" for name in SPECIAL} | {_CARRY: "pred"} | dict(program.registers)
        for block in program.blocks:
            for item in [*block.body, *([block.end] if block.end else [])]:
                self._slots(item)
        self.numbers = {name: i for i, name in enumerate(self.kinds)}
        pieces = [_Piece(self, block) for block in program.blocks]
        outside = set().union(*(piece.first_read for piece in pieces), *(piece.end_reads for piece in pieces))
        source = "\n".join(piece.source(outside) for piece in pieces)
        scope = dict(arithmetic.SCOPE) | {"np": arithmetic.np, "put": _put}
        exec(compile(source, f"<{program.name}>", "exec"), scope)
        self.blocks: list[Callable] = [scope[f"block{block.number}"] for block in program.blocks]

    def _slots(self, item: Instruction) -> None:
        """Parameters of functions that are called are registers of their own."""
        if item.parts[:2] in (("ld", "param"), ("st", "param")):
            place = item.operands[1 if item.parts[0] == "ld" else 0].strip("[]")
            if place.startswith("slot:"):
                kind = item.parts[-1]
                self.kinds.setdefault(_slot(place), kind if kind[0] == "f" else "u" + kind[1:])


def translate(program: Program) -> Code:
    """The functions of a program. Unknown for an instruction that is not understood."""
    return Code(program)


def _slot(place: str) -> str:
    name, _, offset = place.partition("+")
    return f"{name}+{int(offset or 0)}"


def _put(registers: list, number: int, who, value) -> None:
    """A register's new value in some lanes; never in place, since registers may share an array."""
    kept = registers[number].copy()
    kept[who] = value
    registers[number] = kept


class _Piece:
    """The source of one block."""

    def __init__(self, code: Code, block: Block):
        self.code = code
        self.block = block
        self.lines: list[str] = []
        self.first_read: dict[str, None] = {}  # before it is written here
        self.written: dict[str, None] = {}
        self.end_reads: dict[str, None] = {}
        for item in block.body:
            try:
                self._instruction(item)
            except (KeyError, ValueError, IndexError) as error:
                raise Unknown(f"{item}: {error}") from error
        self.result = "None"
        end = block.end
        if end is not None and end.condition is not None:
            name, negated = end.condition
            self.result = ("~" if negated else "") + self._register(name)
        elif end is not None and end.parts[0] in ("bar", "barrier", "shfl"):
            for operand in end.operands:
                for name in operand.split("|"):
                    if name in code.kinds:
                        self.end_reads[name] = None

    def source(self, outside: set[str]) -> str:
        """outside: the registers that other blocks read; no others are kept."""
        numbers = self.code.numbers
        load = [f"{_local(numbers[name])} = R[{numbers[name]}]" for name in self.first_read]
        part = [f"{_local(numbers[name])} = R[{numbers[name]}][who]" for name in self.first_read]
        kept = [numbers[name] for name in self.written if name in outside]
        whole = [f"R[{n}] = machine.full({_local(n)}, R[{n}].dtype)" for n in kept]
        some = [f"put(R, {n}, who, {_local(n)})" for n in kept]
        lines = [f"def block{self.block.number}(R, who, machine):"]
        for yes, no in ((load, part), (whole, some)):
            if yes:
                lines += ["    if who is None:", *(f"        {line}" for line in yes), "    else:", *(f"        {line}" for line in no)]  # fmt: skip
            if yes is load:
                lines += [f"    {line}" for line in self.lines]
        if not load:
            lines[1:1] = [f"    {line}" for line in self.lines]
        return "\n".join([*lines, f"    return {self.result}"])

    # ---- operands

    def _register(self, name: str) -> str:
        if name not in self.written:
            self.first_read[name] = None
        return _local(self.code.numbers[name])

    def _value(self, text: str, kind: str) -> str:
        """Source of an operand as `kind`: u8 to u64, s8 to s64, b8 to b64, f32, f64 or pred."""
        kind = kind.replace("b", "u") if kind != "pred" else kind
        if text in self.code.kinds:
            kept, name = self.code.kinds[text], self._register(text)
            if kept == kind:
                return name
            if "pred" in (kept, kind):
                raise ValueError(f"{text} is a {kept}, wanted as {kind}")
            if _size(kept) == _size(kind):
                return f"{name}.view({kind})"
            if _size(kept) > _size(kind):
                return f"{name}.view(u{_size(kept) * 8}).astype(u{_size(kind) * 8}).view({kind})"
            raise ValueError(f"{text} is a {kept}, wanted as {kind}")
        if text[:2] in ("0f", "0F"):
            return f"u32(0x{text[2:]}).view(f32)"
        if text[:2] in ("0d", "0D"):
            return f"u64(0x{text[2:]}).view(f64)"
        if _INTEGER.match(text):
            number = int(text.rstrip("U"), 0)
            if kind == "pred":
                return f"pred({number != 0})"
            bits = _size(kind) * 8
            return f"u{bits}({number % (1 << bits)}).view({kind})"
        if text.startswith("param:"):
            return f"u64(machine.parameters[{int(text[6:])}])"
        if text in ("%SPL", "%SP"):
            raise ValueError(f"{text} is not declared")
        return f"u64(machine.place({text!r}))"

    def _address(self, text: str) -> str:
        inside = text.strip()[1:-1]
        name, sign, offset = re.fullmatch(r"([^+\-]+?)\s*(?:([+\-])\s*(-?\d+))?", inside).groups()
        base = self._value(name, "u64")
        number = int(offset or 0) * (-1 if sign == "-" else 1)
        return base if number == 0 else f"({base} + u64({number % (1 << 64)}))"

    def _set(self, name: str, kind: str, source: str) -> None:
        """name = source, an array of `kind`: seen as the register keeps it, or widened."""
        kind = kind.replace("b", "u") if kind != "pred" else kind
        if name not in self.code.kinds:
            raise ValueError(f"no register {name}")
        kept = self.code.kinds[name]
        if kept != kind:
            if "pred" in (kept, kind):
                raise ValueError(f"{name} is a {kept}, got {kind}")
            if _size(kept) == _size(kind):
                source = f"({source}).view({kept})"
            elif _size(kept) > _size(kind):  # loads and conversions fill a wider register, by their sign
                source = f"({source}).astype({kind[0]}{_size(kept) * 8}).view({kept})"
            else:
                raise ValueError(f"{name} is a {kept}, got {kind}")
        self.lines.append(f"{_local(self.code.numbers[name])} = {source}")
        self.written[name] = None

    # ---- instructions

    def _instruction(self, item: Instruction) -> None:
        name = item.parts[0]
        handle = getattr(self, f"_do_{name}", None)
        if handle is not None:
            handle(item)
        elif name in _SIMPLE:
            self._simple(item)
        else:
            raise Unknown(str(item))

    def _simple(self, item: Instruction) -> None:
        """d = f(operands), all of the opcode's type."""
        name, *modifiers, kind = item.parts
        given = [self._value(text, _without_sign(name, kind)) for text in item.operands[1:]]
        source = _SIMPLE[name](kind, set(modifiers), *given)
        if "ftz" in modifiers:
            source = f"flushed({source})"
        if "sat" in modifiers:
            source = f"saturated({source})"
        self._set(item.operands[0], _without_sign(name, kind), source)

    def _do_mov(self, item: Instruction) -> None:
        kind, (to, what) = item.parts[-1], item.operands
        if to.startswith("{"):  # a number parted into its words, the lowest first
            parts = [part.strip() for part in to[1:-1].split(",")]
            whole, bits = self._value(what, kind), _size(kind) * 8 // len(parts)
            for i, part in enumerate(parts):
                self._set(part, f"u{bits}", f"({whole} >> u{_size(kind) * 8}({i * bits})).astype(u{bits})")
        elif what.startswith("{"):
            parts = [part.strip() for part in what[1:-1].split(",")]
            bits, wide = _size(kind) * 8 // len(parts), f"u{_size(kind) * 8}"
            words = [f"({self._value(p, f'u{bits}')}.astype({wide}) << {wide}({i * bits}))" for i, p in enumerate(parts)]  # fmt: skip
            self._set(to, kind, f"({' | '.join(words)})")
        else:
            self._set(to, kind, self._value(what, kind))

    def _do_cvta(self, item: Instruction) -> None:
        """Global addresses are generic ones."""
        if item.parts[1:] not in (("global", "u64"), ("to", "global", "u64")):
            raise Unknown(str(item))
        self._set(item.operands[0], "u64", self._value(item.operands[1], "u64"))

    def _do_ld(self, item: Instruction) -> None:
        kind = item.parts[-1]
        space = _space(item)
        to, place = item.operands
        if space == "param":
            inside = place[1:-1]
            self._set(to, kind, self._value(_slot(inside) if inside.startswith("slot:") else inside, kind))
            return
        if space not in ("global", "shared", "local"):
            raise Unknown(str(item))
        names = [part.strip() for part in to[1:-1].split(",")] if to.startswith("{") else [to]
        address, kept = self._address(place), kind.replace("b", "u")
        lines = f"loaded = machine.load_{space}(who, {address}, {kept}, {len(names)}, {item.text!r})"
        self.lines.append(lines)
        for i, name in enumerate(names):
            self._set(name, kept, f"loaded[{i}]")

    def _do_st(self, item: Instruction) -> None:
        kind, space = item.parts[-1], _space(item)
        place, what = item.operands
        if space == "param":
            self._set(_slot(place[1:-1]), kind, self._value(what, kind))
            return
        if space not in ("global", "shared", "local"):
            raise Unknown(str(item))
        parts = [part.strip() for part in what[1:-1].split(",")] if what.startswith("{") else [what]
        values = "".join(f"{self._value(part, kind)}, " for part in parts)
        kept = kind.replace("b", "u")
        self.lines.append(
            f"machine.store_{space}(who, {self._address(place)}, {kept}, ({values}), {item.text!r})"
        )

    def _do_atom(self, item: Instruction) -> None:
        _, space, how, kind = item.parts
        if (space, how) != ("global", "cas"):
            raise Unknown(str(item))
        to, place, expected, new = item.operands
        kept = kind.replace("b", "u")
        given = f"{self._value(expected, kept)}, {self._value(new, kept)}"
        self._set(to, kept, f"machine.compare_and_swap(who, {self._address(place)}, {kept}, {given}, {item.text!r})")

    def _do_setp(self, item: Instruction) -> None:
        _, how, kind = item.parts
        a, b = (self._value(text, kind) for text in item.operands[1:])
        if kind[0] == "f" and how in ("num", "nan"):
            source = f"(np.isnan({a}) | np.isnan({b}))"
            source = f"~{source}" if how == "num" else source
        elif kind[0] == "f" and how[-1] == "u" and how[:-1] in _COMPARE:
            source = f"({a} {_COMPARE[how[:-1]]} {b}) | np.isnan({a}) | np.isnan({b})"
        elif kind[0] == "f" and how == "ne":
            source = f"({a} != {b}) & ~np.isnan({a}) & ~np.isnan({b})"
        else:
            source = f"{a} {_COMPARE[how]} {b}"
        self._set(item.operands[0], "pred", source)

    def _do_selp(self, item: Instruction) -> None:
        kind = item.parts[-1]
        to, a, b, which = item.operands
        self._set(to, kind, f"np.where({self._value(which, 'pred')}, {self._value(a, kind)}, {self._value(b, kind)})")

    def _do_cvt(self, item: Instruction) -> None:
        *modifiers, to, origin = item.parts[1:]
        how = [m for m in modifiers if m in ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")]
        if set(modifiers) - set(how) - {"ftz", "sat"}:
            raise Unknown(str(item))
        source = self._value(item.operands[1], origin)
        if "ftz" in modifiers and origin == "f32":
            source = f"flushed({source})"
        if origin[0] == "f" and to[0] != "f":
            source = f"to_integer({source}, {to}, {how[0]!r})"
        elif origin[0] == "f" and how and how[0] in ("rni", "rzi", "rmi", "rpi"):
            function = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[how[0]]
            source = f"np.{function}({source})"
        elif how and how[0] != "rn":
            raise Unknown(str(item))
        elif origin != to:
            source = f"{source}.astype({to})"
        if "sat" in modifiers:
            if to[0] != "f":
                raise Unknown(str(item))
            source = f"saturated({source})"
        self._set(item.operands[0], to, source)

    def _do_mul(self, item: Instruction) -> None:
        self._multiply(item, None)

    def _do_mad(self, item: Instruction) -> None:
        self._multiply(item, item.operands[3])

    def _multiply(self, item: Instruction, added: str | None) -> None:
        """mul and mad of integers, with carry; mul of floats."""
        name, *modifiers, kind = item.parts
        to, a, b = item.operands[:3]
        if kind[0] == "f":
            product = f"{self._value(a, kind)} * {self._value(b, kind)}"
            known = {"rn", "ftz", "sat"}
            if name != "mul" or set(modifiers) - known:
                raise Unknown(str(item))
            product = f"flushed({product})" if "ftz" in modifiers else product
            self._set(to, kind, f"saturated({product})" if "sat" in modifiers else product)
            return
        bits, sign = _size(kind) * 8, kind[0]
        if "wide" in modifiers:
            wide = f"{sign}{bits * 2}"
            product = f"({self._value(a, kind)}.astype({wide}) * {self._value(b, kind)}.astype({wide}))"
            self._set(to, wide, product if added is None else f"{product} + {self._value(added, wide)}")
            return
        if set(modifiers) - {"lo", "hi", "cc"}:
            raise Unknown(str(item))
        if "hi" in modifiers:
            if sign != "u":
                raise Unknown(str(item))
            if bits == 64:
                product = f"high_product({self._value(a, kind)}, {self._value(b, kind)})"
            else:
                product = f"(({self._value(a, kind)}.astype(u64) * {self._value(b, kind)}) >> u64({bits})).astype(u{bits})"
        else:
            product = f"({self._value(a, f'u{bits}')} * {self._value(b, f'u{bits}')})"
        if added is None:
            self._set(to, f"u{bits}", product)
        else:
            self._sum(to, f"u{bits}", product, self._value(added, f"u{bits}"), "c" if name == "madc" else "", modifiers)

    _do_madc = _do_mad

    def _do_addc(self, item: Instruction) -> None:
        kind = f"u{_size(item.parts[-1]) * 8}"
        to, a, b = item.operands
        self._sum(to, kind, self._value(a, kind), self._value(b, kind), item.parts[0][3:], item.parts[1:-1])

    def _do_add(self, item: Instruction) -> None:
        if "cc" in item.parts:
            self._do_addc(item)
        else:
            self._simple(item)

    def _sum(self, to: str, kind: str, a: str, b: str, carried: str, modifiers) -> None:
        """a + b, and the carry of the sum before if `carried`; tells its own where the opcode has cc."""
        if kind != "u32":
            raise ValueError("carries of 32 bits alone")
        more = f" + {self._register(_CARRY)}" if carried else ""
        self.lines.append(f"total = ({a}).astype(u64) + {b}{more}")
        if "cc" in modifiers:
            self._set(_CARRY, "pred", "(total >> u64(32)) != 0")
        self._set(to, "u32", "total.astype(u32)")

    def _do_sub(self, item: Instruction) -> None:
        """A borrow is kept as a carry of 1, as it is read by subc alone."""
        if item.parts[0] == "sub" and "cc" not in item.parts:
            self._simple(item)
            return
        if _size(item.parts[-1]) != 4:
            raise Unknown(str(item))
        to, a, b = item.operands
        more = f" - {self._register(_CARRY)}" if item.parts[0] == "subc" else ""
        self.lines.append(f"total = ({self._value(a, 'u32')}).astype(s64) - {self._value(b, 'u32')}{more}")
        if "cc" in item.parts:
            self._set(_CARRY, "pred", "total < 0")
        self._set(to, "u32", "total.astype(u32)")

    _do_subc = _do_sub

    def _do_clz(self, item: Instruction) -> None:
        self._set(item.operands[0], "u32", f"leading_zeros({self._value(item.operands[1], item.parts[-1])})")

    def _do_popc(self, item: Instruction) -> None:
        self._set(item.operands[0], "u32", f"set_bits({self._value(item.operands[1], item.parts[-1])})")

    def _do_bfi(self, item: Instruction) -> None:
        kind = item.parts[-1]
        to, a, b, start, length = item.operands
        self._set(to, kind, f"inserted({self._value(a, kind)}, {self._value(b, kind)}, {int(start)}, {int(length)})")

    def _shift(self, item: Instruction, function: str) -> None:
        kind = item.parts[-1]
        to, a, count = item.operands
        self._set(to, kind, f"{function}({self._value(a, kind)}, {self._value(count, 'u32')})")

    def _do_shl(self, item: Instruction) -> None:
        self._shift(item, "shifted_left")

    def _do_shr(self, item: Instruction) -> None:
        self._shift(item, "shifted_right")


def _space(item: Instruction) -> str:
    """Generic addresses are those of global memory as long as nobody takes one of other memory, see `cvta`."""
    return "global" if item.parts[1] == item.parts[-1] else item.parts[1]


def _local(number: int) -> str:
    return f"r{number}"


def _without_sign(name: str, kind: str) -> str:
    """The type that an instruction is done in: where the sign does not matter, the one that registers have."""
    return f"u{_size(kind) * 8}" if name in ("add", "sub", "and", "or", "xor", "not") and kind[0] in "subB" and kind != "pred" else kind  # fmt: skip


def _plain(operator: str) -> Callable:
    def make(kind: str, modifiers: set, a: str, b: str) -> str:
        directed = modifiers & {"rz", "rm", "rp"}
        if modifiers - {"rn", "ftz", "sat"} - directed:
            raise ValueError(f"modifiers {sorted(modifiers)}")
        if directed:
            (how,) = directed
            return f"toward({how!r}, {a}.astype(f64) {operator} {b}, {kind})"
        return f"{a} {operator} {b}"

    return make


def _called(function: str, known: tuple[str, ...] = (), only: str = "f") -> Callable:
    def make(kind: str, modifiers: set, *given: str) -> str:
        if modifiers - {*known, "ftz"} or kind[0] not in only:
            raise ValueError(f"modifiers {sorted(modifiers)} of {kind}")
        return function.format(*given, kind=kind)

    return make


def _fma(kind: str, modifiers: set, a: str, b: str, c: str) -> str:
    how = modifiers - {"ftz", "sat"}
    if how == {"rn"}:
        return f"fused({a}, {b}, {c})"
    if kind != "f32" or how not in ({"rm"}, {"rp"}, {"rz"}):
        raise ValueError(f"modifiers {sorted(modifiers)} of {kind}")
    return f"toward({how.pop()!r}, {a}.astype(f64) * {b} + {c}, f32)"


def _extreme(function: str, integer: str) -> Callable:
    def make(kind: str, modifiers: set, a: str, b: str) -> str:
        if modifiers:
            raise ValueError(f"modifiers {sorted(modifiers)}")
        return f"{function}({a}, {b})" if kind[0] == "f" else f"np.{integer}({a}, {b})"

    return make


def _div(kind: str, modifiers: set, a: str, b: str) -> str:
    if kind[0] == "f":
        return _called("{} / {}", ("rn", "approx", "full"))(kind, modifiers, a, b)
    return f"quotient({a}, {b})"


def _not(kind: str, modifiers: set, a: str) -> str:
    return f"~{a}"


def _rcp(kind: str, modifiers: set, a: str) -> str:
    if kind == "f64" and "approx" in modifiers:
        return f"upper_half(1 / flushed({a}))"
    return _called("{kind}(1) / {0}", ("rn", "approx"))(kind, modifiers, a)


_SIMPLE: dict[str, Callable] = {
    "add": _plain("+"),
    "sub": _plain("-"),
    "and": _plain("&"),
    "or": _plain("|"),
    "xor": _plain("^"),
    "not": _not,
    "fma": _fma,
    "div": _div,
    "rem": lambda kind, modifiers, a, b: f"remainder({a}, {b})",
    "min": _extreme("smallest", "minimum"),
    "max": _extreme("largest", "maximum"),
    "abs": _called("np.abs({})", only="fs"),
    "neg": _called("-({})", only="fs"),
    "sqrt": _called("np.sqrt({})", ("rn", "approx")),
    "rsqrt": _called("({kind}(1) / np.sqrt({0}))", ("approx",)),
    "rcp": _rcp,
    "ex2": _called("approximate(np.exp2, {})", ("approx",)),
    "lg2": _called("approximate(np.log2, {})", ("approx",)),
    "sin": _called("approximate(np.sin, {})", ("approx",)),
    "cos": _called("approximate(np.cos, {})", ("approx",)),
    "copysign": _called("np.copysign({1}, {0})"),
}
