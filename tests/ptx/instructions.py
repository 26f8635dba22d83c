"""What each instruction of PTX is in Python, for many lanes at once.

`write` adds an instruction's lines to a `Piece`; the functions that the lines call are `arithmetic.SCOPE`, and `machine`, which
is asked for memory. "PTX ISA" (NVIDIA, version 9) says what they do.
"""

from __future__ import annotations

from collections.abc import Callable

from ptx.piece import Piece, kept_as, size_of
from ptx.program import Instruction, Unknown

__all__ = ["CARRY", "SPECIAL", "slot_of", "write"]

#: Registers that tell a thread its place.
SPECIAL = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"] + ["%laneid"]
#: The register of what a sum carries.
CARRY = "carry"
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def write(piece: Piece, item: Instruction) -> None:
    """Adds the lines of an instruction. Unknown for what is not understood."""
    name = item.parts[0]
    handle = _HANDLERS.get(name) or (_simple if name in _SIMPLE else None)
    if handle is None:
        raise Unknown(str(item))
    try:
        handle(piece, item)
    except (KeyError, ValueError, IndexError) as error:
        raise Unknown(f"{item}: {error}") from error


def slot_of(place: str) -> str:
    """The register of a parameter of a function that is called, from the place in brackets."""
    name, _, offset = place.partition("+")
    return f"{name}+{int(offset or 0)}"


def _simple(piece: Piece, item: Instruction) -> None:
    """d = f(operands), all of the opcode's type."""
    name, *modifiers, kind = item.parts
    kind = _without_sign(name, kind)
    given = [piece.value(text, kind) for text in item.operands[1:]]
    if "ftz" in modifiers:
        given = [f"flushed({text})" for text in given]
    source = _SIMPLE[name](kind, set(modifiers), *given)
    if "ftz" in modifiers:
        source = f"flushed({source})"
    if "sat" in modifiers:
        source = f"saturated({source})"
    piece.set(item.operands[0], kind, source)


def _mov(piece: Piece, item: Instruction) -> None:
    kind, (to, what) = item.parts[-1], item.operands
    if to.startswith("{"):  # a number parted into its words, the lowest first
        parts = [part.strip() for part in to[1:-1].split(",")]
        whole, bits = piece.value(what, kind), size_of(kind) * 8 // len(parts)
        for i, part in enumerate(parts):
            piece.set(part, f"u{bits}", f"({whole} >> u{size_of(kind) * 8}({i * bits})).astype(u{bits})")
    elif what.startswith("{"):
        parts = [part.strip() for part in what[1:-1].split(",")]
        bits, wide = size_of(kind) * 8 // len(parts), f"u{size_of(kind) * 8}"
        words = [f"({piece.value(p, f'u{bits}')}.astype({wide}) << {wide}({i * bits}))" for i, p in enumerate(parts)]  # fmt: skip
        piece.set(to, kind, f"({' | '.join(words)})")
    else:
        piece.set(to, kind, piece.value(what, kind))


def _cvta(piece: Piece, item: Instruction) -> None:
    """Global addresses are generic ones."""
    if item.parts[1:] not in (("global", "u64"), ("to", "global", "u64")):
        raise Unknown(str(item))
    piece.set(item.operands[0], "u64", piece.value(item.operands[1], "u64"))


def _ld(piece: Piece, item: Instruction) -> None:
    kind = item.parts[-1]
    space = _space(item)
    to, place = item.operands
    if space == "param":
        inside = place[1:-1]
        piece.set(to, kind, piece.value(slot_of(inside) if inside.startswith("slot:") else inside, kind))
        return
    if space not in ("global", "shared", "local"):
        raise Unknown(str(item))
    names = [part.strip() for part in to[1:-1].split(",")] if to.startswith("{") else [to]
    address, kept = piece.address(place), kept_as(kind)
    if space == "local":
        call = f"machine.load_own(who, {address}, {kept}, {len(names)}, {item.text!r})"
    else:
        call = f"machine.load(who, {address}, {space!r}, {'nc' in item.parts}, {kept}, {len(names)}, {item.text!r})"
    piece.lines.append(f"loaded = {call}")
    for i, name in enumerate(names):
        piece.set(name, kept, f"loaded[{i}]")


def _st(piece: Piece, item: Instruction) -> None:
    kind, space = item.parts[-1], _space(item)
    place, what = item.operands
    if space == "param":
        piece.set(slot_of(place[1:-1]), kind, piece.value(what, kind))
        return
    if space not in ("global", "shared", "local"):
        raise Unknown(str(item))
    parts = [part.strip() for part in what[1:-1].split(",")] if what.startswith("{") else [what]
    values = "".join(f"{piece.value(part, kind)}, " for part in parts)
    address, kept = piece.address(place), kept_as(kind)
    if space == "local":
        piece.lines.append(f"machine.store_own(who, {address}, {kept}, ({values}), {item.text!r})")
    else:
        piece.lines.append(f"machine.store(who, {address}, {space!r}, {kept}, ({values}), {item.text!r})")


