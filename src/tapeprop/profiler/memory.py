"""The memory of a tape over its rows: what is live, where the peak is, and who holds it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tapeprop.profiler.profile import Block, Memory
from tapeprop.runtime.executable import Executable


def memory_of(executable: Executable) -> Memory:
    """What the plan of an executable says, in bytes."""
    blocks = _blocks(executable)
    live = [0] * len(executable.tape.rows)
    for block in blocks:
        for row in range(block.first, block.last + 1):
            live[row] += block.nbytes
    held = _held(executable)
    return Memory(
        tuple(live),
        executable.tape.arena_bytes,
        executable.plan.unshared_bytes,
        tuple(blocks),
        scratch=executable.tape.scratch_bytes * executable.workers,
        **held,
    )


def _blocks(executable: Executable) -> list[Block]:
    """The values in the tape's own arena, by the row that makes them; row numbers in place of the plan's steps."""
    plan, rows = executable.plan, executable.tape.rows
    if not rows:
        return []
    first_row, last_row = _rows_of_steps(executable)
    found: list[Block] = []
    at: dict[int, int] = {}  # offset -> index of the block that lies there
    for tensor, (first, last) in plan.lifetimes.items():
        offset, begin = plan.places[tensor].offset, first_row[first]
        end = max(begin, last_row[min(last, len(last_row) - 1)])
        before = at.get(offset)
        if before is not None and found[before].last >= begin:  # written in place: it takes the operand's memory over
            old = found[before]
            found[before] = Block(old.label, old.offset, old.nbytes, old.first, max(begin - 1, old.first))
        at[offset] = len(found)
        kind = plan.types[tensor]
        nbytes = -(-max(kind.nbytes, 1) // 64) * 64
        row = rows[begin]
        where = row.step.instruction.node
        shape = f"{kind.dtype} ({','.join(map(str, kind.shape))})"
        found.append(Block(" ".join(filter(None, (where, row.label, shape))), offset, nbytes, begin, end))
    return found


def _rows_of_steps(executable: Executable) -> tuple[list[int], list[int]]:
    """([first row of each step], [last row]); an alias, which has none, has that of the next step, the last ones the last row."""
    rows, steps = executable.tape.rows, executable.plan.steps
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, row in enumerate(rows):
        first.setdefault(id(row.step), number)
        last[id(row.step)] = number
    begins, ends = [0] * len(steps), [0] * len(steps)
    following = len(rows) - 1
    for i in range(len(steps) - 1, -1, -1):
        following = first.get(id(steps[i]), following)
        begins[i] = following
        ends[i] = last.get(id(steps[i]), following)
    return begins, ends


def _held(executable: Executable) -> dict[str, int]:
    """Bytes outside the arena that rows touch, each counted once, by what they are."""
    touched: dict[str, list[tuple[int, int]]] = {}
    for row in executable.tape.rows:
        for extent in (*row.reads, *row.writes):
            stretch = extent.place.offset, extent.place.offset + extent.nbytes
            touched.setdefault(extent.place.buffer, []).append(stretch)
    found = dict.fromkeys(("parameters", "gradients", "optimizer", "other", "inputs"), 0)
    for buffer, stretches in touched.items():
        if buffer in executable.arenas:
            continue
        role: Any = "inputs" if buffer.startswith("input") else executable.roles.get(buffer, "other")
        found[role] += _union(stretches)
    return found


def _union(stretches: Iterable[tuple[int, int]]) -> int:
    """Bytes in at least one of the stretches."""
    total = reached = 0
    for start, end in sorted(stretches):
        total += max(end - max(start, reached), 0)
        reached = max(reached, end)
    return total
