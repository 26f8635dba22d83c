"""Checks what a device is asked to do, from a dry run: the captured launches, the words of their rows, who wrote what they read.

`check_captured` looks at nothing but the driver's record and the device's memory on one side, and the portable rows on the
other. So a row that is bound to a wrong address, launched out of order, or left out of a graph is found without a GPU.

What a row may read: a value, written by the row that made it and by no other; a leaf (an input, a parameter, old state), not
yet written by any row. Gradients are written one by one and read all together, flat, by optimizers and the norm that
clips: after that none may be written. A result may lie over an operand where the op says so, and then over all of it.
"""

from __future__ import annotations

import numpy as np

from tapeprop.compiler.encode import Row
from tapeprop.compiler.plan import Place
from tapeprop.ir import Region, Tensor
from tapeprop.runtime.device_executable import DeviceExecutable
from tapeprop.runtime.executable import HEADER
from tapeprop.targets.cuda.dry import DryDriver, Launched

BEFORE = -1  # written by the host, or zero since it was allocated


class Memory:
    """Who wrote each byte of each allocation last: the number of a row, or BEFORE."""

    def __init__(self, driver: DryDriver):
        self.driver = driver
        self.writers: dict[int, np.ndarray] = {}
        self.read_flat: dict[int, np.ndarray] = {}

    def of(self, address: int, nbytes: int) -> np.ndarray:
        """The writers of a stretch. AssertionError where it is not inside one live allocation."""
        return self._stretch(self.writers, address, nbytes)

    def flat(self, address: int, nbytes: int) -> np.ndarray:
        """The row that read each byte of a stretch of gradients flat, or BEFORE."""
        return self._stretch(self.read_flat, address, nbytes)

    def _stretch(self, known: dict[int, np.ndarray], address: int, nbytes: int) -> np.ndarray:
        found = self.driver.allocation_of(address)
        assert found is not None, f"{address:#x} lies in no allocation"
        begin, size = found
        assert address + nbytes <= begin + size, (
            f"{nbytes} bytes at {address:#x} leave their allocation of {size} bytes"
        )
        if begin not in known:
            known[begin] = np.full(size, BEFORE, np.int64)
        return known[begin][address - begin : address - begin + nbytes]


def check_captured(executable: DeviceExecutable, graphs: list[list[tuple]]) -> int:
    """Checks that the graphs, one behind the other, are the rows of an executable that is bound; how many launches there were.

    AssertionError tells the row.
    """
    driver, tape = executable.driver, executable.tape
    launches = [record for graph in graphs for record in graph]
    assert all(isinstance(record, Launched) for record in launches), "a graph holds more than launches"
    native = [number for number, row in enumerate(tape.rows) if row.kernel is not None]
    assert len(launches) == len(native), f"{len(launches)} launches for {len(native)} rows"
    memory = Memory(driver)
    address = _addresses(executable)
    roots = _roots(executable)
    made: dict = {}
    for number, record in zip(native, launches, strict=True):
        row, where = tape.rows[number], f"row {number}, {tape.rows[number].label}"
        assert (record.kernel, record.grid, record.block) == (row.kernel, row.launch.grid, row.launch.block), where
        words = driver.words(record.row, HEADER + len(row.fields))
        assert words[3] == number, f"{where}: its words are those of row {words[3]}"
        assert driver.allocation_of(record.control) is not None, f"{where}: no status word"
        for field, word in zip(row.fields, words[HEADER:], strict=True):
            wanted = address[field.buffer] + field.offset if isinstance(field, Place) else field
            assert word == wanted, f"{where}: a word is {word:#x}, expected {wanted:#x}"
        first = number == 0 or tape.rows[number - 1].step is not row.step
        last = number + 1 == len(tape.rows) or tape.rows[number + 1].step is not row.step
        if first:
            _check_overlaps(row, where)
            for operand, extent in zip(row.step.instruction.operands, row.reads, strict=True):
                at = address[extent.place.buffer] + extent.place.offset, extent.nbytes
                writers = set(memory.of(*at).tolist())
                root = roots.get(operand, operand)
                if root in made:
                    assert writers == {made[root]}, f"{where}: reads what rows {writers} wrote, expected {made[root]}"
                elif _is_flat_gradient(executable, root, extent.place):
                    memory.flat(*at)[:] = number
                else:
                    assert extent.place.buffer != tape.arena, (
                        f"{where}: reads a value that no row of this tape has made"
                    )
                    assert writers == {BEFORE}, f"{where}: reads a leaf that rows {writers - {BEFORE}} have overwritten"
        if last:
            for result, extent in zip(row.step.instruction.results, row.writes, strict=True):
                at = address[extent.place.buffer] + extent.place.offset, extent.nbytes
                readers = set(memory.flat(*at).tolist()) - {BEFORE}
                assert not readers, f"{where}: writes a gradient that rows {readers} have read already"
                memory.of(*at)[:] = number
                made[result] = number
    return len(launches)


def _check_overlaps(row: Row, where: str) -> None:
    """AssertionError where a result lies over an operand and the op has not said that it may, or over a part of it."""
    instruction = row.step.instruction
    allowed = instruction.op.inplace_pairs(instruction)
    for j, written in enumerate(row.writes):
        for k, read in enumerate(row.reads):
            if written.meets(read):
                assert (j, k) in allowed, f"{where}: result {j} lies over operand {k}, which it must not"
                assert written == read, f"{where}: result {j} lies over a part of operand {k}"


def _is_flat_gradient(executable: DeviceExecutable, leaf: Tensor, place: Place) -> bool:
    return isinstance(leaf.source, Region) and executable.roles.get(place.buffer) == "gradients"


def _addresses(executable: DeviceExecutable) -> dict[str, int]:
    """{buffer: where it begins on the device}, asked of those who own the memory."""
    found = {name: arena.address for name, arena in executable.arenas.items()}
    found |= {name: buffer.mirror.address for name, buffer in executable._fixed.items()}
    found |= {f"input{t.source.index}": fed.address for t, fed in executable._fed.items()}
    values = executable.plan.arena_bytes
    found["scratch"] = executable.arena.address + -(-values // 256) * 256
    return found


def _roots(executable: DeviceExecutable) -> dict:
    roots: dict = {}
    for step in executable.plan.steps:
        if step.instruction.op.alias:
            operand = step.instruction.operands[0]
            roots[step.instruction.results[0]] = roots.get(operand, operand)
    return roots