def _atom(piece: Piece, item: Instruction) -> None:
    _, space, how, kind = item.parts
    if (space, how) != ("global", "cas"):
        raise Unknown(str(item))
    to, place, expected, new = item.operands
    kept = kept_as(kind)
    given = f"{piece.value(expected, kept)}, {piece.value(new, kept)}"
    piece.set(to, kept, f"machine.compare_and_swap(who, {piece.address(place)}, {kept}, {given}, {item.text!r})")


def _setp(piece: Piece, item: Instruction) -> None:
    _, how, kind = item.parts
    a, b = (piece.value(text, kind) for text in item.operands[1:])
    if kind[0] == "f" and how in ("num", "nan"):
        source = f"(np.isnan({a}) | np.isnan({b}))"
        source = f"~{source}" if how == "num" else source
    elif kind[0] == "f" and how[-1] == "u" and how[:-1] in _COMPARE:
        source = f"({a} {_COMPARE[how[:-1]]} {b}) | np.isnan({a}) | np.isnan({b})"
    elif kind[0] == "f" and how == "ne":
        source = f"({a} != {b}) & ~np.isnan({a}) & ~np.isnan({b})"
    else:
        source = f"{a} {_COMPARE[how]} {b}"
    piece.set(item.operands[0], "pred", source)


def _selp(piece: Piece, item: Instruction) -> None:
    kind = item.parts[-1]
    to, a, b, which = item.operands
    piece.set(to, kind, f"np.where({piece.value(which, 'pred')}, {piece.value(a, kind)}, {piece.value(b, kind)})")


