"""The CUDA kernel of elementwise ops: one generated loop for any expressions, operands broadcast, strided or gathered.

Threads stride over the elements of the results, which lie one behind the other, a few at a time: all loads of these stand
before the first store, so that several are on their way at once, and so that a result may take the memory of an operand that
is laid out as it is. The expressions become the text of a device function, of which each element is a call.

Products are rounded by themselves (`language.PRODUCT`), so that fused and unfused chains give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapeprop.ops.expression import Encoded, Scalar, cuda_source, decode, inputs_of, ordered
from tapeprop.targets.cuda import language
from tapeprop.targets.cuda.kernel import CudaKernel

__all__ = ["loop"]

#: Elements that a thread has under way at once, by the number of nodes up to which their registers suffice.
AT_ONCE = ((48, 4), (96, 2))
OWN_CLASSES = ("single64", "strided", "gathered")


def loop(
    *, expressions: Encoded, dtype: str, classes: tuple[str, ...], axes: int = 1, wide: bool = False
) -> CudaKernel:
    """The kernel that computes encoded expressions, a contiguous result for each.

    dtype: of the arithmetic and of all operands but those of class "single64". classes: one for each input, "*" and "." for
    each of the results' axes, as "*.*": those along which the operand runs, contiguous over them, and those along which it is
    repeated; or "single64", one float64 element, which is rounded to dtype; "strided", element i at first + i * step;
    "gathered", at a position from a table of int32. axes: of the results, neighbours merged. wide: 2^31 elements or more.

    Arrays: each operand, a gathered one and then its table; the results. Integers: the number of elements; of each axis but the
    first its size and the inverse of that (`ops.op.inverse`); `first` and `step` of each strided operand. ValueError for a
    description that does not hold together.
    """
    roots = decode(expressions)
    _check(roots, dtype, classes, axes)
    arrays: list[tuple[str, str, int]] = []
    integers = ["count", *(f"{name}{axis}" for axis in range(1, axes) for name in ("n", "inverse"))]
    for k, kind in enumerate(classes):
        arrays.append((f"x{k}", "float64" if kind == "single64" else dtype, 1))
        if kind == "gathered":
            arrays.append((f"table{k}", "int32", 1))
        elif kind == "strided":
            integers += [f"first{k}", f"step{k}"]
    arrays += [(f"y{j}", dtype, 1) for j in range(len(roots))]
    names = [*(name for name, _, _ in arrays), *integers]
    return CudaKernel(_body(roots, names, dtype, classes, axes, wide), arrays, integers)


def _check(roots: Sequence[Scalar], dtype: str, classes: Sequence[str], axes: int) -> None:
    if dtype not in language.FLOAT:
        raise ValueError(f"elementwise loops compute in float32 or float64, not {dtype}")
    for kind in classes:
        if kind not in OWN_CLASSES and (len(kind) != axes or set(kind) - set("*.")):
            raise ValueError(
                f"operand classes are {', '.join(OWN_CLASSES)}, or '*' and '.' for each of {axes} axes; got {kind!r}"
            )
    used = inputs_of(roots)
    if used and used[-1] >= len(classes):
        raise ValueError(f"the expressions use input {used[-1]}, but there are {len(classes)} inputs")


def _body(
    roots: Sequence[Scalar], names: Sequence[str], dtype: str, classes: Sequence[str], axes: int, wide: bool
) -> Any:
    """The generated body, its globals those that `cuda_source` asks for."""
    scope: dict[str, Any] = {name: getattr(language, name) for name in language.__all__}
    scope |= {"number": language.FLOAT[dtype], "product": language.PRODUCT[dtype], "inf": math.inf, "nan": math.nan}
    scope["quotient"] = language.divider(wide)
    scope["place"] = np.uint64  # of an index: Numba looks whether a signed one counts from the end
    used = inputs_of(roots)
    size = len(ordered(roots))
    at_once = next((count for most, count in AT_ONCE if size <= most), 1)
    results = [f"r{j}" for j in range(len(roots))]
    lines = [f"def formula({', '.join(f'v{k}' for k in used)}):"]
    lines += _indented(cuda_source(roots, [f"v{k}" for k in range(len(classes))], results))
    lines += [f"    return {', '.join(results)}", ""]
    exec(compile("\n".join(lines), "<elementwise formula>", "exec"), scope)
    scope["formula"] = language.inlined(scope["formula"])
    lines = [f"def body({', '.join(names)}):", "    i, step = cuda.grid(1), cuda.gridsize(1)"]
    lines += [f"    v{k} = number(x{k}[0])" for k in used if _is_single(classes[k])]
    loop = _Loop(used, classes, len(roots), axes)
    if at_once > 1:
        lines.append(f"    while i + {at_once - 1} * step < count:")
        lines += _indented(loop.elements(at_once), 2)
    lines.append("    while i < count:")
    lines += _indented(loop.elements(1), 2)
    exec(compile("\n".join(lines) + "\n", "<elementwise loop>", "exec"), scope)
    return scope["body"]


def _indented(lines: Sequence[str], depth: int = 1) -> list[str]:
    return ["    " * depth + line for line in lines]


def _is_single(kind: str) -> bool:
    return kind == "single64" or not set(kind) - {"."}


class _Loop:
    """The text of one turn of the loop."""

    def __init__(self, used: Sequence[int], classes: Sequence[str], results: int, axes: int) -> None:
        self.used, self.classes, self.results, self.axes = used, classes, results, axes

    def elements(self, count: int) -> list[str]:
        """`count` elements, from i on at distances of `step`: their loads, their values, their stores."""
        lines: list[str] = []
        for u in range(count):
            lines.append(f"i{u} = i + {u} * step" if u else "i0 = i")
            lines += self.loads(u)
        for u in range(count):
            values = [f"v{k}" if _is_single(self.classes[k]) else f"v{k}_{u}" for k in self.used]
            results = ", ".join(f"r{j}_{u}" for j in range(self.results))
            lines.append(f"{results} = formula({', '.join(values)})")
        for u in range(count):
            lines += [f"y{j}[place(i{u})] = r{j}_{u}" for j in range(self.results)]
        return [*lines, f"i += {count} * step"]

    def loads(self, u: int) -> list[str]:
        """Element i{u} of every operand that is not a single one."""
        lines: list[str] = []
        if any("*" in kind and "." in kind for kind in map(self.classes.__getitem__, self.used)):
            lines += self.digits(u)
        for k in self.used:
            kind = self.classes[k]
            if _is_single(kind):
                continue
            if kind == "strided":
                index = f"first{k} + i{u} * step{k}"
            elif kind == "gathered":
                index = f"table{k}[place(i{u})]"
            elif "." in kind:
                index = self.index(kind, u)
            else:
                index = f"i{u}"
            lines.append(f"v{k}_{u} = x{k}[place({index})]")
        return lines

    def digits(self, u: int) -> list[str]:
        """The index of element i{u} along each axis, d{axis}_{u}."""
        lines, rest = [], f"i{u}"
        for axis in reversed(range(1, self.axes)):
            lines.append(f"q{axis}_{u} = quotient({rest}, n{axis}, inverse{axis})")
            lines.append(f"d{axis}_{u} = {rest} - q{axis}_{u} * n{axis}")
            rest = f"q{axis}_{u}"
        return [*lines, f"d0_{u} = {rest}"]

    def index(self, kind: str, u: int) -> str:
        """Where an operand that runs along some axes has its element."""
        index = ""
        for axis in range(self.axes):
            if kind[axis] == "*":
                index = f"({index}) * n{axis} + d{axis}_{u}" if index else f"d{axis}_{u}"
        return index
