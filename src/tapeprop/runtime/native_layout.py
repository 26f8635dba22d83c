"""The words of memory that the loops in `native_loop` and the Python around them share: record, control block, team block."""

from __future__ import annotations

__all__ = ["CONTROL", "MAILBOX", "RECORD", "RECORD_WORDS", "TEAM", "place"]

#: Words of a record: address of the first row, number of rows, bytes per row, address of the control block, steps,
#: pauses before a waiting worker yields, address of the time buffer (0: none; else int64 (steps, workers, slots, 2)), the
#: number of rows at the front that each step runs `rounds` times before it goes on to the rest, and the slots of a step:
#: one for each row each time that it runs.
RECORD = {
    "tape": 0, "rows": 1, "width": 2, "control": 3, "steps": 4, "spins": 5, "times": 6, "front": 7, "rounds": 8, "slots": 9,
}  # fmt: skip
RECORD_WORDS = 16
#: Words of a control block, each group on a cache line of its own. phase: 2 * barriers passed + whether to stop.
CONTROL = {"status": 0, "arrivals": 8, "phase": 16, "sleepers": 17, "step": 32}
TEAM = {"done": 0, "sleepers": 1}
MAILBOX = {"generation": 0, "sleepers": 1, "record": 2, "workers": 3}


def place(name: str, base: str, word: int) -> str:
    """The IR line that makes %name the address of a word of the block at `base`."""
    return f"  %{name} = getelementptr i64, ptr {base}, i64 {word}\n"