def _cvt(piece: Piece, item: Instruction) -> None:
    *modifiers, to, origin = item.parts[1:]
    how = [m for m in modifiers if m in ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi")]
    if set(modifiers) - set(how) - {"ftz", "sat"}:
        raise Unknown(str(item))
    source = piece.value(item.operands[1], origin)
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
    if "ftz" in modifiers and to == "f32":
        source = f"flushed({source})"
    if "sat" in modifiers:
        if to[0] != "f":
            raise Unknown(str(item))
        source = f"saturated({source})"
    piece.set(item.operands[0], to, source)


def _mul(piece: Piece, item: Instruction) -> None:
    _multiply(piece, item, None)


def _mad(piece: Piece, item: Instruction) -> None:
    _multiply(piece, item, item.operands[3])


def _multiply(piece: Piece, item: Instruction, added: str | None) -> None:
    """mul and mad of integers, with carry; mul of floats."""
    name, *modifiers, kind = item.parts
    to, a, b = item.operands[:3]
    if kind[0] == "f":
        given = [piece.value(text, kind) for text in (a, b)]
        product = " * ".join(f"flushed({text})" if "ftz" in modifiers else text for text in given)
        known = {"rn", "ftz", "sat"}
        if name != "mul" or set(modifiers) - known:
            raise Unknown(str(item))
        product = f"flushed({product})" if "ftz" in modifiers else product
        piece.set(to, kind, f"saturated({product})" if "sat" in modifiers else product)
        return
    bits, sign = size_of(kind) * 8, kind[0]
    if "wide" in modifiers:
        wide = f"{sign}{bits * 2}"
        product = f"({piece.value(a, kind)}.astype({wide}) * {piece.value(b, kind)}.astype({wide}))"
        piece.set(to, wide, product if added is None else f"{product} + {piece.value(added, wide)}")
        return
    if set(modifiers) - {"lo", "hi", "cc"}:
        raise Unknown(str(item))
    if "hi" in modifiers:
        if sign != "u":
            raise Unknown(str(item))
        if bits == 64:
            product = f"high_product({piece.value(a, kind)}, {piece.value(b, kind)})"
        else:
            product = f"(({piece.value(a, kind)}.astype(u64) * {piece.value(b, kind)}) >> u64({bits})).astype(u{bits})"
    else:
        product = f"({piece.value(a, f'u{bits}')} * {piece.value(b, f'u{bits}')})"
    if added is None:
        piece.set(to, f"u{bits}", product)
    elif name == "mad" and "cc" not in modifiers:
        piece.set(to, f"u{bits}", f"{product} + {piece.value(added, f'u{bits}')}")
    else:
        _sum(piece, to, f"u{bits}", product, piece.value(added, f"u{bits}"), "c" if name == "madc" else "", modifiers)


def _addc(piece: Piece, item: Instruction) -> None:
    kind = f"u{size_of(item.parts[-1]) * 8}"
    to, a, b = item.operands
    _sum(piece, to, kind, piece.value(a, kind), piece.value(b, kind), item.parts[0][3:], item.parts[1:-1])


def _add(piece: Piece, item: Instruction) -> None:
    if "cc" in item.parts:
        _addc(piece, item)
    else:
        _simple(piece, item)


def _sum(piece: Piece, to: str, kind: str, a: str, b: str, carried: str, modifiers) -> None:
    """a + b, and the carry of the sum before if `carried`; tells its own where the opcode has cc."""
    if kind != "u32":
        raise ValueError("carries of 32 bits alone")
    more = f" + {piece.register(CARRY)}" if carried else ""
    piece.lines.append(f"total = ({a}).astype(u64) + {b}{more}")
    if "cc" in modifiers:
        piece.set(CARRY, "pred", "(total >> u64(32)) != 0")
    piece.set(to, "u32", "total.astype(u32)")


def _sub(piece: Piece, item: Instruction) -> None:
    """A borrow is kept as a carry of 1, as it is read by subc alone."""
    if item.parts[0] == "sub" and "cc" not in item.parts:
        _simple(piece, item)
        return
    if size_of(item.parts[-1]) != 4:
        raise Unknown(str(item))
    to, a, b = item.operands
    more = f" - {piece.register(CARRY)}" if item.parts[0] == "subc" else ""
    piece.lines.append(f"total = ({piece.value(a, 'u32')}).astype(s64) - {piece.value(b, 'u32')}{more}")
    if "cc" in item.parts:
        piece.set(CARRY, "pred", "total < 0")
    piece.set(to, "u32", "total.astype(u32)")


def _clz(piece: Piece, item: Instruction) -> None:
    piece.set(item.operands[0], "u32", f"leading_zeros({piece.value(item.operands[1], item.parts[-1])})")


def _popc(piece: Piece, item: Instruction) -> None:
    piece.set(item.operands[0], "u32", f"set_bits({piece.value(item.operands[1], item.parts[-1])})")


def _bfi(piece: Piece, item: Instruction) -> None:
    kind = item.parts[-1]
    to, a, b, start, length = item.operands
    piece.set(to, kind, f"inserted({piece.value(a, kind)}, {piece.value(b, kind)}, {int(start)}, {int(length)})")


def _shift(piece: Piece, item: Instruction, function: str) -> None:
    kind = item.parts[-1]
    to, a, count = item.operands
    piece.set(to, kind, f"{function}({piece.value(a, kind)}, {piece.value(count, 'u32')})")


def _shl(piece: Piece, item: Instruction) -> None:
    _shift(piece, item, "shifted_left")


def _shr(piece: Piece, item: Instruction) -> None:
    _shift(piece, item, "shifted_right")


def _space(item: Instruction) -> str:
    """Generic addresses are those of global memory as long as nobody takes one of other memory, see `cvta`."""
    return "global" if item.parts[1] == item.parts[-1] else item.parts[1]


def _without_sign(name: str, kind: str) -> str:
    """The type that an instruction is done in: where the sign does not matter, the one that registers have."""
    same = name in ("add", "sub", "and", "or", "xor", "not") and kind != "pred" and kind[0] in "sub"
    return f"u{kind[1:]}" if same else kind


def _plain(operator: str) -> Callable:
    def make(kind: str, modifiers: set, a: str, b: str) -> str:
        directed = modifiers & {"rz", "rm", "rp"}
        if modifiers - {"rn", "ftz", "sat"} - directed or (modifiers and kind[0] != "f"):
            raise ValueError(f"modifiers {sorted(modifiers)}")
        if directed and kind != "f32":
            raise ValueError(f"modifiers {sorted(modifiers)} of {kind}")
        if directed:
            (how,) = directed
            return f"toward({how!r}, {a}.astype(f64), {operator}{b}.astype(f64))"
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
    return f"toward({how.pop()!r}, {a}.astype(f64) * {b}, {c}.astype(f64))"


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
        return f"upper_half(1 / {a})"
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
    "copysign": _called("np.copysign({1}, {0})"),
}

_HANDLERS: dict[str, Callable[[Piece, Instruction], None]] = {
    "mov": _mov,
    "cvta": _cvta,
    "ld": _ld,
    "st": _st,
    "atom": _atom,
    "setp": _setp,
    "selp": _selp,
    "cvt": _cvt,
    "mul": _mul,
    "mad": _mad,
    "madc": _mad,
    "add": _add,
    "addc": _addc,
    "sub": _sub,
    "subc": _sub,
    "clz": _clz,
    "popc": _popc,
    "bfi": _bfi,
    "shl": _shl,
    "shr": _shr,
}
