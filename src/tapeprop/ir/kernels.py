"""The name of a kernel: which builder makes it, with which parameters. Pure data: kept, compared and sent at will.

A kernel is machine code `void kernel(int64 row address, int64 worker, int64 workers)`. What stands here only says how
to get it; `tapeprop.runtime.linker.load` turns names into addresses, from the cache on disk where it can.

Words of a tape row (int64): 0 the kernel's address, 1 whether a barrier follows, 2 the address of the control block,
3 the row's number, from 4 on (`FIRST_FIELD`) the kernel's own fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FIRST_FIELD", "Kernel", "row_words"]

#: The word of a row where a kernel's own fields begin.
FIRST_FIELD = 4

_LITERALS = (str, int, float, bool, type(None))
_LABEL_VALUE, _LABEL = 32, 120


def _check_literal(value: object, place: str) -> None:
    if type(value) is tuple:
        for item in value:
            _check_literal(item, place)
    elif type(value) not in _LITERALS:
        raise TypeError(
            f"{place}: expected str, int, float, bool, None or a tuple of these, "
            f"got {type(value).__name__} {value!r:.60}; "
            "convert it (a NumPy integer with int(), a list with tuple())"
        )


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel by its builder and parameters; frozen, hashable and picklable.

    builder: "package.module:function". Called with the parameters as keywords it returns a `NumbaKernel` or an
    `AssemblyKernel` (`tapeprop.targets.cpu.kernel`). parameters: (name, literal) pairs sorted by name.
    Kernels are equal when their texts are: 1, 1.0, True and 0.0, -0.0 are different parameters, though Python calls
    them equal. TypeError for a parameter that is no literal, ValueError for a builder that is no such name.
    """

    builder: str
    parameters: tuple[tuple[str, object], ...] = ()
    _text: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        module, _, function = self.builder.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), function)):
            raise ValueError(f"kernel builder: expected 'package.module:function', got {self.builder!r}")
        for name, value in self.parameters:
            _check_literal(value, f"kernel {self.builder}, parameter {name}")
        object.__setattr__(self, "parameters", tuple(sorted(self.parameters, key=lambda pair: pair[0])))
        object.__setattr__(self, "_text", repr((self.builder, self.parameters)))

    @classmethod
    def of(cls, builder: str, **parameters: object) -> Kernel:
        """The kernel that `builder(**parameters)` makes; the order of the keywords does not matter."""
        return cls(builder, tuple(parameters.items()))

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Kernel) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    @property
    def module(self) -> str:
        """The module that holds the builder."""
        return self.builder.partition(":")[0]

    @property
    def label(self) -> str:
        """A short readable name, such as "dense(rows=8, relu=True)"; long values are cut."""
        values = (f"{name}={_cut(repr(value), _LABEL_VALUE)}" for name, value in self.parameters)
        return _cut(f"{self.builder.partition(':')[2]}({', '.join(values)})", _LABEL)

    @property
    def digest(self) -> str:
        """SHA-256 of the kernel's text, in hex: the same in every process."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    @property
    def symbol(self) -> str:
        """The name of its machine code, unique among the kernels linked into one process."""
        return f"tapeprop_{self.digest[:32]}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def row_words(arrays: Sequence[tuple[Any, Sequence[int]]], integers: Sequence[int] = ()) -> list[Any]:
    """The fields of a `NumbaKernel`'s row, from word 4 on.

    arrays: (address, shape) of each array in the kernel's order, shape () for a single element; an address may be
    anything that later becomes one. integers: the kernel's integers in order. Each array gives its address and then its
    sizes, each integer one word.
    """
    words: list[Any] = []
    for address, shape in arrays:
        words += [address, *(int(size) for size in shape)]
    words += [int(value) for value in integers]
    return words
