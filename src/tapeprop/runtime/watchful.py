"""`debug_nan`: a tape run row by row, every result looked at, until one holds a NaN or an infinity.

All results before that one were finite. So where an operand is not, it came from outside the tape: fed, or out of storage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tapeprop.compiler.encode import Row
from tapeprop.errors import NumericsError
from tapeprop.ir import Constant, Gradient, Input, Parameter, Region, Tensor
from tapeprop.runtime.executable import Executable
from tapeprop.runtime.state import cell

#: {parameter: its key in the graph}
Names = Callable[[], Mapping[Parameter, str]]


def run_watchfully(executable: Executable, first: str | None, last: str | None, names: Names = dict) -> None:
    """Runs the spans from `first` to `last` once.

    NumericsError names the first instruction that made a NaN or an infinity, its node, and the operand that held one before; the
    rows behind it did not run. An instruction of several rows is looked at when the last of them has run.
    """
    start, count = executable.rows_of(first, last)
    rows = executable.tape.rows
    for first_row, length in executable.parts(start, count):
        before: dict[int, str] = {}
        for number in range(first_row, first_row + length):
            row = rows[number]
            if number == first_row or rows[number - 1].step is not row.step:
                before = _operands(executable, row, names, overwritten=True)
            executable.run_rows(number, 1)
            if number + 1 == len(rows) or rows[number + 1].step is not row.step:
                _check_results(executable, number, before, names)


def _check_results(executable: Executable, number: int, before: dict[int, str], names: Names) -> None:
    row = executable.tape.rows[number]
    for result in row.step.instruction.results:
        array = executable.view(result)
        if bad := _bad(array):
            held = dict(sorted((before | _operands(executable, row, names)).items()))
            cause = "; ".join(held.values()) or "its operands were finite"
            count = array.size - np.count_nonzero(np.isfinite(array))
            raise NumericsError(
                f"{_where(row, array, names)}row {number}, {row.label} ({row.step.span}), made {bad} in a result of shape "
                f"{array.shape}, {count:,} of {array.size:,} elements; {cause}"
            )


def _where(row: Row, array: np.ndarray, names: Names) -> str:
    """The node that a row belongs to, or the parameter that it would have advanced to the first bad element."""
    if row.step.instruction.node:
        return f"node {row.step.instruction.node!r}: "
    for operand in row.step.instruction.operands:
        if isinstance(operand.source, Region) and operand.source.size == array.size > 1:
            stored = _stored(operand.source, _first(array), names())
            return f"{stored}: " if stored else ""
    return ""


def _bad(array: np.ndarray) -> str:
    """What is wrong with an array, "" where all is finite."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return ""
    return "a NaN" if np.isnan(array).any() else "an infinity"


def _first(array: np.ndarray) -> int:
    """The flat index of the first element that is not finite."""
    return int(np.argmin(np.isfinite(array)))


def _operands(executable: Executable, row: Row, names: Names, overwritten: bool = False) -> dict[int, str]:
    """{number of an operand that holds a NaN or an infinity: a sentence on it}, of those that no instruction of the tape made.

    overwritten: of those that the row writes over, which cannot be looked at afterwards; else of the others.
    """
    found = {}
    for index, (operand, extent) in enumerate(zip(row.step.instruction.operands, row.reads, strict=True)):
        leaf = _root(operand)
        if leaf.producer is not None or overwritten != any(extent.meets(written) for written in row.writes):
            continue
        array = executable.array_at(extent.place, row.step.call.operands[index])
        if bad := _bad(array):
            place = tuple(map(int, np.unravel_index(_first(array), array.shape)))
            origin = _origin(executable, leaf, _first(array), names())
            found[index] = f"operand {index} already held {bad}, first at index {place}: {origin}"
    return found


def _root(tensor: Tensor) -> Tensor:
    """The tensor whose memory this one is under another shape."""
    while tensor.producer is not None and tensor.producer.op.alias:
        tensor = tensor.producer.operands[0]
    return tensor


def _origin(executable: Executable, leaf: Tensor, position: int, names: Mapping[Parameter, str]) -> str:
    """Where a leaf's numbers come from. position: flat, of the element that is not finite."""
    source = leaf.source
    if isinstance(source, Input):
        fed = [t.source for t in executable.program.inputs if isinstance(t.source, Input)]
        alike = sorted({s.index for s in fed if s.name == source.name})
        what = {"input": "the input", "labels": "the labels", "gradient": "d_out"}.get(source.name, source.name)
        return f"it came in with {what}" + (f" number {alike.index(source.index)}" if len(alike) > 1 else "")
    if isinstance(source, Parameter):
        return f"it is the value of {names.get(source, source.name)!r}"
    if isinstance(source, Gradient):
        return f"it is the gradient of {names.get(source.parameter, source.parameter.name)!r}"
    if isinstance(source, Constant):
        return "it is a constant of the network"
    stored = _stored(source, position, names) if isinstance(source, Region) else ""
    return f"it is {stored}" if stored else f"it is stored as {leaf.name or 'state'!r}"


def _stored(region: Region, position: int, names: Mapping[Parameter, str]) -> str:
    """What element `position` of a region is: "the value of 'head.weight'", say; "" where it is no parameter's."""
    for parameter, name in names.items():
        home = cell(parameter)
        if not 0 <= region.start + position - home.start < parameter.size:
            continue
        for what, buffer in (("value", home.segment.values), ("gradient", home.segment.gradients)):
            if buffer is region.array:
                return f"the {what} of {name!r}"
    return ""
