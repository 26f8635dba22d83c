"""Sizes that may be unknown until data comes: integer polynomials over symbols such as N, with exact floor division.

A `Dim` is kept in one canonical form, so that two branches which reach the same size by different ways compare equal:
`(H + 2 - 3) // 1 + 1 == H`. A question that cannot be answered for every value of the symbols raises `UndecidedError`; the
compiler then traces again with the sizes of the call at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Union

Size = Union[int, "Dim"]
Shape = tuple[Size, ...]
Atom = tuple  # ("symbol", name) or ("floordiv", Dim, int)
Monomial = tuple[Atom, ...]  # a product of atoms, sorted by their text


class UndecidedError(Exception):
    """A comparison of open sizes whose answer depends on what the symbols stand for."""


class Dim:
    """An integer expression of symbols: a sum of products with integer factors, at least one of them not constant.

    Operations return a plain int where the result is constant. Sizes are taken to be >= 1.
    """

    __slots__ = ("_hash", "_text", "terms")

    def __init__(self, terms: Mapping[Monomial, int]):
        self.terms: tuple[tuple[Monomial, int], ...] = tuple(sorted(terms.items(), key=lambda item: repr(item[0])))
        self._hash = hash(self.terms)
        self._text: str | None = None  # asked for again and again, to put terms in order

    @staticmethod
    def symbol(name: str) -> Dim:
        """The open size called `name`."""
        return Dim({(("symbol", name),): 1})

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Dim):
            return self.terms == other.terms
        return False

    def __add__(self, other: Size) -> Size:
        return _collect([*_terms(self), *_terms(other)])

    __radd__ = __add__

    def __neg__(self) -> Size:
        return _collect([(m, -c) for m, c in self.terms])

    def __sub__(self, other: Size) -> Size:
        return self + -other

    def __rsub__(self, other: Size) -> Size:
        return -self + other

    def __mul__(self, other: Size) -> Size:
        return _collect(
            [(tuple(sorted(a + b, key=repr)), x * y) for a, x in _terms(self) for b, y in _terms(other)],
        )

    __rmul__ = __mul__

    def __floordiv__(self, other: Size) -> Size:
        if isinstance(other, Dim):
            quotient = _divide_exactly(self, other)
            if quotient is None:
                raise UndecidedError(f"{self} // {other}")
            return quotient
        if other == 1:
            return self
        # every factor is split by divmod, so that (H + 1) // 2 and (H - 1) // 2 + 1 take one form
        whole = [(m, c // other) for m, c in self.terms]
        rest = _collect([(m, c % other) for m, c in self.terms])
        if isinstance(rest, int):
            return _collect([*whole, ((), rest // other)])
        return _collect([*whole, ((("floordiv", rest, other),), 1)])

    def __repr__(self) -> str:
        if self._text is None:
            self._text = "".join(_signed(i, m, c) for i, (m, c) in enumerate(reversed(self.terms)))
        return self._text

    def evaluate(self, sizes: Mapping[str, Size]) -> Size:
        """The value where every symbol has the size that `sizes` gives."""
        total: Size = 0
        for monomial, count in self.terms:
            factor: Size = count
            for atom in monomial:
                factor *= sizes[atom[1]] if atom[0] == "symbol" else evaluate(atom[1], sizes) // atom[2]
            total += factor
        return total


def _terms(size: Size) -> Iterable[tuple[Monomial, int]]:
    return size.terms if isinstance(size, Dim) else [((), int(size))]


def _collect(terms: Iterable[tuple[Monomial, int]]) -> Size:
    found: dict[Monomial, int] = {}
    for monomial, factor in terms:
        found[monomial] = found.get(monomial, 0) + factor
    found = {m: c for m, c in found.items() if c}
    if not found:
        return 0
    if len(found) == 1 and () in found:
        return found[()]
    return Dim(found)


def _divide_exactly(top: Dim, bottom: Dim) -> Size | None:
    """top / bottom where bottom is a single product that divides every term, else None."""
    if top == bottom:
        return 1
    if len(bottom.terms) != 1:
        return None
    (product, factor), result = bottom.terms[0], []
    for monomial, c in top.terms:
        rest = list(monomial)
        for atom in product:
            if atom not in rest:
                return None
            rest.remove(atom)
        if c % factor:
            return None
        result.append((tuple(rest), c // factor))
    return _collect(result)


def _signed(position: int, monomial: Monomial, factor: int) -> str:
    atoms = [a[1] if a[0] == "symbol" else f"(({a[1]}) // {a[2]})" for a in monomial]
    if abs(factor) != 1 or not atoms:
        atoms = [str(abs(factor)), *atoms]
    sign = ("-" if factor < 0 else "") if position == 0 else (" - " if factor < 0 else " + ")
    return sign + "*".join(atoms)


def evaluate(size: Size, sizes: Mapping[str, Size]) -> Any:
    """What `size` becomes under `sizes` ({symbol: int, or another open size}): an int where they all are."""
    return size.evaluate(sizes) if isinstance(size, Dim) else size


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are equal; UndecidedError where that depends on the symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if isinstance(a, Dim) and isinstance(b, Dim) and a == b:
        return True
    if isinstance(a - b, int):  # they differ by a constant, not 0
        return False
    raise UndecidedError(f"{a} == {b}")


def at_least(a: Size, bound: int) -> bool:
    """Whether a >= bound; UndecidedError where that depends on the symbols."""
    if isinstance(a, int):
        return a >= bound
    if bound <= 1 and len(a.terms) == 1 and a.terms[0][1] > 0:
        return True
    for lower in (a, _without_quotients(a)):
        least = _least(lower)
        if least is not None and least >= bound:
            return True
    raise UndecidedError(f"{a} >= {bound}")


def _without_quotients(size: Size) -> Size:
    """`size` or less, where whole multiples of d * (x // d) have become those of x - (d - 1)."""
    total: Size = 0
    for monomial, factor in _terms(size):
        if len(monomial) == 1 and monomial[0][0] == "floordiv" and factor > 0 and factor % monomial[0][2] == 0:
            _, x, d = monomial[0]
            total = total + factor // d * (x - (d - 1))
        else:
            total = total + _collect([(monomial, factor)])
    return total


def _least(size: Size) -> int | None:
    """The value where every symbol is 1, if no other choice gives a smaller one; else None."""
    total = 0
    for monomial, factor in _terms(size):
        if monomial and factor < 0:
            return None
        for atom in monomial:
            inner = 1 if atom[0] == "symbol" else _least(atom[1])
            if inner is None:
                return None
            factor *= inner if atom[0] == "symbol" else inner // atom[2]
        total += factor
    return total


def product(sizes: Iterable[Size]) -> Size:
    """The number of elements of a shape."""
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def broadcast(*shapes: Shape) -> Shape:
    """NumPy's broadcast shape. ValueError where the shapes do not go together; UndecidedError where that is open.

    An open size beside 1 is that open size; beside an equal one, itself.
    """
    if shapes.count(shapes[0]) == len(shapes):
        return shapes[0]
    rank = max(len(shape) for shape in shapes)
    result: list[Size] = []
    for axis in range(-rank, 0):
        found: Size = 1
        for shape in shapes:
            size = shape[axis] if -axis <= len(shape) else 1
            if isinstance(size, int) and size == 1:
                continue
            if isinstance(found, int) and found == 1:
                found = size
            elif not same(found, size):
                raise ValueError(f"shapes {', '.join(map(text, shapes))} do not broadcast")
        result.append(found)
    return tuple(result)


def text(shape: Shape) -> str:
    """A shape as it is shown to users: (N, 3, 8, 8)."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
